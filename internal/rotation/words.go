package rotation

import (
	"cmp"
	"encoding/json"
	"fmt"
	"time"

	"github.com/causeway-mesh/causeway/internal/identity"
)

// Annotations of the ConfigMap that holds a cluster's public half.
const (
	// RequestAnnotation is where an operator's command asks, by a Request.
	RequestAnnotation = "causeway.dev/rotate"
	// ProgressAnnotation is where the leader answers, by a Progress.
	ProgressAnnotation = "causeway.dev/issuers"
)

const (
	maxRequest = 1 << 10
	maxID      = 64
	longest    = 30 * 24 * time.Hour
	maxWaiting = 16
	askAgain   = "ask again with `causeway rotate`"
)

// A Request asks for another issuer. It is taken up once, however often it is read.
type Request struct {
	ID string `json:"id"`
	// Root: for another root, too, which signs the issuer.
	Root bool `json:"root,omitempty"`
	// Revoke: at once, and the issuers of now are listed no more; the root neither, if it is asked for.
	Revoke bool `json:"revoke,omitempty"`
	// Announce is how long the new issuer is announced at most, as Go writes durations; empty: Ahead.
	Announce string `json:"announce,omitempty"`
}

// Ahead is Announce as a duration.
func (r Request) Ahead() time.Duration {
	d, err := time.ParseDuration(cmp.Or(r.Announce, Ahead.String()))
	if err != nil {
		return Ahead // ParseRequest has refused it
	}
	return d
}

// Check returns what is wrong with r.
func (r Request) Check() error {
	d, err := time.ParseDuration(cmp.Or(r.Announce, Ahead.String()))
	switch {
	case r.ID == "" || len(r.ID) > maxID:
		return fmt.Errorf("its id has %d characters, not 1 to %d", len(r.ID), maxID)
	case err != nil:
		return fmt.Errorf("its announcement is no duration: %w", err)
	case d < 0 || d > longest:
		return fmt.Errorf("an announcement of %v is not between 0 and %v", d, longest)
	}
	return nil
}

// ParseRequest reads an annotation; an empty one asks for nothing.
func ParseRequest(text string) (Request, error) {
	var r Request
	if text == "" {
		return r, nil
	}
	err := fmt.Errorf("it has %d bytes, more than %d", len(text), maxRequest)
	if len(text) <= maxRequest {
		err = json.Unmarshal([]byte(text), &r)
	}
	if err == nil {
		err = r.Check()
	}
	if err != nil {
		return Request{}, fmt.Errorf("annotation %s is not understood, %s: %w", RequestAnnotation, askAgain, err)
	}
	return r, nil
}

// Progress is what the leader says of the issuers.
type Progress struct {
	// Request is the last one that was taken up.
	Request string `json:"request,omitempty"`
	Number  uint64 `json:"number"`
	Listed  int    `json:"listed"`
	// Deadline is when the announced issuer signs at the latest; nil: none is announced.
	Deadline *time.Time `json:"deadline,omitempty"`
	// Waiting are Links whose peers have not acknowledged what they need: the announced
	// issuer or, if there is none, the current one.
	Waiting []string `json:"waiting,omitempty"`
	// Room is when the next issuer can be announced, if too many are listed for that.
	Room *time.Time `json:"room,omitempty"`
	// Root is how far the roots are.
	Root RootProgress `json:"root,omitzero"`
	// Fault is why the request that stands there is not taken up.
	Fault string `json:"fault,omitempty"`
}

// RootProgress is what the leader says of the roots.
type RootProgress struct {
	// Request is the last one that was taken up.
	Request string `json:"request,omitempty"`
	// Deadline is when the announced root signs at the latest; nil: none is announced.
	Deadline *time.Time `json:"deadline,omitempty"`
	// Waiting are Links whose peers have not acknowledged the announced root.
	Waiting []string `json:"waiting,omitempty"`
	// Leaving: issuers of the root before are still trusted, until Until if that is known.
	Leaving bool       `json:"leaving,omitempty"`
	Until   *time.Time `json:"until,omitempty"`
}

// Tell returns the progress of s and roots.
func Tell(s State, roots Roots, acks map[string]uint64, fault error) Progress {
	p := Progress{Request: s.Request, Number: s.Number, Listed: len(s.Listed()), Waiting: Behind(acks, s.Needed), Root: tellRoots(s, roots, acks)}
	if s.Next != nil {
		at := s.Deadline.UTC().Truncate(time.Second)
		p.Deadline, p.Waiting = &at, Behind(acks, s.Announced)
	}
	for i, f := range s.Formers {
		if at := f.Until.UTC().Truncate(time.Second); i == 0 || at.Before(*p.Room) {
			p.Room = &at
		}
	}
	if s.Next != nil || !s.full() {
		p.Room = nil
	}
	p.Waiting = p.Waiting[:min(len(p.Waiting), maxWaiting)]
	if fault != nil {
		p.Fault = fault.Error()
	}
	return p
}

func tellRoots(s State, roots Roots, acks map[string]uint64) RootProgress {
	p := RootProgress{Request: roots.Request, Leaving: roots.Former != nil}
	if roots.Next != nil {
		at := roots.Deadline.UTC().Truncate(time.Second)
		p.Deadline, p.Waiting = &at, Behind(acks, s.Carried)
		p.Waiting = p.Waiting[:min(len(p.Waiting), maxWaiting)]
	}
	if p.Leaving && identity.SignedBy(s.Current.Certificate(), roots.Current.Certificate()) {
		for _, f := range s.Formers {
			if at := f.Until.UTC().Truncate(time.Second); p.Until == nil || at.After(*p.Until) {
				p.Until = &at
			}
		}
	}
	return p
}

// String is the annotation.
func (p Progress) String() string {
	out, err := json.Marshal(p)
	if err != nil {
		panic(fmt.Sprintf("rotation: progress does not marshal: %v", err)) // it has nothing that cannot
	}
	return string(out)
}

// ParseProgress reads what String wrote; nothing, if there is nothing.
func ParseProgress(text string) (Progress, error) {
	var p Progress
	if text == "" {
		return p, nil
	}
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return Progress{}, fmt.Errorf("annotation %s is not understood: %w", ProgressAnnotation, err)
	}
	return p, nil
}
