package controller

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/clusterid"
	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/crds"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/gatewayroutes"
	"github.com/causeway-mesh/causeway/internal/grpctls"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/joinflow"
	"github.com/causeway-mesh/causeway/internal/ledger"
	"github.com/causeway-mesh/causeway/internal/mirror"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/nodestream/view"
	nodewire "github.com/causeway-mesh/causeway/internal/nodestream/wire"
	"github.com/causeway-mesh/causeway/internal/peering"
	"github.com/causeway-mesh/causeway/internal/serviceexport"
	"github.com/causeway-mesh/causeway/internal/signer"
	"github.com/causeway-mesh/causeway/internal/throttle"
)

// process is one controller process while it is put together.
type process struct {
	o        Options
	identity *clusterid.Identity
	mgr      manager.Manager
	live     client.Client
	ranges   []netip.Prefix
	podUID   string // empty if the pod is not known
	budget   *throttle.Limiter
	log      *slog.Logger

	reconciler *reconciler
	keys       *joinflow.Keys
	freshness  *peering.Freshness
	budgets    *wire.Budgets

	listsMu sync.Mutex // guards lists
	// lists are the watches that watchListed has begun and unwatch has not ended, by
	// kindKey.
	lists map[string]toolscache.InformerSynced
}

// wire puts the parts together and hands them to the manager, which runs them.
func (p *process) wire() error {
	board := wire.NewBoard()
	if err := board.SetHello(p.hello()); err != nil {
		return err
	}
	in := newInbox()
	p.budgets = wire.NewBudgets()
	p.keys = joinflow.NewKeys(p.live, func() { in.add(func(b *batch) { b.inviteKeys = true }) }, p.log)
	catalogMetrics := wire.NewMetrics(metrics.Registry)
	r := p.newReconciler(in, board, catalogMetrics)
	p.reconciler = r
	p.freshness = peering.NewFreshness(peering.FreshnessConfig{
		Client:    p.live,
		Namespace: p.o.Namespace,
		Replica:   p.identity.ReplicaID(p.podUID),
		Version:   r.announcedVersion,
		Port:      strconv.Itoa(clusterinfo.ProbesPort),
		Log:       p.log,
	})
	r.freshness = p.freshness
	board.SetFreshness(p.freshness.Current)
	server, nodes, err := p.nodeStream(r.hub)
	if err != nil {
		return err
	}
	return errors.Join(
		p.add(p.reconcile), p.add(nodes), p.add(p.catalog(board, catalogMetrics)), p.add(p.awaitElection),
		p.add(p.probes),
		p.add(p.rotator(board).Run), p.add(p.keys.Run), p.add(p.freshness.Run), p.add(p.watchCRDs),
		p.add((&admin{reconciler: r, ask: server.Ask, pods: p.mgr.GetClient(), o: p.o}).serve),
	)
}

// allReplicas is a part that runs in every replica.
type allReplicas func(context.Context) error

// Start implements manager.Runnable.
func (f allReplicas) Start(ctx context.Context) error { return f(ctx) }

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (allReplicas) NeedLeaderElection() bool { return false }

func (p *process) add(part func(context.Context) error) error { return p.mgr.Add(allReplicas(part)) }

