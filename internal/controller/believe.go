package controller

import (
	"bytes"
	"fmt"
	"time"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/clusterid"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/link"
	"github.com/causeway-mesh/causeway/internal/nodestream/view"
	"github.com/causeway-mesh/causeway/internal/peering"
)

// belief is what was made of a peer and the list of issuers kept for it.
type belief struct {
	peer link.Peer
	list []byte
	view view.Peer
	// followed: another root than the Link's has signed the list.
	followed bool
	// until is when the last of the peer's issuers ends; zero: none is known.
	until time.Time
}

// keyed leaves those peers out with whose key no secret can be made: it is of low order,
// or another spelling of our own.
func (b *brain) keyed(t *thought) {
	for name, p := range t.peers {
		if old, ok := b.believed[name]; ok && old.peer.Same(p) {
			continue
		}
		if _, err := identity.LinkSecret(b.identity.LinkKey(), p.LinkKey.Bytes()); err != nil {
			t.faults[name] = &link.Fault{Reason: link.BadLinkKey, Message: fmt.Sprintf("linkPublicKey makes no secret: %v", err)}
			delete(t.peers, name)
		}
	}
}

// believe returns the valid Links' peers, with what is known of their issuers, and
// lets be learnt again what PeerTrusts lack.
func (b *brain) believe(t *thought) []view.Peer {
	lists := t.keptTrusts()
	var out []view.Peer
	numbers := make(map[string]uint64, len(t.peers))
	believed := make(map[string]belief, len(t.peers))
	for name, p := range t.peers {
		v, err := b.peerView(p, lists[name])
		b.grumble("no link secret", name, err)
		if err != nil {
			continue
		}
		believed[name] = v
		numbers[name] = v.view.IssuerNumber
		for _, g := range t.known[name].Gateways() {
			v.view.Gateways = append(v.view.Gateways, view.Gateway{Address: g.Address, Healthy: g.Healthy})
		}
		out = append(out, v.view)
	}
	b.believed = believed
	expiries := b.certificateExpiries()
	b.expiries.Store(&expiries)
	b.peers.RestoreLost(numbers)
	b.writeTrusts(t, lists)
	return out
}

// certificateExpiries lists the certificates of this cluster and of its peers.
func (b *brain) certificateExpiries() []clusterid.Expiry {
	all := b.identity.Issuers().Expiries()
	for name, peer := range b.believed {
		all = append(all, clusterid.PeerRootExpiry(name, peer.peer.Root))
		if !peer.until.IsZero() {
			all = append(all, clusterid.PeerIssuerExpiry(name, peer.until))
		}
	}
	clusterid.SortExpiries(all)
	return all
}

// keptTrusts are the PeerTrusts by name.
func (s *snapshot) keptTrusts() map[string]*v1alpha1.PeerTrust {
	out := make(map[string]*v1alpha1.PeerTrust, len(s.trusts))
	for i := range s.trusts {
		out[s.trusts[i].Name] = &s.trusts[i]
	}
	return out
}

// writeTrusts writes what PeerTrusts lack of what this replica knows.
func (b *brain) writeTrusts(t *thought, stored map[string]*v1alpha1.PeerTrust) {
	for name, p := range t.peers {
		change, recheck := peering.PlanTrust(peering.TrustInputs{
			Peer:           p,
			Snapshot:       t.known[name],
			Stored:         stored[name],
			Replica:        b.o.PodName,
			Leader:         b.leading.Load(),
			ControllerPods: t.controllerPods(),
			Now:            t.now,
		})
		if recheck > 0 && (b.again == 0 || recheck < b.again) {
			b.again = recheck
		}
		if change != nil {
			b.peers.WriteTrust(name, change)
		}
	}
}

// replicas are the ready controller replicas, by pod.
func (t *thought) replicas() map[string]bool {
	out := make(map[string]bool, len(t.top.controllers))
	for _, c := range t.top.controllers {
		out[c.PodName] = true
	}
	return out
}

// controllerPods are all pods of the controller, whatever their state.
func (t *thought) controllerPods() map[string]bool {
	out := make(map[string]bool)
	for i := range t.pods {
		if p := &t.pods[i]; p.Namespace == t.namespace && p.Labels[componentLabel] == controllerValue {
			out[p.Name] = true
		}
	}
	return out
}

// peerView is what is believed of a peer, its gateways apart.
func (b *brain) peerView(p link.Peer, kept *v1alpha1.PeerTrust) (belief, error) {
	if kept == nil || kept.Spec.LinkUID != p.UID {
		kept = &v1alpha1.PeerTrust{}
	}
	list := kept.Spec.IssuerList
	if old, ok := b.believed[p.Name]; ok && old.peer.Same(p) && bytes.Equal(old.list, list) {
		return old, nil
	}
	secret, err := identity.LinkSecret(b.identity.LinkKey(), p.LinkKey.Bytes())
	if err != nil {
		return belief{}, err
	}
	v := view.Peer{Name: p.Name, UID: p.UID, TrustDomain: p.TrustDomain, Secret: secret}
	var until time.Time
	known, ok := peering.StoredIssuers(p, kept)
	if ok {
		v.IssuerNumber = known.Number
		for _, c := range known.Issuers {
			v.Issuers = append(v.Issuers, c.Raw)
			if c.NotAfter.After(until) {
				until = c.NotAfter
			}
		}
	}
	return belief{p, list, v, ok && !known.Root.Equal(p.Root), until}, nil
}

// issuersEnded is when the last of a peer's issuers has ended; zero: one is live, or none is known. It lets the brain think
// again when one is to end soon.
func (b *brain) issuersEnded(name string, now time.Time) time.Time {
	until := b.believed[name].until
	left := until.Sub(now)
	switch {
	case until.IsZero():
	case left < 0:
		return until
	case b.again == 0 || left < b.again:
		b.again = left + time.Second // once it is over, and not just before
	}
	return time.Time{}
}
