package agent

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/canary"
	"github.com/causeway-mesh/causeway/internal/vipguard"
)

const (
	// refuseInterval is the time between two refreshes of what vip-guard refuses. It
	// keeps each entry for 5 s.
	refuseInterval = 2 * time.Second
	// refusePause is the shortest time between two lists, because each one is a
	// transaction of nftables.
	refusePause = 100 * time.Millisecond
	// blockBits is the number of address bits of the largest block of virtual IPs that
	// the controller gives to one link.
	blockBits = 8
)

// refuseVIPs makes vip-guard refuse new connections to the mirrors of unusable links.
// It blocks until ctx ends. refuse replaces the list of refused prefixes.
func (a *Agent) refuseVIPs(ctx context.Context, refuse func([]netip.Prefix) error) {
	var refused []netip.Prefix
	var sent time.Time
	failing := false
	for {
		changed := a.monitor.changed.wait() // before asking, so that no change is missed
		was := refused
		refused = nil
		if s, unusable := a.state.Load(), a.monitor.unusable(); s != nil && len(unusable) > 0 {
			refused = s.refusedVIPs(unusable)
		}
		stale := time.Since(sent) >= refuseInterval
		if !slices.Equal(refused, was) || failing || len(refused) > 0 && stale {
			sent = time.Now()
			err := refuse(refused)
			if err != nil && !failing {
				a.log.Warn("cannot refuse virtual IPs of unusable links through vip-guard, will retry",
					"error", err)
			}
			failing = err != nil
			if !backoff.Sleep(ctx, refusePause) {
				return
			}
		}
		var refresh <-chan time.Time
		if len(refused) > 0 || failing {
			refresh = time.After(refuseInterval)
		}
		select {
		case <-changed:
		case <-refresh:
		case <-ctx.Done():
			return
		}
	}
}

// refusedVIPs returns prefixes that contain the VIPs of all mirrors without a backend of
// a usable link, and of no other mirror. unusable contains names of links. At most
// vipguard.MaxRefused prefixes are returned; further VIPs are not refused.
func (s *state) refusedVIPs(unusable map[string]bool) []netip.Prefix {
	var refused, usable []netip.Addr
	for addr, m := range s.mirrors {
		if m != nil && !s.hasUsableBackend(m, unusable) {
			refused = append(refused, addr)
		} else {
			usable = append(usable, addr)
		}
	}
	for _, cidr := range s.vips {
		usable = append(usable, canary.Address(cidr))
	}
	out := cover(s.vips, refused, usable)
	return out[:min(len(out), vipguard.MaxRefused)]
}

// hasUsableBackend reports whether the link of a mirror, or of a backend of its routes,
// is not among unusable.
func (s *state) hasUsableBackend(m *mirror, unusable map[string]bool) bool {
	if !unusable[m.link] {
		return true
	}
	return slices.ContainsFunc(m.routedTo, func(to mirrorRef) bool {
		b, _, ok := s.frontend(to.namespace, to.name)
		return ok && !unusable[b.link]
	})
}

// cover returns prefixes within cidrs that contain all of refused and none of usable.
// VIPs are assigned to links in blocks, so few prefixes are enough. No prefix is larger
// than the largest block, so none contains a block that is later assigned to another
// link.
func cover(cidrs []netip.Prefix, refused, usable []netip.Addr) []netip.Prefix {
	slices.SortFunc(refused, netip.Addr.Compare)
	slices.SortFunc(usable, netip.Addr.Compare)
	var out []netip.Prefix
	for _, addr := range refused {
		if len(out) > 0 && out[len(out)-1].Contains(addr) {
			continue
		}
		i := slices.IndexFunc(cidrs, func(c netip.Prefix) bool { return c.Contains(addr) })
		if i < 0 {
			continue
		}
		for bits := max(cidrs[i].Bits(), addr.BitLen()-blockBits); bits <= addr.BitLen(); bits++ {
			if p := netip.PrefixFrom(addr, bits).Masked(); !containsAny(p, usable) {
				out = append(out, p)
				break
			}
		}
	}
	return out
}

// containsAny reports whether a prefix holds one of addrs, which are sorted.
func containsAny(p netip.Prefix, addrs []netip.Addr) bool {
	i, _ := slices.BinarySearchFunc(addrs, p.Addr(), func(a, b netip.Addr) int {
		return cmp.Compare(a.Compare(b), 0)
	})
	return i < len(addrs) && p.Contains(addrs[i])
}
