package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/clusterid/clusteridtest"
)

// lines is a log that can be counted.
type lines struct {
	mu   sync.Mutex // guards text
	text strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), what)
}

func TestWriter(t *testing.T) {
	for name, c := range map[string]struct {
		why      string
		work     work
		lasts    time.Duration
		min, max int // times that it worked
		told     int
	}{
		"done":  {"what is done is not done again", func(context.Context, int) (time.Duration, error) { return 0, nil }, time.Hour, 1, 1, 0},
		"again": {"the work itself says when to look again", func(context.Context, int) (time.Duration, error) { return time.Minute, nil }, 10 * time.Minute, 10, 11, 0},
		"fails": {"an outage is tried again, ever slower, and told once", func(context.Context, int) (time.Duration, error) { return 0, errors.New("down") }, time.Hour, 120, 2000, 1},
		"conflicts": {"a conflict is weather", func(context.Context, int) (time.Duration, error) {
			return 0, apierrors.NewConflict(corev1.Resource("x"), "x", nil)
		}, time.Minute, 3, 200, 0},
		"two spells": {"an outage that comes again is told again", spells(), time.Minute, 20, 70, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				var log lines
				l := &leader{}
				w := l.writer(ctx, slog.New(slog.NewTextHandler(&log, nil)))
				worked := 0
				w.set(func(ctx context.Context, failures int) (time.Duration, error) {
					worked++
					return c.work(ctx, failures)
				})
				time.Sleep(c.lasts)
				cancel()
				l.running.Wait()
				if worked < c.min || worked > c.max {
					t.Errorf("%s: it worked %d times, want %d to %d", c.why, worked, c.min, c.max)
				}
				if n := log.count("write failed"); n != c.told {
					t.Errorf("%s: told %d times, want %d", c.why, n, c.told)
				}
			})
		})
	}
}

// spells fails three times, then works, and so on, for two spells.
func spells() work {
	n := 0
	return func(context.Context, int) (time.Duration, error) {
		n++
		if n <= 8 && n%4 != 0 {
			return 0, errors.New("down")
		}
		return time.Second, nil
	}
}

func TestWriterTakesTheNewest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		l := &leader{}
		w := l.writer(ctx, quietly)
		release := make(chan struct{})
		w.set(func(context.Context, int) (time.Duration, error) { <-release; return 0, nil })
		synctest.Wait()
		did := 0
		for i := range 10 {
			w.set(func(context.Context, int) (time.Duration, error) { did = 100*did + i; return 0, nil })
		}
		close(release)
		time.Sleep(time.Second)
		cancel()
		l.running.Wait()
		if did != 9 {
			t.Errorf("of ten jobs that came meanwhile the last alone is done: %d", did)
		}
	})
}

func TestMirrorsThatCannotBeWrittenAreSaid(t *testing.T) {
	leading(t, func(t *testing.T, r *replica) {
		r.connect("bar")
		r.again(3)
		r.Refuse(func(verb string, o client.Object) error {
			if _, ok := o.(*corev1.Service); ok && verb == "create" {
				return errors.New("a webhook does not answer")
			}
			return nil
		})
		r.connect("bar", "foo")
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if got := r.condition(t, v1alpha1.LinkSynced); got != "False Pending" {
			t.Errorf("Synced is %s while a mirror cannot be made", got)
		}
		r.Refuse(nil)
		time.Sleep(time.Minute)
		r.again(3)
		if got := r.condition(t, v1alpha1.LinkSynced); !r.stands(t, "foo-east") || got != "True Synced" {
			t.Errorf("Synced is %s once it is made", got)
		}
	}, linkTo("east", east(), "192.0.2.1:4143"), shop())
}

func TestExportProblemsStayAtLinksThatExport(t *testing.T) {
	l := linkTo("east", east(), "192.0.2.1:4143")
	l.Spec.Export = nil
	leading(t, func(t *testing.T, r *replica) {
		r.connect("bar")
		r.again(3)
		if got := r.condition(t, v1alpha1.LinkSynced); got != "True Synced" {
			t.Errorf("nothing is exported over the Link, and Synced is %s", got)
		}
		if told := r.told(); count(told, "NoTCPPort") != 1 {
			t.Errorf("the Service's owner is told all the same: %v", told)
		}
	}, l, shop(), exported("dns", corev1.ProtocolUDP))
}

func TestOneLinksTroubleStaysWithIt(t *testing.T) {
	other := clusteridtest.New("north", "00000001")
	leading(t, func(t *testing.T, r *replica) {
		r.Refuse(func(verb string, o client.Object) error {
			if verb == "update status" && o.GetName() == "north" {
				return errors.New("refused")
			}
			return nil
		})
		r.connect("bar")
		r.again(3)
		if !r.stands(t, "bar-east") || r.condition(t, v1alpha1.LinkConnected) != "True Connected" {
			t.Error("east waits for north's status")
		}
	}, linkTo("east", east(), "192.0.2.1:4143"), linkTo("north", other), shop())
}

