package launcher_test

import (
	"fmt"
	"time"

	"github.com/slipway-run/slipway/launcher"
)

func ExampleHealth_String() {
	code, at := 3, time.Date(2026, 11, 27, 10, 0, 0, 0, time.UTC)
	fmt.Println(launcher.Health{Status: launcher.Starting, Phase: launcher.Pulling})
	h := launcher.Health{
		Status: launcher.Failed, Exit: &code, Cause: launcher.CauseExit, Message: "exit code 3", Ended: at,
		Tail: []string{"no rows"},
	}
	fmt.Println(h)
	id := launcher.ID{Run: "0a", Attempt: 1}
	fmt.Printf("%+v\n", launcher.Worker{ID: id, Health: launcher.Health{Status: launcher.Failed, Exit: &code}})
	// Output:
	// Starting phase=Pulling
	// Failed exit=3 cause=exit message="exit code 3" ended=2026-11-27T10:00:00Z tail=["no rows"]
	// {ID:dagster-run-0a-1 Instance: Handle: Health:Failed exit=3 Synced:false}
}
