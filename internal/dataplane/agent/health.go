package agent

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/time/rate"

	"github.com/causeway-mesh/causeway/internal/dataplane/linkhealth"
	"github.com/causeway-mesh/causeway/internal/dataplane/probe"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

const (
	// probesPerSecond bounds the probes of this node that connect, of all links together.
	probesPerSecond = 50
	// probesReserved of them are reserved for links that may be usable. usedReserved of
	// them, including these, are reserved for such links and for links that were in use
	// when they became unusable.
	probesReserved = 10
	usedReserved   = 30
	// recentConns is how many connections of a link are asked for their last byte.
	recentConns = 32
	// stallTime is how late the monitor may be before it knows that this process, or the
	// whole node, did not run.
	stallTime = 300 * time.Millisecond
	// reopenDelay is the shortest time without heartbeats after the far side has
	// answered but refused the session for them. A random part of up to the same length
	// is added.
	reopenDelay = 5 * time.Second
	// The controller's report that no gateway address answers reaches all nodes at the
	// same moment. Each node waits for a random time, at most this long, before it tests
	// a link that it uses, or one that it does not use.
	usedTestDelay   = 2 * time.Second
	unusedTestDelay = 15 * time.Second
)

// linkMonitor watches the links that this node uses, and knows which are unusable. Make
// it with newLinkMonitor. It is safe for concurrent use.
type linkMonitor struct {
	// open and probe test a path. They return when their context ends.
	open    func(ctx context.Context, p *peer, address string) (heartbeatSession, probe.Result)
	probe   func(ctx context.Context, p *peer, address string) probe.Result
	log     *slog.Logger
	limiter *rate.Limiter
	// changed wakes those who wait for unusable links to change.
	changed broadcast
	kicks   chan struct{}

	mu    sync.Mutex                // guards links and what they point to
	links map[string]*monitoredLink // by UID
}

// heartbeatSession is a *probe.Session.
type heartbeatSession interface {
	Echo(ctx context.Context, payload int) probe.Result
	Close()
}

// monitoredLink is one link. linkMonitor.mu guards it.
type monitoredLink struct {
	peer   *peer
	health linkhealth.Link
	// session carries heartbeats; nil: the next one opens it. The heartbeat that is in
	// flight owns it.
	session heartbeatSession
	reopen  time.Time // no session is opened before
	address string    // of session, or where a byte came from last
	recent  [recentConns]*net.TCPConn
	opened  int       // counts connections
	refused bool      // the last dial was refused
	served  time.Time // the last probe
	echoed  time.Time // the last echo of a link that is suspected or unusable
	testAt  time.Time // when to test what the controller reports; zero: nothing
	failure string    // why the last probe that brought no byte failed; bounded
	gone    bool
}

// monitorLinks returns the linkMonitor of an agent.
func (a *Agent) monitorLinks() *linkMonitor {
	m := newLinkMonitor(a.log)
	m.open = func(ctx context.Context, p *peer, address string) (heartbeatSession, probe.Result) {
		session, result := a.openProbe(ctx, p, address, probe.Options{})
		if session == nil {
			return nil, result
		}
		return session, result
	}
	m.probe = func(ctx context.Context, p *peer, address string) probe.Result {
		return a.probe(ctx, p, address, probe.Options{})
	}
	return m
}

func newLinkMonitor(log *slog.Logger) *linkMonitor {
	m := &linkMonitor{
		log:     log,
		limiter: rate.NewLimiter(probesPerSecond, probesPerSecond),
		kicks:   make(chan struct{}, 1),
		links:   make(map[string]*monitoredLink),
	}
	return m
}

