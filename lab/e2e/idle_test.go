//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// write is an event of the audit log that is about Causeway's own accounts.
type write struct {
	Verb string `json:"verb"`
	User struct {
		Username string `json:"username"`
	} `json:"user"`
	ObjectRef struct {
		Resource, Subresource, Namespace, Name string
	} `json:"objectRef"`
	At time.Time `json:"requestReceivedTimestamp"`
}

func (w write) String() string {
	return fmt.Sprintf("%s %s %s %s/%s by %s", w.At.Format("15:04:05"), w.Verb, strings.TrimSuffix(w.ObjectRef.Resource+"/"+w.ObjectRef.Subresource, "/"),
		w.ObjectRef.Namespace, w.ObjectRef.Name, w.User.Username[strings.LastIndex(w.User.Username, ":")+1:])
}

// lease and review tell what may be written at any time.
func (w write) lease() bool  { return w.ObjectRef.Resource == "leases" }
func (w write) review() bool { return w.ObjectRef.Resource == "tokenreviews" }

// auditEnd is where a cluster's audit log ends now.
func (c *cluster) auditEnd() (int64, error) {
	info, err := os.Stat(c.AuditLog())
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// writes are what Causeway's accounts wrote to the API server since the audit log ended at from.
func (c *cluster) writes(from int64) ([]write, error) {
	f, err := os.Open(c.AuditLog())
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return nil, err
	}
	var out []write
	for r := bufio.NewReader(f); ; {
		raw, err := r.ReadBytes('\n')
		if err == io.EOF {
			return out, nil // what has no newline yet is read next time
		}
		if err != nil {
			return nil, err
		}
		var w write
		if err := json.Unmarshal(raw, &w); err != nil {
			return nil, fmt.Errorf("audit log: %w", err)
		}
		if strings.HasPrefix(w.User.Username, "system:serviceaccount:"+system+":") {
			out = append(out, w)
		}
	}
}

