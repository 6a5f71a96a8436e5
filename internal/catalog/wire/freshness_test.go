package wire

import (
	"testing"
	"time"
)

func TestChooser(t *testing.T) {
	a, b, c := ReplicaID{1}, ReplicaID{2}, ReplicaID{3}
	type seen struct {
		at      time.Duration
		streams []Observed
		want    ReplicaID // zero: stay
	}
	on := func(r ReplicaID, epoch string, generation uint64, age time.Duration) Observed {
		f := Freshness{Version: Version{epoch, generation}, Age: age, Replica: r}
		return Observed{Freshness: f, Subscribed: true}
	}
	beside := func(r ReplicaID, epoch string, generation uint64, age time.Duration) Observed {
		o := on(r, epoch, generation, age)
		o.Subscribed = false
		return o
	}
	naming := func(o Observed, fresher ReplicaID) Observed {
		o.Fresher = fresher
		return o
	}
	ahead := []Observed{on(a, "e", 1, 0), beside(b, "e", 2, 0)}
	stale := []Observed{on(a, "e", 1, 31*time.Second), beside(b, "e", 1, 9*time.Second)}
	cases := map[string]struct {
		why   string
		steps []seen
	}{
		"equal replicas": {
			why: "nothing is gained",
			steps: []seen{
				{at: 0, streams: []Observed{on(a, "e", 2, 0), beside(b, "e", 2, 0)}},
				{at: time.Minute, streams: []Observed{on(a, "e", 2, 0), beside(b, "e", 2, 0)}},
			},
		},
		"ahead for a moment": {
			why:   "a replica is always ahead of another for a moment",
			steps: []seen{{at: 0, streams: ahead}, {at: 5*time.Second - 1, streams: ahead}},
		},
		"ahead for 5 s": {
			why:   "the subscribed replica is stuck",
			steps: []seen{{at: 0, streams: ahead}, {at: 5 * time.Second, streams: ahead, want: b}},
		},
		"caught up in between": {
			why: "the time counts from when it fell behind again",
			steps: []seen{
				{at: 0, streams: ahead},
				{at: 3 * time.Second, streams: []Observed{on(a, "e", 2, 0), beside(b, "e", 2, 0)}},
				{at: 5 * time.Second, streams: []Observed{on(a, "e", 2, 0), beside(b, "e", 3, 0)}},
				{at: 9 * time.Second, streams: []Observed{on(a, "e", 2, 0), beside(b, "e", 3, 0)}},
				{at: 10 * time.Second, streams: []Observed{on(a, "e", 2, 0), beside(b, "e", 3, 0)}, want: b},
			},
		},
		"another epoch": {
			why: "generations of different epochs do not compare",
			steps: []seen{
				{at: 0, streams: []Observed{on(a, "e", 1, 0), beside(b, "f", 9, 0)}},
				{at: time.Minute, streams: []Observed{on(a, "e", 1, 0), beside(b, "f", 9, 0)}},
			},
		},
		"the newest of several": {
			why: "one move must be enough",
			steps: []seen{
				{at: 0, streams: []Observed{on(a, "e", 1, 0), beside(b, "e", 2, 0), beside(c, "e", 3, 0)}},
				{
					at:      5 * time.Second,
					streams: []Observed{on(a, "e", 1, 0), beside(b, "e", 2, 0), beside(c, "e", 3, 0)},
					want:    c,
				},
			},
		},
		"named as fresher": {
			why: "with one gateway address there is no other stream",
			steps: []seen{
				{at: 0, streams: []Observed{naming(on(a, "e", 1, 0), c)}},
				{at: 5 * time.Second, streams: []Observed{naming(on(a, "e", 1, 0), c)}, want: c},
			},
		},
		"names itself": {
			why: "a move to the same replica gains nothing",
			steps: []seen{
				{at: 0, streams: []Observed{naming(on(a, "e", 1, 0), a)}},
				{at: time.Minute, streams: []Observed{naming(on(a, "e", 1, 0), a)}},
			},
		},
		"stale": {
			why:   "a replica without its API server never gets ahead or behind",
			steps: []seen{{at: 0, streams: stale, want: b}},
		},
		"all are stale": {
			why: "the API server is down for all",
			steps: []seen{
				{
					at:      0,
					streams: []Observed{on(a, "e", 1, 31*time.Second), beside(b, "e", 1, 10*time.Second)},
				},
			},
		},
		"not stale enough": {
			why:   "a slow API server is not a lost one",
			steps: []seen{{at: 0, streams: []Observed{on(a, "e", 1, 30*time.Second), beside(b, "e", 1, 0)}}},
		},
		"fresh but behind": {
			why:   "its copy would be older",
			steps: []seen{{at: 0, streams: []Observed{on(a, "e", 2, time.Minute), beside(b, "e", 1, 0)}}},
		},
		"stale, and the other has a new epoch": {
			why: "the cluster was restored, and the stale replica does not know",
			steps: []seen{
				{at: 0, streams: []Observed{on(a, "e", 2, time.Minute), beside(b, "f", 1, 0)}, want: b},
			},
		},
		"no flapping": {
			why: "each move costs a snapshot",
			steps: []seen{
				{at: 0, streams: stale, want: b},
				{at: 30*time.Second - 1, streams: stale},
				{at: 30 * time.Second, streams: stale, want: b},
			},
		},
		"moves that fail": {
			why: "a replica that cannot be reached must not cost a snapshot every 30 s",
			steps: []seen{
				{at: 0, streams: stale, want: b},
				{at: 30 * time.Second, streams: stale, want: b},
				{at: 90*time.Second - 1, streams: stale},
				{at: 90 * time.Second, streams: stale, want: b},
				{at: 210*time.Second - 1, streams: stale},
				{at: time.Hour, streams: stale, want: b},
				{at: 2 * time.Hour, streams: stale, want: b},
				{at: 3 * time.Hour, streams: stale, want: b},
				{at: 3*time.Hour + 10*time.Minute - 1, streams: stale},
				{at: 3*time.Hour + 10*time.Minute, streams: stale, want: b},
			},
		},
		"a move that works": {
			why: "the interval is the short one again",
			steps: []seen{
				{at: 0, streams: stale, want: b},
				{at: 30 * time.Second, streams: stale, want: b},
				{
					at:      90 * time.Second,
					streams: []Observed{on(b, "e", 1, time.Minute), beside(a, "e", 1, 0)},
					want:    a,
				},
				{at: 120*time.Second - 1, streams: stale},
				{at: 120 * time.Second, streams: stale, want: b},
			},
		},
		"a move that worked, and the replica ended": {
			why: "it was reached, so the interval is the short one",
			steps: []seen{
				{at: 0, streams: stale, want: b},
				{at: 10 * time.Second, streams: []Observed{on(b, "e", 1, 0), beside(a, "e", 1, time.Minute)}},
				{at: 30 * time.Second, streams: stale, want: b},
				{at: 40 * time.Second, streams: []Observed{on(b, "e", 1, 0), beside(a, "e", 1, time.Minute)}},
				{at: 60 * time.Second, streams: stale, want: b},
			},
		},
		"no subscription": {
			why:   "there is nothing to move",
			steps: []seen{{at: 0, streams: []Observed{beside(a, "e", 1, time.Minute), beside(b, "e", 2, 0)}}},
		},
		"unnamed replicas": {
			why: "a replica without an id cannot be asked for",
			steps: []seen{
				{
					at:      0,
					streams: []Observed{on(ReplicaID{}, "e", 1, time.Minute), beside(ReplicaID{}, "e", 2, 0)},
				},
			},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
			var chooser Chooser
			for _, step := range tc.steps {
				now := start.Add(step.at)
				for i := range step.streams {
					step.streams[i].At = now
				}
				got, move := chooser.Choose(now, step.streams)
				if got != step.want || move != !step.want.IsZero() {
					t.Errorf("%s: at %v got %v, %v; want %v", tc.why, step.at, got, move, step.want)
				}
			}
		})
	}
}