// update takes over the links of a state. Suspended links are not watched.
func (m *linkMonitor) update(s *state) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	peers := make(map[string]*peer, len(s.links))
	for _, p := range s.links {
		if !p.suspended {
			peers[p.uid] = p
		}
	}
	maps.DeleteFunc(m.links, func(uid string, l *monitoredLink) bool {
		if peers[uid] != nil {
			return false
		}
		l.drop()
		return true
	})
	for uid, p := range peers {
		l := m.links[uid]
		if l == nil {
			l = &monitoredLink{}
			m.links[uid] = l
		}
		// The controller probes each address all the time. What it finds dead is tested
		// from here, too, so that the first caller after an outage began is refused.
		wasHealthy := l.peer == nil || l.peer.healthy > 0
		if l.peer != nil && !slices.Equal(l.peer.gateways, p.gateways) {
			// A connection to an address that left says nothing about the others.
			l.recent = [recentConns]*net.TCPConn{}
		}
		usable := l.health.Usable()
		l.peer = p
		l.health.SetAddresses(p.gateways)
		switch {
		case p.healthy > 0:
			l.testAt = time.Time{}
			if !wasHealthy {
				l.health.Retry(now)
			}
		case wasHealthy && l.health.Watched():
			l.testAt = now.Add(rand.N(usedTestDelay))
		case wasHealthy:
			l.testAt = now.Add(rand.N(unusedTestDelay))
		}
		m.recordChange(l, usable)
	}
	m.changed.notifyAll()
	m.trigger()
}

// drop marks the link as gone and closes its session. A heartbeat that is in flight
// owns the session and closes it when it ends.
func (l *monitoredLink) drop() {
	l.gone = true
	if l.session != nil {
		l.session.Close()
		l.session = nil
	}
}

// use notes that a local pod uses a link.
func (m *linkMonitor) use(uid string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l := m.links[uid]; l != nil {
		watched := l.health.Watched()
		l.health.Use(time.Now())
		if !watched {
			m.trigger()
		}
	}
}

// suspect notes that no connection to a link's gateways could be made, and whether they
// refused it.
func (m *linkMonitor) suspect(uid string, refused bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.links[uid]
	if l == nil {
		return
	}
	l.refused = refused
	suspected := l.health.Suspected()
	if l.health.Suspect(time.Now()); l.health.Suspected() != suspected {
		m.trigger()
	}
}

// isUsable reports whether new connections may use a link, as far as this node knows.
func (m *linkMonitor) isUsable(uid string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.links[uid]
	return l == nil || l.health.Usable()
}

// isRefused reports whether the link's gateways refused the last dial.
func (m *linkMonitor) isRefused(uid string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.links[uid]
	return l != nil && l.refused
}

// connected notes a new connection to a link's gateway. It replaces an older one.
func (m *linkMonitor) connected(uid string, conn net.Conn) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if l := m.links[uid]; l != nil {
		l.recent[l.opened%recentConns] = tcp
		l.opened++
		l.refused = false
	}
}

// unusable returns the names of the links that are unusable.
func (m *linkMonitor) unusable() map[string]bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make(map[string]bool)
	for _, l := range m.links {
		if !l.health.Usable() {
			out[l.peer.name] = true
		}
	}
	return out
}

// report returns the links that are unusable, by name, at most maxUnusable of them.
func (m *linkMonitor) report(now time.Time) []*wire.UnusableLink {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*wire.UnusableLink
	for _, l := range m.links {
		if since := l.health.UnusableSince(); !since.IsZero() {
			out = append(out, &wire.UnusableLink{
				Link:  l.peer.name,
				ForMs: uint64(max(0, now.Sub(since)).Milliseconds()),
				Error: l.failure,
			})
		}
	}
	slices.SortFunc(out, func(x, y *wire.UnusableLink) int { return cmp.Compare(x.Link, y.Link) })
	return out[:min(len(out), maxUnusable)]
}

// run watches the links until ctx ends, and waits for the probes that it has begun.
func (m *linkMonitor) run(ctx context.Context) {
	var probes sync.WaitGroup
	defer m.closeAll()
	defer probes.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var next time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.kicks:
		case <-timer.C:
		}
		stalled := !next.IsZero() && time.Since(next) > stallTime
		if next = m.begin(ctx, &probes, stalled); next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(max(time.Until(next), time.Millisecond))
		}
	}
}

