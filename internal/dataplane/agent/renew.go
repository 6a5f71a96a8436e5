package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
	"github.com/causeway-mesh/causeway/internal/identity"
)

// An open exchange outlives the certificates that opened it. To renew it, the calling
// agent makes a second session, on which both agents prove themselves with newer
// certificates. The second session names the first by a value that only the two ends
// can compute (tunnel.SessionSecret). The lease of an outbound exchange finds out when
// the exchange is due. See docs/design/0021-open-connections.md.
const (
	// renewFrom and renewSpread are the share of a certificate's life after which an
	// exchange is due. A new certificate exists after about half of that life.
	renewFrom, renewSpread = 0.7, 0.1
	// renewJitter delays each session by up to this. Exchanges of the same key that
	// become due meanwhile share the session.
	renewJitter = time.Second
	// renewTimeout bounds one session, from the dial to the answer.
	renewTimeout = 15 * time.Second
	// renewPause is the shortest time between two attempts, and from the start of an
	// exchange to its first attempt. maxRenewPause is the longest time between two
	// attempts. The time between two attempts varies by 25 %.
	renewPause    = 5 * time.Second
	maxRenewPause = 15 * time.Minute
	// An attempt follows the previous one after 1/renewFraction of the time that is
	// left until the exchange ends.
	renewFraction = 8
	// maxRenewers bounds the concurrent sessions that renew exchanges. maxLinkRenewers
	// bounds those of one Link.
	maxRenewers     = 16
	maxLinkRenewers = 4
)

// What became of the renewal of an exchange, as a metric's label.
const (
	renewalDone    = "renewed"
	renewalFailed  = "failed"  // counted by the calling agent
	renewalUnknown = "unknown" // counted by the called agent: no session has this name and proof
)

// ends holds the certificates by which both ends of a session have proven who they are.
// It is immutable.
type ends struct {
	credential *identity.Credential // the caller's own
	verified   *verifiedPeer
}

// checkPeer returns the SPIFFE ID of the far end. It returns an error if a certificate
// of either end expired more than expiryGrace ago, or if the far end is no longer
// trusted.
func (e *ends) checkPeer(s *state, now time.Time) (identity.Name, error) {
	if until := e.credential.NotAfter(); now.After(until.Add(expiryGrace)) {
		return identity.Name{}, fmt.Errorf("%w: the caller's was valid until %s", transport.ErrNotRenewed,
			until.UTC().Format(time.RFC3339))
	}
	return e.verified.recheck(s, now)
}

// until is when the first of the two certificates ends.
func (e *ends) until() time.Time {
	if far := e.verified.proof.NotAfter(); far.Before(e.credential.NotAfter()) {
		return far
	}
	return e.credential.NotAfter()
}

// due returns the time at which a share of the life of one of the two certificates has
// passed, whichever is first.
func (e *ends) due(share float64) time.Time {
	near, far := e.nearDue(share), e.farDue(share)
	if far.Before(near) {
		return far
	}
	return near
}

func (e *ends) nearDue(share float64) time.Time {
	return moment(e.credential.NotBefore(), e.credential.NotAfter(), share)
}

func (e *ends) farDue(share float64) time.Time {
	return moment(e.verified.proof.NotBefore(), e.verified.proof.NotAfter(), share)
}

// moment is when a share of the time between two others has passed.
func moment(from, to time.Time, share float64) time.Time {
	return from.Add(time.Duration(share * float64(to.Sub(from))))
}

// nextRenewal returns when to try again after an attempt at now. This is when the
// certificates are due, but not before a fraction of the remaining time has passed.
// random is in [0, 1).
func nextRenewal(due, until, now time.Time, pause time.Duration, random float64) time.Time {
	left := until.Add(expiryGrace).Sub(now)
	wait := max(min(left/renewFraction, maxRenewPause), pause)
	again := now.Add(wait*3/4 + time.Duration(random*float64(wait)/2))
	if due.After(again) {
		return due
	}
	return again
}

