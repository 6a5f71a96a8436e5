package nodestream

import (
	"encoding/hex"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// TestVectors holds the layout to docs/design/0005-node-stream.md. A failure means
// that agents and controllers of two versions no longer understand each other.
func TestVectors(t *testing.T) {
	vectors := map[string]struct {
		message *wire.Update
		want    string
	}{
		"first update": {
			message: &wire.Update{TimeMs: 1767225600000, Upserts: []*wire.Resource{{Key: "route/1024", Body: &wire.Resource_Route{Route: &wire.Route{
				Id: 1024, Links: []string{"west"}, Generation: 7,
				Endpoints: []*wire.Endpoint{{Id: []byte{1, 2, 3, 4, 5, 6, 7, 8}, PodUid: "uid-1", Backend: "n1"}},
			}}}}},
			want: "0a300a0a726f7574652f313032343a220880081204776573741a150a08010203040506070812057569642d311a026e3120072080d0eab6b733",
		},
		"a named pod": {
			message: &wire.Update{TimeMs: 1767225600000, Complete: true, Upserts: []*wire.Resource{
				{Key: "route/1025", Body: &wire.Resource_Route{Route: &wire.Route{
					Id: 1025, Endpoints: []*wire.Endpoint{{Id: []byte{1, 2, 3, 4, 5, 6, 7, 8}, PodUid: "uid-1", Backend: "n1", Host: []byte{8, 7, 6, 5, 4, 3, 2, 1}}},
				}}},
				{Key: "mirror/east/shop/db/db-0", Body: &wire.Resource_Mirror{Mirror: &wire.Mirror{
					Link: "east", Namespace: "shop", Service: "db", Hostname: "db-0", SessionAffinitySeconds: 60,
				}}},
			}},
			want: "0a320a0a726f7574652f313032353a240881081a1f0a08010203040506070812057569642d311a026e31220808070605040302010a340a186d6972726f722f656173742f73686f702f64622f64622d3022180a0465617374120473686f701a026462420464622d30483c18012080d0eab6b733",
		},
		"last update": {
			message: &wire.Update{TimeMs: 1767225600000, Removed: []string{"link/west"}, Complete: true},
			want:    "12096c696e6b2f7765737418012080d0eab6b733",
		},
		"heartbeat": {
			message: &wire.Update{TimeMs: 1767225605000, Complete: true},
			want:    "18012088f7eab6b733",
		},
		"question": {
			message: &wire.Update{TimeMs: 1767225605000, Complete: true, Question: 7},
			want:    "18012088f7eab6b7335007",
		},
	}
	for name, v := range vectors {
		t.Run(name, func(t *testing.T) {
			raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(v.message)
			if err != nil {
				t.Fatal(err)
			}
			if got := hex.EncodeToString(raw); got != v.want {
				t.Errorf("got  %s\nwant %s", got, v.want)
			}
		})
	}
}

func TestCheck(t *testing.T) {
	resource := func(r *wire.Resource) *wire.Resource {
		r.Key, _ = KeyOf(r)
		return r
	}
	cases := map[string]struct {
		why  string
		r    *wire.Resource
		good bool
	}{
		"backend":           {"an ordinary one", backend("n1", "10.0.0.1:4144"), true},
		"gateway's cluster": {"a gateway has no hop key of a node", resource(&wire.Resource{Body: &wire.Resource_Cluster{Cluster: &wire.Cluster{}}}), true},
		"nothing":           {"nothing can be done with it", nil, false},
		"no body":           {"nothing can be done with it", &wire.Resource{Key: "link/west"}, false},
		"another's key":     {"it would replace another resource", &wire.Resource{Key: "link/north", Body: &wire.Resource_Link{Link: &wire.Link{Name: "west"}}}, false},
		"short hop key":     {"a MAC under it proves nothing", resource(&wire.Resource{Body: &wire.Resource_Backend{Backend: &wire.Backend{HopKey: make([]byte, 31)}}}), false},
		"no hop key":        {"a MAC under it proves nothing", resource(&wire.Resource{Body: &wire.Resource_Backend{Backend: &wire.Backend{}}}), false},
		"node's hop key":    {"a MAC under it proves nothing", resource(&wire.Resource{Body: &wire.Resource_Cluster{Cluster: &wire.Cluster{HopKey: make([]byte, 16)}}}), false},
		"day key":           {"labels under it open nowhere", resource(&wire.Resource{Body: &wire.Resource_Link{Link: &wire.Link{DayKeys: []*wire.DayKey{{Key: make([]byte, 16)}}}}}), false},
		"hostname":          {"its hash has 8 bytes in labels", resource(&wire.Resource{Body: &wire.Resource_Route{Route: &wire.Route{Endpoints: []*wire.Endpoint{{Id: make([]byte, 8), Host: make([]byte, 7)}}}}}), false},
		"a pod's mirror":    {"it is not the whole Service's", &wire.Resource{Key: "mirror/east/shop/db", Body: &wire.Resource_Mirror{Mirror: &wire.Mirror{Link: "east", Namespace: "shop", Service: "db", Hostname: "db-0"}}}, false},
		"endpoint id":       {"it has 8 bytes in labels and headers", resource(&wire.Resource{Body: &wire.Resource_Route{Route: &wire.Route{Endpoints: []*wire.Endpoint{{Id: make([]byte, 9)}}}}}), false},
		"huge":              {"no client takes it", backend("n1", string(make([]byte, maxResource))), false},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if err := Check(tc.r); (err == nil) != tc.good {
				t.Errorf("%s: got %v, want good %v", tc.why, err, tc.good)
			}
		})
	}
}

func TestPublishLeavesOutWhatNobodyTakes(t *testing.T) {
	var h Hub
	good := backend("good", "1:1")
	view := View{"backend/good": good, "backend/bad": {Key: "backend/bad"}, "backend/misfiled": good}
	if err := h.Publish(Gateway, view); err == nil {
		t.Error("the controller must learn what is wrong with its view")
	}
	got, ok, _ := h.Read(Gateway)
	if !ok || len(got) != 1 || got["backend/good"] != good {
		t.Errorf("one bad resource must not hold back the others: %v", got)
	}
	if len(view) != 3 {
		t.Error("the caller's view must not be changed")
	}
}

func FuzzApply(f *testing.F) {
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, first, second []byte) {
		receiver := newReceiver()
		for _, raw := range [][]byte{first, second} {
			u := &wire.Update{}
			if proto.Unmarshal(raw, u) != nil {
				return
			}
			view, err := apply(receiver, u)
			if err != nil {
				return
			}
			for key, r := range view {
				if want, err := KeyOf(r); err != nil || want != key {
					t.Errorf("resource %q is filed under %q: %v", want, key, err)
				}
			}
		}
	})
}
