package lab

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// Remove ends some of a lab's clusters and removes what belongs to them; the others, and the WAN, go on and are not told. It may be repeated
// after a crash. The last cluster goes with Down.
func Remove(ctx context.Context, o Options, clusters ...string) error {
	l, err := newLab(o)
	if err != nil {
		return err
	}
	unlock, err := l.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := l.load(); err != nil {
		return err
	}
	left, err := l.plan.without(clusters)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for _, name := range clusters {
		if err := l.Cluster(name).remove(ctx, left); err != nil {
			return fmt.Errorf("remove cluster %q: %w", name, err)
		}
	}
	l.plan = left // only now: what is half removed must still be known
	if err := l.save(); err != nil {
		return err
	}
	return l.writeKubeconfig()
}

// without returns the plan with these clusters taken out. Their places in the WAN are free again.
func (p Plan) without(clusters []string) (Plan, error) {
	for _, name := range clusters {
		if _, ok := p.find(name); !ok {
			return Plan{}, fmt.Errorf("the lab has no cluster %q", name)
		}
	}
	out := Plan{WAN: p.WAN}
	for _, c := range p.Clusters {
		if !slices.Contains(clusters, c.Name) {
			out.Clusters = append(out.Clusters, c)
		}
	}
	if len(out.Clusters) == 0 {
		return Plan{}, fmt.Errorf("no cluster would be left: end the whole lab with `lab down`")
	}
	return out, nil
}

func (c *Cluster) remove(ctx context.Context, left Plan) error {
	l := c.lab
	own, err := l.names.ownNetns()
	if err != nil {
		return err
	}
	own = slices.DeleteFunc(own, func(name string) bool { return !strings.HasPrefix(name, l.names.clusterNS(c.plan.Name)) })
	cgroup := l.names.cgroup(c.plan.Name)
	if err := l.endProcesses(ctx, cgroup, func(pid int) bool { return isIn(pid, own) }); err != nil {
		return err
	}
	if err := c.leaveWAN(ctx, left); err != nil {
		return err
	}
	for _, name := range own {
		if err := removeNetns(name); err != nil {
			return err
		}
	}
	if err := l.cgroups.remove(ctx, cgroup); err != nil {
		return err
	}
	if err := os.RemoveAll(c.path()); err != nil {
		return fmt.Errorf("remove its state: %w", err)
	}
	c.say("gone")
	return nil
}

// leaveWAN takes back what the WAN knows of a cluster: the next one that gets its place must not inherit it. Each is first put there, so
// that it can be taken away also if it is gone.
func (c *Cluster) leaveWAN(ctx context.Context, left Plan) error {
	wan, err := openSegment(c.lab.names.wanNS())
	if err != nil {
		return err
	}
	defer wan.Close()
	steps := []func() error{func() error { return wan.remove(c.plan.Name) }}
	for _, verb := range []string{"add", "delete"} {
		if c.plan.Private {
			steps = append(steps, func() error { return c.lab.change(ctx, verb, "private", c.PublicBlock()) })
		}
		for _, other := range left.Clusters {
			steps = append(steps, func() error { return c.lab.between(ctx, verb, c.plan.Name, other.Name) })
		}
	}
	return inOrder(steps...)
}
