package rotation

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-mesh/causeway/internal/identity"
)

// A realm is a cluster's roots and issuers, decided together as the leader does.
type realm struct {
	*world
	*testing.T
	issuers State
	from    Source
	kings   []*x509.Certificate
}

func newRealm(t *testing.T) *realm {
	w := newWorld(t)
	return &realm{world: w, T: t, issuers: First(w.first)}
}

func (r *realm) king(c *x509.Certificate) string {
	for n, k := range r.kings {
		if string(k.RawSubjectPublicKeyInfo) == string(c.RawSubjectPublicKeyInfo) {
			return string(rune('A' + n))
		}
	}
	r.kings = append(r.kings, c)
	return string(rune('A' + len(r.kings) - 1))
}

// said is "current>next|former, list number: issuers", former in brackets if it is disowned.
func (r *realm) said() string {
	out := r.king(r.roots.Current.Certificate())
	if r.roots.Next != nil {
		out += ">" + r.king(r.roots.Next.Certificate())
	}
	switch {
	case r.roots.Disowned:
		out += "|[" + r.king(r.roots.Former) + "]"
	case r.roots.Former != nil:
		out += "|" + r.king(r.roots.Former)
	}
	return out + ", " + r.text(r.issuers)
}

// step decides once: the roots, and then the issuers; and reads both as another replica would.
func (r *realm) step(now time.Time, acks map[string]uint64, ask Request) {
	r.Helper()
	old := r.issuers
	from := r.from
	from.Make = func() (*identity.Root, error) { return identity.NewRoot("west-d1e4195c", now) }
	roots, changed, err := DecideRoots(now, r.roots, old, acks, ask, from)
	if err != nil {
		r.Fatal(err)
	}
	if changed != (roots.Generation != r.roots.Generation) {
		r.Errorf("changed: %v, generation %d after %d", changed, roots.Generation, r.roots.Generation)
	}
	data, err := roots.Marshal()
	if err != nil {
		r.Fatal(err)
	}
	again, err := ParseRoots(data)
	if err != nil {
		r.Fatal(err)
	}
	if diff := cmp.Diff(tell(roots), tell(again)); diff != "" {
		r.Fatalf("kept otherwise: %s", diff)
	}
	r.roots = again
	next, _, err := Decide(now, old, r.roots, acks, ask.ForIssuers(r.roots))
	if err != nil {
		r.Fatal(err)
	}
	if data, err = next.Marshal(); err != nil {
		r.Fatal(err)
	}
	if r.issuers, err = Parse(data, r.roots.Known()...); err != nil {
		r.Fatal(err)
	}
	if !r.issuers.Carries(r.roots) || !r.roots.Honours(r.issuers) {
		r.Error("the list does not tell of the roots")
	}
}

// tell is roots as text.
func tell(r Roots) string {
	next := []byte(nil)
	if r.Next != nil {
		next = r.Next.Certificate().Raw
	}
	return fmt.Sprintf("%d %x %x %v %v %x %v %v %s", r.Generation, r.Current.Certificate().Raw, next, r.Deadline.UTC(), r.Hurry, raw(r.Former), r.Disowned, r.mark(), r.Request)
}

// list is what peers get.
func (r *realm) list() []byte {
	r.Helper()
	der, err := r.roots.Current.SignIssuerList(r.issuers.Number, r.issuers.Listed(), r.roots.Crosses()...)
	if err != nil {
		r.Fatal(err)
	}
	return der
}

// believes reports whether whoever pins a root believes the list, and the controllers.
func (r *realm) believes(pinned *x509.Certificate, now time.Time) error {
	r.Helper()
	if _, err := identity.VerifyIssuerList(pinned, "west-d1e4195c", r.list()); err != nil {
		return err
	}
	key, err := identity.NewPrivateKey()
	if err != nil {
		r.Fatal(err)
	}
	name, err := identity.NewName("west-d1e4195c", "causeway-system", identity.ControllerServiceAccount)
	if err != nil {
		r.Fatal(err)
	}
	chain, err := r.roots.Current.SignController(key.Public(), name, nil, now)
	if err != nil {
		r.Fatal(err)
	}
	var certs []*x509.Certificate
	for _, der := range chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			r.Fatal(err)
		}
		certs = append(certs, c)
	}
	_, err = identity.VerifyController(append(certs, r.roots.Presented()...), "west-d1e4195c", pinned, now)
	return err
}

