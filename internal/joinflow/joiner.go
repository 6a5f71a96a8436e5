package joinflow

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/invite"
	joinwire "github.com/causeway-mesh/causeway/internal/invite/wire"
	"github.com/causeway-mesh/causeway/internal/kube"
	"github.com/causeway-mesh/causeway/internal/link"
)

// Joiner uses the tokens that are given to this cluster. Only the leader runs it.
//
//	Join + Secret ─▶ Token.Check ─▶ a gateway of the inviter ─▶ joinwire.Exchange
//	                 Join's status ◀─ Link ◀─ Token.Fits ◀───────┘
type Joiner struct {
	c       Config
	own     link.Own
	working sync.WaitGroup
	workers map[types.UID]context.CancelFunc // by Join; used by the caller of Set alone

	creating sync.Mutex // held from listing all Links to creating another one

	mu     sync.Mutex        // guards asking
	asking map[[32]byte]bool // inviters that are being asked, by root hash
}

// NewJoiner returns a Joiner that does nothing until Set.
func NewJoiner(c Config) *Joiner {
	return &Joiner{
		c:       c,
		own:     c.own(),
		workers: make(map[types.UID]context.CancelFunc),
		asking:  make(map[[32]byte]bool),
	}
}

const (
	// askAgain is how soon the inviter is asked again if no gateway of it answered.
	askAgain = 2 * time.Second
	// stepTimeout bounds one attempt at all addresses that a token can hold.
	stepTimeout = 2 * time.Minute
	// minFailurePause is added to the backoff after an error of the own API server.
	minFailurePause = 50 * time.Millisecond
)

// Set starts working on each new Join and stops working on those that are gone. It does
// not block. All work ends with ctx; Wait waits for it. Set must not be called
// concurrently.
func (j *Joiner) Set(ctx context.Context, joins []*v1alpha1.Join) {
	current := make(map[types.UID]bool, len(joins))
	for _, join := range joins {
		current[join.UID] = true
		if isFinished(join) || j.workers[join.UID] != nil {
			continue
		}
		working, cancel := context.WithCancel(ctx)
		j.workers[join.UID] = cancel
		key, uid := client.ObjectKeyFromObject(join), join.UID
		j.working.Go(func() { j.run(working, key, uid) })
	}
	for uid, cancel := range j.workers {
		if !current[uid] {
			cancel()
			delete(j.workers, uid)
		}
	}
}

// Wait blocks until all work has ended. Call it after the context of Set ended.
func (j *Joiner) Wait() { j.working.Wait() }

func isFinished(join *v1alpha1.Join) bool {
	return join.Status.State == v1alpha1.JoinLinked || join.Status.State == v1alpha1.JoinRefused
}

// run works on one Join until it is finished or ctx ends.
func (j *Joiner) run(ctx context.Context, key client.ObjectKey, uid types.UID) {
	log := j.c.Log.With("join", key.Name)
	waits := backoff.Backoff{Min: 200 * time.Millisecond, Max: 30 * time.Second}
	for failing := false; ; {
		wait, err := j.step(ctx, key, uid)
		switch {
		case err == nil && wait == 0:
			return
		case err == nil:
			waits.Reset()
		case ctx.Err() == nil:
			level := slog.LevelWarn
			if failing || isLostRace(err) {
				level = slog.LevelDebug
			}
			log.Log(ctx, level, "join failed; will retry", "error", err)
			wait = waits.Next() + minFailurePause
		}
		failing = err != nil
		if !backoff.Sleep(ctx, wait) {
			return
		}
	}
}

// step takes a Join as far as it goes now. It returns when to continue; 0 means that the
// Join is finished. An error is the own API server's.
func (j *Joiner) step(ctx context.Context, key client.ObjectKey, uid types.UID) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	var join v1alpha1.Join
	err := j.c.Client.Get(ctx, key, &join)
	if client.IgnoreNotFound(err) != nil {
		return 0, fmt.Errorf("read Join %s: %w", key.Name, err)
	}
	if err != nil || join.UID != uid || join.DeletionTimestamp != nil || isFinished(&join) {
		return 0, nil
	}
	token, found, err := j.token(ctx, &join)
	if err != nil {
		return 0, err
	}
	if !found {
		return secretRetry(time.Since(join.CreationTimestamp.Time)), nil
	}
	status, err := j.try(ctx, &join, token)
	if err != nil {
		return 0, err
	}
	if status != join.Status {
		join.Status = status
		if err := j.c.Client.Status().Update(ctx, &join); client.IgnoreNotFound(err) != nil {
			return 0, fmt.Errorf("write the status of Join %s: %w", key.Name, err)
		}
	}
	if isFinished(&join) {
		return 0, nil
	}
	return askAgain, nil
}

func pendingStatus(format string, args ...any) v1alpha1.JoinStatus {
	return v1alpha1.JoinStatus{State: v1alpha1.JoinPending, Message: fmt.Sprintf(format, args...)}
}

func refusedStatus(r *invite.Refusal) v1alpha1.JoinStatus {
	return v1alpha1.JoinStatus{State: v1alpha1.JoinRefused, Reason: string(r.Reason), Message: r.Message}
}

func linkedStatus(name string) v1alpha1.JoinStatus {
	return v1alpha1.JoinStatus{State: v1alpha1.JoinLinked, Message: fmt.Sprintf("Link %s exists", name)}
}

