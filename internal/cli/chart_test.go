package cli

import (
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/causeway-mesh/causeway/charts"
)

// The chart types our words: what it types must be understood, and what we fall back to must be set.
func TestChartSpeaksTheCommand(t *testing.T) {
	r, err := charts.Render("causeway-system", map[string]any{"clusterName": "west", "tracing": map[string]any{"endpoint": "https://collector", "secret": "otlp"}})
	if err != nil {
		t.Fatal(err)
	}
	started := map[string]bool{}
	for _, o := range r.Objects {
		spec, ok := podSpec(t, o)
		if !ok {
			continue
		}
		for _, c := range spec.Containers {
			started[c.Args[0]] = true
			understood(t, c.Args, c.Env)
			if p := c.ReadinessProbe; p != nil && p.Exec != nil {
				if p.Exec.Command[0] != "/causeway" {
					t.Errorf("the probe of %q runs %q, which is not in the image", c.Name, p.Exec.Command[0])
				}
				understood(t, p.Exec.Command[1:], nil)
			}
		}
	}
	for _, o := range r.Hooks {
		if spec, ok := podSpec(t, o); ok {
			understood(t, spec.Containers[0].Args, nil)
		}
	}
	want := map[string]bool{}
	for _, c := range (&app{}).root().Commands() {
		if c.GroupID == process {
			want[c.Name()] = true
		}
	}
	if !maps.Equal(started, want) {
		t.Errorf("the chart starts %v, the command offers %v", started, want)
	}
}

// TestChartQuotesStrings renders the chart with names that YAML reads as numbers,
// booleans or null if they are not quoted. The result must equal that of an ordinary
// name, with the name replaced.
func TestChartQuotesStrings(t *testing.T) {
	const ordinary = "ordinary-name"
	render := func(name string) []any {
		t.Helper()
		cluster := name
		if name[0] <= '9' { // a cluster name begins with a letter
			cluster = "west"
		}
		r, err := charts.Render(name, map[string]any{
			"clusterName": cluster,
			"caSecret":    name,
			"tracing":     map[string]any{"endpoint": "https://collector", "secret": name},
			"monitoring":  map[string]any{"podMonitor": map[string]any{"enabled": true}},
		})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var out []any
		for _, o := range slices.Concat(r.Objects, r.Hooks) {
			out = append(out, o.Object)
		}
		return out
	}
	for _, name := range []string{"on", "123", "1e3", "0x1f", "null", "true", "012"} {
		want := replaced(render(ordinary), ordinary, name)
		if name[0] <= '9' {
			want = replaced(render("9"+ordinary), "9"+ordinary, name)
		}
		if d := cmp.Diff(want, any(render(name))); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

// replaced returns a copy of a JSON value. In each of its strings, after replaces before.
func replaced(v any, before, after string) any {
	switch v := v.(type) {
	case string:
		return strings.ReplaceAll(v, before, after)
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = replaced(v[i], before, after)
		}
		return out
	case map[string]any:
		out := make(map[string]any, len(v))
		for key := range v {
			out[key] = replaced(v[key], before, after)
		}
		return out
	}
	return v
}

// TestLimitFlags: a limit is an integer that is not negative.
func TestLimitFlags(t *testing.T) {
	for _, tc := range []struct {
		arg string
		ok  bool
	}{
		{"--max-connections=0", true},
		{"--max-connections-per-link=1000000", true},
		{"--max-connections=-1", false},
		{"--max-connections=many", false},
		{"--max-connections=99999999999", false},
	} {
		for _, process := range []string{"agent", "gateway"} {
			c, rest, err := (&app{stdout: io.Discard, stderr: io.Discard}).root().Find([]string{process, tc.arg})
			if err != nil {
				t.Fatal(err)
			}
			if err := c.ParseFlags(rest); (err == nil) != tc.ok {
				t.Errorf("%s %s: %v", process, tc.arg, err)
			}
		}
	}
}

func podSpec(t *testing.T, o *unstructured.Unstructured) (corev1.PodSpec, bool) {
	t.Helper()
	raw, ok, err := unstructured.NestedMap(o.Object, "spec", "template", "spec")
	if err != nil || !ok {
		return corev1.PodSpec{}, false
	}
	var spec corev1.PodSpec
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(raw, &spec); err != nil {
		t.Fatal(err)
	}
	return spec, true
}

// understood parses args as the command would, and checks that the environment has what flags fall back to.
func understood(t *testing.T, args []string, env []corev1.EnvVar) {
	t.Helper()
	c, rest, err := (&app{stdout: io.Discard, stderr: io.Discard}).root().Find(args)
	if err != nil {
		t.Errorf("%q: %v", args, err)
		return
	}
	if err := c.ParseFlags(rest); err != nil {
		t.Errorf("%q: %v", args, err)
	}
	if left := c.Flags().Args(); len(left) > 0 || !c.Runnable() {
		t.Errorf("%q: %q is not a verb of %s", args, left, c.CommandPath())
	}
	for _, flag := range slices.Sorted(maps.Keys(environment)) {
		f := c.Flags().Lookup(flag)
		set := slices.ContainsFunc(env, func(v corev1.EnvVar) bool { return v.Name == environment[flag] })
		if f != nil && f.DefValue == "" && !f.Changed && !set && c.GroupID == process {
			t.Errorf("%q: neither --%s nor $%s is set", args, flag, environment[flag])
		}
		if f == nil && set {
			t.Errorf("%q: $%s is set, but %s does not read it", args, environment[flag], c.CommandPath())
		}
	}
}
