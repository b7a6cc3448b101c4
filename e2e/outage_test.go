package e2e_test

import (
	"net/url"
	"testing"
	"time"

	"github.com/slipway-run/slipway/dagster"
	"github.com/slipway-run/slipway/internal/faultproxy"
	"github.com/slipway-run/slipway/storage/storagetest"
)

// newProxy is a proxy before a server, closed with the test.
func newProxy(t *testing.T, server string) *faultproxy.Proxy {
	t.Helper()
	p, err := faultproxy.New(server)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// While the storage is away nothing is lost and no run fails: workers go on, and the daemon goes on where it was when the storage is back.
func TestStorageIsAwayForSomeSeconds(t *testing.T) {
	d := storagetest.NewPostgres(t)
	u, err := url.Parse(d.Location)
	if err != nil {
		t.Fatal(err)
	}
	p := newProxy(t, u.Host)
	u.Host = p.Addr()
	w := lightWorld(t, d)
	w.write("dagster.yaml", parked+"storage: {postgres: {postgres_url: \""+u.String()+"\"}}\n")
	daemon := w.slipway()
	daemon.says("msg=leading")
	before := enqueue(t, d, 3, nil)
	w.ended(time.Minute, daemon, before...)
	p.Cut(true)
	during := enqueue(t, d, 3, nil)
	daemon.says("standing by")
	p.Cut(false)
	after := enqueue(t, d, 3, map[string]string{"fate": "die"})
	w.ended(time.Minute, daemon, append(during, after...)...)
	daemon.stop()
	w.exactlyOnce(dagster.Success, append(before, during...)...)
	w.exactlyOnce(dagster.Failure, after...)
}
