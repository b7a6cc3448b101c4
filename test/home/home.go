// Package home makes the DAGSTER_HOME of an instance and opens its storage. Tests use it, and so do
// the programs that measure Slipway and break it. A storage is named by its location: the folder of
// SQLite's files or the address of a Postgres database.
package home

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/internal/storage/postgres"
	"github.com/slipway-run/slipway/internal/storage/sqlite"
)

// Parked is the text of a dagster.yaml that keeps a dagster-daemon from launching and monitoring
// runs.
const Parked = "run_queue: {max_concurrent_runs: 0}\nrun_monitoring: {enabled: false}\ntelemetry: {enabled: false}\n"

// LocalOnly is the text of a slipway.yaml for a daemon that listens on this machine only.
const LocalOnly = "terminate: {local_only: true}\n"

// OnPostgres reports whether a location is the address of a Postgres database.
func OnPostgres(location string) bool { return strings.HasPrefix(location, "postgresql://") }

// Storage returns the storage section of the dagster.yaml in folder. It is empty if location is
// folder, because that is Dagster's default.
func Storage(folder, location string) string {
	switch {
	case OnPostgres(location):
		return fmt.Sprintf("storage: {postgres: {postgres_url: %q}}\n",
			strings.Replace(location, "postgresql://", "postgresql+psycopg2://", 1))
	case location == folder:
		return ""
	}
	return fmt.Sprintf("storage: {sqlite: {base_dir: %q}}\n", location)
}

// Write writes the settings of the instance in folder: dagsterYAML with the storage section added,
// and slipwayYAML.
func Write(folder, location, dagsterYAML, slipwayYAML string) error {
	return errors.Join(
		os.WriteFile(filepath.Join(folder, "dagster.yaml"), []byte(dagsterYAML+Storage(folder, location)), 0o600),
		os.WriteFile(filepath.Join(folder, "slipway.yaml"), []byte(slipwayYAML), 0o600))
}

// Create makes the tables of an empty storage.
func Create(ctx context.Context, location string) error {
	if OnPostgres(location) {
		return postgres.Create(ctx, config.Secret(location))
	}
	return sqlite.Create(ctx, location)
}

// Open opens a storage.
func Open(ctx context.Context, location string) (storage.Store, error) {
	if OnPostgres(location) {
		return postgres.Open(ctx, config.Secret(location))
	}
	return sqlite.Open(ctx, location)
}