func TestObservedAges(t *testing.T) {
	now := time.Now()
	o := Observed{Freshness: Freshness{Age: time.Second}, At: now.Add(-time.Minute)}
	if got := o.age(now); got != time.Minute+time.Second {
		t.Errorf("an observation ages after it was received, got %v", got)
	}
}

func TestApplicable(t *testing.T) {
	const (
		zero = 0 * time.Minute
		ten  = 10 * time.Minute
	)
	type epoch struct {
		name        string
		first, last time.Duration // ago
	}
	cases := map[string]struct {
		why            string
		last, received Version
		seen           []epoch
		want           string
	}{
		"nothing applied before": {
			why:      "a new Link has no mirrors to lose",
			received: Version{"e", 1},
		},
		"newer": {
			why:  "the usual case",
			last: Version{"e", 1}, received: Version{"e", 2},
		},
		"the same": {
			why:  "a stream was opened again",
			last: Version{"e", 2}, received: Version{"e", 2},
		},
		"older": {
			why:  "a replica that is behind must not delete mirrors",
			last: Version{"e", 2}, received: Version{"e", 1},
			want: CatalogOlder,
		},
		"older, long after": {
			why:  "within an epoch a lower generation never becomes right",
			last: Version{"e", 2}, received: Version{"e", 1},
			seen: []epoch{{"e", 24 * time.Hour, zero}},
			want: CatalogOlder,
		},
		"new epoch, not seen": {
			why:  "its age is unknown",
			last: Version{"e", 2}, received: Version{"f", 1},
			want: EpochUnconfirmed,
		},
		"new epoch": {
			why:  "a stale replica of the old epoch may be the one that is right",
			last: Version{"e", 2}, received: Version{"f", 1},
			seen: []epoch{{"f", ten - 1, zero}},
			want: EpochUnconfirmed,
		},
		"new epoch for 10 minutes": {
			why:  "no replica reports the old one any more: the peer was restored from a backup",
			last: Version{"e", 2}, received: Version{"f", 1},
			seen: []epoch{{"e", time.Hour, ten}, {"f", ten, zero}},
		},
		"new epoch beside the old one": {
			why:  "two replicas disagree",
			last: Version{"e", 2}, received: Version{"f", 1},
			seen: []epoch{{"f", time.Hour, zero}, {"e", 2 * time.Hour, ten - 1}},
			want: EpochUnconfirmed,
		},
		"new epoch beside a third one": {
			why:  "two replicas disagree",
			last: Version{"e", 2}, received: Version{"f", 1},
			seen: []epoch{{"f", time.Hour, zero}, {"g", time.Minute, time.Minute}},
			want: EpochUnconfirmed,
		},
		"peer without versions": {
			why:  "it must not pass for an epoch that was applied",
			last: Version{"e", 2}, received: Version{},
			want: EpochUnconfirmed,
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
			var seen []EpochSeen
			for _, e := range tc.seen {
				seen = append(seen, EpochSeen{e.name, now.Add(-e.first), now.Add(-e.last)})
			}
			got, ok := Applicable(tc.last, tc.received, seen, now)
			if got != tc.want || ok != (tc.want == "") {
				t.Errorf("%s: got %q, %v; want %q", tc.why, got, ok, tc.want)
			}
		})
	}
}

func TestHistory(t *testing.T) {
	var h History
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	h.Observe(Version{"e", 1}, start)
	h.Observe(Version{"f", 1}, start.Add(time.Minute))
	h.Observe(Version{"e", 2}, start.Add(2*time.Minute))
	got := h.Seen()
	if len(got) != 2 || got[1] != (EpochSeen{"e", start, start.Add(2 * time.Minute)}) {
		t.Errorf("an epoch keeps its first time, got %v", got)
	}
	h.Observe(Version{"e", 2}, start.Add(11*time.Minute))
	if got := h.Seen(); len(got) != 1 {
		t.Errorf("an epoch of 10 minutes ago is forgotten, got %v", got)
	}
	for i := range 100 {
		h.Observe(Version{string(rune('A' + i)), 1}, start.Add(12*time.Minute))
	}
	if got := h.Seen(); len(got) != maxEpochs || got[maxEpochs-1].Epoch != string(rune('A'+99)) {
		t.Errorf("a peer that invents epochs must not fill our memory, got %d: %v", len(got), got)
	}
}
