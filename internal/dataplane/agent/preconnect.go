package agent

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/time/rate"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
)

const (
	// preconnectRate and preconnectBurst bound how fast the agent preconnects sessions
	// to one peer. preconnectJitter spreads them.
	preconnectRate   = 20 // a second
	preconnectBurst  = 4
	preconnectJitter = 200 * time.Millisecond
	// endpointRefreshAge is how old the known endpoints of a port in use may become.
	// Then the agent preconnects a session, whose answer brings newer ones.
	endpointRefreshAge = 3 * time.Second
)

// preconnect makes sessions for future calls like this one: a spare one, one with each
// endpoint that has none, and one whose answer refreshes the known endpoints when they
// are old.
func (a *Agent) preconnect(c *outboundConn) {
	if !a.shares.hasSpareBudget(c.peer.uid) {
		return // the rest of the budget is for calls
	}
	key := c.sessionKey()
	if c.mirror.affinity == 0 && c.mirror.hostname == "" {
		if a.endpointCache.needsRefresh(c.caller.account(), c.remotePort()) {
			a.startPreconnect(key, c, route.EndpointID{}, a.sessions.ReserveExtra)
		}
		for _, e := range a.sessions.Missing(key, a.endpoints(c)) {
			if !a.startPreconnect(key, c, e, a.sessions.ReserveExtra) {
				return
			}
		}
	}
	a.startPreconnect(key, c, route.EndpointID{}, a.sessions.Reserve)
}

// startPreconnect makes a session in the background, if begin and the peer's rate allow
// it.
func (a *Agent) startPreconnect(key sessionKey, c *outboundConn, at route.EndpointID, begin func(sessionKey, route.EndpointID) bool) bool {
	if !begin(key, at) {
		return false
	}
	if !a.preconnectLimiter(c.peer.uid).Allow() {
		a.sessions.Unreserve(key, at)
		return false
	}
	next := outboundConn{vip: c.vip, index: c.index, mirror: c.mirror, port: c.port, peer: c.peer, caller: c.caller}
	a.metrics.countSession(outbound, c.peer.name, sessionPreconnecting)
	go func() { // the pool's Close waits for it
		defer a.sessions.Unreserve(key, at)
		backoff.Sleep(a.acceptCtx, rand.N(preconnectJitter))
		err := context.Cause(a.acceptCtx)
		if err == nil {
			err = a.dialSession(key, next, at)
		}
		if err != nil {
			a.metrics.countSession(outbound, c.peer.name, sessionFailed)
			a.log.Debug("preconnect failed", "mirror", next.mirror.name, "error", err)
		}
	}()
	return true
}

// preconnectLimiter returns the limiter of preconnects to a peer.
func (a *Agent) preconnectLimiter(link string) *rate.Limiter {
	var limiter *rate.Limiter
	a.preconnectLimiters.update(link, func(was *rate.Limiter, _ time.Duration, there bool) (*rate.Limiter, bool) {
		if limiter = was; !there {
			limiter = rate.NewLimiter(preconnectRate, preconnectBurst)
		}
		return limiter, true
	})
	return limiter
}

// refreshCaller updates a call from the current state, with its caller's newest
// certificate.
func (a *Agent) refreshCaller(key sessionKey, c *outboundConn) error {
	s, err := a.current()
	if err == nil {
		err = c.checkCaller(s)
	}
	if err != nil {
		return err
	}
	c.peer = s.links[c.peer.name]
	if err := c.peer.checkNamespace(c.caller.namespace); err != nil {
		return err
	}
	var ok bool
	if c.credential, ok = a.svids.get(c.caller.account()); !ok || c.credential.Name().String() != key.caller {
		return fmt.Errorf("no certificate for %s", key.caller)
	}
	return nil
}

// dialSession makes a session, exchanges HELLO, and puts the session into the pool.
func (a *Agent) dialSession(key sessionKey, c outboundConn, at route.EndpointID) error {
	if err := a.refreshCaller(key, &c); err != nil {
		return err
	}
	raw, gateway, err := a.dialGatewayOnce(a.acceptCtx, c.peer)
	if err != nil {
		return err
	}
	conn, err := a.clientHandshake(a.acceptCtx, raw, &c, hintFor(&c, at))
	if err != nil {
		raw.Reset()
		return err
	}
	ctx, release := a.leases.grant(a.acceptCtx, a.state.Load, c.idleLease())
	defer release()
	helloCtx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if c.answer, err = conn.ExchangeHello(helloCtx, c.hello()); err != nil {
		raw.Reset()
		return err
	}
	a.recordHelloAnswer(&c)
	a.recordMiss(&c, at)
	a.metrics.countSession(outbound, c.peer.name, sessionPreconnected)
	a.putIdle(a.newSession(conn, gateway, &c))
	return nil
}
