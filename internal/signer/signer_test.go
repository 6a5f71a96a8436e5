package signer

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	causewayNamespace = "causeway-system"
	nodeA             = "node-a"
	nodeB             = "node-b"
	domain            = "west-1a2b3c4d"
)

// reviewer answers TokenReviews with a function.
type reviewer struct {
	answer func(context.Context, *authenticationv1.TokenReview) (*authenticationv1.TokenReview, error)
}

func (r reviewer) Create(ctx context.Context, review *authenticationv1.TokenReview,
	_ metav1.CreateOptions) (*authenticationv1.TokenReview, error) {
	return r.answer(ctx, review)
}

// tokens answers TokenReviews from a map of tokens, and counts them.
func tokens(reviews *int, known map[string]authenticationv1.TokenReviewStatus) reviewer {
	return reviewer{func(_ context.Context,
		review *authenticationv1.TokenReview) (*authenticationv1.TokenReview, error) {
		*reviews++
		if !slices.Equal(review.Spec.Audiences, []string{Audience}) {
			return nil, fmt.Errorf("unexpected audiences %q", review.Spec.Audiences)
		}
		review.Status = known[review.Spec.Token]
		return review, nil
	}}
}

// valid returns the status of a TokenReview for the projected token of a pod.
func valid(account, pod, node string) authenticationv1.TokenReviewStatus {
	return authenticationv1.TokenReviewStatus{
		Authenticated: true,
		Audiences:     []string{Audience},
		User: authenticationv1.UserInfo{
			Username: "system:serviceaccount:" + causewayNamespace + ":" + account,
			Extra: map[string]authenticationv1.ExtraValue{
				"authentication.kubernetes.io/pod-name":  {pod},
				"authentication.kubernetes.io/pod-uid":   {"uid-" + pod},
				"authentication.kubernetes.io/node-name": {node},
				"authentication.kubernetes.io/node-uid":  {"uid-" + node},
			},
		},
	}
}

// pod returns a running pod with the UID uid-NAME.
func pod(namespace, name, account, node string, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID("uid-" + name)},
		Spec:       corev1.PodSpec{NodeName: node, ServiceAccountName: account},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
	for _, c := range change {
		c(p)
	}
	return p
}

func phase(ph corev1.PodPhase) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Status.Phase = ph }
}

func hostNetwork(p *corev1.Pod) { p.Spec.HostNetwork = true }

// podCache returns the builder of a client with the index that the controller sets up.
func podCache(pods ...*corev1.Pod) *fake.ClientBuilder {
	b := fake.NewClientBuilder().WithIndex(&corev1.Pod{}, PodNodeField, PodNode)
	for _, p := range pods {
		b = b.WithObjects(p)
	}
	return b
}

