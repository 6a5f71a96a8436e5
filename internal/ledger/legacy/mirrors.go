package ledger

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// Peer is what one Link wants mirrored here.
type Peer struct {
	Link string
	// TrustDomain is the peer's: entries that expect identities of another were
	// made for an earlier Link of the name, and rest.
	TrustDomain string
	// Complete: Mirrors is everything, and entries not among it rest. Otherwise
	// they stay as they are.
	Complete bool
	Mirrors  []MirrorWant
	Quotas   Quotas
}

// MirrorWant is one Service of a peer to be mirrored.
type MirrorWant struct {
	// Namespace and Service name the source in the peer.
	Namespace, Service string
	// Hostname is that of the one pod of it that the mirror is for. A Service with
	// such mirrors is wanted itself too, with Named set.
	Hostname string
	// Headless: the source has no address of its own. Named: it has pods with
	// names, and the mirror is headless too; once it is, it stays so while
	// the source is Headless.
	Headless, Named bool
	// MirrorNamespace and MirrorName name the Service to be made here.
	MirrorNamespace, MirrorName string
	// Ports are at most Listeners, each with a name and protocol of its own.
	Ports      []PortWant
	Identities []string
	// AffinitySeconds is for how long a client stays with its pod; 0: not at all.
	AffinitySeconds uint32
}

// PortWant is one carried port of a MirrorWant.
type PortWant struct {
	Name, Protocol string
	Port           uint16
	AppProtocol    string
	// Route is the peer's route id.
	Route uint32
}

// AssignMirrors gives each wanted mirror its VIPs, one from each of ranges, and
// its listener indexes. peers holds every Link that exists: entries of others rest.
// ranges, of which there must be one at least, are given from lowest address first.
func (b Book) AssignMirrors(peers []Peer, ranges []netip.Prefix, now time.Time) (Book, []Problem) {
	a := newAssigner(b, ranges, now)
	wants := a.bound(peers, a.admit(peers))
	for _, w := range wants {
		a.renew(w)
	}
	for _, w := range wants {
		a.fillVIPs(w)
	}
	for _, m := range a.current {
		a.old = append(a.old, *m)
	}
	out := Book{mirrors: forget(a.old, now, func(m v1alpha1.LedgerMirror) *metav1.Time { return m.RestingSince }), exports: b.exports}
	slices.SortFunc(out.mirrors, compareMirrors)
	slices.SortFunc(a.problems, compareProblems)
	return out, a.problems
}

// want is a MirrorWant with the source that it is for.
type want struct {
	source
	MirrorWant
	absent *metav1.Time // since when its pod is not there
}

// assigner is the state of one AssignMirrors.
type assigner struct {
	now     time.Time
	current map[source]*v1alpha1.LedgerMirror // the live entry of a source, or the last to rest
	old     []v1alpha1.LedgerMirror           // other resting entries
	pools   []*pool
	// problems are unsorted.
	problems []Problem
}

func newAssigner(b Book, ranges []netip.Prefix, now time.Time) *assigner {
	a := &assigner{now: now, current: make(map[source]*v1alpha1.LedgerMirror, len(b.mirrors))}
	used := make(map[netip.Addr]bool, len(b.mirrors))
	for _, m := range b.mirrors {
		for _, vip := range addresses(m) {
			used[vip] = true
		}
		if k := sourceOf(m); a.current[k] == nil {
			a.current[k] = &m
		} else {
			a.old = append(a.old, m)
		}
	}
	for _, r := range ranges {
		a.pools = append(a.pools, newPool(r, used))
	}
	return a
}

