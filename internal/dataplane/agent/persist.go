package agent

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/dataplane/cache"
	"github.com/causeway-mesh/causeway/internal/dataplane/podid"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/nodestream"
)

const (
	// persistInterval is how often the saved state is written without a notification.
	// It updates the age of the state, and covers changes that send no notification. An
	// agent that crashes loses no more than that.
	persistInterval = time.Minute
	// persistMinPause is the minimum time between two writes.
	persistMinPause = 2 * time.Second
	// stateTTL is how long a state is valid without a controller (nodestream's Expiry).
	stateTTL = 24 * time.Hour
)

// savedState is what an agent writes to the cache to survive a restart without a
// controller: its view, certificates with their keys, and where it first found each
// pod. Without the last, a new owner of an address would be identified as the former
// pod.
type savedState struct {
	View    []byte         `json:"view"` // nodestream.Marshal's
	SVIDs   []savedSVID    `json:"svids"`
	Records []podid.Record `json:"places"`
}

type savedSVID struct {
	Namespace string   `json:"namespace"`
	Account   string   `json:"account"`
	Chain     [][]byte `json:"chain"`
	Key       []byte   `json:"key"` // PEM
}

// snapshot returns the state to save, or nil if there is nothing new: no controller has
// answered yet and no Link was deleted, or the controller has been away for too long.
func (a *Agent) snapshot() ([]byte, error) {
	s := a.state.Load()
	if s == nil || s.held && !s.revokedDropped || s.expired {
		return nil, nil
	}
	view, err := nodestream.Marshal(s.view)
	if err != nil {
		return nil, err
	}
	k := savedState{View: view, Records: a.podTable.Records()}
	if k.SVIDs, err = a.svids.snapshot(); err != nil {
		return nil, err
	}
	return json.Marshal(k)
}

// restore applies what an earlier agent saved, except its view, which it returns. The
// uplink decides whether the view becomes the current state.
func (a *Agent) restore(blob []byte) (nodestream.View, error) {
	var k savedState
	if err := json.Unmarshal(blob, &k); err != nil {
		return nil, errors.New("it has the layout of another version") // the decoder's error could contain a key
	}
	view, err := nodestream.Unmarshal(k.View)
	if err != nil {
		return nil, err
	}
	if err := a.svids.restore(k.SVIDs); err != nil {
		return nil, err
	}
	a.podTable.Restore(k.Records)
	return view, nil
}

// loadSaved opens the cache in dir and restores what it holds. Without a cache, it logs
// a warning and returns a nil cache; the agent then cannot survive a restart without a
// controller. The view is nil if there is no valid one.
func (a *Agent) loadSaved(dir, tokenFile string) (*cache.Cache, nodestream.View, time.Duration) {
	node, err := nodeUID(tokenFile)
	var c *cache.Cache
	if err == nil {
		c, err = cache.Open(dir, node)
	}
	if err != nil {
		a.log.Warn("no cache; after a restart this agent refuses connections until a controller answers", "error", err)
		return nil, nil, 0
	}
	blob, age, err := c.Load()
	if err == nil && age >= stateTTL {
		err = errors.Join(fmt.Errorf("the saved state is %v old, and valid for %v", age.Round(time.Minute), stateTTL), c.Drop())
	}
	var view nodestream.View
	if err == nil {
		if view, err = a.restore(blob); err != nil {
			err = fmt.Errorf("the saved state is not usable: %w", errors.Join(err, c.Drop()))
		}
	}
	switch {
	case errors.Is(err, cache.ErrNone):
	case err != nil:
		a.log.Warn("deleted the state of the previous agent; waiting for a controller", "error", err)
		return c, nil, 0
	default:
		a.log.Info("using the state that the previous agent of this node saved", "age", age.Round(time.Second).String(), "resources", len(view))
	}
	return c, view, age
}

// persist saves the state whenever it changes, until ctx ends. age returns the age of
// the current state.
func (a *Agent) persist(ctx context.Context, c *cache.Cache, age func() time.Duration) {
	failed := false
	for {
		next := a.stateChanged.wait()
		blob, err := a.snapshot()
		if err == nil && blob != nil {
			err = c.Store(blob, age())
		}
		if err != nil && !failed {
			a.log.Warn("cannot save the state for the next start, will retry", "error", err)
		}
		failed = err != nil
		late := time.NewTimer(persistInterval)
		select {
		case <-next:
			late.Stop()
		case <-late.C:
		case <-ctx.Done():
			late.Stop()
			return
		}
		backoff.Sleep(ctx, persistMinPause)
	}
}

// maxNodeToken bounds a projected token's file.
const maxNodeToken = 16 << 10

// nodeUID returns the UID of the node that a projected token is bound to. It does not
// verify the token, which comes from the kubelet.
func nodeUID(tokenFile string) (string, error) {
	f, err := os.Open(tokenFile)
	if err != nil {
		return "", fmt.Errorf("read the name of the node: %w", err)
	}
	defer f.Close()
	token, err := io.ReadAll(io.LimitReader(f, maxNodeToken))
	if err != nil {
		return "", fmt.Errorf("read the name of the node: %w", err)
	}
	parts := strings.Split(strings.TrimSpace(string(token)), ".")
	var claims struct {
		Kubernetes struct {
			Node struct {
				UID string `json:"uid"`
			} `json:"node"`
		} `json:"kubernetes.io"`
	}
	if len(parts) == 3 {
		if raw, err := base64.RawURLEncoding.DecodeString(parts[1]); err == nil {
			json.Unmarshal(raw, &claims) // a missing claim stays empty
		}
	}
	if claims.Kubernetes.Node.UID == "" {
		return "", fmt.Errorf("the token in %s is not bound to a node: that needs Kubernetes 1.32 or later", tokenFile)
	}
	return claims.Kubernetes.Node.UID, nil
}

// snapshot returns the current credentials that are still valid.
func (s *svids) snapshot() ([]savedSVID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []savedSVID
	for a, c := range s.current {
		if !c.Live(time.Now()) {
			continue
		}
		chain, key, err := c.Marshal()
		if err != nil {
			return nil, err
		}
		out = append(out, savedSVID{a.namespace, a.name, chain, key})
	}
	return out, nil
}

// restore adds the credentials of an earlier process. It must be called before
// setAccounts.
func (s *svids) restore(list []savedSVID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range list {
		key, err := identity.ParsePrivateKey(k.Key)
		if err != nil {
			return err
		}
		c, err := identity.NewCredential(k.Chain, key)
		if err != nil {
			return err
		}
		if n := c.Name(); n.Namespace() != k.Namespace || n.ServiceAccount() != k.Account {
			return fmt.Errorf("the SVID kept for %s/%s is that of %s", k.Namespace, k.Account, n)
		}
		if c.Live(time.Now()) {
			s.current[account{k.Namespace, k.Account}] = c
		}
	}
	return nil
}
