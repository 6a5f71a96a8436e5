package controller

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/rotation"
)

// issuing is who vouches for this cluster's workloads. It is immutable.
type issuing struct {
	rotation.State
	list []byte   // signed, as peers get it
	ders [][]byte // that are on it
}

// behindPatience is how long a peer may take to acknowledge an issuer that signs already
// before its Link says so.
const behindPatience = time.Minute

// behind returns the number of the list that a peer should have, if it says that it has
// an older one; otherwise 0.
func (i *issuing) behind(trusts uint64, now time.Time) uint64 {
	if trusts == 0 || trusts >= i.Needed || now.Before(i.Since.Add(behindPatience)) {
		return 0
	}
	return i.Needed
}

// take makes the issuers those of a Secret.
func (o *own) take(data map[string][]byte) error {
	s, err := rotation.Parse(data, o.root.Certificate())
	if err != nil {
		return err
	}
	return o.adopt(s)
}

// adopt makes the issuers those of s. What is listed is signed anew only if it changed.
func (o *own) adopt(s rotation.State) error {
	next := &issuing{State: s}
	listed := s.Listed()
	if old := o.issuers.Load(); old != nil && old.Number == s.Number && slices.EqualFunc(old.Listed(), listed, (*x509.Certificate).Equal) {
		next.list, next.ders = old.list, old.ders
	} else {
		var err error
		if next.list, err = o.root.SignIssuerList(s.Number, listed); err != nil {
			return fmt.Errorf("sign the list of issuers: %w", err)
		}
		for _, c := range listed {
			next.ders = append(next.ders, c.Raw)
		}
	}
	o.issuers.Store(next)
	return nil
}

// hello is what is said of this cluster to its peers.
func (o *own) hello(version string) *wire.Hello {
	return &wire.Hello{Version: version, IssuerList: o.issuers.Load().list, LinkPublicKey: o.linkKey.Public()}
}

// TrustDomain implements signer.Issuer.
func (o *own) TrustDomain() string { return o.trustDomain }

// SignWorkload implements signer.Issuer by the issuer that is current now.
func (o *own) SignWorkload(pub *ecdsa.PublicKey, name identity.Name, now time.Time) ([][]byte, error) {
	return o.issuers.Load().Current.SignWorkload(pub, name, now)
}

// How often the Secret of the issuers is looked at, and while a rotation waits for peers.
const (
	rotatePoll  = 5 * time.Second
	rotateHurry = time.Second
)

// rotator follows the Secret of the issuers in every replica. The leader's decides what
// stands there.
//
//	Secret ─▶ own ─▶ hello to peers, views, signer        (every replica)
//	request, acknowledgements ─▶ rotation.Decide ─▶ Secret, progress      (the leader)
type rotator struct {
	own       *own
	client    client.Client // live
	namespace string
	turned    func()      // own has other issuers
	ready     func() bool // this replica leads, and knows its peers
	acks      func() map[string]uint64
	log       *slog.Logger
	seen      string // version of the Secret that own has
}

func (p *process) rotator() *rotator {
	whole := p.whole
	return &rotator{
		own: p.own, client: p.live, namespace: p.o.Namespace, acks: p.brain.peers.acks, log: p.log,
		turned: func() {
			if err := p.brain.board.SetHello(p.own.hello(p.o.Version)); err != nil {
				p.log.Error("peers are not told of this cluster's issuers", "error", err)
			}
			p.brain.changed()
		},
		ready: func() bool {
			select {
			case <-whole:
				return p.brain.leading.Load()
			default:
				return false
			}
		},
	}
}

// run looks again and again until ctx ends.
func (r *rotator) run(ctx context.Context) error {
	failures := 0
	for {
		wait, err := r.look(ctx, time.Now())
		if err == nil {
			failures = 0
		} else if ctx.Err() == nil {
			complain(ctx, r.log, err, failures)
			failures++
			wait = rotateHurry
			if failures > 3 {
				wait = rotatePoll
			}
		}
		if !backoff.Sleep(ctx, wait) {
			return nil
		}
	}
}

// look follows the Secret, decides if this replica leads, and returns when to look again.
func (r *rotator) look(ctx context.Context, now time.Time) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	key := client.ObjectKey{Namespace: r.namespace, Name: issuerSecret}
	var s corev1.Secret
	err := r.client.Get(ctx, key, &s)
	if apierrors.IsNotFound(err) && r.ready() {
		return 0, r.restore(ctx, key)
	}
	if err != nil {
		return 0, fmt.Errorf("read Secret %v: %w", key, err)
	}
	if err := r.follow(&s); err != nil {
		return 0, err
	}
	if !r.ready() {
		return rotatePoll, nil
	}
	if err := r.decide(ctx, now, &s); err != nil {
		return 0, err
	}
	if have := r.own.issuers.Load(); have.Next != nil {
		return min(rotateHurry, max(0, have.Deadline.Sub(now))), nil
	}
	return rotatePoll, nil
}

