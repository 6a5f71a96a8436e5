package ledger

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// statefulSet wants the headless Service db and the mirrors of hosts.
func statefulSet(hosts ...string) []MirrorWant {
	db := mirrorWant("db", "sql")
	db.Headless, db.Named = true, len(hosts) > 0
	wants := []MirrorWant{db}
	for _, h := range hosts {
		w := mirrorWant("db", "sql")
		w.Hostname, w.MirrorName = h, h+"-east"
		wants = append(wants, w)
	}
	return wants
}

// byHost tells the VIPs of the live entries by what they are for.
func byHost(b Book) map[string]string {
	out := map[string]string{}
	for _, m := range b.Live() {
		out[m.Service+"/"+m.Hostname] = m.VIPs[0]
	}
	return out
}

func TestNamedPods(t *testing.T) {
	start, problems := Book{}.AssignMirrors(east(statefulSet("db-0", "db-1")...), wide, noon)
	all := map[string]string{"db/": "240.0.0.2", "db/db-0": "240.0.0.3", "db/db-1": "240.0.0.4"}
	if d := cmp.Diff(all, byHost(start)); d != "" || len(problems) > 0 {
		t.Fatalf("each named pod has a VIP of its own: %v (-want +got):\n%s", problems, d)
	}
	absent, _ := start.AssignMirrors(east(statefulSet("db-0")...), wide, noon)

	cases := map[string]struct {
		why   string
		peers []Peer
		after time.Duration
		want  map[string]string
		lost  bool // db-1 is marked as absent
	}{
		"still away":     {why: "a pod that is made anew keeps its mirror's address", peers: east(statefulSet("db-0")...), after: Linger - 1, want: all, lost: true},
		"back":           {why: "all is as before", peers: east(statefulSet("db-0", "db-1")...), after: Linger - 1, want: all},
		"away for long":  {why: "it was scaled down", peers: east(statefulSet("db-0")...), after: Linger, want: map[string]string{"db/": "240.0.0.2", "db/db-0": "240.0.0.3"}},
		"Service gone":   {why: "no pod outlives its Service", peers: east(), after: 1, want: map[string]string{}},
		"peer is silent": {why: "silence takes nothing away", peers: []Peer{{Link: "east", TrustDomain: "east.1"}}, after: time.Hour, want: all, lost: true},
		"name taken": {
			why: "what lingers was here first", peers: east(append(statefulSet("db-0"), mirrorWant("db-1"))...), after: 1, want: all, lost: true,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, _ := absent.AssignMirrors(c.peers, wide, noon.Add(c.after))
			if d := cmp.Diff(c.want, byHost(got)); d != "" {
				t.Errorf("%s (-want +got):\n%s", c.why, d)
			}
			for _, m := range got.Live() {
				if m.Hostname == "db-1" && (m.AbsentSince != nil) != c.lost {
					t.Errorf("%s: absent since %v", c.why, m.AbsentSince)
				}
			}
			again, _ := got.AssignMirrors(c.peers, wide, noon.Add(c.after))
			if len(Changed(got.Shards("x"), again.Shards("x"))) > 0 {
				t.Error("the same wants again change nothing")
			}
		})
	}
}

func TestLingeringPodFollowsItsService(t *testing.T) {
	b, _ := Book{}.AssignMirrors(east(statefulSet("db-0")...), wide, noon)
	wants := statefulSet()
	wants[0].Ports[0].Route, wants[0].Named = 3000, false
	b, _ = b.AssignMirrors(east(wants...), wide, noon.Add(time.Minute))
	for _, m := range b.Live() {
		if m.Ports[0].Route != 3000 {
			t.Errorf("the mirror of %q has route %d: a pod that comes back has its Service's new routes", m.Hostname, m.Ports[0].Route)
		}
	}
}

func TestHeadlessStaysHeadless(t *testing.T) {
	headless := func(b Book) bool {
		t.Helper()
		i := slices.IndexFunc(b.Live(), func(m v1alpha1.LedgerMirror) bool { return m.Hostname == "" })
		return b.Live()[i].Headless
	}
	ordinary, _ := Book{}.AssignMirrors(east(statefulSet()...), wide, noon)
	if headless(ordinary) {
		t.Error("a headless Service without named pods becomes an ordinary mirror")
	}
	b, _ := ordinary.AssignMirrors(east(statefulSet("db-0")...), wide, noon)
	if !headless(b) {
		t.Error("with the first named pod it becomes headless")
	}
	b, _ = b.AssignMirrors(east(statefulSet()...), wide, noon.Add(time.Hour))
	if !headless(b) {
		t.Error("scaled to zero it is not made anew")
	}
	gone, _ := b.AssignMirrors(east(), wide, noon.Add(time.Hour))
	b, _ = gone.AssignMirrors(east(statefulSet()...), wide, noon.Add(2*time.Hour))
	if !headless(b) {
		t.Error("nor when it comes back before its pods")
	}
	plain := mirrorWant("db", "sql")
	b, _ = b.AssignMirrors(east(plain), wide, noon.Add(2*time.Hour))
	if headless(b) {
		t.Error("a Service that has become an ordinary one is mirrored as one")
	}
}

func TestQuotaOfHostnames(t *testing.T) {
	one := Quotas{Hostnames: 1}
	b, _ := Book{}.AssignMirrors(with(one, statefulSet("db-1")...), wide, noon)
	b, problems := b.AssignMirrors(with(one, statefulSet("db-0", "db-1")...), wide, noon.Add(time.Minute))
	if d := cmp.Diff([]string{"db/", "db/db-1"}, slices.Sorted(maps.Keys(byHost(b)))); d != "" || len(problems) != 1 || problems[0].Reason != QuotaReached {
		t.Errorf("who was here first stays: %v (-want +got):\n%s", problems, d)
	}
	b, _ = Book{}.AssignMirrors(with(Quotas{Mirrors: 1}, append(statefulSet("db-0"), mirrorWant("a"))...), wide, noon)
	if d := cmp.Diff([]string{"a/"}, slices.Sorted(maps.Keys(byHost(b)))); d != "" {
		t.Errorf("no pod is mirrored without its Service (-want +got):\n%s", d)
	}
}

func TestNoPodWithoutItsService(t *testing.T) {
	other := mirrorWant("other")
	other.MirrorName = "db-east"
	b, _ := Book{}.AssignMirrors(east(other), wide, noon)
	b, problems := b.AssignMirrors(east(append(statefulSet("db-0"), other)...), wide, noon)
	if d := cmp.Diff([]string{"other/"}, slices.Sorted(maps.Keys(byHost(b)))); d != "" || len(problems) != 1 || problems[0].Reason != NameTaken {
		t.Errorf("a pod's mirror that nothing lists is none: %v (-want +got):\n%s", problems, d)
	}
}

func TestShardsKeepPods(t *testing.T) {
	b, _ := Book{}.AssignMirrors(east(statefulSet("db-0", "db-1")...), wide, noon)
	again, problems := Load(b.Shards("x"))
	if d := cmp.Diff(byHost(b), byHost(again)); d != "" || len(problems) > 0 {
		t.Errorf("pods of one Service are entries of their own: %v (-want +got):\n%s", problems, d)
	}
	if got := shardOf("east/shop/db/db-0"); got != 10 {
		t.Errorf("the companion's shard is %d: the layout of docs/design/0007-ledger.md must not change", got)
	}
}
