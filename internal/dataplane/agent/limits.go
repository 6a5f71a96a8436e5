package agent

import (
	"cmp"

	"golang.org/x/time/rate"

	"github.com/causeway-mesh/causeway/internal/dataplane/budget"
)

// Limits are the bounds of an agent's connections that an operator may set. A value of 0
// means the default.
type Limits struct {
	// Connections is the most open connections of each direction. Default: 20,000. The
	// agent has fewer if its descriptors or its memory do not suffice.
	Connections int
	// ConnectionsPerLink is the most of each direction to or from one linked cluster.
	// Default: half of Connections.
	ConnectionsPerLink int
	// ConnectionsPerPod is the most from one local pod. Default: half of Connections. All
	// pods of a ServiceAccount together have at most a quarter of Connections, or
	// ConnectionsPerPod if that is set and larger.
	ConnectionsPerPod int
	// ConnectionRatePerPod is how many connections a local pod may open per second, with
	// bursts of twice as many. Default: 2,000. All pods of a ServiceAccount together may
	// open twice as many.
	ConnectionRatePerPod int

	// perAccount is the most from all pods of a ServiceAccount, and requests the most open
	// requests of each direction. Both are set by resolve.
	perAccount, requests int
}

// Defaults of Limits.
const (
	defaultConnections = 20_000
	defaultPodRate     = 2_000
	maxOpenRequests    = 20_000
)

// connectionCost is what two connections, one of each direction, take. With 1,000 idle
// connections an agent holds up to 49 KiB for each. A connection has a descriptor at
// either end, so two connections may need twice as many as are counted here. If these do
// not suffice, accepting pauses.
var connectionCost = budget.Cost{Descriptors: 2, Memory: 2 * 64 << 10}

// requestCost is what an open request takes. With HTTP/1 it has a connection to the
// application.
var requestCost = budget.Cost{Descriptors: 1, Memory: 32 << 10}

// defaultLimits are the default limits of this process.
var defaultLimits = Limits{}.resolve(budget.Connections)

// resolve returns the limits with their defaults filled in, and with no more connections
// than possible returns.
func (l Limits) resolve(possible func(most int, each budget.Cost) int) Limits {
	all := possible(cmp.Or(l.Connections, defaultConnections), connectionCost)
	return Limits{
		Connections:          all,
		ConnectionsPerLink:   min(cmp.Or(l.ConnectionsPerLink, max(1, all/2)), all),
		ConnectionsPerPod:    min(cmp.Or(l.ConnectionsPerPod, max(1, all/2)), all),
		ConnectionRatePerPod: cmp.Or(l.ConnectionRatePerPod, defaultPodRate),
		perAccount:           min(max(accountShare(all), l.ConnectionsPerPod), all),
		requests:             possible(maxOpenRequests, requestCost),
	}
}

// accountShare returns how many of all connections one account may have. It is less than
// a link may have, so that an account cannot fill its link's share.
func accountShare(all int) int { return max(1, all/4) }

// podRate and podBurst bound the connections of a pod, per second and at once. Those of
// an account are twice as high.
func (l Limits) podRate() rate.Limit { return rate.Limit(l.ConnectionRatePerPod) }
func (l Limits) podBurst() int       { return 2 * l.ConnectionRatePerPod }
