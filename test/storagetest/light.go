package storagetest

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/test/testenv"
)

// LightStorage names the environment variable with the storage that the light worker writes to. A
// daemon passes it on.
const LightStorage = "LIGHT_STORAGE"

// Main is the TestMain of tests with light workers. The test binary takes the place of Python for
// its own workers: it is one if its first argument is "-m". Main returns the exit code.
func Main(m *testing.M) int {
	if len(os.Args) > 1 && os.Args[1] == "-m" {
		if err := lightWorker(os.Args); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	testenv.Parallel()
	defer testenv.Cleanup()
	return m.Run()
}

// lightWorker does to the storage what `dagster api execute_run` does, in milliseconds. It reads
// the status of the run, writes PIPELINE_START, and then follows the tag "fate": without it the run
// succeeds, with "die" the worker ends without a further event, with "die once" only the first
// worker does so.
func lightWorker(argv []string) error {
	if len(argv) != 6 || argv[2] != "dagster" || argv[3] != "api" || argv[4] != "execute_run" {
		return fmt.Errorf("unexpected command %q", argv)
	}
	args, err := dagster.ParseObject(argv[5])
	if err != nil {
		return err
	}
	id, _ := args.Value("pipeline_run_id").(string)
	d, err := Connect(os.Getenv(LightStorage))
	if err != nil {
		return err
	}
	status, err := d.Status(id)
	if err != nil {
		return err
	}
	if status != dagster.Starting {
		fmt.Printf("not starting: the run is %s\n", status)
		return nil
	}
	r := dagster.Run{ID: id, Job: "light"}
	if err := d.Event(dagster.NewEvent(r, dagster.RunStart, time.Now(), "")); err != nil {
		return err
	}
	fate, err := d.Text("SELECT value FROM run_tags WHERE run_id = ? AND key = 'fate'", id)
	if err != nil {
		return err
	}
	deaths, err := d.Text("SELECT count(*) FROM run_tags WHERE run_id = ? AND key = ?", id, storage.DeathKey)
	if err != nil {
		return err
	}
	if fate == "die" || fate == "die once" && deaths == "0" {
		return errors.New("dying without a word")
	}
	return d.Event(dagster.NewEvent(r, dagster.RunSuccess, time.Now(), ""))
}
