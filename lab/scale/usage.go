package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A replica is one running controller.
type replica struct {
	pod    string
	pid    int
	leader bool
}

// controllers returns the running replicas of a cluster's controller. The leader is the one
// that holds a Lease of Causeway's namespace.
func (c *cluster) controllers(ctx context.Context) ([]replica, error) {
	pods, err := c.controllerPods(ctx)
	if err != nil {
		return nil, err
	}
	holders, err := c.leaseHolders(ctx)
	if err != nil {
		return nil, err
	}
	var out []replica
	for _, p := range pods {
		found, err := c.FindContainer(ctx, system, p.Name, "controller")
		if err != nil {
			return nil, err
		}
		out = append(out, replica{pod: p.Name, pid: found.PID, leader: holds(holders, p.Name)})
	}
	return out, nil
}

// componentPods returns the pods of one of Causeway's components, as the chart labels them.
func (c *cluster) componentPods(ctx context.Context, component string) ([]corev1.Pod, error) {
	o := metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=" + component}
	list, err := c.api.CoreV1().Pods(system).List(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("list the %s pods of %s: %w", component, c.Name(), err)
	}
	return list.Items, nil
}

// controllerPods returns the controllers' pods that are not being deleted.
func (c *cluster) controllerPods(ctx context.Context) ([]corev1.Pod, error) {
	pods, err := c.componentPods(ctx, "controller")
	return slices.DeleteFunc(pods, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil }), err
}

func (c *cluster) leaseHolders(ctx context.Context) ([]string, error) {
	list, err := c.api.CoordinationV1().Leases(system).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list the Leases of %s: %w", c.Name(), err)
	}
	var out []string
	for _, l := range list.Items {
		if l.Spec.HolderIdentity != nil {
			out = append(out, *l.Spec.HolderIdentity)
		}
	}
	return out, nil
}

// holds reports whether one of the holders is the pod. An identity is the pod's name and,
// after an underscore, an id of the process.
func holds(holders []string, pod string) bool {
	return slices.ContainsFunc(holders, func(h string) bool {
		name, _, _ := strings.Cut(h, "_")
		return name == pod
	})
}

// leader returns the elected replica of a cluster's controller.
func (c *cluster) leader(ctx context.Context) (replica, error) {
	all, err := c.controllers(ctx)
	if err != nil {
		return replica{}, err
	}
	i := slices.IndexFunc(all, func(r replica) bool { return r.leader })
	if i < 0 {
		return replica{}, fmt.Errorf("cluster %s has no leading controller", c.Name())
	}
	return all[i], nil
}

// usage is what the controllers of a cluster have used, leader first.
type usage struct {
	pods    []string
	cpu     []float64 // seconds since each process began
	now     []int     // resident bytes
	highest []int     // resident bytes, so far
}

// usage returns what the controllers of a cluster have used so far.
func (c *cluster) usage(ctx context.Context) (u usage, err error) {
	all, err := c.controllers(ctx)
	if err != nil {
		return u, err
	}
	slices.SortStableFunc(all, func(x, y replica) int {
		switch {
		case x.leader == y.leader:
			return 0
		case x.leader:
			return -1
		}
		return 1
	})
	for _, r := range all {
		cpu, err := cpuSeconds(r.pid)
		if err != nil {
			return u, err
		}
		now, highest, err := residentBytes(r.pid)
		if err != nil {
			return u, err
		}
		u.pods, u.cpu = append(u.pods, r.pod), append(u.cpu, cpu)
		u.now, u.highest = append(u.now, now), append(u.highest, highest)
	}
	if len(all) == 0 || !all[0].leader {
		return u, fmt.Errorf("cluster %s has no leading controller", c.Name())
	}
	return u, nil
}

// since returns the CPU seconds of each replica since an earlier usage.
func (u usage) since(before usage) ([]float64, error) {
	if !slices.Equal(u.pods, before.pods) {
		return nil, fmt.Errorf("the controllers were %v, and now they are %v", before.pods, u.pods)
	}
	out := slices.Clone(u.cpu)
	for i := range out {
		out[i] -= before.cpu[i]
	}
	return out, nil
}

// idleWindow is how long the use of idle controllers is measured.
const idleWindow = 10 * time.Second

// idleCPU returns the CPU seconds that each controller uses in idleWindow, leader first.
func (c *cluster) idleCPU(ctx context.Context) ([]float64, error) {
	before, err := c.usage(ctx)
	if err != nil {
		return nil, err
	}
	if err := sleep(ctx, idleWindow); err != nil {
		return nil, err
	}
	after, err := c.usage(ctx)
	if err != nil {
		return nil, err
	}
	return after.since(before)
}

// memory writes the resident memory of each replica.
func (u usage) memory() string {
	var out []string
	for i := range u.now {
		out = append(out, fmt.Sprintf("%d MiB (highest so far %d)", u.now[i]>>20, u.highest[i]>>20))
	}
	return strings.Join(out, ", ")
}

