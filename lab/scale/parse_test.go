package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseCPU(t *testing.T) {
	cases := map[string]struct {
		why, stat string
		want      float64
		fails     bool
	}{
		"plain": {
			why:  "user and kernel time count",
			stat: "77 (causeway) S 1 77 77 0 -1 4194560 9000 0 0 0 150 50 0 0 20 0 12 0 100 1 2",
			want: 2,
		},
		"name with spaces": {
			why:  "the name is whatever the process chose",
			stat: "77 (a b) c) S 1 77 77 0 -1 4194560 9000 0 0 0 1 2 0 0 20 0 12 0 100 1 2",
			want: 0.03,
		},
		"short": {why: "a line that is cut off has no figure", stat: "77 (causeway) S 1", fails: true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := parseCPU(c.stat)
			if (err != nil) != c.fails || got != c.want {
				t.Errorf("parseCPU = %v, %v; want %v, error %t: %s", got, err, c.want, c.fails, c.why)
			}
		})
	}
}

func TestParseKilobytes(t *testing.T) {
	status := "Name:\tcauseway\nVmHWM:\t  204800 kB\nVmRSS:\t  102400 kB\n"
	if got, err := parseKilobytes(status, "VmRSS:"); err != nil || got != 100<<20 {
		t.Errorf("parseKilobytes = %d, %v; want 100 MiB", got, err)
	}
	if _, err := parseKilobytes(status, "VmSwap:"); err == nil {
		t.Error("parseKilobytes finds a line that is not there")
	}
}

// Only creations and updates count, of whatever scope, and no buckets.
func TestParseWriteTimes(t *testing.T) {
	const metrics = `# TYPE apiserver_request_duration_seconds histogram
apiserver_request_duration_seconds_bucket{component="apiserver",resource="ledgers",verb="PUT",le="1"} 9
apiserver_request_duration_seconds_sum{component="apiserver",group="causeway.dev",resource="ledgers",scope="resource",verb="PUT"} 1.5
apiserver_request_duration_seconds_count{component="apiserver",group="causeway.dev",resource="ledgers",scope="resource",verb="PUT"} 3
apiserver_request_duration_seconds_sum{component="apiserver",group="causeway.dev",resource="ledgers",scope="resource",verb="POST"} 0.25
apiserver_request_duration_seconds_count{component="apiserver",group="causeway.dev",resource="ledgers",scope="resource",verb="POST"} 1
apiserver_request_duration_seconds_sum{component="apiserver",group="causeway.dev",resource="ledgers",scope="cluster",verb="LIST"} 7
apiserver_request_duration_seconds_count{component="apiserver",group="",resource="services",scope="resource",verb="APPLY"} 2
apiserver_request_duration_seconds_sum{component="apiserver",group="",resource="services",scope="resource",verb="DELETE"} 4
`
	got, err := parseWriteTimes(strings.NewReader(metrics))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]requestTime{"ledgers": {Seconds: 1.75, Count: 4}, "services": {Count: 2}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("parseWriteTimes (-want +got):\n%s", diff)
	}
}

func TestParseAudit(t *testing.T) {
	log := strings.ReplaceAll(`{"verb":"create","user":{"username":"CONTROLLER"},"objectRef":{"resource":"endpointslices","name":"a"}}
{"verb":"update","user":{"username":"CONTROLLER"},"objectRef":{"resource":"leases","name":"b"}}
{"verb":"update","user":{"username":"CONTROLLER"},"objectRef":{"resource":"links","name":"c"}}
{"verb":"create","user":{"username":"system:serviceaccount:kube-system:endpointslice-controller"},"objectRef":{"resource":"endpointslices","name":"d"}}
{"verb":"delete","user":{"username":"admin"},"objectRef":{"resource":"services","name":"system:serviceaccount:causeway-system:x"}}
{"verb":"create","user":{"username":"CONTR`, "CONTROLLER", "system:serviceaccount:causeway-system:causeway-controller")
	got, err := parseAudit(strings.NewReader(log), causewayAccounts)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	mirrors := 0
	for _, a := range got {
		names = append(names, a.ObjectRef.Name)
		if a.ofMirrors() {
			mirrors++
		}
	}
	if diff := cmp.Diff([]string{"a", "c"}, names); diff != "" || mirrors != 1 {
		t.Errorf("parseAudit finds %d writes of mirrors, (-want +got):\n%s", mirrors, diff)
	}
}

func TestHolds(t *testing.T) {
	holders := []string{"causeway-controller-6f-abcde_0f2c", "another"}
	for pod, want := range map[string]bool{"causeway-controller-6f-abcde": true, "causeway-controller-6f-abcd": false} {
		if holds(holders, pod) != want {
			t.Errorf("holds(%q) = %t, want %t", pod, !want, want)
		}
	}
}
