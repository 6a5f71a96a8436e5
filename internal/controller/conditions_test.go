package controller

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/serviceexport"
)

// exportObject returns the metadata of a ServiceExport in namespace shop.
func exportObject(name string) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
}

// setExports records changed ServiceExports as the watch does. A nil object was deleted.
func (r *replica) setExports(all changed[metav1.PartialObjectMetadata]) {
	r.inbox.add(func(b *batch) { b.serviceExports = all })
}

// newFacts returns the facts of the plans since the last call, the newest of each
// ServiceExport. An element is nil if the ServiceExport does not exist.
func (r *replica) newFacts() map[string]*serviceexport.Facts {
	out := make(map[string]*serviceexport.Facts)
	for _, p := range r.plans {
		for _, f := range p.facts {
			out[f.key.Name] = nil
			if f.meta != nil {
				out[f.key.Name] = &f.facts
			}
		}
	}
	r.plans = nil
	return out
}

// shortFacts formats facts without their messages.
func shortFacts(f *serviceexport.Facts) serviceexport.Facts {
	out := *f
	out.Refusal = catalog.Problem{Reason: f.Refusal.Reason}
	out.Limit, out.Failure = "", ""
	return out
}

func TestExportFactsFollowTheirCauses(t *testing.T) {
	byHand(t, func(t *testing.T, r *replica) {
		expect := func(why string, want serviceexport.Facts) {
			t.Helper()
			r.settle()
			got := r.newFacts()["web"]
			if got == nil {
				t.Fatalf("%s: no facts", why)
			}
			if d := cmp.Diff(want, shortFacts(got)); d != "" {
				t.Errorf("%s (-want +got):\n%s", why, d)
			}
		}
		refused := func(reason string) serviceexport.Facts {
			return serviceexport.Facts{Refusal: catalog.Problem{Reason: reason}}
		}
		exportedTo := func(n int) serviceexport.Facts {
			return serviceexport.Facts{Admitting: n, Stored: n, Exporting: n}
		}
		r.setExports(changed[metav1.PartialObjectMetadata]{shopKey("web"): exportObject("web")})
		expect("there is no Service", refused(catalog.ServiceMissing))
		s := exported("web", corev1.ProtocolTCP)
		r.create(t, s)
		expect("it is exported", exportedTo(1))

		var rules *v1alpha1.ExportRules
		r.editLink(t, "east", func(l *v1alpha1.LinkSpec) { rules, l.Export = l.Export, nil })
		expect("no Link admits it", serviceexport.Facts{})
		r.editLink(t, "east", func(l *v1alpha1.LinkSpec) { l.Export = rules })
		expect("a Link admits it", exportedTo(1))
		var key string
		r.editLink(t, "east", func(l *v1alpha1.LinkSpec) { key, l.LinkPublicKey = l.LinkPublicKey, "no key" })
		expect("the Link is faulty", serviceexport.Facts{Admitting: 1, Stored: 1})
		r.editLink(t, "east", func(l *v1alpha1.LinkSpec) { l.LinkPublicKey = key })
		expect("the Link is corrected", exportedTo(1))
		r.delete(t, eastLink())
		expect("the Link is deleted", serviceexport.Facts{})

		s.Spec.Type, s.Spec.ExternalName = corev1.ServiceTypeExternalName, "example.org"
		r.update(t, s)
		expect("the Service has the wrong type", refused(catalog.ExternalNameUnsupported))

		bubble.Pass(time.Minute)
		r.settle()
		r.newFacts()
		r.setExports(changed[metav1.PartialObjectMetadata]{shopKey("web"): nil})
		r.settle()
		if f, found := r.newFacts()["web"]; !found || f != nil {
			t.Errorf("the ServiceExport was deleted, and the facts are %+v", f)
		}
	}, eastLink(), shop())
}

func TestExportFactsOfALabeledService(t *testing.T) {
	byHand(t, func(t *testing.T, r *replica) {
		r.settle()
		r.newFacts()
		r.setExports(changed[metav1.PartialObjectMetadata]{shopKey("web"): exportObject("web")})
		r.settle()
		if f := r.newFacts()["web"]; f == nil || f.Exporting != 1 {
			t.Errorf("the label had exported the Service already, and the facts are %+v", f)
		}
		deleted := exportObject("web")
		deleted.DeletionTimestamp = &metav1.Time{Time: time.Now()}
		r.setExports(changed[metav1.PartialObjectMetadata]{shopKey("web"): deleted})
		r.settle()
		if f, found := r.newFacts()["web"]; !found || f != nil {
			t.Errorf("the ServiceExport is being deleted, and the facts are %+v", f)
		}
	}, eastLink(), shop(), exported("web", corev1.ProtocolTCP))
}

func TestNewLeaderDecidesAllConditions(t *testing.T) {
	followByHand(t, func(t *testing.T, r *replica) {
		r.setExports(changed[metav1.PartialObjectMetadata]{
			shopKey("web"):  exportObject("web"),
			shopKey("none"): exportObject("none"),
		})
		kind := catalog.ServiceExportV1Beta1
		r.inbox.add(func(b *batch) { b.conditionsKind = &kind })
		r.settle()
		if f := r.newFacts(); len(f) > 0 {
			t.Errorf("only the leader decides conditions: %v", f)
		}
		r.lead()
		for range 10 {
			bubble.Pass(100 * time.Millisecond)
			p := r.pass()
			if len(p.facts) == 0 {
				continue
			}
			if len(p.facts) != 2 || p.conditionsKind == nil || *p.conditionsKind != kind {
				t.Errorf("the first plan has %+v in %v", p.facts, p.conditionsKind)
			}
			return
		}
		t.Error("a new leader decides nothing")
	}, eastLink(), shop(), exported("web", corev1.ProtocolTCP))
}
