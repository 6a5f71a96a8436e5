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

// guard joins listeners, routes and those who come for them.
type guard struct {
	log     *slog.Logger
	sockets sockets
	older   []*peer
	routes  *routes
	keeper  *keeper

	mu sync.Mutex // guards what follows
	// told is what older guards were last told about our agent.
	told    bool
	gateErr error
	// refuseErr is what was wrong with the last list of refused VIPs, so that it is logged
	// once.
	refuseErr string
}

// changed hears a new presence from the keeper.
func (g *guard) changed(p presence) {
	g.routes.setInCharge(p.inCharge())
	g.mu.Lock()
	defer g.mu.Unlock()
	if ready := p.agents > 0; ready != g.told {
		g.told = ready
		say := message{Type: msgAway}
		if ready {
			say.Type = msgReady
		}
		for _, o := range g.older {
			o.send(say) // whoever cannot be told is gone, which followOlder hears
		}
	}
}

func (g *guard) gateFailed(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.gateErr = err
}

// state is nil if routes and rule stand and the listeners obey.
func (g *guard) state() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return errors.Join(g.routes.state(), g.gateErr)
}

// refuse refuses new connections to these prefixes and to no others, if this guard is in
// charge. A list that does not lie within the VIP ranges changes nothing.
func (g *guard) refuse(prefixes []netip.Prefix) {
	if !g.routes.isInCharge() {
		return
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
	if text != "" && text != g.refuseErr {
		g.log.Warn("virtual IPs of unusable links are not refused", "error", err)
	}
	g.refuseErr = text
}

// serveAgent answers on the pod's socket: our agent, or a probe.
func (g *guard) serveAgent(ctx context.Context, p *peer, first message, agentUID int) {
	switch first.Type {
	case msgProbe:
		var words string
		if err := g.state(); err != nil {
			words = err.Error()
		}
		p.send(message{Type: msgAnswer, Error: clip(words)})
		return
	case msgTake:
		if p.uid != agentUID {
			g.log.Warn("refused listeners to who is not the agent", "uid", p.uid, "want", agentUID)
			return
		}
		if err := give(p, g.sockets); err != nil {
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
	follow(p, g.count(ctx, func(p *presence) *int { return &p.agents }), refuse)
}

// serveGuard gives a newer guard what we hold.
func (g *guard) serveGuard(ctx context.Context, p *peer, first message) {
	if first.Type != msgTake {
		return
	}
	if err := give(p, g.sockets); err != nil {
		g.log.Warn("listeners not given to a newer guard", "error", err)
		return
	}
	follow(p, g.count(ctx, func(p *presence) *int { return &p.newer }), nil)
}

// count returns a function that counts one peer in or out, once each.
func (g *guard) count(ctx context.Context, field func(*presence) *int) func(bool) {
	counted := false
	return func(ready bool) {
		if ready == counted {
			return
		}
		counted = ready
		g.keeper.update(ctx, func(p *presence) {
			if ready {
				*field(p)++
			} else {
				*field(p)--
			}
		})
	}
}

// followOlder waits for an older guard to leave.
func (g *guard) followOlder(ctx context.Context, p *peer) {
	stop := context.AfterFunc(ctx, func() { p.Close() })
	defer stop()
	waitGone(p)
	g.keeper.update(ctx, func(p *presence) { p.older-- })
}

// leave closes the connections to older guards.
func (g *guard) leave() {
	for _, p := range g.older {
		p.Close()
	}
}

// clip keeps an error short enough for a message.
func clip(words string) string {
	const limit = 512
	if len(words) <= limit {
		return words
	}
	return words[:limit]
}

// routes keeps the node's routes and rule as they should be.
type routes struct {
	kernel kernel
	want   State
	opts   Options
	kicks  chan struct{}

	mu       sync.Mutex // guards what follows
	inCharge bool
	err      error
}

func newRoutes(o Options, k kernel) *routes {
	return &routes{kernel: k, want: Want(o.CIDRs, k.bridged()), opts: o, kicks: make(chan struct{}, 1)}
}

// begin refuses a range that is in use, and else puts the unreachable routes:
// they are right whoever is in charge.
func (r *routes) begin() error {
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

// kick asks for a look at once. It does not block.
func (r *routes) kick() {
	select {
	case r.kicks <- struct{}{}:
	default:
	}
}

// setInCharge says whether we may write.
func (r *routes) setInCharge(yes bool) {
	r.mu.Lock()
	changed := r.inCharge != yes
	r.inCharge = yes
	r.mu.Unlock()
	if changed {
		r.kick()
	}
}

// isInCharge says whether we may write.
func (r *routes) isInCharge() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.inCharge
}

// state is nil if all stood as wanted at the last look.
func (r *routes) state() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// run looks again at every kick and every resync until ctx ends. A program that
// fights us is answered at once a few times, then once a second.
func (r *routes) run(ctx context.Context, resync time.Duration) {
	ticker := time.NewTicker(resync)
	defer ticker.Stop()
	limit := rate.NewLimiter(rate.Every(time.Second), 10)
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.kicks:
		case <-ticker.C:
		}
		if r.mend() && limit.Wait(ctx) != nil {
			return
		}
	}
}

// mend looks once, and remembers and logs what is wrong.
func (r *routes) mend() (wrote bool) {
	wrote, err := r.look()
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil && (r.err == nil || r.err.Error() != err.Error()) {
		r.opts.Log.Error("VIP range not guarded", "error", err)
	}
	r.err = err
	return wrote
}

// errNotInCharge is the state while an older guard still rules over another
// range or rule than ours.
var errNotInCharge = errors.New("another vip-guard of this node is in charge, and keeps other routes or rules")

// look compares the node with what is wanted and, if we are in charge, mends it.
func (r *routes) look() (wrote bool, err error) {
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
