package tapaccess

import (
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
	secret := NewSecret()
	deleted := metav1.NewTime(now)
	notFound := apierrors.NewNotFound(resource.GroupResource(), Name(secret))
	for _, tc := range []struct {
		name      string
		namespace string
		secret    string
		created   time.Duration // before now
		deleted   *metav1.Time
		err       error // of the API server
		denied    bool
		fails     bool
	}{
		{name: "new", namespace: "shop"},
		{name: "nearly expired", namespace: "shop", created: MaxAge - time.Second},
		{name: "expired", namespace: "shop", created: MaxAge, denied: true},
		{name: "clock ahead", namespace: "shop", created: -maxSkew},
		{name: "far in the future", namespace: "shop", created: -maxSkew - time.Second, denied: true},
		{name: "being deleted", namespace: "shop", deleted: &deleted, denied: true},
		{name: "all namespaces", namespace: ""},
		{name: "another namespace", namespace: "bank", denied: true},
		{name: "another secret", namespace: "shop", secret: NewSecret(), denied: true},
		{name: "no secret", namespace: "shop", secret: "x", denied: true},
		{name: "long secret", namespace: "shop", secret: strings.Repeat("x", 1<<20), denied: true},
		{name: "no such Tap", namespace: "shop", err: notFound, denied: true},
		{name: "API server is down", namespace: "shop", err: errors.New("timeout"), fails: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			get := func(_ context.Context, namespace, name string) (*metav1.PartialObjectMetadata, error) {
				if tc.err != nil {
					return nil, tc.err
				}
				if name != Name(secret) || namespace != "shop" && namespace != "causeway-system" {
					return nil, notFound
				}
				return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
					CreationTimestamp: metav1.NewTime(now.Add(-tc.created)), DeletionTimestamp: tc.deleted}}, nil
			}
			a := New(get, "causeway-system", func() time.Time { return now })
			if tc.secret == "" {
				tc.secret = secret
			}
			err := a.Check(t.Context(), tc.namespace, tc.secret)
			if errors.Is(err, ErrDenied) != tc.denied || (err != nil) != (tc.denied || tc.fails) {
				t.Errorf("error %v, want denied: %v, another error: %v", err, tc.denied, tc.fails)
			}
		})
	}
}

// The name of a Tap is public in the cluster, so it must not contain the secret.
func TestNameHidesTheSecret(t *testing.T) {
	a, b := NewSecret(), NewSecret()
	if a == b || Name(a) == Name(b) || Name(a) != Name(a) || strings.Contains(Name(a), a[:8]) || len(Name(a)) > 253 {
		t.Errorf("secrets %q and %q have names %q and %q", a, b, Name(a), Name(b))
	}
}
