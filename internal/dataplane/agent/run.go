package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/dataplane/budget"
	"github.com/causeway-mesh/causeway/internal/dataplane/linkwatch"
	"github.com/causeway-mesh/causeway/internal/dataplane/parallelism"
	"github.com/causeway-mesh/causeway/internal/dataplane/reqlog"
	"github.com/causeway-mesh/causeway/internal/dataplane/tapaccess"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/uplink"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/vipguard"
)

// Options configure an agent process.
type Options struct {
	// CacheDir is a directory in the node's memory for data that outlives the process.
	CacheDir string
	// PodDir is the directory that only the agent and its vip-guard share.
	PodDir string
	// PodName is the name of the process's pod. Readers of taps name it.
	PodName string
	// Metrics are the listen addresses of metrics: the node's loopback, which serves taps
	// too, and perhaps others.
	Metrics []string
	// Controller, IdentityDir, TokenFile and Version are those of uplink.Options.
	Controller, IdentityDir, TokenFile, Version string
	// Drain is how long open connections continue after the process is asked to stop.
	// Zero: 60 s.
	Drain time.Duration
	// Limits bound the connections.
	Limits Limits
	// KeyExchange is what the agent offers to peers.
	KeyExchange identity.KeyExchange
	// TraceEndpoint, TraceRatio and TraceCAFile are those of trace.Options. Without an
	// endpoint there are no traces.
	TraceEndpoint, TraceCAFile string
	TraceRatio                 float64

	// AccessLog configures the access log, which is written to AccessLogTo; nil: none.
	AccessLog   *reqlog.Config
	AccessLogTo io.Writer

	Log *slog.Logger
}

// Run runs the agent process. It serves the node's pods until ctx ends, and then
// drains.
func Run(ctx context.Context, o Options) error {
	// life is the context of connections and of everything that they need.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	registry := uplink.NewRegistry()
	api, err := linkwatch.InCluster()
	if err != nil {
		return err
	}
	var h *uplink.Uplink
	sign := func(ctx context.Context, ns, sa string, csr []byte) ([][]byte, error) {
		return h.Sign(ctx, ns, sa, csr)
	}
	a := New(life, sign, o.Log, registry)
	a.setLimits(o.Limits.resolve(budget.Connections))
	if o.AccessLog != nil {
		defer a.requestLog.StartAccessLog(o.AccessLogTo, *o.AccessLog).Close()
	}
	taps, err := tapaccess.InCluster(o.PodName)
	if err != nil {
		return err
	}
	a.drain, a.keyExchange = cmp.Or(o.Drain, defaultDrain), o.KeyExchange
	stopTracer, err := a.startTracer(o)
	if err != nil {
		return err
	}
	defer stopTracer()
	held, err := vipguard.TakeListeners(ctx, o.PodDir, vipguard.AgentOptions{Log: o.Log})
	if err != nil {
		return err
	}
	defer held.Close()
	store, view, age := a.loadSaved(o.CacheDir, o.TokenFile) // vip-guard has made the directory writable
	h, err = uplink.New(uplink.Options{
		Controller: o.Controller, IdentityDir: o.IdentityDir, TokenFile: o.TokenFile, Links: api,
		Version: o.Version, Log: o.Log, Registerer: registry, OnState: a.onState, Held: view, HeldAge: age,
		Diagnose: a.reporter(o.PodDir),
	})
	if err != nil {
		return err
	}

	group, run := errgroup.WithContext(life)
	group.Go(func() error { return h.Run(run) })
	group.Go(func() error { return held.Serve(run) })
	group.Go(func() error { parallelism.Run(run); return nil })
	group.Go(func() error { a.leases.watch(run, a.state.Load); return nil })
	group.Go(func() error { a.podTable.Run(run); return nil })
	group.Go(func() error { a.monitor.run(run); return nil })
	group.Go(func() error { a.watchRequests(run); return nil })
	group.Go(func() error { a.watchPaths(run); return nil })
	if store != nil {
		group.Go(func() error { a.persist(run, store, h.Age); return nil })
	}
	group.Go(func() error { return a.serveAdmin(run, filepath.Join(o.PodDir, adminSocket), registry) })
	local := http.NewServeMux()
	local.Handle("/", metricsHandler(registry))
	local.Handle("GET "+TapPath, newTapServer(a.requestLog, taps, o.Log))
	for _, address := range o.Metrics {
		handler := metricsHandler(registry)
		if at, err := netip.ParseAddrPort(address); err == nil && at.Addr().IsLoopback() {
			handler = local
		}
		group.Go(func() error { return a.serveMetrics(run, address, handler) })
	}
	group.Go(func() error {
		defer end() // the other goroutines run until the last connection has drained
		defer a.svids.wait()
		defer a.renewals.close()
		defer a.sessions.Close()
		defer a.requests.close()
		defer a.stopAccepting()
		defer end()
		serving, stop := context.WithCancel(run)
		defer stop()
		defer context.AfterFunc(ctx, stop)()
		return a.serveAll(serving, run, held)
	})
	return group.Wait()
}

