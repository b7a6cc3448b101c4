// Package model is Slipway's protocol as a state machine, small enough to visit every state. The
// protocol turns a run into exactly one worker. The model has one run, a target, and workers that
// write in two steps. It also has daemons that lead one after the other and may crash, stall or
// lose answers at any step.
//
// [Explore] visits every state and returns the first broken rule with the steps that lead to it.
// [Replay] reports whether the machine can take the steps that a real daemon recorded.
package model

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Row is the status of the run.
type Row uint8

// The statuses.
const (
	Queued Row = iota
	Starting
	Started
	Canceling
	Succeeded
	Failed
	Canceled
	Deleted
)

func (r Row) finished() bool { return r >= Succeeded }

// At is how far a daemon is with the run.
type At uint8

// The places of a daemon.
const (
	Idle    At = iota
	Holding    // it has the launch row and must launch
	Asking     // its request was sent
	Told       // it knows of the worker and must write the handle
)

// Object is what the target holds for an attempt.
type Object uint8

// The states of an object.
const (
	None Object = iota
	Running
	Ended
	Removed
)

// Life is how far a worker is.
type Life uint8

// The stages of a life.
const (
	Unborn  Life = iota
	Born         // it was started
	Checked      // without a gate: it has read the status and will continue
	Past         // past its gate
	Working      // the row is STARTED
	Wrote        // its success is in the log, but not yet in the row
	Dead
)

const (
	maxDaemons  = 4
	maxAttempts = 2
	maxWorkers  = 3
	maxFlying   = 2 // at the same time, of one attempt
)

// Daemon is one process.
type Daemon struct {
	At      At
	Attempt uint8
	Epoch   uint8 // of its leadership; 0 if it never led
}

// Worker is the worker of an attempt.
type Worker struct {
	Attempt uint8
	Life    Life
}

// State is the state of the whole model.
type State struct {
	Row     Row
	Epoch   uint8 // of the leader row
	Leader  int8  // the daemon that holds the lease; -1: none
	Daemons [maxDaemons]Daemon

	Attempt      uint8 // of the newest launch row; 0: there is none
	Taken, Void  bool
	Resumes      bool // the worker of the attempt continues where another one ended
	Handle       bool
	Objects      [maxAttempts + 1]Object
	Flying       [maxAttempts + 1]uint8 // requests that have not reached the target yet
	Workers      [maxWorkers]Worker
	Pasts        [maxAttempts + 1]uint8 // how many workers have ever passed their gate
	Success      bool                   // it is in the log
	Forced, Gone bool                   // a user has canceled the run by force, or deleted it
	Begun        uint8                  // the attempt in which a user's cancel was written to the log; 0: there is none
	Canceled     bool                   // the cancel was also written to the row; it may have been overwritten since
}

// Rules describe the world of a model.
type Rules struct {
	Daemons int
	Epochs  int
	Unique  bool // the target refuses a second worker with the same name while it keeps the first
	Gate    bool // workers pass a gate
	Removes bool // ended objects are removed
	Foreign bool // the run is STARTED without a launch row
	Calm    bool // no user cancels by force or deletes
	Cancels bool // users cancel, in two writes
	Resumes bool // another worker continues where one has ended
	Blind   bool // a run that is canceled between two workers is ignored: a mistake that was made once
}

// Step is one transition.
type Step struct {
	What    string
	Daemon  int // -1: no daemon takes it
	Attempt int
}

func (s Step) String() string {
	if s.Daemon < 0 {
		return s.What
	}
	return fmt.Sprintf("daemon %d: %s %d", s.Daemon, s.What, s.Attempt)
}

// Begin returns the first state.
func Begin(r Rules) State {
	s := State{Leader: -1}
	if r.Foreign {
		s.Row = Started
	}
	return s
}

// past reports whether the worker is alive and past its gate.
func (w Worker) past() bool { return w.Life == Past || w.Life == Working || w.Life == Wrote }

func (w Worker) alive() bool { return w.Life != Unborn && w.Life != Dead }

// norm returns the state without parts that can no longer matter.
func (s State) norm() State {
	for d, me := range s.Daemons {
		if me.At == Idle && me.Epoch != s.Epoch {
			s.Daemons[d] = Daemon{}
		}
	}
	alive := s.Workers[:0:0]
	for _, w := range s.Workers {
		if w.alive() {
			alive = append(alive, w)
		}
	}
	slices.SortFunc(alive, func(a, b Worker) int {
		return cmp.Or(cmp.Compare(a.Attempt, b.Attempt), cmp.Compare(a.Life, b.Life))
	})
	s.Workers = [maxWorkers]Worker{}
	copy(s.Workers[:], alive)
	return s
}

