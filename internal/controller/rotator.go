package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/rotation"
)

// How often the Secret of the issuers is looked at, and while a rotation waits for peers.
const (
	rotatePoll  = 5 * time.Second
	rotateHurry = time.Second
)

// rotator follows the Secrets of roots and issuers in every replica. The leader's decides
// what stands there.
//
//	Secrets ─▶ own ─▶ hello to peers, views, signer, own certificate        (every replica)
//	request, acknowledgements ─▶ rotation.DecideRoots, Decide ─▶ Secrets, progress   (the leader)
//
// Roots are written before issuers, and read after them, so that whoever reads knows the
// root of each issuer. Ending between the two writes leaves what the next look goes on from.
type rotator struct {
	own       *own
	client    client.Client // live
	namespace string
	turned    func()      // own has others
	ready     func() bool // this replica leads, and knows its peers
	acks      func() map[string]uint64
	events    events.EventRecorder
	log       *slog.Logger
	seen      [2]string // versions of the Secrets that own has
	// caSecret is where somebody else keeps the root; empty: nowhere. complained is what was
	// last said of it.
	caSecret, complained string
}

// kept is what the two Secrets hold.
type kept struct {
	issuers, roots corev1.Secret
	state          rotation.State
	rooted         rotation.Roots
}

func (p *process) rotator() *rotator {
	whole := p.whole
	return &rotator{
		own: p.own, client: p.live, namespace: p.o.Namespace, acks: p.brain.peers.acks, log: p.log,
		events: p.brain.leader.events, caSecret: p.o.CASecret,
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

// look follows the Secrets, decides if this replica leads, and returns when to look again.
func (r *rotator) look(ctx context.Context, now time.Time) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	k, err := r.read(ctx)
	if err != nil {
		return 0, err
	}
	leads := r.ready()
	// What stands there is in force, also for a leader that may not write, unless only its writing makes it right.
	if !leads || k.rooted.Honours(k.state) {
		if err := r.follow(k); err != nil {
			return 0, err
		}
	}
	if leads {
		if err := r.decide(ctx, now, k); err != nil {
			return 0, err
		}
	}
	have := r.own.issuers.Load()
	wait := rotatePoll
	if have.Next != nil {
		wait = min(wait, rotateHurry, max(0, have.Deadline.Sub(now)))
	}
	if have.roots.Next != nil {
		wait = min(wait, rotateHurry, max(0, have.roots.Deadline.Sub(now)))
	}
	return wait, nil
}

// read returns what the Secrets hold. The leader makes those anew that somebody has deleted.
// What is older than what is in force is somebody's backup: peers would refuse it.
func (r *rotator) read(ctx context.Context) (*kept, error) {
	k, have := &kept{}, r.own.issuers.Load()
	for _, s := range []struct {
		name string
		into *corev1.Secret
		data func() (map[string][]byte, error)
	}{{issuerSecret, &k.issuers, have.State.Marshal}, {rootSecret, &k.roots, have.roots.Marshal}} {
		key := client.ObjectKey{Namespace: r.namespace, Name: s.name}
		err := r.client.Get(ctx, key, s.into)
		if apierrors.IsNotFound(err) && r.ready() {
			err = r.restore(ctx, key, s.into, s.data)
		}
		if err != nil {
			return nil, fmt.Errorf("read Secret %v: %w", key, err)
		}
	}
	if k.versions() == r.seen {
		k.state, k.rooted = have.State, have.roots
		return k, nil
	}
	var err error
	if k.rooted, err = rotation.ParseRoots(k.roots.Data); err != nil {
		return nil, fmt.Errorf("Secret %s/%s is damaged, and the root of before stays in force: %w", r.namespace, rootSecret, err)
	}
	if k.state, err = rotation.Parse(k.issuers.Data, k.rooted.Known()...); err != nil {
		return nil, fmt.Errorf("Secret %s/%s is damaged, and the issuers of before stay in force: %w", r.namespace, issuerSecret, err)
	}
	if k.state.Number < have.Number {
		return nil, fmt.Errorf("Secret %s/%s holds list %d of issuers, older than list %d, which stays in force: was it restored from a backup?",
			r.namespace, issuerSecret, k.state.Number, have.Number)
	}
	if k.rooted.Generation < have.roots.Generation {
		return nil, fmt.Errorf("Secret %s/%s holds generation %d of the root, older than %d, which stays in force: was it restored from a backup?",
			r.namespace, rootSecret, k.rooted.Generation, have.roots.Generation)
	}
	return k, nil
}

func (k *kept) versions() [2]string {
	return [2]string{k.issuers.ResourceVersion, k.roots.ResourceVersion}
}

// restore makes a Secret that somebody has deleted, as it was.
func (r *rotator) restore(ctx context.Context, key client.ObjectKey, into *corev1.Secret, data func() (map[string][]byte, error)) error {
	have, err := data()
	if err != nil {
		return fmt.Errorf("restore it: %w", err)
	}
	*into = corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name, Labels: map[string]string{v1alpha1.ManagedByLabel: v1alpha1.ManagedBy}},
		Type:       corev1.SecretTypeTLS, Data: have,
	}
	if err := r.client.Create(ctx, into); err != nil {
		return fmt.Errorf("restore it, since it was deleted: %w", err)
	}
	r.log.Warn("a Secret of this cluster's identity was deleted and is restored", "secret", key.String())
	return nil
}

