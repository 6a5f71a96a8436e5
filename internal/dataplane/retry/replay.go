package retry

import "sync"

// MaxReplay is the most bytes of one request body that are kept for a retry.
const MaxReplay = 64 << 10

// replayStep is the unit in which a ReplayBuffer reserves memory.
const replayStep = 4 << 10

// Memory is the budget of the process for kept bodies.
type Memory interface {
	// Reserve reserves n bytes. It returns false, and reserves nothing, if there are not
	// enough. It does not block.
	Reserve(n int) bool
	// Release returns n reserved bytes.
	Release(n int)
}

// ReplayBuffer keeps a request body for retries, up to MaxReplay bytes. If the body is
// longer, or the process has no memory for it, the buffer drops all of it. The owner must
// call Release. It is safe for concurrent use.
type ReplayBuffer struct {
	memory Memory

	mu       sync.Mutex // guards what follows
	data     []byte
	reserved int
	lost     bool
	complete bool
}

// NewReplayBuffer returns an empty buffer. It reserves nothing until Append.
func NewReplayBuffer(m Memory) *ReplayBuffer { return &ReplayBuffer{memory: m} }

// Append keeps a copy of p, which follows what was appended before. It returns whether
// the body is still kept. Call it before p is sent.
func (r *ReplayBuffer) Append(p []byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lost || len(p) == 0 {
		return !r.lost
	}
	need := len(r.data) + len(p)
	if need > MaxReplay || !r.grow(need) {
		r.drop()
		return false
	}
	r.data = append(r.data, p...)
	return true
}

// grow makes room for need bytes. Capacity doubles, so that each byte is copied at most
// twice on average.
func (r *ReplayBuffer) grow(need int) bool {
	if need <= cap(r.data) {
		return true
	}
	size := min(max(2*cap(r.data), (need+replayStep-1)/replayStep*replayStep), MaxReplay)
	if !r.memory.Reserve(size - r.reserved) {
		return false
	}
	r.reserved = size
	r.data = append(make([]byte, 0, size), r.data...)
	return true
}

func (r *ReplayBuffer) drop() {
	if r.reserved > 0 {
		r.memory.Release(r.reserved)
	}
	r.data, r.reserved, r.lost = nil, 0, true
}

// Complete records that the body has ended.
func (r *ReplayBuffer) Complete() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.complete = true
}

// Bytes returns what has been appended, and whether it is all of it and whether the body
// has ended. A retry sends the bytes, and then what follows unless complete is true. The
// bytes must not be changed, nor used after Release.
func (r *ReplayBuffer) Bytes() (data []byte, kept, complete bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.data, !r.lost, r.complete
}

// State returns the body's state for Attempt, if all that was sent was appended first.
func (r *ReplayBuffer) State() Body {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.lost:
		return BodyLost
	case len(r.data) == 0:
		return BodyUnsent
	}
	return BodyKept
}

// Release returns the memory. After it nothing is kept, and Append does nothing. It may
// be called more than once, for example when the response begins and when the request
// ends.
func (r *ReplayBuffer) Release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.lost {
		r.drop()
	}
}
