package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/causeway-mesh/causeway/internal/afterfunc"
	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/dataplane/budget"
	"github.com/causeway-mesh/causeway/internal/dataplane/linkwatch"
	"github.com/causeway-mesh/causeway/internal/dataplane/parallelism"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/uplink"
)

// Options configure a gateway process.
type Options struct {
	// Listen is the address for peers.
	Listen string
	// Metrics and Probes are the listen addresses of metrics and probes.
	Metrics, Probes string
	// Controller, IdentityDir, TokenFile and Version are those of uplink.Options.
	Controller, IdentityDir, TokenFile, Version string
	// Drain is how long open connections may continue after the process is asked to stop.
	// For the first half of it, new ones are still accepted. Zero: 60 s.
	Drain time.Duration
	// Limits bound the connections.
	Limits Limits

	Log *slog.Logger
}

// acceptTime is the part of the drain time in which the gateway still accepts
// connections while it reports that it is not ready. A load balancer may take that long
// to notice.
func acceptTime(drain time.Duration) time.Duration { return drain / 2 }

// latePollInterval is the time between two checks of whether a connection can still
// come.
const latePollInterval = 500 * time.Millisecond

// Run runs the gateway process. It serves peers until ctx ends, and then drains.
func Run(ctx context.Context, o Options) error {
	registry := uplink.NewRegistry()
	s := NewServer(o.Log, registry)
	limits := o.Limits.resolve(budget.Connections)
	s.shares = newShares(limits)
	o.Log.Info("limits", "maxConnections", limits.Connections, "maxConnectionsPerLink", limits.ConnectionsPerLink)
	drain := cmp.Or(o.Drain, defaultDrain)
	s.drain = drain - acceptTime(drain)
	api, err := linkwatch.InCluster()
	if err != nil {
		return err
	}
	h, err := uplink.New(uplink.Options{
		Controller: o.Controller, IdentityDir: o.IdentityDir, TokenFile: o.TokenFile, Links: api,
		Version: o.Version, Log: o.Log, Registerer: registry, OnState: s.OnState,
	})
	if err != nil {
		return err
	}
	ln, err := transport.Listen(ctx, o.Listen)
	if err != nil {
		return fmt.Errorf("listen for peers: %w", err)
	}
	group, run := errgroup.WithContext(context.WithoutCancel(ctx))
	run, stop := context.WithCancel(run)
	defer stop()
	group.Go(func() error { return h.Run(run) })
	group.Go(func() error { parallelism.Run(run); return nil })
	group.Go(func() error { return uplink.ServeMetrics(run, o.Metrics, registry) })
	group.Go(func() error { return uplink.ServeProbes(run, o.Probes, func() error { return s.ready(ctx) }) })
	group.Go(func() error {
		defer stop() // the other goroutines run until the last connection has drained
		serving, cancel := context.WithCancel(run)
		defer cancel()
		drained, done := context.WithCancel(run)
		defer done()
		stopping := afterfunc.Start(ctx, func() {
			var announcing sync.WaitGroup
			defer announcing.Wait()
			announcing.Go(func() { s.AnnounceDrain(drained) })
			s.awaitLateConnections(drained, acceptTime(drain))
			cancel()
		})
		defer stopping()
		defer done() // before stopping waits
		return s.Serve(serving, ln)
	})
	return group.Wait()
}

// awaitLateConnections waits while load balancers may still send connections, and while
// there is a Link from which one could come.
func (s *Server) awaitLateConnections(ctx context.Context, most time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	for backoff.Sleep(ctx, latePollInterval) {
		if st, err := s.current(); err != nil || len(st.links) == 0 {
			return
		}
	}
}

// OnState makes a view the current state and cuts the connections of Links that it
// lacks. It leaves out what is not consistent, so that an error cannot keep a deleted
// Link. It is an uplink.Options.OnState, which is called by one goroutine at a time.
func (s *Server) OnState(h uplink.State) {
	if h.Expired {
		s.log.Error("controller unreachable for too long; refusing new connections")
	}
	next, err := newState(h.View, h.Revoked, s.state.Load())
	if err != nil {
		s.log.Error("controller's state is not consistent; ignoring a part", "error", err)
	}
	next.expired = h.Expired
	s.set(next)
	s.log.Debug("applied new state", "links", len(next.links), "routes", next.table.Len())
}

// ready returns why the gateway should get no new connections, or nil.
func (s *Server) ready(ctx context.Context) error {
	if ctx.Err() != nil {
		return errors.New("draining")
	}
	_, err := s.current()
	return err
}
