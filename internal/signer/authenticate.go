package signer

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/kube"
)

// Audience is what a token for a controller must be meant for.
const Audience = "causeway"

// What a token says besides its account, in the answer to a TokenReview
// (KEP-4193; Kubernetes 1.32).
const (
	extraPodName  = "authentication.kubernetes.io/pod-name"
	extraPodUID   = "authentication.kubernetes.io/pod-uid"
	extraNodeName = "authentication.kubernetes.io/node-name"
	extraNodeUID  = "authentication.kubernetes.io/node-uid"
)

const (
	maxToken      = 16 << 10
	reviewTimeout = 5 * time.Second
	// reviewsAtOnce bounds what strangers can make the API server do through us.
	reviewsAtOnce = 32
)

// Role is which of Causeway's processes a caller is. The zero Role is none.
type Role string

// The roles, each with a ServiceAccount of its own.
const (
	RoleController Role = "controller"
	RoleGateway    Role = "gateway"
	RoleAgent      Role = "agent"
)

// roles are the ServiceAccounts that may call at all.
var roles = map[string]Role{
	clusterinfo.ControllerName: RoleController,
	clusterinfo.GatewayName:    RoleGateway,
	clusterinfo.AgentName:      RoleAgent,
}

// Caller is the holder of a token. Every field of one that Authenticate returns
// is set.
type Caller struct {
	// ServiceAccount is the account's name, in Causeway's namespace.
	ServiceAccount string
	Role           Role
	// PodUID and PodName are the pod that the token is bound to.
	PodUID, PodName string
	// NodeName and NodeUID are the node that the pod was on when it got its token,
	// and still is.
	NodeName, NodeUID string
}

// TokenReviewer asks the API server whose a token is. client-go's
// TokenReviewInterface is one.
type TokenReviewer interface {
	// Create returns the review with its status filled in. It honours ctx.
	Create(ctx context.Context, review *authenticationv1.TokenReview, opts metav1.CreateOptions) (*authenticationv1.TokenReview, error)
}

// Authenticator knows the holders of tokens. It is safe for concurrent use. Make
// it with NewAuthenticator.
type Authenticator struct {
	namespace string
	reviews   TokenReviewer
	pods      client.Reader
	cache     *cache
	slots     chan struct{} // one is held during a review
	refused   *prometheus.CounterVec
}

// NewAuthenticator returns an Authenticator of the processes in namespace,
// Causeway's own. pods reads this replica's view of all pods, with an index named
// PodNodeField. Metrics go to registerer unless it is nil.
func NewAuthenticator(namespace string, reviews TokenReviewer, pods client.Reader, registerer prometheus.Registerer) *Authenticator {
	a := &Authenticator{
		namespace: namespace, reviews: reviews, pods: pods,
		cache: newCache(), slots: make(chan struct{}, reviewsAtOnce),
		refused: refusals("causeway_authentication_refused_total", "Tokens that were refused, by reason.", authenticationReasons()),
	}
	if registerer != nil {
		registerer.MustRegister(a.refused)
	}
	return a
}

// Authenticate returns the holder of a token. A token is reviewed at most once a
// minute; its pod is looked at each time. It blocks for five seconds at most. Its
// errors wrap ErrUnauthenticated, ErrForbidden or, when nothing is known about
// the token, ErrUnavailable, and are gRPC statuses of the matching code.
func (a *Authenticator) Authenticate(ctx context.Context, token string) (Caller, error) {
	caller, err := a.identify(ctx, token)
	if err != nil {
		a.refused.WithLabelValues(Reason(err)).Inc()
		return Caller{}, err
	}
	return caller, nil
}

// identify is Authenticate without its metrics, which would count a request to
// sign twice.
func (a *Authenticator) identify(ctx context.Context, token string) (Caller, error) {
	if token == "" || len(token) > maxToken {
		return Caller{}, refuse(ErrUnauthenticated, ReasonToken, "a token of %d bytes is not of 1 to %d", len(token), maxToken)
	}
	key := keyOf(token)
	caller, ok := a.cache.get(key)
	if !ok {
		status, err := a.review(ctx, token)
		if err != nil {
			return Caller{}, err
		}
		if caller, err = a.callerOf(status); err != nil {
			return Caller{}, err
		}
		a.cache.put(key, caller)
	}
	if err := a.present(ctx, caller); err != nil {
		return Caller{}, err
	}
	return caller, nil
}

