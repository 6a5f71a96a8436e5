// Package controller joins the control rooms in one process: it exports this
// cluster's catalog to peers, subscribes to theirs, signs identities, and tells
// every agent and gateway what it must know.
//
//	API server ─▶ caches ─┐                 ┌─▶ catalogs ─▶ peers (through our gateway)
//	peers' catalogs ──────┴─▶ brain.think ──┼─▶ views ────▶ node streams
//	                                        └─▶ leader ───▶ ledger, mirrors, status, Events
//
// brain.go is the front door to its thinking.
//
// What always holds:
//   - Every replica serves: catalogs, node streams, signatures. The leader alone
//     writes, but for the cluster's identity, what is learnt of peers, and what a
//     replica tells the leader.
//   - A thought starts from the caches and ends in whole values; it keeps nothing
//     but what is dear to find out and cannot change.
//   - Nothing is written when nothing changed, and no outage of a peer shorter than
//     patience is a change.
//   - What was once given is not forgotten: Ledgers and PeerTrusts that somebody
//     edits or deletes are mended from what is known.
//   - Each Link has its own streams and its own writer with its own back-off.
package controller

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/clusterid"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/grpctls"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/joinflow"
	"github.com/causeway-mesh/causeway/internal/mirror"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/nodestream/view"
	"github.com/causeway-mesh/causeway/internal/peering"
	"github.com/causeway-mesh/causeway/internal/signer"
)

// Options configure a controller process.
type Options struct {
	// ClusterName begins the trust domain, at the first start. Required.
	ClusterName string
	// VIPCIDRs are the ranges of virtual IPs, one for each IP family. Required.
	VIPCIDRs []string
	// Taken are ranges of this cluster's pods and Services, as far as they are known:
	// a range of virtual IPs that overlaps one is refused.
	Taken []netip.Prefix
	// Namespace, PodName are the pod's own. Required.
	Namespace, PodName string
	// CASecret names a Secret of Namespace in which somebody else keeps this cluster's root;
	// empty: the cluster makes its own.
	CASecret string
	// Version is told to peers and written on mirrors.
	Version string
	// Addresses to listen on. Defaults ":4145", ":4146", ":9464", ":9465", and the pod's
	// loopback alone for Admin: "127.0.0.1:9466".
	Catalog, NodeStream, Metrics, Probes, Admin string

	Log *slog.Logger
}

func (o Options) withDefaults() Options {
	o.Catalog, o.NodeStream = cmp.Or(o.Catalog, ":4145"), cmp.Or(o.NodeStream, ":4146")
	o.Metrics, o.Probes = cmp.Or(o.Metrics, ":9464"), cmp.Or(o.Probes, ":9465")
	o.Admin = cmp.Or(o.Admin, fmt.Sprintf("127.0.0.1:%d", AdminPort))
	return o
}

// shutdownGrace bounds the end of all parts, so that it is over, and the
// leadership given up, before the kubelet's own 30 s are.
const shutdownGrace = 20 * time.Second

// Run is the controller process. It returns when ctx ends, or with an error when
// it lost the leadership: whoever started it starts it again.
func Run(ctx context.Context, o Options) error {
	o = o.withDefaults()
	ranges, err := checkRanges(o.VIPCIDRs, o.Taken)
	if err != nil {
		return err
	}
	mgr, live, err := newManager(o)
	if err != nil {
		return err
	}
	mine, err := clusterid.Load(ctx, live, clusterid.Options{
		ClusterName: o.ClusterName, Namespace: o.Namespace, CASecret: o.CASecret,
	})
	if err != nil {
		return fmt.Errorf("load this cluster's identity: %w", err)
	}
	err = mine.Publish(ctx, live, nil)
	if err != nil && !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) { // another replica does
		return err
	}
	if err := mirror.Index(ctx, mgr.GetFieldIndexer()); err != nil {
		return err
	}
	if err := mgr.GetFieldIndexer().IndexField(ctx, &corev1.Pod{}, signer.PodNodeField, signer.PodNode); err != nil {
		return fmt.Errorf("index Pods by node: %w", err)
	}
	p := &process{o: o, identity: mine, mgr: mgr, live: live, ranges: ranges, log: o.Log}
	if err := p.wire(); err != nil {
		return err
	}
	return mgr.Start(ctx)
}

