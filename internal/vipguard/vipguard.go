// Package vipguard keeps a node's VIP ranges local, guarded and refusing, and
// holds the listening sockets that callers of mirrors connect to.
//
//	own agent, older guards ──SCM_RIGHTS──▶ guard ──SCM_RIGHTS──▶ agent, newer guard
//	                              bind what nobody holds │
//	   netlink: read ─▶ Plan ─▶ apply ◀── watch, resync  └─ no agent for 10 s: shut
//
// What always holds:
//   - A range is local only while the ruleset guards it and an unreachable route
//     lies beneath; all three outlive the process, and only Clean removes them.
//   - On VIPs the ports 4200 to 4231 answer and nothing else; those ports answer
//     on VIPs and nowhere else.
//   - Nothing is written when nothing changed.
//   - A listener is never closed while another process serves it, and never
//     shared by SO_REUSEPORT; its port stays taken while it is shut down.
//   - Of several guards on a node one is in charge: the newest whose agent
//     accepts connections, else the oldest.
//   - Descriptors go only to peers whose uid the kernel vouches for.
package vipguard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// Names of the unix sockets in the pod's directory.
const (
	guardSocket = "guard.sock"
	agentSocket = "agent.sock"
	// guardsFolder is a directory in the node's directory. It has a socket for each
	// running guard.
	guardsFolder = "guards"
	// AgentFolder is a directory in the node's directory, where agents save their
	// state.
	AgentFolder = "agent"
)

// guardUID is the user that guards run as.
const guardUID = 0

// Options configure a guard.
type Options struct {
	// PodDir is a directory that this pod's guard and agent share (an emptyDir).
	PodDir string
	// NodeDir is a directory of the node that only root can read (a hostPath,
	// /run/causeway). Run creates it if it is missing.
	NodeDir string
	// NodeIP is the node's own address, where the hop listener is bound.
	NodeIP netip.Addr
	// AgentUID and AgentGID are the user and the group of the agent. The guard must be
	// in the group too.
	AgentUID, AgentGID int
	// CIDRs are the VIP ranges, at most one of each IP family in practice.
	CIDRs []netip.Prefix
	// ReservedCIDRs are ranges that have no routes but must not overlap VIPs: the
	// cluster's pod and Service ranges.
	ReservedCIDRs []netip.Prefix
	// Grace is how long callers wait for an agent before they are refused; 0: 10 s.
	Grace time.Duration
	// Resync is the interval of reconciles without a notification; 0: 30 s.
	Resync time.Duration
	// Log receives what an operator may need to act on; nil: slog.Default.
	Log *slog.Logger
}

func (o Options) withDefaults() (Options, error) {
	if o.Grace == 0 {
		o.Grace = 10 * time.Second
	}
	if o.Resync == 0 {
		o.Resync = 30 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	o.CIDRs = sorted(o.CIDRs)
	switch {
	case o.PodDir == "" || o.NodeDir == "":
		return o, errors.New("vip-guard needs the folders of its pod and its node")
	case !o.NodeIP.IsValid() || o.NodeIP.IsUnspecified() || o.NodeIP.Is4In6():
		return o, fmt.Errorf("vip-guard needs the node's own address, not %v", o.NodeIP)
	case len(o.CIDRs) == 0:
		return o, errors.New("vip-guard needs a VIP range, such as 240.64.0.0/12")
	}
	for i, c := range o.CIDRs {
		if !c.IsValid() || c != c.Masked() || c.Bits() == 0 || c.Addr().Is4In6() {
			return o, fmt.Errorf("VIP range %v is not a range such as 240.64.0.0/12", c)
		}
		if i > 0 && o.CIDRs[i-1].Overlaps(c) {
			return o, fmt.Errorf("VIP ranges %v and %v overlap", o.CIDRs[i-1], c)
		}
	}
	return o, nil
}

// claims returns the ReservedCIDRs as claims.
func (o Options) claims() []Claim {
	var claims []Claim
	for _, c := range o.ReservedCIDRs {
		claims = append(claims, Claim{What: "pod or Service range", CIDR: c})
	}
	return claims
}

// Run maintains routes, rules and listeners until ctx ends, and then returns nil. If
// another program uses a range, it returns an error wrapping ErrOverlap and leaves the
// node unchanged. It returns other errors if another process has a port or the kernel
// cannot be watched. The process must run as uid 0 with NET_ADMIN in the node's network
// namespace.
func Run(ctx context.Context, o Options) error {
	o, err := o.withDefaults()
	if err != nil {
		return err
	}
	return run(ctx, o, system{o.CIDRs, bridgeSysctl})
}

func run(ctx context.Context, o Options, k kernel) error {
	watch, err := newWatcher(o.CIDRs)
	if err != nil {
		return err
	}
	defer watch.close()
	routes := newRoutes(o, k)
	if err := routes.install(); err != nil {
		return err
	}
	held, older, err := collectListeners(ctx, o)
	if err != nil {
		return err
	}
	defer held.close()
	g := &guard{
		log:        o.Log,
		sockets:    held,
		older:      older,
		routes:     routes,
		refusals:   rate.NewLimiter(refuseRate, refuseBurst),
		refusalLog: rate.NewLimiter(rate.Every(10*time.Second), 5),
	}
	defer g.closeOlder()
	present := presence{older: len(older)}
	routes.setInCharge(present.inCharge())
	routes.repair()
	g.supervisor = &supervisor{
		gate: held, grace: o.Grace, log: o.Log, updates: make(chan func(*presence)),
		onChange: g.onPresence, onMove: g.recordGateError,
	}
	if err := openAgentFolder(filepath.Join(o.NodeDir, AgentFolder), o.AgentGID); err != nil {
		o.Log.Warn("the agent has no folder to keep its state in: it cannot restart without a controller", "error", err)
	}
	agents, err := newServer(filepath.Join(o.PodDir, guardSocket), o.AgentGID, []int{o.AgentUID, guardUID}, o.Log)
	if err != nil {
		return fmt.Errorf("serve the agent: %w", err)
	}
	defer agents.close()
	guards, err := newServer(filepath.Join(o.NodeDir, guardsFolder, guardName(time.Now())), -1, []int{guardUID}, o.Log)
	if err != nil {
		return fmt.Errorf("serve newer guards: %w", err)
	}
	defer guards.close()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return watch.run(ctx, routes.requestSync) })
	group.Go(func() error { routes.run(ctx, o.Resync); return nil })
	group.Go(func() error { g.supervisor.run(ctx, present); return nil })
	group.Go(func() error {
		return agents.run(ctx, func(p *peer, m message) { g.serveAgent(ctx, p, m, o.AgentUID) })
	})
	group.Go(func() error { return guards.run(ctx, func(p *peer, m message) { g.serveGuard(ctx, p, m) }) })
	for _, p := range older {
		group.Go(func() error { g.followOlder(ctx, p); return nil })
	}
	return group.Wait()
}

