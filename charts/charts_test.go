package charts

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/causeway-mesh/causeway/internal/clusterinfo"
)

var update = flag.Bool("update", false, "rewrite golden files")

const namespace = "causeway-system"

func render(t *testing.T, values map[string]any) Rendered {
	t.Helper()
	all := map[string]any{"clusterName": "west"}
	maps.Copy(all, values)
	r, err := Render(namespace, all)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// find returns the object of that kind and name as T.
func find[T any](t *testing.T, r Rendered, kind, name string) T {
	t.Helper()
	var out T
	for _, o := range slices.Concat(r.Objects, r.Hooks) {
		if o.GetKind() == kind && o.GetName() == name {
			if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(o.Object, &out, true); err != nil {
				t.Fatalf("%s %s: %v", kind, name, err)
			}
			return out
		}
	}
	t.Fatalf("the chart has no %s %s", kind, name)
	return out
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; -update rewrites it, and the diff wants a reviewer):\n%s", file, diff)
	}
}

// Every right of every account, in one list that a reviewer reads: it may not grow by accident.
func TestRBAC(t *testing.T) {
	r := render(t, nil)
	roles := map[string][]rbacv1.PolicyRule{}
	for _, o := range slices.Concat(r.Objects, r.Hooks) {
		switch o.GetKind() {
		case "ClusterRole":
			roles["ClusterRole/"+o.GetName()] = find[rbacv1.ClusterRole](t, r, "ClusterRole", o.GetName()).Rules
		case "Role":
			roles["Role/"+o.GetName()] = find[rbacv1.Role](t, r, "Role", o.GetName()).Rules
		}
	}
	var lines []string
	for _, o := range slices.Concat(r.Objects, r.Hooks) {
		var subjects []rbacv1.Subject
		var ref rbacv1.RoleRef
		var where string
		switch o.GetKind() {
		case "ClusterRoleBinding":
			b := find[rbacv1.ClusterRoleBinding](t, r, "ClusterRoleBinding", o.GetName())
			subjects, ref, where = b.Subjects, b.RoleRef, "everywhere"
		case "RoleBinding":
			b := find[rbacv1.RoleBinding](t, r, "RoleBinding", o.GetName())
			subjects, ref, where = b.Subjects, b.RoleRef, "in "+b.Namespace
		default:
			continue
		}
		rules, ok := roles[ref.Kind+"/"+ref.Name]
		if !ok {
			t.Errorf("%s %s binds %s %s, which the chart does not have", o.GetKind(), o.GetName(), ref.Kind, ref.Name)
		}
		for _, s := range subjects {
			if s.Kind != "ServiceAccount" || s.Namespace != namespace {
				t.Errorf("%s %s binds %s %s/%s: only Causeway's own accounts", o.GetKind(), o.GetName(), s.Kind, s.Namespace, s.Name)
			}
			lines = append(lines, rightLines(s.Name, where, rules)...)
		}
	}
	slices.Sort(lines)
	golden(t, "testdata/rbac.txt", strings.Join(lines, "\n")+"\n")
}

func rightLines(account, where string, rules []rbacv1.PolicyRule) []string {
	var lines []string
	for _, rule := range rules {
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				if group != "" {
					resource += "." + group
				}
				if len(rule.ResourceNames) > 0 {
					resource += "[" + strings.Join(rule.ResourceNames, ",") + "]"
				}
				lines = append(lines, fmt.Sprintf("%s %s: %s: %s", account, where, resource, strings.Join(rule.Verbs, " ")))
			}
		}
	}
	return lines
}

// What every container may do beyond nothing, and which tokens it holds.
func TestPrivileges(t *testing.T) {
	r := render(t, nil)
	agent := find[appsv1.DaemonSet](t, r, "DaemonSet", "causeway-agent")
	templates := map[string]corev1.PodTemplateSpec{
		"agent":      agent.Spec.Template,
		"gateway":    find[appsv1.Deployment](t, r, "Deployment", "causeway-gateway").Spec.Template,
		"controller": find[appsv1.Deployment](t, r, "Deployment", "causeway-controller").Spec.Template,
		"uninstall":  find[batchv1.Job](t, r, "Job", "causeway-uninstall").Spec.Template,
	}
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(templates)) {
		spec := templates[name].Spec
		for _, c := range spec.Containers {
			lines = append(lines, privilegeLine(name, spec, c))
		}
	}
	golden(t, "testdata/privileges.txt", strings.Join(lines, "\n")+"\n")
}

