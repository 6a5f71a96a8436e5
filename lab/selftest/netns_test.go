//go:build e2e

package selftest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-mesh/causeway/lab"
)

// runNetns names the case that a copy of this test binary runs, in mounts of its own.
const runNetns = "LAB_SELFTEST_NETNS"

// otherNetns is a network namespace that another program makes.
const otherNetns = "other-program"

// netnsCase is a way in which another program's `ip netns add` and the lab meet. iproute2
// binds /run/netns over itself, with all that is mounted below it.
type netnsCase struct {
	why    string
	shared bool // the machine's root mount is shared, as systemd makes it
	// prepare makes the lab's and the other program's namespaces.
	prepare func(ctx context.Context, t *testing.T)
}

var netnsCases = map[string]netnsCase{
	"after a lab's namespaces": {
		why: "an earlier lab did not share /run/netns, so each of its namespaces is mounted twice",
		prepare: func(ctx context.Context, t *testing.T) {
			mountNetns(ctx, t, "cwl-"+scratch.Name+"-wan")
			mountNetns(ctx, t, "cwl-"+scratch.Name+"-a--router")
			command(ctx, t, "ip", "netns", "add", otherNetns)
		},
	},
	"after a lab's namespaces, shared": {
		why:    "unmounting a namespace may reach into other mount namespaces",
		shared: true,
		prepare: func(ctx context.Context, t *testing.T) {
			mountNetns(ctx, t, "cwl-"+scratch.Name+"-wan")
			command(ctx, t, "ip", "netns", "add", otherNetns)
		},
	},
	"between two runs": {
		why: "an earlier `lab down` removed the upper mount only, and `lab up` mounted over it",
		prepare: func(ctx context.Context, t *testing.T) {
			name := "cwl-" + scratch.Name + "-wan"
			mountNetns(ctx, t, name)
			command(ctx, t, "ip", "netns", "add", otherNetns)
			command(ctx, t, "umount", "/run/netns/"+name)
			mountNetns(ctx, t, name)
		},
	},
	"bound twice": {
		why: "two programs that both find /run/netns without a mount bind it twice",
		prepare: func(ctx context.Context, t *testing.T) {
			mountNetns(ctx, t, "cwl-"+scratch.Name+"-wan")
			command(ctx, t, "mount", "--rbind", "/run/netns", "/run/netns")
			mountNetns(ctx, t, "cwl-"+scratch.Name+"-a--router")
			command(ctx, t, "mount", "--rbind", "/run/netns", "/run/netns")
			command(ctx, t, "ip", "netns", "add", otherNetns)
		},
	},
	"between up and down": {
		why: "`lab up` shares /run/netns first, so iproute2 does not bind it",
		prepare: func(ctx context.Context, t *testing.T) {
			o := lab.Options{
				Name:     scratch.Name,
				Clusters: []string{"a"},
				Progress: func(s string) { t.Log(s) },
			}
			if _, err := lab.Up(ctx, o); err != nil {
				t.Fatal(err)
			}
			command(ctx, t, "ip", "netns", "add", otherNetns)
			for _, m := range mountsOf(t, "cwl-"+scratch.Name+"-wan") {
				if !strings.Contains(m, " shared:") {
					t.Errorf("the lab's namespace is mounted under no shared mount: %s", m)
				}
			}
		},
	},
	"before up": {
		why: "`lab up` removes what an earlier run left if it has no record of a lab",
		prepare: func(ctx context.Context, t *testing.T) {
			name := "cwl-" + scratch.Name + "-wan"
			mountNetns(ctx, t, name)
			command(ctx, t, "ip", "netns", "add", otherNetns)
			left := inode(t, "/run/netns/"+name)
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			o := lab.Options{Name: scratch.Name, Clusters: []string{"a"}, Progress: func(s string) {
				if t.Log(s); strings.Contains(s, "are gone") {
					cancel() // the rest of up is not of interest
				}
			}}
			if _, err := lab.Up(ctx, o); err == nil {
				t.Error("up ended without an error although its context ended")
			}
			if _, err := os.Stat("/run/netns/" + name); err == nil && inode(t, "/run/netns/"+name) == left {
				t.Error("up took over a namespace of an earlier run")
			}
		},
	},
}

// TestDownBesideAnotherProgramsNetns runs each case in a copy of this process that has
// its own mounts and an empty /run, because the cases change how /run/netns is mounted.
func TestDownBesideAnotherProgramsNetns(t *testing.T) {
	ctx := deadline(t, 5*time.Minute)
	if name := os.Getenv(runNetns); name != "" {
		downBesideAnotherProgramsNetns(ctx, t, netnsCases[name])
		return
	}
	if _, err := lab.Build(ctx, func(s string) { t.Log(s) }); err != nil {
		t.Fatal(err)
	}
	for name, c := range netnsCases {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(ctx, self(t), "-test.v",
				"-test.run=^TestDownBesideAnotherProgramsNetns$")
			cmd.Env = append(os.Environ(), runNetns+"="+name)
			cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s\n%s", err, c.why, out)
			}
		})
	}
}

func downBesideAnotherProgramsNetns(ctx context.Context, t *testing.T, c netnsCase) {
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		t.Fatal(err)
	}
	if c.shared {
		if err := unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = lab.Down(context.Background(), scratch) })
	c.prepare(ctx, t)
	other := inode(t, "/run/netns/"+otherNetns)
	for range 2 { // a repetition must succeed as well
		if err := lab.Down(ctx, scratch); err != nil {
			t.Errorf("down: %v", err)
		}
	}
	for _, m := range mountsOf(t, "cwl-"+scratch.Name) {
		t.Errorf("after down there is a mount: %s", m)
	}
	if inode(t, "/run/netns/"+otherNetns) != other {
		t.Error("after down the other program's namespace is another one")
	}
	command(ctx, t, "ip", "netns", "exec", otherNetns, "true")
	command(ctx, t, "ip", "netns", "del", otherNetns)
	if err := lab.Down(ctx, scratch); err != nil {
		t.Errorf("down: %v", err)
	}
	for _, m := range mountsOf(t, "/run/netns") {
		t.Errorf("after the last namespace is removed there is a mount: %s", m)
	}
	if _, err := os.Stat("/run/netns"); err == nil {
		t.Error("down left an empty /run/netns")
	}
}

// mountNetns makes a network namespace at /run/netns/name without sharing that directory.
func mountNetns(ctx context.Context, t *testing.T, name string) {
	t.Helper()
	path := "/run/netns/" + name
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	command(ctx, t, "unshare", "--net="+path, "true")
}

func command(ctx context.Context, t *testing.T, argv ...string) {
	t.Helper()
	if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out)
	}
}

// mountsOf returns the mounts of this process whose line contains text.
func mountsOf(t *testing.T, text string) []string {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(raw)) {
		if strings.Contains(line, text) {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return out
}

func inode(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(st.Dev, ":", st.Ino)
}
