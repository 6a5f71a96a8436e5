package ledger

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// peer is what the Book knows of one trust domain.
type peer struct {
	book   *Book
	domain string
	link   string
	quotas Quotas
	// linked: a Link is in force. gone: there is none any more. A peer that is neither is
	// known from the stored ledger alone, and its entries stay as they are.
	linked, gone bool
	// complete: everything that the peer exports has been wanted.
	complete bool

	wants    map[Source]*MirrorWant
	arrived  map[Source]uint64   // when a want was planned first
	unwanted map[Source]struct{} // said not to be exported, and not planned since
	blocks   []*block            // sorted by number
	at       map[Source][]place  // of pending and committed entries
	pods     map[Source]map[Source]struct{}

	dirty   map[Source]struct{} // to be planned
	changed map[Source]struct{} // to be reported
	view    map[Source]*Mirror  // as reported

	counts    counts
	recheck   bool // the quotas may be exceeded
	reserved  released
	available []releasedSlot // longest released first
	returnAt  time.Time      // when to try to return blocks

	waits      map[Source]waitKey
	queues     map[waitKey]*waiting
	freed      map[waitKey]bool
	waitCounts map[string]int
	names      map[Source]nameKey // sources that wait for a name
	problems   map[problemKey]Problem

	allocation, content bucket
	applied             v1alpha1.LedgerApplied
}

type problemKey struct {
	source Source
	reason string
}

// peer returns the peer of a trust domain, made if need be.
func (b *Book) peer(domain string) *peer {
	p := b.peers[domain]
	if p == nil {
		p = &peer{
			book:       b,
			domain:     domain,
			wants:      make(map[Source]*MirrorWant),
			arrived:    make(map[Source]uint64),
			unwanted:   make(map[Source]struct{}),
			at:         make(map[Source][]place),
			pods:       make(map[Source]map[Source]struct{}),
			dirty:      make(map[Source]struct{}),
			changed:    make(map[Source]struct{}),
			view:       make(map[Source]*Mirror),
			counts:     counts{in: make(map[string]int), pods: make(map[Source]int)},
			waits:      make(map[Source]waitKey),
			queues:     make(map[waitKey]*waiting),
			freed:      make(map[waitKey]bool),
			waitCounts: make(map[string]int),
			names:      make(map[Source]nameKey),
			problems:   make(map[problemKey]Problem),
			allocation: allocationBudget(),
			content:    contentBudget(),
		}
		b.peers[domain] = p
	}
	return p
}

// first is the block that bears what concerns the whole peer; nil: it has none.
func (p *peer) first() *block {
	for _, bl := range p.blocks {
		if !bl.freeing {
			return bl
		}
	}
	return nil
}

// markDirty sees that s is planned. A process that does not write plans nothing.
func (p *peer) markDirty(s Source) {
	if !p.book.writing {
		return
	}
	p.dirty[s] = struct{}{}
	p.book.dirtyPeers[p] = struct{}{}
}

func (p *peer) change(s Source) {
	p.changed[s] = struct{}{}
	p.book.changed[p] = struct{}{}
}

// markPods marks the named pods of a Service, which depend on it.
func (p *peer) markPods(s Source) {
	if s.Hostname != "" {
		return
	}
	for pod := range p.pods[s] {
		p.markDirty(pod)
	}
}

// want records a want.
func (p *peer) want(w MirrorWant) {
	s := w.Source()
	delete(p.unwanted, s)
	if old := p.wants[s]; old != nil && old.equal(&w) {
		return
	}
	p.wants[s] = &w
	p.addPod(s)
	p.markDirty(s)
	p.markPods(s) // an absent pod's mirror has its Service's ports
}

// forgetWant removes a want and what waits for it.
func (p *peer) forgetWant(s Source) {
	delete(p.wants, s)
	delete(p.arrived, s)
	p.stopWaiting(s)
	p.stopWaitingForName(s)
	p.clear(s)
	p.removePod(s)
	p.markDirty(s)
	p.markPods(s)
}

func (p *peer) addPod(s Source) {
	if s.Hostname == "" {
		return
	}
	pods := p.pods[s.whole()]
	if pods == nil {
		pods = make(map[Source]struct{})
		p.pods[s.whole()] = pods
	}
	pods[s] = struct{}{}
}

