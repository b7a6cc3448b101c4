package storage

// Setting marks an error of opening a storage that only a change of settings can correct, so that
// waiting does not help.
func Setting(err error) error { return &SettingError{err} }

// SettingError is an error that [Setting] has marked.
type SettingError struct{ err error }

func (e *SettingError) Error() string { return e.err.Error() }

// Unwrap returns the error that was marked.
func (e *SettingError) Unwrap() error { return e.err }
