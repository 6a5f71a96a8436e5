package gateway

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

func TestNewState(t *testing.T) {
	today := route.Day(time.Now())
	key := func(n byte) []byte { return append(make([]byte, 31), n) }
	link := func(name string, n byte) *wire.Resource {
		return &wire.Resource{Body: &wire.Resource_Link{Link: &wire.Link{
			Name:    name,
			Uid:     "uid-" + name,
			DayKeys: []*wire.DayKey{{Day: today, Key: key(n)}},
		}}}
	}
	row := func(id uint32, endpoints ...*wire.Endpoint) *wire.Resource {
		return &wire.Resource{Body: &wire.Resource_Route{Route: &wire.Route{
			Id:        id,
			Links:     []string{"west", "east"},
			Endpoints: endpoints,
		}}}
	}
	endpoint := func(id, backend string) *wire.Endpoint {
		return &wire.Endpoint{Id: []byte(id), PodUid: "pod-" + id, Upstream: backend}
	}
	cases := map[string]struct {
		why       string
		resources []*wire.Resource
		revoked   string
		links     map[string]string
		endpoints map[uint32][]string // backends by route
		broken    bool
	}{
		"nothing": {
			why:       "a cluster without links refuses all",
			links:     map[string]string{},
			endpoints: map[uint32][]string{},
		},
		"all is well": {
			why: "a state has what the view has",
			resources: []*wire.Resource{
				link("west", 1), link("east", 2),
				upstream("a", "10.0.0.1:4144", key(1)),
				row(1024, endpoint("endpnt-1", "a")),
			},
			links:     map[string]string{"west": "uid-west", "east": "uid-east"},
			endpoints: map[uint32][]string{1024: {"a"}},
		},
		"revoked": {
			why:       "a Link seen deleted has no key",
			resources: []*wire.Resource{link("west", 1), link("east", 2), row(1024)},
			revoked:   "uid-west",
			links:     map[string]string{"east": "uid-east"},
			endpoints: map[uint32][]string{1024: nil},
		},
		"backend not known": {
			why: "it comes with a later update; the others serve meanwhile",
			resources: []*wire.Resource{
				upstream("a", "10.0.0.1:4144", key(1)),
				row(1024, endpoint("endpnt-1", "b"), endpoint("endpnt-2", "a")),
			},
			links:     map[string]string{},
			endpoints: map[uint32][]string{1024: {"a"}},
		},
		"backend without an address": {
			why: "one odd node must not keep a deleted Link in force",
			resources: []*wire.Resource{
				link("west", 1),
				upstream("a", "10.0.0.1:4144", key(1)), upstream("b", "node-b:4144", key(2)),
				row(1024, endpoint("endpnt-1", "b"), endpoint("endpnt-2", "a")),
			},
			links:     map[string]string{"west": "uid-west"},
			endpoints: map[uint32][]string{1024: {"a"}},
			broken:    true,
		},
		"hop key too short": {
			why: "headers to it could be forged",
			resources: []*wire.Resource{
				upstream("a", "10.0.0.1:4144", key(1)[1:]),
				row(1024, endpoint("endpnt-1", "a")),
			},
			links:     map[string]string{},
			endpoints: map[uint32][]string{1024: nil},
			broken:    true,
		},
		"endpoint id too short": {
			why: "an id is 8 bytes",
			resources: []*wire.Resource{
				upstream("a", "10.0.0.1:4144", key(1)),
				row(1024, endpoint("1", "a")),
			},
			links:     map[string]string{},
			endpoints: map[uint32][]string{1024: nil},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			view := must(nodestream.NewView(tc.resources...))(t)
			s, err := newState(view, func(uid string) bool { return uid == tc.revoked }, nil)
			if (err != nil) != tc.broken {
				t.Fatalf("%s: %v, want broken: %v", tc.why, err, tc.broken)
			}
			if diff := cmp.Diff(tc.links, s.links); diff != "" {
				t.Errorf("%s: links (-want +got)\n%s", tc.why, diff)
			}
			got := map[uint32][]string{}
			for id := range tc.endpoints {
				r, err := s.table.Lookup("west", id)
				if err != nil {
					t.Fatal(err)
				}
				got[id] = nil
				for _, e := range r.Endpoints {
					got[id] = append(got[id], e.Backend.Name)
				}
			}
			if diff := cmp.Diff(tc.endpoints, got); diff != "" || s.table.Len() != len(tc.endpoints) {
				t.Errorf("%s: %d routes (-want +got)\n%s", tc.why, s.table.Len(), diff)
			}
			for name, n := range map[string]byte{"west": 1, "east": 2} {
				sealer := route.NewSealer(route.DatedKey{Day: today, Key: route.DayKey(key(n))})
				sni := must(sealer.Seal(1024, route.Hint{}, time.Now()))(t)
				opened, _, _ := s.keyring.Open(sni, time.Now())
				if _, linked := tc.links[name]; (opened == name) != linked {
					t.Errorf("%s: %s's label is opened as %q's", tc.why, name, opened)
				}
			}
			for name, uid := range tc.links {
				if !s.hasLink(uid) || s.hasLink(name) {
					t.Errorf("%s: holds is about UIDs", tc.why)
				}
			}
		})
	}
}
