package sqlite

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"modernc.org/sqlite"
)

// errMoved: what is at the path is not the file that was opened.
var errMoved = errors.New("the file was moved, or replaced by another one")

// place connects to the file at a path. A file may be moved away, or replaced by a backup. A
// process that has it open can still write to it, and these writes are lost. So a connection is
// used again only while its file is in its place.
type place struct {
	driver.Connector
	file string
}

func placeOf(file, dsn string) (place, error) {
	c, err := sqlite.NewConnector(dsn)
	if err != nil {
		return place{}, fmt.Errorf("sqlite: open %s: %w", file, err)
	}
	return place{c, file}, nil
}

// Connect implements [driver.Connector].
func (p place) Connect(ctx context.Context) (driver.Conn, error) {
	was, err := os.Stat(p.file) // before it is opened: one that comes in between is noticed with the next use
	if err != nil {
		return nil, away(err)
	}
	c, err := p.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	full, ok := c.(conn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("sqlite: the driver's connection, a %T, lacks an interface of database/sql",
			c), c.Close())
	}
	return &placed{full, p.file, was}, nil
}

// conn is what the driver's connections implement, without which database/sql would do other
// things, or less.
type conn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.Pinger
	driver.SessionResetter
	driver.Validator
}

type placed struct {
	conn
	file string
	was  os.FileInfo
}

// ResetSession implements [driver.SessionResetter]; it comes before each further use of the
// connection.
func (c *placed) ResetSession(ctx context.Context) error {
	if inPlace(c.file, c.was) != nil {
		return driver.ErrBadConn
	}
	return c.conn.ResetSession(ctx)
}

// inPlace returns an error unless a file is still the one that it was.
func inPlace(file string, was os.FileInfo) error {
	is, err := os.Stat(file)
	if err != nil {
		return away(err)
	}
	if !os.SameFile(is, was) {
		return fmt.Errorf("%s: %w", file, errMoved)
	}
	return nil
}

// away explains an error that says that a file does not exist.
func away(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the storage is no longer where it was; retrying until it is back: %w", err)
	}
	return err
}
