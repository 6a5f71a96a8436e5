package reqlog

import (
	"io"
	"time"
)

const (
	// logQueue is how many records wait for the writer of an AccessLog.
	logQueue = 4096
	// logBuffer is how many bytes of lines are collected before they are written.
	logBuffer = 64 << 10
	// closeTime is how long Close waits for the destination.
	closeTime = time.Second
)

// Config configures an access log.
type Config struct {
	// Sample is the share of requests that are logged, from 0 to 1.
	Sample float64
	// Failures logs each request that failed, even if Sample is 0.
	Failures bool
	// Query records the query of a request, which may hold secrets.
	Query bool
}

// AccessLog writes records as JSON lines. Make it with Hub.StartAccessLog, end it with
// Close.
type AccessLog struct {
	cfg     Config
	to      io.Writer
	lines   []byte // not written yet
	records chan *Record
	stop    chan struct{}
	done    chan struct{}
	hub     *Hub // counts lines
}

// StartAccessLog returns an AccessLog that writes to a destination. Only its own
// goroutine waits for the destination. It must be called at most once, and before other
// methods of h.
func (h *Hub) StartAccessLog(to io.Writer, cfg Config) *AccessLog {
	l := &AccessLog{
		cfg:     cfg,
		to:      to,
		records: make(chan *Record, logQueue),
		stop:    make(chan struct{}),
		done:    make(chan struct{}),
		hub:     h,
	}
	h.log = l
	h.wanted.Or(uint32(wantLog))
	go l.run()
	return l
}

// Close writes what waits, for at most one second. It must be called once. Records that
// are published later are dropped.
func (l *AccessLog) Close() {
	close(l.stop)
	late := time.NewTimer(closeTime)
	defer late.Stop()
	select {
	case <-l.done:
	case <-late.C:
	}
}

func (l *AccessLog) publish(r *Record) {
	select {
	case l.records <- r:
	default:
		l.hub.dropped.Inc()
	}
}

func (l *AccessLog) run() {
	defer close(l.done)
	for {
		select {
		case r := <-l.records:
			l.add(r)
			continue
		default:
		}
		l.flush()
		select {
		case r := <-l.records:
			l.add(r)
		case <-l.stop:
			for len(l.records) > 0 {
				l.add(<-l.records)
			}
			l.flush()
			return
		}
	}
}

// add appends a line to those that are written next.
func (l *AccessLog) add(r *Record) {
	l.lines = r.AppendJSON(l.lines)
	l.hub.written.Inc()
	if len(l.lines) >= logBuffer {
		l.flush()
	}
}

// flush writes the lines. An error is not reported: the process has no other place for
// the lines.
func (l *AccessLog) flush() {
	if len(l.lines) > 0 {
		l.to.Write(l.lines)
		l.lines = l.lines[:0]
	}
}
