package controller

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	nodewire "github.com/causeway-mesh/causeway/internal/nodestream/wire"
	"github.com/causeway-mesh/causeway/internal/trafficsettings"
)

// What a peer's Service asks for its traffic reaches this cluster's agents, with the
// Link's defaults for the rest. It costs one write of the ledger.
func TestSettingsReachTheCallersAgents(t *testing.T) {
	leading(t, func(t *testing.T, r *replica) {
		stream := r.connect("bar", "foo")
		r.settle()
		r.Writes()
		bar := offered("bar")
		bar[0].Ports[0].Declared = trafficsettings.HTTP2
		bar[0].Settings = trafficsettings.Settings{Timeout: time.Second, MaxRequests: 7}
		stream.Deliver(wire.Delta{Upserts: bar})
		r.settle()
		bubble.Pass(time.Minute)
		r.expectWrites(t, "the mirror shows no traffic settings", "update *v1alpha1.Ledger causeway-system/mirrors-0")
		r.wantFrontend(t, "bar-east", nodewire.Protocol_HTTP2,
			&nodewire.TrafficSettings{TimeoutMs: new(uint32(1000)), MaxRequests: 7})
		r.wantFrontend(t, "foo-east", nodewire.Protocol_DETECT, nil)
		r.editLink(t, "east", func(s *v1alpha1.LinkSpec) {
			s.Import.Defaults = &v1alpha1.ImportDefaults{
				Timeout: &metav1.Duration{Duration: time.Minute}, Retries: new(int32(0)),
				RetryOn: []v1alpha1.RetryCondition{v1alpha1.RetryOnReset}, ProtocolDetection: v1alpha1.ProtocolDetectionDisabled,
			}
		})
		r.settle()
		r.wantFrontend(t, "bar-east", nodewire.Protocol_HTTP2,
			&nodewire.TrafficSettings{TimeoutMs: new(uint32(1000)), Retries: new(uint32(0)), RetryOn: 2, MaxRequests: 7})
		r.wantFrontend(t, "foo-east", nodewire.Protocol_TCP,
			&nodewire.TrafficSettings{TimeoutMs: new(uint32(60_000)), Retries: new(uint32(0)), RetryOn: 2})
	}, eastLink(), shop())
}

// A mirror has the settings of its Service for as long as it stands: also while it is
// removed, and if the controller has just begun and the peer cannot be reached.
func TestSettingsOfAnUnknownCatalog(t *testing.T) {
	settled := func(r *replica, when string) {
		t.Helper()
		t.Log(when)
		r.wantFrontend(t, "bar-east", nodewire.Protocol_TCP, &nodewire.TrafficSettings{
			TimeoutMs: new(uint32(0)), PerTryTimeoutMs: new(uint32(1500)), Retries: new(uint32(3)), RetryOn: 2,
			MaxConnections: 1, MaxPendingRequests: 2, MaxRequests: 3, SlowStartMs: 4000, PreferSameZone: true,
		})
	}
	successors(t, []client.Object{eastLink(), shop()}, func(r *replica) {
		stream := r.connect("foo")
		bar := offered("bar")
		bar[0].Ports[0].Declared = trafficsettings.TCP
		bar[0].Settings = trafficsettings.Settings{
			Timeout: trafficsettings.None, PerTryTimeout: 1500 * time.Millisecond, Retries: 3,
			RetryOn: trafficsettings.RetryReset, MaxConnections: 1, MaxPendingRequests: 2, MaxRequests: 3,
			SlowStart: 4 * time.Second, PreferSameZone: true,
		}
		stream.Deliver(wire.Delta{Upserts: bar})
		r.settle()
		settled(r, "from the catalog")
	}, func(r *replica) {
		bubble.Pass(time.Second)
		settled(r, "from the ledger")
		stream := r.connect("foo")
		withdrawn := false
		r.Refuse(func(_ string, o client.Object) error { // the ledger cannot store the removal yet
			if _, is := o.(*v1alpha1.Ledger); is {
				withdrawn = true
				return errors.New("no")
			}
			return nil
		})
		stream.Deliver(wire.Delta{Removed: shopKeys("bar")})
		bubble.Pass(time.Second)
		if !withdrawn {
			t.Fatal("the mirror was not withdrawn")
		}
		settled(r, "while it is removed")
	})
}

func (r *replica) wantFrontend(t *testing.T, name string, protocol nodewire.Protocol, want *nodewire.TrafficSettings) {
	t.Helper()
	f := r.frontend(name)
	if f == nil {
		t.Fatalf("agents do not know %s", name)
	}
	if got := f.Ports[0].Declared; got != protocol {
		t.Errorf("the port of %s is declared as %v, want %v", name, got, protocol)
	}
	if diff := cmp.Diff(want, f.Tiers[0].Backends[0].Settings, protocmp.Transform()); diff != "" {
		t.Errorf("settings of %s (-want +got):\n%s", name, diff)
	}
}

// The annotations of an exported Service reach this cluster's own agents. A change of
// them costs no write, and one that is not valid is reported.
func TestSettingsReachTheExportersAgents(t *testing.T) {
	west()
	east()
	synctest.Test(t, func(t *testing.T) {
		pod := podOn("n1", "web")
		svc := exported("web", corev1.ProtocolTCP)
		api := newAPI(eastLink(), shop(), svc, pod, sliceOf(pod), agentPod("n1"))
		r := newReplicaWith(t, west(), api, func(*Options) {})
		r.lead()
		export := func() *nodewire.Export {
			view, _ := r.hub.View(nodestream.Node("n1"))
			return view["export/shop/web"].GetExport()
		}
		annotate := func(pairs map[string]string) {
			var have corev1.Service
			r.MustGet(t, "shop", "web", &have)
			have.Annotations = pairs
			r.update(t, &have)
			r.settle()
			bubble.Pass(time.Minute)
		}
		r.during(t, func() {
			r.settle()
			r.Writes()
			annotate(map[string]string{v1alpha1.ProtocolAnnotation: "80=grpc", v1alpha1.TimeoutAnnotation: "1s"})
			r.expectWrites(t, "only the Service itself was written", "update *v1.Service shop/web")
			annotate(map[string]string{
				v1alpha1.ProtocolAnnotation: "80=grpc", v1alpha1.ForwardIdentityAnnotation: "header",
			})
			if e := r.emitted(); count(e, "IdentityForgeable") != 1 {
				t.Errorf("Events are %v", e)
			}
			if e := export(); e == nil || e.Ports[0].Declared != nodewire.Protocol_GRPC || e.ForwardIdentity != nodewire.ForwardIdentity_HEADER {
				t.Errorf("agents have %v", e)
			}
			r.emitted()
			annotate(map[string]string{v1alpha1.TimeoutAnnotation: "soon"})
			if e := r.emitted(); count(e, "InvalidTrafficSettings") != 1 {
				t.Errorf("Events are %v", e)
			}
			if e := export(); e.Ports[0].Declared != nodewire.Protocol_DETECT || e.ForwardIdentity != nodewire.ForwardIdentity_NONE {
				t.Errorf("agents have %v without the annotations", e)
			}
		})
	})
}
