package controller

import (
	"bytes"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/clusterid"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/link"
	"github.com/causeway-mesh/causeway/internal/mirror"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/nodestream/view"
	"github.com/causeway-mesh/causeway/internal/peering"
)

// linkState decides which Links are in force, what is believed of their peers, and what
// agents and gateways must know of each. It belongs to the reconciler's goroutine.
type linkState struct {
	identity *clusterid.Identity
	log      *slog.Logger

	links  map[string]*v1alpha1.Link      // every Link
	trusts map[string]*v1alpha1.PeerTrust // by name, which is the Link's
	judged link.Judgment
	// resolved is what is believed of each peer in force. names are its keys, sorted;
	// nil: they have to be collected again.
	resolved map[string]resolvedPeer
	names    []string
	// stored are the numbers of the issuer lists in resolved, by Link. It is nil if they
	// have to be collected again.
	stored map[string]uint64
	day    uint32 // whose keys were last distributed
}

// resolvedPeer is what a peer's Link and the stored list of its issuers come to.
type resolvedPeer struct {
	peer link.Peer
	list []byte // the issuer list that view was resolved from
	view view.Peer
	// successor: another root than the Link's has signed the list.
	successor bool
	// until is when the last of the peer's issuers ends; zero: none is known.
	until time.Time
}

func newLinkState(id *clusterid.Identity, log *slog.Logger) *linkState {
	return &linkState{
		identity: id, log: log, links: make(map[string]*v1alpha1.Link),
		trusts: make(map[string]*v1alpha1.PeerTrust), resolved: make(map[string]resolvedPeer),
	}
}

// judge decides which Links are in force after one changed.
func (s *linkState) judge() {
	all := make([]v1alpha1.Link, 0, len(s.links))
	for _, name := range slices.Sorted(maps.Keys(s.links)) {
		all = append(all, *s.links[name])
	}
	s.judged = link.Judge(s.owner(), all)
	for name, p := range s.judged.Peers {
		if old, ok := s.resolved[name]; ok && old.peer.Same(p) {
			continue
		}
		// A key of low order, or another spelling of our own, gives no secret.
		if _, err := identity.LinkSecret(s.identity.LinkKey(), p.LinkKey.Bytes()); err != nil {
			s.judged.Faults[name] = &link.Fault{
				Reason:  link.BadLinkKey,
				Message: fmt.Sprintf("linkPublicKey gives no shared secret: %v", err),
			}
			delete(s.judged.Peers, name)
		}
	}
	for name := range s.resolved {
		if _, ok := s.judged.Peers[name]; !ok {
			s.forget(name)
		}
	}
}

// resolve decides what is believed of one peer.
func (s *linkState) resolve(name string, snapshot *peering.Snapshot) {
	p, ok := s.judged.Peers[name]
	if !ok {
		return
	}
	old, had := s.resolved[name]
	next, err := s.resolvePeer(p, old, had)
	if err != nil {
		s.log.Warn("peer ignored: its key gives no shared secret", "link", name, "error", err)
		s.forget(name)
		return
	}
	next.view.Gateways = nil
	for _, g := range snapshot.Gateways() {
		next.view.Gateways = append(next.view.Gateways, view.Gateway{Address: g.Address, Healthy: g.Healthy})
	}
	if s.resolved[name] = next; !had {
		s.names = nil
	}
	s.stored = nil
}

func (s *linkState) forget(name string) {
	delete(s.resolved, name)
	s.names, s.stored = nil, nil
}

func (s *linkState) resolvePeer(p link.Peer, old resolvedPeer, had bool) (resolvedPeer, error) {
	var list []byte
	kept := s.trusts[p.Name]
	if kept != nil && kept.Spec.LinkUID == p.UID {
		list = kept.Spec.IssuerList
	}
	if had && old.peer.Same(p) && bytes.Equal(old.list, list) {
		old.peer = p
		return old, nil
	}
	secret, err := identity.LinkSecret(s.identity.LinkKey(), p.LinkKey.Bytes())
	if err != nil {
		return resolvedPeer{}, err
	}
	out := resolvedPeer{
		peer: p,
		list: list,
		view: view.Peer{Name: p.Name, UID: p.UID, TrustDomain: p.TrustDomain, Secret: secret},
	}
	known, ok := peering.StoredIssuers(p, kept)
	if !ok {
		return out, nil // none is stored yet
	}
	out.successor = !known.Root.Equal(p.Root)
	out.view.IssuerNumber = known.Number
	for _, c := range known.Issuers {
		out.view.Issuers = append(out.view.Issuers, c.Raw)
		if c.NotAfter.After(out.until) {
			out.until = c.NotAfter
		}
	}
	return out, nil
}

