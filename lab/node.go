package lab

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// node is one node of a cluster; index counts from 1.
type node struct {
	cluster *Cluster
	index   int
}

func (c *Cluster) node(i int) *node { return &node{cluster: c, index: i} }

// nodeByName finds a node; the empty name means the first.
func (c *Cluster) nodeByName(name string) (*node, error) {
	for i := 1; i <= c.plan.Nodes; i++ {
		if name == "" || name == nodeName(c.plan.Name, i) {
			return c.node(i), nil
		}
	}
	return nil, fmt.Errorf("cluster %q has no node %q, only %s", c.plan.Name, name, strings.Join(c.Nodes(), ", "))
}

func (n *node) name() string { return nodeName(n.cluster.plan.Name, n.index) }
func (n *node) path(parts ...string) string {
	return n.cluster.path(append([]string{n.name()}, parts...)...)
}
func (n *node) netns() string { return n.cluster.lab.names.nodeNS(n.cluster.plan.Name, n.index) }
func (n *node) cgroup(parts ...string) string {
	return n.cluster.lab.names.cgroup(append([]string{n.cluster.plan.Name, n.name()}, parts...)...)
}

// holdNode makes a node's mount namespace and keeps it. The whole of /run, /var/lib and /var/log is the node's own, so that
// nothing written or mounted there reaches the machine; the lab's state stays visible at its own path. Kernel settings that a
// kubelet insists on are shown to it as files: they belong to the whole machine and are not ours to change. The boot id is new each time, like
// /run, because a node that was switched off has forgotten both. (mount -n, because without it mount makes /run/mount on the machine.)
const holdNode = `
set -e
state=$1 lib=$2 log=$3 fake=$4 name=$5
hostname "$name"
mount -n --make-rshared /
mount -n -t tmpfs -o mode=755 lab /run
mkdir -p /run/lock /run/causeway /run/netns /run/lab/state
mount -n --bind "$state" /run/lab/state
mount -n --bind "$log" /var/log
mount -n --bind "$lib" /var/lib
mkdir -p "$state"
mount -n --bind /run/lab/state "$state"
for f in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes kernel/random/boot_id; do
	if [ -e "/proc/sys/$f" ]; then mount -n --bind "$fake/$(basename $f)" "/proc/sys/$f"; fi
done
touch /run/lab/ready
exec sleep infinity
`

// fakeSettings are the kernel settings that a kubelet insists on.
var fakeSettings = map[string]string{
	"overcommit_memory": "1", "panic_on_oom": "0", "panic": "10", "panic_on_oops": "1",
	"root_maxkeys": "1000000", "root_maxbytes": "25000000",
}

func (n *node) holder() daemon {
	lab := n.cluster.lab
	return daemon{
		cgroup: n.cgroup("holder"),
		place:  place{netns: n.netns()},
		argv: []string{"unshare", "--mount", "--uts", "--propagation=private", "--", "sh", "-c", holdNode, "holder",
			lab.names.dir(), n.path("lib"), n.path("log"), n.path("fake"), n.name()},
		log: n.cluster.path("log", n.name(), "holder.log"),
	}
}

// place is inside the node. It fails when the node is switched off.
func (n *node) place() (place, error) {
	pids := n.cluster.lab.cgroups.procs(n.cgroup("holder"))
	if len(pids) != 1 {
		return place{}, fmt.Errorf("node %q is not running", n.name())
	}
	return place{netns: n.netns(), holder: pids[0]}, nil
}

// hold starts the holder and waits until it has made the namespaces.
func (n *node) hold(ctx context.Context) error {
	d := n.holder()
	fresh := !n.cluster.lab.cgroups.populated(d.cgroup)
	if fresh {
		boot, err := os.ReadFile("/proc/sys/kernel/random/uuid")
		if err != nil {
			return fmt.Errorf("make a boot id: %w", err)
		}
		if err := os.WriteFile(n.path("fake", "boot_id"), boot, 0o444); err != nil {
			return fmt.Errorf("make a boot id: %w", err)
		}
	}
	if err := n.cluster.lab.start(ctx, d); err != nil {
		return err
	}
	return n.cluster.await(ctx, "the namespaces of node "+n.name(), []daemon{d}, func() error {
		p, err := n.place()
		if err != nil {
			return err
		}
		if !exists("/proc/" + strconv.Itoa(p.holder) + "/root/run/lab/ready") {
			return errNotYet
		}
		return nil
	})
}

