package ledger

import (
	"slices"
	"time"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// Writes returns the objects to be stored now. It returns no object again before Done has
// been told of it. Only the leader calls it.
func (b *Book) Writes(now time.Time) []Write {
	if !b.writing {
		b.begin()
	}
	b.settle(now)
	b.returnBlocks(now)
	b.undoAllotments()
	var out []Write
	if w, ok := b.directoryWrite(now); ok {
		out = append(out, w)
	}
	if !b.directory.known {
		return out
	}
	dirty := make([]*block, 0, len(b.dirtyBlocks))
	for bl := range b.dirtyBlocks {
		dirty = append(dirty, bl)
	}
	slices.SortFunc(dirty, func(x, y *block) int { return x.number - y.number })
	for _, bl := range dirty {
		if w, ok := b.blockWrite(bl, now); ok {
			out = append(out, w)
		}
	}
	if w, ok := b.exports.write(b, now); ok {
		out = append(out, w)
	}
	return out
}

// begin makes this process the one that decides. All that was loaded is planned.
func (b *Book) begin() {
	b.writing = true
	for _, p := range b.peers {
		for s := range p.at {
			p.markDirty(s)
		}
		for s := range p.wants {
			p.markDirty(s)
		}
	}
}

// Done takes the outcome of a Write: the object as the API server returned it, or the
// error.
func (b *Book) Done(w Write, stored *v1alpha1.Ledger, err error, now time.Time) {
	switch kind, n := parseName(w.Object.Name); kind {
	case kindDirectory:
		b.directoryDone(w, stored, err, now)
	case kindMirrors:
		if bl := b.blocks[n]; bl != nil {
			b.blockDone(bl, w, stored, err, now)
		}
	case kindExports:
		b.exports.done(n, w, stored, err, now)
	}
}

// What a block has to write.
const (
	nothing = iota
	content
	allocation
)

// due tells what is to be written.
func (bl *block) due() int {
	switch {
	case bl.peer == nil:
		if bl.overwrite {
			return allocation
		}
		return nothing
	case bl.freeing || bl.overwrite || bl.allocations > 0:
		return allocation
	case len(bl.dirty) > 0 || bl.wantApplied() != bl.applied:
		return content
	}
	return nothing
}

// wantApplied is the applied version that the block should say.
func (bl *block) wantApplied() v1alpha1.LedgerApplied {
	if bl.peer != nil && bl.peer.first() == bl {
		return bl.peer.applied
	}
	return v1alpha1.LedgerApplied{}
}

// allotted reports whether the stored directory or the block itself says that it belongs
// to its peer.
func (bl *block) allotted() bool {
	return bl.peer == nil || bl.owner == bl.peer.domain ||
		bl.book.directory.committed[bl.number] == bl.peer.domain
}

// blockDue is when a dirty block can be written; the zero time: not before something
// happens.
func (b *Book) blockDue(bl *block, now time.Time) time.Time {
	if !b.writing || bl.inFlight != nil || bl.conflicted || !bl.allotted() {
		return time.Time{}
	}
	t := bl.retryAt
	if bl.peer != nil {
		switch bl.due() {
		case nothing:
			return time.Time{}
		case content:
			if n := bl.peer.content.next(); n.After(t) {
				t = n
			}
		}
		if n := bl.peer.allocation.next(); n.After(t) {
			t = n
		}
	}
	if !t.After(now) {
		return time.Time{}
	}
	return t
}

// blockWrite returns the block as it is to be written now.
func (b *Book) blockWrite(bl *block, now time.Time) (Write, bool) {
	due := bl.due()
	if due == nothing {
		delete(b.dirtyBlocks, bl)
		return Write{}, false
	}
	if !bl.ready(now) || !bl.allotted() {
		return Write{}, false
	}
	if p := bl.peer; p != nil {
		if p.allocation.next().After(now) || due == content && !p.content.take(now) {
			return Write{}, false
		}
		p.allocation.take(now)
	}
	o := &v1alpha1.Ledger{Block: int32(bl.number), Generation: bl.next(now)}
	if bl.peer != nil && !bl.freeing {
		o.Owner = bl.peer.domain
		if a := bl.wantApplied(); a != (v1alpha1.LedgerApplied{}) {
			o.Applied = &a
		}
	}
	for _, r := range bl.pending {
		if r.live() {
			o.Entries++
		}
	}
	bl.startHold(now)
	o.Data = bl.encode()
	sent := bl.pending
	bl.sent = &sent
	return bl.begin(o), true
}

func (b *Book) blockDone(bl *block, w Write, stored *v1alpha1.Ledger, err error, now time.Time) {
	b.dirtyBlocks[bl] = struct{}{}
	if !bl.finish(w, stored, err, now) {
		return
	}
	bl.owner = w.Object.Owner
	moved := bl.owner != "" && bl.domain() != bl.owner
	if moved {
		// Another leader's directory has given the block away during the write. The
		// block's own object is right.
		b.directory.set(bl.number, bl.owner)
		bl.assign(bl.owner)
	}
	if bl.peer == nil {
		return
	}
	for slot, r := range bl.sent {
		if bl.commit(slot, r); moved {
			bl.set(slot, r)
		}
		bl.restore(slot)
	}
	bl.sent = nil
	bl.applied = v1alpha1.LedgerApplied{}
	if w.Object.Applied != nil {
		bl.applied = *w.Object.Applied
	}
	if bl.freeing && bl.owner == "" {
		b.freeBlock(bl)
	}
}
