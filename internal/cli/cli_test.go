package cli

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/version"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/clusterinfo"
)

var update = flag.Bool("update", false, "rewrite golden files")

// Stories are what a user types and sees. A file begins with why it exists; "$ cluster NAME" chooses a prepared cluster
// for the lines after it, "$ cluster NAME at CONTEXT" puts one into the kubeconfig, "$ grow" lets time pass in it, after
// which it has what an installation gathers; "<<< WORD" is typed at a terminal; lines from stderr begin with "! "; time in
// them is fake.
func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var got string
			synctest.Test(t, func(t *testing.T) { got = tell(t, string(want)) })
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("%s (-want +got; -update rewrites it):\n%s", file, diff)
			}
		})
	}
}

// tokens are other ones each time.
var tokens = regexp.MustCompile(`(causeway-join-1\.)[-_A-Za-z0-9]+`)

// tell runs the commands of a story and returns it with their answers.
func tell(t *testing.T, story string) string {
	var out strings.Builder
	contexts := map[string]cluster{}
	connect := func(f clusterFlags, _ io.Writer) (cluster, error) {
		if cl, ok := contexts[f.context]; ok {
			return cl, nil
		}
		return cluster{}, fmt.Errorf("read the kubeconfig: context %q does not exist", f.context)
	}
	inAnswer := false
	for line := range strings.Lines(story) {
		command, ok := strings.CutPrefix(strings.TrimSpace(line), "$ ")
		switch {
		case !ok && !inAnswer:
			out.WriteString(line) // the story's own words
		case ok:
			inAnswer = true
			fmt.Fprintf(&out, "$ %s\n", command)
			words := strings.Fields(command)
			if words[0] == "cluster" {
				at := ""
				if len(words) == 4 {
					at = words[3]
				}
				contexts[at] = prepared(t, words[1])
				continue
			}
			if words[0] == "grow" {
				create(t, contexts[""], belongs()...)
				continue
			}
			typed := slices.Index(words, "<<<")
			stdin := ""
			if typed >= 0 {
				words, stdin = words[:typed], tokenFor(words[typed+1])+"\n"
			}
			var stderr bytes.Buffer
			var stdout bytes.Buffer
			a := &app{stdin: strings.NewReader(stdin), terminal: typed >= 0, stdout: &stdout, stderr: &stderr, connect: connect}
			code := run(t.Context(), words[1:], a)
			for l := range strings.Lines(stderr.String()) {
				out.WriteString("! " + l)
			}
			out.WriteString(tokens.ReplaceAllString(stdout.String(), "${1}…"))
			if code != 0 {
				fmt.Fprintf(&out, "exit %d\n", code)
			}
		}
	}
	return out.String()
}

const rootPEM = `-----BEGIN CERTIFICATE-----
MIIBCgKCAQEA0000000000000000000000000000000000000000000000000000
MIIBCgKCAQEA
-----END CERTIFICATE-----
`

func identityMap(edit map[string]string) *corev1.ConfigMap {
	m := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "causeway-system", Name: clusterinfo.IdentityConfigMap, Labels: map[string]string{v1alpha1.ManagedByLabel: v1alpha1.ManagedBy},
		},
		Data: map[string]string{
			"clusterName": "west", "trustDomain": "west-0a1b2c3d", "root.pem": rootPEM,
			"linkPublicKey": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "gateways": "198.18.1.10:4143,gw.west.example:4143",
		},
	}
	for k, v := range edit {
		m.Data[k] = v
	}
	return m
}

func made(kube string, funcs interceptor.Funcs, objects ...client.Object) cluster {
	c := fake.NewClientBuilder().WithScheme(kinds()).WithStatusSubresource(&v1alpha1.Link{}).WithReturnManagedFields().WithObjects(objects...).WithInterceptorFuncs(funcs).Build()
	return cluster{Client: c, version: func() (*version.Info, error) { return &version.Info{GitVersion: kube}, nil }, now: time.Now}
}

// prepared returns a new cluster of that name.
func prepared(t *testing.T, name string) cluster {
	t.Helper()
	if name == "stored-ledger" {
		return storedLedger(t)
	}
	for _, m := range []map[string]func() cluster{clusters, linkClusters, mirrorClusters, livingClusters, inviteClusters} {
		if f, ok := m[name]; ok {
			return f()
		}
	}
	t.Fatalf("no cluster %q is prepared", name)
	return cluster{}
}

