package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// DefaultName is the lab's name when none is given.
	DefaultName = "lab"
	// DefaultState is the folder that holds a folder for each lab.
	DefaultState = "/var/lib/causeway-lab"
)

// ErrNoLab reports that no lab of that name has been made on this machine.
var ErrNoLab = errors.New("no such lab; make it with: lab up")

// Options say which lab is meant, and what it is to be. The zero value means the lab called "lab".
type Options struct {
	Name     string            // empty means DefaultName
	State    string            // empty means DefaultState
	Clusters []string          // Up: clusters that must be there; those there already stay
	Nodes    int               // Up: nodes of each new cluster; 0 means 1
	Shape    Shape             // Up: how each new cluster is made
	WAN      *Weather          // Up: how the WAN is from now on; nil leaves it as it is
	Progress func(line string) // told what is going on; nil means silence
}

// Lab is the clusters of one machine that share a WAN.
type Lab struct {
	names    names
	cgroups  hierarchies
	plan     Plan
	progress func(string)
}

// Open finds a lab that Up made. It returns an error wrapping ErrNoLab if there is none.
func Open(name string) (*Lab, error) { return OpenWith(Options{Name: name}) }

// OpenWith is Open with a state folder or a progress function.
func OpenWith(o Options) (*Lab, error) {
	l, err := newLab(o)
	if err != nil {
		return nil, err
	}
	if err := l.load(); err != nil {
		return nil, err
	}
	if len(l.plan.Clusters) == 0 {
		return nil, fmt.Errorf("lab %q: %w", l.names.lab, ErrNoLab)
	}
	return l, nil
}

func newLab(o Options) (*Lab, error) {
	if o.Name == "" {
		o.Name = DefaultName
	}
	if o.State == "" {
		o.State = DefaultState
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	if err := CheckName(o.Name); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("the lab makes namespaces, links and mounts: run it as root")
	}
	state, err := filepath.Abs(o.State)
	if err != nil {
		return nil, fmt.Errorf("find the state folder: %w", err)
	}
	h, err := findHierarchies()
	if err != nil {
		return nil, err
	}
	return &Lab{names: names{lab: o.Name, state: state}, cgroups: h, progress: o.Progress}, nil
}

