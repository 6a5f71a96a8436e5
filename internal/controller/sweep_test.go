package controller

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-mesh/causeway/internal/bubble"
)

// The full pass decides everything again within resyncInterval, and repairs what no event
// has announced.
func TestSweep(t *testing.T) {
	cases := map[string]struct {
		why      string
		breaks   func(r *replica)
		repaired func(r *replica) bool
		repairs  float64
	}{
		"nothing is broken": {
			why:    "events announce everything",
			breaks: func(*replica) {},
			repaired: func(r *replica) bool {
				return r.exports.members[shopKey("web")] != nil &&
					r.vipOf("bar") != ""
			},
		},
		"export": {
			why: "the event of a Service was lost, and its label is gone",
			breaks: func(r *replica) {
				changed := exported("web", corev1.ProtocolTCP)
				changed.Labels = nil
				*r.index.Service(shopKey("web")) = *changed
			},
			repaired: func(r *replica) bool {
				return r.exports.members[shopKey("web")] == nil &&
					r.gatewayRoutes() == 0
			},
			repairs: 1,
		},
		"import": {
			why: "a Service of the peer was filed and not decided",
			breaks: func(r *replica) {
				s := offered("foo")[0]
				r.imports.links["east"].services[s.Key()] = s
			},
			repaired: func(r *replica) bool { return r.vipOf("foo") != "" && r.frontend("foo-east") != nil },
			repairs:  1,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			leading(t, func(t *testing.T, r *replica) {
				r.connect("bar")
				r.settle()
				call := func(f func()) {
					if err := r.call(t.Context(), f); err != nil {
						t.Fatal(err)
					}
				}
				call(func() { c.breaks(r) })
				bubble.Pass(2*resyncInterval + time.Minute)
				call(func() {
					if !c.repaired(r) {
						t.Errorf("%s: it is not repaired", c.why)
					}
				})
				if n := testutil.ToFloat64(r.metrics.repairs); n != c.repairs {
					t.Errorf("%s: %v repairs, want %v", c.why, n, c.repairs)
				}
			}, eastLink(), shop(), exported("web", corev1.ProtocolTCP))
		})
	}
}