func privilegeLine(pod string, spec corev1.PodSpec, c corev1.Container) string {
	sc := c.SecurityContext
	line := fmt.Sprintf("%s/%s: account %s", pod, c.Name, spec.ServiceAccountName)
	warnings := map[string]bool{
		"PRIVILEGED":    sc.Privileged != nil,
		"MAY ESCALATE":  sc.AllowPrivilegeEscalation == nil || *sc.AllowPrivilegeEscalation,
		"WRITABLE ROOT": sc.ReadOnlyRootFilesystem == nil || !*sc.ReadOnlyRootFilesystem,
		"HOST PID":      spec.HostPID,
		"HOST IPC":      spec.HostIPC,
		"NO SECCOMP":    spec.SecurityContext.SeccompProfile == nil || spec.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault,
	}
	for _, w := range slices.Sorted(maps.Keys(warnings)) {
		if warnings[w] {
			line += ", " + w
		}
	}
	uid, gid := spec.SecurityContext.RunAsUser, spec.SecurityContext.RunAsGroup
	if sc.RunAsUser != nil {
		uid, gid = sc.RunAsUser, sc.RunAsGroup
	}
	line += fmt.Sprintf(", uid %d gid %d, drops %v adds %v, host network %v", *uid, *gid, sc.Capabilities.Drop, sc.Capabilities.Add, spec.HostNetwork)
	return line + ", reads " + strings.Join(mounts(spec, c), " ")
}

// mounts lists what a container can read of volumes that matter: tokens, ConfigMaps, Secrets, the host.
func mounts(spec corev1.PodSpec, c corev1.Container) []string {
	var out []string
	if spec.AutomountServiceAccountToken == nil || *spec.AutomountServiceAccountToken {
		out = append(out, "token[api]")
	}
	for _, m := range c.VolumeMounts {
		i := slices.IndexFunc(spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
		switch v := spec.Volumes[i]; {
		case v.Secret != nil:
			out = append(out, "SECRET["+v.Secret.SecretName+"]")
		case v.HostPath != nil:
			out = append(out, "host["+v.HostPath.Path+"]")
		case v.ConfigMap != nil:
			out = append(out, "configmap["+v.ConfigMap.Name+"]")
		case v.EmptyDir != nil:
			out = append(out, "emptydir["+m.MountPath+"]")
		case v.Projected != nil:
			for _, s := range v.Projected.Sources {
				if s.ServiceAccountToken != nil {
					out = append(out, "token["+orAPI(s.ServiceAccountToken.Audience)+"]")
				}
			}
		}
	}
	slices.Sort(out)
	return out
}

// orAPI names the audience that a token without one has.
func orAPI(audience string) string {
	if audience == "" {
		return "api"
	}
	return audience
}

// A declared port on the host network is a host port: the pod that an upgrade surges could not be scheduled beside the old one.
func TestAgentDeclaresNoPorts(t *testing.T) {
	agent := find[appsv1.DaemonSet](t, render(t, nil), "DaemonSet", "causeway-agent")
	for _, c := range agent.Spec.Template.Spec.Containers {
		if len(c.Ports) != 0 {
			t.Errorf("container %q declares ports %v", c.Name, c.Ports)
		}
		if c.ReadinessProbe == nil || c.ReadinessProbe.Exec == nil {
			t.Errorf("container %q: a probe over the host's network may be answered by another pod's process; use exec", c.Name)
		}
	}
	u := agent.Spec.UpdateStrategy.RollingUpdate
	if u == nil || u.MaxSurge.IntValue() != 1 || u.MaxUnavailable.IntValue() != 0 {
		t.Errorf("update strategy is %+v, want a surge of 1 and 0 unavailable: listeners are handed over between the two", u)
	}
}

// Peers reach one port; the catalog's port is reached by pod address from gateways alone.
func TestServices(t *testing.T) {
	var lines []string
	for _, o := range render(t, nil).Objects {
		if o.GetKind() != "Service" {
			continue
		}
		s := find[corev1.Service](t, render(t, nil), "Service", o.GetName())
		for _, p := range s.Spec.Ports {
			lines = append(lines, fmt.Sprintf("%s %s %d %s", s.Name, s.Spec.Type, p.Port, s.Spec.ExternalTrafficPolicy))
		}
	}
	want := []string{"causeway-canary  4200 ", "causeway-controller  4146 ", "causeway-gateway LoadBalancer 4143 Local"}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("ports of Services (-want +got):\n%s", diff)
	}
}