func TestTopology(t *testing.T) {
	pod := func(name, component, node string, isReady bool) corev1.Pod {
		p := corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: name, Labels: map[string]string{componentLabel: component}},
			Spec:       corev1.PodSpec{NodeName: node},
			Status:     corev1.PodStatus{HostIP: "192.0.2.1", PodIP: "10.0.0.1"},
		}
		if isReady {
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		}
		return p
	}
	stranger := pod("stranger", agentValue, "n4", true)
	stranger.Namespace = "shop"
	going := pod("c2", controllerValue, "n1", true)
	going.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
	s := snapshot{namespace: system, pods: []corev1.Pod{
		pod("a1", agentValue, "n1", true), pod("a1-old", agentValue, "n1", false), pod("a2", agentValue, "n2", false),
		pod("a3", agentValue, "", true), stranger, pod("c1", controllerValue, "n1", true), going, pod("c3", controllerValue, "n1", false),
	}}
	top := s.topology(nil, time.Unix(0, 0))
	if strings.Join(top.nodes, " ") != "n1 n2" || len(top.agents) != 1 || top.agents["n1"] == "" {
		t.Errorf("nodes %v, agents %v: an upgrade's old pod must not hide the new, nor a tenant's pod be an agent", top.nodes, top.agents)
	}
	if len(top.controllers) != 1 || top.controllers[0].PodName != "c1" {
		t.Errorf("controllers %v: who is going or not ready gets no streams", top.controllers)
	}
}

func TestARestartedAgentCountsOn(t *testing.T) {
	down := time.Unix(1000, 0)
	agent := func(isReady corev1.ConditionStatus) *snapshot {
		return &snapshot{namespace: system, pods: []corev1.Pod{{
			ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "a1", UID: "u1", Labels: map[string]string{componentLabel: agentValue}},
			Spec:       corev1.PodSpec{NodeName: "n1"},
			Status: corev1.PodStatus{HostIP: "192.0.2.1", Conditions: []corev1.PodCondition{
				{Type: corev1.PodReady, Status: isReady, LastTransitionTime: metav1.NewTime(down)},
			}},
		}}}
	}
	served := agent(corev1.ConditionTrue).topology(nil, down).served
	cases := map[string]struct {
		why    string
		served map[types.UID]bool
		after  time.Duration
		want   bool
	}{
		"just restarted": {"the kubelet's word is seconds behind a restart that took one", served, restartGrace - 1, true},
		"down for long":  {"an agent that stays away is no way in", served, restartGrace, false},
		"never ready":    {"a new agent counts from its first readiness on", nil, 0, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			top := agent(corev1.ConditionFalse).topology(c.served, down.Add(c.after))
			if got := top.agents["n1"] != ""; got != c.want {
				t.Errorf("counts: %v, want %v: %s", got, c.want, c.why)
			}
			if (top.again > 0) != c.want {
				t.Errorf("thinks again after %v: a grace must end by itself, and only a grace", top.again)
			}
		})
	}
	two := agent(corev1.ConditionFalse)
	later := *two.pods[0].DeepCopy()
	later.Name, later.UID, later.Spec.NodeName = "a2", "u2", "n2"
	later.Status.Conditions[0].LastTransitionTime = metav1.NewTime(down.Add(2 * time.Second))
	two.pods = append(two.pods, later)
	if top := two.topology(map[types.UID]bool{"u1": true, "u2": true}, down.Add(3*time.Second)); top.again != restartGrace-3*time.Second {
		t.Errorf("of two graces the first ends in %v, and it thinks again after %v", restartGrace-3*time.Second, top.again)
	}
	going := agent(corev1.ConditionFalse)
	going.pods[0].DeletionTimestamp = &metav1.Time{Time: down}
	if top := going.topology(served, down); len(top.agents) != 0 {
		t.Error("an agent that is told to go is not coming back")
	}
}

func TestAPeersChatterIsNotWrittenWordByWord(t *testing.T) {
	leading(t, func(t *testing.T, r *replica) {
		r.connect("bar")
		r.again(5)
		r.Writes()
		sink := r.peers.StreamForTest("east", "192.0.2.1:4143")
		const words = 200
		for i := range words { // ten a second
			h := hello(east(), 1)
			h.Version = fmt.Sprintf("v%d", i)
			sink.Hello(h)
			time.Sleep(100 * time.Millisecond)
		}
		if n, most := len(r.Writes()), statusBurst+int(words*100*time.Millisecond/statusPause)+1; n == 0 || n > most {
			t.Errorf("%d writes of %d words of a peer, want 1 to %d", n, words, most)
		}
		time.Sleep(2 * statusPause)
		synctest.Wait()
		var l v1alpha1.Link
		r.MustGet(t, "", "east", &l)
		if want := fmt.Sprintf("v%d", words-1); l.Status.PeerVersion != want {
			t.Errorf("status says %q, want the last word %q", l.Status.PeerVersion, want)
		}
	}, linkTo("east", east(), "192.0.2.1:4143"), shop())
}
