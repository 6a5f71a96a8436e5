package controller

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

	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/rotation"
)

// turner is one controller's rotator.
type turner struct {
	*rotator
	leads  bool
	turned int
	told   *events.FakeRecorder
}

func newTurner(t *testing.T, a *api, leads bool, acks map[string]uint64) *turner {
	t.Helper()
	return newTurnerAs(t, a, leads, acks, named("west"))
}

func newTurnerAs(t *testing.T, a *api, leads bool, acks map[string]uint64, as Options) *turner {
	t.Helper()
	o, err := loadOwn(t.Context(), a, as, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := o.publish(t.Context(), a, as, nil); err != nil {
		t.Fatal(err)
	}
	r := &turner{leads: leads, told: events.NewFakeRecorder(16)}
	r.rotator = &rotator{
		own: o, client: a, namespace: system, log: quietly, turned: func() { r.turned++ },
		events: r.told, caSecret: as.CASecret,
		ready: func() bool { return r.leads }, acks: func() map[string]uint64 { return acks },
	}
	return r
}

func (r *turner) see(t *testing.T, now time.Time) {
	t.Helper()
	if _, err := r.look(t.Context(), now); err != nil {
		t.Fatal(err)
	}
}

func request(t *testing.T, a *api, text string) {
	t.Helper()
	var cm corev1.ConfigMap
	a.get(t, system, IdentityConfigMap, &cm)
	if cm.Annotations == nil {
		cm.Annotations = make(map[string]string)
	}
	cm.Annotations[rotation.RequestAnnotation] = text
	if err := a.Update(t.Context(), &cm); err != nil {
		t.Fatal(err)
	}
}

func progress(t *testing.T, a *api) rotation.Progress {
	t.Helper()
	var cm corev1.ConfigMap
	a.get(t, system, IdentityConfigMap, &cm)
	p, err := rotation.ParseProgress(cm.Annotations[rotation.ProgressAnnotation])
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (r *turner) current() string { return string(r.own.issuers.Load().Current.Certificate().Raw) }

func TestRotation(t *testing.T) {
	a, now := newAPI(t), time.Now()
	acks := map[string]uint64{"east": 1}
	leader, other := newTurner(t, a, true, acks), newTurner(t, a, false, nil)
	leader.see(t, now)
	other.see(t, now)
	first := leader.current()
	a.wrote()
	leader.see(t, now)
	other.see(t, now)
	if w := a.wrote(); len(w) > 0 || leader.turned+other.turned > 0 {
		t.Fatalf("nothing is asked, but written: %v", w)
	}
	request(t, a, `{"id":"a"}`)
	other.see(t, now)
	leader.see(t, now)
	other.see(t, now)
	if p := progress(t, a); p.Number != 2 || p.Deadline == nil || !slices.Equal(p.Waiting, []string{"east"}) {
		t.Errorf("announced: %+v", p)
	}
	list, err := identity.VerifyIssuerList(other.own.root().Certificate(), other.own.trustDomain, other.own.hello("v").IssuerList)
	if err != nil || list.Number != 2 || len(list.Issuers) != 2 || other.turned != 1 || other.current() != first || len(other.own.issuers.Load().ders) != 2 {
		t.Fatalf("the other replica says %+v, %v, was told %d times", list, err, other.turned)
	}
	acks["east"] = 2
	leader.see(t, now)
	other.see(t, now)
	if other.current() == first || leader.current() != other.current() {
		t.Error("both sign by the new issuer")
	}
	if p := progress(t, a); p.Request != "a" || p.Deadline != nil || len(p.Waiting) > 0 {
		t.Errorf("done: %+v", p)
	}
	request(t, a, `{"id":"b","revoke":true}`)
	leader.see(t, now)
	other.see(t, now)
	if s := other.own.issuers.Load(); s.Number != 3 || len(s.ders) != 1 || string(s.ders[0]) != other.current() {
		t.Errorf("revoked: list %d of %d", s.Number, len(s.ders))
	}
	if err := leader.own.publish(t.Context(), a, named("renamed"), nil); err != nil || progress(t, a).Number != 3 {
		t.Errorf("publishing the identity keeps what stands beside it: %v", err)
	}
	again := newTurner(t, a, false, nil)
	if again.current() != other.current() || again.own.issuers.Load().Number != 3 {
		t.Error("a restart reads what is there")
	}
}

// A leader that has something to write and may not still puts in force what stands there: it may be a person's mending.
func TestLeaderThatMayNotWriteFollows(t *testing.T) {
	a, now := newAPI(t), time.Now()
	writer, leader := newTurner(t, a, true, map[string]uint64{"east": 1}), newTurner(t, a, true, nil)
	leader.see(t, now)
	request(t, a, `{"id":"a"}`)
	writer.see(t, now)
	request(t, a, `{"id":"b","revoke":true}`)
	a.refusing(func(verb string, _ client.Object) error {
		if verb == "update" {
			return apierrors.NewForbidden(corev1.Resource("secrets"), issuerSecret, nil)
		}
		return nil
	})
	if _, err := leader.look(t.Context(), now); !apierrors.IsForbidden(err) {
		t.Fatalf("the test shows nothing: %v", err)
	}
	if n := leader.own.issuers.Load().Number; n != 2 || leader.turned != 1 {
		t.Errorf("list %d is in force, told of %d times, want what stands in the Secret, 2, told once", n, leader.turned)
	}
}

func TestRotationRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		why  string
		do   func(*testing.T, *api, *turner)
		want string
	}{
		"somebody's hand": {"said where the command looks, and nothing changes", func(t *testing.T, a *api, _ *turner) { request(t, a, "yes") }, ""},
		"damaged": {"what is in force stays", func(t *testing.T, a *api, _ *turner) {
			var s corev1.Secret
			a.get(t, system, issuerSecret, &s)
			s.Data[corev1.TLSCertKey] = []byte("garbage")
			if err := a.Update(t.Context(), &s); err != nil {
				t.Fatal(err)
			}
		}, "damaged"},
		"a backup": {"peers would refuse the older list", func(t *testing.T, _ *api, r *turner) {
			have := r.own.issuers.Load()
			s := have.State
			s.Number = 7
			if err := r.own.adopt(have.roots, s); err != nil {
				t.Fatal(err)
			}
		}, "backup"},
		"deleted": {"it is restored as it was", func(t *testing.T, a *api, _ *turner) {
			var s corev1.Secret
			a.get(t, system, issuerSecret, &s)
			if err := a.Delete(t.Context(), &s); err != nil {
				t.Fatal(err)
			}
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t)
			r := newTurner(t, a, true, nil)
			before := r.current()
			c.do(t, a, r)
			_, err := r.look(context.Background(), time.Now())
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q: %s", err, c.want, c.why)
			}
			if r.current() != before {
				t.Error("the issuer has changed")
			}
			if name == "somebody's hand" && progress(t, a).Fault == "" {
				t.Error("the fault is not said")
			}
			if name == "deleted" && newTurner(t, a, false, nil).current() != before {
				t.Error("another issuer stands there")
			}
		})
	}
}

func TestBehind(t *testing.T) {
	since := time.Now()
	i := &issuing{State: rotation.State{Needed: 3, Since: since}}
	for name, c := range map[string]struct {
		why    string
		trusts uint64
		after  time.Duration
		want   uint64
	}{
		"silent": {"it may have said so to another replica", 0, time.Hour, 0},
		"late":   {"it has had its time", 2, time.Hour, 3},
		"soon":   {"it may be on its way", 2, time.Second, 0},
		"fine":   {"it has it", 3, time.Hour, 0},
	} {
		if got := i.behind(c.trusts, since.Add(c.after)); got != c.want {
			t.Errorf("%s: %d, want %d: %s", name, got, c.want, c.why)
		}
	}
}
