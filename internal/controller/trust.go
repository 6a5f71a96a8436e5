package controller

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/time/rate"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/link"
)

// trusts keeps what is learnt of peers' issuers, in PeerTrusts. Any replica may
// learn; of two that do at once, one writes and the other looks again.
type trusts struct {
	client    client.Client // reads live: learning is rare, and must not go back
	namespace string
}

// errOlder reports a list with a lower number than the one that is kept.
var errOlder = errors.New("an older list than the one that is known: is the peer's controller restored from a backup?")

// learn takes in a list of issuers that a peer sent. It returns the number of the
// newest list that is now kept. A list that the Link's root has not signed, or
// that is older than the one kept, changes nothing and is an error that wraps
// identity.ErrIssuerList or errOlder; other errors are the API server's.
func (t trusts) learn(ctx context.Context, p link.Peer, der []byte) (uint64, error) {
	list, err := identity.VerifyIssuerList(p.Root, p.TrustDomain, der)
	if err != nil {
		return 0, fmt.Errorf("issuers of %s: %w", p.Name, err)
	}
	for range 5 {
		number, err := t.swap(ctx, p, list.Number, der)
		if lost := apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err); !lost {
			return number, err
		}
	}
	return 0, fmt.Errorf("keep the issuers of %s: too many writers at once", p.Name)
}

// swap compares and writes once.
func (t trusts) swap(ctx context.Context, p link.Peer, number uint64, der []byte) (uint64, error) {
	var kept v1alpha1.PeerTrust
	err := t.client.Get(ctx, client.ObjectKey{Namespace: t.namespace, Name: p.Name}, &kept)
	switch {
	case apierrors.IsNotFound(err):
		kept = v1alpha1.PeerTrust{
			ObjectMeta: metav1.ObjectMeta{Namespace: t.namespace, Name: p.Name},
			Spec:       v1alpha1.PeerTrustSpec{LinkUID: p.UID, IssuerList: der},
		}
		err = t.client.Create(ctx, &kept)
	case err == nil:
		have, known := applied(p, &kept)
		switch {
		case known && have.Number > number:
			return have.Number, fmt.Errorf("issuers of %s: list %d after list %d: %w", p.Name, number, have.Number, errOlder)
		case known && have.Number == number:
			return have.Number, nil
		}
		kept.Spec = specOf(p, kept.Spec)
		kept.Spec.IssuerList = der
		err = t.client.Update(ctx, &kept)
	}
	if err != nil {
		return 0, fmt.Errorf("keep the issuers of %s: %w", p.Name, err)
	}
	return number, nil
}

// applied returns the list that a PeerTrust keeps for this very Link, verified
// again, and whether there is one.
func applied(p link.Peer, kept *v1alpha1.PeerTrust) (identity.IssuerList, bool) {
	if kept.Spec.LinkUID != p.UID {
		return identity.IssuerList{}, false
	}
	list, err := identity.VerifyIssuerList(p.Root, p.TrustDomain, kept.Spec.IssuerList)
	return list, err == nil
}

// issuers is what is remembered of the lists that one peer has sent, so that a
// list is judged once however often it is sent, and one that our API server has
// lost is kept anew. Lists that differ are taken slowly.
type issuers struct {
	newest  []byte // the newest signed list; nil: none yet
	number  uint64 // of newest
	refused []byte // the last list that was refused
	why     string // it was
	known   uint64 // the number of the newest list that is kept, as the peer is told
	pace    *rate.Limiter
	keeping bool // a goroutine keeps newest
}

func newIssuers() issuers { return issuers{pace: rate.NewLimiter(rate.Every(time.Second), 8)} }

// sent judges a list by what is remembered alone, and reports whether there is
// something to learn, now or later.
func (i *issuers) sent(p link.Peer, der []byte) (bool, error) {
	if bytes.Equal(der, i.newest) && len(der) > 0 || bytes.Equal(der, i.refused) && i.refused != nil || !i.pace.Allow() {
		return false, nil
	}
	list, err := identity.VerifyIssuerList(p.Root, p.TrustDomain, der)
	if err == nil && list.Number < i.number {
		err = fmt.Errorf("issuers of %s: list %d after list %d: %w", p.Name, list.Number, i.number, errOlder)
	}
	if err != nil {
		i.refused, i.why = append([]byte{}, der...), refusal(err)
		return false, err
	}
	i.newest, i.number = der, list.Number
	return true, nil
}

// refusal is why a list was refused, in a sentence of a closed list; empty for an older one:
// a replica of the peer may be a moment behind another.
func refusal(err error) string {
	if errors.Is(err, errOlder) {
		return ""
	}
	return "the Link's root has not signed their list, nor has one that followed it"
}

// refusedNow is why the list that a peer has said last was refused; empty: it was not.
func (s *peerState) refusedNow() string {
	if list := s.hello.GetIssuerList(); len(list) > 0 && bytes.Equal(list, s.issuers.refused) {
		return s.issuers.why
	}
	return ""
}

// learn takes in the list that a peer says it has, and returns the number of the
// newest that is kept.
func (p *peers) learn(s *peerState, der []byte) uint64 {
	p.mu.Lock()
	fresh, err := s.issuers.sent(s.peer, der)
	p.mu.Unlock()
	if fresh {
		err = p.store(s, der)
	}
	if err != nil {
		p.log.Warn("a peer's list of issuers was not applied", "link", s.peer.Name, "error", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return s.issuers.known
}

// store learns der once.
func (p *peers) store(s *peerState, der []byte) error {
	ctx, cancel := context.WithTimeout(s.life, 5*time.Second)
	defer cancel()
	number, err := p.trusts.learn(ctx, s.peer, der)
	p.mu.Lock()
	defer p.mu.Unlock()
	s.issuers.known = max(s.issuers.known, number)
	if errors.Is(err, errOlder) && bytes.Equal(der, s.issuers.newest) {
		s.issuers.newest, s.issuers.refused, s.issuers.why = nil, der, refusal(err)
	}
	return err
}

// recall keeps anew what peers have said and no PeerTrust holds: the API server was
// away when they said it, or somebody has deleted it since. kept are the numbers
// of the lists that PeerTrusts hold, by Link. It must be called by one goroutine.
func (p *peers) recall(kept map[string]uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, s := range p.links {
		if s.issuers.newest == nil || kept[name] >= s.issuers.number || s.issuers.keeping || s.life.Err() != nil {
			continue
		}
		s.issuers.keeping = true
		p.running.Go(func() { p.keep(s) })
	}
}

// keep stores the newest list of a peer, however long that takes, and leaves the
// cache a moment to show it.
func (p *peers) keep(s *peerState) {
	waits := backoff.Backoff{Min: time.Second, Max: 30 * time.Second}
	for {
		p.mu.Lock()
		der := s.issuers.newest
		p.mu.Unlock()
		if der == nil {
			break // refused meanwhile
		}
		err := p.store(s, der)
		if err == nil || errors.Is(err, errOlder) || !waits.Wait(s.life) {
			break
		}
	}
	backoff.Sleep(s.life, time.Second)
	p.note(s, func() { s.issuers.keeping = false })
}
