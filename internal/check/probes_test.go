package check

import (
	"strings"
	"testing"
)

func TestDiagnose(t *testing.T) {
	full := func(stage string) Probe { return Probe{PostQuantum: true, Stage: stage, Error: stage} }
	small := func(stage string) Probe {
		return Probe{SmallSegments: true, Stage: stage, Error: stage, Received: true}
	}
	split := func(stage string) Probe {
		return Probe{SmallSegments: true, PostQuantum: true, Stage: stage, Error: stage}
	}
	lost := func(p Probe, unacknowledged bool) Probe {
		p.TimedOut, p.Unacknowledged = true, unacknowledged
		return p
	}
	mute := func(p Probe) Probe { p.Received = false; return p }
	const good = ProbeAnswered
	for name, tc := range map[string]struct {
		why    string
		probes []Probe
		want   faultKind
	}{
		"none": {"an agent that makes no probes finds no fault", nil, noFault},
		"good": {"one probe proves everything", []Probe{full(good)}, noFault},
		"good the second time": {
			"a packet may be lost by chance",
			[]Probe{lost(full("tls"), false), full(good), small(good), split(good)}, noFault,
		},
		"two-segment ClientHello reset": {
			"only the length of the ClientHello differs",
			[]Probe{full("tls"), full("tls"), small(good), split("tls")}, splitHelloFails,
		},
		"two-segment ClientHello dropped": {
			"large packets would pass in small segments",
			[]Probe{lost(full("tls"), true), lost(full("tls"), true), small(good), lost(split("tls"), true)},
			splitHelloFails,
		},
		"black hole to the peer": {
			"what is large is not acknowledged",
			[]Probe{lost(full("tls"), true), lost(full("tls"), true), small(good), split(good)},
			largeLostToPeer,
		},
		"black hole from the peer": {
			"what is sent is acknowledged, and no answer comes",
			[]Probe{lost(full("tls"), false), lost(full("tls"), false), small(good), split(good)},
			largeLostFromPeer,
		},
		"black hole without post-quantum key share": {
			"then no probe has a long ClientHello",
			[]Probe{lost(full("echo"), true), lost(full("echo"), true), small(good)}, largeLostToPeer,
		},
		"large packets reset": {
			"a reset is not a loss",
			[]Probe{full("echo"), full("echo"), small(good), split(good)}, largeFails,
		},
		"another server": {
			"something answers that is no gateway",
			[]Probe{full("tls"), full("tls"), small("tls"), split("tls")}, probeFails,
		},
		"a server that does not speak TLS": {
			"the connection succeeds and nothing answers",
			[]Probe{full("tls"), full("tls"), mute(small("tls")), split("tls")}, noTLS,
		},
		"interrupted": {
			"the agent's time was over before it could tell more",
			[]Probe{full("tls")}, probeFails,
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := diagnose(tc.probes); got.kind != tc.want {
				t.Errorf("got fault %d (%s), want %d: %s", got.kind, got.detail, tc.want, tc.why)
			}
		})
	}
}

// TestPathFaults: each fault is named beside its nodes, and says what to do.
func TestPathFaults(t *testing.T) {
	full := Probe{PostQuantum: true, Stage: "tls", Error: "i/o timeout", TimedOut: true}
	toPeer := full
	toPeer.Unacknowledged = true
	plain := Probe{SmallSegments: true, Stage: ProbeAnswered, Received: true}
	split := Probe{SmallSegments: true, PostQuantum: true, Stage: ProbeAnswered, Received: true}
	reset := Probe{SmallSegments: true, PostQuantum: true, Stage: "tls", Error: "reset"}
	rejected := Probe{SmallSegments: true, Stage: "tls", Error: "tls: unrecognized name", Received: true}
	for name, tc := range map[string]struct {
		probes []Probe
		spoil  func(*Facts)
		want   string
		hint   string
	}{
		"two-segment ClientHello": {
			probes: []Probe{full, full, plain, reset},
			want:   "fail: connections fail whose TLS ClientHello needs two TCP segments (reset)",
			hint:   "tls.postQuantum=false",
		},
		"two-segment ClientHello, and so no stream": {
			probes: []Probe{full, full, plain, reset},
			spoil:  func(f *Facts) { f.Replicas[0].Answer.Peers[0].Streams[0].Error = "EOF" },
			want:   "fail: connections fail whose TLS",
			hint:   "tls.postQuantum=false",
		},
		"black hole to the peer": {
			probes: []Probe{toPeer, toPeer, plain, split},
			want:   "fail: large packets to the peer are lost",
			hint:   "ICMP type 3 code 4",
		},
		"black hole from the peer": {
			probes: []Probe{full, full, plain, split},
			want:   "fail: large packets from the peer are lost",
			hint:   "clamp the TCP MSS",
		},
		"the peer knows no probes": {
			probes: []Probe{full, full, rejected, split},
			want:   "warning: no agent of the peer answers a probe: tls: unrecognized name",
			hint:   "`causeway check` in the peer",
		},
		"no probe": {
			want: "warning: accepts connections, but 1 of 2 nodes made no probe through it (w2)",
			hint: "run the command again",
		},
		"the peer's gateway rejects everything": {
			probes: []Probe{full, full, rejected, split},
			spoil:  func(f *Facts) { f.Replicas[0].Answer.Peers[0].Streams[0].Error = "rejected" },
			want:   "fail: accepts connections, but no catalog stream is up: rejected",
			hint:   "`causeway check` in the peer",
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := healthy()
			dial := Dial{Link: "east", Address: eastGateway, Probes: tc.probes}
			f.Replicas[0].Answer.Agents[1].Dials = []Dial{dial}
			if tc.spoil != nil {
				tc.spoil(f)
			}
			var got []Result
			for _, r := range Judge(*f) {
				if r.State != OK {
					got = append(got, r)
				}
			}
			if len(got) != 1 {
				t.Fatalf("got %+v, want one finding", got)
			}
			message := strings.TrimPrefix(got[0].Message, eastGateway)
			message = strings.TrimPrefix(message, ": from 1 of 2 nodes (w2),")
			line := string(got[0].State) + ":" + message
			if got[0].Check != checkAddress || !strings.HasPrefix(line, tc.want) ||
				!strings.Contains(got[0].Hint, tc.hint) {
				t.Errorf("got %s (%s)\nwant %s (%s)", line, got[0].Hint, tc.want, tc.hint)
			}
		})
	}
}
