// Package controller is the controller process: it exports this cluster's catalog to
// peers, mirrors the Services of peers, signs workload certificates, and sends each agent
// and gateway its configuration.
//
//	API server ─▶ informers ─┐              ┌─▶ catalog log ─▶ peers, through our gateway
//	peers' catalogs ─────────┼─▶ inbox ─▶ pass ─▶ node logs ───▶ agents and gateways
//	ledger, mirror writer ───┘              └─▶ leader ──────▶ ledger, mirrors, status, Events
//
// reconcile.go is the front door: one goroutine makes passes, and each pass turns a batch
// of changes into a plan and applies it. exports.go and imports.go are the two lives of a
// Service, links.go that of a peer.
//
// What always holds:
//   - Every replica serves catalogs, node streams and signatures. The leader alone writes
//     to the API server, apart from this cluster's identity, what is learned of peers,
//     and invites, which any replica writes by compare-and-swap.
//   - A pass costs what has changed, not what exists.
//   - Nothing is written when nothing changed.
//   - Agents and peers never learn of an allocation before the ledger has stored it.
//   - A failing object, peer or Link stops nothing else.
package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/clusterid"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/mirror"
	"github.com/causeway-mesh/causeway/internal/redial"
	"github.com/causeway-mesh/causeway/internal/signer"
	"github.com/causeway-mesh/causeway/internal/throttle"
)

// Options configure a controller process.
type Options struct {
	// ClusterName begins the trust domain, at the first start. Required.
	ClusterName string
	// VIPCIDRs are the ranges of virtual IPs, one for each IP family. Required.
	VIPCIDRs []string
	// ClusterRanges are ranges of this cluster's pods and Services, as far as they are
	// known: a range of virtual IPs that overlaps one is refused.
	ClusterRanges []netip.Prefix
	// Namespace and PodName are the pod's own. Required.
	Namespace, PodName string
	// CASecret names a Secret of Namespace in which an external CA keeps this cluster's
	// root. If empty, the cluster makes its own root.
	CASecret string
	// KeyExchange is what controllers offer to peers.
	KeyExchange identity.KeyExchange
	// Version is reported to peers and written on mirrors.
	Version string
	// Addresses to listen on. Defaults: ":4145", ":4146", ":9464", ":9465", and for
	// Admin the pod's loopback alone: "127.0.0.1:9466".
	Catalog, NodeStream, Metrics, Probes, Admin string

	Log *slog.Logger
}

func (o Options) withDefaults() Options {
	o.Catalog, o.NodeStream = cmp.Or(o.Catalog, ":4145"), cmp.Or(o.NodeStream, ":4146")
	o.Metrics, o.Probes = cmp.Or(o.Metrics, ":9464"), cmp.Or(o.Probes, ":9465")
	o.Admin = cmp.Or(o.Admin, fmt.Sprintf("127.0.0.1:%d", AdminPort))
	return o
}

// writesPerSecond is the budget of all mirrors of all Links. It is lowered while the API
// server answers 429.
const writesPerSecond = 800

// shutdownGrace bounds the end of all parts, so that it is over, and the leadership given
// up, before the kubelet's own 30 s are.
const shutdownGrace = 20 * time.Second

