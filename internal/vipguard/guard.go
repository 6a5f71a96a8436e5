package vipguard

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// guard connects the listeners, the routes and the peers that request listeners.
type guard struct {
	log        *slog.Logger
	sockets    sockets
	older      []*peer
	routes     *routes
	supervisor *supervisor

	mu sync.Mutex // guards what follows
	// reported is the readiness of our agent that older guards last received.
	reported bool
	gateErr  error
	// refuseErr is what was wrong with the last list of refused VIPs, so that it is
	// logged once.
	refuseErr string
	// refusals bounds the lists of a compromised agent, because each is a transaction of
	// nftables. refusalLog bounds what they make the guard log.
	refusals, refusalLog *rate.Limiter
}

// onPresence is called by the supervisor with each new presence.
func (g *guard) onPresence(p presence) {
	g.routes.setInCharge(p.inCharge())
	g.mu.Lock()
	defer g.mu.Unlock()
	if ready := p.agents > 0; ready != g.reported {
		g.reported = ready
		notice := message{Type: msgAway}
		if ready {
			notice.Type = msgReady
		}
		for _, o := range g.older {
			o.send(notice) // fails only if that guard has ended, which followOlder detects
		}
	}
}

func (g *guard) recordGateError(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.gateErr = err
}

// check returns nil if the routes, the rules and the listeners are as wanted.
func (g *guard) check() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return errors.Join(g.routes.check(), g.gateErr)
}

// Lists of refused prefixes that a guard takes, per second and at once. An agent sends at
// most 10 per second.
const refuseRate, refuseBurst = 20, 40

// refuse refuses new connections to these prefixes and to no others, if this guard is in
// charge. A list that does not lie within the VIP ranges changes nothing.
func (g *guard) refuse(prefixes []netip.Prefix) {
	if !g.routes.isInCharge() || !g.refusals.Allow() {
		return // an agent repeats its list after 2 s
	}
	families, err := refusedSpans(g.routes.want.Local, prefixes)
	if err == nil {
		err = g.routes.kernel.refuse(families)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != "" && text != g.refuseErr && g.refusalLog.Allow() {
		g.log.Warn("virtual IPs of unusable links are not refused", "error", err)
	}
	g.refuseErr = text
}

// serveAgent serves the pod's socket, to which our agent and probes connect.
func (g *guard) serveAgent(ctx context.Context, p *peer, first message, agentUID int) {
	switch first.Type {
	case msgProbe:
		var text string
		if err := g.check(); err != nil {
			text = err.Error()
		}
		p.send(message{Type: msgAnswer, Error: clip(text)})
		return
	case msgTake:
		if p.uid != agentUID {
			g.log.Warn("refused listeners to who is not the agent", "uid", p.uid, "want", agentUID)
			return
		}
		if err := handOff(p, g.sockets); err != nil {
			g.log.Warn("listeners not given to the agent", "error", err)
			return
		}
	case msgHere:
	default:
		return
	}
	refuse := g.refuse
	if p.uid != agentUID {
		refuse = nil
	}
	watchReadiness(p, g.count(ctx, func(p *presence) *int { return &p.agents }), refuse)
}

// serveGuard hands our listeners to a newer guard.
func (g *guard) serveGuard(ctx context.Context, p *peer, first message) {
	if first.Type != msgTake {
		return
	}
	if err := handOff(p, g.sockets); err != nil {
		g.log.Warn("listeners not given to a newer guard", "error", err)
		return
	}
	watchReadiness(p, g.count(ctx, func(p *presence) *int { return &p.newer }), nil)
}

// count returns a function that adds one peer to the presence, or removes it, once
// each.
func (g *guard) count(ctx context.Context, field func(*presence) *int) func(bool) {
	counted := false
	return func(ready bool) {
		if ready == counted {
			return
		}
		counted = ready
		g.supervisor.update(ctx, func(p *presence) {
			if ready {
				*field(p)++
			} else {
				*field(p)--
			}
		})
	}
}

// followOlder waits for an older guard to end.
func (g *guard) followOlder(ctx context.Context, p *peer) {
	stop := context.AfterFunc(ctx, func() { p.Close() })
	defer stop()
	awaitClose(p)
	g.supervisor.update(ctx, func(p *presence) { p.older-- })
}

// closeOlder closes the connections to older guards.
func (g *guard) closeOlder() {
	for _, p := range g.older {
		p.Close()
	}
}

// clip truncates an error to the limit of a message.
func clip(text string) string {
	const limit = 512
	if len(text) <= limit {
		return text
	}
	return text[:limit]
}

// routes keeps the node's routes and rules as wanted.
type routes struct {
	kernel       kernel
	want         State
	opts         Options
	syncRequests chan struct{}

	mu       sync.Mutex // guards what follows
	inCharge bool
	err      error
}

func newRoutes(o Options, k kernel) *routes {
	return &routes{kernel: k, want: Want(o.CIDRs, k.bridged()), opts: o, syncRequests: make(chan struct{}, 1)}
}

// install returns an error if a range is in use. Otherwise it adds the unreachable
// routes, which are correct no matter which guard is in charge.
func (r *routes) install() error {
	have, claims, err := r.kernel.read()
	if err != nil {
		return err
	}
	if err := Overlaps(r.want.Local, append(claims, r.opts.claims()...)); err != nil {
		return err
	}
	for _, c := range Plan(r.want, have) {
		if c.Part != PartUnreachable {
			continue
		}
		if err := r.kernel.apply(c); err != nil {
			return err
		}
	}
	return nil
}

// requestSync requests a reconcile. It does not block.
func (r *routes) requestSync() {
	select {
	case r.syncRequests <- struct{}{}:
	default:
	}
}

// setInCharge sets whether this guard may write.
func (r *routes) setInCharge(yes bool) {
	r.mu.Lock()
	changed := r.inCharge != yes
	r.inCharge = yes
	r.mu.Unlock()
	if changed {
		r.requestSync()
	}
}

// isInCharge says whether we may write.
func (r *routes) isInCharge() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.inCharge
}