// admit rests what is no longer wanted, settles names, and returns the wants
// that may stand, sorted by source.
func (a *assigner) admit(peers []Peer) []want {
	wants := make(map[source]want)
	byLink := make(map[string]Peer, len(peers))
	for _, p := range peers {
		byLink[p.Link] = p
		for _, w := range p.Mirrors {
			k := source{p.Link, w.Namespace, w.Service, w.Hostname}
			wants[k] = want{source: k, MirrorWant: w}
		}
	}
	a.linger(wants)
	names := make(map[string]source)
	for k, m := range a.current {
		p, linked := byLink[k.link]
		w, wanted := wants[k]
		switch {
		case m.RestingSince != nil:
		case wanted:
			if m.MirrorNamespace == w.MirrorNamespace && m.MirrorName == w.MirrorName {
				hold(names, w.mirror(), k)
			}
		case !linked || p.Complete || !vouched(m.Identities, p.TrustDomain):
			m.RestingSince = restFrom(a.now)
		default:
			hold(names, m.MirrorNamespace+"/"+m.MirrorName, k)
		}
	}
	var out []want
	for _, k := range slices.SortedFunc(maps.Keys(wants), source.compare) {
		w := wants[k]
		holder, taken := names[w.mirror()]
		if taken && holder != k {
			a.problem(w, NameTaken, "the name is taken by the mirror of %s, which was here first: rename one of the two Services", holder)
			if m := a.current[k]; m != nil && m.RestingSince == nil {
				m.RestingSince = restFrom(a.now)
			}
			continue
		}
		names[w.mirror()] = k
		out = append(out, w)
	}
	return out
}

// linger adds to wants the named pods that are not there now and may come back.
func (a *assigner) linger(wants map[source]want) {
	for k, m := range a.current {
		parent, stands := wants[k.whole()]
		if _, wanted := wants[k]; wanted || !stands || k.host == "" || m.RestingSince != nil {
			continue
		}
		absent := m.AbsentSince
		if absent == nil {
			absent = restFrom(a.now)
		}
		if !a.now.Before(absent.Add(Linger)) {
			continue
		}
		w := want{source: k, MirrorWant: parent.MirrorWant, absent: absent}
		w.Hostname, w.MirrorName, w.Headless, w.Named, w.AffinitySeconds = k.host, m.MirrorName, false, false, 0
		wants[k] = w
	}
}

// hold gives name to k, unless a source that sorts before it has it already.
func hold(names map[string]source, name string, k source) {
	if holder, taken := names[name]; !taken || k.compare(holder) < 0 {
		names[name] = k
	}
}

func (w want) mirror() string { return w.MirrorNamespace + "/" + w.MirrorName }

func vouched(identities []string, trustDomain string) bool {
	return !slices.ContainsFunc(identities, func(id string) bool { return !strings.HasPrefix(id, "spiffe://"+trustDomain+"/") })
}

// renew brings the entry of w to life with what the peer says now, its VIPs
// apart. An entry whose indexes are used up rests, and a new one begins.
func (a *assigner) renew(w want) {
	m := a.current[w.source]
	if m == nil {
		m = &v1alpha1.LedgerMirror{}
		a.current[w.source] = m
	}
	since := m.Since
	if m.Link == "" || m.RestingSince != nil {
		since = restFrom(a.now)
	}
	ports, enough := assignIndexes(m.Ports, w.Ports)
	if !enough {
		retired := *m
		if retired.RestingSince == nil {
			retired.RestingSince = restFrom(a.now)
		}
		a.old = append(a.old, retired)
		m.VIPs = nil
		ports, _ = assignIndexes(nil, w.Ports)
	}
	*m = v1alpha1.LedgerMirror{
		Link: w.link, Namespace: w.namespace, Service: w.service,
		MirrorNamespace: w.MirrorNamespace, MirrorName: w.MirrorName,
		VIPs: m.VIPs, Ports: ports, Identities: w.Identities, Since: since,
		Hostname: w.host, Headless: w.Named || w.Headless && m.Headless, SessionAffinitySeconds: int32(w.AffinitySeconds), AbsentSince: w.absent,
	}
}

// assignIndexes returns the ports of an entry that has had have and shall offer
// want, and whether there were indexes enough. A port not offered keeps its
// index and loses its route.
func assignIndexes(have []v1alpha1.LedgerMirrorPort, want []PortWant) ([]v1alpha1.LedgerMirrorPort, bool) {
	out := slices.Clone(have)
	at := make(map[[2]string]int, len(have))
	free := int32(0) // indexes are given in order and never taken back
	for i, p := range out {
		out[i].Route = 0
		at[[2]string{p.Name, p.Protocol}] = i
		free = max(free, p.Index+1)
	}
	sorted := slices.Clone(want)
	slices.SortFunc(sorted, func(x, y PortWant) int {
		return cmp.Or(cmp.Compare(x.Port, y.Port), strings.Compare(x.Name, y.Name), strings.Compare(x.Protocol, y.Protocol))
	})
	for _, w := range sorted {
		i, known := at[[2]string{w.Name, w.Protocol}]
		if !known {
			if free >= Listeners {
				return nil, false
			}
			i = len(out)
			out = append(out, v1alpha1.LedgerMirrorPort{Name: w.Name, Protocol: w.Protocol, Index: free})
			at[[2]string{w.Name, w.Protocol}] = i
			free++
		}
		out[i].Port, out[i].AppProtocol, out[i].Route = int32(w.Port), w.AppProtocol, int64(w.Route)
	}
	slices.SortFunc(out, func(x, y v1alpha1.LedgerMirrorPort) int { return cmp.Compare(x.Index, y.Index) })
	return out, true
}

