package trafficsettings

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

func TestParse(t *testing.T) {
	const prefix = "causeway.dev/"
	cases := map[string]struct {
		why         string
		annotations map[string]string
		want        Declared
		faults      []string // annotations, without the prefix
	}{
		"nothing": {
			why:         "other annotations are not ours",
			annotations: map[string]string{"team": "a"},
		},
		"everything": {
			why: "each annotation has its field",
			annotations: map[string]string{
				"protocol": "grpc", "timeout": "1.5s", "per-try-timeout": "250ms", "retries": "3",
				"retry-on": "reset, 5xx,unavailable", "max-connections": "10", "max-pending-requests": "20",
				"max-requests": "30", "slow-start": "1m", "forward-identity": "header",
			},
			want: Declared{
				Settings: Settings{
					Timeout: 1500 * time.Millisecond, PerTryTimeout: 250 * time.Millisecond, Retries: 3,
					RetryOn: RetryReset | Retry5xx | RetryUnavailable, MaxConnections: 10,
					MaxPendingRequests: 20, MaxRequests: 30, SlowStart: time.Minute,
				},
				ForwardIdentity: ForwardHeader,
				Protocols:       []Protocol{GRPC, GRPC},
			},
		},
		"protocols of ports": {
			why:         "a port's own word has precedence over that for all",
			annotations: map[string]string{"protocol": " 9000=tcp , http1"},
			want:        Declared{Protocols: []Protocol{HTTP1, TCP}},
		},
		"protocol of one port": {
			why:         "the other ports are not declared",
			annotations: map[string]string{"protocol": "80=http2"},
			want:        Declared{Protocols: []Protocol{HTTP2, Detect}},
		},
		"a wrong port": {
			why:         "what is right stays",
			annotations: map[string]string{"protocol": "80=http1,81=tcp,9000=quic"},
			want:        Declared{Protocols: []Protocol{HTTP1, Detect}},
			faults:      []string{"protocol"},
		},
		"two words for a port": {
			why:         "the first one counts",
			annotations: map[string]string{"protocol": "tcp,http1,80=grpc,80=http2"},
			want:        Declared{Protocols: []Protocol{GRPC, TCP}},
			faults:      []string{"protocol"},
		},
		"detect": {
			why:         "it is the absence of the annotation",
			annotations: map[string]string{"protocol": "detect"},
			faults:      []string{"protocol"},
		},
		"empty": {
			why: "an empty value is not a value",
			annotations: map[string]string{
				"protocol": "", "timeout": "", "retries": "", "retry-on": "", "forward-identity": "",
			},
			faults: []string{"protocol", "timeout", "retries", "retry-on", "forward-identity"},
		},
		"none": {
			why: "an explicit 0 overrides the importer's default",
			annotations: map[string]string{
				"timeout": "0s", "per-try-timeout": "0", "retries": "0", "slow-start": "0s",
			},
			want: Declared{Settings: Settings{Timeout: None, PerTryTimeout: None, Retries: None}},
		},
		"too small": {
			why:         "a shorter time than a millisecond is not sent",
			annotations: map[string]string{"timeout": "1ns"},
			want:        Declared{Settings: Settings{Timeout: time.Millisecond}},
		},
		"too large": {
			why: "each value is clamped",
			annotations: map[string]string{
				"timeout": "25h", "slow-start": "2000h", "retries": "99999999999999999999",
				"max-requests": "4294967296",
			},
			want: Declared{Settings: Settings{
				Timeout: MaxDuration, SlowStart: MaxDuration, Retries: MaxRetries, MaxRequests: MaxLimit,
			}},
		},
		"not values": {
			why: "what cannot be parsed is left out and named",
			annotations: map[string]string{
				"timeout": "5", "per-try-timeout": "-1s", "retries": "-1", "retry-on": "reset,everything",
				"max-connections": "many", "forward-identity": "yes",
			},
			want: Declared{Settings: Settings{RetryOn: RetryReset}},
			faults: []string{
				"timeout", "per-try-timeout", "retries", "retry-on", "max-connections", "forward-identity",
			},
		},
		"long": {
			why: "a value may have 256 KiB",
			annotations: map[string]string{
				"protocol": strings.Repeat("tcp,", 300),
				"timeout":  strings.Repeat("1h", 600),
			},
			faults: []string{"protocol", "timeout"},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			annotations := make(map[string]string)
			for key, value := range c.annotations {
				annotations[prefix+key] = value
			}
			got := Parse(annotations, []uint16{80, 9000})
			var faults []string
			for _, f := range got.Faults {
				faults = append(faults, strings.TrimPrefix(f.Annotation, prefix))
			}
			if diff := cmp.Diff(c.faults, faults); diff != "" {
				t.Errorf("%s: faults %v (-want +got):\n%s", c.why, got.Faults, diff)
			}
			if got.Faults = nil; c.want.Protocols == nil {
				c.want.Protocols = []Protocol{Detect, Detect}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", c.why, diff)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add("80=http1,tcp", "1.5s", "3", "reset,5xx", "10", "header")
	f.Add("81=\xff", "9999999h", "-0", ",,", "18446744073709551616", "proxy-v2")
	f.Fuzz(func(t *testing.T, protocol, duration, number, conditions, limit, forward string) {
		ports := []uint16{80, 9000}
		got := Parse(map[string]string{
			v1alpha1.ProtocolAnnotation: protocol, v1alpha1.TimeoutAnnotation: duration,
			v1alpha1.PerTryTimeoutAnnotation: duration, v1alpha1.SlowStartAnnotation: duration,
			v1alpha1.RetriesAnnotation: number, v1alpha1.RetryOnAnnotation: conditions,
			v1alpha1.MaxConnectionsAnnotation: limit, v1alpha1.MaxPendingRequestsAnnotation: limit,
			v1alpha1.MaxRequestsAnnotation: limit, v1alpha1.ForwardIdentityAnnotation: forward,
		}, ports)
		if got.Settings != got.Settings.Clamp() {
			t.Errorf("not within the bounds: %+v", got.Settings)
		}
		if len(got.Protocols) != len(ports) || got.ForwardIdentity != got.ForwardIdentity.Clamp() {
			t.Errorf("not one protocol for each port, or an unknown way: %+v", got)
		}
		for _, p := range got.Protocols {
			if p != p.Clamp() {
				t.Errorf("protocol %d is not known", p)
			}
		}
		if len(got.Faults) > 10 {
			t.Errorf("%d faults of 10 annotations", len(got.Faults))
		}
		for _, fault := range got.Faults {
			strange := func(r rune) bool { return r < ' ' || r > '~' }
			if len(fault.Message) > 250 || strings.ContainsFunc(fault.Message, strange) {
				t.Errorf("a message is long or not printable: %q", fault.Message)
			}
		}
		if got.RetryOn != 0 {
			again, unknown := ParseRetryOn(strings.Split(got.RetryOn.String(), ","))
			if again != got.RetryOn || unknown != nil {
				t.Errorf("%v is parsed as %v", got.RetryOn, again)
			}
		}
	})
}

// A peer may send any values.
func TestClamp(t *testing.T) {
	const most = time.Duration(1<<63 - 1)
	got := Settings{
		Timeout: -most, PerTryTimeout: most, Retries: -7, RetryOn: 1<<31 | RetryReset,
		MaxConnections: 1<<32 - 1, MaxPendingRequests: 1<<32 - 1, MaxRequests: 1<<32 - 1, SlowStart: -1,
		PreferSameZone: true,
	}.Clamp()
	want := Settings{
		Timeout: None, PerTryTimeout: MaxDuration, Retries: None, RetryOn: RetryReset,
		MaxConnections: MaxLimit, MaxPendingRequests: MaxLimit, MaxRequests: MaxLimit, PreferSameZone: true,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got != got.Clamp() {
		t.Errorf("clamping again changes %+v", got)
	}
	if p, f := Protocol(200).Clamp(), ForwardIdentity(3).Clamp(); p != Detect || f != ForwardNone {
		t.Errorf("unknown values become %v and %v", p, f)
	}
}

// The importer's defaults fill what the exported Service leaves open, and nothing else.
func TestWithDefaults(t *testing.T) {
	defaults := Defaults{Timeout: time.Second, Retries: 2, RetryOn: RetryReset, Opaque: true}
	cases := map[string]struct {
		asked, want Settings
	}{
		"nothing asked for": {want: Settings{Timeout: time.Second, Retries: 2, RetryOn: RetryReset}},
		"explicitly none": {
			asked: Settings{Timeout: None, Retries: None},
			want:  Settings{Timeout: None, Retries: None, RetryOn: RetryReset},
		},
		"everything": {
			asked: Settings{Timeout: time.Hour, Retries: 1, RetryOn: Retry5xx, MaxRequests: 7},
			want:  Settings{Timeout: time.Hour, Retries: 1, RetryOn: Retry5xx, MaxRequests: 7},
		},
	}
	for name, c := range cases {
		if got := c.asked.WithDefaults(defaults); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
	for _, c := range []struct {
		declared    Protocol
		appProtocol string
		opaque      bool
		want        Protocol
	}{
		{Detect, "", true, TCP},
		{Detect, "example.org/own", true, TCP},
		{Detect, "HTTP", true, Detect},
		{HTTP1, "", true, HTTP1},
		{Detect, "", false, Detect},
	} {
		if got := (Defaults{Opaque: c.opaque}).Protocol(c.declared, c.appProtocol); got != c.want {
			t.Errorf("declared %v, appProtocol %q, opaque %v: %v, want %v",
				c.declared, c.appProtocol, c.opaque, got, c.want)
		}
	}
}

func TestOptional(t *testing.T) {
	for _, d := range []time.Duration{0, None, time.Millisecond, MaxDuration} {
		if got := Duration(Milliseconds(d)); got != d {
			t.Errorf("%v comes back as %v", d, got)
		}
	}
	for _, n := range []int{0, None, 1, MaxRetries} {
		if got := Number(Count(n)); got != n {
			t.Errorf("%d retries come back as %d", n, got)
		}
	}
}

// The API's constants are the words of the annotation.
func TestRetryConditionsOfAPI(t *testing.T) {
	all := []string{
		string(v1alpha1.RetryOnConnectFailure), string(v1alpha1.RetryOnReset),
		string(v1alpha1.RetryOnGatewayError), string(v1alpha1.RetryOn5xx),
		string(v1alpha1.RetryOnUnavailable), string(v1alpha1.RetryOnIdempotent),
	}
	if !slices.Equal(all, retryWords) || RetryOn(allRetryOn).String() != strings.Join(all, ",") {
		t.Errorf("the API has %v, annotations have %v", all, retryWords)
	}
}

func TestOfTrafficDistribution(t *testing.T) {
	for value, want := range map[string]bool{
		"PreferSameZone": true, "PreferClose": true, "PreferSameNode": false, "preferclose": false, "": false,
	} {
		if got := OfTrafficDistribution(&value); got != want {
			t.Errorf("%q prefers the zone: %v, want %v", value, got, want)
		}
	}
	if OfTrafficDistribution(nil) {
		t.Error("a Service without trafficDistribution prefers the zone")
	}
}
