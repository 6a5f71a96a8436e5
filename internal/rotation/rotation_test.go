package rotation

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-mesh/causeway/internal/identity"
)

var start = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// issuerNames names issuers 0, 1, 2 and so on, in the order in which it meets them, so
// that tests can compare states as short text.
type issuerNames struct {
	roots Roots
	first *identity.Issuer
	known []*x509.Certificate
}

func newIssuerNames(t *testing.T) *issuerNames {
	t.Helper()
	root, err := identity.NewRoot("west-d1e4195c", start)
	if err != nil {
		t.Fatal(err)
	}
	w := &issuerNames{roots: NewRoots(root)}
	if w.first, err = root.NewIssuer(start); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *issuerNames) name(c *x509.Certificate) string {
	n := slices.IndexFunc(w.known, c.Equal)
	if n < 0 {
		n = len(w.known)
		w.known = append(w.known, c)
	}
	return fmt.Sprint(n)
}

// text formats s as "number: current>next|retired|retired".
func (w *issuerNames) text(s State) string {
	out := fmt.Sprintf("%d: %s", s.Number, w.name(s.Current.Certificate()))
	if s.Next != nil {
		out += ">" + w.name(s.Next.Certificate())
	}
	for _, issuer := range s.Retired {
		out += "|" + w.name(issuer.Certificate)
	}
	return out
}

// step is one decision and its expected result.
type step struct {
	after   time.Duration // since start
	acks    map[string]uint64
	request Request
	want    string
}

func TestDecide(t *testing.T) {
	const h, day = time.Hour, 24 * time.Hour
	soon := Request{ID: "a", Announce: "3s"}
	acked := func(a, b uint64) map[string]uint64 { return map[string]uint64{"east": a, "north": b} }
	numbered := func(n int) Request { return Request{ID: fmt.Sprint("r", n), Announce: "0s"} }
	for name, c := range map[string]struct {
		why   string
		steps []step
	}{
		"idle": {"without a request, a young issuer stays", []step{{after: 200 * day, want: "1: 0"}}},
		"requested": {"the new issuer is announced, and signs once the last peer has acknowledged it", []step{
			{acks: acked(1, 1), request: Request{ID: "a"}, want: "2: 0>1"},
			{after: h, acks: acked(2, 1), request: Request{ID: "a"}, want: "2: 0>1"},
			{after: 2 * h, acks: acked(2, 2), request: Request{ID: "a"}, want: "2: 1|0"},
			{after: 2*h + RetainPeriod - 1, acks: acked(2, 2), request: Request{ID: "a"}, want: "2: 1|0"},
			{after: 2*h + RetainPeriod, acks: acked(2, 2), request: Request{ID: "a"}, want: "3: 1"},
			{after: 3*h + RetainPeriod, acks: acked(2, 2), request: Request{ID: "a"}, want: "3: 1"},
		}},
		"dead peer": {"a peer that does not acknowledge delays the rotation until the deadline", []step{
			{acks: acked(1, 0), request: soon, want: "2: 0>1"},
			{after: 3*time.Second - 1, acks: acked(2, 0), request: soon, want: "2: 0>1"},
			{after: 3 * time.Second, acks: acked(2, 0), request: soon, want: "2: 1|0"},
		}},
		"no peers": {"without Links there is no acknowledgment to wait for", []step{
			{request: Request{ID: "a"}, want: "2: 0>1"},
			{after: 1, request: Request{ID: "a"}, want: "2: 1|0"},
		}},
		"automatic": {
			"rotation starts after two thirds of the lifetime and takes the full announce period",
			[]step{
				{after: 243 * day, acks: acked(1, 1), want: "1: 0"},
				{after: 244 * day, acks: acked(1, 1), want: "2: 0>1"},
				{after: 244*day + 23*h, acks: acked(2, 2), want: "2: 0>1"},
				{after: 245 * day, acks: acked(2, 2), want: "2: 1|0"},
				{after: 247 * day, acks: acked(2, 2), want: "3: 1"},
			},
		},
		"request during rotation": {"a request during an automatic rotation shortens it", []step{
			{after: 244 * day, acks: acked(1, 1), want: "2: 0>1"},
			{after: 244*day + h, acks: acked(2, 1), request: soon, want: "2: 0>1"},
			{after: 244*day + h + 3*time.Second, acks: acked(2, 1), request: soon, want: "2: 1|0"},
		}},
		"nearly expired": {"if the controllers were down for months, the announcement is shortened", []step{
			{after: 364*day + 12*h, acks: acked(0, 0), want: "2: 0>1"},
			{after: 364*day + 12*h + 1, acks: acked(0, 0), want: "2: 1|0"},
		}},
		"expired": {"an expired issuer leaves the list without a retain period", []step{
			{after: 400 * day, want: "2: 0>1"},
			{after: 400*day + 1, want: "2: 1|0"},
			{after: 400*day + 2, want: "3: 1"},
		}},
		"revoked": {"a revocation removes all listed and announced issuers at once", []step{
			{acks: acked(1, 1), request: numbered(1), want: "2: 0>1"},
			{after: 1, request: numbered(1), want: "2: 1|0"},
			{after: 2, request: Request{ID: "b"}, want: "3: 1>2|0"},
			{after: 3, acks: acked(1, 1), request: Request{ID: "c", Revoke: true}, want: "4: 3"},
			{after: 4, acks: acked(1, 1), request: Request{ID: "c", Revoke: true}, want: "4: 3"},
		}},
		"full list": {
			"peers reject a list of more than four issuers, so the next one waits until one leaves",
			[]step{
				{request: numbered(1), want: "2: 0>1"},
				{request: numbered(1), want: "2: 1|0"},
				{after: h, request: numbered(2), want: "3: 1>2|0"},
				{after: h, request: numbered(2), want: "3: 2|0|1"},
				{after: h, request: numbered(3), want: "4: 2>3|0|1"},
				{after: h, request: numbered(3), want: "4: 3|0|1|2"},
				{after: h, request: numbered(4), want: "4: 3|0|1|2"},
				{after: RetainPeriod, request: numbered(4), want: "5: 3>4|1|2"},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newIssuerNames(t)
			s := NewState(w.first)
			for i, step := range c.steps {
				now := start.Add(step.after)
				next, changed, err := Decide(now, s, w.roots, step.acks, step.request)
				if err != nil {
					t.Fatal(err)
				}
				if got := w.text(next); got != step.want {
					t.Fatalf("step %d: %s, want %s: %s", i, got, step.want, c.why)
				}
				if same := w.text(next) == w.text(s) && next.Request == s.Request &&
					next.Deadline.Equal(s.Deadline); changed == same {
					t.Errorf("step %d: changed: %v", i, changed)
				}
				if _, err := w.roots.Current.SignIssuerList(next.Number, next.Listed()); err != nil {
					t.Errorf("step %d: peers would reject the list: %v", i, err)
				}
				data, err := next.Marshal()
				if err != nil {
					t.Fatal(err)
				}
				// Another replica parses the Secret.
				if s, err = Parse(data, w.roots.Current.Certificate()); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(fields(w, next), fields(w, s)); diff != "" {
					t.Fatalf("step %d: parsed state (-marshaled +parsed):\n%s", i, diff)
				}
			}
		})
	}
}