func agentPod(node string) *corev1.Pod {
	return pod(causewayNamespace, "agent-"+node, "causeway-agent", node, hostNetwork)
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestAuthenticate(t *testing.T) {
	change := func(f func(*authenticationv1.TokenReviewStatus)) authenticationv1.TokenReviewStatus {
		s := valid("causeway-agent", "agent-node-a", nodeA)
		f(&s)
		return s
	}
	agent := agentPod(nodeA)
	cases := map[string]struct {
		why    string
		status authenticationv1.TokenReviewStatus
		pods   []*corev1.Pod
		kind   error
		reason string
	}{
		"agent": {
			why:    "an agent uses the token of its pod",
			status: valid("causeway-agent", "agent-node-a", nodeA),
			pods:   []*corev1.Pod{agent},
		},
		"agent just started": {
			why:    "the first call may come before the pod is reported as running",
			status: valid("causeway-agent", "agent-node-a", nodeA),
			pods: []*corev1.Pod{
				pod(causewayNamespace, "agent-node-a", "causeway-agent", nodeA, phase(corev1.PodPending)),
			},
		},
		"agent being deleted": {
			why:    "a terminating agent serves its open connections",
			status: valid("causeway-agent", "agent-node-a", nodeA),
			pods: []*corev1.Pod{
				pod(causewayNamespace, "agent-node-a", "causeway-agent", nodeA, func(p *corev1.Pod) {
					p.DeletionTimestamp, p.Finalizers = &metav1.Time{Time: time.Now()}, []string{
						"example.org/x",
					}
				}),
			},
		},
		"gateway": {why: "a gateway has a node stream, too", status: valid("causeway-gateway", "gw", nodeB),
			pods: []*corev1.Pod{pod(causewayNamespace, "gw", "causeway-gateway", nodeB)}},
		"not authenticated": {
			why:    "the token is expired, forged or revoked",
			pods:   []*corev1.Pod{agent},
			kind:   ErrUnauthenticated,
			reason: ReasonToken,
			status: change(func(s *authenticationv1.TokenReviewStatus) { s.Authenticated = false }),
		},
		"error": {
			why:    "a review with an error is not valid",
			pods:   []*corev1.Pod{agent},
			kind:   ErrUnauthenticated,
			reason: ReasonToken,
			status: change(func(s *authenticationv1.TokenReviewStatus) { s.Error = "broken" }),
		},
		"other audience": {
			why:    "the token is for another service",
			pods:   []*corev1.Pod{agent},
			kind:   ErrUnauthenticated,
			reason: ReasonAudience,
			status: change(func(s *authenticationv1.TokenReviewStatus) { s.Audiences = []string{"vault"} }),
		},
		"no audience": {
			why:    "a token for the API server must not be accepted by another server",
			pods:   []*corev1.Pod{agent},
			kind:   ErrUnauthenticated,
			reason: ReasonAudience,
			status: change(func(s *authenticationv1.TokenReviewStatus) { s.Audiences = nil }),
		},
		"any pod": {
			why:    "every pod has a token that is bound to its node",
			pods:   []*corev1.Pod{pod("shop", "cart", "cart", nodeA)},
			kind:   ErrForbidden,
			reason: ReasonAccount,
			status: change(func(s *authenticationv1.TokenReviewStatus) {
				s.User.Username = "system:serviceaccount:shop:cart"
			}),
		},
		"same name": {
			why:    "a tenant may create a ServiceAccount of the same name",
			pods:   []*corev1.Pod{agent},
			kind:   ErrForbidden,
			reason: ReasonAccount,
			status: change(func(s *authenticationv1.TokenReviewStatus) {
				s.User.Username = "system:serviceaccount:shop:causeway-agent"
			}),
		},
		"other account": {
			why:    "vip-guard does not call the controller",
			pods:   []*corev1.Pod{agent},
			kind:   ErrForbidden,
			reason: ReasonAccount,
			status: change(func(s *authenticationv1.TokenReviewStatus) {
				s.User.Username = "system:serviceaccount:" + causewayNamespace + ":causeway-vip-guard"
			}),
		},
		"user": {
			why:    "a user is not a process of Causeway",
			pods:   []*corev1.Pod{agent},
			kind:   ErrForbidden,
			reason: ReasonAccount,
			status: change(func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "admin" }),
		},
		"no pod claim": {
			why:    "kubectl create token creates tokens that are not bound to a pod",
			pods:   []*corev1.Pod{agent},
			kind:   ErrUnauthenticated,
			reason: ReasonUnbound,
			status: change(func(s *authenticationv1.TokenReviewStatus) {
				delete(s.User.Extra, "authentication.kubernetes.io/pod-uid")
			}),
		},
		"no node claim": {
			why:    "Kubernetes before 1.32 does not add the node",
			pods:   []*corev1.Pod{agent},
			kind:   ErrUnauthenticated,
			reason: ReasonUnbound,
			status: change(func(s *authenticationv1.TokenReviewStatus) {
				delete(s.User.Extra, "authentication.kubernetes.io/node-name")
			}),
		},
		"two node claims": {
			why:    "the node must be unambiguous",
			pods:   []*corev1.Pod{agent},
			kind:   ErrUnauthenticated,
			reason: ReasonUnbound,
			status: change(func(s *authenticationv1.TokenReviewStatus) {
				s.User.Extra["authentication.kubernetes.io/node-name"] = []string{nodeA, nodeB}
			}),
		},
		"pod gone": {
			why:    "a token stays valid for minutes after its pod was deleted",
			status: valid("causeway-agent", "agent-node-a", nodeA),
			kind:   ErrUnauthenticated,
			reason: ReasonPod,
		},
		"pod recreated": {
			why:    "a pod of the same name has another UID",
			status: valid("causeway-agent", "agent-node-a", nodeA),
			kind:   ErrUnauthenticated,
			reason: ReasonPod,
			pods: []*corev1.Pod{
				pod(causewayNamespace, "agent-node-a", "causeway-agent", nodeA,
					func(p *corev1.Pod) { p.UID = "other" }),
			},
		},
		"pod failed": {
			why:    "the token of an evicted agent may have leaked",
			status: valid("causeway-agent", "agent-node-a", nodeA),
			kind:   ErrUnauthenticated,
			reason: ReasonPod,
			pods: []*corev1.Pod{
				pod(causewayNamespace, "agent-node-a", "causeway-agent", nodeA, phase(corev1.PodFailed)),
			},
		},
		"pod elsewhere": {
			why:    "the token was stolen from another node",
			status: valid("causeway-agent", "agent-node-a", nodeB),
			pods:   []*corev1.Pod{agent},
			kind:   ErrUnauthenticated,
			reason: ReasonPod,
		},
		"pod unscheduled": {
			why:    "a pod that is not scheduled has no node",
			status: valid("causeway-agent", "agent-node-a", nodeA),
			kind:   ErrUnauthenticated,
			reason: ReasonPod,
			pods:   []*corev1.Pod{pod(causewayNamespace, "agent-node-a", "causeway-agent", "")},
		},
		"pod of another account": {
			why:    "the token and the pod have different ServiceAccounts",
			status: valid("causeway-agent", "gw", nodeB),
			kind:   ErrUnauthenticated,
			reason: ReasonPod,
			pods:   []*corev1.Pod{pod(causewayNamespace, "gw", "causeway-gateway", nodeB)},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var reviews int
			a := NewAuthenticator(causewayNamespace,
				tokens(&reviews, map[string]authenticationv1.TokenReviewStatus{"t": c.status}),
				podCache(c.pods...).Build(), nil)
			got, err := a.Authenticate(t.Context(), "t")
			if !errors.Is(err, c.kind) || Reason(err) != c.reason {
				t.Fatalf("Authenticate: %v (reason %q), want %v (%q): %s", err, Reason(err), c.kind,
					c.reason, c.why)
			}
			if c.kind != nil && got != (Caller{}) {
				t.Errorf("Authenticate = %+v with an error, want the zero Caller", got)
			}
			if n := testutil.ToFloat64(a.refused.WithLabelValues(cmp.Or(c.reason,
				ReasonToken))); (n == 1) != (c.kind != nil) {
				t.Errorf("counter of refusals for %q is %v", c.reason, n)
			}
		})
	}
	a := NewAuthenticator(causewayNamespace, tokens(new(int), map[string]authenticationv1.TokenReviewStatus{
		"t": valid("causeway-agent", "agent-node-a", nodeA),
	}), podCache(agent).Build(), nil)
	want := Caller{"causeway-agent", RoleAgent, "uid-agent-node-a", "agent-node-a", nodeA, "uid-node-a"}
	if diff := gocmp.Diff(want, must(a.Authenticate(t.Context(), "t"))(t)); diff != "" {
		t.Errorf("Authenticate (-want +got):\n%s", diff)
	}
	for _, token := range []string{"", string(make([]byte, maxToken+1))} {
		if _, err := a.Authenticate(t.Context(), token); !errors.Is(err, ErrUnauthenticated) {
			t.Errorf("Authenticate of a token with %d bytes: %v, want ErrUnauthenticated", len(token), err)
		}
	}
}

func TestAuthenticateCachesReviewsForOneMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var reviews int
		known := map[string]authenticationv1.TokenReviewStatus{"t": valid("causeway-agent", "agent-node-a",
			nodeA)}
		c := podCache(agentPod(nodeA)).Build()
		a := NewAuthenticator(causewayNamespace, tokens(&reviews, known), c, nil)
		authenticate := func(want int, kind error, why string) {
			t.Helper()
			if _, err := a.Authenticate(t.Context(), "t"); !errors.Is(err, kind) || reviews != want {
				t.Errorf("error %v after %d reviews, want %v after %d: %s", err, reviews, kind, want, why)
			}
		}
		authenticate(1, nil, "the first call creates a review")
		bubble.Pass(time.Minute - 1)
		authenticate(1, nil, "the review is cached for a minute")
		bubble.Pass(time.Nanosecond)
		authenticate(2, nil, "the review expires after a minute")
		if err := c.Delete(t.Context(), agentPod(nodeA)); err != nil {
			t.Fatal(err)
		}
		authenticate(2, ErrUnauthenticated,
			"the token of a deleted pod is invalid even if its review is cached")
		delete(known, "t")
		bubble.Pass(time.Minute)
		authenticate(3, ErrUnauthenticated, "a revoked token is refused")
		authenticate(4, ErrUnauthenticated, "failed reviews are not cached")
	})
}

func TestCacheIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache()
		for i := range maxReviews + 10 {
			c.put(keyOf(fmt.Sprint(i)), Caller{NodeName: nodeA})
		}
		if len(c.entries) != maxReviews {
			t.Errorf("the cache has %d reviews, want %d", len(c.entries), maxReviews)
		}
		bubble.Pass(reviewLifetime)
		c.put(keyOf("new"), Caller{})
		if len(c.entries) != 1 {
			t.Errorf("the cache has %d reviews after all but one expired, want 1", len(c.entries))
		}
	})
}

func TestAuthenticateWithoutAPIServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		silent := reviewer{func(ctx context.Context,
			_ *authenticationv1.TokenReview) (*authenticationv1.TokenReview, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		a := NewAuthenticator(causewayNamespace, silent, podCache().Build(), nil)
		start := time.Now()
		if _, err := a.Authenticate(t.Context(), "t"); !errors.Is(err, ErrUnavailable) ||
			time.Since(start) != reviewTimeout {
			t.Errorf("error %v after %v from a silent API server, want ErrUnavailable after %v",
				err, time.Since(start), reviewTimeout)
		}
		for range maxConcurrentReviews {
			a.slots <- struct{}{}
		}
		start = time.Now()
		if _, err := a.Authenticate(t.Context(), "t"); !errors.Is(err, ErrUnavailable) ||
			time.Since(start) != reviewTimeout {
			t.Errorf("error %v after %v while all reviews are in progress, want ErrUnavailable after %v",
				err, time.Since(start), reviewTimeout)
		}
	})
	failing := reviewer{func(context.Context,
		*authenticationv1.TokenReview) (*authenticationv1.TokenReview, error) {
		return nil, errors.New("connection refused")
	}}
	if _, err := NewAuthenticator(causewayNamespace, failing, podCache().Build(),
		nil).Authenticate(t.Context(), "t"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("error %v if the API server is down, want ErrUnavailable", err)
	}
	broken := podCache().WithInterceptorFuncs(interceptor.Funcs{
		Get: func(context.Context, client.WithWatch, client.ObjectKey, client.Object,
			...client.GetOption) error {
			return errors.New("the cache is not synced")
		},
	}).Build()
	known := map[string]authenticationv1.TokenReviewStatus{"t": valid("causeway-agent", "agent-node-a",
		nodeA)}
	if _, err := NewAuthenticator(causewayNamespace, tokens(new(int), known), broken,
		nil).Authenticate(t.Context(), "t"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("error %v if the cache fails, want ErrUnavailable", err)
	}
}

// testSigner is a Signer in a cluster with an agent on each node and a gateway.
type testSigner struct {
	*Signer
	issuer *identity.Issuer
	csr    []byte
	key    identity.PrivateKey
	reg    *prometheus.Registry
}