// Next calls f with every possible step and the state that it leads to.
func Next(s State, r Rules, f func(Step, State)) {
	say := f
	f = func(step Step, n State) { say(step, n.norm()) }
	for d := range r.Daemons {
		s.daemon(d, r, f)
	}
	for a := 1; a <= maxAttempts; a++ {
		if s.Flying[a] > 0 {
			f(Step{"arrives", -1, a}, s.arrive(a, r))
		}
	}
	for i, w := range s.Workers {
		if w.alive() {
			s.worker(i, r, f)
		}
	}
	s.user(r, f)
}

// users are the steps of users. A run must be able to end without them.
var users = map[string]bool{"user cancels by force": true, "user begins to cancel": true, "user cancels": true,
	"user deletes": true}

func (s State) user(r Rules, f func(Step, State)) {
	if !r.Calm && !s.Forced && !s.Row.finished() && !r.Foreign {
		n := s
		n.Row, n.Forced = Canceled, true
		f(Step{"user cancels by force", -1, 0}, n)
	}
	// A cancel is two writes, the event and the row. Much may happen between them, and the second
	// write checks nothing.
	if r.Cancels && s.Begun == 0 && (s.Row == Starting || s.Row == Started) && !r.Foreign {
		n := s
		n.Begun = s.Attempt
		f(Step{"user begins to cancel", -1, 0}, n)
	}
	if s.Begun > 0 && !s.Canceled && s.Row != Deleted {
		n := s
		n.Canceled, n.Row = true, Canceling
		f(Step{"user cancels", -1, 0}, n)
	}
	if !r.Calm && !s.Gone && s.Row.finished() {
		n := s
		n.Row, n.Gone = Deleted, true
		f(Step{"user deletes", -1, 0}, n)
	}
}

// crash returns the state after the death of a daemon.
func (s State) crash(d int) State {
	s.Daemons[d] = Daemon{}
	if s.Leader == int8(d) {
		s.Leader = -1
	}
	return s
}

// leads reports whether writes of a daemon pass the fence.
func (s State) leads(d int) bool { return s.Daemons[d].Epoch == s.Epoch && s.Epoch > 0 }

func (s State) daemon(d int, r Rules, f func(Step, State)) {
	me := s.Daemons[d]
	// The lease of the other daemon has ended, whether that daemon knows it or not.
	if s.Leader != int8(d) && int(s.Epoch) < r.Epochs {
		n := s
		n.Epoch++
		n.Leader, n.Daemons[d] = int8(d), Daemon{Epoch: n.Epoch}
		f(Step{"leads", d, 0}, n)
	}
	if me != (Daemon{}) {
		f(Step{"crashes", d, 0}, s.crash(d))
	}
	a := int(me.Attempt)
	switch me.At {
	case Idle:
		if s.leads(d) {
			s.idle(d, r, f)
		}
	case Holding:
		n := s
		if s.Objects[a] == Running || s.Objects[a] == Ended { // it searched and found the worker
			n.Daemons[d].At = Told
			f(Step{"finds", d, a}, n)
		}
		// Without unique names, a search may come too early.
		if r.Unique || s.Objects[a] == None || s.Objects[a] == Removed {
			n = s
			n.Daemons[d].At = Asking
			n.Flying[a] = min(n.Flying[a]+1, maxFlying)
			f(Step{"launch", d, a}, n)
		}
		// The target has no worker and takes none: it is full, sick, or refused every request.
		if s.leads(d) && int(s.Attempt) == a && a < maxAttempts && s.Row == Starting && !s.Void &&
			s.Objects[a] == None {
			n = s
			n.Daemons[d] = Daemon{Epoch: me.Epoch}
			if n.settled(a) {
				n.Row, n.Void = Queued, true
				f(Step{"requeue", d, a}, n)
				f(Step{"puts the run back and crashes", d, a}, n.crash(d))
			}
		}
	case Asking:
		n := s
		n.Daemons[d].At = Holding
		f(Step{"loses the answer", d, a}, n)
		if s.Flying[a] > 0 && s.Flying[a] < maxFlying { // maxFlying may stand for more
			n.Flying[a]--
			f(Step{"is refused", d, a}, n)
		}
		if s.Objects[a] != None {
			n = s
			n.Daemons[d].At = Told
			f(Step{"launched", d, a}, n)
		}
	case Told:
		n := s
		n.Daemons[d] = Daemon{Epoch: me.Epoch}
		if s.leads(d) && int(s.Attempt) == a && !s.Void && s.Row != Deleted {
			n.Handle = true
			f(Step{"handle", d, a}, n)
			f(Step{"writes the handle and crashes", d, a}, n.crash(d))
		} else {
			f(Step{"is fenced", d, a}, n)
		}
	}
}