// serveAll serves every listener until ctx ends. Then open connections continue for the
// drain time, and at most until life ends.
func (a *Agent) serveAll(ctx, life context.Context, held *vipguard.Listeners) error {
	if !a.awaitState(ctx, certificateTimeout) {
		return nil
	}
	var open sync.WaitGroup
	connections, cut := context.WithCancelCause(life)
	defer open.Wait()
	defer cut(nil)
	accepting, serving := errgroup.WithContext(ctx)
	for name, ln := range held.All() {
		if name == vipguard.Hop {
			accepting.Go(func() error { return a.serve(serving, connections, ln, &open, inbound, a.serveInbound) })
			continue
		}
		accepting.Go(func() error {
			index, ok := vipguard.Index(name)
			if !ok {
				return fmt.Errorf("vip-guard gave a listener %q that this version does not know", name)
			}
			return a.serve(serving, connections, ln, &open, outbound, func(ctx context.Context, c *net.TCPConn) { a.serveOutbound(ctx, c, index) })
		})
	}
	accepting.Go(func() error { a.refuseVIPs(serving, held.Refuse); return nil })
	a.serving.Store(true)
	held.Ready()
	a.log.Info("serving", "listeners", len(held.All()), "maxConnections", a.limits.Connections,
		"maxConnectionsPerLink", a.limits.ConnectionsPerLink, "maxConnectionsPerPod", a.limits.ConnectionsPerPod,
		"maxConnectionRatePerPod", a.limits.ConnectionRatePerPod)
	if err := accepting.Wait(); err != nil {
		return err
	}
	a.serving.Store(false)
	held.Yield()
	a.stopAccepting()
	a.sessions.Close()
	a.drainConnections(&open, cut)
	return nil
}

// drainConnections waits until the open connections have ended. After the drain period it
// resets those that are left, and then logs how many they were.
func (a *Agent) drainConnections(open *sync.WaitGroup, reset context.CancelCauseFunc) {
	late := time.AfterFunc(a.drain, func() { reset(transport.ErrDrained) })
	open.Wait()
	if !late.Stop() {
		// The process ends now, so Prometheus does not scrape this count.
		a.log.Info("drain period is over, open connections were reset", "connections", a.metrics.drained.Load())
	}
}

// certificateTimeout is how long a starting agent waits for the certificates of all its
// pods. It may never get some of them.
const certificateTimeout = 10 * time.Second

// awaitState blocks until there is a state and there are certificates. Until then an
// older agent of the node continues to serve. It returns false if ctx ended first.
func (a *Agent) awaitState(ctx context.Context, timeout time.Duration) bool {
	late := time.NewTimer(timeout)
	defer late.Stop()
	enough := false // some certificates suffice
	for {
		next := a.stateChanged.wait()
		if s := a.state.Load(); s != nil {
			accounts := s.accounts()
			// If the state is a held one, no controller that signs has answered.
			if held := a.svids.count(accounts); held == len(accounts) || (enough || s.held) && held > 0 {
				return true
			}
		}
		select {
		case <-next:
		case <-late.C:
			enough = true
		case <-ctx.Done():
			return false
		}
	}
}

// adminSocket is a socket in the pod's directory that answers the exec probe.
const adminSocket = "agent-admin.sock"

func (a *Agent) serveAdmin(ctx context.Context, path string, r *prometheus.Registry) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("serve probes: %w", err)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("serve probes: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metricsHandler(r))
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if _, err := a.current(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		} else if !a.serving.Load() {
			http.Error(w, "not serving: waiting for the certificates of this node's pods, or stopping", http.StatusServiceUnavailable)
		}
	})
	return uplink.Serve(ctx, ln, mux)
}

// metricsHandler also offers OpenMetrics, which has exemplars as text.
func metricsHandler(r *prometheus.Registry) http.Handler {
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{EnableOpenMetrics: true})
}

// serveMetrics serves h at address. It retries while the old agent still has the port
// during an upgrade.
func (a *Agent) serveMetrics(ctx context.Context, address string, h http.Handler) error {
	for {
		ln, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
		if err == nil {
			return uplink.Serve(ctx, ln, h)
		}
		a.log.Debug("cannot listen for metrics, will retry", "address", address, "error", err)
		if !backoff.Sleep(ctx, time.Second) {
			return nil
		}
	}
}

// Ready returns nil if the agent of this pod, at podDir, can serve.
func Ready(ctx context.Context, podDir string) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(podDir, adminSocket))
		},
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/readyz", nil)
	if err != nil {
		return fmt.Errorf("ask the agent: %w", err)
	}
	answer, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("ask the agent: %w", err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("the agent is not ready: %s", answer.Status)
	}
	return nil
}