// review asks the API server about a token.
func (a *Authenticator) review(ctx context.Context, token string) (authenticationv1.TokenReviewStatus, error) {
	var none authenticationv1.TokenReviewStatus
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	select {
	case a.slots <- struct{}{}:
		defer func() { <-a.slots }()
	case <-ctx.Done():
		return none, refuse(ErrUnavailable, ReasonUnchecked, "too many tokens are being reviewed: %w", ctx.Err())
	}
	answer, err := a.reviews.Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{Audience}},
	}, metav1.CreateOptions{})
	if err != nil {
		return none, refuse(ErrUnavailable, ReasonUnchecked, "ask the API server about a token: %w", err)
	}
	return answer.Status, nil
}

// callerOf decides from the answer to a review alone who holds the token.
func (a *Authenticator) callerOf(status authenticationv1.TokenReviewStatus) (Caller, error) {
	if !status.Authenticated || status.Error != "" {
		return Caller{}, refuse(ErrUnauthenticated, ReasonToken, "the API server does not take the token for audience %s: %s", Audience, cmp.Or(status.Error, "it gives no reason"))
	}
	if !slices.Contains(status.Audiences, Audience) {
		return Caller{}, refuse(ErrUnauthenticated, ReasonAudience, "the token is meant for %q, not for %s", status.Audiences, Audience)
	}
	account, ok := strings.CutPrefix(status.User.Username, "system:serviceaccount:"+a.namespace+":")
	role := roles[account]
	if !ok || role == "" {
		return Caller{}, refuse(ErrForbidden, ReasonAccount, "%q is not one of Causeway's own service accounts in namespace %s", status.User.Username, a.namespace)
	}
	caller := Caller{ServiceAccount: account, Role: role}
	for _, claim := range []struct {
		key  string
		into *string
	}{
		{extraPodName, &caller.PodName}, {extraPodUID, &caller.PodUID},
		{extraNodeName, &caller.NodeName}, {extraNodeUID, &caller.NodeUID},
	} {
		values := status.User.Extra[claim.key]
		if len(values) != 1 || values[0] == "" {
			return Caller{}, refuse(ErrUnauthenticated, ReasonUnbound,
				"the token of %s names no %s: it must be a pod's own projected token, of Kubernetes 1.32 or later", account, claim.key)
		}
		*claim.into = values[0]
	}
	return caller, nil
}

// present returns nil if the caller's pod is there now, on the token's node.
func (a *Authenticator) present(ctx context.Context, caller Caller) error {
	var pod corev1.Pod
	err := a.pods.Get(ctx, client.ObjectKey{Namespace: a.namespace, Name: caller.PodName}, &pod)
	if err != nil && !apierrors.IsNotFound(err) {
		return refuse(ErrUnavailable, ReasonUnchecked, "look at pod %s: %w", caller.PodName, err)
	}
	if err != nil || string(pod.UID) != caller.PodUID {
		return refuse(ErrUnauthenticated, ReasonPod, "pod %s with UID %s, to which the token is bound, is not there as far as this replica has seen", caller.PodName, caller.PodUID)
	}
	if kube.PodFinished(&pod) {
		return refuse(ErrUnauthenticated, ReasonPod, "pod %s, to which the token is bound, is over: it has %s", caller.PodName, strings.ToLower(string(pod.Status.Phase)))
	}
	if pod.Spec.NodeName != caller.NodeName || pod.Spec.ServiceAccountName != caller.ServiceAccount {
		return refuse(ErrUnauthenticated, ReasonPod, "pod %s is %s on node %q, and its token is for %s on node %q",
			caller.PodName, pod.Spec.ServiceAccountName, pod.Spec.NodeName, caller.ServiceAccount, caller.NodeName)
	}
	return nil
}
