package ledger

import (
	"cmp"
	"container/heap"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Quotas bound what one peer may have. A zero field bounds nothing.
type Quotas struct {
	// Mirrors is how many mirrors it may have in all, PerNamespace how many in one of our
	// namespaces.
	Mirrors, PerNamespace int
	// Hostnames is how many named pods of one Service may have mirrors.
	Hostnames int
	// VIPPercent is its share of the smallest range of virtual IPs. Addresses that are
	// not reusable yet count. Its blocks are bounded by the same share, rounded up.
	VIPPercent int
}

// share is the number of addresses that VIPPercent stands for: one at least.
func (q Quotas) share(s space) int { return max(1, s.smallest()*q.VIPPercent/100) }

// maxBlocks is how many blocks the peer may have.
func (q Quotas) maxBlocks(s space) int {
	if q.VIPPercent == 0 {
		return maxBlocks
	}
	return (q.share(s) + s.size - 1) / s.size
}

// Quotas, and what else a want may wait for.
const (
	waitMirrors      = "services"
	waitPerNamespace = "servicesPerNamespace"
	waitHostnames    = "hostnames"
	waitShare        = "vipPercent"
	waitVIP          = "" // no quota: no address is left
)

// waitKey is what a want waits for.
type waitKey struct {
	kind      string
	namespace string // ours, for waitPerNamespace
	whole     Source // for waitHostnames
}

func (k waitKey) compare(o waitKey) int {
	return cmp.Or(strings.Compare(k.kind, o.kind), strings.Compare(k.namespace, o.namespace),
		k.whole.compare(o.whole))
}

// waiting is a heap of sources in the order of their arrival.
type waiting []waiter

type waiter struct {
	arrived uint64
	source  Source
}

func (q waiting) Len() int { return len(q) }
func (q waiting) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(q[i].arrived, q[j].arrived), q[i].source.compare(q[j].source)) < 0
}
func (q waiting) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *waiting) Push(x any)   { *q = append(*q, x.(waiter)) }
func (q *waiting) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}

// counts is what a peer has been given, kept up to date with each entry.
type counts struct {
	mirrors  int
	reserved int            // released entries whose addresses are not reusable yet
	in       map[string]int // mirrors by our namespace
	pods     map[Source]int // mirrors of named pods by their Service
}

func (c *counts) add(r *record, n int) {
	c.mirrors += n
	addTo(c.in, r.name().namespace, n)
	if r.Hostname != "" {
		addTo(c.pods, r.source().whole(), n)
	}
}

func addTo[K comparable](m map[K]int, k K, n int) {
	if m[k] += n; m[k] == 0 {
		delete(m, k)
	}
}

// count takes note of a pending entry.
func (p *peer) count(at place, r *record) {
	switch {
	case r == nil:
	case !r.live():
		at.block.state[at.slot] = reserved
		p.counts.reserved++
		p.reserved.add(r.Released, at)
	default:
		p.counts.add(r, 1)
		p.book.names.add(r.name(), at)
		p.remember(r)
		if q := p.quotas; q.Mirrors > 0 && p.counts.mirrors > q.Mirrors ||
			q.PerNamespace > 0 && p.counts.in[r.name().namespace] > q.PerNamespace ||
			q.Hostnames > 0 && p.counts.pods[r.source().whole()] > q.Hostnames ||
			q.VIPPercent > 0 && p.counts.mirrors > q.share(p.book.space) {
			p.recheck = true
			p.book.dirtyPeers[p] = struct{}{}
		}
		p.markPods(r.source())
	}
}

// remember sees that an absent pod's mirror is planned again when its time has come.
func (p *peer) remember(r *record) {
	if until := r.absentUntil(); !until.IsZero() {
		p.book.absences.add(until, sourceID{p, r.source()})
	}
}

// absentUntil is when the mirror of an absent pod is released; the zero time: never.
func (p *peer) absentUntil(s Source) time.Time {
	for _, at := range p.at[s] {
		if r := at.pending(); r.live() && r.source() == s && r.Absent != 0 {
			return r.absentUntil()
		}
	}
	return time.Time{}
}

// uncount undoes count. What becomes free goes to those who wait for it.
func (p *peer) uncount(at place, r *record) {
	switch {
	case r == nil:
	case !r.live():
		if at.block.state[at.slot] == reserved {
			p.counts.reserved--
		}
		at.block.state[at.slot] = 0
		p.free(waitKey{kind: waitShare}, waitKey{kind: waitVIP})
	default:
		p.counts.add(r, -1)
		p.book.names.remove(r.name(), at)
		p.book.wake(r.name())
		p.free(waitKey{kind: waitMirrors}, waitKey{kind: waitShare}, waitKey{kind: waitPerNamespace,
			namespace: r.name().namespace})
		if r.Hostname != "" {
			p.free(waitKey{kind: waitHostnames, whole: r.source().whole()})
		}
		p.markPods(r.source())
	}
}

// free lets those who wait for any of keys try again.
func (p *peer) free(keys ...waitKey) {
	for _, k := range keys {
		if q := p.queues[k]; q != nil {
			p.freed[k] = true
			p.book.dirtyPeers[p] = struct{}{}
		}
	}
}

// retryAll lets everybody who waits try again.
func (p *peer) retryAll() {
	for k := range p.queues {
		p.freed[k] = true
	}
}

// expire makes released addresses available whose time has come.
func (p *peer) expire(now time.Time) {
	for {
		t, ok := p.reserved.first()
		if !ok || now.Before(t) {
			return
		}
		r := p.reserved.pop()
		r.block.state[r.slot] = available
		p.counts.reserved--
		p.available = append(p.available, r)
		p.free(waitKey{kind: waitShare}, waitKey{kind: waitVIP})
	}
}

