package controller

import (
	"cmp"
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"

	gocmp "github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	fakediscovery "k8s.io/client-go/discovery/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/catalog"
)

// TestServiceExportsRun gives the answers of the cluster one after another, ten seconds
// apart, and records what is done.
func TestServiceExportsRun(t *testing.T) {
	alpha := servedVersion{kind: catalog.ServiceExportV1Alpha1, status: true}
	beta := servedVersion{kind: catalog.ServiceExportV1Beta1, status: true}
	betaWithoutStatus := servedVersion{kind: catalog.ServiceExportV1Beta1}
	away := errors.New("away")
	type answer struct {
		served servedVersion
		err    error
		refuse error // of watch
	}
	cases := map[string]struct {
		why     string
		answers []answer
		want    [][]string
	}{
		"from the start": {
			why:     "what is watched is not watched again",
			answers: []answer{{served: beta}, {served: beta}},
			want:    [][]string{{"watch v1beta1", "conditions v1beta1"}, nil},
		},
		"installed later": {
			why:     "installing the kind after Causeway needs no restart",
			answers: []answer{{}, {}, {served: beta}},
			want:    [][]string{nil, nil, {"watch v1beta1", "conditions v1beta1"}},
		},
		"newer version": {
			why:     "the exports stay: the new version is read before the old one is left",
			answers: []answer{{served: alpha}, {served: beta}},
			want: [][]string{
				{"watch v1alpha1", "conditions v1alpha1"},
				{"watch v1beta1", "conditions v1beta1", "leave v1alpha1"},
			},
		},
		"newer version not served yet": {
			why:     "the old one is read until the new one is complete",
			answers: []answer{{served: alpha}, {served: beta, refuse: away}, {served: beta}},
			want: [][]string{
				{"watch v1alpha1", "conditions v1alpha1"},
				{"watch v1beta1"},
				{"watch v1beta1", "conditions v1beta1", "leave v1alpha1"},
			},
		},
		"newer version removed before it was readable": {
			why:     "a cache that is still starting would list forever",
			answers: []answer{{served: alpha}, {served: beta, refuse: away}, {served: alpha}, {}},
			want: [][]string{
				{"watch v1alpha1", "conditions v1alpha1"},
				{"watch v1beta1"},
				{"leave v1beta1"},
				{"conditions off", "forget", "leave v1alpha1"},
			},
		},
		"removed and installed again": {
			why:     "without the kind there are no exports by it",
			answers: []answer{{served: beta}, {}, {}, {served: beta}},
			want: [][]string{
				{"watch v1beta1", "conditions v1beta1"},
				{"conditions off", "forget", "leave v1beta1"},
				nil,
				{"watch v1beta1", "conditions v1beta1"},
			},
		},
		"no known version": {
			why:     "an error says nothing about the objects",
			answers: []answer{{served: alpha}, {err: errVersionGone}, {served: beta}},
			want: [][]string{
				{"watch v1alpha1", "conditions v1alpha1"},
				nil,
				{"watch v1beta1", "conditions v1beta1", "leave v1alpha1"},
			},
		},
		"status served later": {
			why:     "the version is not watched again",
			answers: []answer{{served: betaWithoutStatus}, {served: beta}, {served: betaWithoutStatus}},
			want: [][]string{
				{"watch v1beta1", "conditions off"},
				{"conditions v1beta1"},
				{"conditions off"},
			},
		},
		"API server away": {
			why:     "an error says nothing about the kind",
			answers: []answer{{served: beta}, {err: away}, {served: beta}},
			want:    [][]string{{"watch v1beta1", "conditions v1beta1"}, nil, nil},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				var now atomic.Pointer[answer]
				now.Store(&c.answers[0])
				var did []string
				s := &serviceExports{
					log: discardLog,
					served: func() (servedVersion, error) {
						return now.Load().served, now.Load().err
					},
					watch: func(_ context.Context, kind schema.GroupVersionKind) error {
						did = append(did, "watch "+kind.Version)
						return now.Load().refuse
					},
					leave: func(_ context.Context, kind schema.GroupVersionKind) error {
						did = append(did, "leave "+kind.Version)
						return nil
					},
					forget: func() { did = append(did, "forget") },
					conditions: func(kind schema.GroupVersionKind) {
						did = append(did, "conditions "+cmp.Or(kind.Version, "off"))
					},
				}
				if err := s.probe(ctx); err != nil {
					t.Fatal(err)
				}
				got := [][]string{did}
				done := make(chan struct{})
				go func() { s.run(ctx); close(done) }()
				for i := range c.answers[1:] {
					did = nil
					now.Store(&c.answers[1+i])
					bubble.Pass(probeInterval)
					got = append(got, did)
				}
				cancel()
				<-done
				if d := gocmp.Diff(c.want, got); d != "" {
					t.Errorf("%s (-want +got):\n%s", c.why, d)
				}
			})
		})
	}
}

func TestServedServiceExport(t *testing.T) {
	group := func(version, kind string, names ...string) *metav1.APIResourceList {
		out := &metav1.APIResourceList{
			GroupVersion: "multicluster.x-k8s.io/" + version,
			APIResources: []metav1.APIResource{{Kind: kind, Name: "serviceexports"}},
		}
		for _, name := range names {
			out.APIResources = append(out.APIResources, metav1.APIResource{Kind: kind, Name: name})
		}
		return out
	}
	cases := map[string]struct {
		why   string
		kinds []*metav1.APIResourceList
		want  string
		err   error
		// status means that conditions can be written.
		status bool
	}{
		"no such group": {
			why: "most clusters have none",
		},
		"another kind": {
			why:   "the group has more kinds",
			kinds: []*metav1.APIResourceList{group("v1alpha1", "ServiceImport")},
		},
		"v1alpha1": {
			why:    "most installations serve it",
			kinds:  []*metav1.APIResourceList{group("v1alpha1", "ServiceExport", "serviceexports/status")},
			want:   "v1alpha1",
			status: true,
		},
		"v1beta1": {
			why:    "newer ones serve this alone",
			kinds:  []*metav1.APIResourceList{group("v1beta1", "ServiceExport", "serviceexports/status")},
			want:   "v1beta1",
			status: true,
		},
		"without status": {
			why:   "a CRD can lack the subresource",
			kinds: []*metav1.APIResourceList{group("v1beta1", "ServiceExport")},
			want:  "v1beta1",
		},
		"both": {
			why: "the newest that is known",
			kinds: []*metav1.APIResourceList{
				group("v1alpha1", "ServiceExport"),
				group("v1beta1", "ServiceExport"),
			},
			want: "v1beta1",
		},
		"no known version": {
			why:   "the exports are there, though they cannot be read",
			kinds: []*metav1.APIResourceList{group("v2", "ServiceExport")},
			err:   errVersionGone,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			fake := &clienttesting.Fake{Resources: c.kinds}
			got, err := servedServiceExport(&fakediscovery.FakeDiscovery{Fake: fake})
			if got.kind.Version != c.want || got.status != c.status || !errors.Is(err, c.err) {
				t.Errorf("%s: got %+v, %v", c.why, got, err)
			}
		})
	}
}