// clusters are those that stories of one cluster choose from.
var clusters = map[string]func() cluster{
	"empty": func() cluster {
		return made("v1.36.3", growing(2), node("node-1", "10.244.0.0/24"), readyNode("node-2", true))
	},
	"old":       func() cluster { return made("v1.31.9", interceptor.Funcs{}) },
	"stuck":     func() cluster { return made("v1.36.3", growing(0), pullFailure()) },
	"installed": func() cluster { return made("v1.36.3", interceptor.Funcs{}, identityMap(nil)) },
	"no-gateway": func() cluster {
		return made("v1.36.3", interceptor.Funcs{}, identityMap(map[string]string{"gateways": ""}))
	},
	"damaged": func() cluster {
		return made("v1.36.3", interceptor.Funcs{}, identityMap(map[string]string{"trustDomain": "west\n  export: {}"}))
	},
	"no-root": func() cluster {
		return made("v1.36.3", interceptor.Funcs{}, identityMap(map[string]string{"root.pem": "nothing"}))
	},
	"vip-clash": func() cluster { return made("v1.36.3", interceptor.Funcs{}, node("node-1", "240.65.0.0/16")) },
}

func node(name, podCIDR string) client.Object {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDRs: []string{podCIDR}}}
}

func pullFailure() client.Object {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "causeway-system", Name: "c",
			Labels: map[string]string{"app.kubernetes.io/name": "causeway", "app.kubernetes.io/component": "controller"},
		},
		Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{
			Name: "controller", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff"}},
		}}},
	}
}

// sing makes a canary's pod end as one does whose agent knows it.
func sing(obj client.Object) {
	p, ok := obj.(*corev1.Pod)
	if !ok || p.Labels["app.kubernetes.io/component"] != "canary" {
		return
	}
	p.UID = types.UID("uid-of-" + p.Spec.NodeName)
	known := fmt.Sprintf(`{"answer":{"protocol":"causeway-canary/1","uid":"%s"}}`, p.UID)
	p.Status = corev1.PodStatus{Phase: corev1.PodSucceeded, ContainerStatuses: []corev1.ContainerStatus{{
		State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Message: `{"byIP":` + known + `,"byName":` + known + `}`}},
	}}}
}

// growing makes a fake API server behave as if a cluster stood behind it: at the looks-th look at them, kinds are
// established, the controller has made its identity, and pods are ready. With 0 looks only kinds are ever established.
func growing(looks int) interceptor.Funcs {
	seen := map[string]int{}
	return interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.CreateOption) error {
			sing(obj)
			return c.Create(ctx, obj, opts...)
		},
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			if s, ok := list.(*discoveryv1.EndpointSliceList); ok {
				s.Items = make([]discoveryv1.EndpointSlice, 1)
				return nil
			}
			return c.List(ctx, list, opts...)
		},
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
			what := fmt.Sprintf("%T %s", obj, key)
			seen[what]++
			if _, ok := obj.(*corev1.ConfigMap); ok && looks > 0 && seen[what] == looks+1 { // the first look asks for the name
				if err := c.Create(ctx, identityMap(nil)); err != nil {
					return err
				}
			}
			if err := c.Get(ctx, key, obj, opts...); err != nil {
				return err
			}
			u, ok := obj.(*unstructured.Unstructured)
			if !ok {
				return nil
			}
			status := map[string]any{}
			switch done := looks > 0 && seen[what] >= looks; {
			case u.GetKind() == "CustomResourceDefinition":
				status["conditions"] = []any{map[string]any{"type": "Established", "status": "True"}}
			case u.GetKind() == "DaemonSet" && !done:
				status["desiredNumberScheduled"] = int64(1)
			case u.GetKind() == "DaemonSet":
				status["desiredNumberScheduled"], status["updatedNumberScheduled"], status["numberAvailable"] = int64(1), int64(1), int64(1)
			case u.GetKind() == "Deployment" && done:
				for _, f := range []string{"replicas", "updatedReplicas", "readyReplicas", "availableReplicas"} {
					status[f] = int64(2)
				}
			}
			u.Object["status"] = status
			return nil
		},
	}
}
