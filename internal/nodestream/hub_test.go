package nodestream

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

func TestHubLeavesOutInvalidResources(t *testing.T) {
	h := NewHub()
	good, old := upstream("good", "1:1"), upstream("old", "1:1")
	if err := h.Apply(Change{Scope: Gateways, Resource: old}); err != nil {
		t.Fatal(err)
	}
	err := h.Apply(
		Change{Scope: Gateways, Resource: &wire.Resource{Key: "upstream/bad"}},
		Change{Scope: Gateways, Resource: upstream("old", string(make([]byte, maxResource)))},
		Change{Scope: Gateways, Resource: &wire.Resource{Key: "upstream/misfiled", Body: good.Body}},
		Change{Scope: Node("n1"), Resource: good},
		Change{Scope: Gateways, Resource: good},
	)
	if !errors.Is(err, ErrResource) || !errors.Is(err, ErrScope) {
		t.Errorf("the error must name all that was left out: %v", err)
	}
	for _, name := range []string{"upstream/bad", "upstream/old", "upstream/misfiled", "node/n1"} {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("the error must name %s: %v", name, err)
		}
	}
	got, _ := h.View(Gateways)
	if diff := cmp.Diff(mustView(t, good, old), got, protocmp.Transform()); diff != "" {
		t.Errorf("an invalid resource must not affect others or its last valid content (-want +got):\n%s",
			diff)
	}
}

func TestHubGet(t *testing.T) {
	h := NewHub()
	r := &wire.Resource{Body: upstream("a", "1:1").Body} // Apply sets the key
	if err := h.Apply(Change{Scope: Gateways, Resource: r}); err != nil {
		t.Fatal(err)
	}
	r.GetUpstream().Address = "2:2"
	if got := h.Get(Gateways, "upstream/a").GetUpstream().GetAddress(); got != "1:1" {
		t.Errorf("the hub must hold a copy, got address %q", got)
	}
	for why, got := range map[string]*wire.Resource{
		"another scope":   h.Get(Agents, "upstream/a"),
		"an unknown node": h.Get(Node("n1"), "upstream/a"),
		"another key":     h.Get(Gateways, "upstream/b"),
	} {
		if got != nil {
			t.Errorf("%s: got %v, want none", why, got)
		}
	}
}

// updates returns what a source has to send.
func updates(t *testing.T, s *source) (out []string) {
	t.Helper()
	for u, ok := s.next(); ok; u, ok = s.next() {
		text := fmt.Sprint(len(u.GetUpserts()), " ", u.GetRemoved())
		if u.GetReset_() {
			text += " reset"
		}
		if u.GetComplete() {
			text += " complete"
		}
		out = append(out, text)
	}
	return out
}

func TestSource(t *testing.T) {
	h := NewHub()
	apply := func(changes ...Change) {
		t.Helper()
		if err := h.Apply(changes...); err != nil {
			t.Fatal(err)
		}
	}
	h.AddNode("n1")
	h.AddNode("n2")
	scopes := Subject{Role: RoleAgent, Node: "n1"}.scopes()
	if _, err := h.open(scopes); !errors.Is(err, errNotReady) {
		t.Errorf("a stream before SetReady must be refused, got %v", err)
	}
	h.SetReady()
	if _, err := h.open(scopes); !errors.Is(err, errNotReady) {
		t.Errorf("a stream of a node without content must be refused, got %v", err)
	}
	if _, err := h.open([]Scope{Agents, Node("n9")}); !errors.Is(err, ErrScope) {
		t.Errorf("a stream of an unknown node must be refused, got %v", err)
	}
	apply(
		Change{Scope: Agents, Resource: upstream("shared", "1:1")},
		Change{Scope: Node("n1"), Resource: upstream("own", "1:1")},
	)
	src, err := h.open(scopes)
	if err != nil {
		t.Fatal(err)
	}
	defer src.close()
	steps := []struct {
		why     string
		changes []Change
		want    []string
	}{
		{why: "the snapshot is complete with both scopes", want: []string{"1 []", "1 [] complete"}},
		{
			why: "equal resources are not a change",
			changes: []Change{
				{Scope: Agents, Resource: upstream("shared", "1:1")},
				{Scope: Agents, Removed: "upstream/absent"},
			},
		},
		{
			why:     "another node's resources stay there",
			changes: []Change{{Scope: Node("n2"), Resource: upstream("theirs", "1:1")}},
		},
		{
			why: "the last change of a key counts",
			changes: []Change{
				{Scope: Agents, Resource: upstream("shared", "2:2")},
				{Scope: Agents, Resource: upstream("shared", "1:1")},
				{Scope: Node("n1"), Removed: "upstream/own"},
			},
			want: []string{"0 [upstream/own] complete"},
		},
	}
	for _, s := range steps {
		apply(s.changes...)
		if diff := cmp.Diff(s.want, updates(t, src)); diff != "" {
			t.Errorf("%s: updates (-want +got):\n%s", s.why, diff)
		}
	}
	// A client that misses a removal in one scope gets a snapshot of both.
	apply(Change{Scope: Node("n1"), Resource: upstream("own", "1:1")})
	updates(t, src)
	apply(Change{Scope: Node("n1"), Removed: "upstream/own"})
	for i := range 5000 {
		name := fmt.Sprint("short-lived-", i)
		apply(Change{Scope: Node("n1"), Resource: upstream(name, "1:1")})
		apply(Change{Scope: Node("n1"), Removed: "upstream/" + name})
	}
	if diff := cmp.Diff([]string{"1 [] reset", "0 [] complete"}, updates(t, src)); diff != "" {
		t.Errorf("after a reset: updates (-want +got):\n%s", diff)
	}
	gone := src.gone()
	h.RemoveNode("n1")
	select {
	case <-gone:
	default:
		t.Error("the streams of a removed node must end")
	}
}

// BenchmarkOneChange changes one resource of a cluster with 10,000 shared resources and
// lets the streams of all agents send what concerns them.
func BenchmarkOneChange(b *testing.B) {
	for _, nodes := range []int{200, 1000} {
		for _, scope := range []Scope{Agents, Node("0")} {
			b.Run(fmt.Sprintf("nodes=%d/scope=%s", nodes, strings.ReplaceAll(string(scope), "/", "-")),
				func(b *testing.B) {
					h := NewHub()
					h.SetReady()
					apply := func(changes ...Change) {
						if err := h.Apply(changes...); err != nil {
							b.Fatal(err)
						}
					}
					for i := range 10_000 {
						apply(Change{
							Scope:    Agents,
							Resource: upstream(fmt.Sprint("shared-", i), strings.Repeat("x", 200)),
						})
					}
					var sources []*source
					for i := range nodes {
						node := fmt.Sprint(i)
						h.AddNode(node)
						apply(Change{Scope: Node(node), Resource: upstream("own", "1:1")})
						src, err := h.open([]Scope{Agents, Node(node)})
						if err != nil {
							b.Fatal(err)
						}
						defer src.close()
						for _, ok := src.next(); ok; _, ok = src.next() {
						}
						sources = append(sources, src)
					}
					b.ReportAllocs()
					for i := 0; b.Loop(); i++ {
						apply(Change{Scope: scope, Resource: upstream("changing", fmt.Sprint(i))})
						sent := 0
						for _, src := range sources {
							for u, ok := src.next(); ok; u, ok = src.next() {
								sent += len(u.Upserts)
							}
						}
						if want := map[Scope]int{Agents: nodes, Node("0"): 1}[scope]; sent != want {
							b.Fatalf("%d resources were sent, want %d", sent, want)
						}
					}
				})
		}
	}
}