// Linux counts CPU time in units of 1/100 s for every architecture that Go supports.
const ticksPerSecond = 100

// cpuSeconds returns the CPU time that a process has used, in user and kernel mode.
func cpuSeconds(pid int) (float64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseCPU(string(raw))
}

// parseCPU reads proc(5)'s stat: utime and stime are the 14th and 15th field. The second
// is a name in parentheses, which may hold spaces.
func parseCPU(stat string) (float64, error) {
	end := strings.LastIndex(stat, ") ")
	fields := strings.Fields(stat[max(end, 0):])
	if end < 0 || len(fields) < 14 {
		return 0, fmt.Errorf("unexpected content of /proc/PID/stat: %q", stat)
	}
	user, uerr := strconv.ParseFloat(fields[12], 64)
	kernel, kerr := strconv.ParseFloat(fields[13], 64)
	return (user + kernel) / ticksPerSecond, errors.Join(uerr, kerr)
}

// residentBytes returns a process's resident memory, now and at its highest.
func residentBytes(pid int) (now, highest int, err error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	now, err = parseKilobytes(string(raw), "VmRSS:")
	if err != nil {
		return 0, 0, err
	}
	highest, err = parseKilobytes(string(raw), "VmHWM:")
	return now, highest, err
}

func parseKilobytes(status, key string) (int, error) {
	for line := range strings.Lines(status) {
		f := strings.Fields(line)
		if len(f) == 3 && f[0] == key {
			kb, err := strconv.Atoi(f[1])
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("/proc/PID/status has no %s", key)
}

// Accounts whose writes are looked for in the audit log, as prefixes of a user's name.
const (
	causewayAccounts = "system:serviceaccount:" + system + ":"
	// The controllers of Kubernetes are among these, and kubelets are not.
	allControllers = "system:serviceaccount:"
)

// An audited request is a write that a service account made, successful or not.
type audited struct {
	Verb string `json:"verb"`
	User struct {
		Username string `json:"username"`
	} `json:"user"`
	ObjectRef struct {
		Resource string `json:"resource"`
		Name     string `json:"name"`
	} `json:"objectRef"`
}

// ofMirrors reports whether the request wrote what a restart must not touch.
func (a audited) ofMirrors() bool {
	switch a.ObjectRef.Resource {
	case "services", "endpointslices", "ledgers":
		return true
	}
	return false
}

// auditEnd returns where the cluster's audit log ends now.
func (c *cluster) auditEnd() (int64, error) {
	info, err := os.Stat(c.AuditLog())
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// auditedSince returns the writes of some accounts that the audit log has after offset.
// Leases, which are renewed always, and reviews of tokens, which write nothing, are left
// out.
func (c *cluster) auditedSince(offset int64, accounts string) ([]audited, error) {
	f, err := os.Open(c.AuditLog())
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return nil, err
	}
	return parseAudit(f, accounts)
}

func parseAudit(r io.Reader, accounts string) ([]audited, error) {
	var out []audited
	for lines := bufio.NewReaderSize(r, 1<<16); ; {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return out, nil // a line without its end is still being written
		}
		if err != nil {
			return nil, err
		}
		if !bytes.Contains(line, []byte(accounts)) {
			continue
		}
		var a audited
		if err := json.Unmarshal(line, &a); err != nil {
			return nil, fmt.Errorf("decode the audit log: %w", err)
		}
		if !strings.HasPrefix(a.User.Username, accounts) {
			continue
		}
		if r := a.ObjectRef.Resource; r != "leases" && r != "tokenreviews" && r != "subjectaccessreviews" {
			out = append(out, a)
		}
	}
}

// settle waits until no controller, of Causeway or of Kubernetes, has written anything in
// either cluster for two seconds. If that does not happen, it adds a row that says so, and
// the run goes on.
func (b *bench) settle(ctx context.Context, when string) error {
	const limit = 2 * time.Minute
	err := poll(ctx, limit, 0, func() error {
		var from []int64
		for _, c := range b.pair() {
			end, err := c.auditEnd()
			if err != nil {
				return err
			}
			from = append(from, end)
		}
		if err := sleep(ctx, 2*time.Second); err != nil {
			return err
		}
		for i, c := range b.pair() {
			written, err := c.auditedSince(from[i], allControllers)
			if err != nil {
				return err
			}
			if len(written) > 0 {
				w := written[0]
				return fmt.Errorf("%s: %d writes in 2 s, one of them %s %s %s by %s", c.Name(), len(written),
					w.Verb, w.ObjectRef.Resource, w.ObjectRef.Name, w.User.Username)
			}
		}
		return nil
	})
	if err != nil && ctx.Err() == nil {
		b.add(row{What: "not quiet " + when, Causeway: err.Error()})
		return nil
	}
	return err
}