// An openExchange is an outbound exchange as its lease sees it, or a session for requests.
type openExchange struct {
	call    *outboundConn
	session *clientSession
	ends    atomic.Pointer[ends]
	share   float64                // the exchange is due after this share of a certificate's life
	next    atomic.Int64           // when to renew it, in Unix nanoseconds, or the constant renewing
	failure atomic.Pointer[string] // why the last attempt has failed
	// begun is true once OPEN was answered. Then call and session.outbound do not change.
	begun, over atomic.Bool
}

// renewing is openExchange.next while it waits for a session, or is on one.
const renewing = int64(1<<63 - 1)

func newOpenExchange(c *outboundConn, s *clientSession, now time.Time, pause time.Duration) *openExchange {
	x := &openExchange{call: c, session: s, share: renewFrom + renewSpread*rand.Float64()}
	e := &ends{c.credential, c.verified}
	x.ends.Store(e)
	next := e.due(x.share)
	if first := now.Add(pause); next.Before(first) { // most exchanges are over by then
		next = first
	}
	x.next.Store(next.UnixNano())
	return x
}

// check returns an error if the exchange must end. Unlike the check of a new exchange,
// it ignores the mirror's ports and the identities that the catalog lists.
func (x *openExchange) check(s *state, now time.Time) error {
	if err := x.call.checkOpen(s); err != nil {
		return err
	}
	return x.checkEnds(s, now)
}

// checkEnds returns an error if one of the two ends is no longer authenticated.
func (x *openExchange) checkEnds(s *state, now time.Time) error {
	_, err := x.ends.Load().checkPeer(s, now)
	if why := x.failure.Load(); errors.Is(err, transport.ErrNotRenewed) && why != nil {
		err = fmt.Errorf("%w; the last attempt failed: %s", err, *why)
	}
	return err
}

// begin notes that OPEN was answered.
func (x *openExchange) begin() { x.begun.Store(true) }

// isDue reports whether the exchange must be renewed. After it has returned true, it
// returns false until plan is called.
func (x *openExchange) isDue(now time.Time) bool {
	next := x.next.Load()
	return now.UnixNano() >= next && x.begun.Load() && x.next.CompareAndSwap(next, renewing)
}

// renewed records the result of an attempt: the newer certificates of both ends, or why
// the attempt failed. If e is nil, the previous certificates stay.
func (x *openExchange) renewed(e *ends, err error) {
	if e != nil {
		x.ends.Store(e)
		x.failure.Store(nil)
	}
	if err != nil {
		why := err.Error()
		x.failure.Store(&why)
	}
}

// plan sets when to renew it next.
func (x *openExchange) plan(now time.Time, pause time.Duration) {
	e := x.ends.Load()
	x.next.Store(nextRenewal(e.due(x.share), e.until(), now, pause, rand.Float64()).UnixNano())
}

// gains reports whether a new session can extend the exchange. This is true if the
// caller has a newer certificate, or if the certificate of the far end is due.
func (x *openExchange) gains(as *identity.Credential, now time.Time) bool {
	e := x.ends.Load()
	return as.NotAfter().After(e.credential.NotAfter()) || !now.Before(e.farDue(x.share))
}

// grantOpen makes the lease of an exchange that a session is about to carry.
func (a *Agent) grantOpen(life context.Context, c *outboundConn, s *clientSession) (context.Context, func()) {
	x := newOpenExchange(c, s, time.Now(), a.renewals.pause)
	s.exchange = x
	ctx, release := a.leases.grant(life, a.state.Load, func(s *state) error {
		now := time.Now()
		err := x.check(s, now)
		if err == nil && x.isDue(now) {
			a.renewals.add(x)
		}
		return err
	})
	return ctx, func() { x.over.Store(true); release() }
}