// token reads the token of a Join. It returns false if its Secret does not exist yet.
func (j *Joiner) token(ctx context.Context, join *v1alpha1.Join) (string, bool, error) {
	var s corev1.Secret
	key := client.ObjectKey{Namespace: j.c.Namespace, Name: invite.JoinSecretName(join.Name)}
	err := j.c.Client.Get(ctx, key, &s)
	if apierrors.IsNotFound(err) || err == nil && !kube.OwnedBy(&s, join.UID) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("read the token of Join %s: %w", join.Name, err)
	}
	return string(s.Data[invite.TokenKey]), true, nil
}

// try attempts to join once. An error is the own API server's.
func (j *Joiner) try(ctx context.Context, join *v1alpha1.Join, text string) (v1alpha1.JoinStatus, error) {
	token, err := invite.ParseToken(text)
	if err != nil {
		return refusedStatus(invite.Refuse(invite.BadToken, "%v", err)), nil
	}
	end, first := j.reserve(token.Root)
	if !first {
		return pendingStatus("waiting for another Join that uses a token of the same inviter"), nil
	}
	defer end()
	var links v1alpha1.LinkList
	if err := j.c.Client.List(ctx, &links); err != nil {
		return v1alpha1.JoinStatus{}, fmt.Errorf("list Links: %w", err)
	}
	if token.Linked(join.Name, links.Items) {
		return linkedStatus(join.Name), nil
	}
	if r := token.Check(join.Spec.As, join.Name, j.c.Identity.RootHash(), links.Items, time.Now()); r != nil {
		return refusedStatus(r), nil
	}
	return j.ask(ctx, join, token)
}

// reserve admits one Join per inviter at a time. With two at once the inviter would make
// two Links for this cluster, of which only one can be in force. It returns false if
// another Join holds the reservation; otherwise the caller must call end.
func (j *Joiner) reserve(inviter [32]byte) (end func(), ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.asking[inviter] {
		return nil, false
	}
	j.asking[inviter] = true
	return func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		delete(j.asking, inviter)
	}, true
}

// ask asks the inviter at one address after the other until one answers.
func (j *Joiner) ask(ctx context.Context, join *v1alpha1.Join,
	token invite.Token) (v1alpha1.JoinStatus, error) {
	var status v1alpha1.JoinStatus
	for _, address := range token.Gateways {
		id, err := j.exchange(ctx, address, join.Spec.As, token)
		if err == nil {
			return j.createLink(ctx, join, token, id, address)
		}
		if ctx.Err() != nil {
			return v1alpha1.JoinStatus{}, ctx.Err()
		}
		if reason, ok := invite.ReasonOf(err); ok {
			return refusedStatus(&invite.Refusal{Reason: reason, Message: err.Error()}), nil
		}
		status = pendingStatus("asking the inviter at %s: %s", address, joinwire.Explain(err))
	}
	return status, nil
}

// exchange asks the inviter at one address.
func (j *Joiner) exchange(ctx context.Context, address, as string,
	token invite.Token) (invite.PublicIdentity, error) {
	ctx, cancel := context.WithTimeout(ctx, joinwire.Timeout)
	defer cancel()
	conn, err := j.c.Dial(ctx, address)
	if err != nil {
		return invite.PublicIdentity{}, err
	}
	id := j.c.Identity
	request := &joinwire.Request{
		Version:       j.c.Version,
		Invite:        token.Peer,
		As:            as,
		LinkPublicKey: id.LinkKey().Public(),
	}
	return joinwire.Exchange(ctx, conn, transport.GuardDialed, j.tls(token), token.Secret, id.RootHash(),
		request)
}

func (j *Joiner) tls(token invite.Token) *tls.Config {
	sni := route.SealJoin(token.Secret.LabelKey(), time.Now())
	verify := identity.VerifyPinned(token.Root, time.Now)
	config := identity.ClientTLS(identity.PlaneJoin, sni, j.c.Identity.CredentialWithRoot, verify)
	return j.c.KeyExchange.Limit(config)
}

// createLink creates the Link to the inviter that answered at an address, unless it
// would conflict with an existing one. If a Link of the name appeared meanwhile, the
// next attempt judges it.
func (j *Joiner) createLink(ctx context.Context, join *v1alpha1.Join, token invite.Token,
	id invite.PublicIdentity, address string) (v1alpha1.JoinStatus, error) {
	j.creating.Lock()
	defer j.creating.Unlock()
	var links v1alpha1.LinkList
	if err := j.c.Client.List(ctx, &links); err != nil {
		return v1alpha1.JoinStatus{}, fmt.Errorf("list Links: %w", err)
	}
	if r := token.CheckInviter(id, j.own, join.Name, links.Items); r != nil {
		return refusedStatus(r), nil
	}
	l := &v1alpha1.Link{Spec: id.Spec(join.Spec.Export, join.Spec.Import, address)}
	l.Name = join.Name
	err := j.c.Client.Create(ctx, l)
	switch {
	case apierrors.IsInvalid(err):
		return refusedStatus(invite.Refuse(invite.BadRequest,
			"the data that the inviter sent does not make a valid Link")), nil
	case apierrors.IsAlreadyExists(err):
		return pendingStatus("a Link named %s was created meanwhile", join.Name), nil
	case err != nil:
		return v1alpha1.JoinStatus{}, fmt.Errorf("create Link %s: %w", join.Name, err)
	}
	return linkedStatus(join.Name), nil
}