func TestValuesReachTheirPlace(t *testing.T) {
	r := render(t, map[string]any{
		"image":        map[string]any{"name": "example.com/cw", "tag": "v9", "pullPolicy": "Never"},
		"vipCIDRs":     []any{"240.1.0.0/16", "fd00:cafe::/112"},
		"podCIDRs":     []any{"10.1.0.0/16"},
		"serviceCIDRs": []any{"10.2.0.0/16"},
		"controller":   map[string]any{"replicas": 3},
		"gateway":      map[string]any{"replicas": 4, "serviceType": "NodePort", "serviceAnnotations": map[string]any{"lb": "internal"}, "drainSeconds": 90, "maxConnections": 2_000_000, "maxConnectionsPerLink": 1_500_000},
		"agent":        map[string]any{"drainSeconds": 120, "maxConnections": 1_000_000, "maxConnectionsPerLink": 800_000, "maxConnectionsPerPod": 500, "maxConnectionRatePerPod": 50},
		"accessLogs":   map[string]any{"enabled": true, "sample": 0.25},
		"tls":          map[string]any{"postQuantum": false},
		"logLevel":     "debug",
	})
	controller := find[appsv1.Deployment](t, r, "Deployment", "causeway-controller")
	gateway := find[appsv1.Deployment](t, r, "Deployment", "causeway-gateway")
	agent := find[appsv1.DaemonSet](t, r, "DaemonSet", "causeway-agent")
	service := find[corev1.Service](t, r, "Service", "causeway-gateway")
	wantArgs := map[string][]string{
		"controller": {"controller", "--cluster-name=west", "--vip-cidrs=240.1.0.0/16,fd00:cafe::/112", "--pod-cidrs=10.1.0.0/16", "--service-cidrs=10.2.0.0/16", "--post-quantum=false", "--log-level=debug"},
		"gateway":    {"gateway", "--controller=causeway-controller.causeway-system.svc:4146", "--drain=90s", "--max-connections=2000000", "--max-connections-per-link=1500000", "--log-level=debug"},
		"agent":      {"agent", "--controller=causeway-controller.causeway-system.svc:4146", "--drain=120s", "--max-connections=1000000", "--max-connections-per-link=800000", "--max-connections-per-pod=500", "--max-connection-rate-per-pod=50", "--post-quantum=false", "--access-log", "--access-log-sample=0.25", "--access-log-failures=true", "--access-log-query=false", "--log-level=debug"},
		"vip-guard":  {"vip-guard", "--vip-cidrs=240.1.0.0/16,fd00:cafe::/112", "--pod-cidrs=10.1.0.0/16", "--service-cidrs=10.2.0.0/16", "--log-level=debug"},
	}
	gotArgs := map[string][]string{}
	for _, c := range slices.Concat(controller.Spec.Template.Spec.Containers, gateway.Spec.Template.Spec.Containers, agent.Spec.Template.Spec.Containers) {
		gotArgs[c.Name] = c.Args
		if c.Image != "example.com/cw:v9" || c.ImagePullPolicy != corev1.PullNever {
			t.Errorf("container %q runs %s with pull policy %s", c.Name, c.Image, c.ImagePullPolicy)
		}
	}
	if diff := cmp.Diff(wantArgs, gotArgs); diff != "" {
		t.Errorf("arguments (-want +got):\n%s", diff)
	}
	for kind, pod := range map[string]corev1.PodSpec{"gateway": gateway.Spec.Template.Spec, "agent": agent.Spec.Template.Spec} {
		want := map[string]int64{"gateway": 100, "agent": 130}[kind]
		if got := *pod.TerminationGracePeriodSeconds; got != want {
			t.Errorf("the kubelet kills a %s after %d s, want %d: its drain must end by itself", kind, got, want)
		}
	}
	if *controller.Spec.Replicas != 3 || *gateway.Spec.Replicas != 4 {
		t.Errorf("replicas are %d and %d, want 3 and 4", *controller.Spec.Replicas, *gateway.Spec.Replicas)
	}
	if service.Spec.Type != corev1.ServiceTypeNodePort || service.Annotations["lb"] != "internal" {
		t.Errorf("the gateway's Service is a %s with annotations %v", service.Spec.Type, service.Annotations)
	}
}

// TestDefaultLimits: the chart also renders the limits in an upgrade that reuses older
// values, which do not have them.
func TestDefaultLimits(t *testing.T) {
	for name, tc := range map[string]struct {
		values           map[string]any
		gateways, agents string
	}{
		"default": {nil, "--max-connections=50000 --max-connections-per-link=0",
			"--max-connections=20000 --max-connections-per-link=0 --max-connections-per-pod=0 --max-connection-rate-per-pod=2000"},
		"older values": {map[string]any{
			"gateway": map[string]any{"maxConnections": nil, "maxConnectionsPerLink": nil},
			"agent":   map[string]any{"maxConnections": nil, "maxConnectionsPerLink": nil, "maxConnectionsPerPod": nil, "maxConnectionRatePerPod": nil},
		}, "--max-connections=0 --max-connections-per-link=0",
			"--max-connections=0 --max-connections-per-link=0 --max-connections-per-pod=0 --max-connection-rate-per-pod=0"},
	} {
		r := render(t, tc.values)
		limits := func(pod corev1.PodSpec) string {
			return strings.Join(slices.DeleteFunc(slices.Clone(pod.Containers[0].Args), func(arg string) bool { return !strings.HasPrefix(arg, "--max-") }), " ")
		}
		if got := limits(find[appsv1.Deployment](t, r, "Deployment", "causeway-gateway").Spec.Template.Spec); got != tc.gateways {
			t.Errorf("%s: gateways have %s, want %s", name, got, tc.gateways)
		}
		if got := limits(find[appsv1.DaemonSet](t, r, "DaemonSet", "causeway-agent").Spec.Template.Spec); got != tc.agents {
			t.Errorf("%s: agents have %s, want %s", name, got, tc.agents)
		}
	}
}