// begin starts the work that is due. It returns when the next work is due, or the zero
// time if none is. stalled means that begin is called late, because this process did
// not run.
func (m *linkMonitor) begin(ctx context.Context, probes *sync.WaitGroup, stalled bool) (next time.Time) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	// The link that waited longest comes first.
	links := slices.SortedFunc(maps.Values(m.links), func(a, b *monitoredLink) int {
		return cmp.Or(a.served.Compare(b.served), cmp.Compare(a.peer.uid, b.peer.uid))
	})
	for _, l := range links {
		usable := l.health.Usable()
		if stalled {
			l.health.Stalled(now)
		}
		if !l.testAt.IsZero() && !now.Before(l.testAt) {
			l.testAt = time.Time{}
			l.health.Suspect(now)
		}
		if l.health.HeartbeatDue(now) || l.health.Suspected() || !usable {
			l.health.Received(l.lastByte(now))
		}
		most := int(m.limiter.TokensAt(now))
		switch {
		case l.health.Unused():
			most = max(0, most-usedReserved)
		case !usable:
			most = max(0, most-probesReserved)
		}
		work, at := l.health.Next(now, most, rand.Float64)
		m.recordChange(l, usable)
		switch {
		case work.Heartbeat:
			m.beginHeartbeat(ctx, l, now, probes)
		case l.health.Suspected() || !l.health.Usable():
			m.beginEcho(ctx, l, now, probes)
		}
		for _, address := range work.Probes {
			m.limiter.AllowN(now, 1)
			l.served = now
			m.beginProbe(ctx, l, address, probes)
		}
		if !l.health.Watched() && l.session != nil {
			l.session.Close()
			l.session = nil
		}
		next = earliest(next, at, l.testAt)
	}
	return next
}

// earliest returns the earliest of the times that are not zero, or zero.
func earliest(times ...time.Time) (first time.Time) {
	for _, t := range times {
		if first.IsZero() || !t.IsZero() && t.Before(first) {
			first = t
		}
	}
	return first
}

// recordChange logs a link that has become usable or unusable. was says
// whether the link was usable before. The caller holds m.mu.
func (m *linkMonitor) recordChange(l *monitoredLink, was bool) {
	usable := l.health.Usable()
	if usable == was {
		return
	}
	if usable {
		m.log.Info("link is usable again", "link", l.peer.name)
	} else {
		m.log.Warn("no gateway of the link answers; refusing new connections to its mirrors",
			"link", l.peer.name, "gateways", l.peer.gateways, "error", l.failure)
	}
	m.changed.notifyAll()
}

// lastByte returns when the last byte arrived on one of the link's recent connections.
// It stops at the first connection with a byte within the last HeartbeatInterval.
func (l *monitoredLink) lastByte(now time.Time) time.Time {
	var last time.Time
	for i, c := range l.recent {
		if c == nil {
			continue
		}
		at, err := transport.LastByte(c, now)
		if err != nil {
			l.recent[i] = nil // it is closed
			continue
		}
		if at.After(last) {
			last = at
		}
		if now.Sub(last) < linkhealth.HeartbeatInterval {
			break
		}
	}
	return last
}

// beginHeartbeat makes one echo in the background. m.mu is held.
func (m *linkMonitor) beginHeartbeat(
	ctx context.Context, l *monitoredLink, now time.Time, probes *sync.WaitGroup,
) {
	session, p, address := l.session, l.peer, l.address
	l.session = nil // the heartbeat owns it
	if !slices.Contains(p.gateways, address) {
		address = p.gateways[0]
		if session != nil {
			session.Close()
			session = nil
		}
	}
	if session == nil && (now.Before(l.reopen) || !m.limiter.AllowN(now, 1)) {
		l.health.HeartbeatEnded(false, now)
		return
	}
	life := l.health.HeartbeatLife()
	probes.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, life)
		defer cancel()
		var r probe.Result
		if session != nil {
			if r = session.Echo(ctx, 0); r.Err != nil {
				session.Close()
				session = nil
			}
		}
		// The session may have failed because its agent did. A new session can reach
		// another agent.
		refused := false
		if session == nil && ctx.Err() == nil {
			session, r = m.open(ctx, p, address)
			refused = session == nil && !r.LastByte.IsZero()
		}
		m.heartbeatEnded(l, address, session, r, refused)
	})
}

