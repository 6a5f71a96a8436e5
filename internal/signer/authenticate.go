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

// Audience is the audience that a token for the controller must have.
const Audience = "causeway"

// Keys of the extra user information in the status of a TokenReview (KEP-4193, Kubernetes
// 1.32).
const (
	extraPodName  = "authentication.kubernetes.io/pod-name"
	extraPodUID   = "authentication.kubernetes.io/pod-uid"
	extraNodeName = "authentication.kubernetes.io/node-name"
	extraNodeUID  = "authentication.kubernetes.io/node-uid"
)

const (
	maxToken      = 16 << 10
	reviewTimeout = 5 * time.Second
	// maxConcurrentReviews bounds the load that strangers can cause on the API server.
	maxConcurrentReviews = 32
)

// Role identifies the kind of process that a caller is. The zero value is not a role.
type Role string

// The roles. Each has its own ServiceAccount.
const (
	RoleController Role = "controller"
	RoleGateway    Role = "gateway"
	RoleAgent      Role = "agent"
)

// roles maps the ServiceAccounts that may call the controller to their roles.
var roles = map[string]Role{
	clusterinfo.ControllerName: RoleController,
	clusterinfo.GatewayName:    RoleGateway,
	clusterinfo.AgentName:      RoleAgent,
}

// Caller is the holder of a token. Authenticate sets all fields.
type Caller struct {
	// ServiceAccount is the name of the account in the namespace of Causeway.
	ServiceAccount string
	Role           Role
	// PodUID and PodName identify the pod that the token is bound to.
	PodUID, PodName string
	// NodeName and NodeUID identify the node of that pod.
	NodeName, NodeUID string
}

// TokenReviewer creates TokenReviews. TokenReviewInterface of client-go implements it.
type TokenReviewer interface {
	// Create returns the review with its status. It returns when ctx is done.
	Create(ctx context.Context, review *authenticationv1.TokenReview,
		opts metav1.CreateOptions) (*authenticationv1.TokenReview, error)
}

// Authenticator authenticates the holders of tokens. It is safe for concurrent use.
// Create it with NewAuthenticator.
type Authenticator struct {
	namespace string
	reviews   TokenReviewer
	pods      client.Reader
	cache     *cache
	slots     chan struct{} // a review in progress holds one
	refused   *prometheus.CounterVec
}

// NewAuthenticator returns an Authenticator of the processes in namespace, the namespace
// of Causeway. pods reads all pods from a cache with the index PodNodeField. registerer
// registers the metrics, unless it is nil.
func NewAuthenticator(namespace string, reviews TokenReviewer, pods client.Reader,
	registerer prometheus.Registerer) *Authenticator {
	a := &Authenticator{
		namespace: namespace,
		reviews:   reviews,
		pods:      pods,
		cache:     newCache(),
		slots:     make(chan struct{}, maxConcurrentReviews),
		refused: refusals("causeway_authentication_refused_total",
			"Tokens that were refused, by reason.", authenticationReasons()),
	}
	if registerer != nil {
		registerer.MustRegister(a.refused)
	}
	return a
}

// Authenticate returns the holder of a token. It reviews a token at most once a minute,
// and checks the pod of the token each time. It blocks for at most five seconds. Errors
// wrap ErrUnauthenticated, ErrForbidden or, if the review failed, ErrUnavailable. They
// have the matching gRPC status.
func (a *Authenticator) Authenticate(ctx context.Context, token string) (Caller, error) {
	caller, err := a.identify(ctx, token)
	if err != nil {
		a.refused.WithLabelValues(Reason(err)).Inc()
		return Caller{}, err
	}
	return caller, nil
}

// identify is Authenticate without metrics. Sign uses it, because Sign counts its own
// refusals.
func (a *Authenticator) identify(ctx context.Context, token string) (Caller, error) {
	if token == "" || len(token) > maxToken {
		return Caller{}, refuse(ErrUnauthenticated, ReasonToken, "token has %d bytes, want 1 to %d",
			len(token), maxToken)
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
	if err := a.checkPod(ctx, caller); err != nil {
		return Caller{}, err
	}
	return caller, nil
}

// review returns the status of a TokenReview by the API server.
func (a *Authenticator) review(ctx context.Context,
	token string) (authenticationv1.TokenReviewStatus, error) {
	var none authenticationv1.TokenReviewStatus
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	select {
	case a.slots <- struct{}{}:
		defer func() { <-a.slots }()
	case <-ctx.Done():
		return none, refuse(ErrUnavailable, ReasonUnchecked, "wait for other token reviews: %w", ctx.Err())
	}
	answer, err := a.reviews.Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{Audience}},
	}, metav1.CreateOptions{})
	if err != nil {
		return none, refuse(ErrUnavailable, ReasonUnchecked, "create token review: %w", err)
	}
	return answer.Status, nil
}

// callerOf returns the caller that the status of a TokenReview describes.
func (a *Authenticator) callerOf(status authenticationv1.TokenReviewStatus) (Caller, error) {
	if !status.Authenticated || status.Error != "" {
		return Caller{}, refuse(ErrUnauthenticated, ReasonToken,
			"the API server rejected the token for audience %s: %s", Audience,
			cmp.Or(status.Error, "no reason given"))
	}
	if !slices.Contains(status.Audiences, Audience) {
		return Caller{}, refuse(ErrUnauthenticated, ReasonAudience,
			"the token is for the audiences %q, not for %s", status.Audiences, Audience)
	}
	account, ok := strings.CutPrefix(status.User.Username, "system:serviceaccount:"+a.namespace+":")
	role := roles[account]
	if !ok || role == "" {
		return Caller{}, refuse(ErrForbidden, ReasonAccount,
			"%q is not a service account of Causeway in namespace %s", status.User.Username, a.namespace)
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
				"the token of %s has no %s: "+
					"it must be a projected token of a pod, on Kubernetes 1.32 or later", account, claim.key)
		}
		*claim.into = values[0]
	}
	return caller, nil
}

// checkPod returns nil if the caller's pod exists and runs on the node of the token.
func (a *Authenticator) checkPod(ctx context.Context, caller Caller) error {
	var pod corev1.Pod
	err := a.pods.Get(ctx, client.ObjectKey{Namespace: a.namespace, Name: caller.PodName}, &pod)
	if err != nil && !apierrors.IsNotFound(err) {
		return refuse(ErrUnavailable, ReasonUnchecked, "get pod %s: %w", caller.PodName, err)
	}
	if err != nil || string(pod.UID) != caller.PodUID {
		return refuse(ErrUnauthenticated, ReasonPod,
			"pod %s with UID %s, to which the token is bound, is not in the cache of this replica",
			caller.PodName, caller.PodUID)
	}
	if kube.PodFinished(&pod) {
		return refuse(ErrUnauthenticated, ReasonPod, "pod %s, to which the token is bound, has %s",
			caller.PodName, strings.ToLower(string(pod.Status.Phase)))
	}
	if pod.Spec.NodeName != caller.NodeName || pod.Spec.ServiceAccountName != caller.ServiceAccount {
		return refuse(ErrUnauthenticated, ReasonPod,
			"pod %s has service account %s on node %q, but its token has %s on node %q",
			caller.PodName, pod.Spec.ServiceAccountName, pod.Spec.NodeName, caller.ServiceAccount,
			caller.NodeName)
	}
	return nil
}
