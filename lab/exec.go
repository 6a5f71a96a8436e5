package lab

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path"
	"strconv"
	"strings"
)

// Where says where in a cluster a command of the machine is to run: InPod, OnNode or AtRouter.
type Where struct {
	kind    whereKind
	ns, pod string
	node    string
}

type whereKind int

const (
	inPod whereKind = iota
	onNode
	atRouter
	atControlPlane
)

// InPod means the pod's network namespace with the pod's /etc/resolv.conf, and else the machine's own files.
func InPod(namespace, pod string) Where { return Where{kind: inPod, ns: namespace, pod: pod} }

// OnNode means the node's network, mount and UTS namespaces; the empty name means the first node.
func OnNode(name string) Where { return Where{kind: onNode, node: name} }

// AtRouter means the network namespace of the cluster's router and bridge: its link "wan" leads out, n1, n2, … to nodes, cp to the control plane.
func AtRouter() Where { return Where{kind: atRouter} }

// AtControlPlane means the network namespace of etcd and the API server.
func AtControlPlane() Where { return Where{kind: atControlPlane} }

// Exec returns a command of the machine, ready to be run in that place. The caller may set its streams first. The context ends it.
func (c *Cluster) Exec(ctx context.Context, where Where, argv ...string) (*exec.Cmd, error) {
	if len(argv) == 0 {
		return nil, errors.New("no command to run")
	}
	switch where.kind {
	case inPod:
		return c.execInPod(ctx, where.ns, where.pod, argv)
	case onNode:
		n, err := c.nodeByName(where.node)
		if err != nil {
			return nil, err
		}
		p, err := n.place()
		if err != nil {
			return nil, err
		}
		return c.lab.command(ctx, p, argv), nil
	case atRouter:
		return c.lab.command(ctx, place{netns: c.lab.names.routerNS(c.plan.Name)}, argv), nil
	default:
		return c.lab.command(ctx, place{netns: c.lab.names.controlNS(c.plan.Name)}, argv), nil
	}
}

// asPod binds the pod's resolver over the machine's, in a mount namespace of the command's own.
const asPod = `mount -n --bind "$1" /etc/resolv.conf && shift && exec "$@"`

func (c *Cluster) execInPod(ctx context.Context, ns, pod string, argv []string) (*exec.Cmd, error) {
	sandbox, n, err := c.findSandbox(ctx, ns, pod)
	if err != nil {
		return nil, err
	}
	resolv := n.path("lib", "containerd", "io.containerd.grpc.v1.cri", "sandboxes", sandbox.ID, "resolv.conf")
	full := append([]string{"nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", sandbox.PID), "--",
		"unshare", "--mount", "--propagation=private", "--", "sh", "-c", asPod, "lab", resolv}, argv...)
	return c.lab.command(ctx, place{}, full), nil
}

func (l *Lab) command(ctx context.Context, p place, argv []string) *exec.Cmd {
	full := p.enter(argv)
	cmd := exec.CommandContext(ctx, full[0], full[1:]...)
	cmd.Env = l.environ()
	return cmd
}

// Container is one running container, or a pod's sandbox, as its node's containerd knows it.
type Container struct {
	ID   string
	PID  int // on the machine
	Node string
}

// FindContainer returns a pod's running container. The API server is not asked.
func (c *Cluster) FindContainer(ctx context.Context, namespace, pod, container string) (Container, error) {
	found, _, err := c.findTask(ctx, namespace, pod, `labels."io.kubernetes.container.name"==`+strconv.Quote(container))
	if err != nil {
		return Container{}, fmt.Errorf("container %q: %w", container, err)
	}
	return found, nil
}

// PodNetns returns the path of a pod's network namespace.
func (c *Cluster) PodNetns(ctx context.Context, namespace, pod string) (string, error) {
	s, _, err := c.findSandbox(ctx, namespace, pod)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("/proc/%d/ns/net", s.PID), nil
}

// NodeNetns returns the path of a node's network namespace; the empty name means the first node.
func (c *Cluster) NodeNetns(name string) (string, error) {
	n, err := c.nodeByName(name)
	if err != nil {
		return "", err
	}
	return netnsPath(n.netns()), nil
}

func (c *Cluster) findSandbox(ctx context.Context, namespace, pod string) (Container, *node, error) {
	return c.findTask(ctx, namespace, pod, `labels."io.cri-containerd.kind"=="sandbox"`)
}

// findTask asks every running node for a running task of the pod with that further label.
func (c *Cluster) findTask(ctx context.Context, namespace, pod, label string) (Container, *node, error) {
	filter := fmt.Sprintf(`labels."io.kubernetes.pod.namespace"==%q,labels."io.kubernetes.pod.name"==%q,%s`, namespace, pod, label)
	var errs []error
	for i := 1; i <= c.plan.Nodes; i++ {
		n := c.node(i)
		ids, err := n.ctr(ctx, "containers", "ls", "-q", filter)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if ids == "" {
			continue
		}
		tasks, err := n.ctr(ctx, "tasks", "ls")
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if t, ok := runningTask(tasks, strings.Fields(ids)); ok {
			t.Node = n.name()
			return t, n, nil
		}
	}
	errs = append(errs, fmt.Errorf("pod %s in cluster %q is not running", path.Join(namespace, pod), c.plan.Name))
	return Container{}, nil, errors.Join(errs...)
}

// runningTask reads `ctr tasks ls` for the first of ids that runs.
func runningTask(listing string, ids []string) (Container, bool) {
	for _, line := range strings.Split(listing, "\n") {
		f := strings.Fields(line)
		if len(f) != 3 || f[2] != "RUNNING" {
			continue
		}
		for _, id := range ids {
			pid, err := strconv.Atoi(f[1])
			if f[0] == id && err == nil {
				return Container{ID: id, PID: pid}, true
			}
		}
	}
	return Container{}, false
}