func newTestSigner(t *testing.T, o Options, pods ...*corev1.Pod) *testSigner {
	t.Helper()
	pods = append(pods, agentPod(nodeA), agentPod(nodeB),
		pod(causewayNamespace, "gw", "causeway-gateway", nodeA))
	known := map[string]authenticationv1.TokenReviewStatus{
		"agent-a": valid("causeway-agent", "agent-node-a", nodeA),
		"agent-b": valid("causeway-agent", "agent-node-b", nodeB),
		"gateway": valid("causeway-gateway", "gw", nodeA),
	}
	root := must(identity.NewRoot(domain, time.Now()))(t)
	issuer := must(root.NewIssuer(time.Now()))(t)
	key := must(identity.NewPrivateKey())(t)
	reg := prometheus.NewRegistry()
	o.Registerer = reg
	auth := NewAuthenticator(causewayNamespace, tokens(new(int), known), podCache(pods...).Build(), reg)
	return &testSigner{
		Signer: New(auth, issuer, o),
		issuer: issuer,
		csr:    must(identity.NewCSR(key))(t),
		key:    key,
		reg:    reg,
	}
}

func TestSign(t *testing.T) {
	p384 := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t)
	otherCurve := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, p384))(t)
	mirror := func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"} }
	cart := func(change ...func(*corev1.Pod)) []*corev1.Pod {
		return []*corev1.Pod{pod("shop", "cart-1", "cart", nodeA, change...)}
	}
	cases := map[string]struct {
		why                string
		pods               []*corev1.Pod
		token              string
		namespace, account string
		csr                []byte
		kind               error
		reason             string
	}{
		"running": {why: "an agent receives the certificates of its running pods", pods: cart()},
		"pending": {
			why:  "a pod may connect before it is reported as running",
			pods: cart(phase(corev1.PodPending)),
		},
		"one of several": {why: "one live pod is enough",
			pods: append(cart(phase(corev1.PodFailed)), pod("shop", "cart-2", "cart", nodeA))},
		"succeeded": {
			why:    "another pod may have the address of a finished pod",
			pods:   cart(phase(corev1.PodSucceeded)),
			kind:   ErrForbidden,
			reason: ReasonNoPod,
		},
		"failed": {
			why:    "another pod may have the address of a finished pod",
			pods:   cart(phase(corev1.PodFailed)),
			kind:   ErrForbidden,
			reason: ReasonNoPod,
		},
		"host network": {
			why:    "a host-network pod has the address of the node",
			pods:   cart(hostNetwork),
			kind:   ErrForbidden,
			reason: ReasonNoPod,
		},
		"mirror pod": {
			why:    "the kubelet decides the content of a mirror pod",
			pods:   cart(mirror),
			kind:   ErrForbidden,
			reason: ReasonNoPod,
		},
		"no such pod": {
			why:    "a compromised node receives certificates only of its own pods",
			kind:   ErrForbidden,
			reason: ReasonNoPod,
		},
		"other node": {
			why:    "a compromised node receives no certificates of other nodes",
			pods:   cart(),
			token:  "agent-b",
			kind:   ErrForbidden,
			reason: ReasonNoPod,
		},
		"other account": {
			why:     "the pod has another ServiceAccount",
			pods:    cart(),
			account: "payments",
			kind:    ErrForbidden,
			reason:  ReasonNoPod,
		},
		"other namespace": {
			why:       "the pod is in another namespace",
			pods:      cart(),
			namespace: "bank",
			kind:      ErrForbidden,
			reason:    ReasonNoPod,
		},
		"controller": {
			why:       "the holder of the controller's certificate could announce issuers",
			token:     "agent-a",
			namespace: causewayNamespace,
			account:   "causeway-controller",
			kind:      ErrForbidden,
			reason:    ReasonOwnNamespace,
			pods:      []*corev1.Pod{pod(causewayNamespace, "controller-1", "causeway-controller", nodeA)},
		},
		"agent itself": {
			why:       "the processes of Causeway are not workloads",
			namespace: causewayNamespace,
			account:   "causeway-agent",
			kind:      ErrForbidden,
			reason:    ReasonOwnNamespace,
		},
		"by a gateway": {
			why:    "a gateway receives no certificates",
			pods:   cart(),
			token:  "gateway",
			kind:   ErrForbidden,
			reason: ReasonRole,
		},
		"by a stranger": {
			why:    "an unknown token is rejected",
			pods:   cart(),
			token:  "stranger",
			kind:   ErrUnauthenticated,
			reason: ReasonToken,
		},
		"bad namespace": {
			why:       "the namespace has an invalid name",
			namespace: "Shop",
			kind:      ErrInvalid,
			reason:    ReasonName,
		},
		"no account": {
			why:     "the account has an invalid name",
			pods:    cart(func(p *corev1.Pod) { p.Spec.ServiceAccountName = "" }),
			account: "-",
			kind:    ErrInvalid,
			reason:  ReasonName,
		},
		"no request": {
			why:    "the request is not a certificate request",
			pods:   cart(),
			csr:    []byte("garbage"),
			kind:   ErrInvalid,
			reason: ReasonCSR,
		},
		"request for a P-384": {
			why:    "only P-256 keys are signed",
			pods:   cart(),
			csr:    otherCurve,
			kind:   ErrInvalid,
			reason: ReasonCSR,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := newTestSigner(t, Options{}, c.pods...)
			namespace, account := cmp.Or(c.namespace, "shop"), cmp.Or(c.account, "cart")
			csr := s.csr
			if c.csr != nil {
				csr = c.csr
			}
			chain, err := s.Sign(t.Context(), cmp.Or(c.token, "agent-a"), namespace, account, csr)
			if !errors.Is(err, c.kind) || Reason(err) != c.reason {
				t.Fatalf("Sign: %v (reason %q), want %v (%q): %s", err, Reason(err), c.kind, c.reason, c.why)
			}
			if c.kind != nil {
				if chain != nil || testutil.ToFloat64(s.refused.WithLabelValues(c.reason)) != 1 ||
					testutil.ToFloat64(s.signed) != 0 {
					t.Errorf("the refusal was not counted once as %q, or returned a chain", c.reason)
				}
				return
			}
			credential := must(identity.NewCredential(chain, s.key))(t)
			if got := credential.Name().String(); got != "spiffe://"+domain+"/ns/shop/sa/cart" ||
				len(chain) != 2 {
				t.Errorf("signed %s with a chain of %d certificates", got, len(chain))
			}
			if testutil.ToFloat64(s.signed) != 1 {
				t.Error("the signature was not counted")
			}
		})
	}
}

