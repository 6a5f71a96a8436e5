package signer

import (
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

	"github.com/google/go-cmp/cmp"
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

	"github.com/causeway-mesh/causeway/internal/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	ours   = "causeway-system"
	nodeA  = "node-a"
	nodeB  = "node-b"
	domain = "west-1a2b3c4d"
)

// reviewer is a stub of the API server's answers to TokenReviews.
type reviewer struct {
	answer func(context.Context, *authenticationv1.TokenReview) (*authenticationv1.TokenReview, error)
}

func (r reviewer) Create(ctx context.Context, review *authenticationv1.TokenReview, _ metav1.CreateOptions) (*authenticationv1.TokenReview, error) {
	return r.answer(ctx, review)
}

// tokens answers reviews from a map of tokens, and counts them.
func tokens(asked *int, known map[string]authenticationv1.TokenReviewStatus) reviewer {
	return reviewer{func(_ context.Context, review *authenticationv1.TokenReview) (*authenticationv1.TokenReview, error) {
		*asked++
		if !slices.Equal(review.Spec.Audiences, []string{Audience}) {
			return nil, fmt.Errorf("asked for audiences %q", review.Spec.Audiences)
		}
		review.Status = known[review.Spec.Token]
		return review, nil
	}}
}

// held is what the API server says of the projected token of a pod.
func held(account, pod, node string) authenticationv1.TokenReviewStatus {
	return authenticationv1.TokenReviewStatus{
		Authenticated: true,
		Audiences:     []string{Audience},
		User: authenticationv1.UserInfo{
			Username: "system:serviceaccount:" + ours + ":" + account,
			Extra: map[string]authenticationv1.ExtraValue{
				"authentication.kubernetes.io/pod-name":  {pod},
				"authentication.kubernetes.io/pod-uid":   {"uid-" + pod},
				"authentication.kubernetes.io/node-name": {node},
				"authentication.kubernetes.io/node-uid":  {"uid-" + node},
			},
		},
	}
}

// pod is a running pod whose UID is uid-NAME.
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

// view is the replica's view of the cluster, with the index that wiring makes.
func view(pods ...*corev1.Pod) *fake.ClientBuilder {
	b := fake.NewClientBuilder().WithIndex(&corev1.Pod{}, PodNodeField, PodNode)
	for _, p := range pods {
		b = b.WithObjects(p)
	}
	return b
}

