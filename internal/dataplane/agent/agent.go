// Package agent is the process on each node that relays local pods' calls to mirrored
// Services over sessions, and serves the sessions of remote callers for local pods.
//
//	outbound: pod ─▶ VIP:4200+i ─▶ which service, who calls ─▶ an idle session, or a new one ─▶ OPEN ─▶ exchange
//	          new: SVID ─▶ dial gateway ─▶ TLS ─▶ HELLO
//	inbound:  gateway ─▶ :4144 ─▶ header, hello ─▶ TLS as the pod ─▶ HELLO ─▶ decide ─▶ OPEN ─▶ dial pod ─▶ exchange
//	          and again from OPEN on, for the next connection of the same caller
//
// outbound.go and inbound.go are the two lives of a connection, each top to bottom;
// session.go is how sessions are found, made and kept; renew.go is how open exchanges
// outlive certificates.
//
// What always holds:
//   - A connection uses the identity of the pod that opened it. The pod is proven by
//     its address and by where the kernel finds that address. There is no fallback
//     identity.
//   - The agent dials no application before package admit has decided on the verified
//     identity and the service that the frame names. It decides again for each
//     exchange.
//   - A session serves one caller identity and one port. It is a lease: when the state
//     changes, the agent decides again, and ends a session that it would no longer admit.
//   - Bytes that may have reached an application are not sent again.
//   - Each refusal is counted by a reason from a closed list.
//   - The agent accepts no connection before the first complete state. Later it keeps
//     the last state. An expired state admits no new connection, and the agent still
//     ends connections that the state does not admit.
package agent

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/dataplane/budget"
	"github.com/causeway-mesh/causeway/internal/dataplane/podid"
	"github.com/causeway-mesh/causeway/internal/dataplane/reqlog"
	"github.com/causeway-mesh/causeway/internal/dataplane/reqmetrics"
	"github.com/causeway-mesh/causeway/internal/dataplane/session"
	"github.com/causeway-mesh/causeway/internal/dataplane/trace"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
	"github.com/causeway-mesh/causeway/internal/dataplane/uplink"
	"github.com/causeway-mesh/causeway/internal/identity"
)

// Bounds of one agent.
const (
	// maxHeaders bounds the inbound connections whose header has not arrived, and
	// maxHeadersFrom those from one source.
	maxHeaders     = 1024
	maxHeadersFrom = 128
	// defaultDrain is how long open connections continue after the process is asked to
	// stop.
	defaultDrain = time.Minute
)

// Agent is the data path of one node. Make it with New.
type Agent struct {
	state         atomic.Pointer[state]
	stateChanged  broadcast
	podTable      *podid.Table
	svids         *svids
	leases        leases
	proofs        *identity.ProofCache
	endpointCache *endpointCache
	firstSpeakers *ttlMap[localPort, tunnel.FirstSpeaker] // of local ports
	sessions      *session.Pool[sessionKey, *clientSession]
	requests      requestGroups // sessions for requests
	copies        atomic.Int64  // of requests, that are open
	// circuits count connections, requests that wait for a session, and requests.
	connCircuits, pendingCircuits, circuits circuits
	balanceSeed                             uint64                         // selects this node's aperture for requests
	preconnectLimiters                      *ttlMap[string, *rate.Limiter] // by link
	seed                                    maphash.Seed                   // selects this node's aperture
	limits                                  Limits                         // resolved
	shares                                  *connShares
	inboundConns                            inboundConns
	renewals                                *renewals    // of open exchanges
	waiting                                 atomic.Int64 // inbound sessions that wait for OPEN
	// acceptCtx ends when the agent is asked to stop. It ends everything that waits for
	// future callers.
	acceptCtx     context.Context
	stopAccepting context.CancelFunc
	dialer        transport.Dialer // of gateways
	// keyExchange is what the agent offers to peers; set before the agent runs.
	keyExchange identity.KeyExchange
	// dialApp dials one address of a local pod.
	dialApp   func(ctx context.Context, address string) (net.Conn, error)
	penalties penalties
	monitor   *linkMonitor
	// ingressOf returns the interface by which a local caller's connection came in.
	ingressOf func(*net.TCPConn) (int, error)
	check     callerCheck
	// headers holds the inbound connections whose header has not arrived.
	headers       *budget.Pending
	headerLimiter *headerLimiter
	// handshakeLimiter bounds the inbound handshakes that compute at the same time.
	handshakeLimiter *budget.FairSemaphore
	openings         *openings
	rates            callRates

	log            *slog.Logger
	metrics        *metrics
	requestMetrics *reqmetrics.Metrics
	requestLog     *reqlog.Hub // of requests and connections that have ended
	// tracer makes spans of requests; set before the agent runs. nil: none.
	tracer *trace.Tracer
	// spans counts them.
	spans *prometheus.CounterVec
	// canaries counts the canary calls that were answered.
	canaries *prometheus.CounterVec
	callLogs *callLogs
	drain    time.Duration
	serving  atomic.Bool     // the agent accepts callers
	baseCtx  context.Context // for work that a state change starts; set by New
}

