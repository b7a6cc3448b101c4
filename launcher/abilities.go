package launcher

// Abilities names what a launcher can do beyond its three methods, in the order of their declaration.
func Abilities(l Launcher) []string {
	names := []string{}
	add := func(name string, has bool) {
		if has {
			names = append(names, name)
		}
	}
	add("list", has[Lister](l))
	add("find", has[Finder](l))
	add("watch", has[Watcher](l))
	add("batch", has[Batcher](l))
	add("remove", has[Remover](l))
	add("logs", has[LogReader](l))
	add("describe", has[Describer](l))
	add("preview", has[Previewer](l))
	add("check", has[Checker](l))
	add("capacity", has[Capacity](l))
	add("adopt", has[Adopter](l))
	return names
}

func has[T any](l Launcher) bool {
	_, ok := As[T](l)
	return ok
}
