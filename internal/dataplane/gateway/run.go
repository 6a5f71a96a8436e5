package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/dataplane/linkwatch"
	"github.com/causeway-mesh/causeway/internal/dataplane/uplink"
)

// Options configure a gateway process.
type Options struct {
	// Listen is the address for peers.
	Listen string
	// Metrics and Probes are the addresses of what their names say.
	Metrics, Probes string
	// Controller, IdentityDir, TokenFile and Version are those of uplink.Options.
	Controller, IdentityDir, TokenFile, Version string

	Log *slog.Logger
}

// farewell is how long connections are still accepted after the process is told to
// stop and says that it is not ready: until then peers may be led here.
const farewell = 3 * time.Second

// Run is the gateway process: it serves peers until ctx ends, then drains.
func Run(ctx context.Context, o Options) error {
	registry := uplink.NewRegistry()
	s := NewServer(o.Log, registry)
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
	ln, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return fmt.Errorf("listen for peers: %w", err)
	}
	group, run := errgroup.WithContext(context.WithoutCancel(ctx))
	run, stop := context.WithCancel(run)
	defer stop()
	group.Go(func() error { return h.Run(run) })
	group.Go(func() error { return uplink.ServeMetrics(run, o.Metrics, registry) })
	group.Go(func() error { return uplink.ServeProbes(run, o.Probes, func() error { return s.ready(ctx) }) })
	group.Go(func() error {
		defer stop() // the rest goes on until the last connection has drained
		serving, cancel := context.WithCancel(run)
		defer cancel()
		defer context.AfterFunc(ctx, func() { backoff.Sleep(run, farewell); cancel() })()
		return s.Serve(serving, ln.(*net.TCPListener))
	})
	return group.Wait()
}

// OnState puts a new view in force, and ends the connections of Links that it
// lacks. What does not hold together is left out: it must not keep a deleted Link in
// force. It is what uplink.Options.OnState asks for.
func (s *Server) OnState(h uplink.State) {
	if h.Expired {
		s.log.Error("the controller has been away for too long: every new connection is refused")
	}
	next, err := newState(h.View, h.Revoked)
	if err != nil {
		s.log.Error("the controller's state does not hold together: what is broken is left out", "error", err)
	}
	next.expired = h.Expired
	s.set(next)
	s.log.Debug("new state in force", "links", len(next.links), "routes", next.table.Len())
}

// ready says why the gateway should get no new connections.
func (s *Server) ready(ctx context.Context) error {
	if ctx.Err() != nil {
		return errors.New("draining")
	}
	_, err := s.current()
	return err
}