// TestTracing: agents get what traces need, and nothing of it without an endpoint.
func TestTracing(t *testing.T) {
	agentOf := func(tracing map[string]any) (corev1.Container, corev1.PodSpec) {
		pod := find[appsv1.DaemonSet](t, render(t, map[string]any{"tracing": tracing}), "DaemonSet", "causeway-agent").Spec.Template.Spec
		return pod.Containers[0], pod
	}
	about := func(c corev1.Container) (out []string) {
		for _, a := range c.Args {
			if strings.HasPrefix(a, "--tracing") {
				out = append(out, a)
			}
		}
		for _, e := range c.Env {
			if strings.HasPrefix(e.Name, "OTEL") {
				value := e.Value
				if e.ValueFrom != nil {
					value = e.ValueFrom.SecretKeyRef.Name + "/" + e.ValueFrom.SecretKeyRef.Key
				}
				out = append(out, e.Name+"="+value)
			}
		}
		return out
	}
	off, _ := agentOf(map[string]any{})
	if got := about(off); got != nil {
		t.Errorf("without an endpoint: %v", got)
	}
	on, _ := agentOf(map[string]any{"endpoint": "http://collector.obs:4317", "ratio": 0.25})
	want := []string{"--tracing-endpoint=http://collector.obs:4317", "--tracing-ratio=0.25",
		"OTEL_RESOURCE_ATTRIBUTES=k8s.cluster.name=west,k8s.node.name=$(NODE_NAME)"}
	if diff := cmp.Diff(want, about(on)); diff != "" {
		t.Errorf("with an endpoint (-want +got):\n%s", diff)
	}
	secret, pod := agentOf(map[string]any{"endpoint": "https://collector", "ratio": 1, "secret": "otlp"})
	want = []string{"--tracing-endpoint=https://collector", "--tracing-ratio=1", "--tracing-ca-file=/etc/causeway/tracing/ca.crt",
		want[2], "OTEL_EXPORTER_OTLP_HEADERS=otlp/headers"}
	if diff := cmp.Diff(want, about(secret)); diff != "" {
		t.Errorf("with a Secret (-want +got):\n%s", diff)
	}
	mounted := slices.ContainsFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Secret != nil && v.Secret.SecretName == "otlp" })
	if !mounted || pod.DNSPolicy != corev1.DNSClusterFirstWithHostNet {
		t.Errorf("the Secret is mounted: %v; an agent with DNS policy %s must find the collector's Service", mounted, pod.DNSPolicy)
	}
	for _, c := range pod.Containers[1:] {
		if slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == "tracing" }) {
			t.Errorf("%s reads the Secret", c.Name)
		}
	}
}

// TestValuesStayText tests that text which YAML would read as another type stays text.
func TestValuesStayText(t *testing.T) {
	r := render(t, map[string]any{"tracing": map[string]any{"endpoint": "http://collector:", "secret": "123"}})
	agent := find[appsv1.DaemonSet](t, r, "DaemonSet", "causeway-agent")
	if args := agent.Spec.Template.Spec.Containers[0].Args; !slices.Contains(args, "--tracing-endpoint=http://collector:") {
		t.Errorf("args %q", args)
	}
	if !slices.ContainsFunc(agent.Spec.Template.Spec.Volumes, func(v corev1.Volume) bool {
		return v.Secret != nil && v.Secret.SecretName == "123"
	}) {
		t.Errorf("volumes %v", agent.Spec.Template.Spec.Volumes)
	}
}

