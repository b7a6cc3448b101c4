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

// place connects to what is at a path. A file that was moved away, or over which a backup was put,
// can still be written to by who has it open, and what is written then is lost. So a connection is
// not used again for longer than its file is in its place.
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
		return nil, errors.Join(fmt.Errorf("sqlite: the driver's connection, a %T, lacks what database/sql can use", c),
			c.Close())
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

// inPlace says that a file is still what it was.
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

// away says what it means that a file is not there.
func away(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the storage is not where it was, and is looked for again until it is back: %w", err)
	}
	return err
}
