package controller

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/identity"
)

func TestTwoReplicasStartAtOnce(t *testing.T) {
	a := newAPI(t)
	// Each Secret is looked for by both before either makes it.
	var mu sync.Mutex
	looks := map[string]int{}
	met := map[string]*sync.WaitGroup{}
	a.refusing(func(verb string, o client.Object) error {
		if _, secret := o.(*corev1.Secret); verb != "create" || !secret {
			return nil
		}
		mu.Lock()
		if met[o.GetName()] == nil {
			met[o.GetName()] = &sync.WaitGroup{}
			met[o.GetName()].Add(2)
		}
		looks[o.GetName()]++
		both := met[o.GetName()]
		mu.Unlock()
		both.Done()
		both.Wait()
		return nil
	})
	var got [2]*own
	var starting sync.WaitGroup
	for i := range got {
		starting.Go(func() {
			o, err := loadOwn(t.Context(), a, named("west"), time.Now())
			if err != nil {
				t.Error(err)
			}
			got[i] = o
		})
	}
	starting.Wait()
	if t.Failed() {
		t.FailNow()
	}
	x, y := got[0], got[1]
	if !x.root().Certificate().Equal(y.root().Certificate()) || !x.issuers.Load().Current.Certificate().Equal(y.issuers.Load().Current.Certificate()) ||
		string(x.linkKey.Public()) != string(y.linkKey.Public()) || x.hopMaster != y.hopMaster || x.trustDomain != y.trustDomain {
		t.Error("two replicas that start at once must come to one identity")
	}
	if looks[rootSecret] != 2 || looks[issuerSecret] != 2 || looks[keysSecret] != 2 {
		t.Errorf("the race was not run: %v", looks)
	}
	if _, err := identity.VerifyIssuerList(x.root().Certificate(), y.trustDomain, y.issuers.Load().list); err != nil {
		t.Error(err)
	}
	a.refusing(nil)
	a.wrote()
	again, err := loadOwn(t.Context(), a, named("renamed"), time.Now())
	if err != nil || again.trustDomain != x.trustDomain || len(a.wrote()) > 0 {
		t.Errorf("a restart reads what is there, whatever the cluster is called now: %v", err)
	}
}

func TestDamagedSecretIsNotReplaced(t *testing.T) {
	a := newAPI(t)
	if _, err := loadOwn(t.Context(), a, named("west"), time.Now()); err != nil {
		t.Fatal(err)
	}
	var s corev1.Secret
	a.get(t, system, keysSecret, &s)
	s.Data["hop-master"] = []byte("short")
	if err := a.Update(t.Context(), &s); err != nil {
		t.Fatal(err)
	}
	a.wrote()
	if _, err := loadOwn(t.Context(), a, named("west"), time.Now()); err == nil || len(a.wrote()) > 0 {
		t.Errorf("a key that is broken is for a person to mend, not to be made anew under open links: %v", err)
	}
}

func TestLostSecretIsNotReplaced(t *testing.T) {
	for _, name := range []string{rootSecret, keysSecret} {
		a := newAPI(t)
		o, err := loadOwn(t.Context(), a, named("west"), time.Now())
		if err == nil {
			err = o.publish(t.Context(), a, named("west"), nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		var s corev1.Secret
		a.get(t, system, name, &s)
		if err := a.Delete(t.Context(), &s); err != nil {
			t.Fatal(err)
		}
		a.wrote()
		if _, err := loadOwn(t.Context(), a, named("west"), time.Now()); err == nil || !strings.Contains(err.Error(), name) || len(a.wrote()) > 0 {
			t.Errorf("%s: peers trust what was in it, and another would cut them off in silence: %v", name, err)
		}
		var cm corev1.ConfigMap
		a.get(t, system, IdentityConfigMap, &cm)
		a.get(t, system, issuerSecret, &s)
		if err := errors.Join(a.Delete(t.Context(), &cm), a.Delete(t.Context(), &s)); err != nil {
			t.Fatal(err)
		}
		if _, err := loadOwn(t.Context(), a, named("west"), time.Now()); err != nil {
			t.Errorf("%s: whoever takes the public half away wants to begin anew: %v", name, err)
		}
	}
}

func TestPublish(t *testing.T) {
	a := newAPI(t)
	publish := func(gateways []string) (map[string]string, []string) {
		t.Helper()
		if err := west().publish(t.Context(), a, named("west"), gateways); err != nil {
			t.Fatal(err)
		}
		var cm corev1.ConfigMap
		a.get(t, system, IdentityConfigMap, &cm)
		return cm.Data, a.wrote()
	}
	steps := []struct {
		why      string
		before   func()
		gateways []string
		want     string
		writes   int
	}{
		{"it is made at the first start", func() {}, nil, "", 1},
		{"nothing changed", func() {}, nil, "", 0},
		{"addresses are learnt later", func() {}, []string{"192.0.2.1:4143"}, "192.0.2.1:4143", 1},
		{"a restart knows no address yet, and must not take those away", func() {}, nil, "192.0.2.1:4143", 0},
		{"a hand's edit is repaired", func() {
			var cm corev1.ConfigMap
			a.get(t, system, IdentityConfigMap, &cm)
			cm.Data[KeyRoot] = "mine"
			if err := a.Update(t.Context(), &cm); err != nil {
				t.Fatal(err)
			}
			a.wrote()
		}, []string{"192.0.2.1:4143"}, "192.0.2.1:4143", 1},
		{"a hand's deletion is repaired", func() {
			var cm corev1.ConfigMap
			a.get(t, system, IdentityConfigMap, &cm)
			if err := a.Delete(t.Context(), &cm); err != nil {
				t.Fatal(err)
			}
			a.wrote()
		}, []string{"192.0.2.2:4143"}, "192.0.2.2:4143", 1},
	}
	for _, s := range steps {
		s.before()
		data, writes := publish(s.gateways)
		if data[KeyGateways] != s.want || len(writes) != s.writes || data[KeyTrustDomain] != west().trustDomain || data[KeyRoot] == "mine" {
			t.Errorf("%s: gateways %q, writes %v", s.why, data[KeyGateways], writes)
		}
	}
}

func TestPublishTellsOfALostRace(t *testing.T) {
	a := newAPI(t)
	a.refusing(func(verb string, o client.Object) error {
		if verb == "create" {
			return apierrors.NewAlreadyExists(corev1.Resource("configmaps"), o.GetName())
		}
		return nil
	})
	if err := west().publish(t.Context(), a, named("west"), nil); !apierrors.IsAlreadyExists(err) {
		t.Errorf("the writer must come again, and so must know: %v", err)
	}
}
