package ledger

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// States of a slot with a released entry.
const (
	_         = iota
	reserved  // released less than ReuseDelay ago
	available // may be reused
)

// block holds the entries of one block of virtual IPs. Pending entries are what is
// wanted, committed ones what is stored.
type block struct {
	object
	book   *Book
	number int
	// peer is the owner of the block; nil: the block is free. owner is the stored owner.
	peer  *peer
	owner string
	// freeing: the block is being returned, and owner is to become empty.
	freeing bool

	pending, committed [maxBlockSize]*record
	sent               *[maxBlockSize]*record // by a write that is not known to be committed
	mirrors            [maxBlockSize]*Mirror  // of committed entries, once they were reported
	state              [maxBlockSize]uint8

	// bytes is the size of the pending entries, and filled their number.
	bytes, filled int
	// dirty are slots whose pending entry is not committed; true: that is an allocation.
	dirty       map[int]bool
	allocations int
	// hold is when slots without entry may be given. What they were is not known.
	hold    int64
	held    bool // hold is to begin with the next plan
	applied v1alpha1.LedgerApplied
}

// block returns block n, made if need be.
func (b *Book) block(n int) *block {
	bl := b.blocks[n]
	if bl == nil {
		bl = &block{book: b, number: n, dirty: make(map[int]bool)}
		bl.name = blockName(n)
		b.blocks[n] = bl
	}
	return bl
}

// domain is the trust domain that the block belongs to.
func (bl *block) domain() string {
	if bl.peer != nil {
		return bl.peer.domain
	}
	return ""
}

// assign makes a peer the owner of the block; empty: the block becomes free. It removes
// all entries of another peer.
func (bl *block) assign(domain string) {
	if bl.domain() == domain {
		return
	}
	if p := bl.peer; p != nil {
		for slot := range bl.pending {
			if r := bl.pending[slot]; r != nil && r.Namespace != "" {
				p.markDirty(r.source())
			}
			bl.set(slot, nil)
			bl.commit(slot, nil)
		}
		p.blocks = slices.DeleteFunc(p.blocks, func(o *block) bool { return o == bl })
		bl.peer, bl.freeing = nil, false
		bl.book.dirtyPeers[p] = struct{}{}
	}
	if domain != "" {
		p := bl.book.peer(domain)
		i, _ := slices.BinarySearchFunc(p.blocks, bl.number, func(o *block,
			n int) int {
			return o.number - n
		})
		p.blocks = slices.Insert(p.blocks, i, bl)
		bl.peer = p
	}
}

// keep undoes free, unless it is being written already.
func (bl *block) keep() {
	if !bl.freeing || bl.inFlight != nil {
		return
	}
	bl.freeing = false
	for slot, r := range bl.committed {
		bl.set(slot, r)
	}
}

// set makes r the pending entry of a slot.
func (bl *block) set(slot int, r *record) {
	old := bl.pending[slot]
	if r.same(bl.committed[slot]) {
		r = bl.committed[slot]
	}
	if old == r {
		return
	}
	at := place{bl, slot}
	bl.bytes += r.size() - old.size()
	bl.filled += compareBool(r != nil, old != nil)
	if old.live() && r.live() && old.source() == r.source() && old.name() == r.name() {
		bl.pending[slot] = r
		bl.peer.remember(r)
		bl.mark(slot)
		return
	}
	bl.peer.uncount(at, old)
	bl.pending[slot] = r
	bl.peer.count(at, r)
	bl.peer.relist(at, old)
	bl.mark(slot)
}

// commit makes r the committed entry of a slot.
func (bl *block) commit(slot int, r *record) {
	old := bl.committed[slot]
	if old == r {
		return
	}
	at, b := place{bl, slot}, bl.book
	if old.live() {
		b.stored.remove(old.name(), at)
		b.changeName(old.name())
		bl.peer.change(old.source())
	}
	bl.committed[slot], bl.mirrors[slot] = r, nil
	if bl.pending[slot].same(r) {
		bl.pending[slot] = r
	}
	if r.live() {
		b.stored.add(r.name(), at)
		b.changeName(r.name())
		bl.peer.change(r.source())
	}
	bl.peer.relist(at, old)
	bl.mark(slot)
}

// restore sees that no slot's pending entry is of another source than the committed one,
// after a write of this Book was committed whose content it had given up in the meantime.
func (bl *block) restore(slot int) {
	c, n := bl.committed[slot], bl.pending[slot]
	if c == nil || bl.freeing || n != nil && n.source() == c.source() {
		return
	}
	for _, r := range [...]*record{c, n} {
		if r != nil && r.Namespace != "" {
			bl.peer.markDirty(r.source())
		}
	}
	bl.set(slot, c)
}