// refusal returns the quota that keeps a mirror of w out, which has no live entry. own is
// how many of the peer's reserved addresses are w's.
func (p *peer) refusal(w *MirrorWant, own int) (waitKey, bool) {
	q, c, s := p.quotas, &p.counts, w.Source()
	switch {
	case q.Mirrors > 0 && c.mirrors >= q.Mirrors:
		return waitKey{kind: waitMirrors}, true
	case p.namespaceFull(w):
		return waitKey{kind: waitPerNamespace, namespace: w.MirrorNamespace}, true
	case q.Hostnames > 0 && s.Hostname != "" && c.pods[s.whole()] >= q.Hostnames:
		return waitKey{kind: waitHostnames, whole: s.whole()}, true
	case q.VIPPercent > 0 && c.mirrors+c.reserved-own >= q.share(p.book.space):
		return waitKey{kind: waitShare}, true
	}
	return waitKey{}, false
}

func (p *peer) namespaceFull(w *MirrorWant) bool {
	return p.quotas.PerNamespace > 0 && p.counts.in[w.MirrorNamespace] >= p.quotas.PerNamespace
}

// wait puts a source in the queue of k. It keeps the time of its arrival.
func (p *peer) wait(s Source, k waitKey) {
	if had, waits := p.waits[s]; waits {
		if had == k {
			return
		}
		p.stopWaiting(s)
	}
	q := p.queues[k]
	if q == nil {
		q = new(waiting)
		p.queues[k] = q
	}
	if q.Len() > 2*p.waitCounts[k.kind]+minHeap {
		*q = slices.DeleteFunc(*q, func(w waiter) bool { return p.waits[w.source] != k })
		heap.Init(q)
	}
	heap.Push(q, waiter{p.arrived[s], s})
	p.waits[s] = k
	p.waitCounts[k.kind]++
}

// stopWaiting takes a source out of its queue. The heap forgets it when it comes up.
func (p *peer) stopWaiting(s Source) {
	if k, waits := p.waits[s]; waits {
		delete(p.waits, s)
		addTo(p.waitCounts, k.kind, -1)
	}
}

// retry gives what has become free to those who wait, the oldest first.
func (p *peer) retry(now time.Time) {
	for len(p.freed) > 0 {
		keys := make([]waitKey, 0, len(p.freed))
		for k := range p.freed {
			keys = append(keys, k)
		}
		slices.SortFunc(keys, waitKey.compare)
		for _, k := range keys {
			delete(p.freed, k)
			p.retryKey(k, now)
		}
	}
}

func (p *peer) retryKey(k waitKey, now time.Time) {
	q := p.queues[k]
	for q != nil && q.Len() > 0 {
		w := (*q)[0]
		heap.Pop(q)
		if had, waits := p.waits[w.source]; !waits || had != k || p.arrived[w.source] != w.arrived {
			continue // it does not wait for k any more
		}
		p.stopWaiting(w.source)
		p.book.plan(p, w.source, now)
		if again, waits := p.waits[w.source]; waits && again == k {
			return // nothing was free
		}
	}
	if q != nil && q.Len() == 0 {
		delete(p.queues, k)
	}
}

// enforce releases live entries that are beyond the quotas, after these were lowered or
// another leader has given more. The oldest stay.
func (p *peer) enforce(now time.Time) {
	p.recheck = false
	var live []place
	for _, bl := range p.blocks {
		for slot, r := range bl.pending {
			if r.live() {
				live = append(live, place{bl, slot})
			}
		}
	}
	slices.SortFunc(live, func(x, y place) int { return compareAge(x, y, place.pending) })
	have := counts{in: make(map[string]int), pods: make(map[Source]int)}
	for _, at := range live {
		r := at.pending()
		k, over := p.beyond(r, &have)
		if !over {
			have.add(r, 1)
			continue
		}
		s := r.source()
		at.block.set(at.slot, r.release(seconds(now)))
		if p.wants[s] != nil {
			p.wait(s, k)
		}
	}
}

// beyond returns the quota that r is beyond, where have is what stays.
func (p *peer) beyond(r *record, have *counts) (waitKey, bool) {
	q, ns, whole := p.quotas, r.name().namespace, r.source().whole()
	switch {
	case q.Mirrors > 0 && have.mirrors >= q.Mirrors:
		return waitKey{kind: waitMirrors}, true
	case q.PerNamespace > 0 && have.in[ns] >= q.PerNamespace:
		return waitKey{kind: waitPerNamespace, namespace: ns}, true
	case q.Hostnames > 0 && r.Hostname != "" && have.pods[whole] >= q.Hostnames:
		return waitKey{kind: waitHostnames, whole: whole}, true
	case q.VIPPercent > 0 && have.mirrors >= q.share(p.book.space):
		return waitKey{kind: waitShare}, true
	}
	return waitKey{}, false
}

// waitProblems say in one sentence each how many mirrors wait.
func (p *peer) waitProblems() []Problem {
	var out []Problem
	if n := p.waitCounts[waitVIP]; n > 0 {
		out = append(out, problem("", VIPsExhausted, fmt.Sprintf(
			"no virtual IP is left for %d mirrors: unlink or unexport something and wait a day, or "+
				"install with a larger vipCIDR", n)))
	}
	total := 0
	var which []string
	for _, kind := range []string{waitHostnames, waitMirrors, waitPerNamespace, waitShare} {
		if n := p.waitCounts[kind]; n > 0 {
			total += n
			which = append(which, fmt.Sprintf("%d by %s", n, kind))
		}
	}
	if total > 0 {
		out = append(out, problem("", QuotaReached, fmt.Sprintf(
			"the Link's import quotas leave out %d mirrors: %s", total, strings.Join(which, ", "))))
	}
	return out
}
