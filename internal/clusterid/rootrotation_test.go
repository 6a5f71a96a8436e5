package clusterid

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/kube/kubetest"
)

// verifyFrom verifies the issuer list and the controller certificate of id as a peer does
// that pins a root. It returns nil if the peer accepts both.
func verifyFrom(t *testing.T, pinned *x509.Certificate, id *Identity) error {
	t.Helper()
	if _, err := identity.VerifyIssuerList(pinned, id.trustDomain, id.Hello().IssuerList); err != nil {
		return err
	}
	c, err := id.Credential()
	if err != nil {
		t.Fatal(err)
	}
	var certs []*x509.Certificate
	for _, der := range c.TLS().Certificate {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		certs = append(certs, cert)
	}
	_, err = identity.VerifyController(certs, id.trustDomain, pinned, time.Now())
	return err
}

func TestRootRotation(t *testing.T) {
	a, now := kubetest.New(nil), time.Now()
	acknowledged := map[string]uint64{"east": 1}
	leader, follower := newReplica(t, a, true, acknowledged), newReplica(t, a, false, nil)
	both := func(after time.Duration) {
		t.Helper()
		leader.step(t, now.Add(after))
		follower.step(t, now.Add(after))
	}
	both(0)
	old := leader.id.Issuers().Root()
	before, err := follower.id.Credential()
	if err != nil {
		t.Fatal(err)
	}
	request(t, a, `{"id":"a","root":true}`)
	both(0)
	if p := progress(t, a); p.Root.Deadline == nil || !slices.Equal(p.Root.Waiting, []string{
		"east",
	}) || p.Number != 2 || p.Request != "" {
		t.Errorf("progress after the announcement: %+v", p)
	}
	if !leader.id.Issuers().Root().Equal(old) || follower.changes != 1 {
		t.Errorf("the new root signs before peers know it, or peers do not learn of it (%d changes)",
			follower.changes)
	}
	next := leader.id.Issuers().roots.Next.Certificate()
	for name, root := range map[string]*x509.Certificate{
		"a Link with the old root":    old,
		"an agent with the next root": next,
	} {
		if err := verifyFrom(t, root, follower.id); err != nil {
			t.Errorf("after the announcement, %s: %v", name, err)
		}
	}
	acknowledged["east"] = 2
	both(1)
	if !follower.id.Issuers().Root().Equal(next) || progress(t, a).Root.Deadline != nil {
		t.Fatal("the new root does not sign although all peers know it")
	}
	if after, err := follower.id.Credential(); err != nil || after == before {
		t.Errorf("a controller keeps the certificate that the old root signed: %v", err)
	}
	if p := progress(t, a); p.Deadline == nil || p.Request != "a" || !p.Root.Retiring {
		t.Errorf("the issuer must be rotated after the root: %+v", p)
	}
	acknowledged["east"] = 3
	both(2)
	if p := progress(t, a); p.Deadline != nil || p.Root.RetiringUntil == nil {
		t.Errorf("progress after the issuer was rotated: %+v", p)
	}
	if err := leader.id.Publish(t.Context(), a, nil); err != nil {
		t.Fatal(err)
	}
	var cm corev1.ConfigMap
	a.MustGet(t, system, clusterinfo.IdentityConfigMap, &cm)
	if cm.Data[clusterinfo.KeyRoot] != string(leader.id.Issuers().roots.Current.AnchorPEM()) {
		t.Error("the old root is published for new Links")
	}
	both(48 * time.Hour)
	both(48 * time.Hour)
	if p := progress(t, a); p.Root.Retiring || p.Listed != 1 {
		t.Errorf("the old root must have been retired: %+v", p)
	}
	for _, id := range []*Identity{leader.id, follower.id, newReplica(t, a, false, nil).id} {
		for name, root := range map[string]*x509.Certificate{
			"a Link with the old root": old,
			"a Link with the new root": next,
		} {
			if err := verifyFrom(t, root, id); err != nil {
				t.Errorf("after the rotation, %s: %v", name, err)
			}
		}
	}
	var s corev1.Secret
	a.MustGet(t, system, rootSecret, &s)
	if len(s.Data["next.key"]) > 0 || string(s.Data["tls.key"]) == "" {
		t.Error("the Secret must hold the key of the current root and no other")
	}
	a.Writes()
	both(49 * time.Hour)
	if w := a.Writes(); len(w) > 0 {
		t.Errorf("the rotation is over, but it writes %v", w)
	}
}

