package link

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

func rootPEM(t *testing.T, ca bool) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, IsCA: ca, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func linkKey(t *testing.T) *ecdh.PublicKey {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key.PublicKey()
}

func TestJudge(t *testing.T) {
	own := Own{TrustDomain: "west-1", LinkKey: linkKey(t)}
	root, eastKey, southKey := rootPEM(t, true), linkKey(t), linkKey(t)
	text := func(k *ecdh.PublicKey) string { return base64.StdEncoding.EncodeToString(k.Bytes()) }
	good := func(name, td string, key *ecdh.PublicKey) v1alpha1.Link {
		return v1alpha1.Link{
			ObjectMeta: metav1.ObjectMeta{Name: name, UID: "uid-" + "x"},
			Spec:       v1alpha1.LinkSpec{TrustDomain: td, Root: root, LinkPublicKey: text(key), Gateways: []string{"198.18.1.1:4143"}},
		}
	}
	with := func(l v1alpha1.Link, edit func(*v1alpha1.Link)) v1alpha1.Link { edit(&l); return l }
	east := good("east", "east-1", eastKey)
	born := func(l v1alpha1.Link, seconds int64) v1alpha1.Link {
		l.CreationTimestamp = metav1.Unix(seconds, 0)
		return l
	}
	cases := map[string]struct {
		why      string
		links    []v1alpha1.Link
		peers    []string
		faults   map[string]Reason
		standbys map[string]string
	}{
		"two peers": {
			why:   "the ordinary case",
			links: []v1alpha1.Link{east, good("south", "south-1", southKey)}, peers: []string{"east", "south"},
		},
		"one trust domain twice": {
			why:   "a GitOps rename has both Links for a moment: the older serves on, the newer waits",
			links: []v1alpha1.Link{born(good("east-prod", "east-1", eastKey), 2), born(east, 1)}, peers: []string{"east"},
			faults: map[string]Reason{"east-prod": DuplicatePeer}, standbys: map[string]string{"east": "east-prod"},
		},
		"three times": {
			why:   "the second oldest takes over next",
			links: []v1alpha1.Link{born(good("c", "east-1", eastKey), 3), born(good("b", "east-1", eastKey), 2), born(east, 1)}, peers: []string{"east"},
			faults: map[string]Reason{"b": DuplicatePeer, "c": DuplicatePeer}, standbys: map[string]string{"east": "b"},
		},
		"the older is being deleted": {
			why: "the newer takes over at once",
			links: []v1alpha1.Link{
				born(good("east-prod", "east-1", eastKey), 2),
				born(with(east, func(l *v1alpha1.Link) { now := metav1.Now(); l.DeletionTimestamp = &now }), 1),
			},
			peers: []string{"east-prod"},
		},
		"the older is not valid": {
			why: "a Link that is not valid claims nothing",
			links: []v1alpha1.Link{
				born(good("east-prod", "east-1", eastKey), 2),
				born(with(east, func(l *v1alpha1.Link) { l.Spec.Root = "junk" }), 1),
			},
			peers: []string{"east-prod"}, faults: map[string]Reason{"east": BadRoot},
		},
		"one age": {
			why: "the UID decides, so that all replicas agree",
			links: []v1alpha1.Link{
				with(good("a", "east-1", eastKey), func(l *v1alpha1.Link) { l.UID = "2" }),
				with(good("b", "east-1", eastKey), func(l *v1alpha1.Link) { l.UID = "1" }),
			},
			peers: []string{"b"}, faults: map[string]Reason{"a": DuplicatePeer}, standbys: map[string]string{"b": "a"},
		},
		"one key twice": {
			why:   "a gateway cannot tell two peers with one key apart: the older Link keeps it, without a standby",
			links: []v1alpha1.Link{born(east, 1), born(good("other", "south-1", eastKey), 2)}, peers: []string{"east"},
			faults: map[string]Reason{"other": DuplicatePeer},
		},
		"our own half": {
			why:    "a cluster linked to itself would vouch for its own names",
			links:  []v1alpha1.Link{good("self", "west-1", eastKey)},
			faults: map[string]Reason{"self": OwnTrustDomain},
		},
		"our own key": {
			why:    "labels to ourselves would open at our own gateway",
			links:  []v1alpha1.Link{good("self", "east-1", own.LinkKey)},
			faults: map[string]Reason{"self": OwnTrustDomain},
		},
		"no certificate": {
			why:    "a root that does not parse anchors nothing",
			links:  []v1alpha1.Link{with(east, func(l *v1alpha1.Link) { l.Spec.Root = "junk" })},
			faults: map[string]Reason{"east": BadRoot},
		},
		"two certificates": {
			why:    "one Link, one root: a second would be an anchor nobody reviewed",
			links:  []v1alpha1.Link{with(east, func(l *v1alpha1.Link) { l.Spec.Root = root + root })},
			faults: map[string]Reason{"east": BadRoot},
		},
		"no authority": {
			why:    "a leaf certificate must not become an anchor",
			links:  []v1alpha1.Link{with(east, func(l *v1alpha1.Link) { l.Spec.Root = rootPEM(t, false) })},
			faults: map[string]Reason{"east": BadRoot},
		},
		"bad address": {
			why:    "an address that cannot be dialed is reported at once, not at the first call",
			links:  []v1alpha1.Link{with(east, func(l *v1alpha1.Link) { l.Spec.Gateways = []string{"host:0"} })},
			faults: map[string]Reason{"east": BadGateway},
		},
		"short key": {
			why:    "a truncated paste",
			links:  []v1alpha1.Link{with(east, func(l *v1alpha1.Link) { l.Spec.LinkPublicKey = "AAAA" })},
			faults: map[string]Reason{"east": BadLinkKey},
		},
		"being deleted": {
			why:   "a Link on its way out is not a peer any more",
			links: []v1alpha1.Link{with(east, func(l *v1alpha1.Link) { now := metav1.Now(); l.DeletionTimestamp = &now })},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			judged := Judge(own, c.links)
			got := map[string]Reason{}
			for name, f := range judged.Faults {
				got[name] = f.Reason
			}
			if c.faults == nil {
				c.faults = map[string]Reason{}
			}
			if diff := cmp.Diff(c.faults, got); diff != "" {
				t.Errorf("faults (-want +got): %s\n%s", c.why, diff)
			}
			if c.standbys == nil {
				c.standbys = map[string]string{}
			}
			standbys := make(map[string]string)
			for name, next := range judged.Standbys {
				standbys[name] = next.Name
			}
			if diff := cmp.Diff(c.standbys, standbys); diff != "" {
				t.Errorf("standbys (-want +got): %s\n%s", c.why, diff)
			}
			if len(judged.Peers) != len(c.peers) {
				t.Errorf("%d peers, want %v: %s", len(judged.Peers), c.peers, c.why)
			}
			for _, name := range c.peers {
				if p := judged.Peers[name]; p.Name != name || p.Root == nil || p.LinkKey == nil {
					t.Errorf("peer %q is incomplete: %+v", name, p)
				}
			}
		})
	}
}