func newManager(o Options) (manager.Manager, client.Client, error) {
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return nil, nil, err
	}
	cfg, err := ctrl.GetConfig()
	if err != nil {
		return nil, nil, fmt.Errorf("find the cluster's API server: %w", err)
	}
	cfg.QPS, cfg.Burst = -1, -1 // writers have budgets of their own
	grace := shutdownGrace
	mgr, err := manager.New(cfg, manager.Options{
		Scheme: scheme,
		Logger: logr.FromSlogHandler(quiet{o.Log.Handler()}),
		Cache: cache.Options{
			DefaultTransform: cache.TransformStripManagedFields(),
			ByObject: map[client.Object]cache.ByObject{
				&v1alpha1.Ledger{}:    {Namespaces: map[string]cache.Config{o.Namespace: {}}},
				&v1alpha1.PeerTrust{}: {Namespaces: map[string]cache.Config{o.Namespace: {}}},
				&v1alpha1.Invite{}:    {Namespaces: map[string]cache.Config{o.Namespace: {}}},
				&v1alpha1.Join{}:      {Namespaces: map[string]cache.Config{o.Namespace: {}}},
				&corev1.Pod{}:         {Transform: slimPod},
			},
		},
		Client:                        client.Options{Cache: &client.CacheOptions{DisableFor: []client.Object{&corev1.Secret{}, &corev1.ConfigMap{}}}},
		Metrics:                       metricsserver.Options{BindAddress: o.Metrics},
		GracefulShutdownTimeout:       &grace,
		LeaderElection:                true,
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

// slimPod keeps of a pod in the cache what Causeway reads: hundreds of thousands of them add up.
func slimPod(o any) (any, error) {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return o, nil
	}
	p.ManagedFields, p.Annotations = nil, slimAnnotations(p.Annotations)
	containers := make([]corev1.Container, len(p.Spec.Containers))
	for i, c := range p.Spec.Containers {
		containers[i] = corev1.Container{Name: c.Name, Ports: c.Ports, SecurityContext: slimSecurity(c.SecurityContext)}
	}
	initial := make([]corev1.Container, len(p.Spec.InitContainers))
	for i, c := range p.Spec.InitContainers {
		initial[i] = corev1.Container{Name: c.Name, Ports: c.Ports, RestartPolicy: c.RestartPolicy, SecurityContext: slimSecurity(c.SecurityContext)}
	}
	p.Spec = corev1.PodSpec{
		NodeName: p.Spec.NodeName, ServiceAccountName: p.Spec.ServiceAccountName, HostNetwork: p.Spec.HostNetwork,
		Hostname: p.Spec.Hostname, Subdomain: p.Spec.Subdomain, Containers: containers, InitContainers: initial,
	}
	p.Status.ContainerStatuses, p.Status.InitContainerStatuses, p.Status.EphemeralContainerStatuses = nil, nil, nil
	return p, nil
}

// slimAnnotations keeps the one that tells a static pod's mirror.
func slimAnnotations(all map[string]string) map[string]string {
	if v, ok := all[corev1.MirrorPodAnnotationKey]; ok {
		return map[string]string{corev1.MirrorPodAnnotationKey: v}
	}
	return nil
}

// process is one controller process while it is put together.
type process struct {
	o        Options
	identity *clusterid.Identity
	mgr      manager.Manager
	live     client.Client
	ranges   []netip.Prefix
	log      *slog.Logger

	brain *brain
	whole chan struct{}
}

// wire puts the parts together and hands them to the manager, which runs them.
func (p *process) wire() error {
	hub, board := &nodestream.Hub{}, &wire.Board{}
	if err := board.SetHello(p.hello()); err != nil {
		return err
	}
	p.whole = make(chan struct{})
	b := &brain{
		o: p.o, identity: p.identity, cache: p.mgr.GetClient(), hub: hub, board: board, ranges: p.ranges, log: p.log,
		whole: p.whole, wake: make(chan struct{}, 1),
	}
	p.brain = b
	b.inviteKeys = joinflow.NewKeys(p.live, b.changed, p.log)
	metrics.Registry.MustRegister(clusterid.NewExpiryCollector(b.lastExpiries))
	catalogMetrics := wire.NewMetrics(metrics.Registry)
	b.peers = peering.New(peering.Config{
		Identity:  p.identity,
		Board:     board,
		Client:    p.live,
		Namespace: p.o.Namespace,
		Ranges:    slices.Concat(p.ranges, p.o.Taken),
		OnChange:  func(string) { b.changed() },
		Log:       p.log,
		Metrics:   catalogMetrics,
	})
	metrics.Registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "causeway_controller_failing_paths",
		Help: "Nodes whose way from a pod to its agent failed when it was last proved, by causeway check or install.",
	}, func() float64 { return float64(b.failing.Load()) }))
	b.leader = &leader{
		client: p.mgr.GetClient(), identity: p.identity, o: p.o, log: p.log,
		events: p.mgr.GetEventRecorder("causeway-controller"), joiner: joinflow.NewJoiner(p.joining()),
		books: &books{client: p.live, namespace: p.o.Namespace, ranges: p.ranges, log: p.log},
		reconciler: &mirror.Reconciler{
			Client: p.mgr.GetClient(), Live: p.live, Namespace: p.o.Namespace, Version: p.o.Version,
			Log: p.log, Metrics: mirror.NewMetrics(metrics.Registry),
		},
	}
	server, nodes, err := p.nodeStream(hub)
	if err != nil {
		return err
	}
	return errors.Join(
		p.add(p.think), p.add(nodes), p.add(p.catalog(board, catalogMetrics)), p.add(p.awaitElection), p.add(p.probes), p.add(p.brain.inviteKeys.Run), p.add(p.rotator().Run),
		p.add((&admin{brain: b, ask: server.Ask, o: p.o}).serve),
	)
}