func (n *node) writeConfigs() error {
	for _, dir := range []string{"lib", "log", "cni", "fake"} {
		if err := os.MkdirAll(n.path(dir), 0o755); err != nil {
			return fmt.Errorf("make the folders of node %q: %w", n.name(), err)
		}
	}
	p := n.cluster.pki()
	files := map[string]string{
		"kubelet.yaml": kubeletConfig(kubeletPaths{
			CA: p.cert("ca"), Cert: p.cert(n.name() + "-serving"), Key: p.key(n.name() + "-serving"),
			Resolv: n.cluster.path("resolv.conf"), CgroupRoot: n.cgroup("pods"), PodLogs: "/var/log/pods",
		}),
		"containerd.toml": containerdConfig(n.path("cni")),
		"kube-proxy.yaml": proxyConfig(n.cluster.path("proxy.kubeconfig"), cmp.Or(n.cluster.plan.ProxyMode, NFTables),
			n.name(), joined(n.cluster.plan.allPods()), n.cluster.plan.proxyPeriod()),
	}
	cni, err := cniConfig(cmp.Or(n.cluster.plan.CNI, Bridge), n.cluster.plan.pods(n.index))
	if err != nil {
		return fmt.Errorf("encode the CNI configuration of node %q: %w", n.name(), err)
	}
	files["cni/10-lab.conflist"] = cni
	for name, value := range fakeSettings {
		if !exists(n.path("fake", name)) {
			files["fake/"+name] = value + "\n"
		}
	}
	for name, text := range files {
		if err := writeFile(n.path(name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// startRuntime returns when containerd answers and has the lab's own images.
func (n *node) startRuntime(ctx context.Context, tools Toolbox) error {
	lab := n.cluster.lab
	if err := lab.cgroups.ensureForPods(n.cgroup("pods")); err != nil {
		return err
	}
	if err := lab.cgroups.weigh(lab.names.prefix(), lab.plan.nodes()); err != nil {
		return err
	}
	if err := n.hold(ctx); err != nil {
		return err
	}
	d, err := n.daemon("containerd", []string{"containerd", "-c", n.path("containerd.toml")})
	if err != nil {
		return err
	}
	if err := n.cluster.lab.start(ctx, d); err != nil {
		return err
	}
	err = n.cluster.await(ctx, "containerd of node "+n.name(), []daemon{d}, func() error {
		_, err := n.ctr(ctx, "version")
		return err
	})
	if err != nil {
		return err
	}
	if err := n.checkCRI(ctx, d); err != nil {
		return err
	}
	have, err := n.ctr(ctx, "images", "ls", "-q")
	if err != nil {
		return err
	}
	for tag, tar := range map[string]string{pauseImage: tools.PauseTar, corednsImage: tools.CoreDNSTar} {
		if strings.Contains(have, tag) {
			continue
		}
		if err := n.importImage(ctx, tar); err != nil {
			return err
		}
	}
	return nil
}

// checkCRI ends a containerd that runs without what kubelets speak with: it would not load that later, and `up` starts another.
func (n *node) checkCRI(ctx context.Context, containerd daemon) error {
	plugins, err := n.ctr(ctx, "plugins", "ls")
	if err != nil {
		return err
	}
	if criLoaded(plugins) {
		return nil
	}
	hint := shortageHere() // before it gives back what it has
	if err := n.cluster.lab.cgroups.kill(ctx, containerd.cgroup); err != nil {
		return err
	}
	return fmt.Errorf("containerd of node %q cannot serve a kubelet; its log %s says:\n%s%s",
		n.name(), containerd.log, linesWith(containerd.log, "failed to load plugin io.containerd.grpc.v1.cri", 1), hint)
}

// criLoaded reads what `ctr plugins ls` prints: a plugin's type, name, platforms and status in a line.
func criLoaded(plugins string) bool {
	for line := range strings.Lines(plugins) {
		if f := strings.Fields(line); len(f) >= 3 && f[0] == "io.containerd.grpc.v1" && f[1] == "cri" {
			return f[len(f)-1] == "ok"
		}
	}
	return false
}

// startKubernetes starts the kubelet and kube-proxy. The API server must be ready.
func (n *node) startKubernetes(ctx context.Context) error {
	kube := n.cluster.lab.bin("kube")
	kubelet, err := n.daemon("kubelet", []string{kube, "kubelet",
		"--config=" + n.path("kubelet.yaml"),
		"--kubeconfig=" + n.cluster.path(n.name()+".kubeconfig"),
		"--hostname-override=" + n.name(),
		"--node-ip=" + addresses(n.cluster.plan.node(n.index)),
		"--root-dir=/var/lib/kubelet",
	}, n.cluster.plan.memory(128))
	if err != nil {
		return err
	}
	proxy, err := n.daemon("kube-proxy", []string{kube, "kube-proxy",
		"--config=" + n.path("kube-proxy.yaml"),
	}, n.cluster.plan.memory(64))
	if err != nil {
		return err
	}
	for _, d := range []daemon{kubelet, proxy} {
		if err := n.cluster.lab.start(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

func (n *node) daemon(name string, argv []string, env ...string) (daemon, error) {
	p, err := n.place()
	if err != nil {
		return daemon{}, err
	}
	return daemon{cgroup: n.cgroup(name), place: p, argv: argv, env: env, log: n.cluster.path("log", n.name(), name+".log")}, nil
}

// registering is how long a kubelet may take to make itself known: it needs a second or two, and many times that on a machine that is busy.
const registering = 2 * time.Minute

// awaitFresh waits until the Node is ready with the boot id of its present life.
func (n *node) awaitFresh(ctx context.Context) error {
	boot, err := os.ReadFile(n.path("fake", "boot_id"))
	if err != nil {
		return fmt.Errorf("read the boot id: %w", err)
	}
	client, err := n.cluster.Client()
	if err != nil {
		return err
	}
	kubelet, err := n.daemon("kubelet", nil)
	if err != nil {
		return err
	}
	soon, cancel := context.WithTimeout(ctx, registering)
	defer cancel()
	err = n.cluster.await(soon, "node "+n.name()+" to report its new boot", []daemon{kubelet}, func() error {
		got, err := client.CoreV1().Nodes().Get(ctx, n.name(), metav1.GetOptions{})
		if err == nil && got.Status.NodeInfo.BootID != strings.TrimSpace(string(boot)) {
			err = errNotYet
		}
		return err
	})
	if err != nil {
		return err
	}
	return n.awaitReady(ctx)
}

// awaitReady waits for the Node to be ready, and gives it its range of pod addresses if it has none.
func (n *node) awaitReady(ctx context.Context) error {
	client, err := n.cluster.Client()
	if err != nil {
		return err
	}
	start := time.Now()
	kubelet, err := n.daemon("kubelet", nil)
	if err != nil {
		return err
	}
	err = n.cluster.await(ctx, "node "+n.name()+" to be ready", []daemon{kubelet}, func() error {
		got, err := client.CoreV1().Nodes().Get(ctx, n.name(), metav1.GetOptions{})
		if err != nil {
			return err
		}
		if got.Spec.PodCIDR == "" {
			if err := n.assignPods(ctx, got); err != nil {
				return err
			}
		}
		return nodeReady(got)
	})
	if err == nil {
		n.cluster.say("node %s ready after %.1f s", n.name(), time.Since(start).Seconds())
	}
	return err
}

func nodeReady(n *corev1.Node) error {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
			return nil
		}
	}
	return errNotYet
}

func (n *node) assignPods(ctx context.Context, got *corev1.Node) error {
	cidrs := n.cluster.plan.pods(n.index)
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"podCIDR": cidrs[0], "podCIDRs": cidrs}})
	if err != nil {
		return fmt.Errorf("encode the pod range of node %q: %w", n.name(), err)
	}
	client, err := n.cluster.Client()
	if err != nil {
		return err
	}
	if _, err := client.CoreV1().Nodes().Patch(ctx, got.Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("give node %q its pod range: %w", n.name(), err)
	}
	return nil
}

// ctr speaks to the node's containerd.
func (n *node) ctr(ctx context.Context, args ...string) (string, error) {
	p, err := n.place()
	if err != nil {
		return "", err
	}
	return n.cluster.lab.run(ctx, p, "", append([]string{"ctr", "-n", "k8s.io"}, args...)...)
}
