package agent

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/identity"
)

// An account is a ServiceAccount of this cluster.
type account struct {
	namespace, name string
}

// leastRenewal is between two certificates of one account.
const leastRenewal = time.Minute

// A signFunc asks the controller for the certificate chain of an account.
type signFunc func(ctx context.Context, namespace, serviceAccount string, csr []byte) ([][]byte, error)

// How long the credential of an account is kept after its last pod on this node has gone,
// and of how many accounts. A CronJob that runs each minute needs one certificate for all
// its runs.
const (
	spareAge = 10 * time.Minute
	maxSpare = 256
)

// A spareCredential was set aside when its account had no pod any more.
type spareCredential struct {
	*identity.Credential
	since time.Time
}

// svids holds the credential of every account that has a live pod on this node. It keeps
// those of accounts whose last pod went lately, and does not use them until the account
// has a pod again. Keys are made here and never leave the process.
type svids struct {
	sign    signFunc
	changed func() // called after a credential came
	log     *slog.Logger

	mu    sync.Mutex // guards all below
	held  map[account]*identity.Credential
	tasks map[account]context.CancelFunc
	spare map[account]spareCredential // of accounts without a pod
	// issuers vouch now, DER; none: not known.
	issuers [][]byte
	turned  news           // other issuers vouch
	wg      sync.WaitGroup // one task for each account
}

func newSVIDs(sign signFunc, changed func(), log *slog.Logger) *svids {
	return &svids{
		sign: sign, changed: changed, log: log,
		held: make(map[account]*identity.Credential), tasks: make(map[account]context.CancelFunc),
		spare: make(map[account]spareCredential),
	}
}

// get returns the credential of an account, if there is a valid one. In place of one of
// the future, from before the clock was set right, another is asked for.
func (s *svids) get(a account) (*identity.Credential, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.held[a]
	valid := ok && time.Now().Before(c.NotAfter())
	if valid && !c.Live(time.Now()) {
		s.turned.tell()
	}
	return c, valid
}

// count returns of how many of accounts there is a valid credential.
func (s *svids) count(accounts map[account]bool) int {
	n := 0
	for a := range accounts {
		if _, ok := s.get(a); ok {
			n++
		}
	}
	return n
}

// want starts keeping the credentials of accounts, and sets all others aside.
func (s *svids) want(ctx context.Context, accounts map[account]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for a, stop := range s.tasks {
		if !accounts[a] {
			stop()
			delete(s.tasks, a)
		}
	}
	for a, c := range s.held {
		if !accounts[a] {
			delete(s.held, a)
			s.setAside(a, c)
		}
	}
	maps.DeleteFunc(s.spare, func(_ account, c spareCredential) bool { return time.Since(c.since) >= spareAge })
	for a := range accounts {
		if _, ok := s.tasks[a]; ok || ctx.Err() != nil {
			continue
		}
		s.takeBack(a)
		task, stop := context.WithCancel(ctx)
		s.tasks[a] = stop
		s.wg.Go(func() { s.keep(task, a) })
	}
}

// setAside keeps the credential of an account without a pod, in place of the oldest one if
// there are too many. s.mu is held.
func (s *svids) setAside(a account, c *identity.Credential) {
	if len(s.spare) >= maxSpare {
		delete(s.spare, slices.MinFunc(slices.Collect(maps.Keys(s.spare)), func(x, y account) int {
			return s.spare[x].since.Compare(s.spare[y].since)
		}))
	}
	s.spare[a] = spareCredential{c, time.Now()}
}

// takeBack makes a credential that was set aside the one of its account. s.mu is held.
func (s *svids) takeBack(a account) {
	c, ok := s.spare[a]
	delete(s.spare, a)
	if _, held := s.held[a]; ok && !held && c.Live(time.Now()) {
		s.held[a] = c.Credential
	}
}

// wait blocks until every task has ended, after their context has.
func (s *svids) wait() { s.wg.Wait() }

// keep gets the credential of a, and a new one at half of its life, until ctx ends.
func (s *svids) keep(ctx context.Context, a account) {
	hurry := backoff.Backoff{Min: spread, Max: time.Minute}
	if c, ok := s.get(a); ok && time.Now().Before(c.RenewAt()) { // kept, or of an earlier process
		s.rest(ctx, c, &hurry)
	}
	retry := backoff.Backoff{Min: 100 * time.Millisecond, Max: 30 * time.Second}
	for ctx.Err() == nil {
		c, err := s.fetch(ctx, a)
		if err != nil {
			if ctx.Err() == nil {
				s.log.Debug("no SVID yet", "namespace", a.namespace, "service_account", a.name, "error", err)
			}
			retry.Wait(ctx)
			continue
		}
		retry.Reset()
		s.put(ctx, a, c)
		s.rest(ctx, c, &hurry)
	}
}

// spread is over how long a node's accounts come for new certificates when the issuer
// of the old ones does not vouch any more.
const spread = 3 * time.Second

// vouch makes issuers those that vouch for this cluster's workloads.
func (s *svids) vouch(issuers [][]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.EqualFunc(issuers, s.issuers, bytes.Equal) {
		s.issuers = issuers
		s.turned.tell()
	}
}

// vouched reports whether peers believe c, or have believed it, as far as is known here.
func (s *svids) vouched(c *identity.Credential) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); !c.Live(now) && now.Before(c.NotAfter()) {
		return false // not yet
	}
	chain := c.TLS().Certificate
	return len(s.issuers) == 0 || len(chain) < 2 ||
		slices.ContainsFunc(s.issuers, func(der []byte) bool { return bytes.Equal(der, chain[1]) })
}

// rest waits until c is to be renewed: soon, if its issuer does not vouch any more, and
// ever less soon if what comes instead is no better, as from a controller that has not
// heard yet.
func (s *svids) rest(ctx context.Context, c *identity.Credential, hurry *backoff.Backoff) {
	due := time.NewTimer(renewal(c))
	defer due.Stop()
	for {
		turned := s.turned.next() // before asking, so that no news is missed
		if !s.vouched(c) {
			hurry.Wait(ctx)
			return
		}
		hurry.Reset()
		select {
		case <-turned:
		case <-due.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// renewal is how long to wait before c is renewed: until half of its life, and up
// to a tenth of what is left longer, so that not all accounts of a node come at
// once. A certificate that is past it already, as by a wrong clock, is not asked
// for again and again.
func renewal(c *identity.Credential) time.Duration {
	wait := max(time.Until(c.RenewAt()), leastRenewal)
	return wait + rand.N(wait/10)
}

func (s *svids) put(ctx context.Context, a account, c *identity.Credential) {
	s.mu.Lock()
	alive := ctx.Err() == nil // want cancels under the same lock
	if alive {
		s.held[a] = c
	}
	s.mu.Unlock()
	if alive {
		s.changed()
	}
}

func (s *svids) fetch(ctx context.Context, a account) (*identity.Credential, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	key, err := identity.NewPrivateKey()
	if err != nil {
		return nil, err
	}
	csr, err := identity.NewCSR(key)
	if err != nil {
		return nil, err
	}
	chain, err := s.sign(ctx, a.namespace, a.name, csr)
	if err != nil {
		return nil, fmt.Errorf("ask for the SVID of %s/%s: %w", a.namespace, a.name, err)
	}
	c, err := identity.NewCredential(chain, key)
	if err != nil {
		return nil, err
	}
	if n := c.Name(); n.Namespace() != a.namespace || n.ServiceAccount() != a.name {
		return nil, fmt.Errorf("asked for the SVID of %s/%s, got that of %s", a.namespace, a.name, n)
	}
	return c, nil
}