func agentPod(node string) *corev1.Pod {
	return pod(ours, "agent-"+node, "causeway-agent", node, hostNetwork)
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
		s := held("causeway-agent", "agent-node-a", nodeA)
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
		"agent": {why: "an agent's own token", status: held("causeway-agent", "agent-node-a", nodeA), pods: []*corev1.Pod{agent}},
		"agent just started": {why: "its status is late when it first calls", status: held("causeway-agent", "agent-node-a", nodeA),
			pods: []*corev1.Pod{pod(ours, "agent-node-a", "causeway-agent", nodeA, phase(corev1.PodPending))}},
		"agent being deleted": {why: "it serves open connections to the end", status: held("causeway-agent", "agent-node-a", nodeA),
			pods: []*corev1.Pod{pod(ours, "agent-node-a", "causeway-agent", nodeA, func(p *corev1.Pod) {
				p.DeletionTimestamp, p.Finalizers = &metav1.Time{Time: time.Now()}, []string{"example.org/x"}
			})}},
		"gateway": {why: "it has a node stream too", status: held("causeway-gateway", "gw", nodeB),
			pods: []*corev1.Pod{pod(ours, "gw", "causeway-gateway", nodeB)}},
		"not authenticated": {why: "expired, forged or revoked", pods: []*corev1.Pod{agent}, kind: ErrUnauthenticated, reason: ReasonToken,
			status: change(func(s *authenticationv1.TokenReviewStatus) { s.Authenticated = false })},
		"error": {why: "an answer with an error is no answer", pods: []*corev1.Pod{agent}, kind: ErrUnauthenticated, reason: ReasonToken,
			status: change(func(s *authenticationv1.TokenReviewStatus) { s.Error = "broken" })},
		"other audience": {why: "a token for another service is not ours to take", pods: []*corev1.Pod{agent}, kind: ErrUnauthenticated, reason: ReasonAudience,
			status: change(func(s *authenticationv1.TokenReviewStatus) { s.Audiences = []string{"vault"} })},
		"no audience": {why: "an API server's own token would make us a thief of its rights", pods: []*corev1.Pod{agent}, kind: ErrUnauthenticated, reason: ReasonAudience,
			status: change(func(s *authenticationv1.TokenReviewStatus) { s.Audiences = nil })},
		"any pod": {why: "every pod has a token bound to its node", pods: []*corev1.Pod{pod("shop", "cart", "cart", nodeA)}, kind: ErrForbidden, reason: ReasonAccount,
			status: change(func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "system:serviceaccount:shop:cart" })},
		"namesake": {why: "a tenant may name an account like ours", pods: []*corev1.Pod{agent}, kind: ErrForbidden, reason: ReasonAccount,
			status: change(func(s *authenticationv1.TokenReviewStatus) {
				s.User.Username = "system:serviceaccount:shop:causeway-agent"
			})},
		"other account": {why: "vip-guard speaks to nobody", pods: []*corev1.Pod{agent}, kind: ErrForbidden, reason: ReasonAccount,
			status: change(func(s *authenticationv1.TokenReviewStatus) {
				s.User.Username = "system:serviceaccount:" + ours + ":causeway-vip-guard"
			})},
		"user": {why: "a person is no process of ours", pods: []*corev1.Pod{agent}, kind: ErrForbidden, reason: ReasonAccount,
			status: change(func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "admin" })},
		"no pod claim": {why: "kubectl create token makes tokens that outlive every pod", pods: []*corev1.Pod{agent}, kind: ErrUnauthenticated, reason: ReasonUnbound,
			status: change(func(s *authenticationv1.TokenReviewStatus) {
				delete(s.User.Extra, "authentication.kubernetes.io/pod-uid")
			})},
		"no node claim": {why: "Kubernetes before 1.32", pods: []*corev1.Pod{agent}, kind: ErrUnauthenticated, reason: ReasonUnbound,
			status: change(func(s *authenticationv1.TokenReviewStatus) {
				delete(s.User.Extra, "authentication.kubernetes.io/node-name")
			})},
		"two node claims": {why: "which of them?", pods: []*corev1.Pod{agent}, kind: ErrUnauthenticated, reason: ReasonUnbound,
			status: change(func(s *authenticationv1.TokenReviewStatus) {
				s.User.Extra["authentication.kubernetes.io/node-name"] = []string{nodeA, nodeB}
			})},
		"pod gone": {why: "a token outlives its pod by minutes", status: held("causeway-agent", "agent-node-a", nodeA), kind: ErrUnauthenticated, reason: ReasonPod},
		"pod made anew": {why: "a namesake is another pod", status: held("causeway-agent", "agent-node-a", nodeA), kind: ErrUnauthenticated, reason: ReasonPod,
			pods: []*corev1.Pod{pod(ours, "agent-node-a", "causeway-agent", nodeA, func(p *corev1.Pod) { p.UID = "other" })}},
		"pod failed": {why: "an evicted agent's token may lie about", status: held("causeway-agent", "agent-node-a", nodeA), kind: ErrUnauthenticated, reason: ReasonPod,
			pods: []*corev1.Pod{pod(ours, "agent-node-a", "causeway-agent", nodeA, phase(corev1.PodFailed))}},
		"pod elsewhere": {why: "a token stolen for another node", status: held("causeway-agent", "agent-node-a", nodeB), pods: []*corev1.Pod{agent}, kind: ErrUnauthenticated, reason: ReasonPod},
		"pod unscheduled": {why: "a pod on no node has no agent's rights", status: held("causeway-agent", "agent-node-a", nodeA), kind: ErrUnauthenticated, reason: ReasonPod,
			pods: []*corev1.Pod{pod(ours, "agent-node-a", "causeway-agent", "")}},
		"pod of another account": {why: "token and pod contradict each other", status: held("causeway-agent", "gw", nodeB), kind: ErrUnauthenticated, reason: ReasonPod,
			pods: []*corev1.Pod{pod(ours, "gw", "causeway-gateway", nodeB)}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var asked int
			a := NewAuthenticator(ours, tokens(&asked, map[string]authenticationv1.TokenReviewStatus{"t": c.status}), view(c.pods...).Build(), nil)
			got, err := a.Authenticate(t.Context(), "t")
			if !errors.Is(err, c.kind) || Reason(err) != c.reason {
				t.Fatalf("Authenticate: %v (reason %q), want %v (%q): %s", err, Reason(err), c.kind, c.reason, c.why)
			}
			if c.kind != nil && got != (Caller{}) {
				t.Errorf("Authenticate = %+v beside an error", got)
			}
			if n := testutil.ToFloat64(a.refused.WithLabelValues(cmpOr(c.reason, ReasonToken))); (n == 1) != (c.kind != nil) {
				t.Errorf("%v refusals are counted for %q", n, c.reason)
			}
		})
	}
	a := NewAuthenticator(ours, tokens(new(int), map[string]authenticationv1.TokenReviewStatus{
		"t": held("causeway-agent", "agent-node-a", nodeA),
	}), view(agent).Build(), nil)
	want := Caller{"causeway-agent", RoleAgent, "uid-agent-node-a", "agent-node-a", nodeA, "uid-node-a"}
	if diff := cmp.Diff(want, must(a.Authenticate(t.Context(), "t"))(t)); diff != "" {
		t.Errorf("Authenticate (-want +got):\n%s", diff)
	}
	for _, token := range []string{"", string(make([]byte, maxToken+1))} {
		if _, err := a.Authenticate(t.Context(), token); !errors.Is(err, ErrUnauthenticated) {
			t.Errorf("a token of %d bytes: %v", len(token), err)
		}
	}
}