// A renewalKey is what exchanges have in common that can share a session.
type renewalKey struct {
	session  sessionKey
	endpoint route.EndpointID
	far      identity.Name
}

func (x *openExchange) renewalKey() renewalKey {
	return renewalKey{x.session.key, x.session.Endpoint(), x.ends.Load().verified.name}
}

// A renewalBatch is exchanges that share a session.
type renewalBatch struct {
	key       renewalKey
	exchanges []*openExchange
}

// renewals holds the exchanges that are due and runs the goroutines that renew them.
// Make it with newRenewals, and end it with close.
type renewals struct {
	life          context.Context
	renew         func(context.Context, []*openExchange) // of one key
	pause, jitter time.Duration                          // renewPause, renewJitter

	mu      sync.Mutex                   // guards what follows
	open    map[renewalKey]*renewalBatch // batches that accept more exchanges
	queue   []*renewalBatch
	running map[string]int // sessions, by Link's UID
	workers int
	closed  bool
	wg      sync.WaitGroup
}

func newRenewals(life context.Context, renew func(context.Context, []*openExchange)) *renewals {
	return &renewals{
		life: life, renew: renew, pause: renewPause, jitter: renewJitter,
		open: make(map[renewalKey]*renewalBatch), running: make(map[string]int),
	}
}

// add has an exchange renewed soon, together with others of the same key. It does not
// wait.
func (r *renewals) add(x *openExchange) {
	key := x.renewalKey()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	b := r.open[key]
	if b == nil || len(b.exchanges) == tunnel.MaxRenewals {
		b = &renewalBatch{key: key}
		r.open[key], r.queue = b, append(r.queue, b)
	}
	b.exchanges = append(b.exchanges, x)
	if r.workers >= maxRenewers {
		return
	}
	if b := r.pick(); b != nil {
		r.workers++
		r.wg.Go(func() { r.work(b) })
	}
}

// work renews one batch after another until none may begin.
func (r *renewals) work(b *renewalBatch) {
	for b != nil {
		backoff.Sleep(r.life, time.Duration(rand.Float64()*float64(r.jitter)))
		r.renew(r.life, r.take(b))
		b = r.done(b)
	}
}

// pick takes the first batch out of the queue whose Link has room for another session.
// r.mu is held.
func (r *renewals) pick() *renewalBatch {
	for i, b := range r.queue {
		if link := b.key.session.port.link; r.running[link] < maxLinkRenewers {
			r.queue = append(r.queue[:i], r.queue[i+1:]...)
			r.running[link]++
			return b
		}
	}
	return nil
}

// take ends the time in which a batch takes exchanges, and returns them.
func (r *renewals) take(b *renewalBatch) []*openExchange {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.open[b.key] == b {
		delete(r.open, b.key)
	}
	return b.exchanges
}

// done counts a batch out, and returns the next one, or nil.
func (r *renewals) done(b *renewalBatch) *renewalBatch {
	r.mu.Lock()
	defer r.mu.Unlock()
	link := b.key.session.port.link
	if r.running[link]--; r.running[link] == 0 {
		delete(r.running, link)
	}
	next := r.pick()
	if next == nil {
		r.workers--
	}
	return next
}

// close takes no more exchanges, and waits for the goroutines, which end with the agent's
// life.
func (r *renewals) close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.wg.Wait()
}

// renew renews exchanges of one key, those that are still open, and plans the next time
// of each.
func (a *Agent) renew(life context.Context, all []*openExchange) {
	var open []*openExchange
	for _, x := range all {
		if !x.over.Load() {
			open = append(open, x)
		}
	}
	if len(open) == 0 || life.Err() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(life, renewTimeout)
	defer cancel()
	next, to, err := a.renewalCall(open[0])
	now := time.Now()
	var due []*openExchange
	for _, x := range open {
		switch {
		case err != nil || x.gains(next.credential, now):
			due = append(due, x)
		default:
			x.renewed(nil, errNoNewCertificate)
		}
	}
	if err == nil && len(due) > 0 {
		err = a.renewHandshake(ctx, next, to, due)
	}
	if err != nil {
		a.recordRenewalFailure(due, err)
	}
	for _, x := range open {
		x.plan(time.Now(), a.renewals.pause)
	}
}

