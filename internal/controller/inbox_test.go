package controller

import (
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
)

func TestInboxKeepsNewestObject(t *testing.T) {
	version := func(v string) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{
			Namespace:       "shop",
			Name:            "a",
			ResourceVersion: v,
		}}
	}
	const gone = "gone"
	cases := map[string]struct {
		why  string
		do   func(h toolscache.ResourceEventHandler)
		want string
	}{
		"added": {
			"a new object",
			func(h toolscache.ResourceEventHandler) { h.OnAdd(version("1"), true) },
			"1",
		},
		"changed twice": {"a pass sees the newest alone", func(h toolscache.ResourceEventHandler) {
			h.OnAdd(version("1"), false)
			h.OnUpdate(version("1"), version("2"))
			h.OnUpdate(version("2"), version("3"))
		}, "3"},
		"deleted": {"nil stands for it", func(h toolscache.ResourceEventHandler) {
			h.OnAdd(version("1"), false)
			h.OnDelete(version("1"))
		}, gone},
		"deleted while the watch was interrupted": {
			"the informer wraps it",
			func(h toolscache.ResourceEventHandler) {
				h.OnDelete(toolscache.DeletedFinalStateUnknown{Key: "shop/a", Obj: version("1")})
			},
			gone,
		},
		"created again": {"the last event counts", func(h toolscache.ResourceEventHandler) {
			h.OnDelete(version("1"))
			h.OnAdd(version("2"), false)
		}, "2"},
		"another kind": {
			"it is not taken",
			func(h toolscache.ResourceEventHandler) { h.OnAdd(&corev1.Pod{}, false) },
			"",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			in := newInbox()
			c.do(handler(in, func(b *batch) *changed[corev1.Service] { return &b.services }))
			b := in.take()
			got := ""
			if s, ok := b.services[shopKey("a")]; ok && s == nil {
				got = gone
			} else if ok {
				got = s.ResourceVersion
			}
			if got != c.want || b.empty() != (c.want == "") {
				t.Errorf("%s: %q, want %q; empty %v", c.why, got, c.want, b.empty())
			}
			if !in.take().empty() {
				t.Errorf("%s: the next batch has it again", c.why)
			}
		})
	}
}

// What arrives during a pass belongs to the next one, and wakes it.
func TestInboxLosesNothing(t *testing.T) {
	in := newInbox()
	var filling sync.WaitGroup
	const fillers, each = 4, 500
	for f := range fillers {
		filling.Go(func() {
			for i := range each {
				in.add(func(b *batch) {
					put(&b.peers, string(rune('a'+f))+string(rune('0'+i%10))+string(rune('0'+i/10%10))+
						string(rune('0'+i/100)))
				})
			}
		})
	}
	done := make(chan struct{})
	go func() { filling.Wait(); close(done) }()
	seen := make(map[string]bool)
	take := func() {
		for name := range in.take().peers {
			seen[name] = true
		}
	}
	for open := true; open; {
		select {
		case <-in.wake:
			take()
		case <-done:
			open = false
		}
	}
	select {
	case <-in.wake:
		take()
	default:
	}
	if len(seen) != fillers*each {
		t.Errorf("%d of %d arrived", len(seen), fillers*each)
	}
}

// empty reports whether nothing arrived.
func (b *batch) empty() bool {
	return len(b.services)+len(b.slices)+len(b.pods)+len(b.namespaces)+len(b.networks)+len(b.policies)+
		len(b.links)+len(b.ledgers)+
		len(b.trusts)+len(b.invites)+len(b.joins)+len(b.serviceExports)+len(b.peers)+len(b.mirrors)+
		len(b.stored)+len(b.calls) == 0 &&
		!b.identity && !b.inviteKeys && !b.ledgerListed && b.serviceExportKeys == nil
}
