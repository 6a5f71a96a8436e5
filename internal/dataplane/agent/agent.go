// Package agent is the process on each node that carries local pods' calls to mirrored Services
// in sessions, and ends sessions for local pods that are called.
//
//	outbound: pod ─▶ VIP:4200+i ─▶ which service, who calls ─▶ an idle session, or a new one ─▶ OPEN ─▶ exchange
//	          new: SVID ─▶ dial gateway ─▶ TLS ─▶ HELLO
//	inbound:  gateway ─▶ :4144 ─▶ header, hello ─▶ TLS as the pod ─▶ HELLO ─▶ decide ─▶ OPEN ─▶ dial pod ─▶ exchange
//	          and again from OPEN on, for the next connection of the same caller
//
// outbound.go and inbound.go are the two lives of a connection, each top to bottom; session.go
// is how sessions are found, made and kept.
//
// What always holds:
//   - A connection speaks as the pod that made it, proven by its address and where the kernel
//     finds that, or not at all: there is no fallback identity.
//   - No application is dialed before the one decision (package admit) was made on the verified
//     identity and the service that the frame names, and made again for each exchange.
//   - A session serves one caller identity and one port. It is a lease: when the state
//     changes, the agent decides again, and ends a session that it would no longer admit.
//   - What was sent over a session and may have reached an application is not sent again.
//   - Whatever is refused is counted by a reason from a closed list.
//   - The agent accepts nothing before the first complete state. Later it keeps the last
//     state. An expired state admits no new connections, and still ends those it does not
//     admit.
package agent

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
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
	"github.com/causeway-mesh/causeway/internal/dataplane/session"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
	"github.com/causeway-mesh/causeway/internal/dataplane/uplink"
	"github.com/causeway-mesh/causeway/internal/identity"
)

// Bounds of one agent.
const (
	maxConnections = 20_000 // open at a time, each way
	// maxHeaders is how many inbound connections may be open whose header has not come, and
	// maxHeadersFrom how many of one source.
	maxHeaders     = 1024
	maxHeadersFrom = 128
	// defaultDrain is how long open connections go on after the process is asked to stop.
	defaultDrain = time.Minute
	// lineRate and lineBurst bound the log's lines about calls. Metrics count them all.
	lineRate, lineBurst = 100, 1500
)

// Agent is the data path of one node. Make it with New.
type Agent struct {
	state    atomic.Pointer[state]
	news     news
	podTable *podid.Table
	svids    *svids
	leases   leases
	proofs   *identity.ProofCache
	learnt   *learnt
	spoken   *fading[localPort, tunnel.FirstSpeaker] // who speaks first here
	sessions *session.Pool[sessionKey, *clientSession]
	buckets  *fading[string, *rate.Limiter] // for sessions made ahead, by link
	seed     maphash.Seed                   // of this node's aperture
	shares   *allowances
	arrivals arrivals
	waiting  atomic.Int64 // inbound sessions that wait for OPEN
	// taking ends when the agent is asked to stop: what waits for callers yet to come ends.
	taking  context.Context
	retire  context.CancelFunc
	dialer  transport.Dialer     // of gateways
	ports   transport.LocalPorts // of connections to local pods
	detours detours
	// cameBy says by which interface a local caller's connection came in.
	cameBy func(*net.TCPConn) (int, error)
	check  callerCheck
	// headers are the inbound connections whose header has not come.
	headers *budget.Pending
	// turns are at the CPU, for inbound handshakes.
	turns    *budget.Turns
	openings *openings
	rates    callRates

	log     *slog.Logger
	metrics *metrics
	// canaries counts those that were answered.
	canaries *prometheus.CounterVec
	// lines bounds what callers, whoever they are, can make us write.
	lines   *rate.Limiter
	drain   time.Duration
	serving atomic.Bool     // callers are accepted
	life    context.Context // of what state changes start; set by Run
}

