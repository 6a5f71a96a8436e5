package transport

import (
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// pipeSize is how much a pipe holds, if the kernel permits. With maxPipes it makes 64
	// MiB, which is what Linux by default grants the pipes of one user without a
	// capability.
	pipeSize = 256 << 10
	maxPipes = 256
	// maxIdlePipes is how many pipes stay open for later use.
	maxIdlePipes = 32
)

// pipes is the pool of the process.
var pipes = pipePool{max: maxPipes}

// A pipe moves bytes between two sockets inside the kernel.
type pipe struct {
	r, w int // descriptors
	size int
}

// pipePool bounds the pipes in use. It is safe for concurrent use and never waits.
type pipePool struct {
	max int

	mu   sync.Mutex // guards what follows
	used int
	idle []*pipe // empty ones
}

// get returns an empty pipe, or nil if too many are in use or the kernel grants none that
// is larger than a buffer. The caller must put it back.
func (p *pipePool) get() *pipe {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.used >= p.max {
		return nil
	}
	if last := len(p.idle) - 1; last >= 0 {
		got := p.idle[last]
		p.idle = p.idle[:last]
		p.used++
		return got
	}
	got := newPipe()
	if got != nil {
		p.used++
	}
	return got
}

// put takes a pipe back. It closes one that is not empty.
func (p *pipePool) put(got *pipe, empty bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used--
	if !empty || len(p.idle) >= maxIdlePipes {
		got.close()
		return
	}
	p.idle = append(p.idle, got)
}

// inUse returns how many pipes are in use.
func (p *pipePool) inUse() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.used
}

func newPipe() *pipe {
	var fds [2]int
	if unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK) != nil {
		return nil
	}
	p := &pipe{r: fds[0], w: fds[1]}
	size, err := unix.FcntlInt(uintptr(p.w), unix.F_SETPIPE_SZ, pipeSize)
	if err != nil { // the user has too many pages in pipes
		size, err = unix.FcntlInt(uintptr(p.w), unix.F_GETPIPE_SZ, 0)
	}
	if err != nil || size <= bufferSize {
		p.close()
		return nil
	}
	p.size = min(size, pipeSize)
	return p
}

func (p *pipe) close() {
	unix.Close(p.r)
	unix.Close(p.w)
}