func TestRefusedValues(t *testing.T) {
	cases := map[string]struct {
		why    string
		values map[string]any
		names  string // what the error must name
	}{
		"no name": {
			why:    "the trust domain is made of it and cannot change later",
			values: map[string]any{}, names: "clusterName",
		},
		"bad name": {
			why:    "it becomes a part of a SPIFFE trust domain",
			values: map[string]any{"clusterName": "West!"}, names: "clusterName",
		},
		"unknown value": {
			why:    "a misspelt value must not silently mean the default",
			values: map[string]any{"clusterName": "west", "vipCidr": "240.0.0.0/8"}, names: "vipCidr",
		},
		"ClusterIP gateway": {
			why:    "peers could not reach it",
			values: map[string]any{"clusterName": "west", "gateway": map[string]any{"serviceType": "ClusterIP"}}, names: "serviceType",
		},
		"collector without a scheme": {
			why:    "whether to use TLS must be said",
			values: map[string]any{"clusterName": "west", "tracing": map[string]any{"endpoint": "collector:4317"}}, names: "endpoint",
		},
		"ratio": {
			why:    "it is not in percent",
			values: map[string]any{"clusterName": "west", "tracing": map[string]any{"ratio": 5}}, names: "ratio",
		},
		"sample in percent": {
			why:    "it would log everything",
			values: map[string]any{"clusterName": "west", "accessLogs": map[string]any{"sample": 10}}, names: "sample",
		},
		"no pod monitor": {
			why:    "a template would fail without it",
			values: map[string]any{"clusterName": "west", "monitoring": map[string]any{"podMonitor": nil}}, names: "missing property",
		},
		"no monitoring": {
			why:    "an upgrade with --reuse-values from an earlier version has no such value",
			values: map[string]any{"clusterName": "west", "monitoring": nil}, names: "missing property",
		},
		"no drain": {
			why:    "the agent would not start",
			values: map[string]any{"clusterName": "west", "agent": map[string]any{"drainSeconds": nil}}, names: "drainSeconds",
		},
		"limit of connections": {
			why:    "the gateway would not start",
			values: map[string]any{"clusterName": "west", "gateway": map[string]any{"maxConnections": -1}}, names: "maxConnections",
		},
		"fraction of a rate": {
			why:    "the agent would not start",
			values: map[string]any{"clusterName": "west", "agent": map[string]any{"maxConnectionRatePerPod": 0.5}}, names: "maxConnectionRatePerPod",
		},
		"no VIPs": {
			why:    "no mirror could be given an address",
			values: map[string]any{"clusterName": "west", "vipCIDRs": []any{}}, names: "vipCIDRs",
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := Render(namespace, tc.values)
			if err == nil || !strings.Contains(err.Error(), tc.names) {
				t.Errorf("%s: error %v, want one that names %s", tc.why, err, tc.names)
			}
		})
	}
}

// A kind without a place in the order would be applied first, before its ServiceAccount.
func TestEveryKindHasItsPlace(t *testing.T) {
	r := render(t, nil)
	for _, o := range slices.Concat(r.CRDs, r.Objects, r.Hooks) {
		if !slices.Contains(installOrder, o.GetKind()) {
			t.Errorf("%s %s is of a kind that installOrder lacks", o.GetKind(), o.GetName())
		}
		cluster := strings.HasPrefix(o.GetKind(), "Cluster") || slices.Contains([]string{"CustomResourceDefinition", "FlowSchema"}, o.GetKind())
		if !cluster && o.GetNamespace() != namespace {
			t.Errorf("%s %s is in namespace %q", o.GetKind(), o.GetName(), o.GetNamespace())
		}
	}
	if len(r.CRDs) != 7 {
		t.Errorf("the chart has %d CRDs, want 7", len(r.CRDs))
	}
}

