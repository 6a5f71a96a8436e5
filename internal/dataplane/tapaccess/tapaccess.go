// Package tapaccess decides whether the reader of a tap may see a namespace.
//
//	causeway tap ──create a Tap named by the hash of a key──▶ API server (checks the reader's rights)
//	     └──token, signed by the key──▶ agent ──get that Tap──▶ API server
//
// The reader proves its rights to the API server, by creating an object in the namespace.
// The agent only asks whether the object exists, so it needs neither the reader's
// credentials nor the right to create access reviews.
//
// What always holds:
//   - Without a Tap whose name is the hash of the reader's key, nothing is shown.
//   - A token is for one agent. An agent cannot use what it received to read from others.
//   - A Tap is valid for MaxAge at most. Its deletion has effect at the next Check.
//   - An answer of the API server permits to read for MaxUnconfirmed at most. An error
//     permits nothing, and takes nothing that an answer has permitted.
package tapaccess

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
)

const (
	// MaxAge is how long a Tap permits to read, from its creation.
	MaxAge = time.Hour
	// MaxUnconfirmed is how long an answer of the API server permits to read.
	MaxUnconfirmed = 2 * time.Minute
	// maxSkew is how far the API server's clock may be ahead of this node's.
	maxSkew = 5 * time.Minute
	// getTimeout bounds one question to the API server.
	getTimeout = 5 * time.Second
)

// ErrDenied is the error of Verify for a token that proves nothing, and of Check if the
// API server answers that no valid Tap exists.
var ErrDenied = errors.New("no valid Tap permits this")

// resource is the kind whose existence permits to read.
var resource = schema.GroupVersionResource{Group: "causeway.dev", Version: "v1alpha1", Resource: "taps"}

// Key is the key of one reader, for one Tap. It never leaves the reader's machine.
type Key struct{ private ed25519.PrivateKey }

// NewKey returns a new Key.
func NewKey() (Key, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return Key{}, fmt.Errorf("make a key: %w", err)
	}
	return Key{private}, nil
}

// Name returns the name of the Tap for a Key.
func (k Key) Name() string { return nameOf(k.private.Public().(ed25519.PublicKey)) }

// Token returns what proves to the agent in a pod that its sender has the Key. No other
// agent accepts it.
func (k Key) Token(pod string) string {
	public := k.private.Public().(ed25519.PublicKey)
	return base64.RawURLEncoding.EncodeToString(append(slices.Clone(public), ed25519.Sign(k.private, signed(pod))...))
}

func nameOf(public ed25519.PublicKey) string {
	sum := sha256.Sum256(public)
	return "tap-" + hex.EncodeToString(sum[:])
}

// signed is what a Token for a pod signs.
func signed(pod string) []byte { return []byte("causeway tap of agent " + pod) }

// tokenSize is the size of a token, in bytes.
const tokenSize = ed25519.PublicKeySize + ed25519.SignatureSize

// parseToken returns the name of the Tap for the key that made a token for a pod.
func parseToken(token, pod string) (name string, ok bool) {
	if len(token) != base64.RawURLEncoding.EncodedLen(tokenSize) {
		return "", false
	}
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(b) != tokenSize {
		return "", false
	}
	public := ed25519.PublicKey(b[:ed25519.PublicKeySize])
	if !ed25519.Verify(public, signed(pod), b[ed25519.PublicKeySize:]) {
		return "", false
	}
	return nameOf(public), true
}

// Getter gets the metadata of a Tap.
type Getter func(ctx context.Context, namespace, name string) (*metav1.PartialObjectMetadata, error)

// Access answers who may read. Make it with New or InCluster.
type Access struct {
	get Getter
	// own is Causeway's own namespace. A Tap in it permits to read about all namespaces.
	own string
	pod string // of this agent
	now func() time.Time
}

// New returns an Access that asks get, for the agent in a pod of Causeway's own
// namespace.
func New(get Getter, own, pod string, now func() time.Time) *Access {
	return &Access{get: get, own: own, pod: pod, now: now}
}

// namespaceFile is where a pod finds its namespace.
const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// InCluster returns an Access that asks the API server of the cluster that the process
// runs in. pod is the name of the process's pod.
func InCluster(pod string) (*Access, error) {
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
	return New(get, strings.TrimSpace(string(own)), pod, time.Now), nil
}

// Claim says that the sender of a verified token has the key of a Tap. The Tap need not
// exist.
type Claim struct {
	Namespace string // of the Tap
	Tap       string // its name
	Own       bool   // whether the namespace is Causeway's own
}

// Verify returns what a token claims about a namespace; empty: about all. It does not ask
// the API server. The error wraps ErrDenied.
func (a *Access) Verify(namespace, token string) (Claim, error) {
	name, ok := parseToken(token, a.pod)
	if !ok {
		return Claim{}, fmt.Errorf("%w: the token is not for this agent", ErrDenied)
	}
	if namespace == "" {
		namespace = a.own
	}
	// The client joins the namespace into a path, so a/../b would become b.
	if len(validation.IsDNS1123Label(namespace)) > 0 {
		return Claim{}, fmt.Errorf("%w: %.100q is not the name of a namespace", ErrDenied, namespace)
	}
	return Claim{Namespace: namespace, Tap: name, Own: namespace == a.own}, nil
}

// Check returns until when the sender of a token may read. After that it may read only if
// another Check permits it. The error wraps ErrDenied if the sender may not read. Check
// blocks for at most 5 s.
func (a *Access) Check(ctx context.Context, c Claim) (until time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, getTimeout)
	defer cancel()
	tap, err := a.get(ctx, c.Namespace, c.Tap)
	switch {
	case apierrors.IsNotFound(err), apierrors.IsForbidden(err), apierrors.IsBadRequest(err):
		return time.Time{}, fmt.Errorf("%w: %w", ErrDenied, err)
	case err != nil:
		return time.Time{}, fmt.Errorf("get the Tap: %w", err)
	}
	now := a.now()
	age := now.Sub(tap.CreationTimestamp.Time)
	if tap.DeletionTimestamp != nil || age >= MaxAge || age < -maxSkew {
		age = age.Round(time.Second)
		return time.Time{}, fmt.Errorf("%w: the Tap is %v old, or is being deleted", ErrDenied, age)
	}
	return now.Add(min(MaxAge-age, MaxUnconfirmed)), nil
}
