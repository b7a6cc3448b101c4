package launcher

import (
	"errors"
	"fmt"
	"time"
)

type unreached struct{ error }

func (e unreached) Unwrap() error        { return e.error }
func (e unreached) Is(target error) bool { return target == ErrDenied }

// Unreached returns err as an [ErrDenied]: the request did not reach the target, so nothing exists.
// For example, the connection was refused. The text is that of err alone.
func Unreached(err error) error { return unreached{err} }

type retryAfter struct {
	error
	after time.Duration
}

func (e retryAfter) Unwrap() error { return e.error }

// WithRetryAfter returns err with the pause that the target asked for.
func WithRetryAfter(err error, after time.Duration) error { return retryAfter{err, after} }

// RetryAfter returns the pause that the target asked for, and false if err carries none.
func RetryAfter(err error) (time.Duration, bool) {
	var r retryAfter
	ok := errors.As(err, &r)
	return r.after, ok
}

type pending struct {
	error
	notes []Note
}

func (e pending) Unwrap() error { return e.error }

// Pending returns an [ErrPending]: the caller asks again after the given time. Each note becomes an
// engine event of the run, once.
func Pending(after time.Duration, notes ...Note) error {
	err := ErrPending
	if len(notes) > 0 {
		err = fmt.Errorf("%w: %s", ErrPending, notes[len(notes)-1].Text)
	}
	return WithRetryAfter(pending{err, notes}, after)
}

// Notes returns the notes of a [Pending] error.
func Notes(err error) []Note {
	var p pending
	errors.As(err, &p)
	return p.notes
}

type caused struct {
	error
	cause Cause
}

func (e caused) Unwrap() error { return e.error }

// WithCause returns err with the cause of the run's failure, for people and for policies.
func WithCause(err error, cause Cause) error { return caused{err, cause} }

// CauseOf returns the cause that err carries, or "".
func CauseOf(err error) Cause {
	var c caused
	errors.As(err, &c)
	return c.cause
}
