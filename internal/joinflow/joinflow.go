// Package joinflow links two clusters by an invite: it serves clusters that come with a
// token, uses the tokens that are given to this cluster, and tells gateways which invites
// are open.
//
//	inviting cluster                                  joining cluster
//	Invite + Secret ─▶ Keys ─▶ gateways open labels   Join + Secret ─▶ Joiner ─┐
//	gateway ─▶ Server ◀────────── one exchange ────────────────────────────────┘
//	             └─▶ invite.Decide ─▶ Link            Link ◀─ token.Fits ◀─ answer
//
// What always holds:
//   - Every replica serves invites. Writes are compare-and-swap, so that concurrent calls
//     at two replicas bind an invite to one cluster only.
//   - Only the leader uses tokens and expires invites.
//   - A process that ends between two writes leaves a state from which the same joining
//     cluster, and no other, can continue.
//   - Keys.Open never blocks: Secrets are read in Keys.Run.
package joinflow

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/clusterid"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/invite"
	"github.com/causeway-mesh/causeway/internal/kube"
	"github.com/causeway-mesh/causeway/internal/link"
)

// Config holds what Server and Joiner need. Every field is required, unless it says
// otherwise.
type Config struct {
	// Client reads without a cache: an invite may be a second old, and a Link too.
	Client client.Client
	// Namespace is Causeway's own namespace, which holds Invites and Joins.
	Namespace string
	// Version is what this cluster reports to the other one.
	Version  string
	Identity *clusterid.Identity
	// KeyExchange is what Joiner offers to inviters.
	KeyExchange identity.KeyExchange
	// Dial opens a connection to a gateway address. Only Joiner uses it.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// Events receives the Events of invites. Only Server uses it.
	Events events.EventRecorder
	Log    *slog.Logger
}

// own is this cluster's public half, against which Links are judged.
func (c *Config) own() link.Own {
	key, err := link.ParseKey(c.Identity.LinkKey().Public())
	if err != nil {
		panic(fmt.Sprintf("joinflow: this cluster's own link key: %v", err)) // Load parsed it
	}
	return link.Own{TrustDomain: c.Identity.TrustDomain(), LinkKey: key}
}

// readInviteSecret reads the Secret of an Invite. A Secret that belongs to an earlier
// Invite of the same name is an error.
func readInviteSecret(ctx context.Context, c client.Reader, inv *v1alpha1.Invite) (invite.Secret, error) {
	var s corev1.Secret
	key := client.ObjectKey{Namespace: inv.Namespace, Name: invite.SecretName(inv.Name)}
	if err := c.Get(ctx, key, &s); err != nil {
		return invite.Secret{}, fmt.Errorf("read the Secret of Invite %s: %w", inv.Name, err)
	}
	if !kube.OwnedBy(&s, inv.UID) {
		return invite.Secret{}, fmt.Errorf("Secret %v belongs to another Invite of this name: "+
			"run `causeway invite delete %s`, then create the invite again", key, inv.Name)
	}
	secret, err := invite.ParseSecret(s.Data[invite.SecretKey])
	if err != nil {
		return invite.Secret{}, fmt.Errorf("parse Secret %v: %w", key, err)
	}
	return secret, nil
}

// minSecretRetry is how soon the Secret of a new Invite or Join is read again. The
// command creates the Secret right after the object.
const minSecretRetry = 500 * time.Millisecond

// secretRetry is how soon the Secret of an object of that age is read again. The longer
// it has been missing, the less likely it is to appear.
func secretRetry(age time.Duration) time.Duration { return max(minSecretRetry, age/8) }

// Maintain moves the state of Invites on as time passes, and deletes Invites and Joins
// that no longer matter to a person. Their Secrets are garbage collected with them. Only
// the leader calls it. c may read from a cache.
func Maintain(ctx context.Context, c client.Client, invites []*v1alpha1.Invite, joins []*v1alpha1.Join,
	now time.Time) error {
	var errs []error
	for _, inv := range invites {
		if invite.CanDelete(invite.Expires(inv), now) {
			errs = append(errs, remove(ctx, c, inv, inv.UID))
			continue
		}
		status, differs := invite.StatusAt(inv, now)
		if !differs || inv.DeletionTimestamp != nil {
			continue
		}
		updated := inv.DeepCopy()
		updated.Status = status
		if err := c.Status().Update(ctx, updated); client.IgnoreNotFound(err) != nil {
			errs = append(errs, fmt.Errorf("write the status of Invite %s: %w", inv.Name, err))
		}
	}
	for _, j := range joins {
		if invite.CanDelete(j.CreationTimestamp.Add(invite.Lifetime), now) {
			errs = append(errs, remove(ctx, c, j, j.UID))
		}
	}
	return errors.Join(errs...)
}

func remove(ctx context.Context, c client.Client, o client.Object, uid types.UID) error {
	err := c.Delete(ctx, o, client.Preconditions{UID: &uid},
		client.PropagationPolicy(metav1.DeletePropagationBackground))
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete %T %s: %w", o, o.GetName(), err)
	}
	return nil
}

// isLostRace reports whether another replica wrote first.
func isLostRace(err error) bool { return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) }
