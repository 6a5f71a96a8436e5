package peering

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/time/rate"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/link"
)

// errOlderList reports a list of issuers with a lower number than the stored one.
var errOlderList = errors.New("the list is older than the stored one: " +
	"check whether the peer's controller was restored from a backup")

// issuerLists remembers the lists of issuers that one peer has sent. A list is judged
// once, however often it is sent, and lists that differ are judged at a limited rate.
// Peers.mu guards it.
type issuerLists struct {
	newest   []byte // the newest accepted list; nil: none yet
	number   uint64 // of newest
	rejected []byte // the last list that was rejected
	reason   string // why it was
	stored   uint64 // number of the newest list that is stored, which the peer receives
	pace     *rate.Limiter
	storing  bool // a goroutine stores newest
}

func newIssuerLists() issuerLists {
	return issuerLists{pace: rate.NewLimiter(rate.Every(time.Second), 8)}
}

// judge decides about a list by what is remembered alone. It reports whether the list is
// new and accepted, so that it has to be stored.
func (i *issuerLists) judge(p link.Peer, der []byte) (bool, error) {
	known := len(der) > 0 && bytes.Equal(der, i.newest) || i.rejected != nil && bytes.Equal(der, i.rejected)
	if known || !i.pace.Allow() {
		return false, nil
	}
	list, err := identity.VerifyIssuerList(p.Root, p.TrustDomain, der)
	if err == nil && list.Number < i.number {
		err = fmt.Errorf("issuers of %s: list %d after list %d: %w",
			p.Name, list.Number, i.number, errOlderList)
	}
	if err != nil {
		i.rejected, i.reason = append([]byte{}, der...), rejectionReason(err)
		return false, err
	}
	i.newest, i.number = der, list.Number
	return true, nil
}

// rejectionReason says in a sentence of a closed list why a list was rejected. It is
// empty for an older list, because a replica of the peer may be a moment behind another
// one.
func rejectionReason(err error) string {
	if errors.Is(err, errOlderList) {
		return ""
	}
	return "neither the root in the Link nor a successor of it signed the peer's list of issuers"
}

// rejectedNow returns why the list in a Hello was rejected; empty if it was not.
func (i *issuerLists) rejectedNow(h *wire.Hello) string {
	if list := h.GetIssuerList(); len(list) > 0 && bytes.Equal(list, i.rejected) {
		return i.reason
	}
	return ""
}

// receiveIssuers takes in the list that a peer sent and returns the number of the newest
// one that is stored. It blocks while it stores a new list, for a few seconds at most.
func (p *Peers) receiveIssuers(s *peer, der []byte) uint64 {
	p.mu.Lock()
	fresh, err := s.issuers.judge(s.link, der)
	p.mu.Unlock()
	if fresh {
		err = p.storeIssuers(s, der)
	}
	if err != nil {
		p.c.Log.Warn("rejected a peer's list of issuers", "link", s.link.Name, "error", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return s.issuers.stored
}

// trustTimeout bounds one attempt to write a PeerTrust.
const trustTimeout = 5 * time.Second

// storeIssuers stores a list once.
func (p *Peers) storeIssuers(s *peer, der []byte) error {
	ctx, cancel := context.WithTimeout(s.life, trustTimeout)
	defer cancel()
	number, err := p.trust.storeIssuers(ctx, s.link, der)
	p.mu.Lock()
	defer p.mu.Unlock()
	s.issuers.stored = max(s.issuers.stored, number)
	if errors.Is(err, errOlderList) && bytes.Equal(der, s.issuers.newest) {
		s.issuers.newest, s.issuers.rejected, s.issuers.reason = nil, der, rejectionReason(err)
	}
	return err
}

// RestoreLost stores the lists again that peers have sent and no PeerTrust holds, because
// the API server was away or a user deleted the PeerTrust. stored has the number of the
// list in each PeerTrust, by Link. It does not block.
func (p *Peers) RestoreLost(stored map[string]uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, s := range p.links {
		lost := s.issuers.newest != nil && stored[name] < s.issuers.number
		if !lost || s.issuers.storing || s.life.Err() != nil {
			continue
		}
		s.issuers.storing = true
		p.running.Go(func() { p.restoreIssuers(s) })
	}
}

// restoreIssuers stores the newest list of a peer, retrying until that succeeds, and
// gives the cache a moment to show it.
func (p *Peers) restoreIssuers(s *peer) {
	waits := backoff.Backoff{Min: time.Second, Max: 30 * time.Second}
	for {
		p.mu.Lock()
		der := s.issuers.newest
		p.mu.Unlock()
		if der == nil {
			break // rejected meanwhile
		}
		err := p.storeIssuers(s, der)
		if err == nil || errors.Is(err, errOlderList) || !waits.Wait(s.life) {
			break
		}
	}
	backoff.Sleep(s.life, time.Second)
	p.update(s, func() { s.issuers.storing, s.notify = false, true })
}

// HandOver stores the issuer list der, which the Link from has, for the Link that takes
// over next. When that Link takes over, it knows the peer's issuers immediately, even if
// the peer is unreachable. HandOver does not block. It does nothing while an earlier call
// for from has not finished.
func (p *Peers) HandOver(from string, to link.Peer, der []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.links[from]
	if s == nil || s.handingOver || s.life.Err() != nil {
		return
	}
	s.handingOver = true
	p.running.Go(func() {
		waits := backoff.Backoff{Min: time.Second, Max: 30 * time.Second}
		stored := false
		for !stored {
			ctx, cancel := context.WithTimeout(s.life, trustTimeout)
			_, err := p.trust.storeIssuers(ctx, to, der)
			cancel()
			stored = err == nil
			if errors.Is(err, errOlderList) || errors.Is(err, identity.ErrIssuerList) ||
				!stored && !waits.Wait(s.life) {
				break
			}
		}
		backoff.Sleep(s.life, time.Second) // until the cache shows the result
		// The reconciler may have a newer list by now.
		p.update(s, func() { s.handingOver, s.notify = false, stored })
	})
}