// hello is what this cluster sends to peers.
func (p *process) hello() *wire.Hello {
	h := p.identity.Hello()
	return &wire.Hello{Version: p.o.Version, IssuerList: h.IssuerList, LinkPublicKey: h.LinkPublicKey}
}

// rotator rotates this cluster's certificates.
func (p *process) rotator() *clusterid.Rotator {
	synced := p.whole
	return clusterid.NewRotator(clusterid.RotatorConfig{
		Identity:     p.identity,
		Client:       p.live,
		Acknowledged: p.brain.peers.Acknowledged,
		Events:       p.brain.leader.events,
		Log:          p.log,
		OnChange: func() {
			if err := p.brain.board.SetHello(p.hello()); err != nil {
				p.log.Error("cannot announce this cluster's issuers to peers", "error", err)
			}
			p.brain.changed()
		},
		IsLeader: func() bool {
			select {
			case <-synced:
				return p.brain.leading.Load()
			default:
				return false
			}
		},
	})
}

// joining are the collaborators of joinflow.
func (p *process) joining() joinflow.Config {
	return joinflow.Config{
		Client:    p.live,
		Namespace: p.o.Namespace,
		Version:   p.o.Version,
		Identity:  p.identity,
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			c, _, err := transport.Dialer{}.First(ctx, address)
			return c, err
		},
		Events: p.mgr.GetEventRecorder("causeway-controller"),
		Log:    p.log,
	}
}

// everywhere is a part that runs in every replica.
type everywhere func(context.Context) error

func (f everywhere) Start(ctx context.Context) error { return f(ctx) }
func (everywhere) NeedLeaderElection() bool          { return false }

func (p *process) add(part func(context.Context) error) error { return p.mgr.Add(everywhere(part)) }

// think watches and thinks until ctx ends, and waits for all that thinking has started.
func (p *process) think(ctx context.Context) error {
	for _, kind := range kinds() {
		if err := p.watch(ctx, kind); err != nil {
			return err
		}
	}
	exports, err := p.serviceExports()
	if err != nil {
		return err
	}
	if err := exports.look(ctx); err != nil {
		return err
	}
	p.brain.serviceExports = &exports.here
	if !p.mgr.GetCache().WaitForCacheSync(ctx) {
		return nil
	}
	var looking sync.WaitGroup
	looking.Go(func() { exports.run(ctx) })
	p.brain.run(ctx)
	looking.Wait()
	p.brain.peers.Wait()
	p.brain.leader.running.Wait()
	p.brain.leader.joiner.Wait()
	return nil
}

