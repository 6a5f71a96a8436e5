package ledger

import (
	"fmt"
	"slices"
	"time"
)

// returnBlocks frees the blocks of peers that have no Link, once no caller can use their
// addresses any more.
func (b *Book) returnBlocks(now time.Time) {
	for _, p := range b.peers {
		if !p.gone || len(p.blocks) == 0 || now.Before(p.returnAt) {
			continue
		}
		p.returnAt = now.Add(time.Hour) // for blocks whose addresses are listed
		for _, bl := range slices.Clone(p.blocks) {
			if !bl.freeing && bl.inFlight == nil {
				b.returnBlock(bl, now)
			}
		}
		b.dropPeer(p)
	}
}

func (b *Book) returnBlock(bl *block, now time.Time) {
	p := bl.peer
	for slot, r := range bl.pending {
		if !r.same(bl.committed[slot]) {
			return
		}
		if r == nil {
			continue
		}
		if !reusable(r.Released, now) {
			if t := time.Unix(r.Released, 0).Add(ReuseDelay); r.Released != 0 && t.Before(p.returnAt) {
				p.returnAt = t
			}
			return
		}
		if b.heldBack(bl.slotNumber(slot), r.Released, now) {
			return
		}
	}
	if bl.owner == "" {
		// No object says that it is the peer's, so the directory alone is to be written.
		b.freeBlock(bl)
		return
	}
	bl.freeing = true
	for slot := range bl.pending {
		bl.set(slot, nil)
	}
	b.dirtyBlocks[bl] = struct{}{}
}

// freeBlock removes the owner of a block. Peers that wait for an address try again.
func (b *Book) freeBlock(bl *block) {
	p := bl.peer
	b.directory.set(bl.number, "")
	bl.assign("")
	b.freeAddresses()
	b.dropPeer(p)
}

func (b *Book) freeAddresses() {
	for _, p := range b.peers {
		p.free(waitKey{kind: waitVIP}, waitKey{kind: waitShare})
	}
}

// undoAllotments frees blocks that this Book allotted without storing that, and for which
// there is no use any more.
func (b *Book) undoAllotments() {
	for n := range b.directory.differ {
		if bl := b.blocks[n]; bl != nil && bl.peer != nil && bl.owner == "" && bl.bytes == 0 &&
			b.directory.committed[n] == "" {
			b.freeBlock(bl)
		}
	}
}

// heldBack reports whether slices keep the addresses of a slot from being reused.
func (b *Book) heldBack(number int, released int64, now time.Time) bool {
	for _, r := range b.space.ranges {
		a, ok := address(r, number)
		if !ok {
			continue
		}
		by := b.listed[a]
		if by.Causeway || by.Other != "" && !reusable(released+int64(ReuseDelay/time.Second), now) {
			return true
		}
	}
	return false
}

// listedProblems are released addresses of a peer that foreign slices list.
func (b *Book) listedProblems(p *peer) []Problem {
	var out []Problem
	for a, slice := range b.foreign {
		n, ok := b.space.number(a)
		if !ok {
			continue
		}
		bl := b.blocks[n/b.space.size]
		if bl == nil || bl.peer != p {
			continue
		}
		if r := bl.pending[n%b.space.size]; r != nil && r.Released != 0 {
			out = append(out, problem(slice, VIPListed, fmt.Sprintf(
				"the EndpointSlice lists virtual IP %v, whose mirror %v is gone: delete the slice", a,
				r.name())))
		}
	}
	slices.SortFunc(out, compareProblems)
	return out[:min(len(out), maxListedProblems)]
}

const maxListedProblems = 8