// restore makes the Secret that somebody has deleted, as it was.
func (r *rotator) restore(ctx context.Context, key client.ObjectKey) error {
	data, err := r.own.issuers.Load().Marshal()
	if err != nil {
		return fmt.Errorf("restore Secret %v: %w", key, err)
	}
	s := corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name, Labels: map[string]string{v1alpha1.ManagedByLabel: v1alpha1.ManagedBy}},
		Type:       corev1.SecretTypeTLS, Data: data,
	}
	if err := r.client.Create(ctx, &s); err != nil {
		return fmt.Errorf("restore Secret %v, which was deleted: %w", key, err)
	}
	r.log.Warn("the Secret of the issuers was deleted and is restored", "secret", key.String())
	return nil
}

// follow takes in what the Secret says. A number lower than the known one is somebody's
// backup: peers would refuse it.
func (r *rotator) follow(s *corev1.Secret) error {
	if s.ResourceVersion == r.seen {
		return nil
	}
	have := r.own.issuers.Load()
	state, err := rotation.Parse(s.Data, r.own.root.Certificate())
	if err != nil {
		return fmt.Errorf("Secret %s/%s is damaged, and the issuers of before stay in force: %w", s.Namespace, s.Name, err)
	}
	if state.Number < have.Number {
		return fmt.Errorf("Secret %s/%s holds list %d of issuers, older than list %d, which stays in force: was it restored from a backup?",
			s.Namespace, s.Name, state.Number, have.Number)
	}
	if err := r.own.adopt(state); err != nil {
		return fmt.Errorf("Secret %s/%s: %w", s.Namespace, s.Name, err)
	}
	r.seen = s.ResourceVersion
	if state.Number != have.Number || !state.Current.Certificate().Equal(have.Current.Certificate()) {
		r.turned()
	}
	return nil
}

// decide writes the Secret as it must be now, and tells how far that is.
func (r *rotator) decide(ctx context.Context, now time.Time, s *corev1.Secret) error {
	key := client.ObjectKey{Namespace: r.namespace, Name: IdentityConfigMap}
	var cm corev1.ConfigMap
	if err := r.client.Get(ctx, key, &cm); err != nil {
		return fmt.Errorf("read ConfigMap %v: %w", key, err)
	}
	request, fault := rotation.ParseRequest(cm.Annotations[rotation.RequestAnnotation])
	acks, have := r.acks(), r.own.issuers.Load()
	next, changed, err := rotation.Decide(now, have.State, acks, request, func() (*identity.Issuer, error) { return r.own.root.NewIssuer(now) })
	if err != nil {
		return fmt.Errorf("rotate the issuer: %w", err)
	}
	if changed {
		if err := r.write(ctx, s, next); err != nil {
			return err
		}
		r.log.Info("this cluster's issuers have changed", "list", next.Number, "listed", len(next.Listed()),
			"announced", next.Next != nil, "revoked", request.Revoke && next.Request != have.Request)
	}
	said := rotation.Tell(next, acks, fault).String()
	if cm.Annotations[rotation.ProgressAnnotation] == said {
		return nil
	}
	cm.Annotations = maps.Clone(cm.Annotations)
	if cm.Annotations == nil {
		cm.Annotations = make(map[string]string)
	}
	cm.Annotations[rotation.ProgressAnnotation] = said
	if err := r.client.Update(ctx, &cm); err != nil {
		return fmt.Errorf("tell the progress of the rotation in ConfigMap %v: %w", key, err)
	}
	return nil
}

// write replaces the Secret, unless somebody else has meanwhile, and puts next in force.
func (r *rotator) write(ctx context.Context, s *corev1.Secret, next rotation.State) error {
	data, err := next.Marshal()
	if err == nil {
		s = s.DeepCopy()
		s.Data = data
		err = r.client.Update(ctx, s)
	}
	if err != nil {
		return fmt.Errorf("keep this cluster's issuers in Secret %s/%s: %w", s.Namespace, s.Name, err)
	}
	return r.follow(s)
}

// acks are the numbers of the newest lists of our issuers that peers say to have, by Link.
func (p *peers) acks() map[string]uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make(map[string]uint64, len(p.links))
	for name, s := range p.links {
		out[name] = s.trusts
	}
	return out
}

// acked takes in what a peer says to have of our issuers.
func (p *peers) acked(s *peerState, number uint64) {
	p.mu.Lock()
	known := number <= s.trusts
	p.mu.Unlock()
	if !known {
		p.note(s, func() { s.trusts = max(s.trusts, number) })
	}
}

// Trusts implements wire.Sink.
func (o *outboundSink) Trusts(_ string, number uint64) { o.p.acked(o.s, number) }

// Trusts implements wire.Sink.
func (i inboundSink) Trusts(link string, number uint64) {
	i.p.mu.Lock()
	s := i.p.links[link]
	if g, ok := i.p.dialed[link]; ok {
		g.trusts = max(g.trusts, number)
		i.p.dialed[link] = g
	}
	i.p.mu.Unlock()
	if s != nil {
		i.p.acked(s, number)
	}
}