// TestIdleWritesNothing: 0 writes to either API server by Causeway's accounts in 60 s of idleness, from the audit log, which in the same
// 60 s does show its Lease renewals; Leases and token reviews apart.
func TestIdleWritesNothing(t *testing.T) {
	ctx := t.Context()
	const window, quiet = 60 * time.Second, 35 * time.Second
	// A status that differs in counts alone is written up to 30 s after the change.
	within(t, 2*time.Minute, "all is quiet", func() error {
		marks := make(map[*cluster]int64)
		for _, c := range []*cluster{west, east} {
			marks[c] = have(c.auditEnd())(t)
		}
		sleep(ctx, quiet)
		for c, from := range marks {
			for _, w := range have(c.writes(from))(t) {
				if !w.lease() && !w.review() {
					return fmt.Errorf("%s: %v", c.Name(), w)
				}
			}
		}
		return nil
	})
	marks := make(map[*cluster]int64)
	for _, c := range []*cluster{west, east} {
		marks[c] = have(c.auditEnd())(t)
	}
	sleep(ctx, window)
	for c, from := range marks {
		leases, reviews := 0, 0
		for _, w := range have(c.writes(from))(t) {
			switch {
			case w.lease():
				leases++
			case w.review():
				reviews++
			default:
				t.Errorf("%s: %v", c.Name(), w)
			}
		}
		t.Logf("%s: %d Lease renewals, %d token reviews", c.Name(), leases, reviews)
		if leases == 0 {
			t.Errorf("%s: the audit log shows no Lease renewal, so it shows nothing", c.Name())
		}
	}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// versions are the resource versions of all that an install, or a controller, could write, but for what lives: pods, Leases and
// the like.
func (c *cluster) versions(ctx context.Context) (map[string]string, error) {
	out := make(map[string]string)
	_, lists, err := c.api.Discovery().ServerGroupsAndResources()
	if err != nil {
		return nil, err
	}
	lives := map[string]bool{"pods": true, "leases": true, "events": true, "nodes": true, "endpoints": true, "replicasets": true,
		"controllerrevisions": true, "componentstatuses": true, "ipaddresses": true, "csinodes": true, "podmetrics": true}
	for _, list := range lists {
		for _, r := range list.APIResources {
			if lives[r.Name] || strings.Contains(r.Name, "/") || !strings.Contains(strings.Join(r.Verbs, " "), "list") {
				continue
			}
			all, err := c.dyn.Resource(gvr(list.GroupVersion, r)).List(ctx, listOptions)
			if err != nil {
				return nil, fmt.Errorf("list %s: %w", r.Name, err)
			}
			for _, o := range all.Items {
				out[r.Name+" "+o.GetNamespace()+"/"+o.GetName()] = o.GetResourceVersion()
			}
		}
	}
	return out, nil
}

// TestInstallAgainChangesNothing: an install that runs again over what it made writes nothing, and restarts nothing.
func TestInstallAgainChangesNothing(t *testing.T) {
	ctx := t.Context()
	must(t, west.install(ctx)) // a test that scaled something with kubectl owns that field until now
	before := have(west.versions(ctx))(t)
	if before["daemonsets "+system+"/causeway-agent"] == "" || before["services shop/bar-east"] == "" {
		t.Fatal("the list lacks what it is for")
	}
	pods := have(west.causewayPods(ctx))(t)
	mark := have(west.auditEnd())(t)
	must(t, west.install(ctx))
	compare(t, before, have(west.versions(ctx))(t))
	for _, w := range have(west.writes(mark))(t) {
		if !w.lease() && !w.review() {
			t.Errorf("%v", w)
		}
	}
	if after := have(west.causewayPods(ctx))(t); after != pods {
		t.Errorf("pods were %s, are %s", pods, after)
	}
}

// causewayPods are the UIDs of all pods of Causeway.
func (c *cluster) causewayPods(ctx context.Context) (string, error) {
	list, err := c.api.CoreV1().Pods(system).List(ctx, listOptions)
	if err != nil {
		return "", err
	}
	var out []string
	for _, p := range list.Items {
		out = append(out, p.Name+"="+string(p.UID))
	}
	return strings.Join(out, " "), nil
}

func compare(t *testing.T, before, after map[string]string) {
	t.Helper()
	for what, v := range after {
		if before[what] != v {
			t.Errorf("%s was written: version %q, then %q", what, before[what], v)
		}
	}
	for what := range before {
		if after[what] == "" {
			t.Errorf("%s is gone", what)
		}
	}
}

// TestControllerRestartWritesNoMirror: a new controller finds mirrors as they should be and writes nothing to them, and calls go on.
func TestControllerRestartWritesNoMirror(t *testing.T) {
	ctx := t.Context()
	client, address := netOf(t, west, "client"), "http://"+mirrorOf(t, "bar-east", 80)
	mirrors := func() map[string]string {
		out := make(map[string]string)
		for what, v := range have(west.versions(ctx))(t) {
			if strings.HasPrefix(what, "services ") || strings.HasPrefix(what, "endpointslices shop/") || strings.HasPrefix(what, "ledgers ") {
				out[what] = v
			}
		}
		return out
	}
	before, mark := mirrors(), have(west.auditEnd())(t)
	calls, stop := context.WithCancel(ctx)
	done := make(chan int)
	go func() {
		n := 0
		for ; calls.Err() == nil; sleep(calls, 50*time.Millisecond) {
			if _, err := fetch(ctx, client, address); err != nil {
				t.Errorf("a call while the controllers restart: %v", err)
			}
			n++
		}
		done <- n
	}()
	pods := have(west.pods(ctx, "controller"))(t)
	must(t, west.api.CoreV1().Pods(system).DeleteCollection(ctx, deleteOptions, metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=controller"}))
	within(t, time.Minute, "new controllers are ready", func() error { return west.controllers(ctx, len(pods)) })
	// It has taken over when it repairs: so it has looked at mirrors.
	must(t, west.kubectl(ctx, "", "-n", "shop", "label", "service", "baz-east", "causeway.dev/link=elsewhere", "--overwrite"))
	within(t, time.Minute, "a new leader is at work", func() error {
		s, err := west.api.CoreV1().Services("shop").Get(ctx, "baz-east", getOptions)
		if err == nil && s.Labels["causeway.dev/link"] != "east" {
			err = errNotYet
		}
		return err
	})
	stop()
	t.Logf("%d calls went on meanwhile", <-done)
	after := mirrors()
	before["services shop/baz-east"] = after["services shop/baz-east"]
	compare(t, before, after)
	for _, w := range have(west.writes(mark))(t) {
		if r := w.ObjectRef.Resource; (r == "services" || r == "endpointslices" || r == "ledgers") && w.ObjectRef.Name != "baz-east" {
			t.Errorf("%v", w)
		}
	}
}
