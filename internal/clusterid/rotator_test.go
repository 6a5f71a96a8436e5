package clusterid

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/kube/kubetest"
	"github.com/causeway-mesh/causeway/internal/rotation"
)

// replica is one controller's Rotator.
type replica struct {
	*Rotator
	id       *Identity
	recorder *events.FakeRecorder
	changes  int // calls of OnChange
}

func newReplica(t *testing.T, a *kubetest.API, leader bool, acknowledged map[string]uint64) *replica {
	t.Helper()
	return newReplicaWith(t, a, leader, acknowledged, named("west"))
}

func newReplicaWith(t *testing.T, a *kubetest.API, leader bool, acknowledged map[string]uint64,
	o Options) *replica {
	t.Helper()
	id, err := Load(t.Context(), a, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := id.Publish(t.Context(), a, nil); err != nil {
		t.Fatal(err)
	}
	r := &replica{id: id, recorder: events.NewFakeRecorder(16)}
	r.Rotator = NewRotator(RotatorConfig{
		Identity:     id,
		Client:       a,
		IsLeader:     func() bool { return leader },
		Acknowledged: func() map[string]uint64 { return acknowledged },
		OnChange:     func() { r.changes++ },
		Events:       r.recorder,
		Log:          discardLog,
	})
	return r
}

// step performs one pass that must succeed.
func (r *replica) step(t *testing.T, now time.Time) {
	t.Helper()
	if _, err := r.Step(t.Context(), now); err != nil {
		t.Fatal(err)
	}
}

func (r *replica) issuer() string { return string(r.id.Issuers().Issuer().Raw) }

// events returns the Events since the last call.
func (r *replica) events() []string {
	var out []string
	for {
		select {
		case e := <-r.recorder.Events:
			out = append(out, e)
		default:
			return out
		}
	}
}

// request asks for a rotation as `causeway rotate` does.
func request(t *testing.T, a *kubetest.API, text string) {
	t.Helper()
	var cm corev1.ConfigMap
	a.MustGet(t, system, clusterinfo.IdentityConfigMap, &cm)
	if cm.Annotations == nil {
		cm.Annotations = make(map[string]string)
	}
	cm.Annotations[rotation.RequestAnnotation] = text
	if err := a.Update(t.Context(), &cm); err != nil {
		t.Fatal(err)
	}
}

func progress(t *testing.T, a *kubetest.API) rotation.Progress {
	t.Helper()
	var cm corev1.ConfigMap
	a.MustGet(t, system, clusterinfo.IdentityConfigMap, &cm)
	p, err := rotation.ParseProgress(cm.Annotations[rotation.ProgressAnnotation])
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestIssuerRotation(t *testing.T) {
	a, now := kubetest.New(nil), time.Now()
	acknowledged := map[string]uint64{"east": 1}
	leader, follower := newReplica(t, a, true, acknowledged), newReplica(t, a, false, nil)
	leader.step(t, now)
	follower.step(t, now)
	first := leader.issuer()
	a.Writes()
	leader.step(t, now)
	follower.step(t, now)
	if w := a.Writes(); len(w) > 0 || leader.changes+follower.changes > 0 {
		t.Fatalf("without a request nothing may be written: %v", w)
	}
	request(t, a, `{"id":"a"}`)
	follower.step(t, now)
	leader.step(t, now)
	follower.step(t, now)
	if p := progress(t, a); p.Number != 2 || p.Deadline == nil || !slices.Equal(p.Waiting, []string{"east"}) {
		t.Errorf("progress after the announcement: %+v", p)
	}
	have := follower.id.Issuers()
	list, err := identity.VerifyIssuerList(have.Root(), follower.id.trustDomain,
		follower.id.Hello().IssuerList)
	if err != nil || list.Number != 2 || len(list.Issuers) != 2 || follower.changes != 1 ||
		follower.issuer() != first || len(have.Certificates()) != 2 {
		t.Fatalf("the follower sends %+v, %v after %d changes", list, err, follower.changes)
	}
	acknowledged["east"] = 2
	leader.step(t, now)
	follower.step(t, now)
	if follower.issuer() == first || leader.issuer() != follower.issuer() {
		t.Error("both replicas must sign with the new issuer once every peer knows it")
	}
	if p := progress(t, a); p.Request != "a" || p.Deadline != nil || len(p.Waiting) > 0 {
		t.Errorf("progress at the end: %+v", p)
	}
	request(t, a, `{"id":"b","revoke":true}`)
	leader.step(t, now)
	follower.step(t, now)
	if s := follower.id.Issuers(); s.Number() != 3 || len(s.Certificates()) != 1 ||
		string(s.Certificates()[0]) != follower.issuer() {
		t.Errorf("after the revocation list %d has %d issuers, want list 3 with the new one", s.Number(),
			len(s.Certificates()))
	}
	if err := leader.id.Publish(t.Context(), a, nil); err != nil || progress(t, a).Number != 3 {
		t.Errorf("publishing the identity must keep the annotations: %v", err)
	}
	restarted := newReplica(t, a, false, nil)
	if restarted.issuer() != follower.issuer() || restarted.id.Issuers().Number() != 3 {
		t.Error("a restart must read what is stored")
	}
}

func TestLeaderThatCannotWriteAdoptsStoredState(t *testing.T) {
	a, now := kubetest.New(nil), time.Now()
	writer, leader := newReplica(t, a, true, map[string]uint64{"east": 1}), newReplica(t, a, true, nil)
	leader.step(t, now)
	request(t, a, `{"id":"a"}`)
	writer.step(t, now)
	request(t, a, `{"id":"b","revoke":true}`)
	a.Refuse(func(verb string, _ client.Object) error {
		if verb == "update" {
			return apierrors.NewForbidden(corev1.Resource("secrets"), issuerSecret, nil)
		}
		return nil
	})
	if _, err := leader.Step(t.Context(), now); !apierrors.IsForbidden(err) {
		t.Fatalf("the leader was meant to try a write: %v", err)
	}
	if n := leader.id.Issuers().Number(); n != 2 || leader.changes != 1 {
		t.Errorf("list %d in force after %d changes, want the stored list 2 after 1 change", n,
			leader.changes)
	}
}

func TestRotatorKeepsIssuerOnFaults(t *testing.T) {
	for name, c := range map[string]struct {
		why  string
		do   func(*testing.T, *kubetest.API, *replica)
		want string
	}{
		"invalid request": {
			why: "the progress annotation reports the fault and nothing changes",
			do:  func(t *testing.T, a *kubetest.API, _ *replica) { request(t, a, "yes") },
		},
		"damaged Secret": {
			why: "what is in force stays",
			do: func(t *testing.T, a *kubetest.API, _ *replica) {
				var s corev1.Secret
				a.MustGet(t, system, issuerSecret, &s)
				s.Data[corev1.TLSCertKey] = []byte("garbage")
				if err := a.Update(t.Context(), &s); err != nil {
					t.Fatal(err)
				}
			},
			want: "damaged",
		},
		"Secret of a backup": {
			why: "peers would refuse the older list",
			do: func(t *testing.T, _ *kubetest.API, r *replica) {
				have := r.id.Issuers()
				state := have.state
				state.Number = 7
				if err := r.id.adopt(have.roots, state); err != nil {
					t.Fatal(err)
				}
			},
			want: "backup",
		},
		"deleted Secret": {
			why: "it is restored from what is in force",
			do: func(t *testing.T, a *kubetest.API, _ *replica) {
				var s corev1.Secret
				a.MustGet(t, system, issuerSecret, &s)
				if err := a.Delete(t.Context(), &s); err != nil {
					t.Fatal(err)
				}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := kubetest.New(nil)
			r := newReplica(t, a, true, nil)
			before := r.issuer()
			c.do(t, a, r)
			_, err := r.Step(context.Background(), time.Now())
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q: %s", err, c.want, c.why)
			}
			if r.issuer() != before {
				t.Error("the issuer has changed")
			}
			if name == "invalid request" && progress(t, a).Fault == "" {
				t.Error("the progress does not report the fault")
			}
			if name == "deleted Secret" && newReplica(t, a, false, nil).issuer() != before {
				t.Error("another issuer was stored")
			}
		})
	}
}

func TestUnacknowledged(t *testing.T) {
	since := time.Now()
	s := &Snapshot{state: rotation.State{CurrentNumber: 3, Since: since}}
	for name, c := range map[string]struct {
		why          string
		acknowledged uint64
		after        time.Duration
		want         uint64
	}{
		"no acknowledgement": {"the peer may have acknowledged to another replica", 0, time.Hour, 0},
		"late":               {"the peer had enough time", 2, time.Hour, 3},
		"soon":               {"the acknowledgement may be on its way", 2, time.Second, 0},
		"current":            {"the peer has applied the list", 3, time.Hour, 0},
	} {
		if got := s.Unacknowledged(c.acknowledged, since.Add(c.after)); got != c.want {
			t.Errorf("%s: %d, want %d: %s", name, got, c.want, c.why)
		}
	}
}