// openAgentFolder makes a directory of root that the agent's group can write. The guard
// only needs to be in the group for that.
func openAgentFolder(folder string, gid int) error {
	if err := os.MkdirAll(folder, 0o770); err != nil {
		return fmt.Errorf("make the agents' folder: %w", err)
	}
	if err := os.Chown(folder, -1, gid); err != nil {
		return fmt.Errorf("give the agents' folder to their group: %w", err)
	}
	if err := os.Chmod(folder, 0o770); err != nil {
		return fmt.Errorf("open the agents' folder to their group: %w", err)
	}
	return nil
}

// guardName returns a name that sorts by age.
func guardName(now time.Time) string { return fmt.Sprintf("%020d.sock", now.UnixNano()) }

// collectListeners takes the listeners from our own agent and then from older guards,
// and binds the missing ones. The connections to older guards stay open.
func collectListeners(ctx context.Context, o Options) (sockets, []*peer, error) {
	wanted := endpoints(o.NodeIP, o.CIDRs)
	held := sockets{}
	if p, err := dialPeer(ctx, filepath.Join(o.PodDir, agentSocket), o.AgentUID); err == nil {
		adoptFrom(held, wanted, p, o.Log)
		p.Close()
	}
	older, err := dialOlder(ctx, filepath.Join(o.NodeDir, guardsFolder))
	for _, p := range older {
		adoptFrom(held, wanted, p, o.Log)
	}
	for _, e := range wanted {
		if _, have := held[e.name]; have || err != nil {
			continue
		}
		var fd int
		if fd, err = bind(e); err == nil {
			held[e.name] = fd
		}
	}
	if err != nil {
		held.close()
		for _, p := range older {
			p.Close()
		}
		return nil, nil, err
	}
	return held, older, nil
}

// adoptFrom adds the listeners of p that are missing. Those that p does not have are
// bound later.
func adoptFrom(held sockets, wanted []endpoint, p *peer, log *slog.Logger) {
	given, err := requestListeners(p)
	if err != nil {
		log.Warn("no listeners taken over", "from", p.RemoteAddr(), "error", err)
		return
	}
	held.adopt(given, wanted)
}

// dialOlder connects to every running guard of the node, the newest first, and removes
// the sockets of dead ones.
func dialOlder(ctx context.Context, folder string) ([]*peer, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, fmt.Errorf("make the guards' folder: %w", err)
	}
	if err := os.Chmod(folder, 0o700); err != nil {
		return nil, fmt.Errorf("close the guards' folder to others: %w", err)
	}
	paths, err := filepath.Glob(filepath.Join(folder, "*.sock"))
	if err != nil {
		return nil, err
	}
	slices.Sort(paths)
	slices.Reverse(paths)
	var older []*peer
	for _, path := range paths {
		p, err := dialPeer(ctx, path, guardUID)
		switch {
		case err == nil:
			older = append(older, p)
		case errors.Is(err, unix.ECONNREFUSED):
			os.Remove(path)
		}
	}
	return older, nil
}
