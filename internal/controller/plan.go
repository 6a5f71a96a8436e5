package controller

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/ledger"
	"github.com/causeway-mesh/causeway/internal/link"
	"github.com/causeway-mesh/causeway/internal/mirror"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/peering"
	"github.com/causeway-mesh/causeway/internal/serviceexport"
)

// A plan is what one pass decided, as data. The decision does no I/O. apply carries it
// out.
type plan struct {
	// views are changes of what agents and gateways must know. nodesAdded and
	// nodesRemoved are nodes that have an agent now, or no longer.
	views                    []nodestream.Change
	nodesAdded, nodesRemoved []string

	// listings are changes of the catalog for peers, version the version that they
	// complete.
	listings []wire.Listing
	version  wire.Version
	// readyLinks are the Links whose catalogs are complete.
	readyLinks []string

	// peers are the peers of the Links in force. It is nil if they have not changed.
	// storedIssuers are the numbers of their stored issuer lists, by Link. It is nil if
	// nothing that concerns a peer has changed. trusts is what to write to PeerTrusts.
	// gateways are this cluster's own addresses. It is nil if they have not changed.
	peers         map[string]peering.Want
	storedIssuers map[string]uint64
	trusts        []trustWrite
	gateways      *[]string

	// The leader's part.
	writes    []ledger.Write
	mirrors   []mirrorChange
	links     []linkChange
	events    []event
	handovers []handover
	// status names Links whose status may differ now.
	status map[string]bool
	// serviceExports are the ServiceExports whose conditions may have changed, and facts
	// the inputs of these conditions. conditionsKind is the version in which conditions
	// are written. It is nil if it has not changed.
	serviceExports map[catalog.Key]bool
	facts          []exportFacts
	conditionsKind *schema.GroupVersionKind
	// routes are the wanted statuses of Gateway API routes that were decided about.
	routes []routeStatus
	// housekeeping: something changed that the leader's housekeeping depends on.
	housekeeping bool

	// recheck is when the next pass is due though nothing changed; zero: not.
	recheck time.Time
}

// trustWrite is what to write to the PeerTrust of a Link.
type trustWrite struct {
	link   string
	change *peering.TrustChange
}

// handover stores a peer's issuer list for the Link that takes over next.
type handover struct {
	from string // the Link in force
	to   link.Peer
	list []byte
}

// mirrorChange sets what one mirror shall be; a nil want: it is not wanted.
type mirrorChange struct {
	link string
	key  catalog.Key
	want *mirror.Want
}

// linkChange is the new state of a Link for the mirror writer; a nil link: it is no
// longer in force.
type linkChange struct {
	name          string
	link, standby *v1alpha1.Link
	complete      bool
}

// exportFacts are the inputs of the conditions of one ServiceExport. meta is nil if the
// ServiceExport does not exist.
type exportFacts struct {
	key   catalog.Key
	meta  *metav1.PartialObjectMetadata
	facts serviceexport.Facts
}

// event is an Event to emit.
type event struct {
	about, related runtime.Object // related may be nil
	owner          string         // whose budget of Events it takes from: a Link or a namespace
	reason, action string
	message        string
}

func (p *plan) statusOf(link string) { put(&p.status, link) }

func (p *plan) conditionsOf(k catalog.Key) {
	if p.serviceExports == nil {
		p.serviceExports = make(map[catalog.Key]bool)
	}
	p.serviceExports[k] = true
}

func (p *plan) dueAt(t time.Time) { p.recheck = earlier(p.recheck, t) }
