package ledger

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// statefulSet wants the headless Service db and the mirrors of its named pods.
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

func pod(host string) Source { return Source{Namespace: "shop", Service: "db", Hostname: host} }

func TestNamedPods(t *testing.T) {
	all := map[string]string{
		"east shop/db":      "240.0.0.2",
		"east shop/db/db-0": "240.0.0.3",
		"east shop/db/db-1": "240.0.0.4",
	}
	cases := map[string]struct {
		why   string
		do    func(w *world)
		after time.Duration
		want  map[string]string
		lost  bool // db-1 is marked as absent
	}{
		"still away": {
			why:   "a pod that is created again keeps its mirror's address",
			do:    func(*world) {},
			after: RemovalDelay - 1,
			want:  all,
			lost:  true,
		},
		"back": {
			why:   "all is as before",
			do:    func(w *world) { w.want("east", statefulSet("db-0", "db-1")...) },
			after: RemovalDelay - 1,
			want:  all,
		},
		"away for long": {
			why: "it was scaled down", do: func(*world) {}, after: RemovalDelay,
			want: map[string]string{"east shop/db": "240.0.0.2", "east shop/db/db-0": "240.0.0.3"},
		},
		"Service gone": {
			why:   "no pod outlives its Service",
			do:    func(w *world) { w.unwant("east", statefulSet()...) },
			after: 1,
			want:  map[string]string{},
		},
		"name wanted": {
			why:   "what is absent was there first",
			do:    func(w *world) { w.want("east", mirrorWant("db-1")) },
			after: time.Minute,
			want:  all,
			lost:  true,
		},
	}
	for name, c := range cases {
		for _, takeover := range []bool{false, true} {
			if takeover {
				name += " after a takeover"
			}
			t.Run(name, func(t *testing.T) {
				w := newWorld(t, wide)
				w.link("east", Quotas{})
				w.want("east", statefulSet("db-0", "db-1")...)
				w.sync()
				if d := cmp.Diff(all, w.vips()); d != "" {
					t.Fatalf("each named pod has an address of its own (-want +got):\n%s", d)
				}
				w.Unwant("east", pod("db-1"), w.now)
				w.sync()
				if takeover {
					w = newWorldOn(t, w.store, wide, w.now)
					w.link("east", Quotas{})
					w.want("east", statefulSet("db-0")...)
					w.Complete("east", w.now)
					if n := w.sync(); n > 0 {
						t.Errorf("a takeover writes %d objects", n)
					}
				}
				if next := w.Tick(w.now); !next.Equal(noon.Add(RemovalDelay)) {
					t.Errorf("the next Tick is due at %v", next)
				}
				c.do(w)
				w.after(c.after).sync()
				if d := cmp.Diff(c.want, w.vips()); d != "" {
					t.Errorf("%s (-want +got):\n%s", c.why, d)
				}
				if m := w.mirrors["east shop/db/db-1"]; m != nil && m.AbsentSince.IsZero() == c.lost {
					t.Errorf("%s: absent since %v", c.why, m.AbsentSince)
				}
				if n := w.sync(); n > 0 {
					t.Errorf("time alone makes us write %d objects", n)
				}
			})
		}
	}
}

func TestAbsentPodFollowsItsService(t *testing.T) {
	w := newWorld(t, wide)
	w.link("east", Quotas{})
	w.want("east", statefulSet("db-0")...)
	w.sync()
	w.after(time.Minute).Unwant("east", pod("db-0"), w.now)
	db := statefulSet()[0]
	db.Ports = slices.Clone(db.Ports)
	db.Ports[0].Route = 3000
	w.want("east", db)
	w.sync()
	if m := w.mirrors["east shop/db/db-0"]; m.Ports[0].Route != 3000 ||
		!w.mirrors["east shop/db"].Headless || m.Headless {
		t.Errorf("a pod that comes back has its Service's new routes: %v", m)
	}
}

func TestHeadlessStaysHeadless(t *testing.T) {
	w := newWorld(t, wide)
	w.link("east", Quotas{})
	headless := func(want bool, why string) {
		t.Helper()
		if w.sync(); w.mirrors["east shop/db"].Headless != want {
			t.Error(why)
		}
		w.after(time.Hour)
	}
	w.want("east", statefulSet()...)
	headless(false, "a headless Service without named pods becomes an ordinary mirror")
	w.want("east", statefulSet("db-0")...)
	headless(true, "with the first named pod it becomes headless")
	w.Unwant("east", pod("db-0"), w.now)
	w.want("east", statefulSet()...)
	headless(true, "scaled to zero it is not made again")
	w.unwant("east", statefulSet()...)
	w.sync()
	w.want("east", statefulSet()...)
	headless(true, "nor when it returns before its pods")
	w.want("east", mirrorWant("db", "sql"))
	headless(false, "a Service that has become an ordinary one is mirrored as one")
}

func TestNoPodWithoutItsService(t *testing.T) {
	other := mirrorWant("other")
	other.MirrorName = "db-east"
	w := newWorld(t, wide)
	w.link("east", Quotas{})
	w.want("east", other)
	w.sync()
	w.want("east", statefulSet("db-0")...)
	w.after(time.Minute).sync()
	if p := w.Problems("east"); len(w.mirrors) != 1 || len(p) != 1 || p[0].Reason != NameTaken {
		t.Errorf("a pod's mirror that nothing lists is none: %v, %v", w.vips(), p)
	}
	w.unwant("east", other)
	w.sync()
	if w.mirrors["east shop/db/db-0"] == nil {
		t.Errorf("it comes with its Service: %v", w.vips())
	}
}

func TestQuotaOfHostnames(t *testing.T) {
	w := newWorld(t, wide)
	w.link("east", Quotas{Hostnames: 1})
	w.want("east", statefulSet("db-1")...)
	w.sync()
	w.after(time.Minute).want("east", statefulSet("db-0", "db-1")...)
	w.sync()
	if p := w.Problems("east"); w.mirrors["east shop/db/db-1"] == nil || len(w.mirrors) != 2 ||
		len(p) != 1 || !strings.HasSuffix(p[0].Message, "1 by hostnames") {
		t.Errorf("the oldest stay: %v, %v", w.vips(), p)
	}
	w.Unwant("east", pod("db-1"), w.now)
	w.after(RemovalDelay).sync()
	w.after(RemovalDelay).sync()
	if p := w.Problems("east"); w.mirrors["east shop/db/db-0"] == nil || len(p) != 0 {
		t.Errorf("the next has the place: %v, %v", w.vips(), p)
	}
}
