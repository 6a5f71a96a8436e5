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

// minRenewal is the minimum time between two certificates of one account.
const minRenewal = time.Minute

// A signFunc asks the controller for the certificate chain of an account.
type signFunc func(ctx context.Context, namespace, serviceAccount string, csr []byte) ([][]byte, error)

// How long the credential of an account is kept after its last pod on this node has gone,
// and of how many accounts. A CronJob that runs each minute needs one certificate for all
// its runs.
const (
	spareAge = 10 * time.Minute
	maxSpare = 256
)

// A spareCredential is the credential of an account that has no pod.
type spareCredential struct {
	*identity.Credential
	since time.Time
}

// svids holds the credential of every account that has a live pod on this node. It
// keeps the credential of an account for a while after its last pod has gone, and uses
// it again when the account has a pod again. Keys are made here and never leave the
// process.
type svids struct {
	sign    signFunc
	changed func() // called after a credential was received
	log     *slog.Logger

	mu      sync.Mutex // guards all below
	current map[account]*identity.Credential
	tasks   map[account]context.CancelFunc
	spare   map[account]spareCredential // of accounts without a pod
	// issuers are the current issuers of this cluster, DER; none: not known.
	issuers        [][]byte
	issuersChanged broadcast      // notified when issuers change
	wg             sync.WaitGroup // one task for each account
}

func newSVIDs(sign signFunc, changed func(), log *slog.Logger) *svids {
	return &svids{
		sign: sign, changed: changed, log: log,
		current: make(map[account]*identity.Credential), tasks: make(map[account]context.CancelFunc),
		spare: make(map[account]spareCredential),
	}
}

// get returns the credential of an account, if it is valid. A certificate from the
// future, made before the clock was corrected, is replaced.
func (s *svids) get(a account) (*identity.Credential, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.current[a]
	valid := ok && time.Now().Before(c.NotAfter())
	if valid && !c.Live(time.Now()) {
		s.issuersChanged.notifyAll()
	}
	return c, valid
}

// count returns how many of accounts have a valid credential.
func (s *svids) count(accounts map[account]bool) int {
	n := 0
	for a := range accounts {
		if _, ok := s.get(a); ok {
			n++
		}
	}
	return n
}

// setAccounts starts to maintain the credentials of accounts, and makes all others
// spare.
func (s *svids) setAccounts(ctx context.Context, accounts map[account]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for a, stop := range s.tasks {
		if !accounts[a] {
			stop()
			delete(s.tasks, a)
		}
	}
	for a, c := range s.current {
		if !accounts[a] {
			delete(s.current, a)
			s.addSpare(a, c)
		}
	}
	maps.DeleteFunc(s.spare, func(_ account, c spareCredential) bool { return time.Since(c.since) >= spareAge })
	for a := range accounts {
		if _, ok := s.tasks[a]; ok || ctx.Err() != nil {
			continue
		}
		s.restoreSpare(a)
		task, stop := context.WithCancel(ctx)
		s.tasks[a] = stop
		s.wg.Go(func() { s.maintain(task, a) })
	}
}

// addSpare stores the credential of an account without a pod. It replaces the oldest
// one if there are too many. s.mu is held.
func (s *svids) addSpare(a account, c *identity.Credential) {
	if len(s.spare) >= maxSpare {
		delete(s.spare, slices.MinFunc(slices.Collect(maps.Keys(s.spare)), func(x, y account) int {
			return s.spare[x].since.Compare(s.spare[y].since)
		}))
	}
	s.spare[a] = spareCredential{c, time.Now()}
}

// restoreSpare makes a spare credential the current one of its account. s.mu is held.
func (s *svids) restoreSpare(a account) {
	c, ok := s.spare[a]
	delete(s.spare, a)
	if _, held := s.current[a]; ok && !held && c.Live(time.Now()) {
		s.current[a] = c.Credential
	}
}

// wait blocks until every task has ended. Their context must have ended.
func (s *svids) wait() { s.wg.Wait() }

// maintain gets the credential of a, and a new one at half of its lifetime, until ctx
// ends.
func (s *svids) maintain(ctx context.Context, a account) {
	hurry := backoff.Backoff{Min: renewalSpread, Max: time.Minute}
	if c, ok := s.get(a); ok && time.Now().Before(c.RenewAt()) { // a spare one, or one of an earlier process
		s.awaitRenewal(ctx, c, &hurry)
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
		s.awaitRenewal(ctx, c, &hurry)
	}
}

// renewalSpread is the time over which a node's accounts request new certificates when
// the issuer of the old ones is no longer current.
const renewalSpread = 3 * time.Second

// setIssuers sets the current issuers of this cluster's workloads.
func (s *svids) setIssuers(issuers [][]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.EqualFunc(issuers, s.issuers, bytes.Equal) {
		s.issuers = issuers
		s.issuersChanged.notifyAll()
	}
}

// hasCurrentIssuer reports whether peers accept the issuer of c, as far as this agent
// knows.
func (s *svids) hasCurrentIssuer(c *identity.Credential) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); !c.Live(now) && now.Before(c.NotAfter()) {
		return false // not yet
	}
	chain := c.TLS().Certificate
	return len(s.issuers) == 0 || len(chain) < 2 ||
		slices.ContainsFunc(s.issuers, func(der []byte) bool { return bytes.Equal(der, chain[1]) })
}

// awaitRenewal waits until c must be renewed. That is soon if its issuer is no longer
// current. It backs off if the replacement is no better, which happens when the
// controller does not know of the change yet.
func (s *svids) awaitRenewal(ctx context.Context, c *identity.Credential, hurry *backoff.Backoff) {
	due := time.NewTimer(renewal(c))
	defer due.Stop()
	for {
		issuersChanged := s.issuersChanged.wait() // before the check, so that no change is missed
		if !s.hasCurrentIssuer(c) {
			hurry.Wait(ctx)
			return
		}
		hurry.Reset()
		select {
		case <-issuersChanged:
		case <-due.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// renewal returns how long to wait before c is renewed: until half of its lifetime,
// plus up to a tenth of the rest, so that not all accounts of a node renew at once. If
// that time has passed already, because of a wrong clock, it returns at least
// minRenewal.
func renewal(c *identity.Credential) time.Duration {
	wait := max(time.Until(c.RenewAt()), minRenewal)
	return wait + rand.N(wait/10)
}

func (s *svids) put(ctx context.Context, a account, c *identity.Credential) {
	s.mu.Lock()
	alive := ctx.Err() == nil // setAccounts cancels under the same lock
	if alive {
		s.current[a] = c
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
