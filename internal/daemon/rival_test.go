package daemon

import (
	"log/slog"
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/queue"
	"github.com/slipway-run/slipway/internal/storage"
)

// What a leader makes of a dagster-daemon, heartbeat by heartbeat.
func TestRival(t *testing.T) {
	began := time.Now()
	at := func(s int) time.Time { return began.Add(time.Duration(s) * time.Second) }
	beat := func(id string, s int) storage.Heartbeat {
		return storage.Heartbeat{Type: queueDaemon, ID: id, At: at(s)}
	}
	look := func(r *rival, b storage.Heartbeat, s int) string { return r.judge(b, storage.Heartbeat{}, at(s)) }
	fresh := func() *rival {
		return &rival{log: slog.New(slog.DiscardHandler), advice: "Park it.", wake: make(chan struct{}, 1)}
	}

	t.Run("one that dequeues holds claims until its process is gone", func(t *testing.T) {
		r := fresh()
		r.took(storage.Run{Run: dagster.Run{ID: "r"}})
		for s := 0; s < 300; s += 5 { // it goes on, and beats each 30 s
			if look(r, beat("a", s/30*30), s); r.Why() == "" {
				t.Fatalf("claims go on after %d s beside a daemon that dequeues", s)
			}
		}
		if look(r, beat("b", 301), 302); r.Why() != "" {
			t.Errorf("claims wait for a process that was replaced: %s", r.Why())
		}
	})
	t.Run("one that dequeued and beats no more", func(t *testing.T) {
		r := fresh()
		r.took(storage.Run{Run: dagster.Run{ID: "r"}})
		look(r, beat("a", 0), 1)
		if look(r, beat("a", 0), 89); r.Why() == "" {
			t.Error("claims go on before its heartbeat is old")
		}
		if look(r, beat("a", 0), 92); r.Why() != "" {
			t.Errorf("claims wait for a daemon that is gone: %s", r.Why())
		}
	})
	t.Run("one that leaves a waiting run alone is parked", func(t *testing.T) {
		r := fresh()
		r.proving, r.why, r.process, r.lastSeen = true, "proving", beat("a", 0), began
		if got := look(r, beat("a", 0), 80); got != "" || r.Why() == "" {
			t.Error("an empty queue proves that it is parked")
		}
		r.passed(queue.Waiting{Queued: 1})
		if got := look(r, beat("a", 60), 10); got != "" || r.Why() == "" {
			t.Error("a run that waited for 10 s proves that it is parked")
		}
		if got := look(r, beat("a", 60), 80); got != "a" || r.Why() != "" {
			t.Errorf("after 80 s: %q is parked, %q", got, r.Why())
		}
	})
	t.Run("runs that it takes while it is proved", func(t *testing.T) {
		r := fresh()
		r.proving, r.why, r.process, r.lastSeen = true, "proving", beat("a", 0), began
		r.passed(queue.Waiting{Queued: 1})
		r.took(storage.Run{Run: dagster.Run{ID: "r"}})
		if got := look(r, beat("a", 0), 80); got != "" || r.Why() == "" {
			t.Error("a daemon that dequeued is taken for parked")
		}
	})
}