// emit adds the changes of one Link, for agents and gateways, to the plan. namespaces are
// those of this cluster.
func (s *linkState) emit(name string, namespaces mirror.Namespaces, p *plan) {
	r, ok := s.resolved[name]
	if !ok {
		key := nodestream.LinkKey(name)
		p.views = append(p.views, nodestream.Change{
			Scope:   nodestream.Agents,
			Removed: key,
		}, nodestream.Change{Scope: nodestream.Gateways, Removed: key})
		return
	}
	peer := r.view
	applyRules(&peer, s.links[name], namespaces)
	domain := s.identity.TrustDomain()
	p.views = append(p.views,
		nodestream.Change{Scope: nodestream.Agents, Resource: view.LinkForAgents(peer, domain, s.day)},
		nodestream.Change{Scope: nodestream.Gateways, Resource: view.LinkForGateways(peer, domain, s.day)})
}

// applyRules sets the rules of a Link for new connections.
func applyRules(p *view.Peer, l *v1alpha1.Link, namespaces mirror.Namespaces) {
	p.Suspended = l.Spec.Suspend
	p.DefaultDeny = l.Spec.Export != nil && l.Spec.Export.Default == v1alpha1.ExportDeny
	if l.Spec.Import == nil || l.Spec.Import.Callers == nil {
		return
	}
	callers := l.Spec.Import.Callers
	p.CallersRestricted = true
	if callers.NamespaceSelector == nil {
		p.CallerNamespaces = callers.Namespaces
		return
	}
	selector, err := metav1.LabelSelectorAsSelector(callers.NamespaceSelector)
	if err != nil {
		return // a selector that cannot be parsed admits no caller
	}
	for name, set := range namespaces {
		if selector.Matches(labels.Set(set)) {
			p.CallerNamespaces = append(p.CallerNamespaces, name)
		}
	}
}

// selectsCallers reports whether a Link's callers depend on the labels of namespaces.
func selectsCallers(l *v1alpha1.Link) bool {
	return l.Spec.Import != nil && l.Spec.Import.Callers != nil &&
		l.Spec.Import.Callers.NamespaceSelector != nil
}

// ended returns the Links whose peers' last issuer ended since the last pass.
func (s *linkState) ended(last, now time.Time, p *plan) map[string]bool {
	out := make(map[string]bool)
	for name, r := range s.resolved {
		switch {
		case r.until.IsZero():
		case r.until.After(now):
			p.dueAt(r.until.Add(time.Second))
		case r.until.After(last):
			out[name] = true
		}
	}
	return out
}

// wanted are the peers to keep streams to.
func (s *linkState) wanted() map[string]peering.Want {
	out := make(map[string]peering.Want, len(s.judged.Peers))
	for name, p := range s.judged.Peers {
		out[name] = peering.Want{Peer: p, StoredGateways: peering.StoredGateways(p, s.trusts[name])}
	}
	return out
}

// storedIssuers returns the numbers of the stored issuer lists, by Link. The caller must
// not change the map.
func (s *linkState) storedIssuers() map[string]uint64 {
	if s.stored == nil {
		s.stored = make(map[string]uint64, len(s.resolved))
		for name, r := range s.resolved {
			s.stored[name] = r.view.IssuerNumber
		}
	}
	return s.stored
}

// inForce are the names of the Links in force, sorted. The caller must not change them.
func (s *linkState) inForce() []string {
	if s.names == nil {
		s.names = slices.Sorted(maps.Keys(s.resolved))
	}
	return s.names
}

// expiries are the ends of the certificates of this cluster and of its peers.
func (s *linkState) expiries() []clusterid.Expiry {
	out := s.identity.Issuers().Expiries()
	for name, r := range s.resolved {
		out = append(out, clusterid.PeerRootExpiry(name, r.peer.Root))
		if !r.until.IsZero() {
			out = append(out, clusterid.PeerIssuerExpiry(name, r.until))
		}
	}
	clusterid.SortExpiries(out)
	return out
}

// owner is this cluster's public half, which no Link may claim.
func (s *linkState) owner() link.Own {
	key, err := link.ParseKey(s.identity.LinkKey().Public())
	if err != nil {
		panic(fmt.Sprintf("controller: this cluster's own link key: %v", err)) // Load parsed it
	}
	return link.Own{TrustDomain: s.identity.TrustDomain(), LinkKey: key}
}
