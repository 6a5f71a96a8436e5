package clusterid

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/rotation"
)

const (
	// pollInterval is how often the Secrets are read.
	pollInterval = 5 * time.Second
	// rotatingPollInterval is how often they are read while a rotation waits for peers,
	// and after an error.
	rotatingPollInterval = time.Second
	// fastRetries is how many errors in a row are retried at rotatingPollInterval.
	fastRetries = 3
	// stepTimeout bounds one pass.
	stepTimeout = 10 * time.Second
)

// RotatorConfig holds a Rotator's collaborators. All are required.
type RotatorConfig struct {
	Identity *Identity
	// Client reads without a cache: a pass must see the Secrets as they are.
	Client client.Client
	// IsLeader reports whether this replica leads and knows which peers exist.
	IsLeader func() bool
	// Acknowledged returns, by Link, the newest list of issuers that each peer has
	// applied.
	Acknowledged func() map[string]uint64
	// OnChange is called after another snapshot came into force.
	OnChange func()
	Events   events.EventRecorder
	Log      *slog.Logger
}

// Rotator follows the Secrets of roots and issuers in every replica. In the leader it
// also decides what they hold.
//
// The leader writes roots before issuers and reads them after, so that every reader knows
// the root of each issuer. A process that ends between the two writes leaves a state from
// which the next pass continues.
type Rotator struct {
	c RotatorConfig

	adopted       [2]string // resource versions of the Secrets that are in force
	reportedFault string    // the fault of the CA Secret that was last reported
}

// NewRotator returns a Rotator that does nothing until Run or Step.
func NewRotator(c RotatorConfig) *Rotator { return &Rotator{c: c} }

// Run rotates until ctx ends. It returns nil.
func (r *Rotator) Run(ctx context.Context) error {
	for failures := 0; ; {
		wait, err := r.Step(ctx, time.Now())
		if err == nil {
			failures = 0
		} else if ctx.Err() == nil {
			r.logFailure(ctx, err, failures)
			failures++
			wait = rotatingPollInterval
			if failures > fastRetries {
				wait = pollInterval
			}
		}
		if !backoff.Sleep(ctx, wait) {
			return nil
		}
	}
}

// logFailure logs the first of a series of failures. Write conflicts between replicas are
// routine and logged at debug level only.
func (r *Rotator) logFailure(ctx context.Context, err error, failures int) {
	level := slog.LevelWarn
	if failures > 0 || apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
		level = slog.LevelDebug
	}
	r.c.Log.Log(ctx, level, "certificate rotation failed; will retry", "error", err)
}

// Step performs one pass: it adopts what the Secrets hold and, in the leader, decides
// what they must hold. It returns how long to wait before the next pass. It must not be
// called concurrently.
func (r *Rotator) Step(ctx context.Context, now time.Time) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	stored, err := r.read(ctx)
	if err != nil {
		return 0, err
	}
	leader := r.c.IsLeader()
	// A leader that cannot write still adopts a valid state. Only a state that needs the
	// leader's own write to become valid has to wait for it.
	if !leader || stored.roots.Trusts(stored.state) {
		if err := r.adopt(stored); err != nil {
			return 0, err
		}
	}
	if leader {
		if err := r.decide(ctx, now, stored); err != nil {
			return 0, err
		}
	}
	have := r.c.Identity.Issuers()
	wait := pollInterval
	if have.state.Next != nil {
		wait = min(wait, rotatingPollInterval, max(0, have.state.Deadline.Sub(now)))
	}
	if have.roots.Next != nil {
		wait = min(wait, rotatingPollInterval, max(0, have.roots.Deadline.Sub(now)))
	}
	return wait, nil
}

// storedState is what the two Secrets hold.
type storedState struct {
	issuerSecret, rootSecret corev1.Secret
	state                    rotation.State
	roots                    rotation.Roots
}

func (s *storedState) versions() [2]string {
	return [2]string{s.issuerSecret.ResourceVersion, s.rootSecret.ResourceVersion}
}

