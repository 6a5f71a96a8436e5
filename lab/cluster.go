package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Cluster is one cluster of a lab. Its methods ask the machine each time: a Cluster holds nothing that grows stale.
type Cluster struct {
	lab  *Lab
	plan ClusterPlan
}

// Name returns the cluster's name, which is also its kubeconfig context's.
func (c *Cluster) Name() string { return c.plan.Name }

// Nodes returns the names of the cluster's nodes.
func (c *Cluster) Nodes() []string {
	var out []string
	for i := 1; i <= c.plan.Nodes; i++ {
		out = append(out, nodeName(c.plan.Name, i))
	}
	return out
}

// PublicBlock returns the range, in the WAN, of the cluster's LoadBalancer addresses.
func (c *Cluster) PublicBlock() string { return planWAN(c.plan.Index).Block.String() }

// PublicAddress returns the address from which the WAN sees the cluster's own connections come.
func (c *Cluster) PublicAddress() string { return planWAN(c.plan.Index).Masq.String() }

// WANAddress is the WAN's own address on its link with the cluster. What listens there, in the WAN's network namespace, is
// reached from the cluster on every port.
func (c *Cluster) WANAddress() string { return planWAN(c.plan.Index).WANEnd.Addr().String() }

// Kubeconfig returns the path of an administrator's kubeconfig that works from the machine itself.
func (c *Cluster) Kubeconfig() string { return c.path("kubeconfig") }

// RESTConfig returns an administrator's way to the API server from the machine itself, without client-side throttling.
func (c *Cluster) RESTConfig() (*rest.Config, error) {
	return restConfig(c.Kubeconfig())
}

func restConfig(path string) (*rest.Config, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig %q: %w", path, err)
	}
	cfg.QPS = -1
	return cfg, nil
}

// Client returns a typed client with the administrator's rights.
func (c *Cluster) Client() (*kubernetes.Clientset, error) {
	cfg, err := c.RESTConfig()
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(cfg)
}

// Kubectl returns a kubectl command for this cluster, ready to be run from the machine itself.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) *exec.Cmd {
	cmd := c.lab.command(ctx, place{}, append([]string{c.lab.bin("kube"), "kubectl"}, args...))
	cmd.Env = append(cmd.Env, "KUBECONFIG="+c.Kubeconfig())
	return cmd
}

// AuditLog returns the path of the API server's audit log: one JSON event a line, every write and no read.
func (c *Cluster) AuditLog() string { return c.path("audit.log") }

// LogFile returns the path of a process's log: etcd, kube-apiserver, kube-controller-manager, kube-scheduler or cloud; for a
// node's, kubelet, kube-proxy or containerd behind the node's name, as in "west-1/kubelet".
func (c *Cluster) LogFile(process string) string { return c.path("log", process+".log") }

// Egress counts what nodes sent out of the cluster to 240.0.0.0/4, where virtual addresses live that must never leave a node.
func (c *Cluster) Egress(ctx context.Context) (vips Counter, err error) {
	all, err := c.lab.counters(ctx, c.lab.names.routerNS(c.plan.Name))
	return all["vips"], err
}

func (c *Cluster) path(parts ...string) string {
	return filepath.Join(append([]string{c.lab.names.cluster(c.plan.Name)}, parts...)...)
}

func (c *Cluster) pki() pki { return pki{dir: c.path("pki")} }

func (c *Cluster) loopbackServer() string { return fmt.Sprintf("https://127.0.0.1:%d", c.plan.APIPort) }

func (c *Cluster) insideServer() string { return fmt.Sprintf("https://%s:%d", controlIP, apiPort) }

func (c *Cluster) say(format string, args ...any) {
	c.lab.progress(c.plan.Name + ": " + fmt.Sprintf(format, args...))
}