// idle adds the steps of a leader that works on no launch.
func (s State) idle(d int, r Rules, f func(Step, State)) {
	a := int(s.Attempt)
	if s.Row == Queued && a < maxAttempts {
		n := s
		n.Row, n.Attempt, n.Taken, n.Void, n.Handle, n.Resumes = Starting, s.Attempt+1, false, false, false, false
		lost := n
		n.Daemons[d].At, n.Daemons[d].Attempt = Holding, n.Attempt
		f(Step{"claim", d, a + 1}, n)
		f(Step{"claims, and loses the answer", d, a + 1}, lost)
	}
	if s.Void && s.Row == Canceling && !r.Blind {
		n := s
		n.Row = Canceled
		f(Step{"cancels what has no worker", d, a}, n)
	}
	if a == 0 || s.Void || s.Row == Deleted {
		return // a foreign run, or one that has no worker of ours
	}
	if !s.Handle && (s.Row == Starting || s.Row == Started && s.Resumes) {
		n := s
		n.Daemons[d].At, n.Daemons[d].Attempt = Holding, s.Attempt
		f(Step{"takes up", d, a}, n)
	}
	if !s.Handle && (s.Row == Started || s.Row == Canceling) && s.Objects[a] != None {
		n := s
		n.Daemons[d].At, n.Daemons[d].Attempt = Told, s.Attempt
		f(Step{"finds", d, a}, n)
	}
	if !s.Handle && s.Row == Canceling && s.Objects[a] == None && s.settled(a) {
		n := s
		n.Row, n.Void = Canceled, true
		f(Step{"cancels before a worker", d, a}, n)
	}
	n := s
	switch {
	case s.Forced && s.Row != Canceled:
		n.Row = Canceled
		f(Step{"asserts", d, a}, n)
	case s.Forced:
	case s.Success && s.Row != Succeeded:
		n.Row = Succeeded
		f(Step{"asserts", d, a}, n)
	case s.Success:
	case int(s.Begun) == a && (s.Row == Starting || s.Row == Started):
		n.Row = Canceling
		f(Step{"asserts", d, a}, n)
	case s.Handle && s.Objects[a] == Ended && s.Row == Canceling:
		n.Row = Canceled
		f(Step{"end", d, a}, n)
		f(Step{"ends the run and crashes", d, a}, n.crash(d))
	case s.Handle && s.Objects[a] == Ended && (s.Row == Starting || s.Row == Started):
		if r.Resumes && a < maxAttempts && s.Row == Started {
			n.Attempt, n.Taken, n.Handle, n.Resumes = s.Attempt+1, false, false, true
			lost := n
			n.Daemons[d].At, n.Daemons[d].Attempt = Holding, n.Attempt
			f(Step{"resume", d, a}, n)
			f(Step{"resumes, and loses the answer", d, a}, lost)
			f(Step{"resumes and crashes", d, a}, lost.crash(d))
			n = s
		}
		if a < maxAttempts {
			n.Row, n.Void, n.Handle = Queued, true, false
			f(Step{"again", d, a}, n)
			f(Step{"replaces the worker and crashes", d, a}, n.crash(d))
		}
		n = s
		n.Row = Failed
		f(Step{"end", d, a}, n)
		f(Step{"ends the run and crashes", d, a}, n.crash(d))
	}
	if r.Removes {
		s.remove(d, f)
	}
}

// settled reports whether no more request for a worker of the attempt can arrive.
func (s State) settled(a int) bool {
	busy := s.Flying[a] > 0
	for _, other := range s.Daemons {
		busy = busy || int(other.Attempt) == a && (other.At == Holding || other.At == Asking)
	}
	return !busy
}

// remove removes ended objects that no run needs. They are kept longer than any call takes, so no
// request for the name is on its way.
func (s State) remove(d int, f func(Step, State)) {
	for a := 1; a <= maxAttempts; a++ {
		if s.Objects[a] == Ended && s.settled(a) && (s.Row.finished() || a < int(s.Attempt)) {
			n := s
			n.Objects[a] = Removed
			f(Step{"removes", d, a}, n)
		}
	}
}