func cmpOr(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func TestReviewsAreRememberedForAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked int
		known := map[string]authenticationv1.TokenReviewStatus{"t": held("causeway-agent", "agent-node-a", nodeA)}
		c := view(agentPod(nodeA)).Build()
		a := NewAuthenticator(ours, tokens(&asked, known), c, nil)
		authenticate := func(want int, kind error, why string) {
			t.Helper()
			if _, err := a.Authenticate(t.Context(), "t"); !errors.Is(err, kind) || asked != want {
				t.Errorf("%v after %d reviews, want %v after %d: %s", err, asked, kind, want, why)
			}
		}
		authenticate(1, nil, "the first time")
		time.Sleep(time.Minute - 1)
		authenticate(1, nil, "within a minute")
		time.Sleep(time.Nanosecond)
		authenticate(2, nil, "after a minute")
		if err := c.Delete(t.Context(), agentPod(nodeA)); err != nil {
			t.Fatal(err)
		}
		authenticate(2, ErrUnauthenticated, "a pod that is gone ends it at once, whatever is remembered")
		delete(known, "t")
		time.Sleep(time.Minute)
		authenticate(3, ErrUnauthenticated, "a refusal")
		authenticate(4, ErrUnauthenticated, "refusals are not remembered")
	})
}

func TestTheCacheIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache()
		for i := range maxReviews + 10 {
			c.put(keyOf(fmt.Sprint(i)), Caller{NodeName: nodeA})
		}
		if len(c.entries) != maxReviews {
			t.Errorf("%d reviews are remembered, want %d", len(c.entries), maxReviews)
		}
		time.Sleep(reviewLife)
		c.put(keyOf("new"), Caller{})
		if len(c.entries) != 1 {
			t.Errorf("%d reviews are remembered after all but one expired", len(c.entries))
		}
	})
}

func TestAnAPIServerThatDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		silent := reviewer{func(ctx context.Context, _ *authenticationv1.TokenReview) (*authenticationv1.TokenReview, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		a := NewAuthenticator(ours, silent, view().Build(), nil)
		start := time.Now()
		if _, err := a.Authenticate(t.Context(), "t"); !errors.Is(err, ErrUnavailable) || time.Since(start) != reviewTimeout {
			t.Errorf("%v after %v: nothing is known of the token, and nobody waits for ever", err, time.Since(start))
		}
		for range reviewsAtOnce {
			a.slots <- struct{}{}
		}
		start = time.Now()
		if _, err := a.Authenticate(t.Context(), "t"); !errors.Is(err, ErrUnavailable) || time.Since(start) != reviewTimeout {
			t.Errorf("%v after %v with all reviews taken", err, time.Since(start))
		}
	})
	failing := reviewer{func(context.Context, *authenticationv1.TokenReview) (*authenticationv1.TokenReview, error) {
		return nil, errors.New("connection refused")
	}}
	if _, err := NewAuthenticator(ours, failing, view().Build(), nil).Authenticate(t.Context(), "t"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("%v when the API server is down", err)
	}
	broken := view().WithInterceptorFuncs(interceptor.Funcs{
		Get: func(context.Context, client.WithWatch, client.ObjectKey, client.Object, ...client.GetOption) error {
			return errors.New("the cache is not synced")
		},
	}).Build()
	known := map[string]authenticationv1.TokenReviewStatus{"t": held("causeway-agent", "agent-node-a", nodeA)}
	if _, err := NewAuthenticator(ours, tokens(new(int), known), broken, nil).Authenticate(t.Context(), "t"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("%v when the view is not there", err)
	}
}

// house is a signer with an agent on either node and a gateway.
type house struct {
	*Signer
	issuer *identity.Issuer
	csr    []byte
	key    identity.PrivateKey
	reg    *prometheus.Registry
}