// Run is the controller process. It returns when ctx ends, or with an error when it lost
// the leadership: the kubelet starts it again.
func Run(ctx context.Context, o Options) error {
	o = o.withDefaults()
	ranges, err := checkRanges(o.VIPCIDRs, o.ClusterRanges)
	if err != nil {
		return err
	}
	budget := throttle.New(writesPerSecond, nil)
	mgr, live, err := newManager(o, budget)
	if err != nil {
		return err
	}
	id, err := clusterid.Load(ctx, live, clusterid.Options{
		ClusterName: o.ClusterName,
		Namespace:   o.Namespace,
		CASecret:    o.CASecret,
	})
	if err != nil {
		return fmt.Errorf("load this cluster's identity: %w", err)
	}
	err = id.Publish(ctx, live, nil)
	if err != nil && !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) { // another replica does
		return err
	}
	if err := mirror.RegisterIndexes(ctx, mgr.GetFieldIndexer()); err != nil {
		return err
	}
	if err := mgr.GetFieldIndexer().IndexField(ctx, &corev1.Pod{}, signer.PodNodeField,
		signer.PodNode); err != nil {
		return fmt.Errorf("index Pods by node: %w", err)
	}
	var pod corev1.Pod
	err = live.Get(ctx, client.ObjectKey{Namespace: o.Namespace, Name: o.PodName}, &pod)
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("get this pod %s/%s: %w", o.Namespace, o.PodName, err)
	}
	p := &process{
		o:        o,
		identity: id,
		mgr:      mgr,
		live:     live,
		ranges:   ranges,
		podUID:   string(pod.UID),
		budget:   budget,
		log:      o.Log,
	}
	if err := p.wire(); err != nil {
		return err
	}
	return mgr.Start(ctx)
}

func newManager(o Options, budget *throttle.Limiter) (manager.Manager, client.Client, error) {
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme),
		gatewayv1.Install(scheme), gatewayv1beta1.Install(scheme)); err != nil {
		return nil, nil, err
	}
	cfg, err := ctrl.GetConfig()
	if err != nil {
		return nil, nil, fmt.Errorf("find the cluster's API server: %w", err)
	}
	cfg.QPS, cfg.Burst = -1, -1      // writers have budgets of their own
	election := rest.CopyConfig(cfg) // a connection of its own: our bulk must not starve it
	election.Timeout = 5 * time.Second
	cfg.Wrap(budget.RoundTripper)
	grace := shutdownGrace
	slim := newSlimmer()
	mgr, err := manager.New(cfg, manager.Options{
		Scheme: scheme,
		Logger: logr.FromSlogHandler(quiet{o.Log.Handler()}),
		Cache: cache.Options{
			DefaultTransform: slim.object,
			ByObject: map[client.Object]cache.ByObject{
				&v1alpha1.Ledger{}:           {Namespaces: map[string]cache.Config{o.Namespace: {}}},
				&v1alpha1.PeerTrust{}:        {Namespaces: map[string]cache.Config{o.Namespace: {}}},
				&v1alpha1.Invite{}:           {Namespaces: map[string]cache.Config{o.Namespace: {}}},
				&v1alpha1.Join{}:             {Namespaces: map[string]cache.Config{o.Namespace: {}}},
				&corev1.Pod{}:                {Transform: slim.pod},
				&discoveryv1.EndpointSlice{}: {Transform: slim.endpointSlice},
			},
		},
		NewCache: redialingCache,
		Client: client.Options{Cache: &client.CacheOptions{DisableFor: []client.Object{
			&corev1.Secret{},
			&corev1.ConfigMap{},
		}}},
		Metrics:                       metricsserver.Options{BindAddress: o.Metrics},
		GracefulShutdownTimeout:       &grace,
		LeaderElection:                true,
		LeaderElectionConfig:          election,
		LeaderElectionID:              "causeway-controller",
		LeaderElectionNamespace:       o.Namespace,
		LeaderElectionReleaseOnCancel: true,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("connect to the API server: %w", err)
	}
	live, err := client.New(rest.CopyConfig(cfg), client.Options{Scheme: scheme})
	if err != nil {
		return nil, nil, fmt.Errorf("connect to the API server: %w", err)
	}
	return mgr, live, nil
}

// redialingCache returns a cache whose informers retry their reads while the API server
// is unreachable.
func redialingCache(cfg *rest.Config, o cache.Options) (cache.Cache, error) {
	cfg = rest.CopyConfig(cfg)
	cfg.Dial = redial.Dialer().DialContext
	cfg.Wrap(redial.RoundTripper)
	var err error
	if o.HTTPClient, err = rest.HTTPClientFor(cfg); err != nil {
		return nil, fmt.Errorf("connect to the API server: %w", err)
	}
	return cache.New(cfg, o)
}