// read returns what the Secrets hold. In the leader it restores those that were deleted.
// It refuses a state older than the one in force, because peers would refuse it too.
func (r *Rotator) read(ctx context.Context) (*storedState, error) {
	s, have := &storedState{}, r.c.Identity.Issuers()
	for _, secret := range []struct {
		name string
		into *corev1.Secret
		data func() (map[string][]byte, error)
	}{
		{issuerSecret, &s.issuerSecret, have.state.Marshal},
		{rootSecret, &s.rootSecret, have.roots.Marshal},
	} {
		key := r.c.Identity.secretKey(secret.name)
		err := r.c.Client.Get(ctx, key, secret.into)
		if apierrors.IsNotFound(err) && r.c.IsLeader() {
			err = r.restore(ctx, key, secret.into, secret.data)
		}
		if err != nil {
			return nil, fmt.Errorf("read Secret %v: %w", key, err)
		}
	}
	if s.versions() == r.adopted {
		s.state, s.roots = have.state, have.roots
		return s, nil
	}
	return s, r.parse(s, have)
}

// parse fills in what the Secrets of s hold, if that may replace have.
func (r *Rotator) parse(s *storedState, have *Snapshot) (err error) {
	roots, issuers := r.c.Identity.secretKey(rootSecret), r.c.Identity.secretKey(issuerSecret)
	if s.roots, err = rotation.ParseRoots(s.rootSecret.Data); err != nil {
		return fmt.Errorf("Secret %v is damaged; keeping the current root: %w", roots, err)
	}
	if s.state, err = rotation.Parse(s.issuerSecret.Data, s.roots.Known()...); err != nil {
		return fmt.Errorf("Secret %v is damaged; keeping the current issuers: %w", issuers, err)
	}
	if s.state.Number < have.Number() {
		return fmt.Errorf("Secret %v holds list %d of issuers, which is older than list %d in force: "+
			"check whether it was restored from a backup", issuers, s.state.Number, have.Number())
	}
	if s.roots.Generation < have.RootGeneration() {
		return fmt.Errorf("Secret %v holds generation %d of the root, which is older than %d in force: "+
			"check whether it was restored from a backup", roots, s.roots.Generation, have.RootGeneration())
	}
	return nil
}

// restore creates a deleted Secret again from what is in force.
func (r *Rotator) restore(ctx context.Context, key client.ObjectKey, into *corev1.Secret,
	data func() (map[string][]byte, error)) error {
	have, err := data()
	if err != nil {
		return fmt.Errorf("restore the deleted Secret: %w", err)
	}
	*into = corev1.Secret{ObjectMeta: managedMeta(key), Type: corev1.SecretTypeTLS, Data: have}
	if err := r.c.Client.Create(ctx, into); err != nil {
		return fmt.Errorf("restore the deleted Secret: %w", err)
	}
	r.c.Log.Warn("restored a deleted Secret of this cluster's identity", "secret", key.String())
	return nil
}

// adopt puts in force what the Secrets hold.
func (r *Rotator) adopt(s *storedState) error {
	if s.versions() == r.adopted {
		return nil
	}
	id := r.c.Identity
	if !s.roots.Trusts(s.state) {
		return fmt.Errorf("Secret %v still holds issuers of a revoked root: "+
			"waiting for the leader to replace them", id.secretKey(issuerSecret))
	}
	before := id.Issuers()
	if err := id.adopt(s.roots, s.state); err != nil {
		return fmt.Errorf("adopt Secrets %v and %v: %w",
			id.secretKey(rootSecret), id.secretKey(issuerSecret), err)
	}
	r.adopted = s.versions()
	after := id.Issuers()
	if after.Number() != before.Number() || !after.Issuer().Equal(before.Issuer()) ||
		after.RootGeneration() != before.RootGeneration() {
		r.c.OnChange()
	}
	return nil
}