// The agent controls the names in the request, so the signer must not use them.
func TestSignIgnoresNamesInRequest(t *testing.T) {
	s := newTestSigner(t, Options{}, pod("shop", "cart-1", "cart", nodeA))
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	csr := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{
		"payments",
	}}, key))(t)
	chain := must(s.Sign(t.Context(), "agent-a", "shop", "cart", csr))(t)
	leaf := must(x509.ParseCertificate(chain[0]))(t)
	if len(leaf.DNSNames) != 0 || len(leaf.URIs) != 1 || !key.PublicKey.Equal(leaf.PublicKey) {
		t.Errorf("the leaf has DNS names %v and URIs %v", leaf.DNSNames, leaf.URIs)
	}
}

func TestSignLimitsRatePerNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestSigner(t, Options{
			PerSecond: 1,
			Burst:     3,
		}, pod("shop", "cart-1", "cart", nodeA), pod("shop", "cart-2", "cart", nodeB))
		sign := func(token string, kind error, why string) {
			t.Helper()
			if _, err := s.Sign(t.Context(), token, "shop", "cart", s.csr); !errors.Is(err, kind) {
				t.Errorf("Sign for %s: %v, want %v: %s", token, err, kind, why)
			}
		}
		for range 3 {
			sign("agent-a", nil, "a node may use its burst at once")
		}
		sign("agent-a", ErrRateLimited, "the burst is used up")
		sign("agent-b", nil, "another node has its own limit")
		bubble.Pass(time.Second - time.Millisecond)
		sign("agent-a", ErrRateLimited, "the next request is allowed after a second")
		bubble.Pass(time.Millisecond)
		sign("agent-a", nil, "a request is allowed after a second")
	})
}

func TestRatesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRates(1, 2)
		for i := range maxNodes {
			r.allow(fmt.Sprint(i))
		}
		bubble.Pass(time.Second)
		r.allow("0")
		r.allow("new")
		if len(r.nodes) != 2 {
			t.Errorf("rates has %d nodes, want the two that have just made requests", len(r.nodes))
		}
	})
}

