package retry

import (
	"bytes"
	"testing"
)

// memory is a budget of bytes.
type memory struct{ free, calls int }

func (m *memory) Reserve(n int) bool {
	m.calls++
	if n > m.free {
		return false
	}
	m.free -= n
	return true
}

func (m *memory) Release(n int) { m.free += n }

func TestReplayBuffer(t *testing.T) {
	cases := map[string]struct {
		why      string
		free     int
		appends  []int
		complete bool
		want     Body
		reserved int
	}{
		"none":               {"no body was sent", 1 << 20, nil, true, BodyUnsent, 0},
		"empty append":       {"as above", 1 << 20, []int{0}, true, BodyUnsent, 0},
		"small":              {"it is kept in one step", 1 << 20, []int{10, 20}, true, BodyKept, 4096},
		"two steps":          {"the buffer grows", 1 << 20, []int{4096, 1}, false, BodyKept, 8192},
		"at the limit":       {"64 KiB fit", 1 << 20, []int{MaxReplay - 1, 1}, true, BodyKept, MaxReplay},
		"over the limit":     {"longer bodies are not kept", 1 << 20, []int{MaxReplay, 1}, true, BodyLost, 0},
		"long at once":       {"as above", 1 << 20, []int{MaxReplay + 1}, true, BodyLost, 0},
		"no memory":          {"the process has none", 4095, []int{1}, true, BodyLost, 0},
		"no memory for more": {"all is dropped", 8191, []int{4096, 1, 1}, true, BodyLost, 0},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			m := &memory{free: tc.free}
			r := NewReplayBuffer(m)
			var sent []byte
			for i, n := range tc.appends {
				p := bytes.Repeat([]byte{byte('a' + i)}, n)
				r.Append(p)
				sent = append(sent, p...)
				clear(p) // the buffer has a copy
			}
			if tc.complete {
				r.Complete()
			}
			data, kept, complete := r.Bytes()
			if got := r.State(); got != tc.want || kept != (tc.want != BodyLost) || complete != tc.complete {
				t.Errorf("%s: state %v, kept %v, complete %v; want %v, complete %v", tc.why, got, kept,
					complete, tc.want, tc.complete)
			}
			if tc.want == BodyKept && !bytes.Equal(data, sent) {
				t.Errorf("%s: the %d kept bytes are not the %d sent ones", tc.why, len(data), len(sent))
			}
			if got := tc.free - m.free; got != tc.reserved {
				t.Errorf("%s: %d bytes are reserved, want %d", tc.why, got, tc.reserved)
			}
			r.Release()
			r.Release()
			if m.free != tc.free {
				t.Errorf("%s: %d bytes are free after Release, want %d", tc.why, m.free, tc.free)
			}
			if r.Append([]byte("x")) || r.State() != BodyLost || m.free != tc.free {
				t.Errorf("%s: Append keeps bytes after Release", tc.why)
			}
		})
	}
}

// TestReplayedBytesStay checks that bytes that were returned do not change afterwards.
func TestReplayedBytesStay(t *testing.T) {
	r := NewReplayBuffer(&memory{free: 1 << 20})
	r.Append([]byte("first"))
	data, _, _ := r.Bytes()
	for range 1000 {
		r.Append([]byte("more"))
	}
	if string(data) != "first" {
		t.Errorf("got %q", data)
	}
}

func TestSmallWritesReserveRarely(t *testing.T) {
	m := &memory{free: 1 << 20}
	r := NewReplayBuffer(m)
	for range MaxReplay / 16 {
		r.Append(make([]byte, 16))
	}
	if r.State() != BodyKept || m.calls > 5 {
		t.Errorf("state %v after %d reservations, want %v and at most 5", r.State(), m.calls, BodyKept)
	}
}
