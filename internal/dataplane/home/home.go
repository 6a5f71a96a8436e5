// Package home ties a process of the data plane to its own cluster: the controller
// whose node stream it follows, the Links that it watches by itself, and the
// metrics and probes that it offers.
//
//	ConfigMap (root) ─┐
//	token file ───────┼─▶ node stream ──▶ OnState(State)
//	Links (API) ──────┘
//
// What always holds:
//   - The controller is believed by the cluster's own root alone.
//   - OnState is called with whole views only, one call at a time, again whenever
//     the view or the set of revoked Links has changed, and when the view expires.
//     An expired one still tells what must end.
//   - A view that an earlier process held is put in force only while no controller
//     answers, and after the API was asked which of its Links are gone.
package home

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/dataplane/links"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// Options say where home is. All but Version are required.
type Options struct {
	// Controller is the node stream's address, host:port.
	Controller string
	// IdentityDir is where the ConfigMap causeway-identity is mounted.
	IdentityDir string
	// TokenFile holds the projected token with audience causeway.
	TokenFile string
	// Links is the part of the Kubernetes API that lists and watches Links.
	Links links.Lister
	// Version is told to the controller, for the operator's eyes.
	Version string

	Log        *slog.Logger
	Registerer prometheus.Registerer
	// OnState takes each new view.
	OnState func(State)
	// Held is what an earlier process was told, and HeldAge how old that is; nil: nothing.
	// It is put in force if no controller answers soon.
	Held    nodestream.View
	HeldAge time.Duration
	// Look adds to a report what an operator asks about: what is to be seen from here,
	// before ctx ends. May be nil: no question is answered.
	Look func(ctx context.Context, report *wire.ReportRequest)
}

// State is what a process may act on.
type State struct {
	// View is the newest whole view. It is never nil.
	View nodestream.View
	// Expired: the controller has been away for so long that nothing new may be
	// admitted by View. What is open is still held against it.
	Expired bool
	// Held: it is Options.Held, and no controller has answered since this process started.
	Held bool
	// Revoked reports whether the Link with this UID counts no more.
	Revoked func(uid string) bool
}

// Home follows the controller. Make it with New; nothing happens until Run.
type Home struct {
	o      Options
	client *nodestream.Client
	links  *links.Watcher

	mu      sync.Mutex // guards what follows, and is held while OnState runs
	state   State
	inForce bool // state was given to OnState
}

const (
	// headStart is how long a controller has to answer before a held view is put in force:
	// what it says is newer.
	headStart = 2 * time.Second
	// linksPatience is how long the API has to say which Links are gone. The two together
	// are shorter than vip-guard's patience with an absent agent.
	linksPatience = 5 * time.Second
)

// New returns a Home.
func New(o Options) (*Home, error) {
	h := &Home{o: o}
	client, err := nodestream.NewClient([]string{o.Controller}, h.tls, o.TokenFile, nodestream.ClientOptions{
		Version: o.Version, OnState: h.onView, Log: o.Log, Registerer: o.Registerer, Guard: Guard,
		Held: o.Held, HeldAge: o.HeldAge,
		OnQuestion: h.onQuestion(),
	})
	if err != nil {
		return nil, err
	}
	h.client = client
	h.links = links.New(o.Links, h.known, h.again, o.Log)
	if view, _ := client.State(); view != nil {
		h.state = State{View: view, Held: true, Revoked: h.links.Revoked}
	}
	o.Registerer.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "causeway_state_age_seconds",
		Help: "Time since the controller last said that the state is whole.",
	}, func() float64 { return client.Age().Seconds() }))
	return h, nil
}

// Guard bounds what a controller may send before its handshake is done.
func Guard(c net.Conn) (net.Conn, func()) {
	raw := transport.Dialed(c)
	return raw, raw.Proven
}

// Sign asks the controller for the certificate of a local pod's account.
func (h *Home) Sign(ctx context.Context, namespace, serviceAccount string, csr []byte) ([][]byte, error) {
	return h.client.Sign(ctx, namespace, serviceAccount, csr)
}

// Run follows the controller and the Links until ctx ends.
func (h *Home) Run(ctx context.Context) error {
	var watching sync.WaitGroup
	defer watching.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watching.Go(func() { h.links.Run(ctx) })
	watching.Go(func() { h.fallBack(ctx) })
	return h.client.Run(ctx)
}

