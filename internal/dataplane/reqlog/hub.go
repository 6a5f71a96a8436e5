package reqlog

import (
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
)

const (
	// MaxTaps is how many taps a Hub has at most.
	MaxTaps = 8
	// tapQueue is how many records wait for the reader of one tap.
	tapQueue = 512
)

// ErrTooManyTaps is the error of Hub.Open if MaxTaps are open.
var ErrTooManyTaps = errors.New("too many taps are open at this agent")

// Want says who wants the record of a request. 0 is no one.
type Want uint8

const (
	wantLog Want = 1 << iota
	wantTap
)

// Hub hands records to the access log and to taps. Make it with NewHub. It is safe for
// concurrent use, except for StartAccessLog.
type Hub struct {
	log    *AccessLog
	wanted atomic.Uint32 // of Want
	taps   atomic.Pointer[[]*Tap]

	dropped, written prometheus.Counter // of the access log
	open             prometheus.Gauge

	mu sync.Mutex // for changes of taps
}

// NewHub returns a Hub without an access log and without taps.
func NewHub(r prometheus.Registerer) *Hub {
	h := &Hub{
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "causeway_access_log_dropped_total",
			Help: "Access log lines that were dropped because the log's destination was too slow.",
		}),
		written: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "causeway_access_log_lines_total",
			Help: "Access log lines that were written.",
		}),
		open: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "causeway_taps_open",
			Help: "Taps that are open.",
		}),
	}
	h.taps.Store(&[]*Tap{})
	r.MustRegister(h.dropped, h.written, h.open)
	return h
}

// Wants returns who wants the record of a request that ends. It costs one atomic load if
// no one does. failed is whether the request failed.
func (h *Hub) Wants(failed bool) Want {
	w := Want(h.wanted.Load())
	if w&wantLog != 0 && !h.log.sampled(failed) {
		w &^= wantLog
	}
	return w
}

// WithQuery reports whether records have the query of a request.
func (h *Hub) WithQuery() bool { return h.log != nil && h.log.cfg.Query }

// Publish hands a record to those who want it. It does not block. r must not change
// afterwards.
func (h *Hub) Publish(w Want, r *Record) {
	if w&wantLog != 0 {
		h.log.publish(r)
	}
	if w&wantTap != 0 {
		for _, t := range *h.taps.Load() {
			t.publish(r)
		}
	}
}

// Tap is a reader's view of finished requests. Make it with Hub.Open, end it with Close.
type Tap struct {
	hub     *Hub
	filter  Filter
	limiter *rate.Limiter
	records chan *Record
	dropped atomic.Uint64
}

// Open opens a tap of what a filter selects. perSecond is the most records per second.
// The caller must call Tap.Close. The error is ErrTooManyTaps.
func (h *Hub) Open(f Filter, perSecond int) (*Tap, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	open := *h.taps.Load()
	if len(open) >= MaxTaps {
		return nil, ErrTooManyTaps
	}
	t := &Tap{
		hub:     h,
		filter:  f,
		limiter: rate.NewLimiter(rate.Limit(perSecond), perSecond),
		records: make(chan *Record, tapQueue),
	}
	h.setTaps(append(slices.Clone(open), t))
	return t, nil
}

// Close closes the tap. It may be called more than once.
func (t *Tap) Close() {
	h := t.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	h.setTaps(slices.DeleteFunc(slices.Clone(*h.taps.Load()), func(o *Tap) bool { return o == t }))
}

// setTaps must be called with h.mu held.
func (h *Hub) setTaps(taps []*Tap) {
	h.taps.Store(&taps)
	h.open.Set(float64(len(taps)))
	if len(taps) > 0 {
		h.wanted.Or(uint32(wantTap))
	} else {
		h.wanted.And(^uint32(wantTap))
	}
}

// Records is where the records of the tap arrive. It is never closed.
func (t *Tap) Records() <-chan *Record { return t.records }

// TakeDropped returns how many records were dropped since the last call, because of the
// rate or because the reader was too slow.
func (t *Tap) TakeDropped() uint64 { return t.dropped.Swap(0) }

func (t *Tap) publish(r *Record) {
	if !t.filter.Match(r) {
		return
	}
	if !t.limiter.Allow() {
		t.dropped.Add(1)
		return
	}
	select {
	case t.records <- r:
	default:
		t.dropped.Add(1)
	}
}

// sampled decides by chance whether a request is logged.
func (l *AccessLog) sampled(failed bool) bool {
	return failed && l.cfg.Failures || l.cfg.Sample >= 1 || rand.Float64() < l.cfg.Sample
}