func TestDecideRoots(t *testing.T) {
	const h, day, year = time.Hour, 24 * time.Hour, 365 * 24 * time.Hour
	root := func(id string) Request { return Request{ID: id, Root: true, Announce: "1h"} }
	east := func(n uint64) map[string]uint64 { return map[string]uint64{"east": n} }
	for name, c := range map[string]struct {
		why   string
		steps []step
	}{
		"idle": {"nothing asks, and the root is young", []step{{after: 200 * day, acks: east(1), want: "A, 1: 0"}}},
		"asked": {"announced, signing when the peer knows it, then the issuer, then the old root leaves", []step{
			{acks: east(1), ask: root("a"), want: "A>B, 2: 0"},
			{after: 1, acks: east(1), ask: root("a"), want: "A>B, 2: 0"},
			{after: 2, acks: east(2), ask: root("a"), want: "B|A, 3: 0>1"},
			{after: 3, acks: east(2), ask: root("a"), want: "B|A, 3: 0>1"},
			{after: 4, acks: east(3), ask: root("a"), want: "B|A, 3: 1|0"},
			{after: 4 + Keep - 1, acks: east(3), ask: root("a"), want: "B|A, 3: 1|0"},
			{after: 4 + Keep, acks: east(3), ask: root("a"), want: "B|A, 4: 1"},
			{after: 5 + Keep, acks: east(3), ask: root("a"), want: "B, 5: 1"},
			{after: 6 + Keep, acks: east(5), ask: root("a"), want: "B, 5: 1"},
		}},
		"a dead peer": {"it holds up nothing beyond the deadlines", []step{
			{acks: east(0), ask: root("a"), want: "A>B, 2: 0"},
			{after: h - 1, acks: east(0), ask: root("a"), want: "A>B, 2: 0"},
			{after: h, acks: east(0), ask: root("a"), want: "B|A, 3: 0>1"},
			{after: 2 * h, acks: east(0), ask: root("a"), want: "B|A, 3: 1|0"},
		}},
		"by itself": {"after two thirds of its life, and then all of the time ahead, for root and issuer", []step{
			{after: 7 * year, acks: east(1), want: "A>B, 2: 0>1"},
			{after: 7*year + 1, acks: east(2), want: "A>B, 2: 1|0"}, // the issuer had ended long ago
			{after: 7*year + 23*h, acks: east(2), want: "A>B, 3: 1"},
			{after: 7*year + 24*h, acks: east(3), want: "B|A, 4: 1>2"},
			{after: 7*year + 47*h, acks: east(4), want: "B|A, 4: 1>2"},
			{after: 7*year + 48*h, acks: east(4), want: "B|A, 4: 2|1"},
		}},
		"hurried": {"a request while one is under way makes that one sooner", []step{
			{acks: east(1), ask: Request{ID: "a", Root: true}, want: "A>B, 2: 0"},
			{after: 1, acks: east(1), ask: root("b"), want: "A>B, 2: 0"},
			{after: h, acks: east(1), ask: root("b"), want: "A>B, 2: 0"},
			{after: h + 1, acks: east(1), ask: root("b"), want: "B|A, 3: 0>1"},
		}},
		"issuer asked meanwhile": {"the issuer of the old root is followed by one of the new", []step{
			{acks: east(1), ask: root("a"), want: "A>B, 2: 0"},
			{after: 1, acks: east(1), ask: Request{ID: "b"}, want: "A>B, 3: 0>1"},
			{after: 2, acks: east(3), ask: Request{ID: "b"}, want: "B|A, 4: 1|0"},
			{after: 3, acks: east(4), ask: Request{ID: "b"}, want: "B|A, 5: 1>2|0"},
			{after: 3 + 24*h, acks: east(5), ask: Request{ID: "b"}, want: "B|A, 5: 2|0|1"},
		}},
		"again at once": {"the next one waits until the one before has left", []step{
			{ask: root("a"), want: "A>B, 2: 0"}, {after: 1, ask: root("a"), want: "B|A, 3: 0>1"}, {after: 2, ask: root("a"), want: "B|A, 3: 1|0"},
			{after: 3, ask: root("b"), want: "B|A, 3: 1|0"},
			{after: 2 + Keep, ask: root("b"), want: "B|A, 4: 1"},
			{after: 3 + Keep, ask: root("b"), want: "B, 5: 1"},
			{after: 4 + Keep, ask: root("b"), want: "B>C, 6: 1"},
		}},
		"revoked": {"at once, with all issuers", []step{
			{acks: east(1), ask: root("a"), want: "A>B, 2: 0"},
			{after: 1, acks: east(1), ask: Request{ID: "b", Root: true, Revoke: true}, want: "C|[A], 3: 1"},
			{after: 2, acks: east(1), ask: Request{ID: "b", Root: true, Revoke: true}, want: "C, 3: 1"},
			{after: 3, acks: east(1), ask: Request{ID: "b", Root: true, Revoke: true}, want: "C, 3: 1"},
		}},
		"issuer revoked meanwhile": {"that is no matter of the root", []step{
			{acks: east(1), ask: root("a"), want: "A>B, 2: 0"},
			{after: 1, acks: east(1), ask: Request{ID: "b", Revoke: true}, want: "A>B, 3: 1"},
			{after: 2, acks: east(3), ask: Request{ID: "b", Revoke: true}, want: "B|A, 4: 1>2"},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRealm(t)
			for i, s := range c.steps {
				r.T = t
				now := start.Add(s.after)
				pinned := r.roots.Current.Certificate()
				r.step(now, s.acks, s.ask)
				if got := r.said(); got != s.want {
					t.Fatalf("step %d: %s, want %s: %s", i, got, s.want, c.why)
				}
				if err := r.believes(r.roots.Current.Certificate(), now); err != nil {
					t.Errorf("step %d: a Link of today: %v", i, err)
				}
				if r.roots.Next != nil {
					if err := r.believes(r.roots.Next.Certificate(), now); err != nil {
						t.Errorf("step %d: a replica, or a Link, that is ahead: %v", i, err)
					}
				}
				if err := r.believes(pinned, now); (err == nil) == r.roots.Disowned {
					t.Errorf("step %d: a Link of before: %v", i, err)
				}
			}
		})
	}
}

