package e2e_test

import (
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/slipway-run/slipway/dagster"
	"github.com/slipway-run/slipway/storage/storagetest"
)

// proxy passes connections on to a server until it is cut.
type proxy struct {
	listener net.Listener
	server   string
	mu       sync.Mutex
	cut      bool
	hole     chan struct{} // closed: everything is swallowed
	conns    map[net.Conn]bool
	wg       sync.WaitGroup
}

func newProxy(t *testing.T, server string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, server: server, conns: map[net.Conn]bool{}, hole: make(chan struct{})}
	p.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.pass(c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		p.set(true)
		p.wg.Wait()
	})
	return p
}

// set cuts all connections and refuses new ones, or lets them through again.
func (p *proxy) set(cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = cut
	for c := range p.conns {
		if cut {
			_ = c.Close()
		}
	}
}

// swallow lets nothing through any more in either direction, and closes nothing: what a broken network looks like.
func (p *proxy) swallow() { close(p.hole) }

// holed is a writer that passes on until everything is swallowed.
type holed struct {
	io.Writer
	hole <-chan struct{}
}

func (h holed) Write(b []byte) (int, error) {
	select {
	case <-h.hole:
		return len(b), nil
	default:
		return h.Writer.Write(b)
	}
}

// keep notes a connection; false if it is cut at once.
func (p *proxy) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.cut {
		p.conns[c] = true
	}
	return !p.cut
}

func (p *proxy) pass(client net.Conn) {
	defer func() { _ = client.Close() }()
	if !p.keep(client) {
		return
	}
	server, err := net.Dial("tcp", p.server)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	if !p.keep(server) {
		return
	}
	p.wg.Go(func() {
		_, _ = io.Copy(holed{server, p.hole}, client) // until one of them is closed
		_ = server.Close()
	})
	_, _ = io.Copy(holed{client, p.hole}, server)
}

// While the storage is away nothing is lost and no run fails: workers go on, and the daemon goes on where it was when the storage is back.
func TestStorageIsAwayForSomeSeconds(t *testing.T) {
	d := storagetest.NewPostgres(t)
	u, err := url.Parse(d.Location)
	if err != nil {
		t.Fatal(err)
	}
	p := newProxy(t, u.Host)
	u.Host = p.listener.Addr().String()
	w := lightWorld(t, d)
	w.write("dagster.yaml", parked+"storage: {postgres: {postgres_url: \""+u.String()+"\"}}\n")
	daemon := w.slipway()
	daemon.says("msg=leading")
	before := enqueue(t, d, 3, nil)
	w.ended(time.Minute, daemon, before...)
	p.set(true)
	during := enqueue(t, d, 3, nil)
	daemon.says("standing by")
	p.set(false)
	after := enqueue(t, d, 3, map[string]string{"fate": "die"})
	w.ended(time.Minute, daemon, append(during, after...)...)
	daemon.stop()
	w.exactlyOnce(dagster.Success, append(before, during...)...)
	w.exactlyOnce(dagster.Failure, after...)
}