// follow puts in force what the Secrets hold.
func (r *rotator) follow(k *kept) error {
	if k.versions() == r.seen {
		return nil
	}
	if !k.rooted.Honours(k.state) {
		return fmt.Errorf("the root was revoked, and its issuers stand in Secret %s/%s until the leader has replaced them", r.namespace, issuerSecret)
	}
	have := r.own.issuers.Load()
	if err := r.own.adopt(k.rooted, k.state); err != nil {
		return fmt.Errorf("Secrets %s and %s in %s: %w", rootSecret, issuerSecret, r.namespace, err)
	}
	r.seen = k.versions()
	if k.state.Number != have.Number || !k.state.Current.Certificate().Equal(have.Current.Certificate()) || k.rooted.Generation != have.roots.Generation {
		r.turned()
	}
	return nil
}

// decide writes the Secrets as they must be now, puts that in force, and tells how far it is.
func (r *rotator) decide(ctx context.Context, now time.Time, k *kept) error {
	key := client.ObjectKey{Namespace: r.namespace, Name: IdentityConfigMap}
	var cm corev1.ConfigMap
	if err := r.client.Get(ctx, key, &cm); err != nil {
		return fmt.Errorf("read ConfigMap %v: %w", key, err)
	}
	request, fault := rotation.ParseRequest(cm.Annotations[rotation.RequestAnnotation])
	acks := r.acks()
	rootFault, err := r.decideRoots(ctx, now, k, acks, request)
	if err != nil {
		return err
	}
	if err := r.decideIssuers(ctx, now, k, acks, request.ForIssuers(k.rooted)); err != nil {
		return err
	}
	if err := r.follow(k); err != nil {
		return err
	}
	said := rotation.Tell(k.state, k.rooted, acks, errors.Join(fault, rootFault)).String()
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

// decideRoots writes the roots as they must be now. fault is why they stay as they are,
// which keeps nobody from rotating the issuer.
func (r *rotator) decideRoots(ctx context.Context, now time.Time, k *kept, acks map[string]uint64, request rotation.Request) (fault, err error) {
	from, notTaken := r.source(ctx, now, k.rooted)
	r.complain(notTaken)
	next, changed, fault := rotation.DecideRoots(now, k.rooted, k.state, acks, request, from)
	if fault != nil || !changed {
		return errors.Join(notTaken, fault), nil
	}
	if err := r.write(ctx, &k.roots, next.Marshal); err != nil {
		return nil, fmt.Errorf("keep this cluster's root in Secret %s/%s: %w", r.namespace, rootSecret, err)
	}
	k.rooted = next
	r.log.Info("this cluster's root has changed, or is about to", "generation", next.Generation, "announced", next.Next != nil,
		"former", next.Former != nil, "revoked", next.Disowned)
	return notTaken, nil
}

// decideIssuers writes the issuers as they must be now.
func (r *rotator) decideIssuers(ctx context.Context, now time.Time, k *kept, acks map[string]uint64, request rotation.Request) error {
	next, changed, err := rotation.Decide(now, k.state, k.rooted, acks, request)
	if err != nil {
		return fmt.Errorf("rotate the issuer: %w", err)
	}
	if !changed {
		return nil
	}
	if err := r.write(ctx, &k.issuers, next.Marshal); err != nil {
		return fmt.Errorf("keep this cluster's issuers in Secret %s/%s: %w", r.namespace, issuerSecret, err)
	}
	r.log.Info("this cluster's issuers have changed", "list", next.Number, "listed", len(next.Listed()),
		"announced", next.Next != nil, "revoked", request.Revoke && next.Request != k.state.Request)
	k.state = next
	return nil
}

// write replaces a Secret, unless somebody else has meanwhile.
func (r *rotator) write(ctx context.Context, s *corev1.Secret, data func() (map[string][]byte, error)) error {
	have, err := data()
	if err != nil {
		return err
	}
	next := s.DeepCopy()
	next.Data = have
	if err := r.client.Update(ctx, next); err != nil {
		return err
	}
	*s = *next
	return nil
}