// removePod forgets a named pod that is neither wanted nor has an entry.
func (p *peer) removePod(s Source) {
	if s.Hostname == "" || p.wants[s] != nil || len(p.at[s]) > 0 {
		return
	}
	delete(p.pods[s.whole()], s)
	if len(p.pods[s.whole()]) == 0 {
		delete(p.pods, s.whole())
	}
}

// relist keeps the index of places after an entry of at has changed. old is what it was.
func (p *peer) relist(at place, old *record) {
	if old != nil && old.Namespace != "" {
		s := old.source()
		if !at.holds(s) {
			p.at[s] = slices.DeleteFunc(p.at[s], func(o place) bool { return o == at })
			if len(p.at[s]) == 0 {
				delete(p.at, s)
				p.removePod(s)
			}
		}
	}
	for _, r := range [...]*record{at.pending(), at.committed()} {
		if r != nil && r.Namespace != "" && !slices.Contains(p.at[r.source()], at) {
			p.at[r.source()] = append(p.at[r.source()], at)
			p.addPod(r.source())
		}
	}
}

// holds reports whether an entry of the place is of s.
func (at place) holds(s Source) bool {
	c, n := at.committed(), at.pending()
	return c != nil && c.source() == s || n != nil && n.source() == s
}

// settle plans everything that has changed.
func (b *Book) settle(now time.Time) {
	if !b.directory.known || !b.writing {
		return // the size of blocks is not known, or another process decides
	}
	b.batch++
	for id, ok := b.absences.due(now); ok; id, ok = b.absences.due(now) {
		id.peer.markDirty(id.source)
	}
	for _, p := range b.peers {
		p.expire(now)
	}
	for len(b.dirtyPeers) > 0 {
		peers := make([]*peer, 0, len(b.dirtyPeers))
		for p := range b.dirtyPeers {
			if p.linked || p.gone {
				peers = append(peers, p)
			}
		}
		clear(b.dirtyPeers)
		slices.SortFunc(peers, func(x, y *peer) int { return strings.Compare(x.domain, y.domain) })
		for _, id := range b.takeDirty(peers) {
			b.plan(id.peer, id.source, now)
		}
		for _, p := range peers {
			if p.recheck {
				p.enforce(now)
			}
			p.retry(now)
		}
	}
	b.exports.settle(now)
}

// takeDirty returns the sources to be planned: those that were wanted first come first.
// Those that are not wanted come before all others, because they make room.
func (b *Book) takeDirty(peers []*peer) []sourceID {
	var out []sourceID
	for _, p := range peers {
		for s := range p.dirty {
			if p.wants[s] != nil && p.arrived[s] == 0 {
				p.arrived[s] = b.batch
			}
			out = append(out, sourceID{p, s})
		}
		clear(p.dirty)
	}
	slices.SortFunc(out, func(x, y sourceID) int {
		return cmp.Or(cmp.Compare(x.peer.arrived[x.source], y.peer.arrived[y.source]),
			strings.Compare(x.peer.domain, y.peer.domain), x.source.compare(y.source))
	})
	return out
}

// plan makes the pending entries of one source what they should be.
func (b *Book) plan(p *peer, s Source, now time.Time) {
	if !p.linked && !p.gone {
		p.dirty[s] = struct{}{} // until it is set
		return
	}
	at, lives := p.current(s, now)
	w := p.wants[s]
	if p.gone || w == nil {
		p.planUnwanted(s, at, lives, now)
		return
	}
	if s.Hostname != "" && !p.lives(s.whole()) {
		if lives {
			at.release(now)
		}
		p.stopWaiting(s)
		return // its Service brings it back
	}
	if holder, taken := b.holder(w.name(), at, lives); taken {
		if lives {
			at.release(now)
		}
		p.stopWaiting(s)
		p.waitForName(s, w.name())
		p.note(s, NameTaken,
			"the name is taken by the mirror of %v from %s, which is older: rename one of the two Services",
			holder.pending().source(), holder.block.domain())
		return
	}
	p.stopWaitingForName(s)
	p.clear(s)
	if lives && at.pending().name().namespace != w.MirrorNamespace && p.namespaceFull(w) {
		at.release(now)
		p.wait(s, waitKey{kind: waitPerNamespace, namespace: w.MirrorNamespace})
		return
	}
	if !lives {
		p.admit(s, w, now)
		return
	}
	p.stopWaiting(s)
	p.update(at, w, now)
}

