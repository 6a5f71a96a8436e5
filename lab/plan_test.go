package lab

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestExtend(t *testing.T) {
	have := Plan{Clusters: []ClusterPlan{{Name: "east", Index: 2, Nodes: 1, APIPort: 7001}}}
	cases := map[string]struct {
		why      string
		clusters []string
		nodes    int
		want     []ClusterPlan
		fails    bool
	}{
		"nothing new": {
			why:      "up on a running lab is a no-op: ports and blocks are known outside",
			clusters: []string{"east"}, nodes: 3,
			want: []ClusterPlan{{Name: "east", Index: 2, Nodes: 1, APIPort: 7001}},
		},
		"new ones take free places": {
			why:      "a block must never be given to two clusters",
			clusters: []string{"west", "east", "north"}, nodes: 2,
			want: []ClusterPlan{
				{Name: "east", Index: 2, Nodes: 1, APIPort: 7001},
				{Name: "west", Index: 1, Nodes: 2, APIPort: 9001},
				{Name: "north", Index: 3, Nodes: 2, APIPort: 9002},
			},
		},
		"named twice": {
			why:      "a slip of the hand makes one cluster, not two in one place",
			clusters: []string{"west", "west"}, nodes: 1,
			want: []ClusterPlan{{Name: "east", Index: 2, Nodes: 1, APIPort: 7001}, {Name: "west", Index: 1, Nodes: 1, APIPort: 9001}},
		},
		"bad name":  {why: "the name would become a path", clusters: []string{"a/b"}, nodes: 1, fails: true},
		"no nodes":  {why: "a cluster without a node runs nothing", clusters: []string{"west"}, fails: true},
		"too many":  {why: "node addresses would leave their range", clusters: []string{"west"}, nodes: maxNodes + 1, fails: true},
		"no names":  {why: "repair needs no names", nodes: 1, want: have.Clusters},
		"port lack": {why: "an error in finding a port is the caller's to see", clusters: []string{"a", "b", "c", "d"}, nodes: 1, fails: true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			port := 9000
			got, err := have.Extend(c.clusters, c.nodes, Shape{}, func() (int, error) {
				if port++; port > 9003 {
					return 0, errors.New("no port is free")
				}
				return port, nil
			})
			if (err != nil) != c.fails {
				t.Fatalf("error %v, want one: %v: %s", err, c.fails, c.why)
			}
			if c.fails {
				return
			}
			if diff := cmp.Diff(c.want, got.Clusters); diff != "" {
				t.Errorf("%s (-want +got):\n%s", c.why, diff)
			}
		})
	}
	if len(have.Clusters) != 1 {
		t.Error("Extend changed the plan that it was called on")
	}
}

func TestPlanWAN(t *testing.T) {
	public, nodes := netip.MustParsePrefix(PublicRange), netip.MustParsePrefix(NodeRange)
	var blocks []netip.Prefix
	for i := 1; i <= maxClusters; i++ {
		w := planWAN(i)
		for name, a := range map[string]netip.Addr{"masquerade": w.Masq, "first": w.FirstLB, "last": w.LastLB} {
			if !w.Block.Contains(a) || !public.Contains(a) {
				t.Errorf("cluster %d: the %s address %s is outside its block %s", i, name, a, w.Block)
			}
		}
		if w.serves(w.Masq) {
			t.Errorf("cluster %d: its own address %s could be given to a Service", i, w.Masq)
		}
		if w.WANEnd.Masked() != w.Router.Masked() || public.Overlaps(w.WANEnd) {
			t.Errorf("cluster %d: link ends %s and %s do not fit", i, w.WANEnd, w.Router)
		}
		for _, b := range append(blocks, nodes, netip.MustParsePrefix(PodRange), netip.MustParsePrefix(ServiceRange)) {
			if b.Overlaps(w.Block) {
				t.Errorf("cluster %d: its block %s overlaps %s", i, w.Block, b)
			}
		}
		blocks = append(blocks, w.Block)
	}
	for i := 1; i <= maxNodes; i++ {
		if !nodes.Contains(nodeIP(i)) || !netip.MustParsePrefix(PodRange).Overlaps(podCIDR(i)) {
			t.Errorf("node %d: %s or %s is outside its range", i, nodeIP(i), podCIDR(i))
		}
	}
}

func TestWithout(t *testing.T) {
	three := Plan{Clusters: []ClusterPlan{{Name: "a", Index: 1}, {Name: "b", Index: 2}, {Name: "c", Index: 3}}, WAN: Weather{Loss: 1}}
	cases := map[string]struct {
		why   string
		names []string
		left  []int // indexes; nil means that it is refused
	}{
		"one":            {why: "the others keep their places: their addresses are known to peers", names: []string{"b"}, left: []int{1, 3}},
		"two":            {why: "one call may take several", names: []string{"c", "a"}, left: []int{2}},
		"unknown":        {why: "a wrong name must not take the rest", names: []string{"a", "x"}},
		"all":            {why: "a lab without clusters could not be found again", names: []string{"a", "b", "c"}},
		"one that is in": {why: "a place that is free is given again", names: []string{"a"}, left: []int{2, 3}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := three.without(c.names)
			if (err != nil) != (c.left == nil) {
				t.Fatalf("error %v: %s", err, c.why)
			}
			var left []int
			for _, p := range got.Clusters {
				left = append(left, p.Index)
			}
			if !slices.Equal(left, c.left) || err == nil && got.WAN != three.WAN {
				t.Errorf("left are %v with %+v, want %v: %s", left, got.WAN, c.left, c.why)
			}
		})
	}
}

func TestHeapLimit(t *testing.T) {
	cases := map[string]struct {
		why   string
		shape Shape
		want  string
	}{
		"small": {why: "five clusters fit on one machine", want: "GOMEMLIMIT=96MiB"},
		"large": {why: "10,000 Services must not keep etcd in its garbage collector", shape: Shape{Large: true}, want: "GOMEMLIMIT=768MiB"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := c.shape.memory(96); got != c.want {
				t.Errorf("memory(96) = %q, want %q: %s", got, c.want, c.why)
			}
		})
	}
}