// reconcile watches and makes passes until ctx ends, and waits for all that they started.
func (p *process) reconcile(ctx context.Context) error {
	r := p.reconciler
	exports, err := p.serviceExports()
	if err != nil {
		return err
	}
	gateway, err := p.gatewayKinds()
	if err != nil {
		return err
	}
	zones, err := p.watchAll(ctx, r)
	if err != nil {
		return err
	}
	// A first pass without the ServiceExports would delete the peers' mirrors.
	for err := exports.probe(ctx); err != nil && ctx.Err() == nil; err = exports.probe(ctx) {
		p.log.Error("cannot read ServiceExports: the controller does nothing until it can", "error", err)
		if !backoff.Sleep(ctx, probeInterval) {
			return nil
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	gateway.start(ctx)
	r.setUnread(gateway.unread()) // nothing else uses r before run
	var probing sync.WaitGroup
	probing.Go(func() { exports.run(ctx) })
	probing.Go(func() { gateway.run(ctx) })
	probing.Go(func() { zones.run(ctx) })
	r.run(ctx)
	probing.Wait()
	r.peers.Wait()
	r.leader.wait()
	return nil
}

// watchAll starts a cache of each kind and passes its events to the inbox. It returns
// when the inbox has all objects. Only Nodes may come later. zones then waits for them.
func (p *process) watchAll(ctx context.Context, r *reconciler) (zones *zoneWatch, err error) {
	in, touch := r.inbox, p.touchMirrors(r.leader.writer)
	if zones, err = p.watchZones(ctx); err != nil {
		return nil, err
	}
	var synced []toolscache.InformerSynced
	for _, w := range []struct {
		kind     client.Object
		handlers []toolscache.ResourceEventHandler
	}{
		{
			&corev1.Namespace{},
			[]toolscache.ResourceEventHandler{
				handler(in, func(b *batch) *changed[corev1.Namespace] { return &b.namespaces }),
				touch,
			},
		},
		{
			&corev1.Service{},
			[]toolscache.ResourceEventHandler{
				handler(in, func(b *batch) *changed[corev1.Service] { return &b.services }),
				touch,
			},
		},
		{
			&discoveryv1.EndpointSlice{},
			[]toolscache.ResourceEventHandler{
				handler(in, func(b *batch) *changed[discoveryv1.EndpointSlice] { return &b.slices }),
				touch,
			},
		},
		{
			&corev1.Pod{},
			[]toolscache.ResourceEventHandler{
				handler(in, func(b *batch) *changed[corev1.Pod] { return &b.pods }),
			},
		},
		{
			&networkingv1.NetworkPolicy{},
			[]toolscache.ResourceEventHandler{
				handler(in, func(b *batch) *changed[networkingv1.NetworkPolicy] { return &b.networks }),
			},
		},
		{
			&v1alpha1.Link{},
			[]toolscache.ResourceEventHandler{
				handler(in, func(b *batch) *changed[v1alpha1.Link] { return &b.links }),
			},
		},
		{
			&v1alpha1.ExportPolicy{},
			[]toolscache.ResourceEventHandler{
				handler(in, func(b *batch) *changed[v1alpha1.ExportPolicy] { return &b.policies }),
			},
		},
		{
			&v1alpha1.Ledger{},
			[]toolscache.ResourceEventHandler{
				handler(in, func(b *batch) *changed[v1alpha1.Ledger] { return &b.ledgers }),
			},
		},
		{
			&v1alpha1.PeerTrust{},
			[]toolscache.ResourceEventHandler{
				handler(in, func(b *batch) *changed[v1alpha1.PeerTrust] { return &b.trusts }),
			},
		},
		{
			&v1alpha1.Invite{},
			[]toolscache.ResourceEventHandler{
				handler(in, func(b *batch) *changed[v1alpha1.Invite] { return &b.invites }),
			},
		},
		{
			&v1alpha1.Join{},
			[]toolscache.ResourceEventHandler{
				handler(in, func(b *batch) *changed[v1alpha1.Join] { return &b.joins }),
			},
		},
	} {
		for _, h := range w.handlers {
			s, err := p.watch(ctx, w.kind, h)
			if err != nil {
				return nil, err
			}
			synced = append(synced, s)
		}
	}
	toolscache.WaitForCacheSync(ctx.Done(), synced...)
	zones.await(ctx)
	return zones, nil
}

// watch adds an event handler for a kind. The result reports whether the handler has been
// given all objects that there were. watch does not wait for the first list, because it
// never comes if the controller has no permission to list the kind.
func (p *process) watch(ctx context.Context, kind client.Object,
	h toolscache.ResourceEventHandler) (toolscache.InformerSynced, error) {
	informer, err := p.mgr.GetCache().GetInformer(ctx, kind, cache.BlockUntilSynced(false))
	if err != nil {
		return nil, fmt.Errorf("watch %T: %w", kind, err)
	}
	registration, err := informer.AddEventHandler(h)
	if err != nil {
		return nil, fmt.Errorf("watch %T: %w", kind, err)
	}
	return registration.HasSynced, nil
}

// watchListed is watch for a kind whose list may be forbidden. It waits up to
// syncTimeout for the first list. After an error the list continues, and the next call
// waits for the same list. Otherwise a list that takes longer would never end. Until
// unwatch ends the watch, further calls add no further handler.
func (p *process) watchListed(ctx context.Context, kind client.Object,
	h toolscache.ResourceEventHandler) error {
	synced, err := p.listing(ctx, kind, h)
	if err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	if !toolscache.WaitForCacheSync(waiting.Done(), synced) {
		return fmt.Errorf("watch %T: %w", kind, context.Cause(waiting))
	}
	return nil
}

// listing begins the watch of a kind, unless an earlier call has begun it.
func (p *process) listing(ctx context.Context, kind client.Object,
	h toolscache.ResourceEventHandler) (toolscache.InformerSynced, error) {
	p.listsMu.Lock()
	defer p.listsMu.Unlock()
	if synced, ok := p.lists[kindKey(kind)]; ok {
		return synced, nil
	}
	synced, err := p.watch(ctx, kind, h)
	if err != nil {
		return nil, err
	}
	if p.lists == nil {
		p.lists = make(map[string]toolscache.InformerSynced)
	}
	p.lists[kindKey(kind)] = synced
	return synced, nil
}

// unwatch ends the watch of a kind, also if its first list has not come yet.
func (p *process) unwatch(ctx context.Context, kind client.Object) error {
	p.listsMu.Lock()
	delete(p.lists, kindKey(kind))
	p.listsMu.Unlock()
	return p.mgr.GetCache().RemoveInformer(ctx, kind)
}

// kindKey returns a different text for each kind, and for each kind of which only the
// metadata is read.
func kindKey(kind client.Object) string {
	return fmt.Sprintf("%T %v", kind, kind.GetObjectKind().GroupVersionKind())
}

// touchMirrors passes the mirrors that an object concerns to the mirror writer.
func (p *process) touchMirrors(w *mirror.Writer) toolscache.ResourceEventHandler {
	touch := func(o any) {
		if unknown, ok := o.(toolscache.DeletedFinalStateUnknown); ok {
			o = unknown.Obj
		}
		object, ok := o.(client.Object)
		if !ok {
			return
		}
		for _, k := range mirror.KeysOf(object) {
			w.Touch(k.Link, k.Key)
		}
	}
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc:    touch,
		UpdateFunc: func(_, o any) { touch(o) },
		DeleteFunc: touch,
	}
}

func (p *process) awaitElection(ctx context.Context) error {
	select {
	case <-p.mgr.Elected():
		p.log.Info("this replica leads: it writes mirrors and status")
		p.reconciler.leading.Store(true)
		p.reconciler.inbox.add(func(b *batch) { b.identity = true })
	case <-ctx.Done():
	}
	return nil
}

// nodeStream serves agents and gateways.
func (p *process) nodeStream(hub *nodestream.Hub) (*nodestream.Server, allReplicas, error) {
	ln, err := net.Listen("tcp", p.o.NodeStream)
	if err != nil {
		return nil, nil, fmt.Errorf("listen for agents and gateways: %w", err)
	}
	api, err := kubernetes.NewForConfig(p.mgr.GetConfig())
	if err != nil {
		return nil, nil, fmt.Errorf("connect to the API server: %w", err)
	}
	known := signer.NewAuthenticator(p.o.Namespace, api.AuthenticationV1().TokenReviews(), p.mgr.GetClient(),
		metrics.Registry)
	s := signer.New(known, p.identity, signer.Options{Registerer: metrics.Registry})
	server := nodestream.NewServer(subjects{known}, hub, s.Sign,
		nodestream.ServerOptions{
			Age:        func() time.Duration { return p.freshness.Current().Age },
			Log:        p.log,
			Registerer: metrics.Registry,
		})
	creds := grpctls.New(grpctls.Config{
		ALPN:  nodestream.ALPN,
		TLS:   p.nodeTLS,
		Guard: transport.GuardAccepted,
	})
	return server, func(ctx context.Context) error { return server.Serve(ctx, ln, creds) }, nil
}

// subjects authenticates the tokens of node streams.
type subjects struct{ known *signer.Authenticator }

// Authenticate implements nodestream.Authenticator.
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
		func(*tls.ClientHelloInfo) (*identity.Credential, error) { return p.identity.Credential() }, false,
		nil), nil
}