func TestRootRevocation(t *testing.T) {
	a, now := kubetest.New(nil), time.Now()
	leader, follower := newReplica(t, a, true, map[string]uint64{"east": 1}), newReplica(t, a, false, nil)
	leader.step(t, now)
	follower.step(t, now)
	old, issuer := leader.id.Issuers().Root(), leader.issuer()
	request(t, a, `{"id":"a","root":true,"revoke":true}`)
	leader.step(t, now)
	follower.step(t, now)
	for name, id := range map[string]*Identity{"leader": leader.id, "follower": follower.id} {
		if verifyFrom(t, old, id) == nil {
			t.Errorf("%s: the revoked root still verifies its successor", name)
		}
		if err := verifyFrom(t, id.Issuers().Root(), id); err != nil {
			t.Errorf("%s: a peer that was linked again refuses: %v", name, err)
		}
	}
	if follower.issuer() == issuer || len(follower.id.Issuers().Certificates()) != 1 {
		t.Error("an issuer of the revoked root is listed")
	}
	leader.step(t, now)
	if p := progress(t, a); p.Request != "a" || p.Root.Request != "a" || p.Root.Retiring || p.Number != 2 {
		t.Errorf("progress at the end: %+v", p)
	}
}

// A leader that ends between any two writes leaves a state from which the next leader
// finishes the rotation.
func TestRootRotationContinuesAfterCrash(t *testing.T) {
	for _, asked := range []string{`{"id":"a","root":true}`, `{"id":"a","root":true,"revoke":true}`} {
		for _, lost := range []bool{false, true} {
			for at := range 8 {
				t.Run(fmt.Sprint(asked, lost, at), func(t *testing.T) {
					crashAndContinue(t, asked, lost, at)
				})
			}
		}
	}
}

// crashAndContinue rotates the root while the write with index at fails. lost says that
// the API server makes that write but its answer is lost.
func crashAndContinue(t *testing.T, asked string, lost bool, at int) {
	a, now, writes := kubetest.New(nil), time.Now(), 0
	first := newReplica(t, a, true, nil)
	first.step(t, now)
	old := first.id.Issuers().Root()
	request(t, a, asked)
	crash := func() bool { writes++; return writes == at+1 }
	if lost {
		a.LoseAnswers(crash)
	} else {
		a.Refuse(func(verb string, _ client.Object) error {
			if verb == "update" && crash() {
				return errors.New("the process ends here")
			}
			return nil
		})
	}
	number, leader := uint64(0), first
	for i := range 12 {
		if _, err := leader.Step(t.Context(), now.Add(time.Duration(max(0, i-7))*26*time.Hour)); err != nil {
			leader = newReplica(t, a, true, nil) // another process
		}
		have := leader.id.Issuers()
		if have.Number() < number {
			t.Errorf("list %d after list %d", have.Number(), number)
		}
		number = have.Number()
		if err := verifyFrom(t, have.Root(), leader.id); err != nil {
			t.Error(err)
		}
	}
	have := leader.id.Issuers()
	if have.Root().Equal(old) || have.roots.Retired != nil || len(have.Certificates()) != 1 ||
		!have.roots.Trusts(have.state) {
		t.Errorf("the rotation does not end: generation %d, %d issuers", have.RootGeneration(),
			len(have.Certificates()))
	}
	if progress(t, a).Request != "a" {
		t.Error("the request is not done")
	}
}

func TestRotatorRefusesRootOfBackup(t *testing.T) {
	a, now := kubetest.New(nil), time.Now()
	r := newReplica(t, a, true, nil)
	r.step(t, now)
	var backup, s corev1.Secret
	a.MustGet(t, system, rootSecret, &backup)
	request(t, a, `{"id":"a","root":true}`)
	for i := range 3 {
		r.step(t, now.Add(time.Duration(i)))
	}
	rotated := r.id.Issuers().Root()
	a.MustGet(t, system, rootSecret, &s)
	s.Data = backup.Data
	if err := a.Update(t.Context(), &s); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Step(t.Context(), now); err == nil || !r.id.Issuers().Root().Equal(rotated) {
		t.Errorf("an older root is adopted: %v", err)
	}
	if err := a.Delete(t.Context(), &s); err != nil {
		t.Fatal(err)
	}
	r.step(t, now)
	if again := newReplica(t, a, false, nil); !again.id.Issuers().Root().Equal(rotated) {
		t.Error("the deleted Secret is not restored from what is in force")
	}
}
