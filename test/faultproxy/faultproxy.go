// Package faultproxy is a TCP proxy that a test puts between a program and a server. It cuts
// connections, and delays or swallows what is sent over them.
package faultproxy

import (
	"bytes"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Proxy forwards connections to a server. Its methods may be called from many goroutines at once.
type Proxy struct {
	listener net.Listener
	mu       sync.Mutex
	server   string
	cut      bool
	stalled  chan struct{} // closed when the stall ends; nil: not stalled
	lose     *lost         // the next answer to lose; nil: none
	conns    map[net.Conn]bool
	wg       sync.WaitGroup

	delay       atomic.Int64 // ns, for each piece in either direction
	hole, loses atomic.Bool
}

// New opens a proxy on a free port of this machine.
func New(server string) (*Proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{listener: l, server: server, conns: map[net.Conn]bool{}}
	p.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.pass(c) })
		}
	})
	return p, nil
}

// Addr returns the address on which the proxy listens.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Close cuts all connections and waits until they have ended.
func (p *Proxy) Close() error {
	err := p.listener.Close()
	p.Stall(false)
	p.Cut(true)
	p.wg.Wait()
	return err
}

// Cut cuts all connections and refuses new ones. Cut(false) accepts new ones again.
func (p *Proxy) Cut(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = on
	for c := range p.conns {
		if on {
			_ = c.Close()
		}
	}
}

// To sends new connections to another server, as if the address had moved. Existing connections
// stay.
func (p *Proxy) To(server string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.server = server
}

// Swallow drops everything in both directions and closes nothing, like a broken network.
// Swallow(false) forwards again.
func (p *Proxy) Swallow(on bool) { p.hole.Store(on) }

// LoseAnswers forwards what clients send and drops the answers.
func (p *Proxy) LoseAnswers(on bool) { p.loses.Store(on) }

// Stall reads no more answers from the server and does not hang up, like a frozen client: the
// server can send until all buffers are full. Stall(false) reads again.
func (p *Proxy) Stall(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case on && p.stalled == nil:
		p.stalled = make(chan struct{})
	case !on && p.stalled != nil:
		close(p.stalled)
		p.stalled = nil
	}
}

// lost is one answer that the proxy loses.
type lost struct {
	first, last []byte // what the client sends before the answer, on one connection
	cut         bool
	done        chan struct{}
}

// LoseAnswer loses one answer: that to a client which sends first and then last on one connection.
// The server receives both; the client receives nothing more on that connection. With cut the
// connection is closed then, otherwise it stays open. The returned channel is closed when the
// client has sent last.
func (p *Proxy) LoseAnswer(first, last string, cut bool) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lose = &lost{[]byte(first), []byte(last), cut, make(chan struct{})}
	return p.lose.done
}

// link is one connection through the proxy.
type link struct {
	first  *lost // set when the client has sent lost.first
	losing atomic.Pointer[lost]
}

// says records what a client sends, before the server receives it.
func (p *Proxy) says(l *link, b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lose == nil {
		return
	}
	if bytes.Contains(b, p.lose.first) {
		l.first = p.lose
	}
	if l.first == p.lose && bytes.Contains(b, p.lose.last) {
		l.losing.Store(p.lose)
		close(p.lose.done)
		p.lose = nil
	}
}

// Delay holds up each piece of data for d.
func (p *Proxy) Delay(d time.Duration) { p.delay.Store(int64(d)) }

// thawed waits until the proxy is not stalled.
func (p *Proxy) thawed() {
	p.mu.Lock()
	stalled := p.stalled
	p.mu.Unlock()
	if stalled != nil {
		<-stalled
	}
}

// keep records a connection. It returns false if the connection must be cut at once.
func (p *Proxy) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.cut {
		p.conns[c] = true
	}
	return !p.cut
}

// forget closes and forgets a connection that has ended.
func (p *Proxy) forget(c net.Conn) {
	_ = c.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// faulty is a writer that applies the faults of the proxy.
type faulty struct {
	net.Conn
	p      *Proxy
	link   *link
	answer bool
}

func (f faulty) Write(b []byte) (int, error) {
	if d := f.p.delay.Load(); d > 0 {
		time.Sleep(time.Duration(d))
	}
	if f.answer {
		f.p.thawed()
	}
	if !f.answer {
		f.p.says(f.link, b)
	} else if lost := f.link.losing.Load(); lost != nil {
		if lost.cut {
			return 0, f.Close()
		}
		return len(b), nil
	}
	if f.p.hole.Load() || f.answer && f.p.loses.Load() {
		return len(b), nil
	}
	return f.Conn.Write(b)
}

func (p *Proxy) pass(client net.Conn) {
	defer p.forget(client)
	if !p.keep(client) {
		return
	}
	p.mu.Lock()
	to := p.server
	p.mu.Unlock()
	server, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer p.forget(server)
	if !p.keep(server) {
		return
	}
	l := &link{}
	p.wg.Go(func() {
		_, _ = io.Copy(faulty{server, p, l, false}, client) // until one of the connections is closed
		p.thawed()
		_ = server.Close()
	})
	_, _ = io.Copy(faulty{client, p, l, true}, server)
}
