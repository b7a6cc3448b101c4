// Package agent runs beside a worker on its target. For now it is the supervisor of the process
// launcher: a program that uses only the standard library, starts one worker, outlives the daemon,
// and leaves a record of the worker's end.
//
// It keeps all state in files and locks, so that any process can find out the state of a worker at
// any time:
//
//	workers/NAME/lock         locked while supervisor or worker is alive: the worker inherits it
//	workers/NAME/spec.json    what to start; may hold secrets; removed when the worker has started
//	workers/NAME/worker.json  the worker's process
//	workers/NAME/stop.json    a request to stop the worker
//	workers/NAME/log          the worker's standard output and error
//	state/NAME.begun          created once, atomically, before the worker is started: the fence
//	state/NAME.ended          how the worker ended
//
// The kernel drops the lock when the last process that holds it ends. So a dead worker without a
// record is always told apart from a living one, and without process IDs. Before a signal is sent,
// the process ID is checked together with the start time of the process and the boot of the
// machine.
package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Spec says what to start.
type Spec struct {
	Command []string `json:"command"`
	Env     []string `json:"env"`
	Dir     string   `json:"dir"`
	Limits  Limits   `json:"limits"`
}

// Process identifies one process uniquely, even if its PID is used again later.
type Process struct {
	PID   int    `json:"pid"`
	Start string `json:"start"` // start time, in the kernel's form
	Boot  string `json:"boot"`
}

// Begun is the record that a supervisor has started the worker or is about to start it.
type Begun struct {
	Agent Process   `json:"agent"`
	At    time.Time `json:"at"`
}

// Worker is the record of the started worker.
type Worker struct {
	Process
	At time.Time `json:"at"`
}

// Stop is a request to stop the worker.
type Stop struct {
	Grace time.Duration `json:"grace"` // between SIGTERM and SIGKILL
}

// Ended is the record of the worker's end.
type Ended struct {
	Exit     *int          `json:"exit"`             // null if it was killed by a signal or never started
	Signal   int           `json:"signal,omitempty"` // the signal that killed it
	Error    string        `json:"error,omitempty"`  // why it was not started
	OOM      bool          `json:"oom,omitempty"`    // the kernel killed one of its processes because memory ran out
	Stopped  bool          `json:"stopped"`          // it had been asked to stop
	Started  time.Time     `json:"started"`
	At       time.Time     `json:"at"`
	CPU      time.Duration `json:"cpu"`
	MaxBytes int64         `json:"max_bytes"`
}

// Paths are the files of one worker.
type Paths struct {
	Dir                                 string
	Lock, Spec, Meta, Worker, Stop, Log string
	Begun, Ended                        string
}

// PathsOf returns the files below root of the worker with that name.
func PathsOf(root, name string) Paths {
	dir := filepath.Join(root, "workers", name)
	return Paths{
		Dir: dir, Lock: filepath.Join(dir, "lock"), Spec: filepath.Join(dir, "spec.json"),
		Meta:   filepath.Join(dir, "meta.json"),
		Worker: filepath.Join(dir, "worker.json"), Stop: filepath.Join(dir, "stop.json"),
		Log:   filepath.Join(dir, "log"),
		Begun: filepath.Join(root, "state", name+".begun"), Ended: filepath.Join(root, "state", name+".ended"),
	}
}

// WriteJSON writes a value into a file atomically. Only the file's owner can read it.
func WriteJSON(file string, v any) error {
	tmp, err := temp(file, v)
	if err != nil {
		return err
	}
	return errors.Join(os.Rename(tmp, file), ignoreMissing(os.Remove(tmp)))
}

// CreateJSON is [WriteJSON] for a file that must not exist yet. It returns fs.ErrExist if it does.
func CreateJSON(file string, v any) error {
	tmp, err := temp(file, v)
	if err != nil {
		return err
	}
	return errors.Join(os.Link(tmp, file), os.Remove(tmp))
}

func temp(file string, v any) (string, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	// The temporary file is outside the folder of records, because that folder is watched.
	f, err := os.CreateTemp(filepath.Join(filepath.Dir(file), "..", "tmp"), "*")
	if errors.Is(err, fs.ErrNotExist) {
		f, err = os.CreateTemp(filepath.Dir(file), ".tmp-*")
	}
	if err != nil {
		return "", err
	}
	_, err = f.Write(text)
	return f.Name(), errors.Join(err, f.Close())
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// ReadJSON reads a file that [WriteJSON] wrote. It returns fs.ErrNotExist if there is none.
func ReadJSON(file string, v any) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, v); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// Alive reports whether this process still runs, and its PID has not been used again.
func (p Process) Alive() bool {
	now, err := Identify(p.PID)
	return err == nil && now == p
}

// Signal sends a signal if the process is alive, and reports whether it was sent.
func (p Process) Signal(sig syscall.Signal) bool {
	return p.Alive() && syscall.Kill(p.PID, sig) == nil
}
