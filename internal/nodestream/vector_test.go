package nodestream

import (
	"encoding/hex"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// update returns an Update with encoded resources.
func update(t *testing.T, u *wire.Update, resources ...*wire.Resource) *wire.Update {
	t.Helper()
	for _, r := range resources {
		_, b, err := encode(r)
		if err != nil {
			t.Fatal(err)
		}
		u.Upserts = append(u.Upserts, b)
	}
	return u
}

// TestVectors compares the layout with docs/design/0005-node-stream.md. A failure means
// that agents and controllers of two versions cannot talk to each other.
func TestVectors(t *testing.T) {
	const newYear = 1767225600000 // 2026-01-01
	vectors := map[string]struct {
		message *wire.Update
		want    string
	}{
		"first update": {
			message: update(t, &wire.Update{TimeMs: newYear},
				&wire.Resource{Body: &wire.Resource_Route{Route: &wire.Route{
					Id: 1024, Links: []string{"west"}, Generation: 7,
					Endpoints: []*wire.Endpoint{
						{Id: []byte{1, 2, 3, 4, 5, 6, 7, 8}, PodUid: "uid-1", Upstream: "n1"},
					},
				}}}),
			want: "0a300a0a726f7574652f313032343a220880081204776573741a150a08010203040506070812057569642d311a026e3120072080d0eab6b733",
		},
		"unread kinds of routes": {
			message: update(t, &wire.Update{TimeMs: newYear, Complete: true},
				&wire.Resource{Body: &wire.Resource_Frontend{Frontend: &wire.Frontend{
					Namespace: "shop",
					Name:      "bar-east",
					Ports: []*wire.FrontendPort{{
						Index:            2,
						Name:             "http",
						UnreadRouteKinds: []string{"GRPCRoute", "HTTPRoute"},
					}},
				}}}),
			want: "0a4a0a1666726f6e74656e642f73686f702f6261722d6561737452300a0473686f7012086261722d65617374221e0802120468747470320947525043526f757465320948545450526f75746518012080d0eab6b733",
		},
		"a named pod": {
			message: update(t, &wire.Update{TimeMs: newYear, Complete: true},
				&wire.Resource{Body: &wire.Resource_Route{Route: &wire.Route{
					Id: 1025,
					Endpoints: []*wire.Endpoint{{
						Id:       []byte{1, 2, 3, 4, 5, 6, 7, 8},
						PodUid:   "uid-1",
						Upstream: "n1",
						Host:     []byte{8, 7, 6, 5, 4, 3, 2, 1},
					}},
				}}},
				&wire.Resource{Body: &wire.Resource_Frontend{Frontend: &wire.Frontend{
					Namespace:              "shop",
					Name:                   "db-0-east",
					Vips:                   []string{"10.9.0.7"},
					SessionAffinitySeconds: 60,
					Ports:                  []*wire.FrontendPort{{Index: 2, Name: "sql", AppProtocol: "tcp"}},
					Tiers: []*wire.Tier{{Backends: []*wire.Backend{{
						Link: "east", Namespace: "shop", Service: "db", Hostname: "db-0", Ready: true,
						Identities: []string{"spiffe://east-1/ns/shop/sa/db"},
						Ports:      []*wire.BackendPort{{Index: 2, Port: 5432, Route: 1031}},
					}}}},
				}}}),
			want: "0a320a0a726f7574652f313032353a240881081a1f0a08010203040506070812057569642d311a026e31220808070605040302010a8b010a1766726f6e74656e642f73686f702f64622d302d6561737452700a0473686f70120964622d302d656173741a0831302e392e302e37220c0802120373716c1a03746370283c32430a410a0465617374120473686f701a026462220464622d302801321d7370696666653a2f2f656173742d312f6e732f73686f702f73612f64623a08080210b82a18870818012080d0eab6b733",
		},
		"a pod and its export": {
			message: update(t, &wire.Update{TimeMs: newYear, Complete: true},
				&wire.Resource{Body: &wire.Resource_Pod{Pod: &wire.Pod{
					Uid:       "uid-1",
					Namespace: "shop",
					Name:      "db-0",
					Ips:       []string{"10.1.0.5"},
					Live:      true,
				}}},
				&wire.Resource{Body: &wire.Resource_Export{Export: &wire.Export{
					Namespace: "shop", Service: "db", Links: []string{"west"},
					Ports: []*wire.ExportPort{{Port: 5432, Name: "sql"}},
					Pods: []*wire.ExportPod{{
						Uid:           "uid-1",
						Targets:       map[uint32]uint32{5432: 15432},
						Ready:         true,
						Accepts:       true,
						IsolatedPorts: []uint32{5432},
					}},
				}}}),
			want: "0a2c0a09706f642f7569642d312a1f0a057569642d31120473686f701a0464622d302a0831302e312e302e3538010a450a0e6578706f72742f73686f702f646232330a0473686f70120264621a0808b82a120373716c22047765737432170a057569642d31120608b82a10c878180120012a02b82a18012080d0eab6b733",
		},
		"a frontend with settings": {
			message: update(t, &wire.Update{TimeMs: newYear, Complete: true},
				&wire.Resource{Body: &wire.Resource_Frontend{Frontend: &wire.Frontend{
					Namespace: "shop",
					Name:      "bar-east",
					Vips:      []string{"10.9.0.8"},
					Ports:     []*wire.FrontendPort{{Name: "http", Declared: wire.Protocol_HTTP1}},
					Tiers: []*wire.Tier{{Backends: []*wire.Backend{{
						Link: "east", Namespace: "shop", Service: "bar", Ready: true,
						Ports: []*wire.BackendPort{{Port: 80, Route: 1032}},
						Settings: &wire.TrafficSettings{
							TimeoutMs:          new(uint32(5000)),
							PerTryTimeoutMs:    new(uint32(1000)),
							Retries:            new(uint32(0)),
							RetryOn:            18,
							MaxConnections:     100,
							MaxPendingRequests: 200,
							MaxRequests:        300,
							SlowStartMs:        60_000,
							PreferSameZone:     true,
						},
					}}}},
				}}}),
			want: "0a760a1666726f6e74656e642f73686f702f6261722d65617374525c0a0473686f7012086261722d656173741a0831302e392e302e382208120468747470200232360a340a0465617374120473686f701a0362617228013a051050188808421808882710e80718002012286430c80138ac0240e0d403480118012080d0eab6b733",
		},
		"an export with settings and request rules": {
			message: update(t, &wire.Update{TimeMs: newYear, Complete: true},
				&wire.Resource{Body: &wire.Resource_Export{Export: &wire.Export{
					Namespace: "shop", Service: "bar", Links: []string{"west"},
					Ports: []*wire.ExportPort{
						{Port: 80, Name: "http", Declared: wire.Protocol_GRPC},
					},
					ForwardIdentity: wire.ForwardIdentity_HEADER,
					Policies: []*wire.Policy{{
						Name: "front",
						RequestCallers: []*wire.RequestCaller{{
							Caller:  &wire.Caller{Link: "west"},
							Methods: []string{"POST"},
							Paths: []*wire.PathMatch{
								{Match: &wire.PathMatch_Exact{Exact: "/shop.Bar/Get"}},
								{Match: &wire.PathMatch_Prefix{Prefix: "/shop.Foo"}},
							},
						}},
					}},
				}}}),
			want: "0a690a0f6578706f72742f73686f702f62617232560a0473686f7012036261721a0a085012046874747020042204776573742a350a0566726f6e741a2c0a060a04776573741204504f53541a0f0a0d2f73686f702e4261722f4765741a0b12092f73686f702e466f6f380118012080d0eab6b733",
		},
		"a suspended link": {
			message: update(t, &wire.Update{
				TimeMs:   newYear,
				Complete: true,
			}, &wire.Resource{Body: &wire.Resource_Link{Link: &wire.Link{
				Name: "west", Uid: "uid-2", TrustDomain: "west-1", Suspended: true, DefaultDeny: true,
				CallersRestricted: true, CallerNamespaces: []string{"shop"},
			}}}),
			want: "0a2e0a096c696e6b2f776573741a210a047765737412057569642d321a06776573742d314001480150015a0473686f7018012080d0eab6b733",
		},
		"last update": {
			message: &wire.Update{TimeMs: newYear, Removed: []string{"link/west"}, Complete: true},
			want:    "12096c696e6b2f7765737418012080d0eab6b733",
		},
		"reset": {
			message: &wire.Update{TimeMs: newYear, Reset_: true, AgeMs: 1500},
			want:    "2080d0eab6b733280130dc0b",
		},
		"resumed": {
			message: &wire.Update{TimeMs: newYear, Complete: true, Resume: []byte("0123456789abcdef")},
			want:    "18012080d0eab6b7333a1030313233343536373839616263646566",
		},
		"heartbeat": {
			message: &wire.Update{TimeMs: newYear + 5000, Complete: true, AgeMs: 300},
			want:    "18012088f7eab6b73330ac02",
		},
		"question": {
			message: &wire.Update{TimeMs: newYear + 5000, Complete: true, Question: 7},
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
		"upstream": {"an ordinary one", upstream("n1", "10.0.0.1:4144"), true},
		"gateway's cluster": {
			"a gateway does not have a node's hop key",
			resource(&wire.Resource{Body: &wire.Resource_Cluster{Cluster: &wire.Cluster{}}}),
			true,
		},
		"nothing": {"there is no key", nil, false},
		"no body": {"there is no key", &wire.Resource{Key: "link/west"}, false},
		"another's key": {
			"it would replace another resource",
			&wire.Resource{Key: "link/north", Body: &wire.Resource_Link{Link: &wire.Link{Name: "west"}}},
			false,
		},
		"short hop key": {
			"a MAC under it proves nothing",
			resource(&wire.Resource{
				Body: &wire.Resource_Upstream{Upstream: &wire.Upstream{HopKey: make([]byte, 31)}},
			}),
			false,
		},
		"no hop key": {
			"a MAC under it proves nothing",
			resource(&wire.Resource{Body: &wire.Resource_Upstream{Upstream: &wire.Upstream{}}}),
			false,
		},
		"node's hop key": {
			"a MAC under it proves nothing",
			resource(&wire.Resource{Body: &wire.Resource_Cluster{Cluster: &wire.Cluster{HopKey: make([]byte,
				16)}}}),
			false,
		},
		"day key": {
			"no gateway accepts labels under it",
			resource(&wire.Resource{Body: &wire.Resource_Link{Link: &wire.Link{DayKeys: []*wire.DayKey{
				{Key: make([]byte, 16)},
			}}}}),
			false,
		},
		"hostname": {
			"its hash has 8 bytes in labels",
			resource(&wire.Resource{Body: &wire.Resource_Route{Route: &wire.Route{Endpoints: []*wire.Endpoint{
				{Id: make([]byte, 8), Host: make([]byte, 7)},
			}}}}),
			false,
		},
		"frontend's key": {
			"it is that of the Service made here and not of the peer's",
			&wire.Resource{
				Key:  "frontend/shop/db",
				Body: &wire.Resource_Frontend{Frontend: &wire.Frontend{Namespace: "shop", Name: "db-east"}},
			},
			false,
		},
		"endpoint id": {
			"it has 8 bytes in labels and headers",
			resource(&wire.Resource{Body: &wire.Resource_Route{Route: &wire.Route{Endpoints: []*wire.Endpoint{
				{Id: make([]byte, 9)},
			}}}}),
			false,
		},
		"huge": {"no client accepts it", upstream("n1", string(make([]byte, maxResource))), false},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if err := Check(tc.r); (err == nil) != tc.good {
				t.Errorf("%s: got %v, want good %v", tc.why, err, tc.good)
			}
		})
	}
}

func FuzzApply(f *testing.F) {
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, first, second []byte) {
		r := newReceiver()
		var view View
		for _, raw := range [][]byte{first, second} {
			u := &wire.Update{}
			if proto.Unmarshal(raw, u) != nil {
				return
			}
			if err := apply(r, u); err != nil {
				return
			}
			d, _ := r.Take()
			view = merge(view, d)
			for key, r := range view {
				if want, err := KeyOf(r); err != nil || want != key {
					t.Errorf("resource %q is stored under %q: %v", want, key, err)
				}
			}
		}
	})
}