// check returns nil if everything was as wanted at the last reconcile.
func (r *routes) check() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// run reconciles at every request and every resync until ctx ends. If another program
// keeps undoing the changes, run repairs them at once a few times and then once a
// second.
func (r *routes) run(ctx context.Context, resync time.Duration) {
	ticker := time.NewTicker(resync)
	defer ticker.Stop()
	limit := rate.NewLimiter(rate.Every(time.Second), 10)
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.syncRequests:
		case <-ticker.C:
		}
		if r.repair() && limit.Wait(ctx) != nil {
			return
		}
	}
}

// repair reconciles once, and stores and logs what is wrong.
func (r *routes) repair() (wrote bool) {
	wrote, err := r.reconcile()
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil && (r.err == nil || r.err.Error() != err.Error()) {
		r.opts.Log.Error("VIP range not guarded", "error", err)
	}
	r.err = err
	return wrote
}

// errNotInCharge is the state while an older guard is in charge and has other ranges or
// rules than ours.
var errNotInCharge = errors.New("another vip-guard of this node is in charge, and keeps other routes or rules")

// reconcile compares the node with the wanted state. If this guard is in charge, it
// applies the difference.
func (r *routes) reconcile() (wrote bool, err error) {
	have, claims, err := r.kernel.read()
	if err != nil {
		return false, err
	}
	r.mu.Lock()
	inCharge := r.inCharge
	r.mu.Unlock()
	plan := Plan(Want(r.opts.CIDRs, r.kernel.bridged()), have)
	if len(plan) > 0 && !inCharge {
		return false, errNotInCharge
	}
	for _, c := range plan {
		if err := r.kernel.apply(c); err != nil {
			return true, err
		}
		r.opts.Log.Info("mended the node", "change", c.String())
	}
	return len(plan) > 0, Overlaps(r.want.Local, append(claims, r.opts.claims()...))
}