func (h *Home) onView(v nodestream.View) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if v == nil {
		h.state.Expired = true
	} else {
		h.state = State{View: v, Revoked: h.links.Revoked}
	}
	h.inForce = true
	h.o.OnState(h.state)
}

// fallBack puts the held view in force, if there is one and no controller has answered
// meanwhile: after its head start, and after the API said which Links are gone, if it does.
func (h *Home) fallBack(ctx context.Context) {
	if h.o.Held == nil || !backoff.Sleep(ctx, headStart) {
		return
	}
	late := time.NewTimer(linksPatience)
	defer late.Stop()
	select {
	case <-h.links.Tried():
	case <-late.C:
	case <-ctx.Done():
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.inForce || h.state.View == nil {
		return
	}
	h.o.Log.Warn("no controller answers: serving by what an earlier process of this node was told", "age", h.client.Age().Round(time.Second).String())
	h.inForce = true
	h.o.OnState(h.state)
}

// Age is how long ago the controller last said that the state is whole.
func (h *Home) Age() time.Duration { return h.client.Age() }

// onQuestion answers what an operator asks of this node; nil if nothing can.
func (h *Home) onQuestion() func(context.Context) *wire.ReportRequest {
	if h.o.Look == nil {
		return nil
	}
	return func(ctx context.Context) *wire.ReportRequest {
		age := h.client.Age()
		report := &wire.ReportRequest{Version: h.o.Version, StateAgeMs: uint64(age.Milliseconds())}
		h.o.Look(ctx, report)
		report.TimeMs = time.Now().UnixMilli() // last, as near as can be to when it is heard
		return report
	}
}

// again repeats the view in force after a Link was revoked, an expired one too: the
// tunnels that it admitted may still be open.
func (h *Home) again() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.inForce {
		h.o.OnState(h.state)
	}
}

// known lists the UIDs of the Links in the last view.
func (h *Home) known() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var uids []string
	for _, r := range h.state.View {
		if l := r.GetLink(); l != nil {
			uids = append(uids, l.Uid)
		}
	}
	return uids
}

// tls is asked at each handshake, so a ConfigMap that comes late or changes is taken in.
func (h *Home) tls() (*tls.Config, error) {
	domain, root, err := readRoot(h.o.IdentityDir)
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(h.o.Controller)
	if err != nil {
		return nil, fmt.Errorf("address of the controller: %w", err)
	}
	return identity.ClientTLS(identity.PlaneNode, host, nil, identity.VerifyPeerController(domain, root, time.Now)), nil
}

func readRoot(dir string) (trustDomain string, root *x509.Certificate, err error) {
	domain, err := os.ReadFile(filepath.Join(dir, clusterinfo.KeyTrustDomain))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil, fmt.Errorf("the cluster's identity is not in %s yet: the controller publishes it in ConfigMap causeway-identity at its first start", dir)
	}
	if err != nil {
		return "", nil, fmt.Errorf("read the cluster's trust domain: %w", err)
	}
	text, err := os.ReadFile(filepath.Join(dir, clusterinfo.KeyRoot))
	if err != nil {
		return "", nil, fmt.Errorf("read the cluster's root: %w", err)
	}
	trustDomain = strings.TrimSpace(string(domain))
	root, err = identity.ParseRootCertificate(text, trustDomain)
	return trustDomain, root, err
}

// NewRegistry returns a registry with what every Go process measures of itself.
func NewRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// ServeMetrics serves /metrics on address until ctx ends.
func ServeMetrics(ctx context.Context, address string, r *prometheus.Registry) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(r, promhttp.HandlerOpts{}))
	return serveHTTP(ctx, address, mux)
}

// ServeProbes serves /healthz and /readyz on address until ctx ends. ready says
// why the process should get no new work; nil: it should.
func ServeProbes(ctx context.Context, address string, ready func() error) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return serveHTTP(ctx, address, mux)
}

func serveHTTP(ctx context.Context, address string, h http.Handler) error {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", address, err)
	}
	return Serve(ctx, ln, h)
}

// idle is longer than who scrapes metrics commonly waits in between.
const idle = 90 * time.Second

// Serve serves h on ln until ctx ends, with bounds on what a client may take.
func Serve(ctx context.Context, ln net.Listener, h http.Handler) error {
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: idle, MaxHeaderBytes: 16 << 10,
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(ln); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve on %v: %w", ln.Addr(), err)
	}
	return nil
}
