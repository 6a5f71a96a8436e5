package controller

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/invite"
	joinwire "github.com/causeway-mesh/causeway/internal/invite/wire"
	"github.com/causeway-mesh/causeway/internal/link"
	"github.com/causeway-mesh/causeway/internal/nodestream/view"
)

// inviter answers clusters that come by an invite. Every replica has one: what they
// do at the same time the API server's compare-and-swap keeps apart.
//
//	gateway ─▶ hopListener.joins ─▶ handle: Secret, proof ─▶ invite.Decide ─▶ one step ─▶ invite.Decide …
type inviter struct {
	client    client.Client // reads live: an invite may be a second old, and a Link too
	namespace string
	version   string
	own       link.Own
	linkKey   []byte
	events    events.EventRecorder
}

// maxSteps bounds the steps of one call, conflicts with other replicas included.
const maxSteps = 8

// handle is a joinwire.Handle.
func (i *inviter) handle(ctx context.Context, call *joinwire.Call) (*joinwire.Answer, invite.Secret, error) {
	inv, secret, err := i.find(ctx, call.Invite)
	if err != nil {
		return nil, secret, err
	}
	if !call.Proves(secret) {
		return nil, secret, invite.Refuse(invite.BadProof, "the token is not the newest one for this name: ask for a new one")
	}
	if err := i.join(ctx, inv, call.Asker()); err != nil {
		return nil, secret, err
	}
	return &joinwire.Answer{Version: i.version, LinkPublicKey: i.linkKey}, secret, nil
}

// find reads an Invite and its secret.
func (i *inviter) find(ctx context.Context, name string) (*v1alpha1.Invite, invite.Secret, error) {
	var inv v1alpha1.Invite
	if !invite.IsName(name) {
		return nil, invite.Secret{}, invite.Refuse(invite.Unknown, "the token names no invite")
	}
	err := i.client.Get(ctx, client.ObjectKey{Namespace: i.namespace, Name: name}, &inv)
	if apierrors.IsNotFound(err) {
		return nil, invite.Secret{}, invite.Refuse(invite.Unknown, "the invite was taken back: ask for a new one")
	}
	if err != nil {
		return nil, invite.Secret{}, fmt.Errorf("read Invite %s: %w", name, err)
	}
	secret, err := readInviteSecret(ctx, i.client, &inv)
	return &inv, secret, err
}

// readInviteSecret reads the Secret beside an Invite, which must be of this very one.
func readInviteSecret(ctx context.Context, c client.Reader, inv *v1alpha1.Invite) (invite.Secret, error) {
	var s corev1.Secret
	key := client.ObjectKey{Namespace: inv.Namespace, Name: invite.SecretName(inv.Name)}
	if err := c.Get(ctx, key, &s); err != nil {
		return invite.Secret{}, fmt.Errorf("read the secret of Invite %s: %w", inv.Name, err)
	}
	if !ownedBy(&s, inv.UID) {
		return invite.Secret{}, fmt.Errorf("Secret %v is of another Invite of this name: `causeway invite delete %s`, and invite anew", key, inv.Name)
	}
	secret, err := invite.ParseSecret(s.Data[invite.SecretKey])
	if err != nil {
		return invite.Secret{}, fmt.Errorf("Secret %v: %w", key, err)
	}
	return secret, nil
}

func ownedBy(o metav1.Object, uid types.UID) bool {
	for _, r := range o.GetOwnerReferences() {
		if r.UID == uid {
			return true
		}
	}
	return false
}

// join takes the steps that Decide names until the Link stands. Whatever breaks it
// off, the next call goes on from there.
func (i *inviter) join(ctx context.Context, inv *v1alpha1.Invite, asker invite.Asker) error {
	for range maxSteps {
		var links v1alpha1.LinkList
		if err := i.client.List(ctx, &links); err != nil {
			return fmt.Errorf("list Links: %w", err)
		}
		step, refusal := invite.Decide(inv, asker, i.own, links.Items, time.Now())
		if refusal != nil {
			return errors.Join(refusal, i.tell(ctx, inv, asker, refusal))
		}
		if step == invite.Done {
			return nil
		}
		if err := i.take(ctx, step, inv, asker); err != nil && !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
			return err
		}
		if err := i.client.Get(ctx, client.ObjectKeyFromObject(inv), inv); err != nil {
			return fmt.Errorf("read Invite %s: %w", inv.Name, err)
		}
	}
	return fmt.Errorf("Invite %s: too many write to it at once", inv.Name)
}