// The page is kept by hand; every value with its default must be on it.
func TestReadmeNamesEveryValue(t *testing.T) {
	c, err := load()
	if err != nil {
		t.Fatal(err)
	}
	readme, err := files.ReadFile("causeway/README.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]bool{}
	for line := range strings.Lines(string(readme)) {
		if name, _, ok := strings.Cut(strings.TrimPrefix(line, "| `"), "`"); ok && strings.HasPrefix(line, "| `") {
			rows[name] = true
		}
	}
	values := map[string]bool{}
	for _, v := range leaves("", c.Values) {
		values[v] = true
	}
	if diff := cmp.Diff(values, rows); diff != "" {
		t.Errorf("values named in README.md's table (-values.yaml +README.md):\n%s", diff)
	}
}

// leaves returns the paths of values that are not maps. A container's resources count as one value.
func leaves(prefix string, v map[string]any) []string {
	var out []string
	for name, value := range v {
		if sub, ok := value.(map[string]any); ok && len(sub) > 0 && name != "resources" {
			out = append(out, leaves(prefix+name+".", sub)...)
			continue
		}
		out = append(out, prefix+name)
	}
	return out
}

// What Helm alone runs must not be among what install applies, and must all be of one hook: a right that stayed would be
// one that no list of an installation's rights shows.
func TestHooks(t *testing.T) {
	r := render(t, nil)
	if len(r.Hooks) == 0 {
		t.Fatal("the chart has no hooks")
	}
	for _, o := range r.Hooks {
		a := o.GetAnnotations()
		if a["helm.sh/hook"] != "pre-delete" || !strings.Contains(a["helm.sh/hook-delete-policy"], "hook-succeeded") {
			t.Errorf("%s %s is made at %q and deleted at %q", o.GetKind(), o.GetName(), a["helm.sh/hook"], a["helm.sh/hook-delete-policy"])
		}
	}
	for _, o := range r.Objects {
		if strings.Contains(o.GetName(), "uninstall") {
			t.Errorf("%s %s would stay for as long as Causeway does", o.GetKind(), o.GetName())
		}
	}
}

// TestMemoryLimits compares GOMEMLIMIT with the memory limit that Kubernetes reads.
func TestMemoryLimits(t *testing.T) {
	cases := map[string]struct {
		why    string
		limits map[string]any
		want   string // empty: not set
	}{
		"Mi":        {why: "the usual unit", limits: map[string]any{"memory": "100Mi"}, want: "94371840"},
		"fraction":  {why: "quantities may have one", limits: map[string]any{"memory": "1.5Gi"}, want: "1449551462"},
		"M":         {why: "decimal units differ from binary ones", limits: map[string]any{"memory": "500M"}, want: "450000000"},
		"k":         {why: "k is the only lower-case unit", limits: map[string]any{"memory": "200000k"}, want: "180000000"},
		"bytes":     {why: "a unit is not required", limits: map[string]any{"memory": "300000000"}, want: "270000000"},
		"no memory": {why: "without a limit the heap may grow", limits: map[string]any{"cpu": "1"}},
		"none":      {why: "a user may have no limits at all"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			component := func() map[string]any {
				return map[string]any{"resources": map[string]any{"limits": maps.Clone(c.limits)}}
			}
			controller, other := component(), component()
			if c.limits == nil {
				controller = map[string]any{"resources": map[string]any{"limits": nil}} // removes the default
				other = map[string]any{}
			} else if c.limits["memory"] == nil {
				controller["resources"].(map[string]any)["limits"].(map[string]any)["memory"] = nil
			}
			r := render(t, map[string]any{"controller": controller, "gateway": other, "agent": other})
			for _, spec := range []corev1.PodSpec{
				find[appsv1.Deployment](t, r, "Deployment", "causeway-controller").Spec.Template.Spec,
				find[appsv1.Deployment](t, r, "Deployment", "causeway-gateway").Spec.Template.Spec,
				find[appsv1.DaemonSet](t, r, "DaemonSet", "causeway-agent").Spec.Template.Spec,
			} {
				main := spec.Containers[0]
				got := ""
				for _, e := range main.Env {
					if e.Name == "GOMEMLIMIT" {
						got = e.Value
					}
				}
				if got != c.want {
					t.Errorf("container %s: GOMEMLIMIT is %q, want %q: %s", main.Name, got, c.want, c.why)
				}
				limit := main.Resources.Limits.Memory().Value()
				if n, _ := strconv.ParseInt(got, 10, 64); n != int64(float64(limit)*0.9) {
					t.Errorf("container %s: GOMEMLIMIT is %d, want 90 %% of %d", main.Name, n, limit)
				}
				if main.Resources.Requests.Memory().String() != "64Mi" {
					t.Errorf("container %s requests %v of memory, want the default", main.Name, main.Resources.Requests.Memory())
				}
			}
		})
	}
	controller := find[appsv1.Deployment](t, render(t, nil), "Deployment", "causeway-controller")
	if got := controller.Spec.Template.Spec.Containers[0].Resources.Limits.Memory().String(); got != "512Mi" {
		t.Errorf("the controller's default memory limit is %s, want 512Mi", got)
	}
}

// TestFlowSchemas asks which priority level the API server would use for requests of the controller.
func TestFlowSchemas(t *testing.T) {
	r := render(t, nil)
	var schemas []flowcontrolv1.FlowSchema
	for _, o := range r.Objects {
		if o.GetKind() == "FlowSchema" {
			schemas = append(schemas, find[flowcontrolv1.FlowSchema](t, r, "FlowSchema", o.GetName()))
		}
	}
	slices.SortFunc(schemas, func(a, b flowcontrolv1.FlowSchema) int {
		return int(a.Spec.MatchingPrecedence - b.Spec.MatchingPrecedence)
	})
	for _, s := range schemas {
		const ofAnyAccount = 9000 // the API server's own schema service-accounts
		if s.Spec.MatchingPrecedence >= ofAnyAccount {
			t.Errorf("FlowSchema %s has precedence %d: the API server's own schema goes first", s.Name, s.Spec.MatchingPrecedence)
		}
	}
	cases := map[string]struct {
		why                              string
		verb, group, resource, namespace string
		want                             string // a priority level; empty: none of the chart's schemas
	}{
		"renewal": {
			why:  "a leader that cannot renew stops",
			verb: "update", group: "coordination.k8s.io", resource: "leases", namespace: namespace,
			want: "leader-election",
		},
		"another namespace's lease": {
			why:  "the level is for the election, not for any lease",
			verb: "update", group: "coordination.k8s.io", resource: "leases", namespace: "shop",
		},
		"mirror": {
			why:  "thousands are written after a new Link",
			verb: "create", resource: "services", namespace: "shop",
			want: "workload-low",
		},
		"mirror's slice": {
			why:  "each mirror has at least one",
			verb: "patch", group: "discovery.k8s.io", resource: "endpointslices", namespace: "shop",
			want: "workload-low",
		},
		"ledger": {
			why:  "it is written with the mirrors",
			verb: "update", group: "causeway.dev", resource: "ledgers", namespace: namespace,
			want: "workload-low",
		},
		"status": {
			why:  "Links are cluster-scoped",
			verb: "update", group: "causeway.dev", resource: "links/status",
			want: "workload-low",
		},
		"route's status": {
			why:  "the controller writes up to twenty of them per second",
			verb: "patch", group: "gateway.networking.k8s.io", resource: "httproutes/status", namespace: "shop",
			want: "workload-low",
		},
		"condition of an export": {
			why:  "a new Link changes the condition of each export",
			verb: "patch", group: "multicluster.x-k8s.io", resource: "serviceexports/status", namespace: "shop",
			want: "workload-low",
		},
		"watch":  {why: "reads do not wait behind writes", verb: "watch", resource: "services"},
		"review": {why: "an agent waits for it", verb: "create", group: "authentication.k8s.io", resource: "tokenreviews"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got := ""
			for _, s := range slices.Backward(schemas) {
				if flowMatches(s, c.verb, c.group, c.resource, c.namespace) {
					got = s.Spec.PriorityLevelConfiguration.Name
				}
			}
			if got != c.want {
				t.Errorf("priority level %q, want %q: %s", got, c.want, c.why)
			}
		})
	}
}

