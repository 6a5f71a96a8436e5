// Package logpipe lets a process write log lines without waiting for the log's reader.
//
//	Write ─▶ up to MaxLines lines ─▶ one goroutine ─▶ the process's stderr
//	    └─ no room: dropped, counted, and reported in the log once there is room
//
// What always holds:
//   - Write never waits for the destination.
//   - Lines that are written keep their order.
//   - Close writes what is left, unless the destination takes too long.
package logpipe

import (
	"fmt"
	"io"
	"sync"
	"time"
)

const (
	// MaxLines is how many lines wait at most.
	MaxLines = 2048
	// MaxLine is how much of one line is kept, in bytes.
	MaxLine = 8 << 10
	// closeTime is how long Close waits for the destination.
	closeTime = time.Second
)

// A Pipe is an io.Writer, each Write of which is one line. Make it with New, end it with Close.
type Pipe struct {
	to    io.Writer
	lines chan []byte
	done  chan struct{}

	mu      sync.Mutex // guards what follows
	dropped int
	closed  bool
}

// New returns a Pipe to a destination.
func New(to io.Writer) *Pipe {
	p := &Pipe{to: to, lines: make(chan []byte, MaxLines), done: make(chan struct{})}
	go p.run()
	return p
}

// Write takes one line. It returns no error: a line without room is dropped and counted.
func (p *Pipe) Write(line []byte) (int, error) {
	kept := append([]byte(nil), line[:min(len(line), MaxLine)]...)
	if len(kept) < len(line) {
		kept = append(kept, "…\n"...)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		p.to.Write(kept) // at the very end nobody else is there to wait
		return len(line), nil
	}
	select {
	case p.lines <- kept:
	default:
		p.dropped++
	}
	return len(line), nil
}

// Close writes what is left, for a second at most. Later lines go to the destination at once.
func (p *Pipe) Close() {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		close(p.lines)
	}
	p.mu.Unlock()
	late := time.NewTimer(closeTime)
	defer late.Stop()
	select {
	case <-p.done:
	case <-late.C:
	}
}

func (p *Pipe) run() {
	defer close(p.done)
	for line := range p.lines {
		p.to.Write(line)
		if n := p.takeDropped(); n > 0 {
			fmt.Fprintf(p.to, `{"time":%q,"level":"WARN","msg":"log lines dropped, because whoever reads the log was too slow","lines":%d}`+"\n",
				time.Now().Format(time.RFC3339Nano), n)
		}
	}
}

func (p *Pipe) takeDropped() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.dropped
	p.dropped = 0
	return n
}
