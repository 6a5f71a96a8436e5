package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/kube"
)

// takeBackTimeout is how long the command tries to take back what it has half made.
const takeBackTimeout = 10 * time.Second

// makeWithSecret makes o and the Secret beside it, or neither: half of it would stand in the way of the next try.
func makeWithSecret(ctx context.Context, cl cluster, o client.Object, kind, name, key string, value []byte) error {
	if err := cl.Create(ctx, o); err != nil {
		return writeError(kind+" "+o.GetName(), err)
	}
	err := makeSecret(ctx, cl, secretOf(o, kind, name, key, value))
	if err == nil {
		return nil
	}
	err = writeError("Secret "+name, err)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), takeBackTimeout) // after Ctrl-C, too
	defer cancel()
	uid := o.GetUID()
	if left := cl.Delete(ctx, o, client.Preconditions{UID: &uid}); client.IgnoreNotFound(left) != nil {
		return fmt.Errorf("%w; and %s %s could not be taken back: %w", err, kind, o.GetName(), left)
	}
	return err
}

// makeSecret makes s, in the place of that of an earlier object of its owner's name, which Kubernetes has not collected yet.
func makeSecret(ctx context.Context, cl cluster, s *corev1.Secret) error {
	err := cl.Create(ctx, s)
	if !apierrors.IsAlreadyExists(err) {
		return err
	}
	var old corev1.Secret
	err = cl.Get(ctx, client.ObjectKeyFromObject(s), &old)
	if apierrors.IsNotFound(err) {
		return cl.Create(ctx, s) // it has gone meanwhile
	}
	if err != nil {
		return err
	}
	owner := s.OwnerReferences[0]
	earlier := func(r metav1.OwnerReference) bool {
		return r.APIVersion == owner.APIVersion && r.Kind == owner.Kind && r.Name == owner.Name && r.UID != owner.UID
	}
	if !slices.ContainsFunc(old.OwnerReferences, earlier) {
		return errors.New("one that is not Causeway's has its name: delete it")
	}
	if err := cl.Delete(ctx, &old, client.Preconditions{UID: &old.UID}); client.IgnoreNotFound(err) != nil {
		return err
	}
	return cl.Create(ctx, s)
}

// secretOf is a Secret that goes with its owner.
func secretOf(owner client.Object, kind, name, key string, value []byte) *corev1.Secret {
	yes := true
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: owner.GetNamespace(), Name: name, Labels: map[string]string{v1alpha1.ManagedByLabel: v1alpha1.ManagedBy},
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: v1alpha1.GroupVersion.String(), Kind: kind, Name: owner.GetName(), UID: owner.GetUID(),
			}},
		},
		Immutable: &yes, Type: corev1.SecretTypeOpaque, Data: map[string][]byte{key: value},
	}
}

func writeError(what string, err error) error {
	err = fmt.Errorf("make %s: %w", what, err)
	switch {
	case apierrors.IsForbidden(err):
		return withHint(err, "this needs the rights to make Invites, Joins and Secrets in Causeway's namespace")
	case noKinds(err):
		return withHint(err, "`causeway install` brings the kind")
	}
	return err
}

// deleteWithSecret deletes o, and the Secret beside it if it is o's own: whoever needs the name again does not wait for
// Kubernetes to collect it.
func deleteWithSecret(ctx context.Context, cl cluster, o client.Object, secret string) error {
	uid := o.GetUID()
	if err := cl.Delete(ctx, o, client.Preconditions{UID: &uid}); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete %s: %w", o.GetName(), err)
	}
	var s corev1.Secret
	err := cl.Get(ctx, client.ObjectKey{Namespace: o.GetNamespace(), Name: secret}, &s)
	if err == nil && kube.OwnedBy(&s, uid) {
		err = cl.Delete(ctx, &s, client.Preconditions{UID: &s.UID})
	}
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete Secret %s: %w", secret, err)
	}
	return nil
}
