package sqlite

import (
	"context"
	"testing"
	"time"
)

// The lease does not wait in line with the other writes of its daemon.
func TestLeaseWaitsForNoWriteOfItsOwn(t *testing.T) {
	dir := t.TempDir()
	if err := Create(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	busy, err := s.write.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, leads, err := s.Lead(ctx, "daemon", time.Minute); err != nil || !leads {
		t.Errorf("Lead while a write is at hand = %v, %v", leads, err)
	}
}
