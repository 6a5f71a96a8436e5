package link

import (
	"net/netip"
	"slices"
)

// Why an address is not used: a closed list. Unknown is not a refusal: it is not known
// yet whether the address is this cluster's own.
const (
	Unknown       = "?"
	badAddress    = "it is not the address of a host"
	badLoopback   = "it is this machine's own (loopback)"
	badLinkLocal  = "it is link-local, where clouds keep their metadata"
	badMulticast  = "it is a multicast address"
	badReserved   = "it is a reserved address"
	badOwn        = "this cluster uses it itself: list it in spec.gatewayCIDRs if it is the peer's too"
	badNotAllowed = "spec.gatewayCIDRs does not contain it"
)

// Filter decides which discovered addresses may be dialed. The zero value knows no
// addresses of this cluster.
type Filter struct {
	// Ranges are this cluster's own: of virtual IPs, pods and Services.
	Ranges []netip.Prefix
	// Own says of each candidate whether this cluster uses it: pods, Services, nodes,
	// the API server, its own gateways.
	Own map[netip.Addr]bool
	// Allow holds the Link's gatewayCIDRs: an address outside them is not used, and one
	// inside them is used even if this cluster uses it too, because networks may be flat.
	Allow []netip.Prefix
}

var reserved = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("::/96"), netip.MustParsePrefix("100::/64"),
}

// Refuses returns why a is not used; empty if it may be.
func (f Filter) Refuses(a netip.Addr) string {
	a = a.Unmap()
	holds := func(p netip.Prefix) bool { return p.Contains(a) }
	switch {
	case !a.IsValid() || a.Zone() != "":
		return badAddress
	case a.IsLoopback():
		return badLoopback
	case a.IsLinkLocalUnicast(), a.IsLinkLocalMulticast():
		return badLinkLocal
	case a.IsMulticast():
		return badMulticast
	case a.IsUnspecified(), slices.ContainsFunc(reserved, holds):
		return badReserved
	case len(f.Allow) > 0:
		if slices.ContainsFunc(f.Allow, holds) {
			return ""
		}
		return badNotAllowed
	case slices.ContainsFunc(f.Ranges, holds):
		return badOwn
	}
	own, asked := f.Own[a]
	switch {
	case own:
		return badOwn
	case !asked:
		return Unknown
	}
	return ""
}
