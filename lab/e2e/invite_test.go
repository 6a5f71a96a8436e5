//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/causeway-mesh/causeway/lab"
)

// TestInvite: two clusters whose administrators share no context make a Link by a token, once; whoever comes with it afterwards, too
// late, at the same time or from another cluster than the one invited is refused and told, and the inviter sees who it was. The
// joiner's gateway can be reached by nobody: that the joiner dials is enough.
func TestInvite(t *testing.T) {
	clusters := extra(t, "inv",
		lab.Options{Clusters: []string{"hub", "rival"}},
		lab.Options{Clusters: []string{"spoke"}, Shape: lab.Shape{Private: true}},
	)
	hub, spoke, rival := clusters["hub"], clusters["spoke"], clusters["rival"]
	ctx := t.Context()
	within(t, time.Minute, "hub knows where its gateway is", func() error {
		half, err := hub.causeway(ctx, "identity")
		if err == nil && !strings.Contains(half, "gateways:") {
			err = errNotYet
		}
		return err
	})
	var token string
	t.Run("a token links two clusters, and a call works", func(t *testing.T) {
		token = have(hub.causeway(ctx, "invite", "spoke"))(t)
		must(t, spoke.brings(ctx, token, "hub", "--timeout", "30s"))
		within(t, time.Minute, "baz-hub answers", func() error { return answersIn(ctx, spoke, "http://baz-hub.shop/", hub) })
	})
	t.Run("with the token again the same cluster is where it was", func(t *testing.T) {
		must(t, spoke.brings(ctx, token, "hub", "--timeout", "30s"))
	})
	t.Run("a token that was used is refused to another", func(t *testing.T) {
		wantNo(t, rival.brings(ctx, token, "hub", "--as", "spoke"), "Used")
		wantSeen(t, hub, "spoke", rival, "Used")
	})
	t.Run("a token for another cluster is refused before it is shown to anybody", func(t *testing.T) {
		wantNo(t, rival.brings(ctx, token, "hub"), "is for cluster spoke")
	})
	t.Run("a token is of no use where it was made", func(t *testing.T) {
		wantNo(t, hub.brings(ctx, token, "other", "--as", "spoke"), "this very cluster")
	})
	t.Run("a token that ran out is refused", func(t *testing.T) {
		late := have(hub.causeway(ctx, "invite", "rival", "--valid-for", "1s"))(t)
		within(t, 5*time.Second, "it runs out", func() error { return hub.inState(ctx, "rival", "Expired") })
		wantNo(t, rival.brings(ctx, late, "hub"), "Expired")
		wantSeen(t, hub, "rival", rival, "Expired")
	})
	t.Run("a Link that was taken back does not come again by its token", func(t *testing.T) {
		have(hub.causeway(ctx, "unlink", "spoke"))(t)
		have(spoke.causeway(ctx, "unlink", "hub"))(t)
		wantNo(t, spoke.brings(ctx, token, "hub"), "Used")
	})
	t.Run("of two who race one is linked and the other told", func(t *testing.T) { race(t, hub, spoke, rival) })
	t.Run("nothing of a token is left with the joiners", func(t *testing.T) {
		for _, c := range []*cluster{spoke, rival} {
			for _, what := range []string{"joins", "secrets"} {
				out := have(output(c.Kubectl(ctx, "-n", system, "get", what, "-o", "name")))(t)
				if strings.Contains(out, "join") {
					t.Errorf("%s holds %s", c.Name(), out)
				}
			}
		}
	})
}

// race lets two clusters use one token at the same time.
func race(t *testing.T, hub *cluster, guests ...*cluster) {
	ctx := t.Context()
	token := have(hub.causeway(ctx, "invite", "prize"))(t)
	errs := make([]error, len(guests))
	var racing sync.WaitGroup
	for i, c := range guests {
		racing.Go(func() { errs[i] = c.brings(ctx, token, "hub", "--as", "prize", "--timeout", "30s") })
	}
	racing.Wait()
	won := 0
	for i, err := range errs {
		if err == nil {
			won++
			continue
		}
		wantNo(t, err, "Used")
		wantSeen(t, hub, "prize", guests[i], "Used")
	}
	if won != 1 {
		t.Errorf("%d of %d won: %v", won, len(guests), errs)
	}
	if links := have(output(hub.Kubectl(ctx, "get", "links", "-o", "name")))(t); strings.Count(links, "\n") != 1 {
		t.Errorf("the inviter has %q", links)
	}
}

// brings runs `causeway join` with a token on its standard input.
func (c *cluster) brings(ctx context.Context, token string, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(setting("CAUSEWAY_BIN", "../../bin"), "causeway"), append([]string{"join"}, args...)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig())
	cmd.Stdin = strings.NewReader(token)
	_, err := output(cmd)
	return err
}

// invitation is what `causeway invite list --json` says of one.
type invitation struct {
	Peer, State string
	Refusals    []struct{ TrustDomain, Address, Reason string }
}

func (c *cluster) invitation(ctx context.Context, peer string) (invitation, error) {
	out, err := c.causeway(ctx, "invite", "list", "--json")
	if err != nil {
		return invitation{}, err
	}
	var all []invitation
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		return invitation{}, err
	}
	for _, i := range all {
		if i.Peer == peer {
			return i, nil
		}
	}
	return invitation{}, fmt.Errorf("%s has no invite for %s", c.Name(), peer)
}

func (c *cluster) inState(ctx context.Context, peer, state string) error {
	i, err := c.invitation(ctx, peer)
	if err == nil && i.State != state {
		err = fmt.Errorf("it is %s", i.State)
	}
	return err
}

func wantNo(t *testing.T, err error, why string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), why) {
		t.Errorf("refused with %v, want a word of %q", err, why)
	}
}

// wantSeen asks that the inviter's people see who was refused and from where.
func wantSeen(t *testing.T, hub *cluster, peer string, who *cluster, reason string) {
	t.Helper()
	domain := have(who.trustDomain(t.Context()))(t)
	i := have(hub.invitation(t.Context(), peer))(t)
	for _, r := range i.Refusals {
		if r.TrustDomain == domain && r.Reason == reason && r.Address != "" {
			named(t, hub, 10*time.Second, quick, finding{"invite", peer, "warning", fmt.Sprintf("a cluster of trust domain %s was refused, at %s: %s", domain, r.Address, reason)})
			return
		}
	}
	t.Errorf("the inviter sees %+v, and not that %s was refused: %s", i, domain, reason)
}