// fields returns what s consists of, in comparable form.
func fields(w *issuerNames, s State) map[string]any {
	return map[string]any{
		"issuers":       w.text(s),
		"currentNumber": s.CurrentNumber,
		"nextNumber":    s.NextNumber,
		"request":       s.Request,
		"deadline":      s.Deadline.UTC(),
		"since":         s.Since.UTC(),
		"promoteOnAck":  s.PromoteOnAck,
	}
}

func TestDecideUnderAnExpiredRoot(t *testing.T) {
	w := newIssuerNames(t)
	s := NewState(w.first)
	for _, r := range []Request{{ID: "a"}, {ID: "a", Revoke: true}} {
		next, changed, err := Decide(start.Add(2*identity.RootLifetime), s, w.roots, nil, r)
		if err == nil || changed || w.text(next) != "1: 0" {
			t.Errorf("%+v: %s, %v, %v: want no change and an error", r, w.text(next), changed, err)
		}
	}
}

func TestParseBeforeFirstRotation(t *testing.T) {
	w := newIssuerNames(t)
	data, err := NewState(w.first).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	delete(data, stateJSON)
	s, err := Parse(data, w.roots.Current.Certificate())
	if err != nil || w.text(s) != "1: 0" || s.CurrentNumber != 1 {
		t.Errorf("Parse = %v, %v", s, err)
	}
}

func TestParseRequest(t *testing.T) {
	for name, c := range map[string]struct{ why, text, wantErr string }{
		"empty":    {"an absent annotation requests nothing", "", ""},
		"plain":    {"announce is optional", `{"id":"a"}`, ""},
		"no id":    {"the controller could not tell that it was carried out", `{"revoke":true}`, "id has"},
		"not JSON": {"a user may edit the annotation", `yes`, "invalid character"},
		"negative": {"announce must not be in the past", `{"id":"a","announce":"-1s"}`, "not between"},
		"too long": {"announce is bounded", `{"id":"a","announce":"9999h"}`, "not between"},
		"no unit":  {"announce must be a duration", `{"id":"a","announce":"soon"}`, "not a duration"},
		"large": {
			"the size is bounded",
			`{"id":"` + strings.Repeat("a", maxRequestBytes) + `"}`,
			"more than",
		},
	} {
		r, err := ParseRequest(c.text)
		if (err == nil) != (c.wantErr == "") ||
			err != nil && (!strings.Contains(err.Error(), c.wantErr) || r != Request{}) {
			t.Errorf("%s: error %v, want %q: %s", name, err, c.wantErr, c.why)
		}
	}
	if got := (Request{ID: "a"}).AnnounceDuration(); got != AnnouncePeriod {
		t.Errorf("AnnounceDuration = %v, want %v", got, AnnouncePeriod)
	}
}

func TestProgressRoundTrip(t *testing.T) {
	w := newIssuerNames(t)
	s, _, err := Decide(start, NewState(w.first), w.roots, nil, Request{ID: "a", Announce: "1h"})
	if err != nil {
		t.Fatal(err)
	}
	at := start.Add(time.Hour)
	want := Progress{
		Request:  "a",
		Number:   2,
		Listed:   2,
		Deadline: &at,
		Waiting:  []string{"north"},
		Fault:    "no",
	}
	acks := map[string]uint64{"east": 2, "north": 1}
	got, err := ParseProgress(ProgressOf(s, w.roots, acks, errors.New("no")).String())
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("error %v (-want +got):\n%s", err, diff)
	}
}
