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

const trustDomain = "west-d1e4195c"

// rootCluster decides about the roots and issuers of one cluster together, as the leader
// does.
type rootCluster struct {
	*issuerNames
	*testing.T
	issuers    State
	source     RootSource
	knownRoots []*x509.Certificate
}

func newRootCluster(t *testing.T) *rootCluster {
	w := newIssuerNames(t)
	return &rootCluster{issuerNames: w, T: t, issuers: NewState(w.first)}
}

// rootName names roots A, B, C and so on, in the order in which it meets their keys.
func (r *rootCluster) rootName(c *x509.Certificate) string {
	for n, k := range r.knownRoots {
		if string(k.RawSubjectPublicKeyInfo) == string(c.RawSubjectPublicKeyInfo) {
			return string(rune('A' + n))
		}
	}
	r.knownRoots = append(r.knownRoots, c)
	return string(rune('A' + len(r.knownRoots) - 1))
}

// state formats roots and issuers as "current>next|retired, number: issuers". The retired
// root is in brackets if it was revoked.
func (r *rootCluster) state() string {
	out := r.rootName(r.roots.Current.Certificate())
	if r.roots.Next != nil {
		out += ">" + r.rootName(r.roots.Next.Certificate())
	}
	switch {
	case r.roots.RetiredRevoked:
		out += "|[" + r.rootName(r.roots.Retired) + "]"
	case r.roots.Retired != nil:
		out += "|" + r.rootName(r.roots.Retired)
	}
	return out + ", " + r.text(r.issuers)
}

// step decides about the roots and then about the issuers. It parses what it has
// marshaled, as another replica does.
func (r *rootCluster) step(now time.Time, acks map[string]uint64, request Request) {
	r.Helper()
	old := r.issuers
	source := r.source
	source.Generate = func() (*identity.Root, error) { return identity.NewRoot(trustDomain, now) }
	roots, changed, err := DecideRoots(now, r.roots, old, acks, request, source)
	if err != nil {
		r.Fatal(err)
	}
	if changed != (roots.Generation != r.roots.Generation) {
		r.Errorf("changed = %v, but generation %d follows %d", changed, roots.Generation, r.roots.Generation)
	}
	data, err := roots.Marshal()
	if err != nil {
		r.Fatal(err)
	}
	parsed, err := ParseRoots(data)
	if err != nil {
		r.Fatal(err)
	}
	if diff := cmp.Diff(rootsText(roots), rootsText(parsed)); diff != "" {
		r.Fatalf("parsed roots (-marshaled +parsed):\n%s", diff)
	}
	r.roots = parsed
	next, _, err := Decide(now, old, r.roots, acks, request.ForIssuers(r.roots))
	if err != nil {
		r.Fatal(err)
	}
	if data, err = next.Marshal(); err != nil {
		r.Fatal(err)
	}
	if r.issuers, err = Parse(data, r.roots.Known()...); err != nil {
		r.Fatal(err)
	}
	if !r.issuers.CarriesCrosses(r.roots) || !r.roots.Trusts(r.issuers) {
		r.Error("the list does not match the roots")
	}
}

// rootsText formats r so that tests can compare it.
func rootsText(r Roots) string {
	next := []byte(nil)
	if r.Next != nil {
		next = r.Next.Certificate().Raw
	}
	return fmt.Sprintf("%d %x %x %v %v %x %v %v %s", r.Generation, r.Current.Certificate().Raw, next,
		r.Deadline.UTC(), r.PromoteOnAck, derOf(r.Retired), r.RetiredRevoked, r.crossDigest(), r.Request)
}

// list returns the signed list of issuers that peers receive.
func (r *rootCluster) list() []byte {
	r.Helper()
	der, err := r.roots.Current.SignIssuerList(r.issuers.Number, r.issuers.Listed(),
		r.roots.CrossCertificates()...)
	if err != nil {
		r.Fatal(err)
	}
	return der
}

// verify returns an error if a peer that pins a root cannot verify the list of issuers,
// or the certificate of a controller.
func (r *rootCluster) verify(pinned *x509.Certificate, now time.Time) error {
	r.Helper()
	if _, err := identity.VerifyIssuerList(pinned, trustDomain, r.list()); err != nil {
		return err
	}
	key, err := identity.NewPrivateKey()
	if err != nil {
		r.Fatal(err)
	}
	name, err := identity.NewName(trustDomain, "causeway-system", identity.ControllerServiceAccount)
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
	_, err = identity.VerifyController(append(certs, r.roots.Presented()...), trustDomain, pinned, now)
	return err
}

