package wire

import (
	"encoding/hex"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/trafficsettings"
)

// TestVectors compares the layout with docs/design/0004-catalog-stream.md. If it fails,
// clusters of two versions no longer understand each other.
func TestVectors(t *testing.T) {
	key := make([]byte, linkKeyBytes)
	for i := range key {
		key[i] = byte(i)
	}
	encoded := func(s catalog.Service) []byte {
		raw, err := marshalService(s)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	vectors := map[string]struct {
		message *Message
		want    string
	}{
		"hello": {
			message: &Message{Body: &Message_Hello{Hello: &Hello{
				Version:       "v0.1.0",
				IssuerList:    []byte{0x30, 0x00},
				LinkPublicKey: key,
				TimeMs:        1767225600000,
			}}},
			want: "0a350a0676302e312e30120230001a20000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f2080d0eab6b733",
		},
		"hello with gateways": {
			message: &Message{Body: &Message_Hello{Hello: &Hello{
				Version:       "v0.1.0",
				IssuerList:    []byte{0x30, 0x00},
				LinkPublicKey: key,
				TimeMs:        1767225600000,
				Gateways:      []string{"198.51.100.7:4143", "gw.east.example:4143"},
			}}},
			want: "0a5e0a0676302e312e30120230001a20000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f2080d0eab6b7332a113139382e35312e3130302e373a343134332a1467772e656173742e6578616d706c653a34313433",
		},
		"hello with bounds and replica": {
			message: &Message{Body: &Message_Hello{Hello: &Hello{
				Version:       "v0.1.0",
				IssuerList:    []byte{0x30, 0x00},
				LinkPublicKey: key,
				TimeMs:        1767225600000,
				Bounds:        DefaultBounds.message(),
				Replica:       []byte("replica1"),
			}}},
			want: "0a4d0a0676302e312e30120230001a20000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f2080d0eab6b733320c08904e1080808010188080043a087265706c69636131",
		},
		"subscribe": {
			message: &Message{Body: &Message_Subscribe{Subscribe: &Subscribe{}}},
			want:    "1200",
		},
		"update": {
			message: &Message{Body: &Message_Update{Update: &Update{
				Revision: 1,
				Complete: true,
				Upserts: [][]byte{encoded(catalog.Service{
					Namespace:  "shop",
					Name:       "bar",
					Ready:      true,
					Identities: []string{"spiffe://east-1a2b/ns/shop/sa/bar"},
					Ports: []catalog.Port{
						{Name: "http", Protocol: "TCP", Port: 80, AppProtocol: "http", Route: 1024},
					},
				})},
			}}},
			want: "1a4e080112480a0473686f7012036261721a160a04687474701203544350185022046874747028800822217370696666653a2f2f656173742d316132622f6e732f73686f702f73612f62617228012001",
		},
		"headless": {
			message: &Message{Body: &Message_Update{Update: &Update{
				Revision: 3,
				Complete: true,
				Upserts: [][]byte{encoded(catalog.Service{
					Namespace: "shop",
					Name:      "db",
					Ready:     true,
					Headless:  true,
					Hosts:     []catalog.Host{{Name: "db-0", Ready: true}, {Name: "db-1"}},
					Ports:     []catalog.Port{{Name: "sql", Protocol: "TCP", Port: 5432, Route: 1025}},
					Labels:    map[string]string{"team": "a"}, Annotations: map[string]string{"note": "b"},
				})},
			}}},
			want: "1a4e080312480a0473686f70120264621a100a0373716c120354435018b82a288108280142090a047465616d1201614a090a046e6f746512016250015a080a0464622d3010015a060a0464622d312001",
		},
		"traffic settings": {
			message: &Message{Body: &Message_Update{Update: &Update{
				Revision: 5,
				Complete: true,
				Upserts: [][]byte{encoded(catalog.Service{
					Namespace: "shop",
					Name:      "bar",
					Ports: []catalog.Port{
						{
							Name:     "http",
							Protocol: "TCP",
							Port:     80,
							Route:    1024,
							Declared: trafficsettings.HTTP1,
						},
					},
					Settings: trafficsettings.Settings{
						Timeout:            5 * time.Second,
						PerTryTimeout:      time.Second,
						Retries:            trafficsettings.None,
						RetryOn:            trafficsettings.RetryReset | trafficsettings.RetryUnavailable,
						MaxConnections:     100,
						MaxPendingRequests: 200,
						MaxRequests:        300,
						SlowStart:          time.Minute,
						PreferSameZone:     true,
					},
				})},
			}}},
			want: "1a3f080512390a0473686f7012036261721a120a0468747470120354435018502880083802621808882710e80718002012286430c80138ac0240e0d40348012001",
		},
		"reset with version": {
			message: &Message{Body: &Message_Update{Update: &Update{Revision: 4, Complete: true, Reset_: true,
				Version: Version{"2026-01-01", 1767225600000}.message()}}},
			want: "1a1b080420012a130a0a323032362d30312d30311080d0eab6b7333001",
		},
		"removal": {
			message: &Message{Body: &Message_Update{Update: &Update{
				Revision: 2,
				Complete: true,
				Removed:  []string{"shop/bar"},
			}}},
			want: "1a0e08021a0873686f702f6261722001",
		},
		"ack": {
			message: &Message{Body: &Message_Ack{Ack: &Ack{Revision: 2, IssuerNumber: 7}}},
			want:    "220408021007",
		},
		"heartbeat": {
			message: &Message{Body: &Message_Heartbeat{Heartbeat: &Heartbeat{TimeMs: 1767225602000}}},
			want:    "2a0708d0dfeab6b733",
		},
		"heartbeat with freshness": {
			message: &Message{Body: &Message_Heartbeat{Heartbeat: &Heartbeat{
				TimeMs: 1767225602000,
				Freshness: Freshness{
					Version: Version{"2026-01-01", 1767225600000},
					Age:     1500 * time.Millisecond,
					Replica: ReplicaID([]byte("replica1")),
					Fresher: ReplicaID([]byte("replica2")),
				}.message(),
			}}},
			want: "2a3508d0dfeab6b733122c0a130a0a323032362d30312d30311080d0eab6b73310dc0b1a087265706c6963613122087265706c69636132",
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
