// Package uplink connects a data plane process to its own cluster: it follows the
// controller's node stream, watches Links, and serves metrics and probes.
//
//	ConfigMap (root) ─┐
//	token file ───────┼─▶ node stream ──▶ OnState(State)
//	Links (API) ──────┘
//
// What always holds:
//   - Only the cluster's own root verifies the controller.
//   - OnState gets whole views only, one call at a time. It is called again when the view
//     or the set of revoked Links changes, and when the view expires. An expired view
//     still says which connections must end.
//   - A view that an earlier process held is used only while no controller answers, and
//     after the API was asked which of its Links are deleted.
package uplink

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
	"github.com/causeway-mesh/causeway/internal/dataplane/linkwatch"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// Options configure an Uplink. All but Version, Held, HeldAge and Diagnose are required.
type Options struct {
	// Controller is the node stream's address, host:port.
	Controller string
	// IdentityDir is the mount of the ConfigMap causeway-identity.
	IdentityDir string
	// TokenFile holds the projected token with audience causeway.
	TokenFile string
	// Links lists and watches Links in the Kubernetes API.
	Links linkwatch.Lister
	// Version is sent to the controller, for display.
	Version string

	Log        *slog.Logger
	Registerer prometheus.Registerer
	// OnState gets each new State.
	OnState func(State)
	// Held is the view of an earlier process and HeldAge its age; nil: none. It is used
	// if no controller answers soon.
	Held    nodestream.View
	HeldAge time.Duration
	// Diagnose adds to a report what this process can see, before ctx ends. Nil: the
	// process does not answer questions.
	Diagnose func(ctx context.Context, report *wire.ReportRequest)
}

// State is what a process acts on.
type State struct {
	// View is the newest whole view. It is never nil.
	View nodestream.View
	// Expired: the View is so old that it admits no new connection. Open connections are
	// still checked against it.
	Expired bool
	// Held: View is Options.Held, because no controller has answered since this process
	// started.
	Held bool
	// Revoked reports whether the Link with this UID is deleted.
	Revoked func(uid string) bool
}

// Uplink follows the controller. Make it with New; it does nothing until Run.
type Uplink struct {
	o      Options
	client *nodestream.Client
	links  *linkwatch.Watcher

	mu     sync.Mutex // guards what follows, and is held while OnState runs
	state  State
	active bool // OnState has got state
}

const (
	// headStart is how long the controller has to answer before a held view is used.
	headStart = 2 * time.Second
	// linksTimeout is how long the API has to say which Links are deleted. Both together
	// are shorter than the time that vip-guard waits for an absent agent.
	linksTimeout = 5 * time.Second
)

// New returns an Uplink.
func New(o Options) (*Uplink, error) {
	u := &Uplink{o: o}
	client, err := nodestream.NewClient([]string{o.Controller}, u.tls, o.TokenFile, nodestream.ClientOptions{
		Version:    o.Version,
		Guard:      transport.GuardDialed,
		OnState:    u.onView,
		Held:       o.Held,
		HeldAge:    o.HeldAge,
		OnQuestion: u.onQuestion(),
		Log:        o.Log,
		Registerer: o.Registerer,
	})
	if err != nil {
		return nil, err
	}
	u.client = client
	u.links = linkwatch.New(o.Links, u.known, u.repeat, o.Log)
	if view, _ := client.State(); view != nil {
		u.state = State{View: view, Held: true, Revoked: u.links.Revoked}
	}
	o.Registerer.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "causeway_state_age_seconds",
		Help: "Age of the state: the time since a controller last proved it to be current.",
	}, func() float64 { return client.Age().Seconds() }))
	return u, nil
}

// Sign requests the certificate chain of a local pod's account from the controller.
func (u *Uplink) Sign(ctx context.Context, namespace, serviceAccount string, csr []byte) ([][]byte, error) {
	return u.client.Sign(ctx, namespace, serviceAccount, csr)
}

