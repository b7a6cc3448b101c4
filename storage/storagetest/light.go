package storagetest

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/slipway-run/slipway/dagster"
)

// LightStorage is the variable with the storage that [LightWorker] writes to. A daemon hands it on.
const LightStorage = "LIGHT_STORAGE"

// LightWorker is a worker for tests that need many: a test binary that is started with "-m" as its first argument hands it its
// arguments. It does what `dagster api execute_run` does to the storage, in milliseconds: it looks at the run's status, writes
// PIPELINE_START, and then what the tag "fate" says: nothing is a success, "die" is an end without a word.
func LightWorker(argv []string) error {
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
	if fate == "die" {
		return errors.New("dying without a word")
	}
	return d.Event(dagster.NewEvent(r, dagster.RunSuccess, time.Now(), ""))
}