// arrive returns the state after a request reaches the target.
func (s State) arrive(a int, r Rules) State {
	s.Flying[a]--
	if r.Unique && (s.Objects[a] == Running || s.Objects[a] == Ended) {
		return s
	}
	for i, w := range s.Workers {
		if w.Life == Unborn {
			s.Workers[i] = Worker{uint8(a), Born}
			s.Objects[a] = Running
			break
		}
	}
	return s
}

func (s State) worker(i int, r Rules, f func(Step, State)) {
	w := s.Workers[i]
	a := int(w.Attempt)
	say := func(what string, change func(*State)) {
		n := s
		change(&n)
		if n.Workers[i].Life == Dead {
			n.Objects[a] = Ended
			for _, other := range n.Workers {
				if other.alive() && int(other.Attempt) == a {
					n.Objects[a] = Running
				}
			}
		}
		f(Step{what, -1, a}, n)
	}
	die := func(n *State) { n.Workers[i].Life = Dead }
	say("worker dies", die)
	pass := func(n *State) {
		n.Workers[i].Life = Past
		n.Pasts[a]++
	}
	switch w.Life {
	case Born:
		switch {
		case r.Gate && int(s.Attempt) == a && !s.Taken && !s.Void && s.Row != Deleted:
			say("worker passes", func(n *State) { n.Taken = true; pass(n) })
		case r.Gate:
			say("worker leaves", die)
		case s.Row == Starting || s.Row == Started && s.Resumes && int(s.Attempt) == a:
			say("worker checks", func(n *State) { n.Workers[i].Life = Checked })
		default:
			say("worker leaves", die)
		}
	case Checked:
		say("worker starts", pass)
	case Past:
		if s.Row == Canceling { // Dagster's worker checks that before it begins
			say("worker leaves, canceled", func(n *State) { die(n); n.Row = Canceled })
			return
		}
		if s.Row == Deleted || s.Row == Canceled && r.Gate { // a gated worker of ours names the status that it expects
			say("worker leaves", die)
			return
		}
		say("worker works", func(n *State) { n.Workers[i].Life, n.Row = Working, Started })
	case Working:
		if s.Row == Canceling && s.Handle { // the worker was asked to stop
			say("worker stops", func(n *State) { die(n); n.Row = Canceled })
		}
		say("worker writes its success", func(n *State) { n.Workers[i].Life, n.Success = Wrote, true })
	case Wrote:
		say("worker ends", func(n *State) {
			die(n)
			if n.Row != Deleted {
				n.Row = Succeeded
			}
		})
	}
}

// Broken returns the rule that a state breaks, or "".
func Broken(s State, r Rules) string {
	past := 0
	for _, w := range s.Workers {
		if w.alive() && w.past() {
			past++
		}
	}
	for a, n := range s.Pasts {
		if n > 1 {
			return fmt.Sprintf("%d workers of attempt %d passed their gate", n, a)
		}
	}
	switch {
	case past > 1:
		return fmt.Sprintf("%d workers are past their gate at once", past)
	case r.Foreign && (s.Attempt > 0 || s.Row != Started && s.Row != Deleted):
		return "a foreign run was touched"
	}
	return ""
}

// Found is the result of [Explore].
type Found struct {
	States int
	Broken string // the first broken rule; Trace leads to it
	Trace  []Step
	Lost   *State // a state from which the run can never end; nil: there is none
}

// Explore visits every state.
func Explore(r Rules) Found {
	type from struct {
		state State
		step  Step
	}
	first := Begin(r)
	came := map[State]from{first: {}}
	back := map[State][]State{}
	todo := []State{first}
	var ends []State
	trace := func(s State) (steps []Step) {
		for s != first {
			steps = append([]Step{came[s].step}, steps...)
			s = came[s].state
		}
		return steps
	}
	for len(todo) > 0 {
		s := todo[0]
		todo = todo[1:]
		if why := Broken(s, r); why != "" {
			return Found{States: len(came), Broken: why, Trace: trace(s)}
		}
		if s.Row.finished() {
			ends = append(ends, s)
		}
		Next(s, r, func(step Step, n State) {
			if !users[step.What] {
				back[n] = append(back[n], s)
			}
			if _, seen := came[n]; !seen {
				came[n] = from{s, step}
				todo = append(todo, n)
			}
		})
	}
	if r.Foreign {
		return Found{States: len(came)}
	}
	// Whatever has happened, the run can still end, unless no more leader can follow.
	can := map[State]bool{}
	for _, s := range ends {
		can[s] = true
	}
	for len(ends) > 0 {
		s := ends[0]
		ends = ends[1:]
		for _, b := range back[s] {
			if !can[b] {
				can[b] = true
				ends = append(ends, b)
			}
		}
	}
	for s := range came {
		if !can[s] && int(s.Epoch) < r.Epochs {
			lost := s
			return Found{States: len(came), Lost: &lost, Trace: trace(s)}
		}
	}
	return Found{States: len(came)}
}