var (
	errNoNewCertificate = errors.New("the caller has no newer certificate yet")
	errUnknownSession   = errors.New("the far agent does not know the connection")
)

// recordRenewalFailure counts exchanges whose renewal has failed. It warns once their
// certificates have expired.
func (a *Agent) recordRenewalFailure(all []*openExchange, err error) {
	level := slog.LevelDebug
	for _, x := range all {
		x.renewed(nil, err)
		a.metrics.renewal(outbound, renewalFailed)
		if time.Now().After(x.ends.Load().until()) {
			level = slog.LevelWarn
		}
	}
	c := all[0].call
	a.logLimited(level, "certificates of open connections not renewed, will retry", "mirror", c.mirror.name,
		"caller", all[0].session.key.caller, "peer", c.peer.name, "connections", len(all), "error", err)
}

// renewalCall returns a call with which to make a session to the far end of an open
// exchange, and the hint for the gateway. The far end must have the same SPIFFE ID as
// before, even if the catalog no longer lists that ID. The gateway that carries the
// exchange comes first in the list of gateways, because only that gateway routes to an
// endpoint that takes no new connections.
func (a *Agent) renewalCall(x *openExchange) (*outboundConn, route.Hint, error) {
	c, key := x.call, x.renewalKey()
	s, err := a.current()
	if err == nil {
		err = c.checkLink(s)
	}
	if err != nil {
		return nil, route.Hint{}, err
	}
	m := s.mirrors[c.vip]
	if !m.sameTarget(c.mirror) {
		return nil, route.Hint{}, fmt.Errorf("mirror %s has gone or stands for another Service", c.mirror.name)
	}
	port, ok := m.anyPort(c.index)
	if !ok {
		return nil, route.Hint{}, fmt.Errorf("mirror %s has no port", c.mirror.name)
	}
	as, ok := a.svids.get(c.caller.account())
	if !ok || as.Name() != c.credential.Name() {
		return nil, route.Hint{}, fmt.Errorf("no certificate for %s", c.credential.Name())
	}
	to := *m
	to.identities = []identity.Name{key.far}
	next := &outboundConn{mirror: &to, port: port, peer: s.links[c.peer.name].first(x.session.gateway), credential: as}
	if key.endpoint == (route.EndpointID{}) {
		return next, hintFor(next, key.endpoint), nil
	}
	return next, route.ForOpen(key.endpoint), nil
}

// first returns the peer with one of its gateway addresses as the first to dial, if it
// has that address.
func (p *peer) first(address string) *peer {
	i := slices.Index(p.gateways, address)
	if i < 0 {
		return p
	}
	out := *p
	out.gateways = slices.Concat([]string{address}, p.gateways[:i], p.gateways[i+1:])
	out.healthy = 1
	return &out
}

// anyPort returns the mirror's port behind a listener. Without one it returns another
// port, because all lead to the same endpoints.
func (m *mirror) anyPort(index int) (port mirrorPort, ok bool) {
	if port, ok = m.ports[index]; ok {
		return port, true
	}
	for _, port = range m.ports {
		return port, true
	}
	return mirrorPort{}, false
}