// watch keeps a cache of a kind, any change of which wakes the brain. It returns when the cache is whole.
func (p *process) watch(ctx context.Context, kind client.Object) error {
	informer, err := p.mgr.GetCache().GetInformer(ctx, kind)
	if err != nil {
		return fmt.Errorf("watch %T: %w", kind, err)
	}
	if _, err := informer.AddEventHandler(wakeOn(p.brain.changed)); err != nil {
		return fmt.Errorf("watch %T: %w", kind, err)
	}
	return nil
}

func wakeOn(changed func()) toolscache.ResourceEventHandler {
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { changed() },
		UpdateFunc: func(any, any) { changed() },
		DeleteFunc: func(any) { changed() },
	}
}

func (p *process) awaitElection(ctx context.Context) error {
	select {
	case <-p.mgr.Elected():
		p.log.Info("this replica leads: it writes mirrors and status")
		p.brain.leading.Store(true)
		p.brain.changed()
	case <-ctx.Done():
	}
	return nil
}

// nodeStream serves agents and gateways.
func (p *process) nodeStream(hub *nodestream.Hub) (*nodestream.Server, everywhere, error) {
	ln, err := net.Listen("tcp", p.o.NodeStream)
	if err != nil {
		return nil, nil, fmt.Errorf("listen for agents and gateways: %w", err)
	}
	api, err := kubernetes.NewForConfig(p.mgr.GetConfig())
	if err != nil {
		return nil, nil, fmt.Errorf("connect to the API server: %w", err)
	}
	known := signer.NewAuthenticator(p.o.Namespace, api.AuthenticationV1().TokenReviews(), p.mgr.GetClient(), metrics.Registry)
	s := signer.New(known, p.identity, signer.Options{Registerer: metrics.Registry})
	server := nodestream.NewServer(subjects{known}, hub, s.Sign, nodestream.ServerOptions{Log: p.log, Registerer: metrics.Registry})
	creds := grpctls.New(grpctls.Config{ALPN: nodestream.ALPN, TLS: p.nodeTLS, Guard: transport.GuardAccepted})
	return server, func(ctx context.Context) error { return server.Serve(ctx, ln, creds) }, nil
}

// subjects tells the node stream whom a token stands for.
type subjects struct{ known *signer.Authenticator }

func (s subjects) Authenticate(ctx context.Context, token string) (nodestream.Subject, error) {
	caller, err := s.known.Authenticate(ctx, token)
	if err != nil {
		return nodestream.Subject{}, err
	}
	out := nodestream.Subject{Node: caller.NodeName, PodUID: caller.PodUID}
	switch caller.Role {
	case signer.RoleAgent:
		out.Role = nodestream.RoleAgent
	case signer.RoleGateway:
		out.Role = nodestream.RoleGateway
	}
	return out, nil
}

func (p *process) nodeTLS() (*tls.Config, error) {
	return identity.ServerTLS(identity.PlaneNode,
		func(*tls.ClientHelloInfo) (*identity.Credential, error) { return p.identity.Credential() }, false, nil), nil
}

// catalog serves peers' controllers, whom a gateway of ours hands over.
func (p *process) catalog(board *wire.Board, m *wire.Metrics) everywhere {
	return func(ctx context.Context) error {
		tcp, err := net.Listen("tcp", p.o.Catalog)
		if err != nil {
			return fmt.Errorf("listen for peers: %w", err)
		}
		key := route.HopKey(identity.HopKey(p.identity.HopMasterKey(), view.ControllerBackend(p.o.PodName)))
		ln := peering.NewHopListener(tcp, key, p.log, metrics.Registry)
		var accepting sync.WaitGroup
		defer accepting.Wait()
		accepting.Go(func() { ln.Run(ctx) })
		invites := joinflow.NewServer(p.joining(), metrics.Registry)
		accepting.Go(func() { invites.Serve(ctx, ln.Invites()) })
		server := wire.NewServer(p.brain.peers.Identify, board, p.brain.peers.Inbound(), wire.ServerOptions{Log: p.log, Metrics: m})
		creds := grpctls.New(grpctls.Config{ALPN: wire.ALPN, TLS: p.brain.peers.ServerTLS, Guard: transport.GuardAccepted})
		return server.Serve(ctx, ln, creds)
	}
}