func newHouse(t *testing.T, o Options, pods ...*corev1.Pod) *house {
	t.Helper()
	pods = append(pods, agentPod(nodeA), agentPod(nodeB), pod(ours, "gw", "causeway-gateway", nodeA))
	known := map[string]authenticationv1.TokenReviewStatus{
		"agent-a": held("causeway-agent", "agent-node-a", nodeA),
		"agent-b": held("causeway-agent", "agent-node-b", nodeB),
		"gateway": held("causeway-gateway", "gw", nodeA),
	}
	root := must(identity.NewRoot(domain, time.Now()))(t)
	issuer := must(root.NewIssuer(time.Now()))(t)
	key := must(identity.NewPrivateKey())(t)
	reg := prometheus.NewRegistry()
	o.Registerer = reg
	auth := NewAuthenticator(ours, tokens(new(int), known), view(pods...).Build(), reg)
	return &house{New(auth, issuer, o), issuer, must(identity.NewCSR(key))(t), key, reg}
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
		"running": {why: "what agents live by", pods: cart()},
		"pending": {why: "a pod's first connection may come before its status", pods: cart(phase(corev1.PodPending))},
		"one of several": {why: "one live pod is enough",
			pods: append(cart(phase(corev1.PodFailed)), pod("shop", "cart-2", "cart", nodeA))},
		"succeeded":           {why: "a finished pod's address may be another's by now", pods: cart(phase(corev1.PodSucceeded)), kind: ErrForbidden, reason: ReasonNoPod},
		"failed":              {why: "a finished pod's address may be another's by now", pods: cart(phase(corev1.PodFailed)), kind: ErrForbidden, reason: ReasonNoPod},
		"host network":        {why: "it shares the node's address and has no identity of its own", pods: cart(hostNetwork), kind: ErrForbidden, reason: ReasonNoPod},
		"mirror pod":          {why: "the kubelet, not the API server, decides what a mirror pod says", pods: cart(mirror), kind: ErrForbidden, reason: ReasonNoPod},
		"no such pod":         {why: "a stolen node speaks for its own pods only", kind: ErrForbidden, reason: ReasonNoPod},
		"other node":          {why: "a stolen node speaks for its own pods only", pods: cart(), token: "agent-b", kind: ErrForbidden, reason: ReasonNoPod},
		"other account":       {why: "the pod runs as somebody else", pods: cart(), account: "payments", kind: ErrForbidden, reason: ReasonNoPod},
		"other namespace":     {why: "accounts of one name in two namespaces are two", pods: cart(), namespace: "bank", kind: ErrForbidden, reason: ReasonNoPod},
		"our own controller":  {why: "who is the controller could announce issuers", token: "agent-a", namespace: ours, account: "causeway-controller", kind: ErrForbidden, reason: ReasonOwnNamespace, pods: []*corev1.Pod{pod(ours, "controller-1", "causeway-controller", nodeA)}},
		"our own agent":       {why: "no name of ours is a workload's", namespace: ours, account: "causeway-agent", kind: ErrForbidden, reason: ReasonOwnNamespace},
		"by a gateway":        {why: "the gateway can be issued nothing, whatever happens", pods: cart(), token: "gateway", kind: ErrForbidden, reason: ReasonRole},
		"by a stranger":       {why: "no token, no name", pods: cart(), token: "stranger", kind: ErrUnauthenticated, reason: ReasonToken},
		"bad namespace":       {why: "no pod can be there", namespace: "Shop", kind: ErrInvalid, reason: ReasonName},
		"no account":          {why: "a name with a hole matches too much", pods: cart(func(p *corev1.Pod) { p.Spec.ServiceAccountName = "" }), account: "-", kind: ErrInvalid, reason: ReasonName},
		"no request":          {why: "strangers' bytes", pods: cart(), csr: []byte("garbage"), kind: ErrInvalid, reason: ReasonCSR},
		"request for a P-384": {why: "SVIDs are P-256", pods: cart(), csr: otherCurve, kind: ErrInvalid, reason: ReasonCSR},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t, Options{}, c.pods...)
			namespace, account := cmpOr(c.namespace, "shop"), cmpOr(c.account, "cart")
			csr := h.csr
			if c.csr != nil {
				csr = c.csr
			}
			chain, err := h.Sign(t.Context(), cmpOr(c.token, "agent-a"), namespace, account, csr)
			if !errors.Is(err, c.kind) || Reason(err) != c.reason {
				t.Fatalf("Sign: %v (reason %q), want %v (%q): %s", err, Reason(err), c.kind, c.reason, c.why)
			}
			if c.kind != nil {
				if chain != nil || testutil.ToFloat64(h.refused.WithLabelValues(c.reason)) != 1 || testutil.ToFloat64(h.signed) != 0 {
					t.Errorf("the refusal is not counted once as %q, or gave a chain", c.reason)
				}
				return
			}
			credential := must(identity.NewCredential(chain, h.key))(t)
			if got := credential.Name().String(); got != "spiffe://"+domain+"/ns/shop/sa/cart" || len(chain) != 2 {
				t.Errorf("signed %s with a chain of %d", got, len(chain))
			}
			if testutil.ToFloat64(h.signed) != 1 {
				t.Error("the signature is not counted")
			}
		})
	}
}

// Names in a request are asked for by nobody who should have them.
func TestTheRequestNamesNobody(t *testing.T) {
	h := newHouse(t, Options{}, pod("shop", "cart-1", "cart", nodeA))
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	csr := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"payments"}}, key))(t)
	chain := must(h.Sign(t.Context(), "agent-a", "shop", "cart", csr))(t)
	leaf := must(x509.ParseCertificate(chain[0]))(t)
	if len(leaf.DNSNames) != 0 || len(leaf.URIs) != 1 || !key.PublicKey.Equal(leaf.PublicKey) {
		t.Errorf("the leaf names %v and %v", leaf.DNSNames, leaf.URIs)
	}
}

func TestSignIsBoundedPerNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, Options{PerSecond: 1, Burst: 3}, pod("shop", "cart-1", "cart", nodeA), pod("shop", "cart-2", "cart", nodeB))
		sign := func(token string, kind error, why string) {
			t.Helper()
			if _, err := h.Sign(t.Context(), token, "shop", "cart", h.csr); !errors.Is(err, kind) {
				t.Errorf("Sign for %s: %v, want %v: %s", token, err, kind, why)
			}
		}
		for range 3 {
			sign("agent-a", nil, "a node may ask for all its pods at once")
		}
		sign("agent-a", ErrRateLimited, "and then no more")
		sign("agent-b", nil, "another node is not made to wait")
		time.Sleep(time.Second - time.Millisecond)
		sign("agent-a", ErrRateLimited, "not yet")
		time.Sleep(time.Millisecond)
		sign("agent-a", nil, "a second later")
	})
}

func TestRatesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRates(1, 2)
		for i := range maxNodes {
			r.allow(fmt.Sprint(i))
		}
		time.Sleep(time.Second)
		r.allow("0")
		r.allow("new")
		if len(r.nodes) != 2 {
			t.Errorf("%d nodes are remembered, want the two that have just asked", len(r.nodes))
		}
	})
}

func TestAnExpiredIssuerSignsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, Options{}, pod("shop", "cart-1", "cart", nodeA))
		time.Sleep(identity.IssuerLifetime)
		if _, err := h.Sign(t.Context(), "agent-a", "shop", "cart", h.csr); !errors.Is(err, ErrUnavailable) || Reason(err) != ReasonIssuer {
			t.Errorf("Sign: %v", err)
		}
	})
}

func TestAViewThatFails(t *testing.T) {
	h := newHouse(t, Options{})
	h.auth.pods = view(agentPod(nodeA)).WithInterceptorFuncs(interceptor.Funcs{
		List: func(context.Context, client.WithWatch, client.ObjectList, ...client.ListOption) error {
			return errors.New("the cache is not synced")
		},
	}).Build()
	if _, err := h.Sign(t.Context(), "agent-a", "shop", "cart", h.csr); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Sign: %v; nothing is known, so nothing is forbidden", err)
	}
}

// A server returns these errors as they are, wrapped or not.
func TestErrorsAreStatuses(t *testing.T) {
	for kind, want := range map[error]codes.Code{
		ErrUnauthenticated: codes.Unauthenticated,
		ErrForbidden:       codes.PermissionDenied,
		ErrRateLimited:     codes.ResourceExhausted,
		ErrInvalid:         codes.InvalidArgument,
		ErrUnavailable:     codes.Unavailable,
	} {
		err := fmt.Errorf("sign: %w", refuse(kind, ReasonToken, "x"))
		if got := status.Code(err); got != want {
			t.Errorf("%v is %v, want %v", kind, got, want)
		}
	}
}

func TestReasonsAreCountedFromZero(t *testing.T) {
	h := newHouse(t, Options{})
	if n := must(testutil.GatherAndCount(h.reg, "causeway_signer_refused_total"))(t); n != len(Reasons()) {
		t.Errorf("%d reasons of the signer are counted, want %d", n, len(Reasons()))
	}
	if n := must(testutil.GatherAndCount(h.reg, "causeway_authentication_refused_total"))(t); n != len(authenticationReasons()) {
		t.Errorf("%d reasons of the authenticator are counted, want %d", n, len(authenticationReasons()))
	}
	if Reason(nil) != "" || Reason(errors.New("x")) != reasonOther {
		t.Error("nil has no reason, a stranger's error is other")
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
