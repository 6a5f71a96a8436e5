package rotation

import (
	"cmp"
	"encoding/json"
	"fmt"
	"time"
)

// Annotations of the ConfigMap that holds the public half of a cluster's identity.
const (
	// RequestAnnotation holds a Request, which `causeway rotate` writes.
	RequestAnnotation = "causeway.dev/rotate"
	// ProgressAnnotation holds a Progress, which the leader writes.
	ProgressAnnotation = "causeway.dev/issuers"
)

const (
	maxRequestBytes   = 1 << 10
	maxRequestID      = 64
	maxAnnouncePeriod = 30 * 24 * time.Hour
)

// A Request asks for a rotation. The leader carries it out once, however often it reads
// the annotation, because the State and the Roots store the ID of the last request.
type Request struct {
	ID string `json:"id"`
	// Root asks for a new root, which then signs a new issuer. If false, the request asks
	// only for a new issuer.
	Root bool `json:"root,omitempty"`
	// Revoke replaces the issuers at once and removes all previous ones from the list.
	// With Root, it also revokes the current root.
	Revoke bool `json:"revoke,omitempty"`
	// Announce is the longest time between the announcement of the new issuer and its
	// first signature, in the format of time.ParseDuration. Empty means AnnouncePeriod.
	Announce string `json:"announce,omitempty"`
}

// AnnounceDuration returns Announce as a duration. It returns AnnouncePeriod if Announce
// is empty or invalid.
func (r Request) AnnounceDuration() time.Duration {
	d, err := r.parseAnnounce()
	if err != nil {
		return AnnouncePeriod
	}
	return d
}

func (r Request) parseAnnounce() (time.Duration, error) {
	return time.ParseDuration(cmp.Or(r.Announce, AnnouncePeriod.String()))
}

// Check returns an error if r is invalid.
func (r Request) Check() error {
	d, err := r.parseAnnounce()
	switch {
	case r.ID == "" || len(r.ID) > maxRequestID:
		return fmt.Errorf("id has %d characters, want 1 to %d", len(r.ID), maxRequestID)
	case err != nil:
		return fmt.Errorf("announce is not a duration: %w", err)
	case d < 0 || d > maxAnnouncePeriod:
		return fmt.Errorf("announce of %v is not between 0 and %v", d, maxAnnouncePeriod)
	}
	return nil
}

// ParseRequest parses the value of RequestAnnotation. An empty value gives the zero
// Request, which asks for nothing.
func ParseRequest(text string) (Request, error) {
	if text == "" {
		return Request{}, nil
	}
	r, err := parseRequest(text)
	if err != nil {
		return Request{}, fmt.Errorf(
			"ignoring annotation %s, run `causeway rotate` again: %w",
			RequestAnnotation,
			err,
		)
	}
	return r, nil
}

func parseRequest(text string) (Request, error) {
	if len(text) > maxRequestBytes {
		return Request{}, fmt.Errorf("value has %d bytes, more than %d", len(text), maxRequestBytes)
	}
	var r Request
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return Request{}, err
	}
	return r, r.Check()
}

// ForIssuers returns the part of r that Decide has to handle now. If r asks for a new
// root, it returns the zero Request until the new root signs. Then it returns r, so that
// the new root signs a new issuer.
func (r Request) ForIssuers(roots Roots) Request {
	if r.Root && (roots.Request != r.ID || roots.Next != nil) {
		return Request{}
	}
	return r
}
