//go:build e2e

package selftest

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/causeway-mesh/causeway/lab"
)

// scratch is the lab that these tests make, wreck and remove.
var scratch = lab.Options{Name: "selfwreck", Clusters: []string{"a", "b"}}

func TestNothingIsLeft(t *testing.T) {
	ctx := deadline(t, 8*time.Minute)
	tools, err := lab.Build(ctx, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	if err := lab.Down(ctx, scratch); err != nil {
		t.Fatal(err)
	}
	before := inventory(t)
	cases := map[string]struct {
		why   string
		after time.Duration // kill `lab up` so long after its start; 0 lets it finish
	}{
		"whole":       {why: "the plain case"},
		"at 20 ms":    {why: "before anything is there", after: 20 * time.Millisecond},
		"at 60 ms":    {why: "while namespaces are made", after: 60 * time.Millisecond},
		"at 100 ms":   {why: "while links are made", after: 100 * time.Millisecond},
		"at 150 ms":   {why: "while the first processes start", after: 150 * time.Millisecond},
		"at 250 ms":   {why: "while nodes make their mount namespaces", after: 250 * time.Millisecond},
		"at 600 ms":   {why: "while images are imported", after: 600 * time.Millisecond},
		"at 3000 ms":  {why: "while the API server starts", after: 3 * time.Second},
		"at 8000 ms":  {why: "while pods start", after: 8 * time.Second},
		"at 11000 ms": {why: "while pods start", after: 11 * time.Second},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			up := exec.CommandContext(ctx, tools.Lab, "up", "--name", scratch.Name, "--clusters", strings.Join(scratch.Clusters, ","))
			if err := up.Start(); err != nil {
				t.Fatal(err)
			}
			if c.after > 0 {
				time.Sleep(c.after)
				_ = up.Process.Kill()
			}
			if err := up.Wait(); err != nil && c.after == 0 {
				t.Errorf("up: %v", err)
			}
			for range 2 { // once more must be fine
				if err := lab.Down(context.WithoutCancel(ctx), scratch); err != nil {
					t.Errorf("down: %v: %s", err, c.why)
				}
			}
			for _, line := range mine(before.Diff(inventory(t))) {
				t.Errorf("%s: %s", line, c.why)
			}
		})
	}
}

func inventory(t *testing.T) lab.Inventory {
	t.Helper()
	inv, err := lab.TakeInventory()
	if err != nil {
		t.Fatal(err)
	}
	return inv
}

// mine drops what other programs and other labs do on the same machine at the same time:
// their processes, cgroups and state, and the mount of /run/netns that their namespaces need.
func mine(diff []string) []string {
	var out []string
	for _, line := range diff {
		_, what, _ := strings.Cut(line, ": ")
		_, cgroup, inCgroup := strings.Cut(what, "/sys/fs/cgroup/")
		switch {
		case strings.Contains(line, " process: ") && !strings.HasPrefix(what, "[lab "+scratch.Name+"] "):
		case inCgroup && !strings.Contains(cgroup, "cwl-"+scratch.Name) && !strings.HasPrefix(cgroup, "kubepods"):
		case strings.Contains(what, " /run/netns ") && othersNetns():
		case strings.Contains(what, "cwl-") && !strings.Contains(what, "cwl-"+scratch.Name):
		case strings.HasPrefix(what, lab.DefaultState+"/") && !strings.HasPrefix(what, lab.DefaultState+"/"+scratch.Name):
		default:
			out = append(out, line)
		}
	}
	return out
}

// othersNetns reports whether /run/netns holds a network namespace of another program.
func othersNetns() bool {
	entries, _ := os.ReadDir("/run/netns")
	return slices.ContainsFunc(entries, func(e os.DirEntry) bool {
		return !strings.HasPrefix(e.Name(), "cwl-"+scratch.Name+"-")
	})
}
