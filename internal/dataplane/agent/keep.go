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
	// keepAgain is how often the age of what is kept is brought up to date, and what
	// changed without news. An agent that crashes loses no more of it.
	keepAgain = time.Minute
	// keepPause is between two writes however much changes.
	keepPause = 2 * time.Second
	// stateLife is for how long a state holds without a controller (nodestream's Expiry).
	stateLife = 24 * time.Hour
)

// kept is what an agent needs to go on after a restart without a controller, as it is
// written to the cache: what it was told, certificates with their keys, and where pods
// were first found. Without the last, an address that has changed hands meanwhile would
// pass for its former pod's.
type kept struct {
	View   []byte         `json:"view"` // nodestream.Marshal's
	SVIDs  []keptSVID     `json:"svids"`
	Places []podid.Record `json:"places"`
}

type keptSVID struct {
	Namespace string   `json:"namespace"`
	Account   string   `json:"account"`
	Chain     [][]byte `json:"chain"`
	Key       []byte   `json:"key"` // PEM
}

// kept returns what there is to keep; nil if there is nothing new to say: no controller
// has answered yet, and no Link was seen deleted, or it has been away for too long.
func (a *Agent) kept() ([]byte, error) {
	s := a.state.Load()
	if s == nil || s.held && !s.less || s.expired {
		return nil, nil
	}
	view, err := nodestream.Marshal(s.view)
	if err != nil {
		return nil, err
	}
	k := kept{View: view, Places: a.podTable.Records()}
	if k.SVIDs, err = a.svids.kept(); err != nil {
		return nil, err
	}
	return json.Marshal(k)
}

// restore takes over what an earlier agent kept, but for its view, which it returns: that
// is home's to put in force, or not.
func (a *Agent) restore(blob []byte) (nodestream.View, error) {
	var k kept
	if err := json.Unmarshal(blob, &k); err != nil {
		return nil, errors.New("it is not laid out as this version does") // the decoder's words could hold a key
	}
	view, err := nodestream.Unmarshal(k.View)
	if err != nil {
		return nil, err
	}
	if err := a.svids.restore(k.SVIDs); err != nil {
		return nil, err
	}
	a.podTable.Restore(k.Places)
	return view, nil
}

// load opens the cache in dir and takes over what is in it. Without a cache, which it
// tells once, the agent does all the same, but for a restart without a controller. The
// cache is nil then, and the view is if there is none to go on by.
func (a *Agent) load(dir, tokenFile string) (*cache.Cache, nodestream.View, time.Duration) {
	node, err := nodeUID(tokenFile)
	var c *cache.Cache
	if err == nil {
		c, err = cache.Open(dir, node)
	}
	if err != nil {
		a.log.Warn("no cache: if this agent restarts while no controller answers, the node's calls are refused until one does", "error", err)
		return nil, nil, 0
	}
	blob, age, err := c.Load()
	if err == nil && age >= stateLife {
		err = errors.Join(fmt.Errorf("what is kept is %v old, and holds for %v", age.Round(time.Minute), stateLife), c.Drop())
	}
	var view nodestream.View
	if err == nil {
		if view, err = a.restore(blob); err != nil {
			err = fmt.Errorf("what is kept cannot be used: %w", errors.Join(err, c.Drop()))
		}
	}
	switch {
	case errors.Is(err, cache.ErrNone):
	case err != nil:
		a.log.Warn("the state that an earlier agent of this node kept was deleted: this one waits for a controller", "error", err)
		return c, nil, 0
	default:
		a.log.Info("found the state that an earlier agent of this node kept", "age", age.Round(time.Second).String(), "resources", len(view))
	}
	return c, view, age
}

// keep writes what there is to keep whenever it changes, until ctx ends. age is that of
// the state in force.
func (a *Agent) keep(ctx context.Context, c *cache.Cache, age func() time.Duration) {
	failed := false
	for {
		next := a.news.next()
		blob, err := a.kept()
		if err == nil && blob != nil {
			err = c.Store(blob, age())
		}
		if err != nil && !failed {
			a.log.Warn("the state is not kept for this agent's next start; tried again each minute", "error", err)
		}
		failed = err != nil
		late := time.NewTimer(keepAgain)
		select {
		case <-next:
			late.Stop()
		case <-late.C:
		case <-ctx.Done():
			late.Stop()
			return
		}
		backoff.Sleep(ctx, keepPause)
	}
}

// maxNodeToken bounds a projected token's file.
const maxNodeToken = 16 << 10

// nodeUID returns the UID of the node that a projected token is bound to. The token is
// our own, by way of the kubelet: nothing is verified.
func nodeUID(tokenFile string) (string, error) {
	f, err := os.Open(tokenFile)
	if err != nil {
		return "", fmt.Errorf("read which node this is: %w", err)
	}
	defer f.Close()
	token, err := io.ReadAll(io.LimitReader(f, maxNodeToken))
	if err != nil {
		return "", fmt.Errorf("read which node this is: %w", err)
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
			json.Unmarshal(raw, &claims) // what it does not hold stays empty
		}
	}
	if claims.Kubernetes.Node.UID == "" {
		return "", fmt.Errorf("the token in %s is not bound to a node: that needs Kubernetes 1.32 or later", tokenFile)
	}
	return claims.Kubernetes.Node.UID, nil
}

// kept are the credentials that are held and still good.
func (s *svids) kept() ([]keptSVID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []keptSVID
	for a, c := range s.held {
		if !c.Live(time.Now()) {
			continue
		}
		chain, key, err := c.Marshal()
		if err != nil {
			return nil, err
		}
		out = append(out, keptSVID{a.namespace, a.name, chain, key})
	}
	return out, nil
}

// restore takes over credentials that an earlier process got. It must be called before want.
func (s *svids) restore(list []keptSVID) error {
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
			s.held[account{k.Namespace, k.Account}] = c
		}
	}
	return nil
}
