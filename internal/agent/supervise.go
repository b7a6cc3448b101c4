package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// platformGrace is the time between stop and kill if the stop has no record with a grace: then the
// machine is shutting down.
const platformGrace = 30 * time.Second

// lockFD is the file descriptor with which supervisor and worker inherit the worker's lock.
const lockFD = 3

// Main is the program slipway-agent; it returns the exit code. "start ROOT NAME" starts a
// supervisor in a new session and returns at once. "run ROOT NAME" is that supervisor. The lock is
// inherited as file descriptor 3.
func Main(args []string) int {
	if len(args) == 2 && args[0] == "become" { // the start of a worker that has limits
		become(args[1])
	}
	err := fmt.Errorf("usage: slipway-agent start|run ROOT NAME; the process launcher starts it, not a user")
	if len(args) == 3 {
		switch args[0] {
		case "start":
			err = start(args[1:])
		case "run":
			err = run(args[1], args[2])
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "slipway-agent:", err)
		return 1
	}
	return 0
}

// start starts the supervisor and returns, so that the process that launched the worker has no
// child to wait for.
func start(args []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	argv := append(append([]string{self}, selfArgs()...), append([]string{"run"}, args...)...)
	_, err = syscall.ForkExec(self, argv, &syscall.ProcAttr{
		Dir: "/", Env: os.Environ(), Files: []uintptr{0, 1, 2, lockFD}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	return err
}

// selfArgs are the words before "start" on this command line: "agent" if slipway itself is the
// supervisor.
func selfArgs() []string { return os.Args[1 : len(os.Args)-3] }

// run supervises one worker from start to end.
func run(root, name string) error {
	umask := syscall.Umask(0o077) // for the records; the worker gets the original umask
	stop := make(chan os.Signal, 8)
	signal.Notify(stop, syscall.SIGTERM)
	for _, s := range []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGPIPE, syscall.SIGQUIT} {
		if !signal.Ignored(s) { // a signal ignored from the start, as under nohup, stays ignored for the worker too
			signal.Notify(make(chan os.Signal, 1), s) // dropped but not ignored, because the worker would inherit that
		}
	}
	p := PathsOf(root, name)
	var spec Spec
	if err := ReadJSON(p.Spec, &spec); err != nil {
		return err
	}
	me, err := Identify(os.Getpid())
	if err != nil {
		return err
	}
	err = CreateJSON(p.Begun, Begun{Agent: me, At: time.Now().UTC()})
	if errors.Is(err, fs.ErrExist) {
		return nil // another supervisor has begun
	}
	if err != nil {
		return err
	}
	end := Ended{Started: time.Now().UTC()}
	if ReadJSON(p.Stop, &Stop{}) == nil {
		end.Stopped, end.Error = true, "stopped before it was started"
	} else if pid, err := spawn(p, spec, umask); err != nil {
		end.Error = err.Error()
	} else {
		err = watch(p, pid, stop, &end)
		if err != nil {
			fmt.Fprintln(os.Stderr, "slipway-agent:", err)
		}
	}
	for _, c := range spec.Limits.Cgroups {
		end.OOM = end.OOM || c.oomKilled()
		_ = syscall.Rmdir(c.Dir) // fails if it was not created, or a process of the worker is still in it
	}
	end.At = time.Now().UTC()
	return errors.Join(ignoreMissing(os.Remove(p.Spec)), WriteJSON(p.Ended, end))
}

// spawn starts the worker in its own process group, with the lock.
func spawn(p Paths, spec Spec, umask int) (int, error) {
	adoptOrphans()
	file, err := look(spec)
	if err != nil {
		return 0, err
	}
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return 0, err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	command := spec.Command
	if spec.Limits.any() {
		if file, err = os.Executable(); err != nil {
			return 0, err
		}
		command = append(append([]string{file}, selfArgs()...), "become", p.Spec)
	}
	ours := syscall.Umask(umask)
	pid, err := syscall.ForkExec(file, command, &syscall.ProcAttr{
		Dir: spec.Dir, Env: spec.Env, Files: []uintptr{null.Fd(), log.Fd(), log.Fd(), lockFD},
		Sys: &syscall.SysProcAttr{Setpgid: true},
	})
	syscall.Umask(ours)
	if err != nil {
		return 0, fmt.Errorf("start %s in %s: %w", file, spec.Dir, err)
	}
	proc, err := Identify(pid)
	if err != nil { // the worker has already ended; it will be reaped
		proc = Process{PID: pid}
	}
	err = errors.Join(WriteJSON(p.Worker, Worker{proc, time.Now().UTC()}), log.Close(), null.Close())
	if !spec.Limits.any() { // else the worker itself still reads it
		err = errors.Join(err, os.Remove(p.Spec))
	}
	if err != nil { // the worker runs anyway, so this is not an error of its start
		fmt.Fprintln(os.Stderr, "slipway-agent:", err)
	}
	return pid, nil
}

// look finds the program of a command as a shell would, on the worker's PATH.
func look(spec Spec) (string, error) {
	if len(spec.Command) == 0 {
		return "", errors.New("no command")
	}
	program := spec.Command[0]
	if strings.Contains(program, "/") {
		return program, nil
	}
	for _, e := range spec.Env {
		path, ok := strings.CutPrefix(e, "PATH=")
		if !ok {
			continue
		}
		for _, dir := range filepath.SplitList(path) {
			if file, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
				return file, nil
			}
		}
	}
	return "", fmt.Errorf("%s is not on the worker's PATH", program)
}

// watch waits for the worker's end and passes stop signals on. Then it kills the processes that the
// worker has left in its process group.
func watch(p Paths, pid int, stop <-chan os.Signal, end *Ended) error {
	type exit struct {
		status syscall.WaitStatus
		usage  syscall.Rusage
		err    error
	}
	done := make(chan exit, 1)
	go func() { // ends with the worker, which this function waits for
		for {
			var e exit
			var got int
			got, e.err = syscall.Wait4(-1, &e.status, 0, &e.usage)
			if errors.Is(e.err, syscall.EINTR) || e.err == nil && got != pid {
				continue // an orphan of the worker
			}
			done <- e
			return
		}
	}()
	var kill <-chan time.Time
	for {
		select {
		case <-stop:
			end.Stopped = true
			grace := platformGrace
			var s Stop
			if ReadJSON(p.Stop, &s) == nil {
				grace = s.Grace
			}
			if grace > 0 {
				_ = syscall.Kill(pid, syscall.SIGTERM) // if the worker has already ended, done reports it
			}
			kill = time.After(grace)
		case <-kill:
			_ = syscall.Kill(-pid, syscall.SIGKILL)
		case e := <-done:
			_ = syscall.Kill(-pid, syscall.SIGKILL) // step processes that it left behind
			end.CPU = time.Duration(e.usage.Utime.Nano() + e.usage.Stime.Nano())
			end.MaxBytes = maxRSS(&e.usage)
			switch {
			case e.err != nil:
				return e.err
			case e.status.Signaled():
				end.Signal = int(e.status.Signal())
			default:
				code := e.status.ExitStatus()
				end.Exit = &code
			}
			return nil
		}
	}
}