// visible are the steps that daemons record.
var visible = map[string]bool{"claim": true, "launch": true, "launched": true, "handle": true, "again": true,
	"requeue": true, "end": true}

// Replay reports whether the machine can take the recorded steps in their order, with any other
// steps between them. If it cannot, it returns how many it could take.
func Replay(r Rules, steps []Step) (int, bool) {
	states := closure(map[State]bool{Begin(r): true}, r)
	for i, want := range steps {
		next := map[State]bool{}
		for s := range states {
			Next(s, r, func(step Step, n State) {
				if step == want {
					next[n] = true
				}
			})
		}
		if len(next) == 0 {
			return i, false
		}
		states = closure(next, r)
	}
	return len(steps), true
}

// closure adds the states that are reached by steps that are not recorded.
func closure(states map[State]bool, r Rules) map[State]bool {
	var todo []State
	for s := range states {
		todo = append(todo, s)
	}
	for len(todo) > 0 {
		s := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		Next(s, r, func(step Step, n State) {
			if !visible[step.What] && !states[n] {
				states[n] = true
				todo = append(todo, n)
			}
		})
	}
	return states
}

// Trace is what real daemons recorded about one run.
type Trace struct {
	Steps   []Step
	Daemons int
}

// Traces reads the text that daemons record through package failpoint, by run. The daemons of a run
// are numbered in the order in which they appear.
func Traces(text string) (map[string]Trace, error) {
	traces, pids := map[string]Trace{}, map[string][]int{}
	for line := range strings.Lines(text) {
		var pid int
		var s Step
		var run string
		if _, err := fmt.Sscan(line, &pid, &s.What, &run, &s.Attempt); err != nil {
			return nil, fmt.Errorf("%q: %w", line, err)
		}
		if s.Daemon = slices.Index(pids[run], pid); s.Daemon < 0 {
			s.Daemon = len(pids[run])
			pids[run] = append(pids[run], pid)
		}
		traces[run] = Trace{append(traces[run].Steps, s), len(pids[run])}
	}
	for _, t := range traces {
		reorder(t.Steps)
	}
	return traces, nil
}

// reorder moves commits before the steps that can only have followed them. A daemon records a
// commit when it has the answer. It may have been stopped before that while another daemon
// continued. The order of one daemon's own steps is certain, so it is kept.
func reorder(steps []Step) {
	for i, c := range steps {
		for j, s := range steps[:i] {
			if !c.precedes(s) {
				continue
			}
			if !slices.ContainsFunc(steps[j:i], func(s Step) bool { return s.Daemon == c.Daemon }) {
				copy(steps[j+1:i+1], steps[j:i])
				steps[j] = c
			}
			break
		}
	}
	var met []int
	for i, s := range steps {
		if !slices.Contains(met, s.Daemon) {
			met = append(met, s.Daemon)
		}
		steps[i].Daemon = slices.Index(met, s.Daemon)
	}
}

// precedes reports whether s is a commit without which other would have been impossible.
func (s Step) precedes(other Step) bool {
	switch s.What {
	case "claim":
		return other.Attempt > s.Attempt || other.Attempt == s.Attempt && other.What != "claim"
	case "handle":
		return other.Attempt > s.Attempt || other.Attempt == s.Attempt && other.What == "again"
	case "again", "requeue":
		return other.Attempt > s.Attempt
	}
	return false
}

// Rules returns the rules under which to replay the trace. It returns false if the run had more
// daemons or workers than the model has.
func (t Trace) Rules() (Rules, bool) {
	attempts, leads := 0, 1
	for i, s := range t.Steps {
		if s.What == "again" || s.What == "requeue" {
			s.Attempt++
		}
		if i > 0 && s.Daemon != t.Steps[i-1].Daemon {
			leads++
		}
		attempts = max(attempts, s.Attempt)
	}
	return Rules{Daemons: t.Daemons, Epochs: leads + 1, Unique: true, Calm: true}, t.Daemons < maxDaemons &&
		leads <= maxDaemons && attempts <= maxAttempts
}
