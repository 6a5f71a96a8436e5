//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-mesh/causeway/lab"
)

// podsInZone returns a manifest of pods of the team "zones", on the nodes of one zone.
func podsInZone(name, zone string, replicas int) string {
	return strings.Replace(barPods(name, "zones", replicas, 1), "      serviceAccountName: bar\n",
		"      serviceAccountName: bar\n      nodeSelector: {topology.kubernetes.io/zone: "+zone+"}\n", 1)
}

// inZones returns how many requests the pods of near and the other pods have answered.
func (s spread) inZones() (near, others int) {
	for pod, n := range s {
		if strings.HasPrefix(pod, "near-") {
			near += n
		} else {
			others += n
		}
	}
	return near, others
}

// TestRequestsPreferSameZone: if a Service prefers the zone of its callers, requests from
// another cluster go only to its pods in the caller's zone. They go to the other pods
// while the zone has no pod, or while its pods fail. Without the preference they go to
// all pods.
func TestRequestsPreferSameZone(t *testing.T) {
	long(t)
	const pods, requests = 2, 400
	ctx := t.Context()
	zoned := beside(t, lab.Options{Clusters: []string{"zoned"}, Nodes: 2})["zoned"]
	t.Cleanup(func() { _ = west.dyn.Resource(links).Delete(background(), "zoned", deleteOptions) })
	label := func(c *cluster, node, zone string) {
		t.Helper()
		must(t, c.kubectl(background(), "", "label", "node", node, "--overwrite", zone))
	}
	label(zoned, zoned.Nodes()[0], corev1.LabelTopologyZone+"=zone-a")
	label(zoned, zoned.Nodes()[1], corev1.LabelTopologyZone+"=zone-b")
	label(west, west.Nodes()[0], corev1.LabelTopologyZone+"=zone-a")
	t.Cleanup(func() { label(west, west.Nodes()[0], corev1.LabelTopologyZone+"-") })
	must(t, introduce(ctx, zoned, west))
	must(t, introduce(ctx, west, zoned))
	must(t, zoned.kubectl(ctx, podsInZone("near", "zone-a", pods)+podsInZone("far", "zone-b", pods)+teamService("zones"), "apply", "-f", "-"))
	ready := func(want int) {
		t.Helper()
		within(t, 90*time.Second, "the pods are ready", func() error { return zoned.teamReady(ctx, "zones", want) })
	}
	ready(2 * pods)
	within(t, time.Minute, "the mirror answers", func() error {
		_, err := west.curl(ctx, "client", "-sSf", "-m2", "http://zones-zoned.shop/")
		return err
	})
	ns, web, rpc := netOf(t, west, "client"), mirrorOf(t, "zones-zoned", 80), mirrorOf(t, "zones-zoned", 9000)
	kept := map[string]*keptClient{
		"HTTP/1.1": keepHTTP(t, ns, web, false),
		"HTTP/2":   keepHTTP(t, ns, web, true),
		"gRPC":     keepGRPC(t, ns, rpc),
	}
	// become sends requests until the answers of each client are right. No request may
	// fail.
	become := func(timeout time.Duration, what string, right func(near, others int) bool) {
		t.Helper()
		for protocol, k := range kept {
			start := time.Now()
			within(t, timeout, protocol+": "+what, func() error {
				near, others := k.askMany(t, 50, 1, 0).inZones()
				if !right(near, others) {
					return errors.Join(errNotYet, fmt.Errorf("%d requests in the zone, %d in the other", near, others))
				}
				return nil
			})
			near, others := k.askMany(t, requests, 1, 0).inZones()
			t.Logf("%s: %s after %.1f s: %d in the zone, %d in the other", protocol, what, time.Since(start).Seconds(), near, others)
			if !right(near, others) {
				t.Errorf("%s: %s: %d requests in the zone, %d in the other", protocol, what, near, others)
			}
		}
	}
	distribute := func(value string) {
		t.Helper()
		must(t, zoned.kubectl(ctx, "", "-n", "shop", "patch", "service", "zones", "--type=merge",
			"-p", `{"spec":{"trafficDistribution":`+value+`}}`))
	}
	scale := func(replicas int) {
		t.Helper()
		must(t, zoned.kubectl(ctx, "", "-n", "shop", "scale", "deployment", "near", fmt.Sprint("--replicas=", replicas)))
	}
	// Spread means that each zone gets over a quarter of the requests, not half of them,
	// because an agent skips a pod for 30 s if the gateway did not connect to it.
	spread := func(near, others int) bool { return 4*near > near+others && 4*others > near+others }
	inZone := func(near, others int) bool { return others == 0 }
	inOther := func(near, others int) bool { return near == 0 }

	become(30*time.Second, "by default they are spread", spread)
	distribute(`"PreferSameZone"`)
	become(30*time.Second, "they prefer the zone", inZone)
	scale(0)
	ready(pods)
	become(30*time.Second, "there is no pod in the zone", inOther)
	scale(pods)
	ready(2 * pods)
	become(30*time.Second, "there are pods in the zone again", inZone)
	list := have(zoned.api.CoreV1().Pods("shop").List(ctx, metav1.ListOptions{LabelSelector: "app=near"}))(t)
	for i := range list.Items {
		must(t, zoned.KillContainer(ctx, "shop", list.Items[i].Name, "bar", syscall.SIGKILL))
	}
	for protocol, k := range kept { // while they start again
		near, others := k.askMany(t, requests, 1, 0).inZones()
		t.Logf("%s: the pods in the zone were killed: %d in the zone, %d in the other", protocol, near, others)
	}
	ready(2 * pods)
	become(time.Minute, "the pods in the zone have started again", inZone)
	distribute("null")
	become(30*time.Second, "they are spread again", spread)
}
