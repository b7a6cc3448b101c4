package launchertest

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"
)

// Result is the result of testing one sentence of the contract.
type Result struct {
	Sentence string        `json:"sentence"`
	Outcome  Outcome       `json:"outcome"`
	Text     string        `json:"text,omitempty"` // what failed, or why the sentence is not promised
	Took     time.Duration `json:"took_ns"`
}

// Outcome is the outcome of testing a sentence.
type Outcome string

// The outcomes.
const (
	Passed      Outcome = "passed"
	Failed      Outcome = "failed"
	NotPromised Outcome = "not promised"
	NotRun      Outcome = "not run" // the first sentence failed
)

// Check runs the kit outside of go test, as [Run] does inside. It reports each result as soon as it
// is known.
func Check(target Target, report func(Result)) {
	useless := false
	for _, s := range target.sentences() {
		if useless {
			report(Result{Sentence: s.text, Outcome: NotRun, Text: notRun})
			continue
		}
		r := s.check(target)
		report(r)
		useless = s.first() && r.Outcome == Failed
	}
}

func (s sentence) check(target Target) Result {
	r := &recorder{outcome: Passed}
	began := time.Now()
	r.in(func() { s.run(r, target) })
	for len(r.cleanups) > 0 {
		last := len(r.cleanups) - 1
		f := r.cleanups[last]
		r.cleanups = r.cleanups[:last]
		r.in(f)
	}
	return Result{Sentence: s.text, Outcome: r.outcome, Text: strings.Join(r.texts, "\n"), Took: time.Since(began)}
}

// recorder implements [TB] without a testing.T.
type recorder struct {
	mu       sync.Mutex
	outcome  Outcome
	texts    []string
	cleanups []func()
}

// in runs a part of the test. Fatal and Skip end that part.
func (r *recorder) in(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if p := recover(); p != nil {
				r.add(Failed, fmt.Sprintf("panic: %v", p))
			}
		}()
		f()
	}()
	<-done
}

func (r *recorder) add(o Outcome, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.outcome != Failed {
		r.outcome = o
	}
	r.texts = append(r.texts, text)
}

func (r *recorder) Helper()                           {}
func (r *recorder) Error(args ...any)                 { r.add(Failed, fmt.Sprint(args...)) }
func (r *recorder) Errorf(format string, args ...any) { r.add(Failed, fmt.Sprintf(format, args...)) }

func (r *recorder) Fatal(args ...any) {
	r.Error(args...)
	runtime.Goexit()
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}

func (r *recorder) Skip(args ...any) {
	r.add(NotPromised, strings.TrimPrefix(fmt.Sprint(args...), "not promised: "))
	runtime.Goexit()
}

func (r *recorder) Cleanup(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cleanups = append(r.cleanups, f)
}

func (r *recorder) TempDir() string {
	dir, err := os.MkdirTemp("", "slipway-kit-")
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			r.Error(err)
		}
	})
	return dir
}
