// Package agent is what runs beside a worker on its target: for now the supervisor of the process
// launcher, a program of the standard library alone that starts one worker, outlives the daemon, and leaves
// a record of the worker's end.
//
// It rests on files and locks, so that any process can tell at any time how a worker is:
//
//	workers/NAME/lock         locked as long as supervisor or worker is alive: the worker inherits the lock
//	workers/NAME/spec.json    what to start; may hold secrets, removed when the worker has started
//	workers/NAME/worker.json  the worker's process
//	workers/NAME/stop.json    somebody wants it to stop
//	workers/NAME/log          what it wrote to standard output and error
//	state/NAME.begun          made once and atomically before the worker is started: the fence
//	state/NAME.ended          how it ended
//
// The kernel drops the lock with the last process that has it, so a death without a record is told from a life
// without doubt and without process numbers. Before a signal is sent, the process number is checked with
// its start time and the boot of the machine.
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

// Process names one process beyond doubt.
type Process struct {
	PID   int    `json:"pid"`
	Start string `json:"start"` // as the kernel gives it
	Boot  string `json:"boot"`
}

// Begun is the record that a supervisor is about to start the worker, or has.
type Begun struct {
	Agent Process   `json:"agent"`
	At    time.Time `json:"at"`
}

// Worker is the record of the started worker.
type Worker struct {
	Process
	At time.Time `json:"at"`
}

// Stop is the wish that the worker stops.
type Stop struct {
	Grace time.Duration `json:"grace"` // between SIGTERM and SIGKILL
}

// Ended is the record of the worker's end.
type Ended struct {
	Exit     *int          `json:"exit"`             // null if it was killed by a signal or never started
	Signal   int           `json:"signal,omitempty"` // that killed it
	Error    string        `json:"error,omitempty"`  // why it was not started
	OOM      bool          `json:"oom,omitempty"`    // the kernel killed a process of it for want of memory
	Stopped  bool          `json:"stopped"`          // somebody had asked for it
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

// PathsOf gives the files of the worker of that name below root.
func PathsOf(root, name string) Paths {
	dir := filepath.Join(root, "workers", name)
	return Paths{
		Dir: dir, Lock: filepath.Join(dir, "lock"), Spec: filepath.Join(dir, "spec.json"), Meta: filepath.Join(dir, "meta.json"),
		Worker: filepath.Join(dir, "worker.json"), Stop: filepath.Join(dir, "stop.json"), Log: filepath.Join(dir, "log"),
		Begun: filepath.Join(root, "state", name+".begun"), Ended: filepath.Join(root, "state", name+".ended"),
	}
}

// WriteJSON puts a value into a file, whole or not at all, readable by its owner only.
func WriteJSON(file string, v any) error {
	tmp, err := temp(file, v)
	if err != nil {
		return err
	}
	return errors.Join(os.Rename(tmp, file), ignoreMissing(os.Remove(tmp)))
}

// CreateJSON is [WriteJSON] for a file that must not be there yet; fs.ErrExist if it is.
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
	// Outside the folder of records, which is watched.
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

// ReadJSON reads a file that [WriteJSON] wrote; fs.ErrNotExist if there is none.
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

// Alive says whether the process is still that one.
func (p Process) Alive() bool {
	now, err := Identify(p.PID)
	return err == nil && now == p
}

// Signal sends a signal if the process is still that one, and says whether it was.
func (p Process) Signal(sig syscall.Signal) bool {
	return p.Alive() && syscall.Kill(p.PID, sig) == nil
}