func TestDecideRoots(t *testing.T) {
	const h, day, year = time.Hour, 24 * time.Hour, 365 * 24 * time.Hour
	root := func(id string) Request { return Request{ID: id, Root: true, Announce: "1h"} }
	acked := func(n uint64) map[string]uint64 { return map[string]uint64{"east": n} }
	for name, c := range map[string]struct {
		why   string
		steps []step
	}{
		"idle": {
			"without a request, a young root stays",
			[]step{{after: 200 * day, acks: acked(1), want: "A, 1: 0"}},
		},
		"requested": {
			"the new root is announced and signs once acknowledged, its issuer follows, the old root leaves",
			[]step{
				{acks: acked(1), request: root("a"), want: "A>B, 2: 0"},
				{after: 1, acks: acked(1), request: root("a"), want: "A>B, 2: 0"},
				{after: 2, acks: acked(2), request: root("a"), want: "B|A, 3: 0>1"},
				{after: 3, acks: acked(2), request: root("a"), want: "B|A, 3: 0>1"},
				{after: 4, acks: acked(3), request: root("a"), want: "B|A, 3: 1|0"},
				{after: 4 + RetainPeriod - 1, acks: acked(3), request: root("a"), want: "B|A, 3: 1|0"},
				{after: 4 + RetainPeriod, acks: acked(3), request: root("a"), want: "B|A, 4: 1"},
				{after: 5 + RetainPeriod, acks: acked(3), request: root("a"), want: "B, 5: 1"},
				{after: 6 + RetainPeriod, acks: acked(5), request: root("a"), want: "B, 5: 1"},
			},
		},
		"dead peer": {"a peer that does not acknowledge delays the rotation until the deadlines", []step{
			{acks: acked(0), request: root("a"), want: "A>B, 2: 0"},
			{after: h - 1, acks: acked(0), request: root("a"), want: "A>B, 2: 0"},
			{after: h, acks: acked(0), request: root("a"), want: "B|A, 3: 0>1"},
			{after: 2 * h, acks: acked(0), request: root("a"), want: "B|A, 3: 1|0"},
		}},
		"automatic": {
			"rotation starts after two thirds of the lifetime, with full announce periods",
			[]step{
				{after: 7 * year, acks: acked(1), want: "A>B, 2: 0>1"},
				// The issuer had expired long before.
				{after: 7*year + 1, acks: acked(2), want: "A>B, 2: 1|0"},
				{after: 7*year + 23*h, acks: acked(2), want: "A>B, 3: 1"},
				{after: 7*year + 24*h, acks: acked(3), want: "B|A, 4: 1>2"},
				{after: 7*year + 47*h, acks: acked(4), want: "B|A, 4: 1>2"},
				{after: 7*year + 48*h, acks: acked(4), want: "B|A, 4: 2|1"},
			},
		},
		"request during rotation": {"a request during a rotation shortens it", []step{
			{acks: acked(1), request: Request{ID: "a", Root: true}, want: "A>B, 2: 0"},
			{after: 1, acks: acked(1), request: root("b"), want: "A>B, 2: 0"},
			{after: h, acks: acked(1), request: root("b"), want: "A>B, 2: 0"},
			{after: h + 1, acks: acked(1), request: root("b"), want: "B|A, 3: 0>1"},
		}},
		"issuer requested during rotation": {
			"an issuer of the old root is followed by one of the new root",
			[]step{
				{acks: acked(1), request: root("a"), want: "A>B, 2: 0"},
				{after: 1, acks: acked(1), request: Request{ID: "b"}, want: "A>B, 3: 0>1"},
				{after: 2, acks: acked(3), request: Request{ID: "b"}, want: "B|A, 4: 1|0"},
				{after: 3, acks: acked(4), request: Request{ID: "b"}, want: "B|A, 5: 1>2|0"},
				{after: 3 + 24*h, acks: acked(5), request: Request{ID: "b"}, want: "B|A, 5: 2|0|1"},
			},
		},
		"two requests": {"the second rotation waits until the retired root has left", []step{
			{request: root("a"), want: "A>B, 2: 0"},
			{after: 1, request: root("a"), want: "B|A, 3: 0>1"},
			{after: 2, request: root("a"), want: "B|A, 3: 1|0"},
			{after: 3, request: root("b"), want: "B|A, 3: 1|0"},
			{after: 2 + RetainPeriod, request: root("b"), want: "B|A, 4: 1"},
			{after: 3 + RetainPeriod, request: root("b"), want: "B, 5: 1"},
			{after: 4 + RetainPeriod, request: root("b"), want: "B>C, 6: 1"},
		}},
		"revoked": {"a revocation replaces the root and all issuers at once", []step{
			{acks: acked(1), request: root("a"), want: "A>B, 2: 0"},
			{
				after:   1,
				acks:    acked(1),
				request: Request{ID: "b", Root: true, Revoke: true},
				want:    "C|[A], 3: 1",
			},
			{after: 2, acks: acked(1), request: Request{ID: "b", Root: true, Revoke: true}, want: "C, 3: 1"},
			{after: 3, acks: acked(1), request: Request{ID: "b", Root: true, Revoke: true}, want: "C, 3: 1"},
		}},
		"issuer revoked during rotation": {
			"revoking the issuers does not affect the rotation of the root",
			[]step{
				{acks: acked(1), request: root("a"), want: "A>B, 2: 0"},
				{after: 1, acks: acked(1), request: Request{ID: "b", Revoke: true}, want: "A>B, 3: 1"},
				{after: 2, acks: acked(3), request: Request{ID: "b", Revoke: true}, want: "B|A, 4: 1>2"},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRootCluster(t)
			for i, s := range c.steps {
				r.T = t
				now := start.Add(s.after)
				pinned := r.roots.Current.Certificate()
				r.step(now, s.acks, s.request)
				if got := r.state(); got != s.want {
					t.Fatalf("step %d: %s, want %s: %s", i, got, s.want, c.why)
				}
				if err := r.verify(r.roots.Current.Certificate(), now); err != nil {
					t.Errorf("step %d: peer that pins the current root: %v", i, err)
				}
				if r.roots.Next != nil {
					if err := r.verify(r.roots.Next.Certificate(), now); err != nil {
						t.Errorf("step %d: peer that pins the announced root: %v", i, err)
					}
				}
				if err := r.verify(pinned, now); (err == nil) == r.roots.RetiredRevoked {
					t.Errorf("step %d: peer that pins the previous root: error %v", i, err)
				}
			}
		})
	}
}