// catalog serves the controllers of peers, whose connections a local gateway hands over.
func (p *process) catalog(board *wire.Board, m *wire.Metrics) allReplicas {
	return func(ctx context.Context) error {
		tcp, err := net.Listen("tcp", p.o.Catalog)
		if err != nil {
			return fmt.Errorf("listen for peers: %w", err)
		}
		key := route.HopKey(identity.HopKey(p.identity.HopMasterKey(), view.ControllerUpstream(p.o.PodName)))
		ln := peering.NewHopListener(tcp, key, p.log, metrics.Registry)
		var accepting sync.WaitGroup
		defer accepting.Wait()
		accepting.Go(func() { ln.Run(ctx) })
		joins := joinflow.NewServer(p.joins(), metrics.Registry)
		accepting.Go(func() { joins.Serve(ctx, ln.Invites()) })
		peers := p.reconciler.peers
		server := wire.NewServer(peers.Identify, board, peers.Inbound(), wire.ServerOptions{
			Log:     p.log,
			Metrics: m,
			Budgets: p.budgets,
		})
		creds := grpctls.New(grpctls.Config{
			ALPN:  wire.ALPN,
			TLS:   peers.ServerTLS,
			Guard: transport.GuardAccepted,
		})
		return server.Serve(ctx, ln, creds)
	}
}

