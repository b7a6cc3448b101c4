package launcher

// Abilities returns the names of what a launcher can do beyond its three methods, in a fixed order:
// list, find, watch, batch, remove, logs, describe, preview, check, capacity, adopt.
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

// Provide implements the method As of a launcher whose abilities depend on its settings, or on the
// program at the other end of a wire. all implements every ability. has reports by name, as in
// [Abilities], which abilities the launcher really has.
func Provide(ability, all any, has func(name string) bool) bool {
	switch to := ability.(type) {
	case *Lister:
		return provide(to, all, has("list"))
	case *Finder:
		return provide(to, all, has("find"))
	case *Watcher:
		return provide(to, all, has("watch"))
	case *Batcher:
		return provide(to, all, has("batch"))
	case *Remover:
		return provide(to, all, has("remove"))
	case *LogReader:
		return provide(to, all, has("logs"))
	case *Describer:
		return provide(to, all, has("describe"))
	case *Previewer:
		return provide(to, all, has("preview"))
	case *Checker:
		return provide(to, all, has("check"))
	case *Capacity:
		return provide(to, all, has("capacity"))
	case *Adopter:
		return provide(to, all, has("adopt"))
	}
	return false
}

func provide[T any](to *T, all any, has bool) bool {
	a, ok := all.(T)
	if ok = ok && has; ok {
		*to = a
	}
	return ok
}
