package invite

import (
	"net/netip"
	"slices"

	"github.com/causeway-mesh/causeway/internal/link"
)

// Usable returns those of a peer's own gateway addresses that may stand in a Link,
// at most 8: what a Link names is dialled as it stands, so that here nothing is taken that
// leads back into this cluster, whose own ranges are given, or to no host.
func Usable(gateways []string, own []netip.Prefix) []string {
	filter := link.Filter{Ranges: own}
	var out []string
	for _, g := range gateways {
		if len(out) == maxGateways {
			break
		}
		if len(g) > maxAddress || link.CheckAddress(g) != nil || slices.Contains(out, g) {
			continue
		}
		if a, err := netip.ParseAddrPort(g); err == nil {
			if why := filter.Refuses(a.Addr()); why != "" && why != link.Unknown {
				continue
			}
		}
		out = append(out, g)
	}
	return out
}

// With returns gateways with address among them, first if it was not.
func With(gateways []string, address string) []string {
	if slices.Contains(gateways, address) {
		return gateways
	}
	return append([]string{address}, gateways...)
}
