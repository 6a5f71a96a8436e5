package mux

import (
	"sync"
	"time"
)

// trimInterval is the time between two looks for workers that are not needed.
const trimInterval = time.Second

// A worker is a goroutine that serves the streams of a server end, one after the other. A
// new goroutine for each stream would have to grow its stack each time.
type worker struct {
	idle bool
	next *Stream // the stream to serve once it is not idle; nil: the worker ends
	wake sync.Cond
}

// workers are the idle workers of a connection. Conn.mu guards them.
type workers struct {
	idle   []*worker // the last one has waited for the shortest time
	unused int       // the least number of idle workers since the last trim
	timer  *time.Timer
	armed  bool // the timer runs
}

// startHandle has Handle called for s, by an idle worker if there is one. c.mu is held.
func (c *Conn) startHandle(s *Stream) {
	n := len(c.workers.idle)
	if n == 0 {
		c.owned.Add(1)
		go c.work(s)
		return
	}
	c.workers.idle[n-1].start(s)
	c.workers.idle[n-1] = nil
	c.workers.idle = c.workers.idle[:n-1]
	c.workers.unused = min(c.workers.unused, n-1)
}

// start wakes an idle worker.
func (w *worker) start(s *Stream) {
	w.idle, w.next = false, s
	w.wake.Signal()
}

// work is the goroutine of a worker. s is its first stream.
func (c *Conn) work(s *Stream) {
	defer c.owned.Done()
	w := &worker{}
	w.wake.L = &c.mu
	for s != nil {
		c.cfg.Handle(s)
		c.mu.Lock()
		c.endHandle(s)
		s = c.nextStream(w)
		c.mu.Unlock()
	}
}

// nextStream waits for another stream to serve. It returns nil if the worker is to end.
func (c *Conn) nextStream(w *worker) *Stream {
	if c.end != nil {
		return nil
	}
	w.idle, w.next = true, nil
	c.workers.idle = append(c.workers.idle, w)
	c.armTrim()
	for w.idle {
		w.wake.Wait()
	}
	return w.next
}

func (c *Conn) armTrim() {
	t := &c.workers
	if t.armed {
		return
	}
	t.armed, t.unused = true, 0
	if t.timer == nil {
		t.timer = time.AfterFunc(trimInterval, c.trimWorkers)
	} else {
		t.timer.Reset(trimInterval)
	}
}

// trimWorkers ends the workers that were not needed since its last call.
func (c *Conn) trimWorkers() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.workers.armed = false
	if c.end != nil {
		return
	}
	c.endWorkers(c.workers.unused)
	if n := len(c.workers.idle); n > 0 {
		c.armTrim()
		c.workers.unused = n
	}
}

// endWorkers ends the n workers that have waited longest.
func (c *Conn) endWorkers(n int) {
	idle := c.workers.idle
	for _, w := range idle[:n] {
		w.start(nil)
	}
	rest := copy(idle, idle[n:])
	clear(idle[rest:])
	c.workers.idle = idle[:rest]
}

// stopWorkers ends all idle workers, because the connection has ended.
func (c *Conn) stopWorkers() {
	c.endWorkers(len(c.workers.idle))
	if c.workers.timer != nil {
		c.workers.timer.Stop()
	}
}