// up makes what is missing of the cluster. Nodes begin while the API server does: both need seconds.
func (c *Cluster) up(ctx context.Context, tools Toolbox) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if err := c.writeConfigs(); err != nil {
		return err
	}
	if err := c.ensureNetwork(ctx); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.startControlPlane(gctx) })
	for i := 1; i <= c.plan.Nodes; i++ {
		g.Go(func() error { return c.node(i).startRuntime(gctx, tools) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := c.ensureDNS(ctx); err != nil {
		return err
	}
	for i := 1; i <= c.plan.Nodes; i++ {
		if err := c.node(i).startKubernetes(ctx); err != nil {
			return err
		}
	}
	for i := 1; i <= c.plan.Nodes; i++ {
		if err := c.node(i).awaitFresh(ctx); err != nil {
			return err
		}
	}
	if err := c.awaitDNS(ctx); err != nil {
		return err
	}
	c.say("up")
	return nil
}

// writeConfigs writes certificates, kubeconfigs and what else the processes read.
func (c *Cluster) writeConfigs() error {
	if err := os.MkdirAll(c.path("log"), 0o755); err != nil {
		return fmt.Errorf("make the folder of cluster %q: %w", c.plan.Name, err)
	}
	if err := c.pki().ensure(c.plan.Name, c.plan.Nodes); err != nil {
		return err
	}
	files := map[string]string{"audit-policy.yaml": auditPolicy, "resolv.conf": nodeResolv}
	for name, text := range files {
		if err := writeFile(c.path(name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if err := c.writeAccess("admin", "kubeconfig", c.loopbackServer()); err != nil {
		return err
	}
	if err := c.writeAccess("cloud", "cloud.kubeconfig", c.loopbackServer()); err != nil {
		return err
	}
	for _, who := range append(c.Nodes(), "controller-manager", "scheduler", "proxy") {
		if err := c.writeAccess(who, who+".kubeconfig", c.insideServer()); err != nil {
			return err
		}
	}
	for i := 1; i <= c.plan.Nodes; i++ {
		if err := c.node(i).writeConfigs(); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) access(who, server string) (access, error) {
	p := c.pki()
	a := access{name: c.plan.Name, server: server}
	for path, to := range map[string]*[]byte{p.cert("ca"): &a.ca, p.cert(who): &a.clientCert, p.key(who): &a.clientKey} {
		raw, err := os.ReadFile(path)
		if err != nil {
			return access{}, fmt.Errorf("read the certificates of %s: %w", who, err)
		}
		*to = raw
	}
	return a, nil
}

func (c *Cluster) writeAccess(who, file, server string) error {
	a, err := c.access(who, server)
	if err != nil {
		return err
	}
	raw, err := kubeconfig(a)
	if err != nil {
		return fmt.Errorf("encode the kubeconfig of %s: %w", who, err)
	}
	return writeFile(c.path(file), raw, 0o600)
}

// startControlPlane returns when the API server is ready and its helpers have been started.
func (c *Cluster) startControlPlane(ctx context.Context) error {
	for _, d := range []daemon{c.etcd(), c.apiServer(), c.cloud()} {
		if err := c.lab.start(ctx, d); err != nil {
			return err
		}
	}
	if err := c.awaitAPI(ctx); err != nil {
		return err
	}
	c.say("API server ready on 127.0.0.1:%d", c.plan.APIPort)
	for _, d := range []daemon{c.controllerManager(), c.scheduler()} {
		if err := c.lab.start(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

// awaitAPI waits until the API server says ready through the loopback port.
func (c *Cluster) awaitAPI(ctx context.Context) error {
	cfg, err := c.RESTConfig()
	if err != nil {
		return err
	}
	cfg.Timeout = 2 * time.Second
	// A connection that a starting server dropped must not be used again.
	cfg.Dial = (&net.Dialer{Timeout: time.Second}).DialContext
	client, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return fmt.Errorf("make a client of the API server: %w", err)
	}
	return c.await(ctx, "the API server to be ready", []daemon{c.etcd(), c.apiServer(), c.cloud()}, func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, cfg.Host+"/readyz", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("it answered %s", resp.Status)
		}
		return nil
	})
}

// errNotYet is a condition's answer when nothing is wrong but time is needed.
var errNotYet = errors.New("not yet")

// await asks until the condition holds. It gives up at once if one of the processes it depends on has ended, and says what that one last wrote;
// so it does at ctx's end, when they run and do not do what is awaited.
func (c *Cluster) await(ctx context.Context, what string, on []daemon, condition func() error) error {
	for {
		err := condition()
		if err == nil {
			return nil
		}
		for _, d := range on {
			if !c.lab.cgroups.populated(d.cgroup) {
				return fmt.Errorf("wait for %s: %s ended; its log %s says:\n%s%s", what, d.name(), d.log, tail(d.log, 8), shortageHere())
			}
		}
		if perr := pause(ctx, 100*time.Millisecond); perr != nil {
			return fmt.Errorf("wait for %s: %w (last: %w)%s", what, perr, err, told(on))
		}
	}
}

// told is what processes that run, and yet do not do what they should, complain of.
func told(on []daemon) string {
	var out strings.Builder
	for _, d := range on {
		fmt.Fprintf(&out, "; %s runs, and its log %s says:\n%s", d.name(), d.log, complaints(d.log, 8))
	}
	if len(on) > 0 {
		out.WriteString(shortageHere())
	}
	return out.String()
}