// flowMatches reports whether s matches a request of the controller. An empty namespace means a cluster-scoped object.
func flowMatches(s flowcontrolv1.FlowSchema, verb, group, resource, ns string) bool {
	has := func(list []string, want string) bool {
		return slices.Contains(list, "*") || slices.Contains(list, want)
	}
	return slices.ContainsFunc(s.Spec.Rules, func(r flowcontrolv1.PolicyRulesWithSubjects) bool {
		ours := slices.ContainsFunc(r.Subjects, func(s flowcontrolv1.Subject) bool {
			a := s.ServiceAccount
			return a != nil && a.Name == clusterinfo.ControllerName && a.Namespace == namespace
		})
		return ours && slices.ContainsFunc(r.ResourceRules, func(r flowcontrolv1.ResourcePolicyRule) bool {
			scope := r.ClusterScope
			if ns != "" {
				scope = has(r.Namespaces, ns)
			}
			return has(r.Verbs, verb) && has(r.APIGroups, group) && has(r.Resources, resource) && scope
		})
	})
}

// TestDisruptionBudgets holds that a drain can always go on, and takes one replica at a time.
func TestDisruptionBudgets(t *testing.T) {
	r := render(t, nil)
	for _, name := range []string{clusterinfo.ControllerName, clusterinfo.GatewayName} {
		b := find[policyv1.PodDisruptionBudget](t, r, "PodDisruptionBudget", name)
		d := find[appsv1.Deployment](t, r, "Deployment", name)
		if diff := cmp.Diff(d.Spec.Selector, b.Spec.Selector); diff != "" {
			t.Errorf("%s: the budget selects other pods (-Deployment +budget):\n%s", name, diff)
		}
		if b.Spec.MinAvailable != nil || b.Spec.MaxUnavailable.IntValue() != 1 {
			t.Errorf("%s: a drain could wait for ever when there is one replica: %+v", name, b.Spec)
		}
	}
}

// TestNamesAreClusterinfos compares the chart with what the processes expect of it.
func TestNamesAreClusterinfos(t *testing.T) {
	r := render(t, nil)
	workloads := map[string]corev1.PodTemplateSpec{
		clusterinfo.ComponentController: find[appsv1.Deployment](t, r, "Deployment", clusterinfo.ControllerName).Spec.Template,
		clusterinfo.ComponentGateway:    find[appsv1.Deployment](t, r, "Deployment", clusterinfo.GatewayName).Spec.Template,
		clusterinfo.ComponentAgent:      find[appsv1.DaemonSet](t, r, "DaemonSet", clusterinfo.AgentName).Spec.Template,
	}
	ports := map[string]map[string]int32{
		clusterinfo.ComponentController: {
			"catalog":    clusterinfo.CatalogPort,
			"nodestream": clusterinfo.NodeStreamPort,
			"metrics":    clusterinfo.MetricsPort,
			"health":     clusterinfo.ProbesPort,
		},
		clusterinfo.ComponentGateway: {
			"gateway": clusterinfo.GatewayPort,
			"metrics": clusterinfo.MetricsPort,
			"health":  clusterinfo.ProbesPort,
		},
		clusterinfo.ComponentAgent: {},
	}
	for component, template := range workloads {
		labels := clusterinfo.Labels(component)
		if component == clusterinfo.ComponentAgent {
			labels[clusterinfo.HopZonesLabel] = "true"
		}
		if diff := cmp.Diff(labels, template.Labels); diff != "" {
			t.Errorf("labels of %s (-clusterinfo +chart):\n%s", component, diff)
		}
		got := map[string]int32{}
		for _, p := range template.Spec.Containers[0].Ports {
			got[p.Name] = p.ContainerPort
		}
		if diff := cmp.Diff(ports[component], got); diff != "" {
			t.Errorf("ports of %s (-clusterinfo +chart):\n%s", component, diff)
		}
		for _, v := range template.Spec.Volumes {
			if v.ConfigMap != nil && v.ConfigMap.Name != clusterinfo.IdentityConfigMap {
				t.Errorf("%s mounts ConfigMap %s, want %s", component, v.ConfigMap.Name, clusterinfo.IdentityConfigMap)
			}
		}
	}
}

