//go:build e2e

package selftest

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-mesh/causeway/lab"
)

// TestClusters makes two clusters and holds the lab's promises against them, one after the other: they share the clusters.
func TestClusters(t *testing.T) {
	ctx := deadline(t, 8*time.Minute)
	o := lab.Options{Name: "selfpair", Clusters: []string{"west", "east"}, Progress: func(s string) { t.Log(s) }}
	t.Cleanup(func() {
		if err := lab.Down(context.Background(), o); err != nil {
			t.Errorf("take the lab down: %v", err)
		}
	})
	start := time.Now()
	l, err := lab.Up(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("two clusters after %.1f s", time.Since(start).Seconds())
	west, east := l.Cluster("west"), l.Cluster("east")
	address := shop(ctx, t, east)
	shop(ctx, t, west)
	serve(t, east)

	t.Run("one port of a peer can be reached", func(t *testing.T) {
		said := eventually(ctx, t, func() (string, error) { return inClient(ctx, west, "curl", "-sS", "-m5", "http://"+address+":4143/") })
		if !strings.HasPrefix(said, "caller ") {
			t.Errorf("the far pod said %q", said)
		}
	})
	t.Run("no other can", func(t *testing.T) { refusedByFirewall(ctx, t, l, west, address) })
	t.Run("the WAN takes its time", func(t *testing.T) { slowWAN(ctx, t, o, west, address) })
	t.Run("clusters are parted and addresses lost", func(t *testing.T) { partedClusters(ctx, t, l, west, address) })
	t.Run("names resolve in a pod", func(t *testing.T) {
		said, err := inClient(ctx, west, "getent", "hosts", "web.shop")
		if err != nil || !strings.HasPrefix(said, "10.96.") {
			t.Errorf("web.shop is %q, %v", said, err)
		}
	})
	t.Run("logs and exec go through the kubelet", func(t *testing.T) {
		if said, err := west.Kubectl(ctx, "-n", "kube-system", "logs", "deploy/coredns").CombinedOutput(); err != nil || !strings.Contains(string(said), "CoreDNS") {
			t.Errorf("logs say %q, %v", said, err)
		}
		if said, err := west.Kubectl(ctx, "-n", "kube-system", "exec", "deploy/coredns", "--", "/coredns", "-version").CombinedOutput(); err != nil || !strings.Contains(string(said), "CoreDNS") {
			t.Errorf("exec says %q, %v", said, err)
		}
	})
	t.Run("nodes keep their folders to themselves", func(t *testing.T) { ownFolders(ctx, t, west, east) })
	t.Run("the audit log has lease renewals and no reads", func(t *testing.T) { audit(ctx, t, west) })
	t.Run("a killed container comes back", func(t *testing.T) { killContainer(ctx, t, west) })
	t.Run("up on a running lab changes nothing", func(t *testing.T) { upAgain(ctx, t, o, l) })
	t.Run("a node without power says nothing", func(t *testing.T) { powerCut(ctx, t, west, east, address) })
}

// shop makes namespace shop with pod client behind LoadBalancer Service web, and returns the Service's address when the pod runs.
func shop(ctx context.Context, t *testing.T, c *lab.Cluster) string {
	t.Helper()
	client, err := c.Client()
	if err != nil {
		t.Fatal(err)
	}
	create := metav1.CreateOptions{}
	if _, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}, create); err != nil {
		t.Fatal(err)
	}
	labels := map[string]string{"app": "client"}
	eventually(ctx, t, func() (struct{}, error) { // the namespace's account may be a moment behind
		_, err := client.CoreV1().Pods("shop").Create(ctx, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "client", Labels: labels},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "lab.local/pause:1", ImagePullPolicy: corev1.PullNever}}},
		}, create)
		return struct{}{}, err
	})
	if _, err := client.CoreV1().Services("shop").Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Selector: labels,
			Ports: []corev1.ServicePort{{Name: "gateway", Port: 4143}, {Name: "other", Port: 4144}}},
	}, create); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	eventually(ctx, t, func() (lab.Container, error) { return c.FindContainer(ctx, "shop", "client", "c") })
	t.Logf("%s: the pod ran after %.1f s", c.Name(), time.Since(start).Seconds())
	return eventually(ctx, t, func() (string, error) {
		s, err := client.CoreV1().Services("shop").Get(ctx, "web", metav1.GetOptions{})
		if err != nil || len(s.Status.LoadBalancer.Ingress) == 0 {
			return "", errNotYet
		}
		return s.Status.LoadBalancer.Ingress[0].IP, nil
	})
}

// serve runs this test binary as a server on both ports in the cluster's client pod.
func serve(t *testing.T, c *lab.Cluster) {
	t.Helper()
	for _, addr := range []string{":4143", ":4144"} {
		cmd, err := c.Exec(t.Context(), lab.InPod("shop", "client"), "/proc/self/exe")
		if err != nil {
			t.Fatal(err)
		}
		cmd.Args[len(cmd.Args)-1] = self(t)
		cmd.Env = append(cmd.Env, serveEnv+"="+addr)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	}
}

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func inClient(ctx context.Context, c *lab.Cluster, argv ...string) (string, error) {
	cmd, err := c.Exec(ctx, lab.InPod("shop", "client"), argv...)
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	cmd.Stdout = &out
	err = cmd.Run()
	return out.String(), err
}