// current returns the place of the live entry of s. Of several, which two leaders have
// made, the oldest stays.
func (p *peer) current(s Source, now time.Time) (place, bool) {
	var live []place
	for _, at := range p.at[s] {
		if r := at.pending(); r.live() && r.source() == s {
			live = append(live, at)
		}
	}
	if len(live) == 0 {
		return place{}, false
	}
	at := oldest(live, place.pending)
	for _, other := range live {
		switch {
		case other == at:
		case other.uncommitted():
			other.block.set(other.slot, other.committed())
		default:
			other.release(now)
		}
	}
	return at, true
}

// lives reports whether s has a live entry.
func (p *peer) lives(s Source) bool {
	return slices.ContainsFunc(p.at[s], func(at place) bool {
		r := at.pending()
		return r.live() && r.source() == s
	})
}

func (at place) release(now time.Time) {
	at.block.set(at.slot, at.pending().release(seconds(now)))
}

// planUnwanted releases the entry of a source that is not wanted. It does so at once or,
// if the source is a named pod whose Service is wanted, after RemovalDelay.
func (p *peer) planUnwanted(s Source, at place, lives bool, now time.Time) {
	_, unwanted := p.unwanted[s]
	delete(p.unwanted, s)
	if !lives {
		return
	}
	r := at.pending()
	unwanted = unwanted || p.complete || r.Absent != 0
	switch {
	case p.gone, s.Hostname != "" && !p.lives(s.whole()), s.Hostname == "" && unwanted:
		at.release(now)
		return
	case !unwanted:
		return // the catalog of the peer is not complete yet
	}
	absent := cmp.Or(r.Absent, seconds(now))
	if !now.Before(time.Unix(absent, 0).Add(RemovalDelay)) {
		at.release(now)
		return
	}
	next := *r
	if parent := p.wants[s.whole()]; parent != nil {
		w := *parent
		w.Hostname, w.MirrorNamespace, w.MirrorName = s.Hostname, r.name().namespace, r.MirrorName
		w.Headless, w.Named, w.AffinitySeconds = false, false, 0
		changed, _, _ := newRecord(&w, r, at.slot, r.Since)
		next = *changed
	}
	next.Absent = absent
	if p.replace(at, next.seal()); at.pending().Absent == 0 {
		at.release(now) // the block has no room to remember the time
	}
}

// holder returns the live entry that keeps a name from the source whose entry is at.
func (b *Book) holder(k nameKey, at place, lives bool) (place, bool) {
	var others []place
	for _, o := range b.names[k] {
		if !lives || o != at {
			others = append(others, o)
		}
	}
	if len(others) == 0 {
		return place{}, false
	}
	first := oldest(others, place.pending)
	if lives && at.pending().name() == k && compareAge(at, first, place.pending) < 0 {
		for _, o := range others {
			o.block.peer.markDirty(o.pending().source())
		}
		return place{}, false
	}
	return first, true
}

func (p *peer) waitForName(s Source, k nameKey) {
	if had, waits := p.names[s]; waits && had == k {
		return
	}
	p.stopWaitingForName(s)
	p.names[s] = k
	p.book.waiters[k] = append(p.book.waiters[k], sourceID{p, s})
}

func (p *peer) stopWaitingForName(s Source) {
	k, waits := p.names[s]
	if !waits {
		return
	}
	delete(p.names, s)
	left := slices.DeleteFunc(p.book.waiters[k], func(id sourceID) bool { return id == sourceID{p, s} })
	if p.book.waiters[k] = left; len(left) == 0 {
		delete(p.book.waiters, k)
	}
}

// wake plans those who wait for a name again.
func (b *Book) wake(k nameKey) {
	for _, id := range b.waiters[k] {
		id.peer.markDirty(id.source)
	}
}