func TestSignWithExpiredIssuer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestSigner(t, Options{}, pod("shop", "cart-1", "cart", nodeA))
		bubble.Pass(identity.IssuerLifetime)
		if _, err := s.Sign(t.Context(), "agent-a", "shop", "cart",
			s.csr); !errors.Is(err, ErrUnavailable) || Reason(err) != ReasonIssuer {
			t.Errorf("Sign: %v, want ErrUnavailable with reason %q", err, ReasonIssuer)
		}
	})
}

func TestSignWithFailingCache(t *testing.T) {
	s := newTestSigner(t, Options{})
	s.auth.pods = podCache(agentPod(nodeA)).WithInterceptorFuncs(interceptor.Funcs{
		List: func(context.Context, client.WithWatch, client.ObjectList, ...client.ListOption) error {
			return errors.New("the cache is not synced")
		},
	}).Build()
	if _, err := s.Sign(t.Context(), "agent-a", "shop", "cart", s.csr); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Sign: %v, want ErrUnavailable", err)
	}
}

// A gRPC handler returns these errors unchanged or wrapped.
func TestErrorsHaveGRPCStatus(t *testing.T) {
	for kind, want := range map[error]codes.Code{
		ErrUnauthenticated: codes.Unauthenticated,
		ErrForbidden:       codes.PermissionDenied,
		ErrRateLimited:     codes.ResourceExhausted,
		ErrInvalid:         codes.InvalidArgument,
		ErrUnavailable:     codes.Unavailable,
	} {
		err := fmt.Errorf("sign: %w", refuse(kind, ReasonToken, "x"))
		if got := status.Code(err); got != want {
			t.Errorf("status code of %v = %v, want %v", kind, got, want)
		}
	}
}

func TestMetricsStartFromZero(t *testing.T) {
	s := newTestSigner(t, Options{})
	if n := must(testutil.GatherAndCount(s.reg, "causeway_signer_refused_total"))(t); n != len(Reasons()) {
		t.Errorf("the signer exports %d reasons, want %d", n, len(Reasons()))
	}
	if n := must(testutil.GatherAndCount(s.reg,
		"causeway_authentication_refused_total"))(t); n != len(authenticationReasons()) {
		t.Errorf("the authenticator exports %d reasons, want %d", n, len(authenticationReasons()))
	}
	if Reason(nil) != "" || Reason(errors.New("x")) != reasonOther {
		t.Error("want no reason for nil, and other for an error of another package")
	}
}

func TestPodNode(t *testing.T) {
	if got := PodNode(pod("shop", "cart", "cart", nodeA)); !slices.Equal(got, []string{nodeA}) {
		t.Errorf("PodNode = %q", got)
	}
	if got := PodNode(pod("shop", "cart", "cart", "")); got != nil {
		t.Errorf("PodNode of an unscheduled pod = %q", got)
	}
	if got := PodNode(&corev1.Node{}); got != nil {
		t.Errorf("PodNode of a node = %q", got)
	}
}

// Every agent may have the identity of probes, and no other process.
func TestSignProbes(t *testing.T) {
	s := newTestSigner(t, Options{})
	for _, agent := range []string{"agent-a", "agent-b"} {
		chain := must(s.Sign(t.Context(), agent, "", "", s.csr))(t)
		want := must(identity.ProbeName(domain))(t)
		if got := must(identity.NewCredential(chain, s.key))(t).Name(); got != want {
			t.Errorf("%s got the certificate of %s, want %s", agent, got, want)
		}
	}
	for token, reason := range map[string]string{"gateway": ReasonRole, "stranger": ReasonToken} {
		if _, err := s.Sign(t.Context(), token, "", "", s.csr); Reason(err) != reason {
			t.Errorf("%s: %v, want the reason %q", token, err, reason)
		}
	}
	for _, half := range [][2]string{{"", "cart"}, {"shop", ""}} {
		if _, err := s.Sign(t.Context(), "agent-a", half[0], half[1], s.csr); Reason(err) != ReasonName {
			t.Errorf("namespace %q, account %q: %v, want the reason %q", half[0], half[1], err, ReasonName)
		}
	}
}
