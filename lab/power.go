package lab

import (
	"context"
	"errors"
	"fmt"
	"syscall"
)

// KillContainer sends a signal to the first process of a pod's container, from outside: it cannot be caught by a pid namespace's rules.
func (c *Cluster) KillContainer(ctx context.Context, namespace, pod, container string, signal syscall.Signal) error {
	t, err := c.FindContainer(ctx, namespace, pod, container)
	if err != nil {
		return err
	}
	if err := syscall.Kill(t.PID, signal); err != nil {
		return fmt.Errorf("signal container %q of pod %s/%s: %w", container, namespace, pod, err)
	}
	return nil
}

// KillSandbox ends a pod's sandbox. The kubelet makes another in its place, in a network namespace of its own and most often with another
// address; PodNetns then tells the new one.
func (c *Cluster) KillSandbox(ctx context.Context, namespace, pod string) error {
	s, _, err := c.findSandbox(ctx, namespace, pod)
	if err != nil {
		return err
	}
	if err := syscall.Kill(s.PID, syscall.SIGKILL); err != nil {
		return fmt.Errorf("end the sandbox of pod %s/%s: %w", namespace, pod, err)
	}
	return nil
}

// KillNode takes the node's power away: its link goes first, so that no packet tells anyone, then all its processes, its memory and its
// network namespace are gone. Its disk stays. It returns when nothing of the node runs.
func (c *Cluster) KillNode(ctx context.Context, name string) error {
	n, err := c.nodeByName(name)
	if err != nil {
		return err
	}
	unlock, err := c.lab.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	router, err := openSegment(c.lab.names.routerNS(c.plan.Name))
	if err != nil {
		return err
	}
	defer router.Close()
	// The node's end goes with the router's. What its kernel would still say on behalf of dead processes has no way out.
	if err := router.remove(fmt.Sprintf("n%d", n.index)); err != nil {
		return err
	}
	if err := c.lab.cgroups.kill(ctx, n.cgroup()); err != nil {
		return err
	}
	if err := removeNetns(n.netns()); err != nil {
		return err
	}
	return c.lab.cgroups.remove(ctx, n.cgroup())
}

// StartNode gives the node its power back, and returns when the Node is ready.
func (c *Cluster) StartNode(ctx context.Context, name string) error {
	n, err := c.nodeByName(name)
	if err != nil {
		return err
	}
	tools, err := Build(ctx, c.lab.progress)
	if err != nil {
		return err
	}
	unlock, err := c.lab.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return n.powerOn(ctx, tools)
}

// RestartNode takes a node's power away and gives it back, and returns when the Node is ready.
func (c *Cluster) RestartNode(ctx context.Context, name string) error {
	if err := c.KillNode(ctx, name); err != nil {
		return err
	}
	return c.StartNode(ctx, name)
}

func (n *node) powerOn(ctx context.Context, tools Toolbox) error {
	router, err := openSegment(n.cluster.lab.names.routerNS(n.cluster.plan.Name))
	if err != nil {
		return err
	}
	defer router.Close()
	return inOrder(
		func() error { return n.cluster.ensureNodeNetwork(router, n.index) },
		func() error { return n.cluster.routeInside(router) },
		func() error { return n.startRuntime(ctx, tools) },
		func() error { return n.startKubernetes(ctx) },
		func() error { return n.awaitFresh(ctx) },
	)
}

// KillControlPlane ends etcd, the API server, the controller manager, the scheduler and the lab's cloud at once. Nodes go on.
func (c *Cluster) KillControlPlane(ctx context.Context) error {
	unlock, err := c.lab.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return c.lab.cgroups.kill(ctx, c.lab.names.cgroup(c.plan.Name, "cp"))
}

// StartControlPlane starts what of the control plane does not run, and returns when the API server is ready.
func (c *Cluster) StartControlPlane(ctx context.Context) error {
	unlock, err := c.lab.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return c.startControlPlane(ctx)
}

// LoadImage imports an image archive into containerd on every running node.
func (c *Cluster) LoadImage(ctx context.Context, tar string) error {
	var errs []error
	for i := 1; i <= c.plan.Nodes; i++ {
		if err := c.node(i).importImage(ctx, tar); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
