package joinflow

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/invite"
	"github.com/causeway-mesh/causeway/internal/kube/kubetest"
)

// keysTest is a cache of keys that runs in a bubble, and its API server.
type keysTest struct {
	*Keys
	api     *kubetest.API
	changes int
}

// runKeys runs Keys in fake time while do runs.
func runKeys(t *testing.T, do func(t *testing.T, k *keysTest)) {
	synctest.Test(t, func(t *testing.T) {
		k := &keysTest{api: kubetest.New(nil)}
		k.Keys = NewKeys(k.api, func() { k.changes++ }, discardLog)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- k.Run(ctx) }()
		do(t, k)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// create creates an Invite, and its Secret unless secret is nil.
func (k *keysTest) create(t *testing.T, name string, age time.Duration, secret *invite.Secret) {
	t.Helper()
	inv := newInvite(name, age)
	if err := k.api.Create(t.Context(), inv); err != nil {
		t.Fatal(err)
	}
	if secret != nil {
		k.createSecret(t, inv, *secret)
	}
}

func (k *keysTest) createSecret(t *testing.T, inv *v1alpha1.Invite, secret invite.Secret) {
	t.Helper()
	err := k.api.Create(t.Context(), secretOf(inv, "Invite", invite.SecretName(inv.Name), invite.SecretKey,
		secret.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
}

func (k *keysTest) list(t *testing.T) []*v1alpha1.Invite {
	t.Helper()
	var list v1alpha1.InviteList
	if err := k.api.List(t.Context(), &list); err != nil {
		t.Fatal(err)
	}
	var out []*v1alpha1.Invite
	for i := range list.Items {
		out = append(out, &list.Items[i])
	}
	return out
}

func newSecret() *invite.Secret {
	s := invite.NewSecret()
	return &s
}

// keys returns the keys of the open invites by name.
func (k *keysTest) keys(t *testing.T) map[string][32]byte {
	t.Helper()
	open, _ := k.Open(k.list(t), time.Now())
	out := make(map[string][32]byte)
	for _, inv := range open {
		out[inv.Name] = inv.LabelKey
	}
	return out
}

func TestOpenReturnsKeysOfOpenInvites(t *testing.T) {
	runKeys(t, func(t *testing.T, k *keysTest) {
		secret := invite.NewSecret()
		k.create(t, "east", 0, &secret)
		k.create(t, "late", 20*time.Minute, newSecret())
		k.create(t, "closed", time.Hour, newSecret())
		if got := k.keys(t); len(got) > 0 {
			t.Errorf("Open returned %d keys without waiting for the API server", len(got))
		}
		synctest.Wait()
		if k.changes != 2 {
			t.Errorf("the reconciler was woken %d times for 2 keys", k.changes)
		}
		got := k.keys(t)
		if got["east"] != secret.LabelKey() {
			t.Error("gateways cannot open the labels that the token's holder seals")
		}
		if _, ok := got["late"]; !ok || len(got) != 2 {
			t.Errorf("%d keys: a late cluster must learn that it is late, for a while", len(got))
		}
		reads := k.api.Reads()
		k.keys(t)
		synctest.Wait()
		if n := k.api.Reads() - reads; n > 0 {
			t.Errorf("known keys were read %d times again", n)
		}
		if open, recheck := k.Open(nil, time.Now()); len(open) > 0 || recheck != 0 || len(k.known) > 0 {
			t.Errorf("keys of deleted invites are kept: %v, recheck after %v", open, recheck)
		}
	})
}

func TestOpenRechecksWhenAnInviteEnds(t *testing.T) {
	k := NewKeys(nil, nil, discardLog)
	inv := newInvite("east", 0)
	_, recheck := k.Open([]*v1alpha1.Invite{inv}, inv.CreationTimestamp.Add(800*time.Second))
	if recheck != 100*time.Second {
		t.Errorf("recheck after %v, want the 100 s until the invite expires", recheck)
	}
}

func TestKeysWaitForSecret(t *testing.T) {
	runKeys(t, func(t *testing.T, k *keysTest) {
		k.create(t, "east", 0, nil)
		if got := k.keys(t); len(got) > 0 {
			t.Fatalf("keys %v", got)
		}
		bubble.Pass(2 * minSecretRetry)
		early := k.api.Reads()
		if early < 2 {
			t.Errorf("a Secret that appears a moment later is read after %d reads only", early)
		}
		bubble.Pass(8 * time.Minute)
		if n := k.api.Reads() - early; n > 60 {
			t.Errorf("a missing Secret was read %d times in 8 minutes", n)
		}
		k.createSecret(t, k.list(t)[0], invite.NewSecret())
		bubble.Pass(2 * time.Minute)
		if got := k.keys(t); len(got) != 1 || k.changes != 1 {
			t.Errorf("%d keys after %d changes once the Secret exists", len(got), k.changes)
		}
	})
}

func TestOpenDoesNotWaitForStuckAPIServer(t *testing.T) {
	runKeys(t, func(t *testing.T, k *keysTest) {
		k.create(t, "east", 0, newSecret())
		stuck := make(chan struct{})
		k.api.Refuse(func(verb string, _ client.Object) error {
			if verb != "get" {
				return nil
			}
			<-stuck
			return errors.New("connection reset")
		})
		start := time.Now()
		k.keys(t)
		synctest.Wait()
		k.keys(t)
		if waited := time.Since(start); waited > 0 {
			t.Errorf("Open blocked for %v", waited)
		}
		close(stuck)
	})
}

func TestMaintain(t *testing.T) {
	a := kubetest.New(nil)
	old := newJoin("old", "west", 3*time.Hour)
	for _, o := range []client.Object{
		newInvite("new", 0),
		newInvite("late", 20*time.Minute),
		newInvite("old", 3*time.Hour),
		old,
	} {
		if err := a.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	maintain := func() map[string]string {
		k := &keysTest{api: a}
		var joins v1alpha1.JoinList
		if err := a.List(t.Context(), &joins); err != nil {
			t.Fatal(err)
		}
		var list []*v1alpha1.Join
		for i := range joins.Items {
			list = append(list, &joins.Items[i])
		}
		a.Writes()
		if err := Maintain(t.Context(), a, k.list(t), list, time.Now()); err != nil {
			t.Fatal(err)
		}
		states := make(map[string]string)
		for _, inv := range k.list(t) {
			states[inv.Name] = inv.Status.State
		}
		return states
	}
	want := map[string]string{"new": v1alpha1.InviteOpen, "late": v1alpha1.InviteExpired}
	if diff := cmp.Diff(want, maintain()); diff != "" {
		t.Errorf("states (-want +got)\n%s", diff)
	}
	if err := a.Get(t.Context(), client.ObjectKeyFromObject(old), old); !apierrors.IsNotFound(err) {
		t.Errorf("an old Join must be deleted: %v", err)
	}
	if maintain(); len(a.Writes()) > 0 {
		t.Error("nothing changed, but it writes")
	}
}