// Up makes what of the lab is missing, and returns when every cluster's nodes are ready and
// its DNS answers. It may be called again at any time, also after a crash. If the lab has no
// record on disk, Up first removes what an earlier run left under the lab's name.
func Up(ctx context.Context, o Options) (*Lab, error) {
	l, err := newLab(o)
	if err != nil {
		return nil, err
	}
	if err := EnsurePackages(ctx, l.progress); err != nil {
		return nil, err
	}
	tools, err := Build(ctx, l.progress)
	if err != nil {
		return nil, err
	}
	unlock, err := l.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if !exists(l.planFile()) {
		if err := l.clear(ctx); err != nil {
			return nil, fmt.Errorf("remove what an earlier lab %q left: %w", l.names.lab, err)
		}
	}
	changed, err := l.settle(o, tools)
	if err != nil {
		return nil, err
	}
	if err := l.makeRoom(ctx); err != nil {
		return nil, err
	}
	if err := l.ensureWAN(ctx, changed); err != nil {
		return nil, err
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, c := range l.Clusters() {
		g.Go(func() error {
			if err := c.up(gctx, tools); err != nil {
				return fmt.Errorf("cluster %q: %w", c.Name(), err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return l, l.writeKubeconfig()
}

// settle writes down what the lab is to be before anything of it exists, and reports whether the WAN is to be another than it was.
func (l *Lab) settle(o Options, tools Toolbox) (changed bool, err error) {
	if err := l.load(); err != nil {
		return false, err
	}
	plan, err := l.plan.Extend(o.Clusters, max(o.Nodes, 1), o.Shape, freePort)
	if err != nil {
		return false, err
	}
	if o.WAN != nil {
		if err := o.WAN.check(); err != nil {
			return false, err
		}
		plan.WAN = *o.WAN
	}
	if len(plan.Clusters) == 0 {
		return false, errors.New("a lab needs a cluster: name some with --clusters")
	}
	changed = l.plan.WAN != plan.WAN
	l.plan = plan
	if err := os.MkdirAll(filepath.Join(l.names.dir(), "bin"), 0o755); err != nil {
		return false, fmt.Errorf("make the state folder: %w", err)
	}
	if err := l.save(); err != nil {
		return false, err
	}
	// The binaries must outlive the cache, and be seen from inside the nodes' mount namespaces.
	for name, source := range map[string]string{"kube": tools.Kube, "lab": tools.Lab} {
		if err := keepBinary(source, l.bin(name)); err != nil {
			return false, err
		}
	}
	return changed, nil
}

func (l *Lab) planFile() string       { return filepath.Join(l.names.dir(), "lab.json") }
func (l *Lab) bin(name string) string { return filepath.Join(l.names.dir(), "bin", name) }

func (l *Lab) save() error {
	raw, err := json.MarshalIndent(l.plan, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the plan: %w", err)
	}
	return writeFile(l.planFile(), raw, 0o644)
}

// load reads the plan; without one the lab has no clusters.
func (l *Lab) load() error {
	raw, err := os.ReadFile(l.planFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the plan of lab %q: %w", l.names.lab, err)
	}
	if err := json.Unmarshal(raw, &l.plan); err != nil {
		return fmt.Errorf("parse the plan of lab %q: %w", l.names.lab, err)
	}
	return nil
}

// lock keeps two commands from changing one lab at once. It is an abstract socket: the kernel drops it with its holder, and no file stays.
func (l *Lab) lock(ctx context.Context) (unlock func(), err error) {
	socket := "@causeway-lab-" + l.names.lab
	if ln, err := net.Listen("unix", socket); err == nil {
		return func() { _ = ln.Close() }, nil
	}
	l.progress("another command is at work on this lab; waiting for it")
	return lockSocket(ctx, socket)
}

// lockSocket waits until it holds an abstract socket.
func lockSocket(ctx context.Context, socket string) (unlock func(), err error) {
	for {
		ln, err := net.Listen("unix", socket)
		if err == nil {
			return func() { _ = ln.Close() }, nil
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return nil, fmt.Errorf("wait for another command that holds %s: %w", socket, err)
		}
	}
}

// Name returns the lab's name.
func (l *Lab) Name() string { return l.names.lab }

// Clusters returns the lab's clusters in the order in which they were asked for.
func (l *Lab) Clusters() []*Cluster {
	var out []*Cluster
	for _, p := range l.plan.Clusters {
		out = append(out, &Cluster{lab: l, plan: p})
	}
	return out
}

// Cluster returns a cluster by name, or nil if the lab has none of that name.
func (l *Lab) Cluster(name string) *Cluster {
	i := slices.IndexFunc(l.plan.Clusters, func(p ClusterPlan) bool { return p.Name == name })
	if i < 0 {
		return nil
	}
	return &Cluster{lab: l, plan: l.plan.Clusters[i]}
}

// WAN returns where clusters meet.
func (l *Lab) WAN() WAN { return WAN{lab: l} }

// WAN is the namespace between clusters. It has no filter of its own for what starts in it: it plays strangers, too.
type WAN struct{ lab *Lab }

// Command returns a command of the machine, ready to be run in the WAN namespace.
func (w WAN) Command(ctx context.Context, argv ...string) *exec.Cmd {
	return w.lab.command(ctx, place{netns: w.lab.names.wanNS()}, argv)
}

// Netns returns the path of the namespace.
func (w WAN) Netns() string { return netnsPath(w.lab.names.wanNS()) }

// Firewall is what the WAN's firewall saw since the lab came up.
type Firewall struct {
	Admitted Counter // first packets of connections to a gateway's port
	Answered Counter // packets of connections so admitted, both ways
	Refused  Counter // everything else
}

// Firewall returns the WAN firewall's counters.
func (l *Lab) Firewall(ctx context.Context) (Firewall, error) {
	c, err := l.counters(ctx, l.names.wanNS())
	if err != nil {
		return Firewall{}, err
	}
	return Firewall{Admitted: c["admitted"], Answered: c["answered"], Refused: c["refused"]}, nil
}

// Kubeconfig returns the path of a kubeconfig with a context for each cluster, named like it.
func (l *Lab) Kubeconfig() string { return filepath.Join(l.names.dir(), "kubeconfig") }

func (l *Lab) writeKubeconfig() error {
	var all []access
	for _, c := range l.Clusters() {
		a, err := c.access("admin", c.loopbackServer())
		if err != nil {
			return err
		}
		all = append(all, a)
	}
	raw, err := kubeconfig(all...)
	if err != nil {
		return fmt.Errorf("encode the kubeconfig: %w", err)
	}
	return writeFile(l.Kubeconfig(), raw, 0o600)
}

func freePort() (int, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port, nil
}

// keepBinary links source at path, or copies it where links cannot reach. A running program's file is replaced, never written to.
func keepBinary(source, path string) error {
	a, err := os.Stat(source)
	if err != nil {
		return fmt.Errorf("find binary %q: %w", source, err)
	}
	if b, err := os.Stat(path); err == nil && (os.SameFile(a, b) || a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())) {
		return nil
	}
	tmp := path + ".new"
	_ = os.Remove(tmp)
	if err := os.Link(source, tmp); err != nil {
		if err := copyFile(source, tmp, a); err != nil {
			return err
		}
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("keep binary %q: %w", path, err)
	}
	return nil
}
