package agent

import "sync"

// circuits counts connections or requests per remote port and enforces the limit that the
// exporter sets. The zero value is ready for use. It is safe for concurrent use.
type circuits struct {
	mu     sync.Mutex // guards counts
	counts map[remotePort]uint32
}

// acquire counts one more, unless most are open. 0 is no limit. If it returns true, the
// caller must call release.
func (c *circuits) acquire(to remotePort, most uint32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.counts[to]
	if most > 0 && n >= most {
		return false
	}
	if c.counts == nil {
		c.counts = make(map[remotePort]uint32)
	}
	c.counts[to] = n + 1
	return true
}

func (c *circuits) release(to remotePort) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := c.counts[to] - 1; n != 0 {
		c.counts[to] = n
	} else {
		delete(c.counts, to)
	}
}