// refusedByFirewall asserts that it is the firewall that refuses, by its counters: a port on which nobody listens would refuse as well.
func refusedByFirewall(ctx context.Context, t *testing.T, l *lab.Lab, west *lab.Cluster, address string) {
	if said, err := l.WAN().Command(ctx, "curl", "-sS", "-m5", "http://"+address+":4144/").Output(); err != nil {
		t.Fatalf("the far pod serves 4144, else this test shows nothing: %q, %v", said, err)
	}
	for _, target := range []string{address + ":4144", address + ":10250", "198.18.2.1:4144", "198.19.2.2:4143", "198.19.2.2:6443"} {
		before, err := l.Firewall(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if said, err := inClient(ctx, west, "curl", "-sS", "-m2", "http://"+target+"/"); err == nil {
			t.Errorf("%s answered %q", target, said)
		}
		after, err := l.Firewall(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if after.Refused.Packets == before.Refused.Packets || after.Admitted != before.Admitted {
			t.Errorf("%s: the firewall counted %+v, then %+v; it should have refused one more and admitted none", target, before, after)
		}
	}
}

func ownFolders(ctx context.Context, t *testing.T, west, east *lab.Cluster) {
	run := func(c *lab.Cluster, argv ...string) string {
		cmd, err := c.Exec(ctx, lab.OnNode(""), argv...)
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.Output()
		if err != nil {
			t.Errorf("run %v on a node of %s: %v", argv, c.Name(), err)
		}
		return strings.TrimSpace(string(out))
	}
	run(west, "touch", "/run/causeway/mine")
	if got := run(east, "ls", "/run/causeway"); got != "" {
		t.Errorf("east's node sees west's files: %q", got)
	}
	if _, err := os.Stat("/run/causeway"); err == nil {
		t.Error("the machine itself has a /run/causeway")
	}
	if got := run(west, "stat", "-fc", "%T", "/run/causeway"); got != "tmpfs" {
		t.Errorf("/run/causeway is on %s, want tmpfs", got)
	}
	if got := run(west, "hostname"); got != "west-1" {
		t.Errorf("the node's host name is %q", got)
	}
}

func audit(ctx context.Context, t *testing.T, c *lab.Cluster) {
	eventually(ctx, t, func() (struct{}, error) {
		raw, err := os.ReadFile(c.AuditLog())
		if err == nil && !strings.Contains(string(raw), `/leases/west-1?`) {
			err = errNotYet
		}
		for _, verb := range []string{"get", "list", "watch"} {
			if strings.Contains(string(raw), `"verb":"`+verb+`"`) {
				t.Errorf("the audit log has a %s", verb)
			}
		}
		return struct{}{}, err
	})
}

func killContainer(ctx context.Context, t *testing.T, c *lab.Cluster) {
	before, err := c.FindContainer(ctx, "shop", "client", "c")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.KillContainer(ctx, "shop", "client", "c", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(ctx, t, func() (struct{}, error) {
		now, err := c.FindContainer(ctx, "shop", "client", "c")
		if err == nil && now.PID == before.PID {
			err = errNotYet
		}
		return struct{}{}, err
	})
}

func upAgain(ctx context.Context, t *testing.T, o lab.Options, l *lab.Lab) {
	before := pids(l)
	start := time.Now()
	if _, err := lab.Up(ctx, o); err != nil {
		t.Fatal(err)
	}
	t.Logf("again after %.1f s", time.Since(start).Seconds())
	after := pids(l)
	for name, pid := range before {
		if after[name] != pid {
			t.Errorf("%s was started anew", name)
		}
	}
}

// pids maps each process that is not a pod's to its pid.
func pids(l *lab.Lab) map[string]int {
	out := map[string]int{}
	for _, p := range l.Processes() {
		if p.Running && !strings.HasSuffix(p.Name, "/pods") && !strings.HasSuffix(p.Name, "/containerd") {
			out[p.Name] = p.PIDs[0]
		}
	}
	return out
}

// powerCut holds a connection open over the cut: if anything told its near end, curl would end before its time.
func powerCut(ctx context.Context, t *testing.T, west, east *lab.Cluster, address string) {
	cmd, err := west.Exec(ctx, lab.InPod("shop", "client"), "curl", "-sS", "-m8", "telnet://"+address+":4143")
	if err != nil {
		t.Fatal(err)
	}
	stdin, err := cmd.StdinPipe() // held open, so that curl does not end by itself
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second) // for the connection to stand; its server would wait 5 s
	start := time.Now()
	if err := east.KillNode(ctx, ""); err != nil {
		t.Fatal(err)
	}
	t.Logf("power off after %.1f s", time.Since(start).Seconds())
	var exit *exec.ExitError
	if err := cmd.Wait(); !asExit(err, &exit) || exit.ExitCode() != 28 {
		t.Errorf("the caller ended with %v, want curl's 28: its time ran out in silence", err)
	}
	if err := east.StartNode(ctx, ""); err != nil {
		t.Fatal(err)
	}
	eventually(ctx, t, func() (lab.Container, error) { return east.FindContainer(ctx, "shop", "client", "c") })
}
