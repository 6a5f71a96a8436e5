package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/causeway-mesh/causeway/internal/peering"
)

// probes answers the kubelet and the other replicas: /healthz while the process lives,
// /readyz once there is something to serve and this replica is fresh enough, /freshness
// always. The manager's own probes would log each answer of "not yet".
func (p *process) probes(ctx context.Context) error {
	s := &http.Server{
		Addr:           p.o.Probes,
		Handler:        p.probeHandler(),
		ReadTimeout:    5 * time.Second,
		WriteTimeout:   5 * time.Second,
		MaxHeaderBytes: 8 << 10,
	}
	var closing sync.WaitGroup
	defer closing.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	closing.Go(func() {
		<-ctx.Done()
		s.Close()
	})
	if err := s.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve probes: %w", err)
	}
	return nil
}

func (p *process) probeHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		select {
		case <-p.reconciler.ready:
		default:
			http.Error(w, "the caches are not complete yet", http.StatusServiceUnavailable)
			return
		}
		if why := p.freshness.NotReady(); why != "" {
			http.Error(w, why, http.StatusServiceUnavailable)
		}
	})
	mux.Handle(peering.FreshnessPath, p.freshness)
	return mux
}

// quiet handles the logs of the Kubernetes libraries. It logs their Info messages as
// Debug, because operators do not act on them.
type quiet struct{ slog.Handler }

// Enabled implements slog.Handler.
func (q quiet) Enabled(ctx context.Context, l slog.Level) bool {
	return q.Handler.Enabled(ctx, demoted(l))
}

// Handle implements slog.Handler.
func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	r.Level = demoted(r.Level)
	return q.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(attrs)} }

// WithGroup implements slog.Handler.
func (q quiet) WithGroup(name string) slog.Handler { return quiet{q.Handler.WithGroup(name)} }

func demoted(l slog.Level) slog.Level {
	if l >= slog.LevelWarn {
		return l
	}
	return min(l, slog.LevelDebug)
}
