//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// What stories of mirrors have in common.

// offer applies objects in east for the length of the test, and waits at its end until none of the mirrors named is left in west's shop.
func offer(t *testing.T, manifest string, mirrors ...string) {
	t.Helper()
	offerIn(t, east, manifest, mirrors...)
}

// offerIn is offer in another cluster.
func offerIn(t *testing.T, c *cluster, manifest string, mirrors ...string) {
	t.Helper()
	must(t, c.kubectl(t.Context(), manifest, "apply", "-f", "-"))
	t.Cleanup(func() {
		if err := c.kubectl(background(), manifest, "delete", "--ignore-not-found", "--wait=false", "-f", "-"); err != nil {
			t.Error(err)
		}
		for _, m := range mirrors {
			if err := gone(t, m); err != nil {
				t.Error(err)
			}
		}
	})
}

// service is the manifest of a Service of bar's pods in namespace shop. meta is what its metadata has beside that, ports are its ports.
func service(name, meta, ports string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: shop, %s}
spec:
  selector: {app: bar}
  ports: [%s]
---
`, name, meta, ports)
}

const (
	// recognized is exported with requests recognized, and exported is opaque: most stories
	// are about connections.
	recognized = `labels: {causeway.dev/export: "true"}`
	exported   = recognized + `, annotations: {causeway.dev/protocol: tcp}`
	httpPort   = `{name: http, port: 80, targetPort: http}`
)

// answered asks a URL as west's client, and wants bar's pods.
func answered(t *testing.T, url string) error {
	said, err := west.curl(t.Context(), "client", "-sSf", "-m2", url)
	if err == nil && !strings.Contains(said, "bar served by bar-") {
		err = fmt.Errorf("%s answered %q", url, said)
	}
	return err
}

// reached wants a mirror in west's shop to stand, and to be answered by bar's pods. A name that is asked for before it stands is remembered
// for seconds by the cluster's DNS as one that does not exist.
func reached(t *testing.T, name string) error {
	if _, err := clusterIP(t.Context(), west, name); err != nil {
		return err
	}
	return answered(t, "http://"+name+".shop/")
}

// refusedAtOnce wants a URL to be refused to west's client within a second. kube-proxy refuses for Services without endpoints by ICMP, which
// the kernel rations: six to one address, and then one a second. A caller of more has to send its SYN again, after one second and three,
// and that is allowed here only if the kernel says that it has withheld one.
func refusedAtOnce(t *testing.T, url string) error {
	limit, before := time.Second, withheld(t, west)
	start := time.Now()
	said, err := west.curl(t.Context(), "client", "-sS", "-m5", url)
	took := time.Since(start)
	if n := withheld(t, west) - before; n > 0 {
		t.Logf("the kernel has withheld %d ICMP messages", n)
		limit = 3500 * time.Millisecond
	}
	if err == nil || took > limit {
		return fmt.Errorf("%s gave %q, %v after %.2f s, want a refusal at once", url, said, err, took.Seconds())
	}
	return nil
}

// withheld is how many ICMP messages a cluster's first node has not sent for the sake of rates.
func withheld(t *testing.T, c *cluster) (n int) {
	t.Helper()
	var names []string
	for line := range strings.Lines(have(c.output(t.Context(), nodeOf, "cat", "/proc/net/snmp"))(t)) {
		fields := strings.Fields(line)
		if fields[0] != "Icmp:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i, name := range names {
			if strings.HasPrefix(name, "OutRateLimit") {
				n += have(strconv.Atoi(fields[i]))(t)
			}
		}
	}
	return n
}

// link reads a Link.
func (c *cluster) link(ctx context.Context, name string) (l v1alpha1.Link, err error) {
	err = c.read(ctx, links, "", name, &l)
	return l, err
}

// problems are what a Link's status says of one Service, or of none.
func (c *cluster) problems(ctx context.Context, link, service string) ([]v1alpha1.ServiceProblem, error) {
	l, err := c.link(ctx, link)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(l.Status.Problems, func(p v1alpha1.ServiceProblem) bool { return p.Service != service }), nil
}

// complains wants a Link's status to name a Service for a reason, with all the words.
func (c *cluster) complains(t *testing.T, link, service, reason string, words ...string) error {
	all, err := c.problems(t.Context(), link, service)
	if err != nil {
		return err
	}
	for _, p := range all {
		if p.Reason == reason && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(p.Message, w) }) {
			return nil
		}
	}
	return fmt.Errorf("of %q Link %s says %+v, want %s %q", service, link, all, reason, words)
}

// contented wants a Link's status to have nothing to say, and its conditions to be True.
func (c *cluster) contented(t *testing.T, link string) error {
	l, err := c.link(t.Context(), link)
	if err != nil {
		return err
	}
	var out error
	for _, cond := range l.Status.Conditions {
		if cond.Status != metav1.ConditionTrue {
			out = errors.Join(out, fmt.Errorf("%s is %s: %s", cond.Type, cond.Status, cond.Message))
		}
	}
	for _, p := range l.Status.Problems {
		out = errors.Join(out, fmt.Errorf("%s: %s: %s", p.Service, p.Reason, p.Message))
	}
	return out
}

// told wants an Event about an object, with a reason and a word, not older than since.
func (c *cluster) told(t *testing.T, since time.Time, kind, name, reason, word string) error {
	list, err := c.api.EventsV1().Events("").List(t.Context(), listOptions)
	if err != nil {
		return err
	}
	var near []string
	for _, e := range list.Items {
		if e.Regarding.Kind != kind || e.Regarding.Name != name || e.CreationTimestamp.Time.Before(since.Add(-time.Second).Truncate(time.Second)) {
			continue
		}
		if e.Reason == reason && strings.Contains(e.Note, word) {
			return nil
		}
		near = append(near, e.Reason+": "+e.Note)
	}
	return fmt.Errorf("of %s %s Events say %q, want %s with %q", kind, name, near, reason, word)
}

// relink patches the spec of a cluster's Link.
func (c *cluster) relink(ctx context.Context, link, spec string) error {
	_, err := c.dyn.Resource(links).Patch(ctx, link, types.MergePatchType, []byte(`{"spec":`+spec+`}`), metav1.PatchOptions{})
	return err
}

// importing changes the import rules of west's Link for the length of the test.
func importing(t *testing.T, rules string) {
	t.Helper()
	t.Cleanup(func() {
		everything := `{"import":null}`
		err := west.relink(background(), "east", everything)
		if err == nil {
			err = west.relink(background(), "east", `{"import":{"services":"All"}}`)
		}
		if err != nil {
			t.Error(err)
		}
		serves(t)
	})
	must(t, west.relink(t.Context(), "east", `{"import":`+rules+`}`))
}
