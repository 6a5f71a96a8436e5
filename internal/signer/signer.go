// Package signer decides who may be signed what: it knows the holder of a token,
// and gives an agent the identities of the pods of its own node.
//
//	token ─▶ TokenReview (cached ≤ 60 s) ─▶ account, pod, node ─▶ pod still there? ─▶ Caller
//	Caller + namespace/account ─▶ rate of the node ─▶ a live pod of that node? ─▶ CSR's key ─▶ Issuer
//
// What always holds:
//   - A token counts only with audience causeway, for one of Causeway's own
//     ServiceAccounts, bound to a pod that is there, not over, and on the node that
//     the token names (Kubernetes 1.32 or later).
//   - Only an agent is signed for, and only names of live pods of its node: not
//     over, not on the host's network, no mirror pods; never a name of Causeway's
//     own namespace.
//   - The cluster is seen through this replica's own view. Of the request for a
//     certificate only the public key is read.
//   - Any replica may sign: nothing is written and nothing remembered but reviews
//     and rates.
package signer

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/kube"
)

// PodNodeField is the index that the reader of pods must have, extracted by
// PodNode.
const PodNodeField = "spec.nodeName"

// PodNode returns the node of a pod for an index named PodNodeField.
func PodNode(obj client.Object) []string {
	pod, ok := obj.(*corev1.Pod)
	if !ok || pod.Spec.NodeName == "" {
		return nil
	}
	return []string{pod.Spec.NodeName}
}

// Issuer signs what the Signer allows. *identity.Issuer is one.
type Issuer interface {
	// TrustDomain is that of every name it signs.
	TrustDomain() string
	// SignWorkload returns a chain, DER and leaf first, for a key and a name, valid
	// from now on.
	SignWorkload(pub *ecdsa.PublicKey, name identity.Name, now time.Time) ([][]byte, error)
}

// Options tune a Signer. The zero value works.
type Options struct {
	// PerSecond is how many signatures a node may ask for, in the long run; 0
	// means 5.
	PerSecond float64
	// Burst is how many it may ask for at once; 0 means 256, more than the
	// accounts of the pods that a node usually holds.
	Burst int
	// Registerer takes the metrics; nil means none.
	Registerer prometheus.Registerer
}

// Signer signs identities for agents. It is safe for concurrent use. Make it
// with New.
type Signer struct {
	auth    *Authenticator
	issuer  Issuer
	rates   *rates
	signed  prometheus.Counter
	refused *prometheus.CounterVec
}

// New returns a Signer for the callers that auth knows.
func New(auth *Authenticator, issuer Issuer, o Options) *Signer {
	s := &Signer{
		auth: auth, issuer: issuer,
		rates: newRates(cmp.Or(o.PerSecond, 5), cmp.Or(o.Burst, 256)),
		signed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "causeway_signer_signed_total", Help: "Workload certificates signed.",
		}),
		refused: refusals("causeway_signer_refused_total", "Requests for workload certificates that were refused, by reason.", Reasons()),
	}
	if o.Registerer != nil {
		o.Registerer.MustRegister(s.signed, s.refused)
	}
	return s
}

// Sign returns the chain, DER and leaf first, of a ServiceAccount's certificate
// for the public key of csr, if the holder of token may have it. Its errors wrap
// one of this package's sentinels and are gRPC statuses of the matching code.
func (s *Signer) Sign(ctx context.Context, token, namespace, serviceAccount string, csr []byte) ([][]byte, error) {
	chain, err := s.sign(ctx, token, namespace, serviceAccount, csr)
	if err != nil {
		s.refused.WithLabelValues(Reason(err)).Inc()
		return nil, err
	}
	s.signed.Inc()
	return chain, nil
}

func (s *Signer) sign(ctx context.Context, token, namespace, serviceAccount string, csr []byte) ([][]byte, error) {
	caller, err := s.auth.identify(ctx, token)
	if err != nil {
		return nil, err
	}
	if caller.Role != RoleAgent {
		return nil, refuse(ErrForbidden, ReasonRole, "service account %s is not signed for: only agents may ask for identities", caller.ServiceAccount)
	}
	if !s.rates.allow(caller.NodeName) {
		return nil, refuse(ErrRateLimited, ReasonRate, "node %s asks for identities too often: try again later", caller.NodeName)
	}
	name, err := s.name(namespace, serviceAccount)
	if err != nil {
		return nil, err
	}
	if err := s.runsOn(ctx, caller.NodeName, name); err != nil {
		return nil, err
	}
	pub, err := identity.ParseCSR(csr)
	if err != nil {
		return nil, refuse(ErrInvalid, ReasonCSR, "certificate request for %s: %w", name, err)
	}
	chain, err := s.issuer.SignWorkload(pub, name, time.Now())
	if err != nil {
		return nil, refuse(ErrUnavailable, ReasonIssuer, "the issuer does not sign: %w", err)
	}
	return chain, nil
}

func (s *Signer) name(namespace, serviceAccount string) (identity.Name, error) {
	name, err := identity.NewName(s.issuer.TrustDomain(), namespace, serviceAccount)
	if err != nil {
		return identity.Name{}, refuse(ErrInvalid, ReasonName, "%w", err)
	}
	if namespace == s.auth.namespace {
		return identity.Name{}, refuse(ErrForbidden, ReasonOwnNamespace, "%s is of Causeway's own namespace, whose names are never signed for agents", name)
	}
	return name, nil
}

// runsOn returns nil if a live pod of node has name.
func (s *Signer) runsOn(ctx context.Context, node string, name identity.Name) error {
	var pods corev1.PodList
	err := s.auth.pods.List(ctx, &pods, client.InNamespace(name.Namespace()),
		client.MatchingFields{PodNodeField: node}, client.UnsafeDisableDeepCopy)
	if err != nil {
		return refuse(ErrUnavailable, ReasonUnchecked, "list the pods of node %s in namespace %s: %w", node, name.Namespace(), err)
	}
	for i := range pods.Items {
		if bears(&pods.Items[i], node, name) {
			return nil
		}
	}
	return refuse(ErrForbidden, ReasonNoPod, "no live pod of service account %s/%s runs on node %s as far as this replica has seen",
		name.Namespace(), name.ServiceAccount(), node)
}

// bears reports whether a pod on node, as the API server has it, lends its node
// its name. It only reads pod, which may belong to a cache.
func bears(pod *corev1.Pod, node string, name identity.Name) bool {
	_, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]
	return pod.Spec.NodeName == node &&
		pod.Namespace == name.Namespace() && pod.Spec.ServiceAccountName == name.ServiceAccount() &&
		!kube.PodFinished(pod) && !pod.Spec.HostNetwork && !mirror
}
