// Package clusterinfo names what Causeway's processes, its command and its chart agree on
// inside one cluster: objects, keys, labels and ports.
//
// What always holds:
//   - It imports nothing, so that every package may import it.
//   - The chart uses the same names and ports; the chart's tests compare them.
//   - The names and ports are part of what an upgrade keeps. A changed one must be read
//     under both names for a release.
package clusterinfo

// DefaultNamespace is Causeway's namespace unless the user chooses another one.
const DefaultNamespace = "causeway-system"

// Names of the objects of each process: its Deployment or DaemonSet, its ServiceAccount
// and, if it has one, its Service. The controller's Lease for leader election has its
// name too.
const (
	ControllerName = "causeway-controller"
	GatewayName    = "causeway-gateway"
	AgentName      = "causeway-agent"
)

// IdentityConfigMap holds the public half of the cluster's identity. The controller
// writes it, agents and gateways mount it, and the command reads it.
const IdentityConfigMap = "causeway-identity"

// Keys of IdentityConfigMap.
const (
	KeyTrustDomain   = "trustDomain"
	KeyClusterName   = "clusterName"
	KeyRoot          = "root.pem" // the root certificate that peers pin
	KeyLinkPublicKey = "linkPublicKey"
	KeyGateways      = "gateways" // addresses that peers can dial, separated by commas
	// KeyCASecret names the Secret of an external CA. It is absent if the controller made
	// the root itself.
	KeyCASecret = "caSecret"
)

// Labels of every object of the chart.
const (
	NameLabel      = "app.kubernetes.io/name"
	ComponentLabel = "app.kubernetes.io/component"
	PartOfLabel    = "app.kubernetes.io/part-of"
)

// HopZonesLabel, with the value "true", marks the pods of agents that read zones in hop
// headers. Agents of earlier versions do not.
const HopZonesLabel = "causeway.dev/hop-zones"

// Causeway is the value of NameLabel and PartOfLabel.
const Causeway = "causeway"

// Values of ComponentLabel.
const (
	ComponentController = "controller"
	ComponentGateway    = "gateway"
	ComponentAgent      = "agent"
	ComponentCanary     = "canary"  // a pod that proves a node's path, or its Service
	ComponentCleanup    = "cleanup" // a pod that removes Causeway's state from a node
)

// SliceManager is the value of endpointslice.kubernetes.io/managed-by on the
// EndpointSlices that Causeway makes.
const SliceManager = "causeway.dev"

// Ports.
const (
	GatewayPort    = 4143 // peers dial it
	AgentPort      = 4144 // gateways dial it, with a hop header
	CatalogPort    = 4145 // gateways dial it at controllers, with a hop header
	NodeStreamPort = 4146 // agents and gateways dial it at controllers
	MetricsPort    = 9464
	ProbesPort     = 9465
	AdminPort      = 9466 // on the controller's loopback

	// Agents accept calls to virtual IPs at ListenerPorts ports from FirstListenerPort
	// on.
	FirstListenerPort = 4200
	ListenerPorts     = 32
)

// Selector returns the labels that select the pods of one component and of no other.
func Selector(component string) map[string]string {
	return map[string]string{NameLabel: Causeway, ComponentLabel: component}
}

// Labels returns the labels of every object of one component.
func Labels(component string) map[string]string {
	return map[string]string{NameLabel: Causeway, ComponentLabel: component, PartOfLabel: Causeway}
}