// A Link that was applied long ago is good through two rotations of the root and no more, if its holder has learnt nothing meanwhile.
func TestOldLinks(t *testing.T) {
	r, now := newRealm(t), start
	pinned := []*x509.Certificate{r.roots.Current.Certificate()}
	for n := range 3 {
		ask := Request{ID: fmt.Sprint(n), Root: true}
		for range 3 { // announce, turn, the issuer turns
			r.step(now, nil, ask)
			now = now.Add(time.Second)
			for i, p := range pinned[max(0, len(pinned)-2):] {
				if err := r.believes(p, now); err != nil {
					t.Errorf("rotation %d: root %d of those before: %v", n, i, err)
				}
			}
		}
		pinned = append(pinned, r.roots.Current.Certificate())
		now = now.Add(Keep)
		r.step(now, nil, ask) // the old issuer leaves
		r.step(now, nil, ask) // and its root
		if r.roots.Former != nil {
			t.Fatal("the former root does not leave")
		}
	}
	for i, p := range pinned {
		if err := r.believes(p, now); (err == nil) != (i > 0) {
			t.Errorf("after three rotations, root %d: %v", i, err)
		}
	}
}

func TestNoRootWithoutAKey(t *testing.T) {
	r := newRealm(t)
	none := Source{Make: func() (*identity.Root, error) { return nil, errors.New("no") }}
	for _, ask := range []Request{{ID: "a", Root: true}, {ID: "a", Root: true, Revoke: true}} {
		if next, changed, err := DecideRoots(start, r.roots, r.issuers, nil, ask, none); err == nil || changed || tell(next) != tell(r.roots) {
			t.Errorf("%+v: %v, %v: want nothing changed and the error", ask, changed, err)
		}
	}
	if _, err := ParseRoots(nil); err == nil {
		t.Error("no root at all")
	}
}

