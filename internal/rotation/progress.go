package rotation

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/causeway-mesh/causeway/internal/identity"
)

// maxWaiting bounds the names of Links in a Progress.
const maxWaiting = 16

// Progress is the state of rotation that the leader publishes for the command line.
type Progress struct {
	// Request is the ID of the last request that the leader carried out.
	Request string `json:"request,omitempty"`
	// Number is the number of the list of issuers.
	Number uint64 `json:"number"`
	// Listed is the number of issuers on the list.
	Listed int `json:"listed"`
	// Deadline is the latest time at which the announced issuer starts to sign. It is nil
	// if no issuer is announced.
	Deadline *time.Time `json:"deadline,omitempty"`
	// Waiting lists Links whose peers have not acknowledged the announced issuer or, if
	// no issuer is announced, the current one. It is sorted and has at most 16 items.
	Waiting []string `json:"waiting,omitempty"`
	// NextAllowed is the time at which the next issuer can be announced. It is set only
	// if the list has no free place for one now.
	NextAllowed *time.Time `json:"room,omitempty"`
	// Root is the progress of the root rotation.
	Root RootProgress `json:"root,omitzero"`
	// Fault explains why the leader does not carry out the request in RequestAnnotation.
	Fault string `json:"fault,omitempty"`
}

// RootProgress is the state of root rotation.
type RootProgress struct {
	// Request is the ID of the last root request that the leader carried out.
	Request string `json:"request,omitempty"`
	// Deadline is the latest time at which the announced root starts to sign. It is nil
	// if no root is announced.
	Deadline *time.Time `json:"deadline,omitempty"`
	// Waiting lists Links whose peers have not acknowledged the announced root. It is
	// sorted and has at most 16 items.
	Waiting []string `json:"waiting,omitempty"`
	// Retiring is true while issuers of the previous root are listed.
	Retiring bool `json:"leaving,omitempty"`
	// RetiringUntil is the time at which the last issuer of the previous root leaves the
	// list. It is nil if that time is not known yet.
	RetiringUntil *time.Time `json:"until,omitempty"`
}

// ProgressOf returns the progress of s and roots. acks maps the name of each Link to the
// newest number that its peer has acknowledged. fault is the reason why the current
// request is not carried out, or nil.
func ProgressOf(s State, roots Roots, acks map[string]uint64, fault error) Progress {
	p := Progress{
		Request: s.Request,
		Number:  s.Number,
		Listed:  len(s.Listed()),
		Waiting: waiting(acks, s.CurrentNumber),
		Root:    rootProgress(s, roots, acks),
	}
	if s.Next != nil {
		p.Deadline, p.Waiting = seconds(s.Deadline), waiting(acks, s.NextNumber)
	}
	if s.Next == nil && s.isFull() {
		for _, issuer := range s.Retired {
			if p.NextAllowed == nil || issuer.Until.Before(*p.NextAllowed) {
				p.NextAllowed = seconds(issuer.Until)
			}
		}
	}
	if fault != nil {
		p.Fault = fault.Error()
	}
	return p
}

func rootProgress(s State, roots Roots, acks map[string]uint64) RootProgress {
	p := RootProgress{Request: roots.Request, Retiring: roots.Retired != nil}
	if roots.Next != nil {
		p.Deadline, p.Waiting = seconds(roots.Deadline), waiting(acks, s.RootsNumber)
	}
	if p.Retiring && identity.SignedBy(s.Current.Certificate(), roots.Current.Certificate()) {
		for _, issuer := range s.Retired {
			if p.RetiringUntil == nil || issuer.Until.After(*p.RetiringUntil) {
				p.RetiringUntil = seconds(issuer.Until)
			}
		}
	}
	return p
}

func waiting(acks map[string]uint64, number uint64) []string {
	names := Unacknowledged(acks, number)
	return names[:min(len(names), maxWaiting)]
}

// seconds returns t in UTC without fractions of a second, so that the annotation is
// short.
func seconds(t time.Time) *time.Time {
	t = t.UTC().Truncate(time.Second)
	return &t
}

// String returns the value of ProgressAnnotation.
func (p Progress) String() string {
	out, err := json.Marshal(p)
	if err != nil {
		// Strings, numbers and times always marshal.
		panic(fmt.Sprintf("rotation: marshal progress: %v", err))
	}
	return string(out)
}

// ParseProgress parses the value of ProgressAnnotation. An empty value gives the zero
// Progress.
func ParseProgress(text string) (Progress, error) {
	var p Progress
	if text == "" {
		return p, nil
	}
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return Progress{}, fmt.Errorf("parse annotation %s: %w", ProgressAnnotation, err)
	}
	return p, nil
}
