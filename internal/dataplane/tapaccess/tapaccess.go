// Package tapaccess decides whether the reader of a tap may see a namespace.
//
//	causeway tap ──create Tap named by the hash of a secret──▶ API server (checks the reader's rights)
//	     └─────────secret─────────▶ agent ──get that Tap─────────▶ API server
//
// The reader proves its rights to the API server, by creating an object in the namespace.
// The agent only asks whether the object exists, so it needs neither the reader's
// credentials nor the right to create access reviews.
//
// What always holds:
//   - Without a Tap whose name is the hash of the reader's secret, nothing is shown.
//   - A Tap is valid for MaxAge at most, and until it is deleted.
//   - An error of the API server permits nothing.
package tapaccess

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
)

const (
	// MaxAge is how long a Tap permits to read, from its creation.
	MaxAge = time.Hour
	// maxSkew is how far the API server's clock may be ahead of this node's.
	maxSkew = 5 * time.Minute
	// getTimeout bounds one question to the API server.
	getTimeout = 5 * time.Second
)

// ErrDenied is the error of Check if the API server answers that no valid Tap exists.
var ErrDenied = errors.New("no valid Tap permits this")

// resource is the kind whose existence permits to read.
var resource = schema.GroupVersionResource{Group: "causeway.dev", Version: "v1alpha1", Resource: "taps"}

// secretSize is the size of a secret, in bytes.
const secretSize = 32

// NewSecret returns a new secret of a reader.
func NewSecret() string {
	var b [secretSize]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// Name returns the name of the Tap for a secret. The secret cannot be found from it.
func Name(secret string) string {
	sum := sha256.Sum256([]byte("causeway tap\x00" + secret))
	return "tap-" + hex.EncodeToString(sum[:])
}

// Getter gets the metadata of a Tap.
type Getter func(ctx context.Context, namespace, name string) (*metav1.PartialObjectMetadata, error)

// Access answers who may read. Make it with New or InCluster.
type Access struct {
	get Getter
	// own is Causeway's own namespace. A Tap in it permits to read about all namespaces.
	own string
	now func() time.Time
}

// New returns an Access that asks get. own is Causeway's own namespace.
func New(get Getter, own string, now func() time.Time) *Access {
	return &Access{get: get, own: own, now: now}
}

// namespaceFile is where a pod finds its namespace.
const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// InCluster returns an Access that asks the API server of the cluster that the process
// runs in.
func InCluster() (*Access, error) {
	cfg, err := rest.InClusterConfig()
	if err != nil {
		return nil, fmt.Errorf("find the cluster's API server: %w", err)
	}
	own, err := os.ReadFile(namespaceFile)
	if err != nil {
		return nil, fmt.Errorf("find the pod's namespace: %w", err)
	}
	client, err := metadata.NewForConfig(metadata.ConfigFor(cfg))
	if err != nil {
		return nil, fmt.Errorf("make a client for Taps: %w", err)
	}
	get := func(ctx context.Context, namespace, name string) (*metav1.PartialObjectMetadata, error) {
		return client.Resource(resource).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	}
	return New(get, strings.TrimSpace(string(own)), time.Now), nil
}

// Check returns nil if the holder of a secret may read about a namespace; empty: about
// all. The error wraps ErrDenied if it may not. It blocks for at most 5 s.
func (a *Access) Check(ctx context.Context, namespace, secret string) error {
	if len(secret) != hex.EncodedLen(secretSize) {
		return ErrDenied
	}
	if namespace == "" {
		namespace = a.own
	}
	ctx, cancel := context.WithTimeout(ctx, getTimeout)
	defer cancel()
	tap, err := a.get(ctx, namespace, Name(secret))
	switch {
	case apierrors.IsNotFound(err), apierrors.IsForbidden(err), apierrors.IsBadRequest(err):
		return fmt.Errorf("%w: %w", ErrDenied, err)
	case err != nil:
		return fmt.Errorf("get the Tap: %w", err)
	}
	age := a.now().Sub(tap.CreationTimestamp.Time)
	if tap.DeletionTimestamp != nil || age >= MaxAge || age < -maxSkew {
		return fmt.Errorf("%w: the Tap is %v old, or is being deleted", ErrDenied, age.Round(time.Second))
	}
	return nil
}
