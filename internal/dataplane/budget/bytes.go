package budget

import (
	"math"
	"sync"
)

// Bytes divides memory between links. A link may have a quarter of it, and up to half
// while more than half is free. It is safe for concurrent use.
type Bytes struct {
	total int

	mu    sync.Mutex // guards what follows
	used  int
	links map[string]int
}

// NewBytes returns a budget of total bytes.
func NewBytes(total int) *Bytes { return &Bytes{total: total, links: make(map[string]int)} }

// Reserve reserves n bytes for a link. It returns false if that is too much; then
// nothing is reserved. The caller must release what it has reserved.
func (b *Bytes) Reserve(link string, n int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	has := b.links[link] + n
	if b.used+n > b.total || has > b.total/4 && b.used+n > b.total/2 {
		return false
	}
	b.used += n
	b.links[link] = has
	return true
}

// Release returns n bytes of a link.
func (b *Bytes) Release(link string, n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= n
	if b.links[link] -= n; b.links[link] == 0 {
		delete(b.links, link)
	}
}

// Used returns how many bytes are reserved.
func (b *Bytes) Used() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// Parts of the memory that windows may have. The kernel's buffers of TCP may by default
// have a sixteenth of a machine's memory before it keeps them small (net.ipv4.tcp_mem).
const (
	processPart = 4
	machinePart = 32
)

// WindowBytes returns how many bytes the windows of this process may have: a quarter of
// its memory (Memory), and at most a thirty-second of the machine's.
func WindowBytes() int { return windowBytes(Memory(), machineMemory()) }

func windowBytes(process, machine uint64) int {
	return int(min(process/processPart, machine/machinePart, math.MaxInt32))
}