// joins is what invites and joins need.
func (p *process) joins() joinflow.Config {
	return joinflow.Config{
		Client:      p.live,
		Namespace:   p.o.Namespace,
		Version:     p.o.Version,
		Identity:    p.identity,
		KeyExchange: p.o.KeyExchange,
		Dial:        dial,
		Events:      p.mgr.GetEventRecorder(controllerName),
		Log:         p.log,
	}
}

// dial opens a TCP connection to a gateway address, host:port.
func dial(ctx context.Context, address string) (net.Conn, error) {
	c, _, err := transport.Dialer{}.DialFirst(ctx, address)
	return c, err
}

// controllerName is the reporter of Events.
const controllerName = "causeway-controller"

// rotator follows the Secrets of roots and issuers; the leader's decides what they hold.
func (p *process) rotator(board *wire.Board) *clusterid.Rotator {
	r := p.reconciler
	return clusterid.NewRotator(clusterid.RotatorConfig{
		Identity:     p.identity,
		Client:       p.live,
		Acknowledged: r.peers.Acknowledged,
		Events:       p.mgr.GetEventRecorder(controllerName),
		Log:          p.log,
		OnChange: func() {
			if err := board.SetHello(p.hello()); err != nil {
				p.log.Error("this cluster's issuers are not sent to peers", "error", err)
			}
			r.inbox.add(func(b *batch) { b.identity = true })
		},
		IsLeader: func() bool {
			select {
			case <-r.ready:
				return r.leading.Load()
			default:
				return false
			}
		},
	})
}

// hello is what peers learn of this cluster.
func (p *process) hello() *wire.Hello {
	h := p.identity.Hello()
	id := p.identity.ReplicaID(p.podUID)
	return &wire.Hello{
		Version:       p.o.Version,
		IssuerList:    h.IssuerList,
		LinkPublicKey: h.LinkPublicKey,
		Replica:       id[:],
	}
}

// crdInterval is how often the CRDs are compared with those of this version.
const crdInterval = 10 * time.Minute

// watchCRDs warns of CRDs that are older than this controller: the API server would drop
// what they lack.
func (p *process) watchCRDs(ctx context.Context) error {
	for last := ""; ; {
		asking, cancel := context.WithTimeout(ctx, 30*time.Second)
		outdated, err := crds.Outdated(asking, p.live)
		cancel()
		if text := strings.Join(outdated, ", "); err == nil && text != last {
			last = text
			if text != "" {
				p.log.Warn("the CustomResourceDefinitions are older than this controller: run `causeway "+
					"install`, or apply the chart's crds", "missing", text)
			}
		}
		if !backoff.Sleep(ctx, crdInterval) {
			return nil
		}
	}
}