// open reports whether the slot may go to another source: what is stored there is known.
func (bl *block) open(slot int) bool {
	n := bl.pending[slot]
	return n.same(bl.committed[slot]) && (bl.sent == nil || n.same(bl.sent[slot]))
}

// changeName reports all sources again whose committed mirrors have that name.
func (b *Book) changeName(k nameKey) {
	for _, at := range b.stored[k] {
		at.block.peer.change(at.committed().source())
	}
}

// mark keeps the account of what is to be written.
func (bl *block) mark(slot int) {
	if bl.dirty[slot] {
		bl.allocations--
	}
	if bl.pending[slot].same(bl.committed[slot]) {
		delete(bl.dirty, slot)
		return
	}
	allocation := !bl.pending[slot].sameAllocation(bl.committed[slot])
	bl.dirty[slot] = allocation
	if allocation {
		bl.allocations++
	}
	bl.book.dirtyBlocks[bl] = struct{}{}
}

// visible returns the committed mirror of a source: of its oldest entry, if no older
// source has the mirror's name.
func (b *Book) visible(p *peer, s Source) *Mirror {
	var places []place
	for _, at := range p.at[s] {
		if r := at.committed(); r.live() && r.source() == s {
			places = append(places, at)
		}
	}
	if len(places) == 0 {
		return nil
	}
	at := oldest(places, place.committed)
	r := at.committed()
	if oldest(b.stored[r.name()], place.committed) != at {
		return nil
	}
	bl := at.block
	if bl.mirrors[at.slot] == nil {
		vips := b.space.addresses(bl.slotNumber(at.slot))
		if at.slot >= b.space.size || len(vips) == 0 {
			return nil
		}
		bl.mirrors[at.slot] = r.mirror(p.domain, vips)
	}
	return bl.mirrors[at.slot]
}

// slotNumber is the number of a slot among those of all blocks.
func (bl *block) slotNumber(slot int) int { return bl.number*bl.book.space.size + slot }

// blockData is a block's Data.
type blockData struct {
	Hold    int64             `json:"z,omitempty"`
	Entries []json.RawMessage `json:"e,omitempty"`
}

// decodeBlock reads a block's data. have are its entries as known before: those whose
// JSON has not changed are not decoded again.
func decodeBlock(o *v1alpha1.Ledger, have *[maxBlockSize]*record) (out [maxBlockSize]*record, hold int64,
	problems []Problem, err error) {
	var data blockData
	if !printable(o.Owner, maxName) {
		return out, 0, nil, fmt.Errorf("decode: the owner is not valid")
	}
	if err := unpack(o.Data, &data); err != nil {
		return out, 0, nil, err
	}
	if data.Hold < 0 || data.Hold > maxSeconds || len(data.Entries) > maxBlockSize {
		return out, 0, nil, fmt.Errorf("decode: no block has %d entries", len(data.Entries))
	}
	if len(data.Entries) > 0 && o.Owner == "" {
		return out, 0, nil, fmt.Errorf("decode: entries without an owner")
	}
	known := make(map[string]*record)
	for _, r := range have {
		if r != nil {
			known[string(r.raw)] = r
		}
	}
	for _, raw := range data.Entries {
		r := known[string(raw)]
		if r == nil {
			r = new(record)
			if json.Unmarshal(raw, r) != nil || !r.seal().storable() {
				problems = append(problems, damaged(o.Name, "an entry is not valid"))
				continue
			}
		}
		if other := out[r.Slot]; other != nil {
			problems = append(problems, problem(r.source().String(), Duplicate,
				"Ledger "+o.Name+": the entry claims the address of "+other.source().String()))
			continue
		}
		out[r.Slot] = r
	}
	return out, data.Hold, problems, nil
}

// encode returns the block's data.
func (bl *block) encode() []byte {
	var raw bytes.Buffer
	raw.WriteString(`{`)
	if bl.hold != 0 {
		raw.WriteString(`"z":` + strconv.FormatInt(bl.hold, 10) + `,`)
	}
	raw.WriteString(`"e":[`)
	comma := ""
	for _, r := range bl.pending {
		if r != nil {
			raw.WriteString(comma)
			raw.Write(r.raw)
			comma = ","
		}
	}
	raw.WriteString(`]}`)
	return bl.book.compressor.compress(raw.Bytes())
}

