package config

// Suggest ends a message about a name that is not among the known ones: it names the nearest one, or all of them if none is near.
func Suggest(name string, known []string) string { return suggest(name, known) }
