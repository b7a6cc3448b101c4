package config

// Suggest returns the end of a message about an unknown name: the nearest known name, or all of
// them if none is near.
func Suggest(name string, known []string) string { return suggest(name, known) }