func TestStatusIsStable(t *testing.T) {
	l := &v1alpha1.Link{ObjectMeta: metav1.ObjectMeta{Name: "east", Generation: 3}}
	seen := Observed{Connected: true, IssuersKnown: true, Complete: true, Gateways: 1, Reachable: 1, Standing: 2}
	first := time.Unix(1_000_000, 0)
	status, changed := Status(l, seen, first)
	if changed != Substantial {
		t.Fatal("a Link without conditions needs a status")
	}
	l.Status = status
	if again, changed := Status(l, seen, first.Add(time.Hour)); changed != Unchanged {
		t.Errorf("the same state an hour later must not write a status:\n%s", cmp.Diff(status, again))
	}
	seen.Connected = false
	later, changed := Status(l, seen, first.Add(time.Hour))
	if changed != Substantial {
		t.Fatal("a lost stream changes the status")
	}
	for _, c := range later.Conditions {
		moved := c.LastTransitionTime.After(first)
		if want := c.Type == v1alpha1.LinkConnected; moved != want {
			t.Errorf("condition %s moved its time: %v, want %v", c.Type, moved, want)
		}
	}
}

func TestProblemsAreBounded(t *testing.T) {
	var many []v1alpha1.ServiceProblem
	for i := range 100 {
		many = append(many, v1alpha1.ServiceProblem{Service: "shop/" + string(rune('a'+i%50)), Reason: "NameTaken", Message: "m"})
	}
	status, _ := Status(&v1alpha1.Link{}, Observed{Problems: many}, time.Unix(0, 0))
	if len(status.Problems) != maxProblems {
		t.Fatalf("%d problems, want %d", len(status.Problems), maxProblems)
	}
	if last := status.Problems[maxProblems-1]; last.Message != "and 19 more" {
		t.Errorf("last line %q: repeats must be dropped and the rest counted", last.Message)
	}
	for _, c := range []struct {
		named, leftOut, lines int
		last                  string
	}{
		{3, 0, 3, "m"},
		{3, 40, 4, "and 40 more"},
		{maxProblems, 0, maxProblems, "m"},
		{maxProblems, 40, maxProblems, "and 41 more"},
		{50, 40, maxProblems, "and 59 more"},
		{0, 40, 1, "and 40 more"},
	} {
		status, _ := Status(&v1alpha1.Link{}, Observed{Problems: many[:c.named], LeftOut: c.leftOut}, time.Unix(0, 0))
		if n := len(status.Problems); n != c.lines || status.Problems[n-1].Message != c.last {
			t.Errorf("%d problems and %d that are not named: %d lines, the last is %q, want %d and %q",
				c.named, c.leftOut, n, status.Problems[n-1].Message, c.lines, c.last)
		}
	}
}