// admit gives a source its entry: the one that it had, or a new one.
func (p *peer) admit(s Source, w *MirrorWant, now time.Time) {
	had, found := p.latest(s)
	own := 0
	if found && had.block.state[had.slot] == reserved {
		own = 1
	}
	if k, refused := p.refusal(w, own); refused {
		p.wait(s, k)
		return
	}
	if found && p.revive(had, w, now) {
		p.stopWaiting(s)
		return
	}
	r, left, shortened := newRecord(w, nil, 0, seconds(now))
	if !r.storable() {
		p.note(s, ContentTooLarge, "the names of the Service or of its ports are not valid or too long")
		return
	}
	at, k, ok := p.book.allot(p, r.size()+slotDigits, now)
	if !ok {
		p.wait(s, k)
		return
	}
	p.stopWaiting(s)
	r.Slot = at.slot
	at.block.set(at.slot, r.seal())
	p.noteContent(s, left, shortened)
}

// slotDigits is how much larger an entry may be in another slot than in slot 0.
const slotDigits = 2

// latest returns the place of the released entry of s that lived last.
func (p *peer) latest(s Source) (place, bool) {
	var best place
	for _, at := range p.at[s] {
		r := at.pending()
		if r == nil || r.live() || r.source() != s || at.block.freeing {
			continue
		}
		if at.slot >= p.book.space.size || !p.book.space.usable(at.block.slotNumber(at.slot)) {
			continue
		}
		if best.block == nil || r.Released > best.pending().Released {
			best = at
		}
	}
	return best, best.block != nil
}

// revive brings a released entry back to life. It reports false if that does not fit.
func (p *peer) revive(at place, w *MirrorWant, now time.Time) bool {
	had, since := at.pending(), seconds(now)
	if c := at.committed(); c.live() && c.source() == w.Source() {
		had, since = c, c.Since // the release was never stored
	}
	r, left, shortened := newRecord(w, had, at.slot, since)
	if len(left) > 0 || !r.storable() || !at.block.fits(at, r) {
		return false
	}
	at.block.set(at.slot, r)
	p.noteContent(w.Source(), nil, shortened)
	return true
}

// fits reports whether the block has room for r in place of what is there.
func (bl *block) fits(at place, r *record) bool {
	grows := r.size() - at.pending().size()
	return grows <= 0 || bl.bytes+grows <= maxEntries
}

// update makes a live entry say what the peer says now.
func (p *peer) update(at place, w *MirrorWant, now time.Time) {
	had := at.pending()
	r, left, shortened := newRecord(w, had, at.slot, had.Since)
	if len(left) > 0 {
		// The indexes are used up: the mirror begins again at another address.
		next, lost, short := newRecord(w, nil, 0, had.Since)
		if to, _, ok := p.book.allot(p, next.size()+slotDigits, now); ok && next.storable() {
			next.Slot = to.slot
			at.release(now)
			to.block.set(to.slot, next.seal())
			p.noteContent(w.Source(), lost, short)
			return
		}
	}
	p.noteContent(w.Source(), left, shortened)
	p.replace(at, r)
}

// replace makes r the entry of at, if the block has room.
func (p *peer) replace(at place, r *record) {
	had := at.pending()
	switch bare := r.bare(); {
	case !r.storable():
		p.note(r.source(), ContentTooLarge,
			"the names of the Service's ports are not valid or too long: what was there before stays")
	case at.block.fits(at, r):
		at.block.set(at.slot, r)
	case !r.sameAllocation(had) && at.block.fits(at, bare):
		at.block.set(at.slot, bare)
		p.note(r.source(), ContentTooLarge,
			"the peer's description does not fit the ledger's block: ports and names are taken, "+
				"identities are not")
	default:
		p.note(r.source(), ContentTooLarge,
			"the peer's description does not fit the ledger's block: what was there before stays")
	}
}

// allot returns a slot for an entry of need bytes, or what to wait for: a slot that was
// never used, then the one that was released longest ago, then one of a new block.
func (b *Book) allot(p *peer, need int, now time.Time) (place, waitKey, bool) {
	for _, bl := range p.blocks {
		if slot, ok := bl.unused(need, now); ok {
			return place{bl, slot}, waitKey{}, true
		}
	}
	if at, ok := p.reuse(need, now); ok {
		return at, waitKey{}, true
	}
	if len(p.blocks) >= p.quotas.maxBlocks(b.space) {
		return place{}, waitKey{kind: waitShare}, false
	}
	for n := b.directory.firstFree(); n < b.space.blocks(); n++ {
		bl := b.blocks[n]
		if b.directory.pending[n] != "" || bl != nil && (bl.domain() != "" || bl.inFlight != nil) {
			continue
		}
		bl = b.block(n)
		if slot, ok := bl.unused(need, now); ok {
			b.directory.set(n, p.domain)
			bl.assign(p.domain)
			return place{bl, slot}, waitKey{}, true
		}
	}
	return place{}, waitKey{kind: waitVIP}, false
}