// fillVIPs sees that the entry of w has one VIP of each range.
func (a *assigner) fillVIPs(w want) {
	m := a.current[w.source]
	have := addresses(*m)
	m.VIPs = nil
	for _, p := range a.pools {
		i := slices.IndexFunc(have, p.holds)
		if i >= 0 {
			m.VIPs = append(m.VIPs, have[i].String())
			continue
		}
		vip, ok := p.take()
		if !ok {
			vip, ok = a.reuse(p)
		}
		if !ok {
			a.problem(w, VIPsExhausted, "no virtual IP of %v is left: unlink or unexport something, or install with a larger vipCIDR", p.prefix)
			continue
		}
		m.VIPs = append(m.VIPs, vip.String())
	}
	if len(m.VIPs) == 0 {
		delete(a.current, w.source)
	}
}

// reuse takes the VIP of p that has rested longest, and forgets its entry.
func (a *assigner) reuse(p *pool) (netip.Addr, bool) {
	var best *v1alpha1.LedgerMirror
	var vip netip.Addr
	consider := func(m *v1alpha1.LedgerMirror) {
		if !rested(m.RestingSince, a.now) || (best != nil && !longer(m, best)) {
			return
		}
		if vips := addresses(*m); slices.ContainsFunc(vips, p.holds) {
			best, vip = m, vips[slices.IndexFunc(vips, p.holds)]
		}
	}
	for _, m := range a.current {
		consider(m)
	}
	for i := range a.old {
		consider(&a.old[i])
	}
	if best == nil {
		return netip.Addr{}, false
	}
	k, freed := sourceOf(*best), best.VIPs
	if a.current[k] == best {
		delete(a.current, k)
	} else {
		a.old = slices.DeleteFunc(a.old, func(m v1alpha1.LedgerMirror) bool { return slices.Equal(m.VIPs, freed) })
	}
	return vip, true
}

// longer reports whether x has rested longer than y; sources break a tie.
func longer(x, y *v1alpha1.LedgerMirror) bool {
	return cmp.Or(x.RestingSince.Compare(y.RestingSince.Time), compareMirrors(*x, *y)) < 0
}

func (a *assigner) problem(w want, reason, format string, args ...any) {
	a.problems = append(a.problems, Problem{Link: w.link, ServiceProblem: v1alpha1.ServiceProblem{
		Service: w.mirror(), Reason: reason, Message: fmt.Sprintf(format, args...),
	}})
}

func compareProblems(a, b Problem) int {
	return cmp.Or(strings.Compare(a.Link, b.Link), strings.Compare(a.Service, b.Service), strings.Compare(a.Reason, b.Reason), strings.Compare(a.Message, b.Message))
}

// addresses returns the VIPs of an entry that Load has found valid.
func addresses(m v1alpha1.LedgerMirror) []netip.Addr {
	out := make([]netip.Addr, 0, len(m.VIPs))
	for _, s := range m.VIPs {
		if ip, err := netip.ParseAddr(s); err == nil {
			out = append(out, ip)
		}
	}
	return out
}

// forget drops the longest-rested of entries beyond maxRested.
func forget[T any](entries []T, now time.Time, since func(T) *metav1.Time) []T {
	var over []time.Time
	for _, e := range entries {
		if s := since(e); rested(s, now) {
			over = append(over, s.Time)
		}
	}
	if len(over) <= maxRested {
		return entries
	}
	slices.SortFunc(over, func(a, b time.Time) int { return b.Compare(a) })
	last := over[maxRested]
	return slices.DeleteFunc(entries, func(e T) bool { s := since(e); return rested(s, now) && !s.After(last) })
}
