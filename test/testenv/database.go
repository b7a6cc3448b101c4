package testenv

import (
	"context"
	"crypto/rand"
	"errors"
	"net/url"
	"strings"

	"github.com/jackc/pgx/v5"
)

// PostgresEnv names the environment variable with the address of a server on which tests may make
// databases.
const PostgresEnv = "SLIPWAY_TEST_PG"

// Database makes an empty database on a Postgres server. It returns the address of the database and
// a function that drops it, even while programs are connected to it.
func Database(ctx context.Context, server string) (address string, drop func(context.Context) error, err error) {
	u, err := url.Parse(server)
	if err != nil {
		return "", nil, err
	}
	exec := func(ctx context.Context, query string) error {
		conn, err := pgx.Connect(ctx, server)
		if err != nil {
			return err
		}
		_, err = conn.Exec(ctx, query)
		return errors.Join(err, conn.Close(context.WithoutCancel(ctx)))
	}
	name := "t_" + strings.ToLower(rand.Text()[:16])
	if err := exec(ctx, "CREATE DATABASE "+name); err != nil {
		return "", nil, err
	}
	u.Path = "/" + name
	return u.String(), func(ctx context.Context) error {
		return exec(ctx, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)")
	}, nil
}
