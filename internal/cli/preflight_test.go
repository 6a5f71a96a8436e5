package cli

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestVIPsForTheFamiliesOfACluster(t *testing.T) {
	cases := map[string]struct {
		why   string
		texts []string
		want  []any
	}{
		"IPv4 alone": {
			why:   "a range of a family that no Service has would be a route for nothing",
			texts: []string{"10.96.0.0/16"}, want: []any{defaultVIPs4},
		},
		"both": {
			why:   "a mirror has an address of each family, and each needs a virtual IP behind it",
			texts: []string{"10.96.0.0/16", "fd00:10:96::/112"}, want: []any{defaultVIPs4, defaultVIPs6},
		},
		"IPv6 alone": {
			why:   "an IPv4 endpoint cannot be reached from a pod that has no IPv4",
			texts: []string{"fd00:10:96::1"}, want: []any{defaultVIPs6},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, vipsFor(c.texts)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", c.why, diff)
			}
		})
	}
}
