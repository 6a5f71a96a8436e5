package controller

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	fakediscovery "k8s.io/client-go/discovery/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/google/go-cmp/cmp"
)

// TestServiceExportsRun: answer by answer, which the cluster gives every ten seconds, what is watched and when the brain is woken.
func TestServiceExportsRun(t *testing.T) {
	type answer struct {
		found  bool
		find   error
		refuse error // by watch or leave
	}
	away := errors.New("away")
	type seen struct{ here, woken bool }
	cases := map[string]struct {
		why     string
		answers []answer
		want    []seen
	}{
		"from the start": {
			why: "what is watched is not watched again", answers: []answer{{found: true}, {found: true}}, want: []seen{{here: true}, {here: true}},
		},
		"installed later": {
			why:     "who installs the kind after Causeway must not have to know that a restart is needed",
			answers: []answer{{}, {}, {found: true}}, want: []seen{{}, {}, {true, true}},
		},
		"taken away, and back": {
			why:     "a watch of what is not there complains for ever",
			answers: []answer{{found: true}, {}, {}, {found: true}}, want: []seen{{here: true}, {false, true}, {}, {true, true}},
		},
		"the API server is away": {
			why:     "an error says nothing about the kind",
			answers: []answer{{found: true}, {find: away}, {found: true}}, want: []seen{{here: true}, {here: true}, {here: true}},
		},
		"the first watch fails": {
			why:     "the kind is there a moment before it is served",
			answers: []answer{{}, {found: true, refuse: away}, {found: true}}, want: []seen{{}, {}, {true, true}},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				var now atomic.Pointer[answer]
				var woken atomic.Bool
				watching := false // of whoever looks: the test first, then run
				now.Store(&c.answers[0])
				s := &serviceExports{log: slog.New(slog.DiscardHandler), changed: func() { woken.Store(true) }}
				s.find = func() (bool, error) { return now.Load().found, now.Load().find }
				turn := func(to bool) func(context.Context) error {
					return func(context.Context) error {
						if watching == to {
							t.Errorf("%s: watching turned to %t twice", c.why, to)
						}
						refuse := now.Load().refuse
						if refuse == nil {
							watching = to
						}
						return refuse
					}
				}
				s.watch, s.leave = turn(true), turn(false)
				if err := s.look(ctx); err != nil {
					t.Fatal(err)
				}
				got := []seen{{s.here.Load(), woken.Load()}}
				done := make(chan struct{})
				go func() { s.run(ctx); close(done) }()
				for i := range c.answers[1:] {
					now.Store(&c.answers[1+i])
					woken.Store(false)
					time.Sleep(lookAgain)
					synctest.Wait()
					got = append(got, seen{s.here.Load(), woken.Load()})
				}
				cancel()
				<-done
				if d := cmp.Diff(c.want, got, cmp.AllowUnexported(seen{})); d != "" {
					t.Errorf("%s (-want +got):\n%s", c.why, d)
				}
			})
		})
	}
}

func TestHasServiceExports(t *testing.T) {
	cases := map[string]struct {
		why   string
		kinds []*metav1.APIResourceList
		want  bool
	}{
		"no such group": {why: "most clusters have none"},
		"another kind":  {why: "the group has more kinds", kinds: []*metav1.APIResourceList{{GroupVersion: "multicluster.x-k8s.io/v1alpha1", APIResources: []metav1.APIResource{{Kind: "ServiceImport"}}}}},
		"it is there":   {why: "then it counts", kinds: []*metav1.APIResourceList{{GroupVersion: "multicluster.x-k8s.io/v1alpha1", APIResources: []metav1.APIResource{{Kind: "ServiceExport"}}}}, want: true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := hasServiceExports(&fakediscovery.FakeDiscovery{Fake: &clienttesting.Fake{Resources: c.kinds}})
			if err != nil || got != c.want {
				t.Errorf("%s: got %t, %v", c.why, got, err)
			}
		})
	}
}