// A peer that received no update keeps working through two rotations of the root, and
// fails after the third.
func TestPinnedRootSurvivesTwoRotations(t *testing.T) {
	r, now := newRootCluster(t), start
	pinned := []*x509.Certificate{r.roots.Current.Certificate()}
	for n := range 3 {
		request := Request{ID: fmt.Sprint(n), Root: true}
		for range 3 { // announce the root, promote it, promote its issuer
			r.step(now, nil, request)
			now = now.Add(time.Second)
			for i, p := range pinned[max(0, len(pinned)-2):] {
				if err := r.verify(p, now); err != nil {
					t.Errorf("rotation %d: peer that pins root %d: %v", n, i, err)
				}
			}
		}
		pinned = append(pinned, r.roots.Current.Certificate())
		now = now.Add(RetainPeriod)
		r.step(now, nil, request) // removes the old issuer
		r.step(now, nil, request) // removes the old root
		if r.roots.Retired != nil {
			t.Fatal("the retired root did not leave")
		}
	}
	for i, p := range pinned {
		if err := r.verify(p, now); (err == nil) != (i > 0) {
			t.Errorf("after three rotations: peer that pins root %d: error %v", i, err)
		}
	}
}

func TestDecideRootsFailsIfNoRootCanBeGenerated(t *testing.T) {
	r := newRootCluster(t)
	failing := RootSource{Generate: func() (*identity.Root, error) { return nil, errors.New("no") }}
	for _, request := range []Request{{ID: "a", Root: true}, {ID: "a", Root: true, Revoke: true}} {
		next, changed, err := DecideRoots(start, r.roots, r.issuers, nil, request, failing)
		if err == nil || changed || rootsText(next) != rootsText(r.roots) {
			t.Errorf("%+v: changed %v, error %v, want no change and an error", request, changed, err)
		}
	}
	if _, err := ParseRoots(nil); err == nil {
		t.Error("ParseRoots accepts empty data")
	}
}

// externalCA has a root and signs the roots of clusters, as cert-manager does.
type externalCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newExternalCA(t *testing.T) *externalCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	o := &externalCA{key: key}
	o.cert = o.sign(
		t,
		&x509.Certificate{Subject: pkix.Name{CommonName: "external CA"}, NotAfter: start.AddDate(30, 0, 0)},
		nil,
		key,
	)
	return o
}