// renewHandshake makes a session for exchanges of one key, and takes in what both ends
// prove on it. It counts those that are renewed or not known to the far agent. With an
// error it has renewed none.
func (a *Agent) renewHandshake(ctx context.Context, next *outboundConn, to route.Hint, all []*openExchange) error {
	raw, _, err := a.dialGatewayOnce(ctx, next.peer)
	if err != nil {
		return err
	}
	conn, err := a.clientHandshake(ctx, raw, next, to)
	if err != nil {
		raw.Reset()
		return err
	}
	newer, err := secretOf(conn)
	if err != nil {
		raw.Reset()
		return err
	}
	secrets, names := make([]tunnel.SessionSecret, len(all)), make([]tunnel.Renewal, len(all))
	for i, x := range all {
		if secrets[i], err = secretOf(x.session.conn); err != nil {
			raw.Reset()
			return err
		}
		names[i] = tunnel.Renewal{Name: secrets[i].Name(), Proof: secrets[i].ClientProof(&newer)}
	}
	proofs, err := conn.Renew(ctx, names)
	if err != nil {
		raw.Reset()
		return fmt.Errorf("renew %d connections to %s: %w", len(all), next.mirror.name, err)
	}
	raw.FailSlowWrites() // close_notify fits, or the far side reads nothing
	conn.Close()
	var unknown []*openExchange
	for i, x := range all {
		if proofs[i].Equal(secrets[i].ServerProof(&newer)) {
			x.renewed(&ends{next.credential, next.verified}, nil)
			a.metrics.renewal(outbound, renewalDone)
		} else {
			unknown = append(unknown, x)
		}
	}
	if len(unknown) > 0 {
		a.recordRenewalFailure(unknown, errUnknownSession)
	}
	return nil
}

// secretOf returns the secret of a session. It does not wait for its reader or writer.
func secretOf(conn *tunnel.Conn) (tunnel.SessionSecret, error) {
	t, ok := conn.Conn.(*tls.Conn)
	if !ok {
		return tunnel.SessionSecret{}, fmt.Errorf("a session over %T has no secret", conn.Conn)
	}
	return tunnel.NewSessionSecret(t.ConnectionState())
}

// errRenewal says that a session has renewed others, and is over.
var errRenewal = errors.New("the session has renewed others")

// serveRenewal answers RENEW, by which the caller of a session renews older sessions of
// its own. It returns errRenewal once it has answered.
//
// A renewal only replaces the certificates of the caller. The lease of each exchange
// decides whether the exchange may stay open.
func (a *Agent) serveRenewal(conn *tunnel.Conn, in *inboundConn) error {
	asked, err := conn.ReadRenew()
	if err != nil {
		return refuse(reasonTunnel, err)
	}
	if !a.rates.renewals.Allow(in.header.Link) {
		in.refusalSent = tunnel.WriteRenewAnswer(conn, tunnel.Code_OVERLOADED, nil) == nil
		return refuse(reasonRenewalRate, fmt.Errorf("link %s renews too often", in.header.Link))
	}
	proofs := make([]tunnel.SessionProof, len(asked))
	for i, r := range asked {
		outcome := renewalUnknown
		if old := a.inboundConns.find(r.Name); old != nil && old.renewedBy(in, r.Proof) {
			outcome, proofs[i] = renewalDone, old.secret.ServerProof(&in.secret)
		}
		a.metrics.renewal(inbound, outcome)
	}
	if err := tunnel.WriteRenewAnswer(conn, tunnel.Code_OK, proofs); err != nil {
		return refuse(reasonTunnel, err)
	}
	return errRenewal
}

// renewedBy takes over the caller's certificate from a newer session. It does so only
// if both sessions have the same ends and Link, and proof shows that the client of the
// newer session is the client of this one. It reports whether it did.
func (in *inboundConn) renewedBy(newer *inboundConn, proof tunnel.SessionProof) bool {
	if in.caller != newer.caller || in.header.Link != newer.header.Link ||
		in.server.Name() != newer.server.Name() || !proof.Equal(in.secret.ClientProof(&newer.secret)) {
		return false
	}
	for {
		was, now := in.verified.Load(), newer.verified.Load()
		if !now.proof.NotAfter().After(was.proof.NotAfter()) || in.verified.CompareAndSwap(was, now) {
			return true
		}
	}
}
