package web

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Server answers over HTTP. GET /healthz and /readyz need no token and answer with one word. GET
// /metrics, /status and /queue need the token, if one is set.
type Server struct {
	Metrics *Metrics
	Token   string                             // "": none is needed
	Ready   func() error                       // nil if the daemon does its work or stands by, else why not
	Status  func(context.Context) (any, error) // served as JSON
	Queue   func(context.Context) (any, error) // what the queued runs wait for; served as JSON
	Scrape  func()                             // brings gauges up to date; may be nil
	Log     *slog.Logger
}

// shutdown is how long requests at hand may take when the server stops.
const shutdown = 2 * time.Second

// Serve answers on l until ctx ends.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	word := func(w http.ResponseWriter, code int, text string) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(code)
		_, _ = w.Write([]byte(text + "\n")) // the client may be gone
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { word(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if err := s.Ready(); err != nil {
			s.Log.WarnContext(r.Context(), "not ready", "err", err)
			word(w, http.StatusServiceUnavailable, "not ready")
			return
		}
		word(w, http.StatusOK, "ok")
	})
	metrics := promhttp.HandlerFor(s.Metrics.registry, promhttp.HandlerOpts{})
	mux.Handle("GET /metrics", s.guarded(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.Scrape != nil {
			s.Scrape()
		}
		metrics.ServeHTTP(w, r)
	})))
	serveJSON := func(what string, get func(context.Context) (any, error)) http.Handler {
		return s.guarded(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			v, err := get(r.Context())
			text, merr := json.Marshal(v)
			if err = errors.Join(err, merr); err != nil {
				s.Log.WarnContext(r.Context(), "cannot serve the "+what, "err", err)
				word(w, http.StatusServiceUnavailable, "the "+what+" cannot be read; the daemon's log says why")
				return
			}
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(text) // the client may be gone
		}))
	}
	mux.Handle("GET /status", serveJSON("status", s.Status))
	mux.Handle("GET /queue", serveJSON("queue", s.Queue))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug)}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdown)
	defer cancel()
	err := server.Shutdown(last)
	if err != nil {
		err = server.Close()
	}
	if served := <-done; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

// guarded asks for the token.
func (s *Server) guarded(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if s.Token != "" && (!ok || subtle.ConstantTimeCompare([]byte(got), []byte(s.Token)) != 1) {
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, "a token is required: send Authorization: Bearer TOKEN, with web.token of slipway.yaml",
				http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, r)
	})
}
