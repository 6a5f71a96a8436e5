package controller

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/identity"
)

// trustedUnder says why whoever pins a root refuses what a replica says and shows; nil: it is believed.
func trustedUnder(t *testing.T, pinned *x509.Certificate, o *own) error {
	t.Helper()
	if _, err := identity.VerifyIssuerList(pinned, o.trustDomain, o.hello("v").IssuerList); err != nil {
		return err
	}
	c, err := (&credential{own: o, namespace: system}).get()
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
	_, err = identity.VerifyController(certs, o.trustDomain, pinned, time.Now())
	return err
}

func TestRootRotation(t *testing.T) {
	a, now := newAPI(t), time.Now()
	acks := map[string]uint64{"east": 1}
	leader, other := newTurner(t, a, true, acks), newTurner(t, a, false, nil)
	both := func(after time.Duration) {
		t.Helper()
		leader.see(t, now.Add(after))
		other.see(t, now.Add(after))
	}
	both(0)
	old := leader.own.root().Certificate()
	shown := &credential{own: other.own, namespace: system}
	before, err := shown.get()
	if err != nil {
		t.Fatal(err)
	}
	request(t, a, `{"id":"a","root":true}`)
	both(0)
	if p := progress(t, a); p.Root.Deadline == nil || !slices.Equal(p.Root.Waiting, []string{"east"}) || p.Number != 2 || p.Request != "" {
		t.Errorf("announced: %+v", p)
	}
	if !leader.own.root().Certificate().Equal(old) || other.turned != 1 {
		t.Errorf("the root signs before anybody knows it, or peers are not told of it (%d)", other.turned)
	}
	next := leader.own.issuers.Load().roots.Next.Certificate()
	for name, root := range map[string]*x509.Certificate{"a Link of before": old, "an agent ahead": next} {
		if err := trustedUnder(t, root, other.own); err != nil {
			t.Errorf("announced, %s: %v", name, err)
		}
	}
	acks["east"] = 2
	both(1)
	if !other.own.root().Certificate().Equal(next) || progress(t, a).Root.Deadline != nil {
		t.Fatal("the root does not sign though all peers know it")
	}
	if after, err := shown.get(); err != nil || after == before {
		t.Errorf("a controller goes on by the certificate of before: %v", err)
	}
	if p := progress(t, a); p.Deadline == nil || p.Request != "a" || !p.Root.Leaving {
		t.Errorf("the issuer is to follow: %+v", p)
	}
	acks["east"] = 3
	both(2)
	if p := progress(t, a); p.Deadline != nil || p.Root.Until == nil {
		t.Errorf("the issuer has followed: %+v", p)
	}
	if err := leader.own.publish(t.Context(), a, named("west"), nil); err != nil {
		t.Fatal(err)
	}
	var cm corev1.ConfigMap
	a.get(t, system, IdentityConfigMap, &cm)
	if cm.Data[KeyRoot] != string(leader.own.root().AnchorPEM()) {
		t.Error("the old root is printed for new Links")
	}
	both(48 * time.Hour)
	both(48 * time.Hour)
	if p := progress(t, a); p.Root.Leaving || p.Listed != 1 {
		t.Errorf("the old root has left: %+v", p)
	}
	for _, o := range []*own{leader.own, other.own, newTurner(t, a, false, nil).own} {
		for name, root := range map[string]*x509.Certificate{"a Link of before": old, "a Link of today": next} {
			if err := trustedUnder(t, root, o); err != nil {
				t.Errorf("over, %s: %v", name, err)
			}
		}
	}
	var s corev1.Secret
	a.get(t, system, rootSecret, &s)
	if len(s.Data["next.key"]) > 0 || string(s.Data["tls.key"]) == "" {
		t.Error("a key is kept that signs nothing, or none")
	}
	a.wrote()
	both(49 * time.Hour)
	if w := a.wrote(); len(w) > 0 {
		t.Errorf("nothing is left to do, but written: %v", w)
	}
}

