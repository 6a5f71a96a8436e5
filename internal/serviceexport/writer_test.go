package serviceexport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/throttle"
)

var (
	timeZero = time.Unix(0, 0)
	beta     = catalog.ServiceExportV1Beta1
	pending  = Facts{Admitting: 1}
	exported = Facts{Admitting: 1, Stored: 1, Exporting: 1}
	works    = []string{"Ready=True Exported", "Valid=True Valid"} // of exported
)

// term is one leader's Writer on an API server.
type term struct {
	*Writer
	api *fakeAPI
	log *strings.Builder
}

// lead runs a Writer in a bubble until do returns.
func lead(t *testing.T, api *fakeAPI, do func(w *term)) {
	t.Helper()
	log := &strings.Builder{}
	w := &term{api: api, log: log, Writer: NewWriter(Config{
		API:     api,
		Budget:  throttle.New(800, nil),
		Metrics: NewMetrics(prometheus.NewRegistry()),
		Log:     slog.New(slog.NewTextHandler(log, nil)),
	})}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { w.Run(ctx); close(done) }()
	do(w)
	cancel()
	<-done
}

// set sets the facts of objects as the watch shows them.
func (w *term) set(f Facts, names ...string) {
	for _, name := range names {
		w.Set(key(name), w.api.meta(name), f)
	}
}

// settle waits until every change is written, and the watch has shown it.
func (w *term) settle(f Facts, names ...string) {
	w.set(f, names...)
	bubble.Pass(10 * time.Second)
	w.set(f, names...)
	bubble.Pass(10 * time.Second)
}

func (w *term) count(outcome string) float64 {
	return testutil.ToFloat64(w.c.Metrics.writes.WithLabelValues(outcome))
}

// refuseApply makes every apply fail with err.
func refuseApply(err error) func(request string) error {
	return func(request string) error {
		if strings.HasPrefix(request, "apply") {
			return err
		}
		return nil
	}
}

func expect(t *testing.T, why string, got, want []string) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", why, d)
	}
}

func TestWriterWritesOnlyChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI("a", "b")
		lead(t, api, func(w *term) {
			w.set(pending, "a", "b")
			w.Serve(beta)
			w.settle(exported, "a", "b")
			took := api.took()
			slices.Sort(took[min(1, len(took)):]) // objects have no order
			expect(t, "one list, and one write of each", took, []string{"list ", "apply a", "apply b"})
			expect(t, "it is exported", api.reasons("a"), works)
			w.settle(exported, "a", "b")
			bubble.Pass(time.Hour)
			expect(t, "nothing changed", api.took(), nil)
			w.settle(pending, "a")
			expect(t, "only a changed", api.took(), []string{"apply a"})
		})
		lead(t, api, func(w *term) {
			w.set(pending, "a")
			w.set(exported, "b")
			w.Serve(beta)
			bubble.Pass(time.Hour)
			expect(t, "a new leader lists all objects, and writes nothing", api.took(), []string{"list "})
		})
	})
}

func TestWriterReadsNewObjects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI()
		lead(t, api, func(w *term) {
			w.Serve(beta)
			bubble.Pass(time.Second)
			api.took()
			api.create("a")
			w.settle(exported, "a")
			expect(t, "it may have conditions of others", api.took(), []string{"get a", "apply a"})
			api.edit("a")
			w.settle(exported, "a")
			expect(t, "observedGeneration changes", api.took(), []string{"apply a"})
			api.create("a")
			w.settle(exported, "a")
			expect(t, "it is another object", api.took(), []string{"get a", "apply a"})
			api.remove("a")
			w.Remove(key("a"))
			bubble.Pass(time.Minute)
			expect(t, "it does not exist any more", api.took(), nil)
		})
	})
}

func TestWriterLeavesForeignConditionsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI("a", "b")
		api.take("b", Valid, "Other")
		api.take("b", Ready, "Other")
		lead(t, api, func(w *term) {
			w.set(exported, "a", "b")
			w.Serve(beta)
			w.settle(exported, "a", "b")
			expect(t, "all of b is foreign", api.took(), []string{"list ", "apply a"})
			api.take("a", Valid, "Other")
			w.settle(exported, "a")
			expect(t, "what is left of a is the same", api.took(), []string{"get a"})
			w.settle(pending, "a")
			expect(t, "Ready is still ours", api.took(), []string{"apply a"})
			expect(t, "Valid is not", api.reasons("a"),
				[]string{"Ready=False Pending", "Valid=Unknown Other"})
		})
	})
}

func TestWriterGivesUpAfterRefusal(t *testing.T) {
	for name, c := range map[string]struct {
		why     string
		err     error
		outcome string
	}{
		"conflict": {
			"another manager took the condition after it was read",
			apierrors.NewConflict(resource, "a", errors.New("owned")),
			conflict,
		},
		"rejected": {
			"the CRD does not allow our conditions",
			apierrors.NewInvalid(schema.GroupKind{Kind: "ServiceExport"}, "a", nil),
			rejected,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				api := newFakeAPI("a")
				api.refuseWith(refuseApply(c.err))
				lead(t, api, func(w *term) {
					w.set(exported, "a")
					w.Serve(beta)
					w.settle(exported, "a")
					expect(t, c.why, api.took(), []string{"list ", "apply a"})
					w.settle(pending, "a")
					expect(t, "nothing is written while the object stays the same", api.took(), nil)
					api.refuseWith(nil)
					api.take("a", "Other", "Other")
					w.settle(pending, "a")
					expect(t, "until it changes", api.took(), []string{"get a", "apply a"})
					if w.count(c.outcome) != 1 || w.count(written) != 1 || w.log.Len() > 0 {
						t.Errorf("it is counted, and not logged: %s", w.log)
					}
				})
			})
		})
	}
}

func TestWriterPausesAfterFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI("a", "b", "c")
		api.refuseWith(refuseApply(apierrors.NewForbidden(resource, "", errors.New("no right"))))
		lead(t, api, func(w *term) {
			w.set(exported, "a", "b", "c")
			w.Serve(beta)
			bubble.Pass(time.Hour)
			if n := len(api.took()); n < 60 || n > 700 {
				t.Errorf("%d requests in an hour without the right", n)
			}
			if n := strings.Count(w.log.String(), "level=WARN"); n != 1 {
				t.Errorf("the outage is logged %d times:\n%s", n, w.log)
			}
			api.refuseWith(nil)
			bubble.Pass(2 * time.Minute)
			for _, name := range []string{"a", "b", "c"} {
				expect(t, "the right was given", api.reasons(name), works)
			}
		})
	})
}

// An admission policy that denies the objects of one namespace must not stop all others.
func TestDeniedObjectsDelayNoOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		denied := []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"}
		api := newFakeAPI(append(denied, "z")...)
		api.refuseWith(func(request string) error {
			if strings.HasPrefix(request, "apply ") && request != "apply z" {
				return apierrors.NewForbidden(resource, "", errors.New("denied by a policy"))
			}
			return nil
		})
		lead(t, api, func(w *term) {
			w.set(exported, denied...)
			w.Serve(beta)
			bubble.Pass(time.Hour)
			if n := len(api.took()); n > 60*len(denied)+100 {
				t.Errorf("%d requests in an hour for %d denied objects", n, len(denied))
			}
			w.set(exported, "z")
			bubble.Pass(2 * time.Minute)
			expect(t, "a healthy object", api.reasons("z"), works)
		})
	})
}

// A tenant may create and delete ServiceExports all the time.
func TestQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI("a")
		api.refuseWith(func(string) error { return errors.New("no route to host") })
		lead(t, api, func(w *term) {
			for _, served := range []schema.GroupVersionKind{{}, beta} {
				w.Serve(served)
				for range 20 * pageSize {
					w.set(exported, "a")
					w.Remove(key("a"))
				}
				if n := len(w.queue); n > 2*pageSize {
					t.Errorf("%d elements are queued for no object, version %q", n, served.Version)
				}
			}
		})
	})
}

func TestWriterBoundsItsRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var names []string
		for i := range 2000 {
			names = append(names, fmt.Sprintf("n%04d", i))
		}
		api := newFakeAPI(names...)
		lead(t, api, func(w *term) {
			w.set(exported, names...)
			w.Serve(beta)
			bubble.Pass(10 * time.Second)
			all := api.took()
			if n := len(all); n < 8*requestsPerSecond || n > 11*requestsPerSecond+1 {
				t.Errorf("%d requests in 10 s", n)
			}
			isList := func(r string) bool { return strings.HasPrefix(r, "list") }
			if n := len(all) - len(slices.DeleteFunc(slices.Clone(all), isList)); n != 8 || !isList(all[7]) {
				t.Errorf("2,000 objects are listed in %d pages, want 8", n)
			}
			w.c.Budget.Take(time.Now())
			for range 8000 { // mirrors use up their budget for 10 s
				w.c.Budget.Take(time.Now())
			}
			bubble.Pass(8 * time.Second)
			if n := len(api.took()); n > 0 {
				t.Errorf("mirrors go first, and there are %d requests", n)
			}
			bubble.Pass(time.Minute)
			if got := w.count(written); got != 2000 {
				t.Errorf("%v of 2000 are written", got)
			}
		})
	})
}

func TestWriterBoundsTheRateOfOneObject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI("a")
		lead(t, api, func(w *term) {
			w.set(exported, "a")
			w.Serve(beta)
			for i := range 600 { // a minute
				w.set(Facts{Admitting: i%2 + 1}, "a")
				api.take("a", "Other", fmt.Sprint(i))
				bubble.Pass(100 * time.Millisecond)
			}
			if n := len(api.took()); n < 10 || n > 2*13+1 {
				t.Errorf("an object that changes all the time causes %d requests a minute", n)
			}
		})
	})
}

func TestWriterFollowsTheServedVersion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI("a")
		lead(t, api, func(w *term) {
			w.set(exported, "a")
			bubble.Pass(time.Minute)
			expect(t, "no version is served", api.took(), nil)
			w.Serve(catalog.ServiceExportV1Alpha1)
			w.settle(exported, "a")
			expect(t, "v1alpha1 has other conditions", api.reasons("a"),
				[]string{"Conflict=False NoConflicts", "Valid=True Valid"})
			api.took()
			w.Serve(beta)
			w.settle(exported, "a")
			expect(t, "all are read again", api.took(), []string{"list ", "apply a"})
			expect(t, "the conditions of v1beta1", api.reasons("a"), works)
			w.Serve(schema.GroupVersionKind{})
			w.settle(pending, "a")
			expect(t, "no version is served any more", api.took(), nil)
		})
	})
}

func TestWriterListsAgainAfterExpiredPage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var names []string
		for i := range pageSize + 1 {
			names = append(names, fmt.Sprintf("n%04d", i))
		}
		api, expired := newFakeAPI(names...), false
		api.refuseWith(func(r string) error {
			if r == "list n0250" && !expired {
				expired = true
				return apierrors.NewResourceExpired("too old")
			}
			return nil
		})
		lead(t, api, func(w *term) {
			w.Serve(beta)
			bubble.Pass(time.Minute)
			expect(t, "the list begins again", api.took(),
				[]string{"list ", "list n0250", "list ", "list n0250"})
		})
	})
}
