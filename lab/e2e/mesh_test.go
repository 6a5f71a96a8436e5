//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/lab"
)

// A mesh is five clusters: the two that all tests share, and three beside them. Every one is linked with a, west and east; d and e are private, and not
// linked with each other.
type mesh map[string]*cluster

var (
	reachable = []string{"a", "west", "east"}
	private   = []string{"d", "e"}
)

// gather makes the three and opens the whole shop in the two, which it leaves as they were when the test ends.
func gather(t *testing.T) mesh {
	ctx := background()
	t.Cleanup(func() {
		for _, c := range []*cluster{west, east} {
			for _, gone := range []string{"a", "d", "e"} { // by now they are, for ever
				_ = c.dyn.Resource(links).Delete(ctx, gone, deleteOptions)
			}
		}
		must(t, east.kubectl(ctx, callers, "delete", "--ignore-not-found", "-f", "-"))
		must(t, west.kubectl(ctx, served, "delete", "--ignore-not-found", "-f", "-"))
		must(t, east.kubectl(ctx, "", "-n", "shop", "scale", "deployment", "bar", "--replicas=2"))
		for _, c := range []*cluster{west, east} {
			must(t, poll(ctx, time.Minute, func() error { return c.mirrorsOf(ctx, "a", "d", "e", "west") }))
		}
		must(t, east.kubectl(ctx, "", "-n", "shop", "rollout", "status", "deployment", "bar", "--timeout=60s"))
		serves(t)
	})
	m := mesh(beside(t,
		lab.Options{Clusters: []string{"a"}, Nodes: 2},
		lab.Options{Clusters: private, Shape: lab.Shape{Private: true}},
	))
	m["west"], m["east"] = west, east
	must(t, east.kubectl(ctx, callers, "apply", "-f", "-"))
	must(t, west.kubectl(ctx, served, "apply", "-f", "-"))
	for _, c := range reachable {
		must(t, m[c].kubectl(ctx, "", "-n", "shop", "scale", "deployment", "bar", "--replicas=3"))
		must(t, m[c].kubectl(ctx, "", "-n", "shop", "label", "service", "bar", "causeway.dev/export=true", "--overwrite"))
	}
	for _, c := range m {
		must(t, c.kubectl(ctx, "", "-n", "shop", "wait", "--for=condition=Ready", "pod", "--all", "--timeout=120s"))
	}
	return m
}

// mirrorsOf wants no mirror of these peers' Services to stand.
func (c *cluster) mirrorsOf(ctx context.Context, peers ...string) error {
	list, err := c.api.CoreV1().Services("").List(ctx, listOptions)
	if err != nil {
		return err
	}
	for _, s := range list.Items {
		if slices.Contains(peers, s.Labels[v1alpha1.LinkLabel]) {
			return fmt.Errorf("%s stands in %s", s.Name, c.Name())
		}
	}
	return nil
}

// pairs are those who are linked: from calls to.
func (m mesh) pairs() (out [][2]string) {
	for _, from := range slices.Concat(reachable, private) {
		for _, to := range reachable {
			if from != to {
				out = append(out, [2]string{from, to})
			}
		}
	}
	return out
}

var gatewayLines = regexp.MustCompile(`(?m)^  gateways:\n(    - .*\n)+`)

// link links all: nobody is told an address of those that cannot be reached.
func (m mesh) link(t *testing.T) {
	t.Helper()
	var all errgroup.Group
	for _, p := range m.pairs() {
		all.Go(func() error { return introduce(t.Context(), m[p[1]], m[p[0]]) })
	}
	for _, from := range private {
		half := have(m[from].causeway(t.Context(), "identity"))(t)
		without := gatewayLines.ReplaceAllString(half, "")
		if strings.Contains(without, "gateways") {
			t.Fatalf("the addresses are still there: %s", without)
		}
		for _, to := range reachable {
			all.Go(func() error { return m[to].kubectl(t.Context(), without, "apply", "-f", "-") })
		}
	}
	must(t, all.Wait())
}

// call asks a mirror of namespace shop as a cluster's pod, and wants a pod of another cluster.
func (m mesh) call(t *testing.T, from, pod, name, to string) error {
	if err := m.stands(t.Context(), from, name); err != nil {
		return err
	}
	said, err := m[from].curl(t.Context(), pod, "-sSf", "-m3", "http://"+name+".shop/")
	if err == nil && !strings.Contains(said, " in "+to+"\n") {
		err = fmt.Errorf("it answered %q", said)
	}
	if err != nil {
		err = fmt.Errorf("%s's %s called %s: %w", from, pod, name, err)
	}
	return err
}

func (m mesh) stands(ctx context.Context, in, name string) error {
	_, err := m[in].api.CoreV1().Services("shop").Get(ctx, name, getOptions)
	return err
}

