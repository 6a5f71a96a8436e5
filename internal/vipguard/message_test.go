package vipguard

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The bytes on the unix sockets: guards and agents of two versions meet at every upgrade.
func TestMessageVectors(t *testing.T) {
	for packet, m := range map[string]message{
		`{"type":"take"}`:  {Type: msgTake},
		`{"type":"here"}`:  {Type: msgHere},
		`{"type":"probe"}`: {Type: msgProbe},
		`{"type":"ready"}`: {Type: msgReady},
		`{"type":"away"}`:  {Type: msgAway},
		`{"type":"listeners","names":["hop","vip4/0"]}`: {Type: msgListeners, Names: []string{"hop", "vip4/0"}},
		`{"type":"end"}`:    {Type: msgEnd},
		`{"type":"refuse"}`: {Type: msgRefuse},
		`{"type":"refuse","prefixes":["240.64.1.0/24","fd4c::100/120"],"more":true}`: {
			Type: msgRefuse, Prefixes: cidrs("240.64.1.0/24", "fd4c::100/120"), More: true,
		},
		`{"type":"answer","error":"VIP range is in use"}`: {Type: msgAnswer, Error: "VIP range is in use"},
	} {
		got, err := json.Marshal(m)
		if err != nil || string(got) != packet {
			t.Errorf("%+v is sent as %s, %v, want %s", m, got, err, packet)
		}
		back, err := decode([]byte(packet), len(m.Names))
		if diff := cmp.Diff(m, back, prefixes); diff != "" || err != nil {
			t.Errorf("%s is read as %v (-want +got):\n%s", packet, err, diff)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	many := strings.TrimSuffix(strings.Repeat(`"hop",`, maxFDs+1), ",")
	manyPrefixes := strings.TrimSuffix(strings.Repeat(`"::/128",`, maxPrefixes+1), ",")
	cases := map[string]struct {
		why    string
		packet string
		fds    int
	}{
		"no JSON":           {"garbage", "take", 0},
		"long":              {"a message has a bound", `{"type":"` + strings.Repeat("x", maxMessage) + `"}`, 0},
		"fewer fds":         {"a name without a descriptor", `{"type":"listeners","names":["hop"]}`, 0},
		"more fds":          {"a descriptor without a name leaks", `{"type":"listeners","names":["hop"]}`, 2},
		"fds unasked":       {"only listeners bring descriptors", `{"type":"ready"}`, 1},
		"names unasked":     {"only listeners bring names", `{"type":"ready","names":["hop"]}`, 1},
		"name twice":        {"the first would leak", `{"type":"listeners","names":["hop","hop"]}`, 2},
		"strange name":      {"names are a closed list", `{"type":"listeners","names":["vip4/32"]}`, 1},
		"name spelt oddly":  {"one name, one spelling", `{"type":"listeners","names":["vip4/01"]}`, 1},
		"too many":          {"more than the control buffer holds", `{"type":"listeners","names":[` + many + `]}`, maxFDs + 1},
		"prefixes unasked":  {"only an agent's list brings prefixes", `{"type":"ready","prefixes":["240.64.1.0/24"]}`, 0},
		"more of nothing":   {"only a list goes on", `{"type":"ready","more":true}`, 0},
		"no prefix":         {"a prefix has a length", `{"type":"refuse","prefixes":["240.64.1.0"]}`, 0},
		"too many prefixes": {"a message has a bound", `{"type":"refuse","prefixes":[` + manyPrefixes + `]}`, 0},
		"negative index":    {"names are a closed list", `{"type":"listeners","names":["vip4/-1"]}`, 1},
		"bytes after":       {"one packet, one message", `{"type":"end"}{}`, 0},
		"index of no range": {"names are a closed list", `{"type":"listeners","names":["7"]}`, 1},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if m, err := decode([]byte(tc.packet), tc.fds); !errors.Is(err, errMessage) {
				t.Errorf("%s: read as %+v, %v", tc.why, m, err)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"type":"listeners","names":["hop","vip6/31"]}`), 2)
	f.Add([]byte(`{"type":"ready"}`), 0)
	f.Add([]byte(`{"type":"refuse","prefixes":["240.64.1.0/24","fd4c::100/120"],"more":true}`), 0)
	f.Fuzz(func(t *testing.T, packet []byte, fds int) {
		m, err := decode(packet, fds)
		if err != nil {
			return
		}
		if len(m.Names) != fds || fds > maxFDs {
			t.Errorf("%d descriptors for names %q", fds, m.Names)
		}
		again, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		back, err := decode(again, fds)
		if diff := cmp.Diff(m, back, prefixes); diff != "" || (err != nil && len(again) <= maxMessage) {
			t.Errorf("read, sent and read again: %v\n%s", err, diff)
		}
	})
}

func TestIndex(t *testing.T) {
	for _, e := range endpoints(nodeIP, cidrs("240.64.0.0/12", "fd00::/108")) {
		i, ok := Index(e.name)
		if ok != (e.name != Hop) || (ok && int(e.addr.Port()) != FirstPort+i) {
			t.Errorf("%q on %v has index %d, %v", e.name, e.addr, i, ok)
		}
	}
	if n := len(endpoints(nodeIP, cidrs("fd00::/108"))); n != 33 {
		t.Errorf("%d listeners for one family, want 33", n)
	}
}