// beginEcho makes one echo in the background if the session for heartbeats is open, and
// the last one was a while ago: new connections may fail while open ones still work. m.mu
// is held.
func (m *linkMonitor) beginEcho(
	ctx context.Context, l *monitoredLink, now time.Time, probes *sync.WaitGroup,
) {
	session := l.session
	if session == nil || now.Sub(l.echoed) < linkhealth.HeartbeatInterval {
		return
	}
	l.session, l.echoed = nil, now // the echo owns the session
	if !slices.Contains(l.peer.gateways, l.address) {
		session.Close()
		return
	}
	life := l.health.HeartbeatLife()
	probes.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, life)
		defer cancel()
		r := session.Echo(ctx, 0)
		m.mu.Lock()
		defer m.mu.Unlock()
		if r.Err != nil || l.gone || l.session != nil {
			session.Close()
		} else {
			l.session = session
		}
		if l.gone {
			return
		}
		usable := l.health.Usable()
		l.health.Received(r.LastByte)
		m.recordChange(l, usable)
		m.trigger()
	})
}

// heartbeatEnded takes in the result of a heartbeat. refused says that the far side has
// answered, and refused another session.
func (m *linkMonitor) heartbeatEnded(
	l *monitoredLink, address string, s heartbeatSession, r probe.Result, refused bool,
) {
	m.mu.Lock()
	defer m.mu.Unlock()
	usable := l.health.Usable()
	if s != nil {
		if l.session != nil {
			l.session.Close()
		}
		l.session, l.address = s, address
		l.health.Measured(r.Echo)
	}
	if l.gone {
		l.drop()
		return
	}
	if refused {
		l.reopen = time.Now().Add(reopenDelay + rand.N(reopenDelay))
	}
	l.health.Received(r.LastByte)
	l.health.HeartbeatEnded(failed(r), time.Now())
	m.recordChange(l, usable)
	m.trigger()
}

// beginProbe makes one probe in the background. m.mu is held.
func (m *linkMonitor) beginProbe(
	ctx context.Context, l *monitoredLink, address string, probes *sync.WaitGroup,
) {
	p, timeout := l.peer, l.health.AttemptTimeout()
	probes.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		r := m.probe(ctx, p, address)
		failure := ""
		if failed(r) {
			failure = probeErrorText(ctx, address, timeout, r)
		}
		m.probeEnded(l, address, r, failure)
	})
}

// probeEnded takes in the result of a probe. failure says why it failed.
func (m *linkMonitor) probeEnded(l *monitoredLink, address string, r probe.Result, failure string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l.gone {
		return
	}
	usable := l.health.Usable()
	if r.Connect > 0 && !r.LastByte.IsZero() {
		// Where a load balancer terminates TCP, only the handshake takes the whole path.
		l.health.Measured(max(r.Connect, r.Handshake))
	}
	if !r.LastByte.IsZero() {
		l.address = address
	}
	l.health.Received(r.LastByte)
	if r.Err != nil && isLocal(r.Err) {
		l.health.ProbeNotTried(address, time.Now())
	} else {
		l.health.ProbeEnded(address, failed(r))
		l.failure = cmp.Or(failure, l.failure)
	}
	m.recordChange(l, usable)
	m.trigger()
}

// failed reports whether a probe was tried and brought no byte.
func failed(r probe.Result) bool {
	return r.Err != nil && r.LastByte.IsZero() && !isLocal(r.Err)
}

// isLocal reports whether an error is this node's own, such as the lack of a descriptor
// or of a local port. It says nothing about a link.
func isLocal(err error) bool {
	var own *refusal // this node could not even try
	if errors.As(err, &own) || transport.IsTransient(err) {
		return true
	}
	for _, e := range []error{syscall.EADDRNOTAVAIL, syscall.EPERM, syscall.EACCES} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (m *linkMonitor) closeAll() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range m.links {
		l.drop()
	}
}

// trigger makes run look at once. It does not block.
func (m *linkMonitor) trigger() {
	select {
	case m.kicks <- struct{}{}:
	default:
	}
}
