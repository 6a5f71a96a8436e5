package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"

	"golang.org/x/sync/errgroup"

	"github.com/causeway-mesh/causeway/internal/dataplane/home"
	"github.com/causeway-mesh/causeway/internal/dataplane/links"
	"github.com/causeway-mesh/causeway/internal/nodestream"
)

// Options configure a gateway process.
type Options struct {
	// Listen is the address for peers.
	Listen string
	// Metrics and Probes are the addresses of what their names say.
	Metrics, Probes string
	// Controller, IdentityDir, TokenFile and Version are home.Options'.
	Controller, IdentityDir, TokenFile, Version string

	Log *slog.Logger
}

// Run is the gateway process: it serves peers until ctx ends, then drains.
func Run(ctx context.Context, o Options) error {
	registry := home.NewRegistry()
	s := NewServer(o.Log, registry)
	api, err := links.InCluster()
	if err != nil {
		return err
	}
	h, err := home.New(home.Options{
		Controller: o.Controller, IdentityDir: o.IdentityDir, TokenFile: o.TokenFile, Links: api,
		Version: o.Version, Log: o.Log, Registerer: registry, OnState: s.onState,
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
	group.Go(func() error { return home.ServeMetrics(run, o.Metrics, registry) })
	group.Go(func() error { return home.ServeProbes(run, o.Probes, func() error { return s.ready(ctx) }) })
	group.Go(func() error {
		defer stop() // the rest goes on until the last connection has drained
		serving, cancel := context.WithCancel(run)
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		return s.Serve(serving, ln.(*net.TCPListener))
	})
	return group.Wait()
}

// onState puts a new view in force. One that does not hold together is refused
// whole, and the last one stays.
func (s *Server) onState(view nodestream.View, revoked func(string) bool) {
	if view == nil {
		s.log.Error("the controller has been away for too long: every new connection is refused")
		s.set(nil)
		return
	}
	next, err := newState(view, revoked)
	if err != nil {
		s.log.Error("the controller's state does not hold together: the last one stays in force", "error", err)
		return
	}
	s.set(next)
	s.log.Debug("new state in force", "links", len(next.links), "routes", next.table.Len())
}

// ready says why the gateway should get no new connections.
func (s *Server) ready(ctx context.Context) error {
	if ctx.Err() != nil {
		return errors.New("draining")
	}
	if s.state.Load() == nil {
		return errors.New("no complete state from the controller yet")
	}
	return nil
}
