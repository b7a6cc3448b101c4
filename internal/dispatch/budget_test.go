package dispatch

import (
	"errors"
	"testing"
	"time"

	"github.com/slipway-run/slipway/launcher"
)

func TestBudgetLearns(t *testing.T) {
	now := time.Unix(1795337531, 0)
	b := newBudget(100)
	slow := launcher.WithRetryAfter(errors.Join(launcher.ErrTransient, errors.New("429")), 20*time.Second)
	b.learn(slow, now)
	if b.limit.Limit() != 50 || b.open(now.Add(19*time.Second)) || !b.open(now.Add(20*time.Second)) {
		t.Errorf("after one refusal: %v a second, open after 19 s %v, after 20 s %v", b.limit.Limit(),
			b.open(now.Add(19*time.Second)), b.open(now.Add(20*time.Second)))
	}
	for range 50 {
		b.learn(slow, now)
	}
	if b.limit.Limit() != slowest {
		t.Errorf("after many refusals: %v a second, want %v", b.limit.Limit(), slowest)
	}
	b.learn(errors.New("something else"), now)
	b.learn(launcher.WithRetryAfter(errors.Join(launcher.ErrCapacity, errors.New("full")), time.Second), now)
	if b.limit.Limit() != slowest {
		t.Error("an error that says nothing of the rate changed it")
	}
	b.learn(nil, now)
	if b.limit.Limit() <= slowest {
		t.Error("a launch that was taken does not raise it")
	}
	for range 1000 {
		b.learn(nil, now)
	}
	if b.limit.Limit() != 100 {
		t.Errorf("after many launches: %v a second, want 100 again", b.limit.Limit())
	}
}
