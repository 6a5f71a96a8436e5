package clusterid

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"maps"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/clusterinfo"
)

// isPublished reports whether peers may hold the cluster's root and link key.
func isPublished(ctx context.Context, c client.Client, namespace string) (bool, error) {
	var cm corev1.ConfigMap
	err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: clusterinfo.IdentityConfigMap}, &cm)
	if client.IgnoreNotFound(err) != nil {
		return false, fmt.Errorf("read ConfigMap %s/%s: %w", namespace, clusterinfo.IdentityConfigMap, err)
	}
	return cm.Data[clusterinfo.KeyRoot] != "" && cm.Data[clusterinfo.KeyLinkPublicKey] != "", nil
}

// Publish writes the public half to the ConfigMap if it differs. gateways are the
// addresses at which peers reach this cluster; nil keeps the published ones, because
// the caller does not know them yet. When two replicas publish at once, the loser gets
// the API server's Conflict or AlreadyExists error.
func (i *Identity) Publish(ctx context.Context, c client.Client, gateways []string) error {
	root := i.Issuers().roots.Current
	want := map[string]string{
		clusterinfo.KeyTrustDomain:   i.trustDomain,
		clusterinfo.KeyClusterName:   i.options.ClusterName,
		clusterinfo.KeyRoot:          string(bytes.TrimSpace(root.AnchorPEM())) + "\n",
		clusterinfo.KeyLinkPublicKey: base64.StdEncoding.EncodeToString(i.linkKey.Public()),
		clusterinfo.KeyGateways:      strings.Join(gateways, ","),
	}
	if i.options.CASecret != "" && len(root.Intermediates()) > 0 {
		want[clusterinfo.KeyCASecret] = i.options.CASecret
	}
	key := client.ObjectKey{Namespace: i.options.Namespace, Name: clusterinfo.IdentityConfigMap}
	var cm corev1.ConfigMap
	err := c.Get(ctx, key, &cm)
	if gateways == nil {
		want[clusterinfo.KeyGateways] = cm.Data[clusterinfo.KeyGateways]
	}
	switch {
	case apierrors.IsNotFound(err):
		cm = corev1.ConfigMap{ObjectMeta: managedMeta(key), Data: want}
		err = c.Create(ctx, &cm)
	case err == nil && !maps.Equal(cm.Data, want):
		cm.Data = want
		err = c.Update(ctx, &cm)
	}
	if err != nil {
		return fmt.Errorf("publish the identity in ConfigMap %v: %w", key, err)
	}
	return nil
}