// TestMesh: three clusters in a full mesh, one of two nodes, and two that nobody can reach but that reach the three: each calls each that
// it may, as itself, on every port; two Services of one name are two mirrors; what is hidden from one peer is not there.
func TestMesh(t *testing.T) {
	m := gather(t)
	m.link(t)
	since := time.Now()
	for _, p := range m.pairs() {
		within(t, 90*time.Second, p[0]+" reaches "+p[1], func() error { return m.call(t, p[0], "client", "bar-"+p[1], p[1]) })
	}
	t.Run("identities", func(t *testing.T) { m.seenAsThemselves(t, since) })
	t.Run("ports", func(t *testing.T) { m.everyPort(t) })
	t.Run("nodes", func(t *testing.T) { m.everyNode(t) })
	t.Run("one way", func(t *testing.T) { m.oneWay(t) })
	t.Run("a gateway's node is drained", func(t *testing.T) { m.gatewayDrained(t) })
	t.Run("route", func(t *testing.T) { m.routeMoves(t) })
	t.Run("hidden from one", func(t *testing.T) { m.hiddenFromOne(t) })
	t.Run("one leaves", func(t *testing.T) { m.oneLeaves(t) })
}

// seenAsThemselves: two accounts of every cluster call, and each callee's agents see those who called, under the name of their own
// cluster.
func (m mesh) seenAsThemselves(t *testing.T, since time.Time) {
	var want []string
	for _, p := range m.pairs() {
		domain := have(m[p[0]].trustDomain(t.Context()))(t)
		for _, account := range []string{"client", "guest"} {
			must(t, m.call(t, p[0], account, "bar-"+p[1], p[1]))
			want = append(want, p[1]+" ← "+p[0]+" spiffe://"+domain+"/ns/shop/sa/"+account)
		}
	}
	slices.Sort(want)
	within(t, 5*time.Second, "each is seen as itself", func() error {
		var got []string
		for _, to := range reachable {
			lines, err := m[to].logs(t.Context(), "agent", since)
			if err != nil {
				return err
			}
			for _, e := range lines {
				if e.text("msg") == "connection served" {
					got = append(got, to+" ← "+e.text("link")+" "+e.text("caller"))
				}
			}
		}
		slices.Sort(got)
		if got = slices.Compact(got); !slices.Equal(got, want) {
			return fmt.Errorf("seen were %q, want %q", got, want)
		}
		return nil
	})
}

// routeMoves: a weighted route moves a load from the mirror of one Link to that of another,
// and no request fails.
func (m mesh) routeMoves(t *testing.T) {
	ctx := t.Context()
	installRouteKinds(t, west)
	two := barPods("two", "two", 2, 1) + teamService("two")
	t.Cleanup(func() {
		must(t, west.kubectl(background(), splitRouteTo("two-a", 1, 1), "delete", "--ignore-not-found", "-f", "-"))
		must(t, m["a"].kubectl(background(), two, "delete", "--ignore-not-found", "--wait=false", "-f", "-"))
		must(t, gone(t, "two-a"))
	})
	must(t, m["a"].kubectl(ctx, two, "apply", "-f", "-"))
	openTeam(t, "one", 2, barPods("one", "one", 2, 1))
	within(t, 90*time.Second, "the pods of the other cluster are ready", func() error { return m["a"].teamReady(ctx, "two", 2) })
	within(t, soon, "its mirror answers", func() error {
		_, err := west.curl(ctx, "client", "-sSf", "-m2", "http://two-a.shop/")
		return err
	})
	moveUnderLoad(t, netOf(t, west, "client"), mirrorOf(t, "one-east", 80), "two-a")
}

// everyPort: the greeter, on another port of the same Service, is met on that port in each of the three.
func (m mesh) everyPort(t *testing.T) {
	ctx := t.Context()
	for _, p := range m.pairs() {
		s := have(m[p[0]].api.CoreV1().Services("shop").Get(ctx, "bar-"+p[1], getOptions))(t)
		c := have(dial(ctx, have(m[p[0]].PodNetns(ctx, "shop", "client"))(t), s.Spec.ClusterIP+":7000"))(t)
		if said, err := line(c, 3*time.Second); err != nil || said == "" {
			t.Errorf("%s's client was greeted by %s with %q, %v", p[0], p[1], said, err)
		}
		c.Close()
	}
}

