package daemon

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// Systemd sends the state of this process to systemd, by the protocol of sd_notify(3): one datagram
// for each message. A nil Systemd sends nothing.
type Systemd struct {
	socket string
	beat   time.Duration // between two signs of life; 0 for none
}

// NewSystemd reads from the environment how systemd started this process. It returns nil if systemd
// did not start it, or does not listen. It removes the variables from the environment, because
// workers inherit the environment.
func NewSystemd() *Systemd {
	take := func(name string) string {
		value := os.Getenv(name)
		_ = os.Unsetenv(name) // fails for impossible names only
		return value
	}
	s := &Systemd{socket: take("NOTIFY_SOCKET")}
	pid, period := take("WATCHDOG_PID"), take("WATCHDOG_USEC")
	if s.socket == "" {
		return nil
	}
	if us, err := strconv.ParseInt(period, 10, 64); err == nil && (pid == "" || pid == strconv.Itoa(os.Getpid())) {
		s.beat = time.Duration(us) * time.Microsecond / 2
	}
	return s
}

// send returns no error: no caller could act on it, and systemd notices a missing message.
func (s *Systemd) send(message string) {
	if s == nil {
		return
	}
	c, err := net.Dial("unixgram", s.socket) // a leading @ is an abstract socket for Go as well
	if err != nil {
		return
	}
	_ = c.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = c.Write([]byte(message))
	_ = c.Close()
}

// Ready tells systemd that the process has started.
func (s *Systemd) Ready() { s.send("READY=1") }

// Stopping tells systemd that the process has begun to stop.
func (s *Systemd) Stopping() { s.send("STOPPING=1") }

// Status sets the text that systemctl status shows.
func (s *Systemd) Status(format string, args ...any) {
	s.send("STATUS=" + strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", " "))
}

// watch sends signs of life until ctx ends, while alive holds for the time between two of them.
func (s *Systemd) watch(ctx context.Context, alive func(within time.Duration) bool) error {
	if s == nil || s.beat == 0 {
		return nil
	}
	for ctx.Err() == nil {
		if alive(s.beat) {
			s.send("WATCHDOG=1")
		}
		sleep(ctx, s.beat/2)
	}
	return nil
}
