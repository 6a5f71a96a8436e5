package tapaccess

import (
	"cmp"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestCheck(t *testing.T) {
	now := time.Date(2026, 11, 30, 8, 0, 0, 0, time.UTC)
	key := newKey(t)
	const pod = "causeway-agent-1"
	deleted := metav1.NewTime(now)
	noSignature := strings.Repeat("A", 84)
	notFound := apierrors.NewNotFound(resource.GroupResource(), key.Name())
	for _, tc := range []struct {
		name      string
		namespace string
		token     string
		created   time.Duration // before now
		deleted   *metav1.Time
		err       error // of the API server
		denied    bool
		fails     bool
		permits   time.Duration // 0: MaxUnconfirmed
	}{
		{name: "new", namespace: "shop"},
		{name: "nearly expired", namespace: "shop", created: MaxAge - time.Second, permits: time.Second},
		{name: "expired", namespace: "shop", created: MaxAge, denied: true},
		{name: "clock ahead", namespace: "shop", created: -maxSkew},
		{name: "far in the future", namespace: "shop", created: -maxSkew - time.Second, denied: true},
		{name: "being deleted", namespace: "shop", deleted: &deleted, denied: true},
		{name: "all namespaces", namespace: ""},
		{name: "another namespace", namespace: "bank", denied: true},
		{name: "another key", namespace: "shop", token: newKey(t).Token(pod), denied: true},
		{name: "another agent", namespace: "shop", token: key.Token("causeway-agent-2"), denied: true},
		{name: "no token", namespace: "shop", token: "x", denied: true},
		{name: "long token", namespace: "shop", token: strings.Repeat("x", 1<<20), denied: true},
		{name: "no signature", namespace: "shop", token: key.Token(pod)[:44] + noSignature, denied: true},
		{name: "no such Tap", namespace: "shop", err: notFound, denied: true},
		{name: "API server is down", namespace: "shop", err: errors.New("timeout"), fails: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			get := func(_ context.Context, namespace, name string) (*metav1.PartialObjectMetadata, error) {
				if tc.err != nil {
					return nil, tc.err
				}
				if name != key.Name() || namespace != "shop" && namespace != "causeway-system" {
					return nil, notFound
				}
				return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
					CreationTimestamp: metav1.NewTime(now.Add(-tc.created)),
					DeletionTimestamp: tc.deleted,
				}}, nil
			}
			a := New(get, "causeway-system", pod, func() time.Time { return now })
			if tc.token == "" {
				tc.token = key.Token(pod)
			}
			claim, err := a.Verify(tc.namespace, tc.token)
			var until time.Time
			if err == nil {
				until, err = a.Check(t.Context(), claim)
			}
			if errors.Is(err, ErrDenied) != tc.denied || (err != nil) != (tc.denied || tc.fails) {
				t.Errorf("error %v, want denied: %v, another error: %v", err, tc.denied, tc.fails)
			}
			if want := cmp.Or(tc.permits, MaxUnconfirmed); err == nil && until.Sub(now) != want {
				t.Errorf("permits to read for %v, want %v", until.Sub(now), want)
			}
		})
	}
}

// TestVerifyNamespace: a namespace cannot lead to another path of the API server.
func TestVerifyNamespace(t *testing.T) {
	key := newKey(t)
	a := New(nil, "causeway-system", "agent", time.Now)
	for namespace, want := range map[string]Claim{
		"":                {Namespace: "causeway-system", Own: true},
		"causeway-system": {Namespace: "causeway-system", Own: true},
		"shop-2":          {Namespace: "shop-2"},
	} {
		want.Tap = key.Name()
		if got, err := a.Verify(namespace, key.Token("agent")); err != nil || got != want {
			t.Errorf("%q: %+v, %v", namespace, got, err)
		}
	}
	for _, namespace := range []string{
		"a/../shop", "..", ".", "/", "shop/", "Shop", "shop%2f", "shop?x", "a b", "\x00",
		strings.Repeat("a", 64),
	} {
		got, err := a.Verify(namespace, key.Token("agent"))
		if !errors.Is(err, ErrDenied) || got != (Claim{}) {
			t.Errorf("%q: %+v, %v", namespace, got, err)
		}
	}
}

func newKey(t testing.TB) Key {
	t.Helper()
	k, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func FuzzParseToken(f *testing.F) {
	key := newKey(f)
	f.Add(key.Token("agent"))
	f.Add(key.Token("other"))
	f.Fuzz(func(t *testing.T, token string) {
		name, ok := parseToken(token, "agent")
		if ok != (token == key.Token("agent")) || ok && name != key.Name() {
			t.Errorf("%q: %q, %v", token, name, ok)
		}
	})
}