func (o *externalCA) sign(t *testing.T, c, by *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	c.NotBefore, c.BasicConstraintsValid, c.IsCA, c.KeyUsage, c.MaxPathLen = start.Add(
		-time.Hour,
	), true, true, x509.KeyUsageCertSign, -1
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

// issueRoot returns a root for the cluster. It generates a key if key is nil.
func (o *externalCA) issueRoot(t *testing.T, now time.Time, key *ecdsa.PrivateKey) *identity.Root {
	t.Helper()
	if key == nil {
		var err error
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	uri := &url.URL{Scheme: "spiffe", Host: trustDomain}
	cert := o.sign(
		t,
		&x509.Certificate{
			Subject:  pkix.Name{CommonName: "west"},
			URIs:     []*url.URL{uri},
			NotAfter: now.AddDate(0, 3, 0),
		},
		o.cert,
		key,
	)
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := func(kind string, der []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{
			Type:  kind,
			Bytes: der,
		})
	}
	r, err := identity.ImportRoot(
		text("CERTIFICATE", cert.Raw),
		text("EC PRIVATE KEY", der),
		text("CERTIFICATE", o.cert.Raw),
		now,
	)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// An external root is renewed in its Secret. Peers pin the certificate that signed it, so
// they can verify the renewed root.
func TestExternalRoot(t *testing.T) {
	o, r, now := newExternalCA(t), newRootCluster(t), start
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	first := o.issueRoot(t, now, key)
	issuer, err := first.NewIssuer(now)
	if err != nil {
		t.Fatal(err)
	}
	r.roots, r.issuers = NewRoots(first), NewState(issuer)
	r.source = RootSource{External: first, SecretName: "ns/ca"}
	acked := func(n uint64) map[string]uint64 { return map[string]uint64{"east": n} }
	expect := func(why, want string, after time.Duration, ack uint64, request Request) {
		t.Helper()
		now = now.Add(after)
		r.step(now, acked(ack), request)
		if got := r.state(); got != want {
			t.Fatalf("%s: %s, want %s", why, got, want)
		}
		if err := r.verify(o.cert, now); err != nil {
			t.Errorf("%s: %v", why, err)
		}
	}
	const h = time.Hour
	expect(
		"the list carries the certificate that connects the pinned one to the root",
		"A, 2: 0",
		0,
		1,
		Request{},
	)
	expect("the controller does not rotate an external root by age", "A, 2: 0", 24*20*h, 1, Request{})
	_, _, err = DecideRoots(now, r.roots, r.issuers, nil, Request{ID: "a", Root: true}, r.source)
	if err == nil || !strings.Contains(err.Error(), "ns/ca") {
		t.Errorf(
			"request for a root that the controller cannot generate: error %v, want one with the Secret",
			err,
		)
	}
	r.source.External = o.issueRoot(t, now, key)
	expect("the root is renewed with its key", "A, 3: 0", h, 2, Request{})
	r.source.External = o.issueRoot(t, now, nil)
	expect("a root with a new key is announced", "A>B, 4: 0", h, 3, Request{})
	r.source.External = o.issueRoot(t, now, nil)
	expect("a root that is renewed again before it signs is replaced", "A>C, 5: 0", h, 4, Request{})
	expect(
		"without a request, the full announce period passes after the acknowledgment",
		"A>C, 5: 0",
		h,
		5,
		Request{},
	)
	expect("the root signs, and its issuer is announced", "C|A, 6: 0>1", 24*h, 5, Request{})
	expect("the issuer signs", "C|A, 6: 1|0", 24*h, 6, Request{})
	expect("the retired issuer leaves", "C|A, 7: 1", 26*h, 6, Request{})
	expect("the retired root leaves", "C, 8: 1", h, 6, Request{})
	other := newExternalCA(t)
	r.source.External = other.issueRoot(t, now, nil)
	expect(
		"a root of another CA is announced, and a request shortens that",
		"C>D, 9: 1",
		h,
		8,
		Request{ID: "b", Root: true},
	)
	expect("the root of the other CA signs", "D|C, 10: 1>2", h, 9, Request{ID: "b", Root: true})
	if err := r.verify(other.cert, now); err != nil {
		t.Errorf("peer that pins the other CA: %v", err)
	}
}
