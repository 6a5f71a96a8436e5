package controller

import (
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

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/client-go/kubernetes"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/clusterid"
	"github.com/causeway-mesh/causeway/internal/grpctls"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/joinflow"
	"github.com/causeway-mesh/causeway/internal/ledger"
	"github.com/causeway-mesh/causeway/internal/mirror"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/peering"
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
	budget   *throttle.Limiter
	log      *slog.Logger

	reconciler *reconciler
	keys       *joinflow.Keys
	freshness  *peering.Freshness
}

// wire puts the parts together and hands them to the manager, which runs them.
func (p *process) wire() error {
	board := wire.NewBoard()
	in := newInbox()
	p.keys = joinflow.NewKeys(p.live, func() { in.add(func(b *batch) { b.inviteKeys = true }) }, p.log)
	catalogMetrics := wire.NewMetrics(metrics.Registry)
	r := p.newReconciler(in, board, catalogMetrics)
	p.reconciler = r
	server, nodes, err := p.nodeStream(r.hub)
	if err != nil {
		return err
	}
	return errors.Join(
		p.add(p.reconcile), p.add(nodes), p.add(p.catalog(board, catalogMetrics)), p.add(p.awaitElection), p.add(p.probes),
		p.add(p.rotator().Run), p.add(p.keys.Run), p.add(p.freshness.Run), p.add(p.watchCRDs),
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
	if err := errors.Join(p.watchAll(ctx, r), exports.probe(ctx)); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return nil
	}
	var probing sync.WaitGroup
	probing.Go(func() { exports.run(ctx) })
	r.run(ctx)
	probing.Wait()
	r.peers.Wait()
	r.leader.wait()
	return nil
}

// watchAll keeps a cache of each kind and files its events. It returns when the inbox has
// all objects.
func (p *process) watchAll(ctx context.Context, r *reconciler) error {
	in, touch := r.inbox, p.touchMirrors(r.leader.writer)
	var synced []toolscache.InformerSynced
	for _, w := range []struct {
		kind     client.Object
		handlers []toolscache.ResourceEventHandler
	}{
		{&corev1.Namespace{}, []toolscache.ResourceEventHandler{handler(in, func(b *batch) *changed[corev1.Namespace] { return &b.namespaces }), touch}},
		{&corev1.Service{}, []toolscache.ResourceEventHandler{handler(in, func(b *batch) *changed[corev1.Service] { return &b.services }), touch}},
		{&discoveryv1.EndpointSlice{}, []toolscache.ResourceEventHandler{handler(in, func(b *batch) *changed[discoveryv1.EndpointSlice] { return &b.slices }), touch}},
		{&corev1.Pod{}, []toolscache.ResourceEventHandler{handler(in, func(b *batch) *changed[corev1.Pod] { return &b.pods })}},
		{&networkingv1.NetworkPolicy{}, []toolscache.ResourceEventHandler{handler(in, func(b *batch) *changed[networkingv1.NetworkPolicy] { return &b.networks })}},
		{&v1alpha1.Link{}, []toolscache.ResourceEventHandler{handler(in, func(b *batch) *changed[v1alpha1.Link] { return &b.links })}},
		{&v1alpha1.ExportPolicy{}, []toolscache.ResourceEventHandler{handler(in, func(b *batch) *changed[v1alpha1.ExportPolicy] { return &b.policies })}},
		{&v1alpha1.Ledger{}, []toolscache.ResourceEventHandler{handler(in, func(b *batch) *changed[v1alpha1.Ledger] { return &b.ledgers })}},
		{&v1alpha1.PeerTrust{}, []toolscache.ResourceEventHandler{handler(in, func(b *batch) *changed[v1alpha1.PeerTrust] { return &b.trusts })}},
		{&v1alpha1.Invite{}, []toolscache.ResourceEventHandler{handler(in, func(b *batch) *changed[v1alpha1.Invite] { return &b.invites })}},
		{&v1alpha1.Join{}, []toolscache.ResourceEventHandler{handler(in, func(b *batch) *changed[v1alpha1.Join] { return &b.joins })}},
	} {
		for _, h := range w.handlers {
			s, err := p.watch(ctx, w.kind, h)
			if err != nil {
				return err
			}
			synced = append(synced, s)
		}
	}
	toolscache.WaitForCacheSync(ctx.Done(), synced...)
	return nil
}

// watch adds an event handler for a kind. The result reports whether the handler has been
// given all objects that there were.
func (p *process) watch(ctx context.Context, kind client.Object, h toolscache.ResourceEventHandler) (toolscache.InformerSynced, error) {
	informer, err := p.mgr.GetCache().GetInformer(ctx, kind)
	if err != nil {
		return nil, fmt.Errorf("watch %T: %w", kind, err)
	}
	registration, err := informer.AddEventHandler(h)
	if err != nil {
		return nil, fmt.Errorf("watch %T: %w", kind, err)
	}
	return registration.HasSynced, nil
}

// touchMirrors tells the mirror writer which of its mirrors an object concerns.
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
	return toolscache.ResourceEventHandlerFuncs{AddFunc: touch, UpdateFunc: func(_, o any) { touch(o) }, DeleteFunc: touch}
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
	known := signer.NewAuthenticator(p.o.Namespace, api.AuthenticationV1().TokenReviews(), p.mgr.GetClient(), metrics.Registry)
	s := signer.New(known, p.identity, signer.Options{Registerer: metrics.Registry})
	server := nodestream.NewServer(subjects{known}, hub, s.Sign,
		nodestream.ServerOptions{Age: p.freshness.Age, Log: p.log, Registerer: metrics.Registry})
	creds := grpctls.New(grpctls.Config{ALPN: nodestream.ALPN, TLS: p.nodeTLS, Guard: peering.GuardAccepted})
	return server, func(ctx context.Context) error { return server.Serve(ctx, ln, creds) }, nil
}

// subjects tells the node stream whom a token stands for.
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
		func(*tls.ClientHelloInfo) (*identity.Credential, error) { return p.identity.Credential() }, false, nil), nil
}

var (
	_ = catalog.Key{}
	_ = ledger.Book{}
	_ = prometheus.NewRegistry
	_ = slices.Concat[[]int]
	_ = time.Now
)