// newReconciler makes the reconciler and everything that it decides for.
func (p *process) newReconciler(in *inbox, board *wire.Board, m *wire.Metrics) *reconciler {
	index := catalog.NewIndex(catalog.Config{TrustDomain: p.identity.TrustDomain(), Namespace: p.o.Namespace})
	book := ledger.NewBook(p.ranges, newEpoch)
	rows := &rowTable{last: make(map[uint32]*nodewire.Route)}
	nodes := newNodeViews(p.o, p.identity, rows)
	r := &reconciler{
		o:              p.o,
		identity:       p.identity,
		log:            p.log,
		metrics:        newReconcilerMetrics(metrics.Registry),
		inbox:          in,
		hub:            nodestream.NewHub(),
		board:          board,
		ready:          make(chan struct{}),
		first:          true,
		index:          index,
		book:           book,
		links:          newLinkState(p.identity, p.log),
		exports:        newExporter(index, book, rows, nodes.hasAgent, nodes.nodesOf),
		imports:        newImporter(p.o.Namespace, book),
		nodes:          nodes,
		components:     newComponents(p.o.Namespace),
		overlaps:       newOverlaps(p.ranges),
		listed:         newListedAddresses(p.ranges),
		keys:           p.keys,
		joins:          make(map[catalog.Key]*v1alpha1.Join),
		invites:        make(map[catalog.Key]*v1alpha1.Invite),
		apiServer:      make(map[catalog.Key][]string),
		serviceExports: make(map[catalog.Key]*metav1.PartialObjectMetadata),
		trustDue:       make(map[string]time.Time),
	}
	nodes.moved = r.exports.nodeMoved
	r.routes = gatewayroutes.NewIndex(services{r})
	r.imports.routes = r.routes
	r.peers = peering.New(peering.Config{
		Identity:    p.identity,
		Board:       board,
		Client:      p.live,
		Namespace:   p.o.Namespace,
		KeyExchange: p.o.KeyExchange,
		Ranges:      slices.Concat(p.ranges, p.o.ClusterRanges),
		OnChange:    in.peerChanged,
		OnCatalog:   in.catalogChanged,
		Log:         p.log,
		Metrics:     m,
		Budgets:     p.budgets,
	})
	mirrorMetrics := mirror.NewMetrics(metrics.Registry)
	r.leader = &leader{
		client:   p.mgr.GetClient(),
		live:     p.live,
		identity: p.identity,
		events:   p.mgr.GetEventRecorder(controllerName),
		joiner:   joinflow.NewJoiner(p.joins()),
		o:        p.o,
		ranges:   p.ranges,
		inbox:    in,
		log:      p.log,
		tasks:    tasks{log: p.log},
		writer: mirror.NewWriter(mirror.WriterConfig{
			Reader:    p.mgr.GetClient(),
			Client:    p.mgr.GetClient(),
			Live:      p.live,
			Namespace: p.o.Namespace,
			Version:   p.o.Version,
			OnStatus:  in.mirrorsChanged,
			Throttle:  p.budget,
			Log:       p.log,
			Metrics:   mirrorMetrics,
		}),
	}
	r.leader.routes = newRouteStatuses(p.live, p.log)
	metrics.Registry.MustRegister(peering.NewCollector(r.peers), mirror.NewCollector(r.leader.writer))
	r.leader.conditions = serviceexport.NewWriter(serviceexport.Config{
		API:     p.live,
		Budget:  p.budget,
		Metrics: serviceexport.NewMetrics(metrics.Registry),
		Log:     p.log,
	})
	metrics.Registry.MustRegister(clusterid.NewExpiryCollector(func() []clusterid.Expiry {
		if all := r.expiries.Load(); all != nil {
			return *all
		}
		return nil
	}))
	return r
}

// newEpoch names an export list that begins now.
func newEpoch() string {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
