package agent

import (
	"context"
	"encoding/base64"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/dataplane/podid"
	"github.com/causeway-mesh/causeway/internal/dataplane/uplink"
)

// restartAgent is an agent after w.west, which takes over what that one kept. Its
// controller is away.
func restartAgent(t *testing.T, w *harness) (*Agent, uplink.State) {
	t.Helper()
	blob := must(w.west.snapshot())(t)
	ctx, cancel := context.WithCancel(t.Context())
	a := New(ctx, failing, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	t.Cleanup(func() { cancel(); a.svids.wait() })
	a.podTable = podid.New(finder(foundAt(bridge)))
	view := must(a.restore(blob))(t)
	return a, uplink.State{View: view, Held: true, Revoked: func(string) bool { return false }}
}

// What one agent keeps is all that the next one needs: who is called, who calls, and as
// whom.
func TestSavedStateServesCalls(t *testing.T) {
	w := newHarness(t, echo)
	eventually(t, "alice's certificate", func() bool { _, ok := w.west.svids.get(aliceAccount); return ok })
	a, state := restartAgent(t, w)
	if _, err := a.current(); err == nil {
		t.Error("what is kept is in force before home says so")
	}
	a.onState(state)
	if !a.awaitState(t.Context(), time.Minute) {
		t.Fatal("it does not serve by what is kept")
	}
	want, _ := w.west.svids.get(aliceAccount)
	c := outboundConn{vip: netip.MustParseAddr(vip), iface: bridge, from: netip.AddrPortFrom(netip.MustParseAddr(alice), 1)}
	if err := a.resolve(&c); err != nil {
		t.Fatalf("alice's call: %v", err)
	}
	if c.mirror.name != "shop/bar-east" || c.credential.Name() != want.Name() || !c.credential.NotAfter().Equal(want.NotAfter()) {
		t.Errorf("alice calls %s as %s", c.mirror.name, c.credential)
	}
	if blob, err := a.snapshot(); blob != nil || err != nil {
		t.Errorf("it keeps again what it has not been told anew: %d bytes, %v", len(blob), err)
	}
}

// A pod that has gone while nobody looked may have left its address to another.
func TestSavedStateKeepsPodIdentities(t *testing.T) {
	w := newHarness(t, echo)
	eventually(t, "alice's certificate", func() bool { _, ok := w.west.svids.get(aliceAccount); return ok })
	ask := func(a *Agent) error {
		return a.resolve(&outboundConn{vip: netip.MustParseAddr(vip), iface: bridge, from: netip.AddrPortFrom(netip.MustParseAddr(alice), 1)})
	}
	moved, state := restartAgent(t, w)
	moved.podTable = podid.New(finder(foundAt(bridge + 1)))
	moved.podTable.Restore(w.west.podTable.Records())
	moved.onState(state)
	if err := ask(moved); reasonOf(err) != reasonPodMoved {
		t.Errorf("alice's address is another's now: %v, want %s", err, reasonPodMoved)
	}
	unseen, state := restartAgent(t, w)
	unseen.podTable = podid.New(finder(foundAt(bridge))) // she was never found before
	unseen.onState(state)
	if err := ask(unseen); reasonOf(err) != reasonPodNotLocated {
		t.Errorf("where alice was is not known: %v, want %s", err, reasonPodNotLocated)
	}
	state.Held = false
	unseen.onState(state)
	if err := ask(unseen); err != nil {
		t.Errorf("the controller says that alice is there: %v", err)
	}
}

func TestSavedStateWithoutRevokedLink(t *testing.T) {
	w := newHarness(t, echo)
	a, state := restartAgent(t, w)
	state.Revoked = func(uid string) bool { return uid == "link-to-east" }
	a.onState(state)
	if s, err := a.current(); err != nil || len(s.links) != 0 || len(s.mirrors) != 0 {
		t.Errorf("a Link that is gone counts on in what is kept: %v, %v", s, err)
	}
}

// What is revoked stays revoked, also for an agent that starts while neither controller
// nor API server answers.
func TestRevokedLinkIsNotSaved(t *testing.T) {
	revoked := func(uid string) bool { return uid == "link-to-east" }
	keeps := func(a *Agent) (links int) {
		t.Helper()
		blob := must(a.snapshot())(t)
		if blob == nil {
			t.Fatal("there is nothing to keep")
		}
		next := New(t.Context(), failing, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		for _, r := range must(next.restore(blob))(t) {
			if r.GetLink() != nil {
				links++
			}
		}
		return links
	}
	w := newHarness(t, echo)
	if n := keeps(w.west); n != 1 {
		t.Fatalf("%d Links are kept, want the one that is there", n)
	}
	held, state := restartAgent(t, w)
	w.west.onState(uplink.State{View: w.westView, Revoked: revoked})
	if n := keeps(w.west); n != 0 {
		t.Error("a Link that was seen deleted is kept for the next agent")
	}
	state.Revoked = revoked
	held.onState(state)
	if n := keeps(held); n != 0 {
		t.Error("a Link that was seen deleted while no controller answered is kept for the next agent")
	}
	if _, there := state.View["link/east"]; !there {
		t.Error("the view itself was edited: it is others', too")
	}
}

func TestCorruptSavedStateIsDropped(t *testing.T) {
	w := newHarness(t, echo)
	eventually(t, "alice's certificate", func() bool { _, ok := w.west.svids.get(aliceAccount); return ok })
	blob := string(must(w.west.snapshot())(t))
	for why, spoilt := range map[string]string{
		"no JSON":                  "{",
		"an account's other key":   strings.Replace(blob, `"account":"alice"`, `"account":"bob"`, 1),
		"no view":                  strings.Replace(blob, `"view":"`, `"view":"`+base64.StdEncoding.EncodeToString([]byte{1, 2, 3}), 1),
		"a key that is none":       strings.Replace(blob, `"key":"`, `"key":"AAAA`, 1),
		"an address that is none ": strings.Replace(blob, `"address":"`, `"address":"x`, 1),
	} {
		a := New(t.Context(), failing, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		if view, err := a.restore([]byte(spoilt)); err == nil || view != nil {
			t.Errorf("%s was taken over", why)
		}
	}
}

// Renewal goes on where the last process left it: a node's restart must not ask for all
// certificates anew.
func TestRestoredSVIDIsRenewedOnSchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gateway := &signer{cluster: newCluster(t, "west-1")}
		first := newSVIDs(gateway.signFunc, func() {}, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		first.setAccounts(ctx, map[account]bool{aliceAccount: true, {"shop", "bob"}: true})
		synctest.Wait()
		next := newSVIDs(gateway.signFunc, func() {}, slog.New(slog.DiscardHandler))
		if err := next.restore(must(first.snapshot())(t)); err != nil {
			t.Fatal(err)
		}
		next.setAccounts(ctx, map[account]bool{aliceAccount: true})
		synctest.Wait()
		was, _ := first.get(aliceAccount)
		if now, ok := next.get(aliceAccount); !ok || now.Name() != was.Name() || gateway.times() != 2 {
			t.Errorf("held %v as %v, asked %d times in all", ok, now, gateway.times())
		}
		if _, ok := next.get(account{"shop", "bob"}); ok {
			t.Error("the certificate of a pod that is gone is kept")
		}
		bubble.Pass(15 * time.Hour)
		if gateway.times() != 5 { // twice for each by the first, once by the next
			t.Errorf("asked %d times in 15 hours, want 5", gateway.times())
		}
		cancel()
		first.wait()
		next.wait()
	})
}

func TestNodeUID(t *testing.T) {
	token := func(claims string) string {
		return "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2ln\n"
	}
	cases := map[string]struct {
		why, token, want string
	}{
		"bound to a node":  {why: "a pod's projected token", token: token(`{"sub":"x","kubernetes.io":{"node":{"name":"n1","uid":"u-1"}}}`), want: "u-1"},
		"bound to none":    {why: "an API server older than 1.32", token: token(`{"kubernetes.io":{"pod":{"uid":"p"}}}`)},
		"no token":         {why: "what else may be mounted there", token: "text"},
		"claims are none":  {why: "likewise", token: "a.%%%.b"},
		"nothing is there": {why: "the kubelet has not written it"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "token")
			if tc.token != "" {
				if err := os.WriteFile(path, []byte(tc.token), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := nodeUID(path)
			if got != tc.want || (err == nil) != (tc.want != "") {
				t.Errorf("%s: got %q, %v, want %q", tc.why, got, err, tc.want)
			}
			if tc.token == "" && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// Where nothing can be kept the agent says so once, and goes on.
func TestWithoutCache(t *testing.T) {
	w := newHarness(t, echo)
	store, view, _ := w.west.loadSaved(t.TempDir(), filepath.Join(t.TempDir(), "none"))
	if store != nil || view != nil {
		t.Error("a cache without knowing which node this is")
	}
	if reply := w.logs[0].all("no cache; after a restart this agent refuses connections until a controller answers", "error"); len(reply) != 1 {
		t.Errorf("the operator is told %d times", len(reply))
	}
}
