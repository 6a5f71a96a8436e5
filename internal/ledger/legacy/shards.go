package ledger

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"math"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// shardCount is fixed: another number would move every entry.
const shardCount = 16

// Load reads a Book from its shards, in any order. What cannot be, or claims
// what another entry has, is dropped and told: a live entry is believed before
// a resting one, and then the first by source.
func Load(shards []v1alpha1.Ledger) (Book, []Problem) {
	var l loader
	for _, s := range shards {
		for _, m := range s.Mirrors {
			l.mirrors = append(l.mirrors, *m.DeepCopy())
		}
		for _, e := range s.Exports {
			l.exports = append(l.exports, *e.DeepCopy())
		}
	}
	b := Book{mirrors: l.keepMirrors(), exports: l.keepExports()}
	slices.SortFunc(b.mirrors, compareMirrors)
	slices.SortFunc(b.exports, compareExports)
	slices.SortFunc(l.problems, compareProblems)
	return b, slices.Compact(l.problems)
}

// loader is the state of one Load.
type loader struct {
	mirrors  []v1alpha1.LedgerMirror
	exports  []v1alpha1.LedgerExport
	problems []Problem
}

func (l *loader) keepMirrors() []v1alpha1.LedgerMirror {
	slices.SortFunc(l.mirrors, func(a, b v1alpha1.LedgerMirror) int {
		return cmp.Or(compareLife(a.RestingSince, b.RestingSince), compareMirrors(a, b))
	})
	vips, live := make(map[netip.Addr]bool), make(map[source]bool)
	var out []v1alpha1.LedgerMirror
	for _, m := range l.mirrors {
		k := sourceOf(m)
		if !possibleMirror(m) {
			l.drop(k.link, k.namespace+"/"+k.service, Damaged)
			continue
		}
		claimed := slices.ContainsFunc(addresses(m), func(ip netip.Addr) bool { return vips[ip] })
		if claimed || (m.RestingSince == nil && live[k]) {
			l.drop(k.link, k.namespace+"/"+k.service, Duplicate)
			continue
		}
		for _, ip := range addresses(m) {
			vips[ip] = true
		}
		live[k] = live[k] || m.RestingSince == nil
		out = append(out, m)
	}
	return out
}

func (l *loader) keepExports() []v1alpha1.LedgerExport {
	slices.SortFunc(l.exports, func(a, b v1alpha1.LedgerExport) int {
		return cmp.Or(compareLife(a.RestingSince, b.RestingSince), compareExports(a, b))
	})
	routes, live := make(map[int64]bool), make(map[export]bool)
	var out []v1alpha1.LedgerExport
	for _, e := range l.exports {
		k := exportOf(e)
		if !possibleExport(e) {
			l.drop("", k.String(), Damaged)
			continue
		}
		claimed := slices.ContainsFunc(e.Ports, func(p v1alpha1.LedgerExportPort) bool { return routes[p.Route] })
		if claimed || (e.RestingSince == nil && live[k]) {
			l.drop("", k.String(), Duplicate)
			continue
		}
		for _, p := range e.Ports {
			routes[p.Route] = true
		}
		live[k] = live[k] || e.RestingSince == nil
		out = append(out, e)
	}
	return out
}

// compareLife orders the living before the resting.
func compareLife(a, b *metav1.Time) int {
	switch {
	case (a == nil) == (b == nil):
		return 0
	case a == nil:
		return -1
	}
	return 1
}

func (l *loader) drop(link, service, reason string) {
	message := "the entry in the Ledger cannot be and is dropped: whoever wrote it was not this controller"
	if reason == Duplicate {
		message = "the entry in the Ledger claims what another has and is dropped: the Service is given something new"
	}
	l.problems = append(l.problems, Problem{Link: link, ServiceProblem: v1alpha1.ServiceProblem{Service: service, Reason: reason, Message: message}})
}

// possibleMirror reports whether AssignMirrors can have made m. No two VIPs, two
// indexes or two ports of it are alike.
func possibleMirror(m v1alpha1.LedgerMirror) bool {
	if m.Link == "" || m.Namespace == "" || m.Service == "" || m.MirrorNamespace == "" || m.MirrorName == "" || len(m.VIPs) == 0 {
		return false
	}
	vips := make(map[string]bool)
	for _, s := range m.VIPs {
		ip, err := netip.ParseAddr(s)
		if err != nil || ip.String() != s || ip.Zone() != "" || vips[s] {
			return false
		}
		vips[s] = true
	}
	ports, indexes := make(map[[2]string]bool), make(map[int32]bool)
	for _, p := range m.Ports {
		k := [2]string{p.Name, p.Protocol}
		fits := p.Index >= 0 && p.Index < Listeners && p.Port >= 1 && p.Port <= math.MaxUint16 && p.Route >= 0 && p.Route <= math.MaxUint32
		if !fits || ports[k] || indexes[p.Index] {
			return false
		}
		ports[k], indexes[p.Index] = true, true
	}
	return true
}

// possibleExport reports whether AssignExports can have made e.
func possibleExport(e v1alpha1.LedgerExport) bool {
	if e.Namespace == "" || e.Service == "" || len(e.Ports) == 0 {
		return false
	}
	ports, routes := make(map[[2]string]bool), make(map[int64]bool)
	for _, p := range e.Ports {
		k := [2]string{p.Name, p.Protocol}
		if p.Route < FirstRoute || p.Route > math.MaxUint32 || ports[k] || routes[p.Route] {
			return false
		}
		ports[k], routes[p.Route] = true, true
	}
	return true
}

// Shards returns the Book as objects of namespace, all of them, sorted. They
// share memory with the Book and must not be changed.
func (b Book) Shards(namespace string) []v1alpha1.Ledger {
	out := make([]v1alpha1.Ledger, shardCount)
	for i := range out {
		out[i].Namespace, out[i].Name = namespace, fmt.Sprintf("ledger-%02d", i)
	}
	for _, m := range b.mirrors {
		s := &out[shardOf(sourceOf(m).String())]
		s.Mirrors = append(s.Mirrors, m)
	}
	for _, e := range b.exports {
		s := &out[shardOf(exportOf(e).String())]
		s.Exports = append(s.Exports, e)
	}
	return out
}

// shardOf is the FNV-1a hash of key, modulo the number of shards.
func shardOf(key string) int {
	h := fnv.New32a()
	h.Write([]byte(key))
	return int(h.Sum32() % shardCount)
}

// Changed returns the shards of want that say something else than have does,
// sorted by name: to be created if they have no resourceVersion, else updated.
// They carry the metadata of have, so that a write loses to a newer one.
// Objects of have that are no shards are left alone.
func Changed(have, want []v1alpha1.Ledger) []v1alpha1.Ledger {
	stored := make(map[string]v1alpha1.Ledger, len(have))
	for _, s := range have {
		stored[s.Name] = s
	}
	var out []v1alpha1.Ledger
	for _, w := range want {
		h, exists := stored[w.Name]
		if !exists && len(w.Mirrors)+len(w.Exports) == 0 {
			continue
		}
		if equality.Semantic.DeepEqual(h.Mirrors, w.Mirrors) && equality.Semantic.DeepEqual(h.Exports, w.Exports) {
			continue
		}
		if exists {
			h.ObjectMeta.DeepCopyInto(&w.ObjectMeta)
		}
		out = append(out, *w.DeepCopy())
	}
	slices.SortFunc(out, func(a, b v1alpha1.Ledger) int { return strings.Compare(a.Name, b.Name) })
	return out
}
