// Package signer authenticates the tokens of Causeway's processes, and signs workload
// certificates for agents. An agent receives the certificates of the pods on its node.
//
//	token ─▶ TokenReview (cached ≤ 60 s) ─▶ account, pod, node ─▶ pod exists? ─▶ Caller
//	Caller, namespace/account ─▶ rate limit ─▶ live pod on that node? ─▶ CSR ─▶ Issuer
//
// Invariants:
//   - A token is valid only with the audience causeway, for one of the ServiceAccounts of
//     Causeway. It must be bound to a pod that exists, has not finished, and runs on the
//     node that the token names (Kubernetes 1.32 or later).
//   - Only an agent receives certificates, and only for the identity of probes
//     (identity.ProbeName) and the ServiceAccounts of live pods on its node. Finished
//     pods, host-network pods and mirror pods do not count. The ServiceAccounts in the
//     namespace of Causeway are excluded.
//   - The signer reads pods from the cache of this replica. It reads only the public key
//     of a certificate request.
//   - Every replica can sign. The only state is the cache of reviews and the rate limits,
//     in memory.
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

// PodNodeField is the name of the index that the reader of pods must have. PodNode is its
// indexer.
const PodNodeField = "spec.nodeName"

// PodNode returns the node of a pod. It is the indexer of PodNodeField.
func PodNode(obj client.Object) []string {
	pod, ok := obj.(*corev1.Pod)
	if !ok || pod.Spec.NodeName == "" {
		return nil
	}
	return []string{pod.Spec.NodeName}
}

// Issuer signs certificates. *identity.Issuer implements it.
type Issuer interface {
	// TrustDomain returns the trust domain of the names that it signs.
	TrustDomain() string
	// SignWorkload returns a certificate chain in DER, leaf first, that is valid from
	// now.
	SignWorkload(pub *ecdsa.PublicKey, name identity.Name, now time.Time) ([][]byte, error)
}

// Options are the options of a Signer. The zero value is valid.
type Options struct {
	// PerSecond is the rate of requests that a node may sustain. 0 means 5.
	PerSecond float64
	// Burst is the number of requests that a node may make at once. 0 means 256, which is
	// more than the number of ServiceAccounts in use on most nodes.
	Burst int
	// Registerer registers the metrics. If nil, there are no metrics.
	Registerer prometheus.Registerer
}

// Signer signs workload certificates for agents. It is safe for concurrent use. Create it
// with New.
type Signer struct {
	auth    *Authenticator
	issuer  Issuer
	rates   *rates
	signed  prometheus.Counter
	refused *prometheus.CounterVec
}

// New returns a Signer for the callers that auth authenticates.
func New(auth *Authenticator, issuer Issuer, o Options) *Signer {
	s := &Signer{
		auth:   auth,
		issuer: issuer,
		rates:  newRates(cmp.Or(o.PerSecond, 5), cmp.Or(o.Burst, 256)),
		signed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "causeway_signer_signed_total",
			Help: "Workload certificates signed.",
		}),
		refused: refusals("causeway_signer_refused_total",
			"Requests for workload certificates that were refused, by reason.", Reasons()),
	}
	if o.Registerer != nil {
		o.Registerer.MustRegister(s.signed, s.refused)
	}
	return s
}

// Sign returns a certificate chain in DER, leaf first, for a ServiceAccount and the
// public key of csr, if the holder of token may have it. With an empty namespace and an
// empty ServiceAccount the chain is for the identity of probes, which every agent may
// have. Sign may block for up to five seconds. Each error wraps one of the errors of
// this package and has the matching gRPC status.
func (s *Signer) Sign(ctx context.Context, token, namespace, serviceAccount string,
	csr []byte) ([][]byte, error) {
	chain, err := s.sign(ctx, token, namespace, serviceAccount, csr)
	if err != nil {
		s.refused.WithLabelValues(Reason(err)).Inc()
		return nil, err
	}
	s.signed.Inc()
	return chain, nil
}

func (s *Signer) sign(ctx context.Context, token, namespace, serviceAccount string,
	csr []byte) ([][]byte, error) {
	caller, err := s.auth.identify(ctx, token)
	if err != nil {
		return nil, err
	}
	if caller.Role != RoleAgent {
		return nil, refuse(ErrForbidden, ReasonRole,
			"service account %s may not request certificates: only agents may", caller.ServiceAccount)
	}
	if !s.rates.allow(caller.NodeName) {
		return nil, refuse(ErrRateLimited, ReasonRate,
			"node %s requests certificates too often: try again later", caller.NodeName)
	}
	name, err := s.name(namespace, serviceAccount)
	if err != nil {
		return nil, err
	}
	if !name.IsProbe() { // which is the name of the caller itself
		if err := s.runsOn(ctx, caller.NodeName, name); err != nil {
			return nil, err
		}
	}
	pub, err := identity.ParseCSR(csr)
	if err != nil {
		return nil, refuse(ErrInvalid, ReasonCSR, "parse certificate request for %s: %w", name, err)
	}
	chain, err := s.issuer.SignWorkload(pub, name, time.Now())
	if err != nil {
		return nil, refuse(ErrUnavailable, ReasonIssuer, "sign certificate: %w", err)
	}
	return chain, nil
}

// name returns the name that a request asks for. Empty fields ask for the name of probes.
func (s *Signer) name(namespace, serviceAccount string) (identity.Name, error) {
	if namespace == "" && serviceAccount == "" {
		name, err := identity.ProbeName(s.issuer.TrustDomain())
		if err != nil {
			return identity.Name{}, refuse(ErrInvalid, ReasonName, "%w", err)
		}
		return name, nil
	}
	name, err := identity.NewName(s.issuer.TrustDomain(), namespace, serviceAccount)
	if err != nil {
		return identity.Name{}, refuse(ErrInvalid, ReasonName, "%w", err)
	}
	if namespace == s.auth.namespace {
		return identity.Name{}, refuse(ErrForbidden, ReasonOwnNamespace,
			"%s is in the namespace of Causeway, for which agents receive no certificates", name)
	}
	return name, nil
}

// runsOn returns nil if a live pod with this name runs on node.
func (s *Signer) runsOn(ctx context.Context, node string, name identity.Name) error {
	var pods corev1.PodList
	err := s.auth.pods.List(ctx, &pods, client.InNamespace(name.Namespace()),
		client.MatchingFields{PodNodeField: node}, client.UnsafeDisableDeepCopy)
	if err != nil {
		return refuse(ErrUnavailable, ReasonUnchecked, "list pods on node %s in namespace %s: %w", node,
			name.Namespace(), err)
	}
	for i := range pods.Items {
		if hasName(&pods.Items[i], node, name) {
			return nil
		}
	}
	return refuse(ErrForbidden, ReasonNoPod,
		"no live pod of service account %s/%s on node %s in the cache of this replica",
		name.Namespace(), name.ServiceAccount(), node)
}

// hasName reports whether pod runs on node and has name. The pod may belong to a cache,
// so hasName does not modify it.
func hasName(pod *corev1.Pod, node string, name identity.Name) bool {
	_, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]
	return pod.Spec.NodeName == node &&
		pod.Namespace == name.Namespace() && pod.Spec.ServiceAccountName == name.ServiceAccount() &&
		!kube.PodFinished(pod) && !pod.Spec.HostNetwork && !mirror
}
