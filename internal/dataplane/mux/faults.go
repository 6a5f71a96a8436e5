package mux

import (
	"errors"
	"slices"

	"golang.org/x/net/http2"
)

// A Fault is a mistake of the peer. Because of it, this end has refused or reset a
// stream, or has ended the connection.
type Fault struct {
	// Reason is one of FaultReasons.
	Reason string
	// Status is the status with which this end has answered the request; 0: it has not.
	Status int
	// Err describes the mistake.
	Err error
}

// Reasons of faults that concern one stream only.
const (
	faultMalformedHead  = "malformed_head"
	faultHeadTooLarge   = "head_too_large"
	faultTooManyStreams = "too_many_streams"
)

// FaultReasons returns every Reason of a Fault, for metrics.
func FaultReasons() []string {
	out := []string{
		faultMalformedHead, faultHeadTooLarge, faultTooManyStreams,
		"rapid_reset", "continuation_flood", "settings_flood", "ping_flood", "window_update_flood",
		"empty_data_flood", "ignored_frame_flood", "goaway_flood", "peer_not_reading", "preface_timeout",
	}
	for code := http2.ErrCodeNo; code <= http2.ErrCodeHTTP11Required; code++ {
		if reason := reasonOf(code); !slices.Contains(out, reason) {
			out = append(out, reason)
		}
	}
	return out
}

// fault records a fault that concerns one stream, so that reportFaults reports it. Only
// the read loop calls it.
func (c *Conn) fault(f Fault) {
	if c.cfg.OnFault != nil {
		c.faults = append(c.faults, f)
	}
}

// reportFaults calls OnFault for the recorded faults, without the lock. Only the read
// loop calls it.
func (c *Conn) reportFaults() {
	for i, f := range c.faults {
		c.cfg.OnFault(f)
		c.faults[i] = Fault{}
	}
	c.faults = c.faults[:0]
}

// isFault reports whether the peer's mistake has ended the connection.
func (e *endError) isFault() bool { return !e.remote && e.code != http2.ErrCodeNo }

var (
	errHeadTooLarge   = errors.New("the head of a request exceeds its limit")
	errTooManyStreams = errors.New("the peer opens more streams than it may")
)
