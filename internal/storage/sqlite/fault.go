package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"syscall"

	"modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"

	"github.com/slipway-run/slipway/internal/storage"
)

// errProbed ends the transaction of a probe without a commit.
var errProbed = errors.New("probed")

// Probe implements [storage.Store].
func (s *Store) Probe(ctx context.Context) []error {
	var out []error
	if err := s.tx(ctx, nil, func(tx *sql.Tx) error {
		if err := setKV(ctx, tx, "slipway/probe", "x"); err != nil {
			return err
		}
		return errProbed
	}); !errors.Is(err, errProbed) {
		out = append(out, diagnose(fmt.Errorf("sqlite: cannot write to %s: %w",
			filepath.Join(s.history, "runs.db"), err)))
	}
	// of the lock, journals and the runs' events
	for _, dir := range []string{s.history, filepath.Join(s.history, "runs")} {
		const write = 2
		if err := syscall.Access(dir, write); err != nil {
			out = append(out, diagnose(fmt.Errorf("sqlite: cannot create files in %s: %w", dir, err)))
		}
	}
	return out
}

// diagnose turns an error whose remedy is known into a [storage.Fault].
func diagnose(err error) error {
	rights := &storage.Fault{Code: storage.CodeStorageRights, Err: err,
		Fix: "give the user of slipway access to the files in history of DAGSTER_HOME, as dagster-webserver's user has"}
	if errors.Is(err, syscall.EACCES) {
		return rights
	}
	if errors.Is(err, syscall.EROFS) {
		return &storage.Fault{Code: storage.CodeStorageReadOnly, Err: err,
			Fix: "mount the disk of DAGSTER_HOME read-write"}
	}
	e := (*sqlite.Error)(nil)
	if !errors.As(err, &e) {
		return err
	}
	switch e.Code() & 0xff { // without the extension
	case lib.SQLITE_READONLY, lib.SQLITE_CANTOPEN, lib.SQLITE_PERM:
		return rights
	case lib.SQLITE_FULL, lib.SQLITE_IOERR:
		return &storage.Fault{Code: storage.CodeStorageFull, Err: err,
			Fix: "free space on the disk of DAGSTER_HOME, and check the disk's health"}
	}
	return err
}