// An office has a root of its own, and signs clusters' roots as cert-manager does.
type office struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newOffice(t *testing.T) *office {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	o := &office{key: key}
	o.cert = o.sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "office"}, NotAfter: start.AddDate(30, 0, 0)}, nil, key)
	return o
}

func (o *office) sign(t *testing.T, c, by *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	c.NotBefore, c.BasicConstraintsValid, c.IsCA, c.KeyUsage, c.MaxPathLen = start.Add(-time.Hour), true, true, x509.KeyUsageCertSign, -1
	if by == nil {
		by = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, by, &key.PublicKey, o.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// brings makes a root for the realm, with a key of its own if key is nil.
func (o *office) brings(t *testing.T, now time.Time, key *ecdsa.PrivateKey) *identity.Root {
	t.Helper()
	if key == nil {
		var err error
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	uri := &url.URL{Scheme: "spiffe", Host: "west-d1e4195c"}
	cert := o.sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "west"}, URIs: []*url.URL{uri}, NotAfter: now.AddDate(0, 3, 0)}, o.cert, key)
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	r, err := identity.BringRoot(text("CERTIFICATE", cert.Raw), text("EC PRIVATE KEY", der), text("CERTIFICATE", o.cert.Raw), now)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A brought root is renewed in place by whoever makes it, and nobody who pins what stands above notices.
func TestBroughtRoot(t *testing.T) {
	o, r, now := newOffice(t), newRealm(t), start
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	first := o.brings(t, now, key)
	issuer, err := first.NewIssuer(now)
	if err != nil {
		t.Fatal(err)
	}
	r.roots, r.issuers, r.from = FirstRoots(first), First(issuer), Source{Brought: first, Name: "ns/ca"}
	east := func(n uint64) map[string]uint64 { return map[string]uint64{"east": n} }
	see := func(why, want string, after time.Duration, ack uint64, ask Request) {
		t.Helper()
		now = now.Add(after)
		r.step(now, east(ack), ask)
		if got := r.said(); got != want {
			t.Fatalf("%s: %s, want %s", why, got, want)
		}
		if err := r.believes(o.cert, now); err != nil {
			t.Errorf("%s: %v", why, err)
		}
	}
	const h = time.Hour
	see("the list shows the way from what peers pin", "A, 2: 0", 0, 1, Request{})
	see("it is never ours to follow by age alone", "A, 2: 0", 24*20*h, 1, Request{})
	if _, _, err := DecideRoots(now, r.roots, r.issuers, nil, Request{ID: "a", Root: true}, r.from); err == nil || !strings.Contains(err.Error(), "ns/ca") {
		t.Errorf("a root that is not ours to make is asked for: %v", err)
	}
	r.from.Brought = o.brings(t, now, key)
	see("renewed with its key", "A, 3: 0", h, 2, Request{})
	r.from.Brought = o.brings(t, now, nil)
	see("renewed with another key: announced", "A>B, 4: 0", h, 3, Request{})
	r.from.Brought = o.brings(t, now, nil)
	see("renewed again before it signs", "A>C, 5: 0", h, 4, Request{})
	see("acknowledged, but nobody is in a hurry", "A>C, 5: 0", h, 5, Request{})
	see("it signs, and an issuer of it is announced", "C|A, 6: 0>1", 24*h, 5, Request{})
	see("the issuer signs", "C|A, 6: 1|0", 24*h, 6, Request{})
	see("the former issuer leaves", "C|A, 7: 1", 26*h, 6, Request{})
	see("and its root", "C, 8: 1", h, 6, Request{})
	other := newOffice(t)
	r.from.Brought = other.brings(t, now, nil)
	see("another office: hurried by hand", "C>D, 9: 1", h, 8, Request{ID: "b", Root: true})
	see("those who pin the old office believe it", "D|C, 10: 1>2", h, 9, Request{ID: "b", Root: true})
	if err := r.believes(other.cert, now); err != nil {
		t.Errorf("those who pin the new one: %v", err)
	}
}
