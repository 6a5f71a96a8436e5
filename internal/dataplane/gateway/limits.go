package gateway

import (
	"cmp"

	"github.com/causeway-mesh/causeway/internal/dataplane/budget"
)

// Limits are the bounds of a gateway's connections that an operator may set. A value of 0
// means the default.
type Limits struct {
	// Connections is the most open connections with a complete ClientHello. Links share
	// them. Default: 50,000. The gateway has fewer if its descriptors or its memory do not
	// suffice.
	Connections int
	// ConnectionsPerLink is the most from one linked cluster. Default: half of
	// Connections.
	ConnectionsPerLink int
}

const defaultConnections = 50_000

// connectionCost is what one connection takes. It has a descriptor at either end. With
// 1,000 idle connections a gateway holds up to 21 KiB for each.
var connectionCost = budget.Cost{Descriptors: 2, Memory: 32 << 10}

// resolve returns the limits with their defaults filled in, and with no more connections
// than possible returns.
func (l Limits) resolve(possible func(most int, each budget.Cost) int) Limits {
	all := possible(cmp.Or(l.Connections, defaultConnections), connectionCost)
	return Limits{
		Connections:        all,
		ConnectionsPerLink: min(cmp.Or(l.ConnectionsPerLink, max(1, all/2)), all),
	}
}

// newShares returns the shares of links for limits that are resolved.
func newShares(l Limits) *budget.Shares {
	return budget.NewWithLimit(l.Connections, l.ConnectionsPerLink)
}
