package ledger

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// directory is the object that lists the blocks' owners. It makes the choice of a free
// block safe from races, and nothing else depends on it: who owns the addresses of a
// block is what the block's own object says.
type directory struct {
	object
	epoch string
	// committed and pending are the owners by block. A free block has none.
	committed, pending map[int]string
	// differ are the blocks whose owner is to be written.
	differ map[int]struct{}
	ranges []string // as stored
	size   int      // as stored
	sent   map[int]string
	free   int // no block below it is free
}

func newDirectory() directory {
	d := directory{committed: map[int]string{}, pending: map[int]string{}, differ: map[int]struct{}{}}
	d.name = directoryName
	return d
}

// directoryData is the directory's Data.
type directoryData struct {
	Size   int      `json:"b"`
	Ranges []string `json:"v"`
	Owners []string `json:"o,omitempty"`
	// Runs are first block, number of blocks, and index of the owner.
	Runs [][3]int `json:"r,omitempty"`
}

// set makes owner the owner of block n; empty: it is free.
func (d *directory) set(n int, owner string) {
	if owner == "" {
		delete(d.pending, n)
		d.free = min(d.free, n)
	} else {
		d.pending[n] = owner
	}
	if d.pending[n] == d.committed[n] {
		delete(d.differ, n)
	} else {
		d.differ[n] = struct{}{}
	}
}

// firstFree is the lowest block that no owner is written down for.
func (d *directory) firstFree() int {
	for d.pending[d.free] != "" {
		d.free++
	}
	return d.free
}

// decodeDirectory reads a directory's data.
func decodeDirectory(o *v1alpha1.Ledger) (owners map[int]string, data directoryData, err error) {
	if err := unpack(o.Data, &data); err != nil {
		return nil, data, err
	}
	if s := data.Size; s < minBlockSize || s > maxBlockSize || s&(s-1) != 0 {
		return nil, data, fmt.Errorf("decode: no block has %d slots", s)
	}
	if !printable(o.Epoch, 64) {
		return nil, data, fmt.Errorf("decode: the epoch is not valid")
	}
	for _, s := range slices.Concat(data.Owners, data.Ranges) {
		if s == "" || !printable(s, maxName) {
			return nil, data, fmt.Errorf("decode: an owner or a range is not valid")
		}
	}
	owners = make(map[int]string)
	for _, r := range data.Runs {
		first, count, owner := r[0], r[1], r[2]
		if first < 0 || count < 1 || first >= maxBlocks || count > maxBlocks-first || owner < 0 ||
			owner >= len(data.Owners) {
			return nil, data, fmt.Errorf("decode: a run of blocks is not valid")
		}
		for n := first; n < first+count; n++ {
			owners[n] = data.Owners[owner]
		}
	}
	return owners, data, nil
}

// encode returns the directory's data.
func (d *directory) encode(s space) directoryData {
	data := directoryData{Size: s.size, Ranges: rangeStrings(s)}
	data.Owners = slices.Compact(slices.Sorted(maps.Values(d.pending)))
	for _, n := range slices.Sorted(maps.Keys(d.pending)) {
		owner, _ := slices.BinarySearch(data.Owners, d.pending[n])
		if last := len(data.Runs) - 1; last >= 0 && data.Runs[last][2] == owner &&
			data.Runs[last][0]+data.Runs[last][1] == n {
			data.Runs[last][1]++
			continue
		}
		data.Runs = append(data.Runs, [3]int{n, 1, owner})
	}
	return data
}

func rangeStrings(s space) []string {
	var out []string
	for _, r := range s.ranges {
		out = append(out, r.String())
	}
	return out
}

// loadDirectory takes the directory as it is stored.
func (b *Book) loadDirectory(o *v1alpha1.Ledger) []Problem {
	d := &b.directory
	first := !d.known
	outcome := d.observe(o)
	if outcome == older {
		return nil
	}
	owners, data, err := decodeDirectory(o)
	switch {
	case outcome == edited:
		return []Problem{damaged(directoryName, "it was edited by hand, and is written again as it was")}
	case err != nil:
		// The blocks' own objects say whose they are, and the next write restores the
		// rest.
		d.overwrite = true
		return []Problem{damaged(directoryName, err.Error())}
	}
	d.accept(o.Generation)
	d.epoch = cmp.Or(o.Epoch, d.epoch)
	d.ranges, d.size = data.Ranges, data.Size
	b.commitDirectory(owners)
	b.resize(data.Size)
	if first {
		b.markAllPeers()
	}
	return nil
}

// resize takes the size of blocks that the directory says. It never changes after that.
func (b *Book) resize(size int) {
	if b.space.size == size {
		return
	}
	b.space.size = size
	for _, bl := range b.blocks {
		for slot, r := range bl.committed {
			bl.mirrors[slot] = nil
			if r.live() {
				bl.peer.change(r.source())
			}
		}
	}
}

func (b *Book) markAllPeers() {
	for _, p := range b.peers {
		b.dirtyPeers[p] = struct{}{}
	}
}

// commitDirectory makes owners the committed owners. What only this Book has changed
// stays pending. A block that another leader has given to another peer is lost.
func (b *Book) commitDirectory(owners map[int]string) {
	d := &b.directory
	numbers := maps.Clone(owners)
	maps.Copy(numbers, d.pending)
	maps.Copy(numbers, d.committed)
	before := d.committed
	d.committed = owners
	for _, n := range slices.Sorted(maps.Keys(numbers)) {
		bl := b.blocks[n]
		owner := owners[n]
		switch {
		case bl != nil && bl.owner != "":
			owner = bl.owner // the block's own object is right
		case before[n] == owners[n]:
			owner = d.pending[n]
		}
		d.set(n, owner)
		if owner == "" && bl == nil {
			continue
		}
		b.block(n).assign(owner)
	}
}

// directoryWrite returns the directory as it is to be written.
func (b *Book) directoryWrite(now time.Time) (Write, bool) {
	d := &b.directory
	needed := d.meta.ResourceVersion == "" || d.overwrite || len(d.differ) > 0 || !slices.Equal(d.ranges,
		rangeStrings(b.space))
	if !needed || !d.ready(now) {
		return Write{}, false
	}
	if d.epoch == "" {
		if d.epoch = b.exports.epoch(); d.epoch == "" {
			d.epoch = b.newEpoch()
		}
	}
	data := d.encode(b.space)
	d.sent = maps.Clone(d.pending)
	return d.begin(&v1alpha1.Ledger{
		Generation: d.next(now),
		Epoch:      d.epoch,
		Entries:    int32(len(d.pending)),
		Data:       b.compressor.compress(marshal(data)),
	}), true
}

func (b *Book) directoryDone(w Write, stored *v1alpha1.Ledger, err error, now time.Time) {
	d := &b.directory
	first := !d.known
	if !d.finish(w, stored, err, now) {
		return
	}
	d.size, d.ranges = b.space.size, rangeStrings(b.space)
	b.commitDirectory(d.sent)
	if first {
		b.markAllPeers()
	}
}

func damaged(name, why string) Problem {
	return problem("", Damaged, "Ledger "+name+" is damaged: "+why)
}