// Run follows the controller and the Links until ctx ends.
func (u *Uplink) Run(ctx context.Context) error {
	var watching sync.WaitGroup
	defer watching.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watching.Go(func() { u.links.Run(ctx) })
	watching.Go(func() { u.fallBack(ctx) })
	return u.client.Run(ctx)
}

func (u *Uplink) onView(v nodestream.View) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if v == nil {
		u.state.Expired = true
	} else {
		u.state = State{View: v, Revoked: u.links.Revoked}
	}
	u.active = true
	u.o.OnState(u.state)
}

// fallBack uses the held view if no controller has answered: after its head start, and
// after the API has said which Links are deleted or linksTimeout has passed.
func (u *Uplink) fallBack(ctx context.Context) {
	if u.o.Held == nil || !backoff.Sleep(ctx, headStart) {
		return
	}
	late := time.NewTimer(linksTimeout)
	defer late.Stop()
	select {
	case <-u.links.Tried():
	case <-late.C:
	case <-ctx.Done():
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.active || u.state.View == nil {
		return
	}
	u.o.Log.Warn("no controller answers, using the state of an earlier process of this node",
		"age", u.client.Age().Round(time.Second).String())
	u.active = true
	u.o.OnState(u.state)
}

// Age returns the age of the state.
func (u *Uplink) Age() time.Duration { return u.client.Age() }

// onQuestion returns the function that answers questions; nil: this process answers none.
func (u *Uplink) onQuestion() func(context.Context) *wire.ReportRequest {
	if u.o.Diagnose == nil {
		return nil
	}
	return func(ctx context.Context) *wire.ReportRequest {
		age := u.client.Age()
		report := &wire.ReportRequest{Version: u.o.Version, StateAgeMs: uint64(age.Milliseconds())}
		u.o.Diagnose(ctx, report)
		report.TimeMs = time.Now().UnixMilli() // last, so that it is close to the arrival of the report
		return report
	}
}

// repeat calls OnState with the same view after a Link was revoked. It does so for an
// expired view too, because tunnels that it admitted may still be open.
func (u *Uplink) repeat() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.active {
		u.o.OnState(u.state)
	}
}

// known lists the UIDs of the Links in the last view.
func (u *Uplink) known() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	var uids []string
	for _, r := range u.state.View {
		if l := r.GetLink(); l != nil {
			uids = append(uids, l.Uid)
		}
	}
	return uids
}

// tls is called at each handshake, so it uses a ConfigMap that comes late or changes.
func (u *Uplink) tls() (*tls.Config, error) {
	domain, root, err := readRoot(u.o.IdentityDir)
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(u.o.Controller)
	if err != nil {
		return nil, fmt.Errorf("address of the controller: %w", err)
	}
	return identity.ClientTLS(identity.PlaneNode, host, nil,
		identity.VerifyPeerController(domain, root, time.Now)), nil
}

func readRoot(dir string) (trustDomain string, root *x509.Certificate, err error) {
	domain, err := os.ReadFile(filepath.Join(dir, clusterinfo.KeyTrustDomain))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil, fmt.Errorf("the cluster's identity is not in %s yet: "+
			"the controller publishes it in the ConfigMap causeway-identity at its first start", dir)
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

// NewRegistry returns a registry with the metrics of the Go runtime and the process.
func NewRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// ServeMetrics serves /metrics on address until ctx ends.
func ServeMetrics(ctx context.Context, address string, r *prometheus.Registry) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(r, promhttp.HandlerOpts{}))
	return serveHTTP(ctx, address, mux)
}

// ServeProbes serves /healthz and /readyz on address until ctx ends. ready returns why
// the process must not get new work; nil: it may.
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

// idleTimeout is longer than common scrape intervals.
const idleTimeout = 90 * time.Second

// Serve serves h on ln until ctx ends, with bounds on the time and size of requests.
func Serve(ctx context.Context, ln net.Listener, h http.Handler) error {
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    16 << 10,
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(ln); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve on %v: %w", ln.Addr(), err)
	}
	return nil
}