// unused returns the first slot that has no entry and that no slice lists.
func (bl *block) unused(need int, now time.Time) (int, bool) {
	if bl.startHold(now); bl.freeing || bl.filled == maxBlockSize || bl.bytes+need > maxEntries ||
		bl.hold > now.Unix() {
		return 0, false
	}
	fallback := -1
	for slot := range bl.book.space.size {
		if bl.pending[slot] != nil || !bl.open(slot) {
			continue
		}
		ok, foreign := bl.book.unlisted(bl.slotNumber(slot))
		if ok && !foreign {
			return slot, true
		}
		if ok && fallback < 0 {
			fallback = slot
		}
	}
	return max(fallback, 0), fallback >= 0
}

// unlisted reports whether a slot that was never used can be used, and whether a foreign
// slice lists it, in which case other slots are used first.
func (b *Book) unlisted(number int) (ok, foreign bool) {
	for _, r := range b.space.ranges {
		a, usable := address(r, number)
		if !usable {
			continue
		}
		ok = true
		by := b.listed[a]
		if by.Causeway {
			return false, false
		}
		foreign = foreign || by.Other != ""
	}
	return ok, foreign
}

// reuse returns the slot that was released longest ago and may be given.
func (p *peer) reuse(need int, now time.Time) (place, bool) {
	kept := p.available[:0]
	var found place
	for i, r := range p.available {
		e := r.pending()
		if r.block.peer != p || e == nil || e.Released != r.at || r.block.state[r.slot] != available {
			continue // it lives again or was given
		}
		bl := r.block
		n := bl.slotNumber(r.slot)
		if bl.freeing || !bl.open(r.slot) || bl.bytes+need-e.size() > maxEntries ||
			!p.book.space.usable(n) || p.book.heldBack(n, r.at, now) {
			kept = append(kept, r)
			continue
		}
		found = r.place
		kept = append(kept, p.available[i+1:]...)
		break
	}
	p.available = kept
	return found, found.block != nil
}

// note records a problem of a source.
func (p *peer) note(s Source, reason, format string, args ...any) {
	service := s.String()
	if w := p.wants[s]; w != nil {
		service = w.name().String()
	}
	p.problems[problemKey{s, reason}] = problem(service, reason, fmt.Sprintf(format, args...))
}

func (p *peer) noteContent(s Source, left []PortWant, shortened bool) {
	if len(left) > 0 {
		p.note(s, PortsExhausted,
			"the mirror has had %d ports, so %d are left out: unexport the Service and export it again "+
				"to renew it",
			Listeners, len(left))
	}
	if shortened {
		p.note(s, ContentTooLarge,
			"the peer's description exceeds %d bytes: application protocols and identities are left out",
			maxEntry)
	}
}

// clear removes the problems of a source.
func (p *peer) clear(s Source) {
	for _, reason := range [...]string{NameTaken, PortsExhausted, ContentTooLarge} {
		delete(p.problems, problemKey{s, reason})
	}
}

// listProblems returns what is wrong with the peer's mirrors, unsorted.
func (p *peer) listProblems(s space) []Problem {
	out := p.waitProblems()
	for _, q := range p.problems {
		out = append(out, q)
	}
	for _, bl := range p.blocks {
		if bl.failure != "" {
			out = append(out, writeFailed(bl.name, bl.failure))
		} else if d := &p.book.directory; d.failure != "" && !bl.allotted() {
			out = append(out, writeFailed(directoryName, d.failure))
		}
	}
	for _, r := range s.ranges {
		lacking := 0
		for _, bl := range p.blocks {
			if (bl.number+1)*s.size <= capacity(r) {
				continue
			}
			for slot, e := range bl.pending {
				if _, ok := address(r, bl.slotNumber(slot)); e.live() && !ok {
					lacking++
				}
			}
		}
		if lacking > 0 {
			out = append(out, problem("", VIPsExhausted, fmt.Sprintf(
				"%v has no virtual IP for %d mirrors, which have one of another range only: install with "+
					"a larger vipCIDR", r, lacking)))
		}
	}
	return out
}