// TestMonitoringIsOptIn tests that by default nothing needs the Prometheus Operator, and no
// agent serves metrics beyond its node's loopback.
func TestMonitoringIsOptIn(t *testing.T) {
	kinds := func(r Rendered) map[string]int {
		out := map[string]int{}
		for _, o := range r.Objects {
			if k := o.GetKind(); k == "PodMonitor" || k == "PrometheusRule" || k == "ConfigMap" {
				out[k]++
			}
		}
		return out
	}
	exposed := func(r Rendered) bool {
		agent := find[appsv1.DaemonSet](t, r, "DaemonSet", "causeway-agent")
		return slices.Contains(agent.Spec.Template.Spec.Containers[0].Args, "--metrics-ip=$(NODE_IP)")
	}
	on := func(key string) map[string]any {
		labels := map[string]any{"release": "prometheus", "app.kubernetes.io/part-of": "mine"}
		return map[string]any{"monitoring": map[string]any{key: map[string]any{"enabled": true, "labels": labels}}}
	}
	cases := map[string]struct {
		values  map[string]any
		kinds   map[string]int
		exposed bool
	}{
		"default": {nil, map[string]int{}, false},
		"agents exposed": {
			map[string]any{"monitoring": map[string]any{"exposeAgents": true}}, map[string]int{}, true,
		},
		"monitors":   {on("podMonitor"), map[string]int{"PodMonitor": 3}, true},
		"rules":      {on("rules"), map[string]int{"PrometheusRule": 1}, false},
		"dashboards": {on("dashboards"), map[string]int{"ConfigMap": 4}, false},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			r := render(t, tc.values)
			if diff := cmp.Diff(tc.kinds, kinds(r)); diff != "" {
				t.Errorf("objects (-want +got):\n%s", diff)
			}
			if exposed(r) != tc.exposed {
				t.Errorf("agents serve metrics on the node's address: %v, want %v", !tc.exposed, tc.exposed)
			}
			for _, o := range r.Objects {
				if !slices.Contains(installOrder, o.GetKind()) {
					t.Errorf("%s is of a kind that installOrder lacks", o.GetKind())
				}
				if tc.kinds[o.GetKind()] == 0 {
					continue
				}
				if l := o.GetLabels(); l["release"] != "prometheus" || l["app.kubernetes.io/part-of"] != "causeway" {
					t.Errorf("%s %s has the labels %v: uninstall finds it by Causeway's own", o.GetKind(), o.GetName(), l)
				}
			}
		})
	}
}

// TestMonitoringFiles tests that the objects have the chart's files as they stand.
func TestMonitoringFiles(t *testing.T) {
	r := render(t, map[string]any{"monitoring": map[string]any{
		"podMonitor": map[string]any{"enabled": true, "interval": "15s"},
		"rules":      map[string]any{"enabled": true},
		"dashboards": map[string]any{"enabled": true},
	}})
	alerts, err := files.ReadFile("causeway/files/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var want map[string]any
	if err := yaml.Unmarshal(alerts, &want); err != nil {
		t.Fatal(err)
	}
	raw := func(kind, name string) map[string]any {
		for _, o := range r.Objects {
			if o.GetKind() == kind && o.GetName() == name {
				return o.Object
			}
		}
		t.Fatalf("the chart has no %s %s", kind, name)
		return nil
	}
	if diff := cmp.Diff(any(want), raw("PrometheusRule", "causeway")["spec"]); diff != "" {
		t.Errorf("the PrometheusRule (-file +object):\n%s", diff)
	}
	for _, name := range []string{"links", "services", "nodes", "control-plane"} {
		board := find[corev1.ConfigMap](t, r, "ConfigMap", "causeway-dashboard-"+name)
		file, err := files.ReadFile("causeway/files/dashboards/" + name + ".json")
		if err != nil {
			t.Fatal(err)
		}
		if got := board.Data["causeway-"+name+".json"]; strings.TrimSpace(got) != strings.TrimSpace(string(file)) {
			t.Errorf("the ConfigMap of dashboard %s has another text than its file", name)
		}
		if board.Labels["grafana_dashboard"] != "1" {
			t.Errorf("dashboard %s has the labels %v", name, board.Labels)
		}
	}
	for _, component := range []string{"agent", "controller", "gateway"} {
		m := raw("PodMonitor", "causeway-"+component)
		endpoints, _, err := unstructured.NestedSlice(m, "spec", "podMetricsEndpoints")
		if err != nil || len(endpoints) != 1 {
			t.Fatalf("PodMonitor of %s: %v, %v", component, endpoints, err)
		}
		e := endpoints[0].(map[string]any)
		wantPort := any("metrics")
		if component == "agent" {
			wantPort = nil
		}
		if e["interval"] != "15s" || e["honorLabels"] != true || e["port"] != wantPort {
			t.Errorf("the endpoint of %s is %v", component, e)
		}
	}
}
