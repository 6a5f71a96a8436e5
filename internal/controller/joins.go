package controller

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/dataplane/home"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/invite"
	joinwire "github.com/causeway-mesh/causeway/internal/invite/wire"
	"github.com/causeway-mesh/causeway/internal/link"
)

// joiner uses the tokens that people bring. Only the leader does.
//
//	Join ─ Secret ─▶ Token.Check ─▶ a gateway of the inviter ─▶ joinwire.Ask ─▶ Token.Fits ─▶ Link ─▶ Join's status
type joiner struct {
	client     client.Client // reads live
	namespace  string
	version    string
	own        link.Own
	root       func() [32]byte
	linkKey    []byte
	credential func() (*identity.Credential, error) // with the root
	reach      func(ctx context.Context, address string) (net.Conn, error)

	making sync.Mutex // held from a look at all Links to the making of another

	mu     sync.Mutex        // guards asking
	asking map[[32]byte]bool // inviters that are being asked, by the hash of their root
}

const (
	// rejoin is how soon the inviter is asked again if it could not be.
	rejoin = 2 * time.Second
	// joinTimeout bounds one try, at every address that a token can hold.
	joinTimeout = 2 * time.Minute
)

// offerJoins gives every Join a writer of its own, and ends those of Joins that are gone.
func (l *leader) offerJoins(ctx context.Context, joins []v1alpha1.Join) {
	here := make(map[types.UID]bool, len(joins))
	for i := range joins {
		j := &joins[i]
		here[j.UID] = true
		if done(j) || l.joins[j.UID] != nil {
			continue
		}
		if l.joins == nil {
			l.joins = make(map[types.UID]*writer)
		}
		w := l.writer(ctx, l.log.With("join", j.Name))
		l.joins[j.UID] = w
		w.set(func(ctx context.Context, _ int) (time.Duration, error) {
			return l.joiner.work(ctx, client.ObjectKeyFromObject(j), j.UID)
		})
	}
	for uid, w := range l.joins {
		if !here[uid] {
			w.cancel()
			delete(l.joins, uid)
		}
	}
}

func done(j *v1alpha1.Join) bool {
	return j.Status.State == v1alpha1.JoinLinked || j.Status.State == v1alpha1.JoinRefused
}

// work takes a Join as far as it goes now. It returns when to go on; 0: it is done.
func (j *joiner) work(ctx context.Context, key client.ObjectKey, uid types.UID) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	var join v1alpha1.Join
	err := j.client.Get(ctx, key, &join)
	if apierrors.IsNotFound(err) || err == nil && (join.UID != uid || join.DeletionTimestamp != nil || done(&join)) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read Join %s: %w", key.Name, err)
	}
	token, found, err := j.token(ctx, &join)
	if err != nil {
		return 0, err
	}
	if !found {
		return awaitSecret(time.Since(join.CreationTimestamp.Time)), nil
	}
	status, err := j.try(ctx, &join, token)
	if err != nil {
		return 0, err
	}
	if status != join.Status {
		join.Status = status
		if err := j.client.Status().Update(ctx, &join); client.IgnoreNotFound(err) != nil {
			return 0, fmt.Errorf("write the status of Join %s: %w", key.Name, err)
		}
	}
	if done(&join) {
		return 0, nil
	}
	return rejoin, nil
}

func pending(format string, args ...any) v1alpha1.JoinStatus {
	return v1alpha1.JoinStatus{State: v1alpha1.JoinPending, Message: fmt.Sprintf(format, args...)}
}

func refused(r *invite.Refusal) v1alpha1.JoinStatus {
	return v1alpha1.JoinStatus{State: v1alpha1.JoinRefused, Reason: string(r.Reason), Message: r.Message}
}

// token reads the text beside a Join; false: it is not there yet.
func (j *joiner) token(ctx context.Context, join *v1alpha1.Join) (string, bool, error) {
	var s corev1.Secret
	err := j.client.Get(ctx, client.ObjectKey{Namespace: j.namespace, Name: invite.JoinSecretName(join.Name)}, &s)
	if apierrors.IsNotFound(err) || err == nil && !ownedBy(&s, join.UID) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("read the token of Join %s: %w", join.Name, err)
	}
	return string(s.Data[invite.TokenKey]), true, nil
}