// take takes one step. A conflict says that another replica was first.
func (i *inviter) take(ctx context.Context, step invite.Step, inv *v1alpha1.Invite, asker invite.Asker) error {
	switch step {
	case invite.Bind:
		return i.swap(ctx, inv, invite.Bound(inv, asker))
	case invite.Note:
		if err := i.swap(ctx, inv, invite.Noted(inv)); err != nil {
			return err
		}
		i.events.Eventf(inv, nil, corev1.EventTypeNormal, "Joined", "Joining", "cluster of trust domain %s joined from %s: Link %s stands", asker.TrustDomain, asker.Address, inv.Name)
		return nil
	}
	err := i.client.Create(ctx, invite.Link(inv, asker))
	if apierrors.IsInvalid(err) {
		return invite.Refuse(invite.BadRequest, "what the cluster says of itself makes no Link")
	}
	if err != nil {
		return fmt.Errorf("make Link %s: %w", inv.Name, err)
	}
	return nil
}

// swap writes a status if nobody has written another since inv was read.
func (i *inviter) swap(ctx context.Context, inv *v1alpha1.Invite, status v1alpha1.InviteStatus) error {
	updated := inv.DeepCopy()
	updated.Status = status
	if err := i.client.Status().Update(ctx, updated); err != nil {
		return fmt.Errorf("write the status of Invite %s: %w", inv.Name, err)
	}
	return nil
}

// tell notes a refusal where the inviter's people see it, once for each cluster and reason.
func (i *inviter) tell(ctx context.Context, inv *v1alpha1.Invite, asker invite.Asker, r *invite.Refusal) error {
	for range maxSteps {
		status, fresh := invite.Refused(inv, asker, r)
		if !fresh {
			return nil
		}
		err := i.swap(ctx, inv, status)
		if err == nil {
			i.events.Eventf(inv, nil, corev1.EventTypeWarning, string(r.Reason), "Joining", "refused a cluster of trust domain %s from %s: %s", asker.TrustDomain, asker.Address, r.Message)
			return nil
		}
		if !apierrors.IsConflict(err) {
			return client.IgnoreNotFound(err)
		}
		if err := i.client.Get(ctx, client.ObjectKeyFromObject(inv), inv); err != nil {
			return client.IgnoreNotFound(err)
		}
	}
	return nil
}

// secretRetry is how soon the Secret of a new Invite or Join is looked for again: the command makes it right after.
const secretRetry = 500 * time.Millisecond

// awaitSecret is how soon the Secret of an object of that age is looked for again: one that is late does not come.
func awaitSecret(age time.Duration) time.Duration { return max(secretRetry, age/8) }

// invitations are the open invites, as gateways must know them. They say when to
// think again. A secret is read once.
func (b *brain) invitations(ctx context.Context, t *thought) (out []view.Invite) {
	keys := make(map[types.UID][32]byte)
	soon := func(d time.Duration) {
		if b.again == 0 || d < b.again {
			b.again = d
		}
	}
	for i := range t.invites {
		inv := &t.invites[i]
		until, open := invite.Open(inv, t.now)
		if !open {
			continue
		}
		soon(until.Sub(t.now))
		if left := invite.Expires(inv).Sub(t.now); left > 0 {
			soon(left)
		}
		key, known := b.inviteKeys[inv.UID]
		if !known {
			reading, cancel := context.WithTimeout(ctx, 5*time.Second)
			secret, err := readInviteSecret(reading, b.cache, inv)
			cancel()
			b.grumble("an invite has no secret yet", inv.Name, err)
			if err != nil {
				soon(awaitSecret(t.now.Sub(inv.CreationTimestamp.Time)))
				continue
			}
			key = secret.LabelKey()
		}
		keys[inv.UID] = key
		out = append(out, view.Invite{Name: inv.Name, UID: string(inv.UID), LabelKey: key, Until: until})
	}
	b.inviteKeys = keys
	return out
}

// keepInvites keeps Invites' states by the clock, and throws away what nobody needs
// to see any more. Kubernetes collects the Secrets with them.
func (l *leader) keepInvites(ctx context.Context, invites []v1alpha1.Invite, joins []v1alpha1.Join, now time.Time) error {
	var errs []error
	for i := range invites {
		inv := &invites[i]
		if invite.Over(invite.Expires(inv), now) {
			errs = append(errs, l.drop(ctx, inv, inv.UID))
			continue
		}
		status, differs := invite.Aged(inv, now)
		if !differs || inv.DeletionTimestamp != nil {
			continue
		}
		updated := inv.DeepCopy()
		updated.Status = status
		if err := l.client.Status().Update(ctx, updated); client.IgnoreNotFound(err) != nil {
			errs = append(errs, fmt.Errorf("write the status of Invite %s: %w", inv.Name, err))
		}
	}
	for i := range joins {
		if j := &joins[i]; invite.Over(j.CreationTimestamp.Add(invite.Lifetime), now) {
			errs = append(errs, l.drop(ctx, j, j.UID))
		}
	}
	return errors.Join(errs...)
}

func (l *leader) drop(ctx context.Context, o client.Object, uid types.UID) error {
	err := l.client.Delete(ctx, o, client.Preconditions{UID: &uid}, client.PropagationPolicy(metav1.DeletePropagationBackground))
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete %T %s: %w", o, o.GetName(), err)
	}
	return nil
}