// New returns an Agent without a state. The Agent calls sign to get certificates for
// its pods.
func New(life context.Context, sign signFunc, log *slog.Logger, r prometheus.Registerer) *Agent {
	a := &Agent{
		podTable: podid.New(podid.NewKernel()), endpointCache: newEndpointCache(), proofs: identity.NewProofCache(),
		firstSpeakers: newTTLMap[localPort, tunnel.FirstSpeaker](maxFirstSpeakers, firstSpeakerAge), dialer: transport.Dialer{Timeout: gatewayDialTimeout}, check: kernelCheck,
		headers: budget.NewPending(maxHeaders, maxHeadersFrom), handshakeLimiter: budget.NewFairSemaphore(runtime.GOMAXPROCS(0)), openings: newOpenings(), rates: newCallRates(defaultLimits), drain: defaultDrain, log: log, metrics: newMetrics(r), canaries: newCanaries(r), baseCtx: life,
		callLogs: newCallLogs(), sessions: newSessions(), limits: defaultLimits, shares: newConnShares(defaultLimits),
		dialApp:            new(transport.LocalPorts).Dial,
		headerLimiter:      newHeaderLimiter(headerRate, headerBurst),
		preconnectLimiters: newTTLMap[string, *rate.Limiter](1024, time.Hour), seed: maphash.MakeSeed(), balanceSeed: rand.Uint64(),
	}
	r.MustRegister(newWindowGauge(a.shares.windows))
	a.requestMetrics, a.requestLog = reqmetrics.New(reqmetrics.Config{MaxSeries: maxRequestSeries}), reqlog.NewHub(r)
	a.spans = trace.NewCounter()
	r.MustRegister(a.requestMetrics, a.spans)
	a.ingressOf = a.ingress
	a.monitor = a.monitorLinks()
	a.acceptCtx, a.stopAccepting = context.WithCancel(life)
	a.svids = newSVIDs(sign, a.stateChanged.notifyAll, log)
	a.renewals = newRenewals(life, a.renew)
	r.MustRegister(healthCollector{a})
	return a
}

// setLimits replaces the default limits. It must be called before the agent runs.
func (a *Agent) setLimits(l Limits) {
	windows := a.shares.windows // its gauge is registered
	a.limits, a.shares, a.rates = l, newConnShares(l), newCallRates(l)
	a.shares.windows = windows
	a.metrics.maxConnections = l.Connections
}

// onState makes a view the current state, and ends what the view no longer admits.
func (a *Agent) onState(h uplink.State) {
	if h.Expired {
		a.log.Error("controller unreachable for too long; refusing new connections")
	}
	was := a.state.Load()
	next, err := newState(h.View, h.Revoked, was)
	if err != nil {
		a.log.Error("controller's state is not consistent; ignoring a part", "error", err)
	}
	if next == nil && was != nil { // of no use, but for which Links are gone
		next, _ = newState(was.view, h.Revoked, was) // its problems were logged when it came
	}
	if next == nil {
		return
	}
	for _, err := range next.badRoutes {
		a.log.Warn("routes are not valid; the agent answers their requests with an error", "error", err)
	}
	next.expired, next.held = h.Expired, h.Held
	a.podTable.Update(next.claims(), next.held)
	a.state.Store(next)
	a.monitor.update(next)
	a.svids.setIssuers(next.issuers)
	a.svids.setAccounts(a.baseCtx, withProbes(next.accounts()))
	if n := a.leases.recheck(next); n > 0 {
		a.log.Info("ended sessions and connections that are no longer admitted", "ended", n)
	}
	a.stateChanged.notifyAll()
}

// logEnd logs that Causeway itself has ended an exchange, for a reason that an
// operator can do something about.
func (a *Agent) logEnd(result transport.Result, about ...any) {
	switch result.Reason {
	case transport.NotRenewed, transport.RecordLimit:
		a.logLimited(slog.LevelWarn, "connection ended", append(about, "reason", result.Reason.String(), "error", result.Err)...)
	}
}

// current returns the current state, or why new connections are refused.
func (a *Agent) current() (*state, error) {
	s := a.state.Load()
	switch {
	case s == nil:
		return nil, refuse(reasonNotReady, errors.New("no complete state from the controller yet"))
	case s.expired:
		return nil, refuse(reasonNotReady, errors.New("no state from a controller for too long"))
	}
	return s, nil
}

// anchors returns the issuers that currently sign peers' workload certificates.
func (a *Agent) anchors() *identity.Anchors {
	if s := a.state.Load(); s != nil {
		return s.anchors.WithCache(a.proofs)
	}
	return nil
}

// serve accepts connections on ln until ctx ends, and passes each to do, which closes
// it. life outlives ctx by the drain time. It returns nil if ctx has ended. It does not
// wait for the connections.
func (a *Agent) serve(ctx, life context.Context, ln net.Listener, open *sync.WaitGroup, direction string, do func(context.Context, *net.TCPConn)) error {
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	for {
		c, err := ln.Accept()
		if err != nil && ctx.Err() != nil {
			return nil
		}
		if transport.IsTransient(err) {
			backoff.Sleep(ctx, 10*time.Millisecond) // out of descriptors; open connections will close
			continue
		}
		if err != nil {
			return fmt.Errorf("accept %s connections: %w", direction, err)
		}
		a.metrics.accepted.WithLabelValues(direction).Inc()
		if tcp, ok := c.(*net.TCPConn); ok {
			open.Go(func() { do(life, tcp) })
		} else {
			transport.Reset(c)
		}
	}
}

// A refusal is an error with a reason that is counted.
type refusal struct {
	reason string
	code   tunnel.Code // sent to the far side; unspecified: NOT_READY
	final  bool        // a newer state cannot change the result
	retry  bool        // a retry without a newer state may succeed
	err    error
}

func refuse(reason string, err error) error { return &refusal{reason: reason, err: err} }

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// reasonOf returns the counted reason of a refusal.
func reasonOf(err error) string {
	if r := (*refusal)(nil); errors.As(err, &r) {
		return r.reason
	}
	return reasonOther
}

func addrOf(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		p := t.AddrPort()
		return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
	}
	return netip.AddrPort{}
}