// everyNode: of the cluster with two nodes, pods on both are called, and callers on both call.
func (m mesh) everyNode(t *testing.T) {
	ctx := t.Context()
	a := m["a"]
	nodes := make(map[string]string)
	list := have(a.api.CoreV1().Pods("shop").List(ctx, listOptions))(t)
	for _, p := range list.Items {
		nodes[p.Name] = p.Spec.NodeName
	}
	served := make(map[string]bool)
	within(t, 20*time.Second, "west's client meets pods on both of a's nodes", func() error {
		said, err := west.curl(ctx, "client", "-sSf", "-m3", "http://bar-a.shop/")
		if err != nil {
			t.Errorf("a call from west: %v", err)
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(said, "bar served by "), " in ")
		if served[nodes[name]] = true; len(served) < 2 {
			return fmt.Errorf("only met %v", served)
		}
		return nil
	})
	for _, node := range a.Nodes() {
		pod := "on-" + node
		manifest := strings.Replace(callerPod(pod, "client"), "spec:\n", "spec:\n  nodeName: "+node+"\n", 1)
		must(t, a.kubectl(ctx, manifest, "apply", "-f", "-"))
		must(t, a.kubectl(ctx, "", "-n", "shop", "wait", "--for=condition=Ready", "pod/"+pod, "--timeout=30s"))
		for range 4 {
			must(t, m.call(t, "a", pod, "bar-east", "east"))
		}
	}
}

// oneWay: those who can be reached say of those who cannot that they are linked and cannot be called, and mirror nothing of theirs.
func (m mesh) oneWay(t *testing.T) {
	ctx := t.Context()
	for _, at := range reachable {
		for _, link := range private {
			within(t, 30*time.Second, at+" says how it is with "+link, func() error {
				return errors.Join(
					m[at].condition(ctx, link, v1alpha1.LinkConnected, "True Connected"),
					m[at].condition(ctx, link, v1alpha1.LinkTrusted, "True Trusted"),
					m[at].condition(ctx, link, v1alpha1.LinkSynced, "False PeerUnreachable"),
					m[at].unreached(ctx, link),
				)
			})
			if err := m.stands(ctx, at, "baz-"+link); !apierrors.IsNotFound(err) {
				t.Errorf("%s mirrors baz of %s, which it cannot call: %v", at, link, err)
			}
		}
	}
}

// unreached wants a Link to say that its peer cannot be dialled: at no address, or at none of those that the peer says of itself.
func (c *cluster) unreached(ctx context.Context, link string) error {
	none := c.condition(ctx, link, v1alpha1.LinkGatewayReachable, "False NoAddress")
	if none == nil || c.condition(ctx, link, v1alpha1.LinkGatewayReachable, "False Unreachable") == nil {
		return nil
	}
	return none
}

// hiddenFromOne: a shows wine to west and d, and hides it from east.
func (m mesh) hiddenFromOne(t *testing.T) {
	ctx := t.Context()
	must(t, m["a"].relink(ctx, "east", `{"export":{"services":"Selected","selector":{"matchExpressions":[{"key":"hidden-from","operator":"NotIn","values":["east"]}]}}}`))
	must(t, m["a"].kubectl(ctx, service("wine", `labels: {causeway.dev/export: "true", hidden-from: east}, annotations: {causeway.dev/protocol: tcp}`, httpPort), "apply", "-f", "-"))
	for _, from := range []string{"west", "d"} {
		within(t, soon, from+" has wine", func() error { return m.call(t, from, "client", "wine-a", "a") })
	}
	must(t, m.call(t, "east", "client", "bar-a", "a"))
	if err := m.stands(ctx, "east", "wine-a"); !apierrors.IsNotFound(err) {
		t.Errorf("east has wine: %v", err)
	}
	must(t, m["a"].kubectl(ctx, "", "-n", "shop", "label", "service", "wine", "hidden-from=west", "--overwrite"))
	within(t, soon, "no longer hidden, east has it", func() error { return m.call(t, "east", "client", "wine-a", "a") })
	must(t, m["a"].kubectl(ctx, "", "-n", "shop", "label", "service", "wine", "hidden-from=east", "--overwrite"))
	within(t, soon, "hidden again, east has not", func() error {
		if err := m.stands(ctx, "east", "wine-a"); !apierrors.IsNotFound(err) {
			return fmt.Errorf("it is there: %w", err)
		}
		return nil
	})
}

// oneLeaves: west unlinks a. Nothing of a's is left in west, and nobody else notices.
func (m mesh) oneLeaves(t *testing.T) {
	ctx := t.Context()
	have(west.causeway(ctx, "unlink", "a"))(t)
	within(t, 20*time.Second, "nothing of a's is left in west", func() error { return west.mirrorsOf(ctx, "a") })
	for _, p := range m.pairs() {
		if p != [2]string{"west", "a"} && p != [2]string{"a", "west"} {
			must(t, m.call(t, p[0], "client", "bar-"+p[1], p[1]))
		}
	}
	must(t, introduce(ctx, m["a"], west))
	within(t, 30*time.Second, "linked again, west reaches a", func() error { return m.call(t, "west", "client", "bar-a", "a") })
	within(t, 30*time.Second, "and a west", func() error { return m.call(t, "a", "client", "bar-west", "west") })
}