// try joins once. An error is the own API server's.
func (j *joiner) try(ctx context.Context, join *v1alpha1.Join, text string) (v1alpha1.JoinStatus, error) {
	token, err := invite.ParseToken(text)
	if err != nil {
		return refused(invite.Refuse(invite.BadToken, "%v", err)), nil
	}
	end, first := j.begin(token.Root)
	if !first {
		return pending("another Join is asking the same inviter: it goes first"), nil
	}
	defer end()
	var links v1alpha1.LinkList
	if err := j.client.List(ctx, &links); err != nil {
		return v1alpha1.JoinStatus{}, fmt.Errorf("list Links: %w", err)
	}
	if token.Linked(join.Name, links.Items) {
		return linked(join.Name), nil
	}
	if r := token.Check(join.Spec.As, join.Name, j.root(), links.Items, time.Now()); r != nil {
		return refused(r), nil
	}
	return j.ask(ctx, join, token)
}

// begin keeps Joins of one inviter apart: by two at a time the inviter would make two
// Links for this cluster, and two are none. It reports whether this one may go on,
// until end.
func (j *joiner) begin(inviter [32]byte) (end func(), first bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.asking[inviter] {
		return nil, false
	}
	if j.asking == nil {
		j.asking = make(map[[32]byte]bool)
	}
	j.asking[inviter] = true
	return func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		delete(j.asking, inviter)
	}, true
}

func linked(name string) v1alpha1.JoinStatus {
	return v1alpha1.JoinStatus{State: v1alpha1.JoinLinked, Message: fmt.Sprintf("Link %s stands", name)}
}

// ask asks the inviter at one address after the other, until one answers.
func (j *joiner) ask(ctx context.Context, join *v1alpha1.Join, token invite.Token) (v1alpha1.JoinStatus, error) {
	var status v1alpha1.JoinStatus
	for _, address := range token.Gateways {
		half, err := j.exchange(ctx, address, join.Spec.As, token)
		if err == nil {
			return j.make(ctx, join, token, half, address)
		}
		if ctx.Err() != nil {
			return v1alpha1.JoinStatus{}, ctx.Err()
		}
		if reason, ok := invite.ReasonOf(err); ok {
			return refused(&invite.Refusal{Reason: reason, Message: err.Error()}), nil
		}
		status = pending("asking the inviter at %s: %s", address, joinwire.Explain(err))
	}
	return status, nil
}

// exchange asks the inviter at one address.
func (j *joiner) exchange(ctx context.Context, address, as string, token invite.Token) (invite.Half, error) {
	ctx, cancel := context.WithTimeout(ctx, joinwire.Timeout)
	defer cancel()
	conn, err := j.reach(ctx, address)
	if err != nil {
		return invite.Half{}, err
	}
	return joinwire.Ask(ctx, conn, home.Guard, j.tls(token), token.Secret, j.root(), &joinwire.Request{
		Version: j.version, Invite: token.Peer, As: as, LinkPublicKey: j.linkKey,
	})
}

func (j *joiner) tls(token invite.Token) *tls.Config {
	return identity.ClientTLS(identity.PlaneJoin, route.SealJoin(token.Secret.LabelKey(), time.Now()), j.credential, identity.VerifyPinned(token.Root, time.Now))
}

// make makes the Link for the inviter, who was met at an address, if it does not stand
// in another's way. One that is there already is looked at the next time.
func (j *joiner) make(ctx context.Context, join *v1alpha1.Join, token invite.Token, half invite.Half, met string) (v1alpha1.JoinStatus, error) {
	j.making.Lock()
	defer j.making.Unlock()
	var links v1alpha1.LinkList
	if err := j.client.List(ctx, &links); err != nil {
		return v1alpha1.JoinStatus{}, fmt.Errorf("list Links: %w", err)
	}
	if r := token.Fits(half, j.own, join.Name, links.Items); r != nil {
		return refused(r), nil
	}
	l := &v1alpha1.Link{Spec: half.Spec(join.Spec.Export, join.Spec.Import, met)}
	l.Name = join.Name
	err := j.client.Create(ctx, l)
	switch {
	case apierrors.IsInvalid(err):
		return refused(invite.Refuse(invite.BadRequest, "what the inviter says of itself makes no Link")), nil
	case apierrors.IsAlreadyExists(err):
		return pending("a Link %s was made meanwhile", join.Name), nil
	case err != nil:
		return v1alpha1.JoinStatus{}, fmt.Errorf("make Link %s: %w", join.Name, err)
	}
	return linked(join.Name), nil
}