// New returns an Agent that asks sign for its pods' certificates. It holds no
// state yet.
func New(life context.Context, sign signFunc, log *slog.Logger, r prometheus.Registerer) *Agent {
	a := &Agent{
		podTable: podid.New(podid.NewKernel()), learnt: newLearnt(), proofs: identity.NewProofCache(),
		spoken: newFading[localPort, tunnel.FirstSpeaker](maxSpoken, spokenAge), dialer: transport.Dialer{Timeout: reachTimeout}, check: kernelCheck,
		headers: budget.NewPending(maxHeaders, maxHeadersFrom), turns: budget.NewTurns(runtime.GOMAXPROCS(0)), openings: newOpenings(), rates: newCallRates(), drain: defaultDrain, log: log, metrics: newMetrics(r), canaries: newCanaries(r), life: life,
		lines: rate.NewLimiter(lineRate, lineBurst), sessions: newSessions(), shares: newAllowances(),
		buckets: newFading[string, *rate.Limiter](1024, time.Hour), seed: maphash.MakeSeed(),
	}
	a.cameBy = a.ingress
	a.taking, a.retire = context.WithCancel(life)
	a.svids = newSVIDs(sign, a.news.tell, log)
	return a
}

// onState puts a new view in force, and ends what it no longer admits.
func (a *Agent) onState(h uplink.State) {
	if h.Expired {
		a.log.Error("the controller has been away for too long: every new connection is refused")
	}
	view := h.View
	next, err := newState(view, h.Revoked)
	if err != nil {
		a.log.Error("the controller's state does not hold together: what is broken is left out", "error", err)
	}
	if was := a.state.Load(); next == nil && was != nil { // of no use, but for which Links are gone
		view = was.view
		next, _ = newState(view, h.Revoked) // told when it came
	}
	if next == nil {
		return
	}
	next.expired, next.held = h.Expired, h.Held
	next.view, next.less = without(view, h.Revoked)
	a.podTable.Update(next.claims(), next.held)
	a.state.Store(next)
	a.svids.vouch(next.issuers)
	a.svids.want(a.life, next.accounts())
	if n := a.leases.recheck(next); n > 0 {
		a.log.Info("sessions and calls ended: what had admitted them has changed", "ended", n)
	}
	a.news.tell()
}

// tell logs a line about a call, unless there were too many.
func (a *Agent) tell(level slog.Level, msg string, args ...any) {
	if a.log.Enabled(a.life, level) && a.lines.Allow() {
		a.log.Log(a.life, level, msg, args...)
	}
}

// current returns the state in force.
func (a *Agent) current() (*state, error) {
	s := a.state.Load()
	switch {
	case s == nil:
		return nil, refuse(reasonNotReady, errors.New("no complete state from the controller yet"))
	case s.expired:
		return nil, refuse(reasonNotReady, errors.New("the controller has been away for too long"))
	}
	return s, nil
}

// anchors are the issuers that vouch for peers' workloads now.
func (a *Agent) anchors() *identity.Anchors {
	if s := a.state.Load(); s != nil {
		return s.anchors.WithCache(a.proofs)
	}
	return nil
}

// serve accepts on ln until ctx ends, and hands each connection to do, which
// closes it. life outlives ctx by the drain. It returns nil when ctx was the
// reason; it waits for nothing.
func (a *Agent) serve(ctx, life context.Context, ln net.Listener, open *sync.WaitGroup, way string, do func(context.Context, *net.TCPConn)) error {
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	for {
		c, err := ln.Accept()
		if err != nil && ctx.Err() != nil {
			return nil
		}
		if transport.Passing(err) {
			backoff.Sleep(ctx, 10*time.Millisecond) // out of descriptors: some will close
			continue
		}
		if err != nil {
			return fmt.Errorf("accept %s connections: %w", way, err)
		}
		a.metrics.accepted.WithLabelValues(way).Inc()
		if tcp, ok := c.(*net.TCPConn); ok {
			open.Go(func() { do(life, tcp) })
		} else {
			transport.Reset(c)
		}
	}
}

// A refusal is why a connection goes nowhere, with a counted reason.
type refusal struct {
	reason string
	code   tunnel.Code // what the far side is told; unspecified: NOT_READY
	final  bool        // newer state would not change it
	again  bool        // time alone may change it
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
