package route

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/pires/go-proxyproto"
)

func parseAny(b []byte) (*proxyproto.Header, error) {
	return proxyproto.Read(bufio.NewReader(bytes.NewReader(b)))
}

func endpoints(n int) []Endpoint {
	var es []Endpoint
	for i := range n {
		es = append(es, Endpoint{ID: EndpointID{byte(i), 1}, PodUID: fmt.Sprint("pod-", i)})
	}
	return es
}

func TestLookup(t *testing.T) {
	table, err := NewTable([]Row{{ID: 1024, Links: []string{"west", "east"}}, {ID: 1025}})
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		why   string
		table *Table
		link  string
		id    uint32
		err   error
	}{
		"admitted":    {"the ordinary case", table, "east", 1024, nil},
		"second name": {"links may come in any order", table, "west", 1024, nil},
		"other link":  {"a service exported to two peers is hidden from a third", table, "north", 1024, ErrNotForLink},
		"no links":    {"default is deny", table, "east", 1025, ErrNotForLink},
		"no name":     {"an unnamed link is none", table, "", 1025, ErrNotForLink},
		"no row":      {"a route withdrawn", table, "east", 1026, ErrNoRoute},
		"zero table":  {"before the first snapshot all is refused", &Table{}, "east", 1024, ErrNoRoute},
	}
	for name, c := range cases {
		row, err := c.table.Lookup(c.link, c.id)
		if !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
			t.Errorf("%s: %v, want %v (%s)", name, err, c.err, c.why)
		}
		if err == nil && row.ID != c.id {
			t.Errorf("%s: row %d, want %d", name, row.ID, c.id)
		}
	}
	if _, err := NewTable([]Row{{ID: 1}, {ID: 1}}); err == nil {
		t.Error("two rows with one id made a table: which of them would be used?")
	}
}

func TestPick(t *testing.T) {
	es := endpoints(4)
	es[2].Host = HostHash("db-2")
	cases := map[string]struct {
		why  string
		es   []Endpoint
		hint Hint
		seq  uint64
		want []string
	}{
		"any":          {"all are tried, from seq on", es, Hint{}, 0, []string{"pod-0", "pod-1", "pod-2", "pod-3"}},
		"any, rotated": {"callers spread", es, Hint{}, 6, []string{"pod-2", "pod-3", "pod-0", "pod-1"}},
		"huge seq":     {"seq may be a random number", es, Hint{}, 1<<64 - 1, []string{"pod-3", "pod-0", "pod-1", "pod-2"}},
		"wished":       {"the wish goes first, and is tried once", es, ForEndpoint(es[1].ID), 0, []string{"pod-1", "pod-0", "pod-2", "pod-3"}},
		"wished gone":  {"E or else any", es, ForEndpoint(EndpointID{99}), 1, []string{"pod-1", "pod-2", "pod-3", "pod-0"}},
		"open":         {"it is an endpoint like another", es, ForOpen(es[1].ID), 0, []string{"pod-1", "pod-0", "pod-2", "pod-3"}},
		"open gone":    {"E or else any", es, ForOpen(EndpointID{99}), 1, []string{"pod-1", "pod-2", "pod-3", "pod-0"}},
		"host":         {"a named pod is that pod", es, ForHost("DB-2"), 0, []string{"pod-2"}},
		"host gone":    {"another pod would be a wrong answer", es, ForHost("db-9"), 0, nil},
		"nameless":     {"a zero hash is no name", es, Hint{Kind: HintHost}, 0, nil},
		"none":         {"no division by zero", nil, Hint{}, 3, nil},
	}
	for name, c := range cases {
		var got []string
		for e := range (Row{Endpoints: c.es}).Pick(c.hint, c.seq) {
			got = append(got, e.PodUID)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v (%s)", name, got, c.want, c.why)
		}
	}
	for range (Row{Endpoints: es}).Pick(ForEndpoint(es[1].ID), 0) {
		break // an iterator that yields after a break panics
	}
}

func TestReadyIsBoundedAndReachesAll(t *testing.T) {
	row := Row{Endpoints: endpoints(200)}
	seen := map[EndpointID]bool{}
	for seq := range uint64(200) {
		ids, zones := row.Ready(seq)
		if len(ids) != MaxReadyIDs {
			t.Fatalf("%d ids, want %d", len(ids), MaxReadyIDs)
		}
		if zones != nil {
			t.Fatalf("peers learn the zones %q, although Row.Zones is false", zones)
		}
		for _, id := range ids {
			seen[id] = true
		}
	}
	if len(seen) != 200 {
		t.Errorf("%d of 200 endpoints were ever told", len(seen))
	}
	if ids, _ := (Row{Endpoints: endpoints(3)}).Ready(1); len(ids) != 3 {
		t.Errorf("%d ids of 3 endpoints", len(ids))
	}
}

func TestReadyHasZones(t *testing.T) {
	row := Row{Endpoints: endpoints(3), Zones: true}
	row.Endpoints[0].Backend.Zone, row.Endpoints[2].Backend.Zone = "a", "c"
	ids, zones := row.Ready(1)
	if !slices.Equal(zones, []string{"", "c", "a"}) || ids[1] != row.Endpoints[2].ID {
		t.Errorf("ids %v, zones %q", ids, zones)
	}
}

func TestReasonsAreClosedAndDistinct(t *testing.T) {
	names := Reasons()
	for _, r := range reasons {
		if got := Reason(fmt.Errorf("wrapped: %w", r.err)); got != r.name || !slices.Contains(names, got) {
			t.Errorf("%v: reason %q, want %q", r.err, got, r.name)
		}
	}
	if got := Reason(&StaleError{}); got != "stale" {
		t.Errorf("StaleError: %q", got)
	}
	if slices.Sort(names); len(slices.Compact(names)) != len(reasons)+1 {
		t.Errorf("names repeat: %v", names)
	}
}
