package clusterid

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/kube/kubetest"
)

// west is an identity that tests share, because making keys takes time.
var west = sync.OnceValue(func() *Identity {
	id, err := Load(context.Background(), kubetest.New(nil), named("west"))
	if err != nil {
		panic(err)
	}
	return id
})

func mustLoad(t *testing.T, a *kubetest.API) *Identity {
	t.Helper()
	id, err := Load(t.Context(), a, named("west"))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestConcurrentLoadsAgree(t *testing.T) {
	a := kubetest.New(nil)
	// Both replicas try to create each Secret before either succeeds.
	var mu sync.Mutex
	creates := map[string]int{}
	barriers := map[string]*sync.WaitGroup{}
	a.Refuse(func(verb string, o client.Object) error {
		if _, secret := o.(*corev1.Secret); verb != "create" || !secret {
			return nil
		}
		mu.Lock()
		if barriers[o.GetName()] == nil {
			barriers[o.GetName()] = &sync.WaitGroup{}
			barriers[o.GetName()].Add(2)
		}
		creates[o.GetName()]++
		both := barriers[o.GetName()]
		mu.Unlock()
		both.Done()
		both.Wait()
		return nil
	})
	var got [2]*Identity
	var loading sync.WaitGroup
	for i := range got {
		loading.Go(func() {
			id, err := Load(t.Context(), a, named("west"))
			if err != nil {
				t.Error(err)
			}
			got[i] = id
		})
	}
	loading.Wait()
	if t.Failed() {
		t.FailNow()
	}
	x, y := got[0], got[1]
	if !x.Issuers().Root().Equal(y.Issuers().Root()) || !x.Issuers().Issuer().Equal(y.Issuers().Issuer()) ||
		string(x.linkKey.Public()) != string(y.linkKey.Public()) || x.hopMasterKey != y.hopMasterKey ||
		x.trustDomain != y.trustDomain {
		t.Error("two replicas that start at once must load one identity")
	}
	if creates[rootSecret] != 2 || creates[issuerSecret] != 2 || creates[keysSecret] != 2 {
		t.Errorf("the race did not happen: %v", creates)
	}
	if _, err := identity.VerifyIssuerList(x.Issuers().Root(), y.trustDomain,
		y.Issuers().SignedList()); err != nil {
		t.Error(err)
	}
	a.Refuse(nil)
	a.Writes()
	again, err := Load(t.Context(), a, named("renamed"))
	if err != nil || again.trustDomain != x.trustDomain || len(a.Writes()) > 0 {
		t.Errorf("a restart must read what is stored and ignore a new cluster name: %v", err)
	}
}

func TestLoadKeepsDamagedSecret(t *testing.T) {
	a := kubetest.New(nil)
	mustLoad(t, a)
	var s corev1.Secret
	a.MustGet(t, system, keysSecret, &s)
	s.Data["hop-master"] = []byte("short")
	if err := a.Update(t.Context(), &s); err != nil {
		t.Fatal(err)
	}
	a.Writes()
	if _, err := Load(t.Context(), a, named("west")); err == nil || len(a.Writes()) > 0 {
		t.Errorf("a person must repair a damaged key; replacing it would break existing links: %v", err)
	}
}

func TestLoadKeepsLostSecretLost(t *testing.T) {
	for _, name := range []string{rootSecret, keysSecret} {
		a := kubetest.New(nil)
		if err := mustLoad(t, a).Publish(t.Context(), a, nil); err != nil {
			t.Fatal(err)
		}
		var s corev1.Secret
		a.MustGet(t, system, name, &s)
		if err := a.Delete(t.Context(), &s); err != nil {
			t.Fatal(err)
		}
		a.Writes()
		if _, err := Load(t.Context(), a, named("west")); err == nil ||
			!strings.Contains(err.Error(), name) || len(a.Writes()) > 0 {
			t.Errorf("%s: peers trust its content, and a new one would cut them off silently: %v", name, err)
		}
		var cm corev1.ConfigMap
		a.MustGet(t, system, clusterinfo.IdentityConfigMap, &cm)
		a.MustGet(t, system, issuerSecret, &s)
		if err := errors.Join(a.Delete(t.Context(), &cm), a.Delete(t.Context(), &s)); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(t.Context(), a, named("west")); err != nil {
			t.Errorf("%s: a person who deletes the public half wants a new identity: %v", name, err)
		}
	}
}

func TestPublish(t *testing.T) {
	a := kubetest.New(nil)
	publish := func(gateways []string) (map[string]string, []string) {
		t.Helper()
		if err := west().Publish(t.Context(), a, gateways); err != nil {
			t.Fatal(err)
		}
		var cm corev1.ConfigMap
		a.MustGet(t, system, clusterinfo.IdentityConfigMap, &cm)
		return cm.Data, a.Writes()
	}
	change := func(do func(*corev1.ConfigMap) error) func() {
		return func() {
			var cm corev1.ConfigMap
			a.MustGet(t, system, clusterinfo.IdentityConfigMap, &cm)
			if err := do(&cm); err != nil {
				t.Fatal(err)
			}
			a.Writes()
		}
	}
	edit := change(func(cm *corev1.ConfigMap) error {
		cm.Data[clusterinfo.KeyRoot] = "mine"
		return a.Update(t.Context(), cm)
	})
	remove := change(func(cm *corev1.ConfigMap) error { return a.Delete(t.Context(), cm) })
	steps := []struct {
		why      string
		before   func()
		gateways []string
		want     string
		writes   int
	}{
		{"the first start creates it", func() {}, nil, "", 1},
		{"nothing changed", func() {}, nil, "", 0},
		{"addresses become known later", func() {}, []string{"192.0.2.1:4143"}, "192.0.2.1:4143", 1},
		{
			"a restarted controller knows no address yet and keeps the published ones",
			func() {},
			nil,
			"192.0.2.1:4143",
			0,
		},
		{"a manual edit is repaired", edit, []string{"192.0.2.1:4143"}, "192.0.2.1:4143", 1},
		{"a manual deletion is repaired", remove, []string{"192.0.2.2:4143"}, "192.0.2.2:4143", 1},
	}
	for _, s := range steps {
		s.before()
		data, writes := publish(s.gateways)
		if data[clusterinfo.KeyGateways] != s.want || len(writes) != s.writes ||
			data[clusterinfo.KeyTrustDomain] != west().trustDomain || data[clusterinfo.KeyRoot] == "mine" {
			t.Errorf("%s: gateways %q, writes %v", s.why, data[clusterinfo.KeyGateways], writes)
		}
	}
}

func TestPublishReportsLostRace(t *testing.T) {
	a := kubetest.New(nil)
	a.Refuse(func(verb string, o client.Object) error {
		if verb == "create" {
			return apierrors.NewAlreadyExists(corev1.Resource("configmaps"), o.GetName())
		}
		return nil
	})
	if err := west().Publish(t.Context(), a, nil); !apierrors.IsAlreadyExists(err) {
		t.Errorf("the writer has to retry, so it needs the error: %v", err)
	}
}

func TestCredentialIsRenewed(t *testing.T) {
	id, err := load(t.Context(), kubetest.New(nil), named("west"), time.Now().Add(-40*24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	first, err := id.Credential()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := id.Credential(); err != nil || again != first {
		t.Errorf("a credential in the first half of its life must be reused: %v", err)
	}
	early, err := id.newCredential(time.Now().Add(-30 * 24 * time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	id.credential = early
	if again, err := id.Credential(); err != nil || again == early {
		t.Errorf("a credential past its renewal time must be replaced: %v", err)
	}
}