// loadBlock takes block n as it is stored.
func (b *Book) loadBlock(n int, o *v1alpha1.Ledger) []Problem {
	bl := b.block(n)
	outcome := bl.observe(o)
	if outcome == older {
		return nil
	}
	entries, hold, problems, err := decodeBlock(o, &bl.committed)
	switch {
	case outcome == edited:
		b.dirtyBlocks[bl] = struct{}{}
		return []Problem{damaged(o.Name, "it was edited by hand, and is written again as it was")}
	case err != nil && bl.known:
		bl.overwrite = true
		b.dirtyBlocks[bl] = struct{}{}
		return []Problem{damaged(o.Name, err.Error()+"; it is written again as it was")}
	case err != nil:
		// The sources of its addresses are not known, so none is reused for ReuseDelay.
		problems = append(problems, damaged(o.Name, err.Error()+"; its mirrors get other addresses"))
	}
	if bl.freeing {
		bl.freeing = false
		for slot, r := range bl.committed {
			bl.set(slot, r)
		}
	}
	bl.accept(o.Generation)
	bl.overwrite = err != nil
	bl.owner, bl.hold = "", hold
	if err == nil || printable(o.Owner, maxName) {
		bl.owner = o.Owner
	}
	if bl.owner != "" {
		b.directory.set(n, bl.owner)
	}
	bl.assign(b.directory.pending[n])
	if len(problems) > 0 {
		bl.overwrite, bl.held = true, true
	}
	if bl.overwrite {
		b.dirtyBlocks[bl] = struct{}{}
	}
	if bl.peer == nil {
		return problems
	}
	for slot, theirs := range entries {
		problems = append(problems, bl.merge(slot, theirs)...)
	}
	if bl.bytes > maxEntries {
		bl.reset() // what two leaders have added does not fit together
	}
	bl.loadApplied(o)
	b.dirtyPeers[bl.peer] = struct{}{}
	return problems
}

// reset drops what is pending. All of it is planned again.
func (bl *block) reset() {
	for slot, mine := range bl.pending {
		if mine != bl.committed[slot] {
			if mine != nil && mine.Namespace != "" {
				bl.peer.markDirty(mine.source())
			}
			bl.set(slot, bl.committed[slot])
		}
	}
}

// merge takes one stored entry. What only this Book has changed stays pending; what
// another leader has changed is taken, and its sources are planned again.
func (bl *block) merge(slot int, theirs *record) (problems []Problem) {
	p, base, mine := bl.peer, bl.committed[slot], bl.pending[slot]
	if theirs.same(base) {
		return nil
	}
	keep := theirs.same(mine) || bl.sent != nil && theirs.same(bl.sent[slot])
	bl.commit(slot, theirs)
	if !keep {
		if mine != nil && mine.Namespace != "" {
			p.markDirty(mine.source())
		}
		bl.set(slot, theirs)
	}
	bl.restore(slot)
	if theirs == nil || theirs.Namespace == "" {
		return nil
	}
	p.markDirty(theirs.source())
	if !theirs.live() {
		return nil
	}
	for _, at := range p.at[theirs.source()] {
		if r := at.committed(); at != (place{bl, slot}) && r.live() && r.source() == theirs.source() {
			problems = append(problems, problem(theirs.source().String(), Duplicate,
				"the ledger has two entries of the Service: the older stays"))
		}
	}
	return problems
}

// loadApplied takes what the block says of the applied version. The first block that says
// something is right, unless this Book has applied something since. Of two versions of
// one epoch, the newer is right.
func (bl *block) loadApplied(o *v1alpha1.Ledger) {
	p := bl.peer
	before := bl.applied
	bl.applied = v1alpha1.LedgerApplied{}
	if a := o.Applied; a != nil && printable(a.Epoch, 64) && a.Generation >= 0 {
		bl.applied = *a
	}
	if bl.applied == before {
		return
	}
	for _, other := range p.blocks {
		if other.applied == (v1alpha1.LedgerApplied{}) {
			continue
		}
		newer := p.applied.Epoch == bl.applied.Epoch && p.applied.Generation < bl.applied.Generation
		if other == bl && (newer || p.applied == before || p.applied == (v1alpha1.LedgerApplied{})) {
			p.applied = bl.applied
		}
		return
	}
}

// startHold begins the time for which slots without entry are not given.
func (bl *block) startHold(now time.Time) {
	if bl.held {
		bl.held, bl.hold = false, seconds(now.Add(ReuseDelay))
	}
}