// decide writes the Secrets as they must be now, adopts the result, and reports the
// progress of a requested rotation in the ConfigMap.
func (r *Rotator) decide(ctx context.Context, now time.Time, s *storedState) error {
	key := r.c.Identity.secretKey(clusterinfo.IdentityConfigMap)
	var cm corev1.ConfigMap
	if err := r.c.Client.Get(ctx, key, &cm); err != nil {
		return fmt.Errorf("read ConfigMap %v: %w", key, err)
	}
	request, requestFault := rotation.ParseRequest(cm.Annotations[rotation.RequestAnnotation])
	acknowledged := r.c.Acknowledged()
	rootFault, err := r.decideRoots(ctx, now, s, acknowledged, request)
	if err != nil {
		return err
	}
	if err := r.decideIssuers(ctx, now, s, acknowledged, request.ForIssuers(s.roots)); err != nil {
		return err
	}
	if err := r.adopt(s); err != nil {
		return err
	}
	progress := rotation.ProgressOf(s.state, s.roots, acknowledged,
		errors.Join(requestFault, rootFault)).String()
	if cm.Annotations[rotation.ProgressAnnotation] == progress {
		return nil
	}
	cm.Annotations = maps.Clone(cm.Annotations)
	if cm.Annotations == nil {
		cm.Annotations = make(map[string]string)
	}
	cm.Annotations[rotation.ProgressAnnotation] = progress
	if err := r.c.Client.Update(ctx, &cm); err != nil {
		return fmt.Errorf("report the progress of the rotation in ConfigMap %v: %w", key, err)
	}
	return nil
}

// decideRoots writes the roots as they must be now. fault says why a wanted change is not
// possible; it does not stop the rotation of issuers.
func (r *Rotator) decideRoots(ctx context.Context, now time.Time, s *storedState,
	acknowledged map[string]uint64, request rotation.Request) (fault, err error) {
	from, caFault := r.rootSource(ctx, now, s.roots)
	r.reportCAFault(caFault)
	next, changed, fault := rotation.DecideRoots(now, s.roots, s.state, acknowledged, request, from)
	if fault != nil || !changed {
		return errors.Join(caFault, fault), nil
	}
	if err := r.write(ctx, &s.rootSecret, next.Marshal); err != nil {
		return nil, fmt.Errorf("write the root to Secret %v: %w", r.c.Identity.secretKey(rootSecret), err)
	}
	s.roots = next
	r.c.Log.Info("root rotation advanced", "generation", next.Generation, "announced", next.Next != nil,
		"retired", next.Retired != nil, "revoked", next.RetiredRevoked)
	return caFault, nil
}

// decideIssuers writes the issuers as they must be now.
func (r *Rotator) decideIssuers(ctx context.Context, now time.Time, s *storedState,
	acknowledged map[string]uint64, request rotation.Request) error {
	next, changed, err := rotation.Decide(now, s.state, s.roots, acknowledged, request)
	if err != nil {
		return fmt.Errorf("rotate the issuer: %w", err)
	}
	if !changed {
		return nil
	}
	if err := r.write(ctx, &s.issuerSecret, next.Marshal); err != nil {
		return fmt.Errorf("write the issuers to Secret %v: %w", r.c.Identity.secretKey(issuerSecret), err)
	}
	r.c.Log.Info("issuer rotation advanced", "list", next.Number, "listed", len(next.Listed()),
		"announced", next.Next != nil, "revoked", request.Revoke && next.Request != s.state.Request)
	s.state = next
	return nil
}

// write replaces the data of a Secret. It fails with a conflict if the Secret has changed
// since it was read.
func (r *Rotator) write(ctx context.Context, s *corev1.Secret, data func() (map[string][]byte, error)) error {
	have, err := data()
	if err != nil {
		return err
	}
	next := s.DeepCopy()
	next.Data = have
	if err := r.c.Client.Update(ctx, next); err != nil {
		return err
	}
	*s = *next
	return nil
}
