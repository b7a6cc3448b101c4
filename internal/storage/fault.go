package storage

// Fault is an error that only a person can correct, such as a missing right. Fix is the next step.
type Fault struct {
	Code string // one of the codes below: a stable name for alerts
	Fix  string
	Err  error
}

// The codes of faults. docs/operating.md lists them.
const (
	CodeStorageUnreachable = "storage_unreachable"
	CodeStorageLogin       = "storage_login"
	CodeStorageDatabase    = "storage_database"
	CodeStorageTLS         = "storage_tls"
	CodeStoragePooler      = "storage_pooler"
	CodeStorageConnections = "storage_connections"
	CodeStorageEmpty       = "storage_empty"
	CodeStorageSchema      = "storage_schema"
	CodeStorageReadOnly    = "storage_read_only"
	CodeStorageRights      = "storage_rights"
	CodeStorageFull        = "storage_full"
)

// Error returns the text of the error without the fix.
func (f *Fault) Error() string { return f.Err.Error() }

// Unwrap returns the error.
func (f *Fault) Unwrap() error { return f.Err }