func TestRootRevoked(t *testing.T) {
	a, now := newAPI(t), time.Now()
	leader, other := newTurner(t, a, true, map[string]uint64{"east": 1}), newTurner(t, a, false, nil)
	leader.see(t, now)
	other.see(t, now)
	old, issuer := leader.own.root().Certificate(), leader.current()
	request(t, a, `{"id":"a","root":true,"revoke":true}`)
	leader.see(t, now)
	other.see(t, now)
	for name, o := range map[string]*own{"leader": leader.own, "other": other.own} {
		if trustedUnder(t, old, o) == nil {
			t.Errorf("%s: the root that was revoked vouches for what follows it", name)
		}
		if err := trustedUnder(t, o.root().Certificate(), o); err != nil {
			t.Errorf("%s: linked anew: %v", name, err)
		}
	}
	if other.current() == issuer || len(other.own.issuers.Load().ders) != 1 {
		t.Error("an issuer of the revoked root is listed")
	}
	leader.see(t, now)
	if p := progress(t, a); p.Request != "a" || p.Root.Request != "a" || p.Root.Leaving || p.Number != 2 {
		t.Errorf("done: %+v", p)
	}
}

// Whoever ends between any two writes leaves what the next one goes on from.
func TestRootRotationGoesOnAfterACrash(t *testing.T) {
	for _, ask := range []string{`{"id":"a","root":true}`, `{"id":"a","root":true,"revoke":true}`} {
		for _, lost := range []bool{false, true} {
			for at := range 8 {
				t.Run(fmt.Sprint(ask, lost, at), func(t *testing.T) {
					a, now, writes := newAPI(t), time.Now(), 0
					first := newTurner(t, a, true, nil)
					first.see(t, now)
					old := first.own.root().Certificate()
					request(t, a, ask)
					down := errors.New("the process ends here")
					hit := func() bool { writes++; return writes == at+1 }
					if lost {
						a.lose = hit
					} else {
						a.refusing(func(verb string, _ client.Object) error {
							if verb == "update" && hit() {
								return down
							}
							return nil
						})
					}
					number, leader := uint64(0), first
					for i := range 12 {
						if _, err := leader.look(t.Context(), now.Add(time.Duration(max(0, i-7))*26*time.Hour)); err != nil {
							leader = newTurner(t, a, true, nil) // another process
						}
						have := leader.own.issuers.Load()
						if have.Number < number {
							t.Errorf("list %d after list %d", have.Number, number)
						}
						number = have.Number
						if err := trustedUnder(t, leader.own.root().Certificate(), leader.own); err != nil {
							t.Error(err)
						}
					}
					have := leader.own.issuers.Load()
					if have.roots.Current.Certificate().Equal(old) || have.roots.Former != nil || len(have.ders) != 1 || !have.roots.Honours(have.State) {
						t.Errorf("it does not come to an end: generation %d, %d issuers", have.roots.Generation, len(have.ders))
					}
					if progress(t, a).Request != "a" {
						t.Error("what was asked for is not done")
					}
				})
			}
		}
	}
}

func TestRootSecretOfABackup(t *testing.T) {
	a, now := newAPI(t), time.Now()
	r := newTurner(t, a, true, nil)
	r.see(t, now)
	var backup, s corev1.Secret
	a.get(t, system, rootSecret, &backup)
	request(t, a, `{"id":"a","root":true}`)
	for i := range 3 {
		r.see(t, now.Add(time.Duration(i)))
	}
	turned := r.own.root().Certificate()
	a.get(t, system, rootSecret, &s)
	s.Data = backup.Data
	if err := a.Update(t.Context(), &s); err != nil {
		t.Fatal(err)
	}
	if _, err := r.look(t.Context(), now); err == nil || !r.own.root().Certificate().Equal(turned) {
		t.Errorf("a root of before is followed: %v", err)
	}
	if err := a.Delete(t.Context(), &s); err != nil {
		t.Fatal(err)
	}
	r.see(t, now)
	if again := newTurner(t, a, false, nil); !again.own.root().Certificate().Equal(turned) {
		t.Error("the Secret that was deleted is not restored as it was")
	}
}
