package ledger

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// Quotas bound what one Link may have. A zero field bounds nothing.
type Quotas struct {
	// Mirrors is how many mirrors it may have in all, PerNamespace how many in one
	// of our namespaces.
	Mirrors, PerNamespace int
	// Hostnames is how many named pods of one Service may have mirrors.
	Hostnames int
	// VIPPercent is its share of each range of virtual IPs. Mirrors that rest count.
	VIPPercent int
}

// share is the part of the smallest range that VIPPercent stands for: one address at least.
func (q Quotas) share(pools []*pool) int {
	const enough = 24 // bits: more mirrors than any ledger holds
	least := 1 << enough
	for _, p := range pools {
		least = min(least, 1<<min(p.prefix.Addr().BitLen()-p.prefix.Bits(), enough))
	}
	return max(1, least*q.VIPPercent/100)
}

// tally counts what one Link has been given.
type tally struct {
	quotas  Quotas
	share   int
	resting int // entries that hold VIPs and may not be given anew yet
	mirrors int
	in      map[string]int // by our namespace
	hosts   map[source]int // by the Service that they are pods of
	refused map[string]int // by the quota
}

// bound returns those of wants, which are sorted by source, that the Links' quotas
// allow. The mirrors that the Book saw first stay; what lives already and is beyond
// the quotas rests.
func (a *assigner) bound(peers []Peer, wants []want) []want {
	tallies := make(map[string]*tally, len(peers))
	for _, p := range peers {
		tallies[p.Link] = &tally{quotas: p.Quotas, share: p.Quotas.share(a.pools), in: make(map[string]int), hosts: make(map[source]int), refused: make(map[string]int)}
	}
	a.countOthers(tallies, wants)
	byAge := slices.Clone(wants)
	slices.SortStableFunc(byAge, a.compareAge)
	allowed := make(map[source]bool, len(wants))
	for _, w := range byAge {
		m := a.current[w.source]
		lives := m != nil && m.RestingSince == nil
		if (w.host == "" || allowed[w.whole()]) && tallies[w.link].take(w, lives) {
			allowed[w.source] = true
			continue
		}
		if lives {
			m.RestingSince = restFrom(a.now)
		}
		if m != nil && !rested(m.RestingSince, a.now) {
			tallies[w.link].resting++
		}
	}
	for link, t := range tallies {
		if p, any := t.problem(link); any {
			a.problems = append(a.problems, p)
		}
	}
	return slices.DeleteFunc(wants, func(w want) bool { return !allowed[w.source] })
}

// countOthers counts the entries that no want is for: those of a peer whose whole
// catalog has not arrived live on, and those that rest hold their VIPs.
func (a *assigner) countOthers(tallies map[string]*tally, wants []want) {
	wanted := make(map[source]bool, len(wants))
	for _, w := range wants {
		wanted[w.source] = true
	}
	count := func(m *v1alpha1.LedgerMirror) {
		t := tallies[m.Link]
		switch {
		case t == nil || rested(m.RestingSince, a.now):
		case m.RestingSince != nil:
			t.resting++
		default:
			t.mirrors++
			t.in[m.MirrorNamespace]++
			if m.Hostname != "" {
				t.hosts[sourceOf(*m).whole()]++
			}
		}
	}
	for k, m := range a.current {
		if !wanted[k] {
			count(m)
		}
	}
	for i := range a.old {
		count(&a.old[i])
	}
}

// compareAge orders wants by how long their mirrors have lived; those that do not
// live come last, by source.
func (a *assigner) compareAge(x, y want) int {
	m, n := a.current[x.source], a.current[y.source]
	mLives, nLives := m != nil && m.RestingSince == nil, n != nil && n.RestingSince == nil
	switch {
	case mLives != nLives && mLives:
		return -1
	case mLives != nLives:
		return 1
	case !mLives:
		return x.compare(y.source)
	}
	return cmp.Or(compareSince(m.Since, n.Since), x.compare(y.source))
}

// compareSince orders the earlier before the later, and the earliest are those
// that have no time.
func compareSince(a, b *metav1.Time) int {
	switch {
	case a == nil && b == nil:
		return 0
	case a == nil:
		return -1
	case b == nil:
		return 1
	}
	return a.Compare(b.Time)
}

// take counts w, unless that is beyond a quota. Mirrors that rest keep newcomers
// out, and nobody who lives.
func (t *tally) take(w want, lives bool) bool {
	held := t.mirrors
	if !lives {
		held += t.resting
	}
	over, pods := "", 0
	if w.host != "" {
		pods = 1
	}
	switch q := t.quotas; {
	case q.Mirrors > 0 && t.mirrors >= q.Mirrors:
		over = "services"
	case q.PerNamespace > 0 && t.in[w.MirrorNamespace] >= q.PerNamespace:
		over = "servicesPerNamespace"
	case q.Hostnames > 0 && t.hosts[w.whole()]+pods > q.Hostnames:
		over = "hostnames"
	case q.VIPPercent > 0 && held >= t.share:
		over = "vipPercent"
	}
	if over != "" {
		t.refused[over]++
		return false
	}
	t.mirrors++
	t.in[w.MirrorNamespace]++
	t.hosts[w.whole()] += pods
	return true
}

// problem counts what was refused, in one sentence.
func (t *tally) problem(link string) (Problem, bool) {
	total := 0
	var which []string
	for _, quota := range []string{"hostnames", "services", "servicesPerNamespace", "vipPercent"} {
		if n := t.refused[quota]; n > 0 {
			total += n
			which = append(which, fmt.Sprintf("%d by %s", n, quota))
		}
	}
	return Problem{Link: link, ServiceProblem: v1alpha1.ServiceProblem{
		Reason: QuotaReached, Message: fmt.Sprintf("the Link's import quotas leave out %d mirrors: %s", total, strings.Join(which, ", ")),
	}}, total > 0
}
