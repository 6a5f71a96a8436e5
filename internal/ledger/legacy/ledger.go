// Package ledger decides which VIP and listener indexes each mirror has, and which route id each exported port has.
//
//	Ledger shards ──Load──▶ Book ──AssignMirrors, AssignExports──▶ Book ──Shards, Changed──▶ shards to write
//
// What always holds:
//   - It decides from what it is given: no clock, no cluster.
//   - No two entries, live or resting, have one VIP or one route id.
//   - While an entry lives or rests its VIPs, listener indexes and route ids stay
//     with it, and come back with it. An index stays with its port's name and
//     protocol, a route id with its port's.
//   - What rests is given to nobody else for 24 hours, and then the longest-rested first.
//   - The same wants in any order give the same Book; the same wants again change nothing.
//   - Of two sources that map to one mirror the one that the Book saw first keeps it.
//   - The mirror of a named pod outlives the pod by five minutes, and its Service by none.
//   - No Link has more than its quotas allow; those that the Book saw first stay.
//
// A Book is what the data path runs on: write it before the mirrors and the
// catalog that tell of it.
package ledger

import (
	"cmp"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

const (
	// Rest is how long a VIP or a route id belongs to nobody after its source is gone.
	Rest = 24 * time.Hour
	// Linger is how long the mirror of a named pod outlives it: who is made anew
	// under its name is found at the same address.
	Linger = 5 * time.Minute
	// Listeners is the number of listener ports of a VIP; indexes are below it.
	Listeners = 32
	// FirstListener is the listener port of index 0.
	FirstListener = 4200
	// FirstRoute is the lowest route id of an exported port.
	FirstRoute = 1024

	// maxRested bounds the entries remembered past their rest.
	maxRested = 1024
	// maxExportPorts bounds the ports, present and past, of one export's entry.
	maxExportPorts = 64
)

// Problem says what the Book could not give, or what was wrong in its shards.
type Problem struct {
	// Link is the Link that it concerns; empty for an export.
	Link string
	v1alpha1.ServiceProblem
}

// Reasons of a Problem.
const (
	// NameTaken: another source has the mirror's name already.
	NameTaken = "NameTaken"
	// VIPsExhausted: the range of virtual IPs has no address left.
	VIPsExhausted = "VIPsExhausted"
	// QuotaReached: a Link wants more than its quotas allow.
	QuotaReached = "QuotaReached"
	// RoutesExhausted: there is no route id left.
	RoutesExhausted = "RoutesExhausted"
	// Damaged: an entry in a shard cannot be, and is dropped.
	Damaged = "LedgerDamaged"
	// Duplicate: an entry in a shard claims what another has, and is dropped.
	Duplicate = "LedgerDuplicate"
)

// Reasons is the closed list of reasons, sorted.
var Reasons = []string{Damaged, Duplicate, NameTaken, QuotaReached, RoutesExhausted, VIPsExhausted}

// Book is a cluster's whole ledger. The zero value is empty. It is never
// changed: assigning gives a new one, which shares entries with the old.
type Book struct {
	mirrors []v1alpha1.LedgerMirror // sorted by compareMirrors
	exports []v1alpha1.LedgerExport // sorted by compareExports
}

// Link returns the live entries of a Link, sorted by source. They must not be changed.
func (b Book) Link(link string) []v1alpha1.LedgerMirror {
	var out []v1alpha1.LedgerMirror
	i, _ := slices.BinarySearchFunc(b.mirrors, link, func(m v1alpha1.LedgerMirror, l string) int { return strings.Compare(m.Link, l) })
	for ; i < len(b.mirrors) && b.mirrors[i].Link == link; i++ {
		if b.mirrors[i].RestingSince == nil {
			out = append(out, b.mirrors[i])
		}
	}
	return out
}

// Live returns the live entries of all Links, sorted by Link and source. They must not be changed.
func (b Book) Live() []v1alpha1.LedgerMirror {
	var out []v1alpha1.LedgerMirror
	for _, m := range b.mirrors {
		if m.RestingSince == nil {
			out = append(out, m)
		}
	}
	return out
}

// Route returns the route id of an exported port; 0 if it has none.
func (b Book) Route(namespace, service, port, protocol string) uint32 {
	k := export{namespace, service}
	i, found := slices.BinarySearchFunc(b.exports, k, func(e v1alpha1.LedgerExport, k export) int { return exportOf(e).compare(k) })
	if !found || b.exports[i].RestingSince != nil { // a live entry sorts before the resting ones of its key
		return 0
	}
	for _, p := range b.exports[i].Ports {
		if p.Name == port && p.Protocol == protocol {
			return uint32(p.Route)
		}
	}
	return 0
}

// source names a peer's Service, or one named pod of it.
type source struct{ link, namespace, service, host string }

func sourceOf(m v1alpha1.LedgerMirror) source {
	return source{m.Link, m.Namespace, m.Service, m.Hostname}
}

// whole is the Service that s is, or is a pod of.
func (s source) whole() source {
	s.host = ""
	return s
}

func (s source) String() string {
	if s.host != "" {
		return s.link + "/" + s.namespace + "/" + s.service + "/" + s.host
	}
	return s.link + "/" + s.namespace + "/" + s.service
}

func (s source) compare(o source) int {
	return cmp.Or(strings.Compare(s.link, o.link), strings.Compare(s.namespace, o.namespace), strings.Compare(s.service, o.service),
		strings.Compare(s.host, o.host))
}

// export names a Service of this cluster.
type export struct{ namespace, service string }

func exportOf(e v1alpha1.LedgerExport) export { return export{e.Namespace, e.Service} }

func (k export) String() string { return k.namespace + "/" + k.service }

func (k export) compare(o export) int {
	return cmp.Or(strings.Compare(k.namespace, o.namespace), strings.Compare(k.service, o.service))
}

// compareMirrors orders by source, the live entry first, then the last to rest.
func compareMirrors(a, b v1alpha1.LedgerMirror) int {
	return cmp.Or(sourceOf(a).compare(sourceOf(b)), compareRest(a.RestingSince, b.RestingSince), slices.Compare(a.VIPs, b.VIPs))
}

func compareExports(a, b v1alpha1.LedgerExport) int {
	return cmp.Or(exportOf(a).compare(exportOf(b)), compareRest(a.RestingSince, b.RestingSince),
		slices.CompareFunc(a.Ports, b.Ports, func(x, y v1alpha1.LedgerExportPort) int { return cmp.Compare(x.Route, y.Route) }))
}

func compareRest(a, b *metav1.Time) int {
	switch {
	case a == nil && b == nil:
		return 0
	case a == nil:
		return -1
	case b == nil:
		return 1
	}
	return b.Compare(a.Time)
}

// restFrom is when a rest that begins now is said to begin: whole seconds are
// what the API keeps, and a rest is rather longer than shorter.
func restFrom(now time.Time) *metav1.Time {
	t := now.UTC().Truncate(time.Second)
	if t.Before(now) {
		t = t.Add(time.Second)
	}
	return &metav1.Time{Time: t}
}

// rested reports whether what rests since then may be given anew.
func rested(since *metav1.Time, now time.Time) bool {
	return since != nil && !now.Before(since.Add(Rest))
}
