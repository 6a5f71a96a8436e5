package lab

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestWantInstances(t *testing.T) {
	cases := map[string]struct {
		why                                 string
		allowed, used, controlPlanes, nodes int
		want                                int
	}{
		"a pair":                    {why: "what fits changes nothing of the machine's", allowed: 128, used: 10, controlPlanes: 2, nodes: 2, want: 128},
		"a mesh":                    {why: "its last kubelet would end", allowed: 128, used: 10, controlPlanes: 5, nodes: 6, want: 1024},
		"a pair beside others":      {why: "other labs and programs take from the same number", allowed: 128, used: 90, controlPlanes: 2, nodes: 2, want: 1024},
		"all runs":                  {why: "a repair starts nothing, and readers of logs need some", allowed: 128, used: 112, want: 128},
		"to the last":               {why: "something must be to spare", allowed: 128, used: 113, want: 1024},
		"more than the usual raise": {why: "a raise below the need is none", allowed: 1024, used: 900, controlPlanes: 20, nodes: 20, want: 2592},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := wantInstances(c.allowed, c.used, c.controlPlanes, c.nodes); got != c.want {
				t.Errorf("got %d, want %d: %s", got, c.want, c.why)
			}
		})
	}
}

func TestAllowance(t *testing.T) {
	type step struct {
		do   string // raise, restore, or else what somebody writes there
		want string // the setting afterwards
	}
	cases := map[string]struct {
		why   string
		steps []step
	}{
		"there and back": {why: "the last lab leaves what the first one found", steps: []step{{"raise", "1024"}, {"restore", "128"}}},
		"twice":          {why: "the second raise must not take the first for the machine's own", steps: []step{{"raise", "1024"}, {"more", "4096"}, {"restore", "128"}}},
		"never raised":   {why: "what no lab changed, no lab puts back", steps: []step{{"restore", "128"}}},
		"restored twice": {why: "down may be repeated", steps: []step{{"raise", "1024"}, {"restore", "128"}, {"restore", "128"}}},
		"changed since":  {why: "an administrator's number is his", steps: []step{{"raise", "1024"}, {"500", "500"}, {"restore", "500"}}},
		"changed in between": {
			why:   "his number is what the machine is to have again",
			steps: []step{{"raise", "1024"}, {"500", "500"}, {"more", "4096"}, {"restore", "500"}},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			a := allowance{setting: filepath.Join(dir, "setting"), record: filepath.Join(dir, "record")}
			write(t, a.setting, "128\n")
			for _, s := range c.steps {
				var err error
				switch s.do {
				case "raise":
					err = a.raise(1024)
				case "more":
					err = a.raise(4096)
				case "restore":
					err = a.restore()
				default:
					write(t, a.setting, s.do)
				}
				if err != nil {
					t.Fatal(err)
				}
				if got, _ := os.ReadFile(a.setting); strings.TrimSpace(string(got)) != s.want {
					t.Fatalf("after %s it is %q, want %s: %s", s.do, got, s.want, c.why)
				}
			}
			if _, err := os.Stat(a.record); err == nil {
				t.Error("the record is left")
			}
		})
	}
}

// What forbids the change must not be recorded as if it had been made, nor must an earlier change be forgotten.
func TestAllowanceForbidden(t *testing.T) {
	dir := t.TempDir()
	a := allowance{setting: filepath.Join(dir, "setting"), record: filepath.Join(dir, "record")}
	if err := a.raise(1024); err == nil {
		t.Error("a setting that cannot be read was raised")
	}
	write(t, a.record, "128 1024\n")
	if err := a.restore(); err != nil {
		t.Errorf("a setting that is not there cannot be put back, and need not: %v", err)
	}
}

func TestShortage(t *testing.T) {
	cases := map[string]struct {
		why           string
		allowed, used int
		want          string
	}{
		"plenty":  {why: "a hint at what is not the cause leads astray", allowed: 1024, used: 120},
		"none":    {why: "the reader must learn what to run", allowed: 128, used: 128, want: "sysctl -w fs.inotify.max_user_instances=1024"},
		"a few":   {why: "a process that ended has given its own back", allowed: 128, used: 122, want: "122 of the 128"},
		"unknown": {why: "a kernel without the setting has no shortage", allowed: 0, used: 5},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := shortage(c.allowed, c.used); (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q: %s", got, c.want, c.why)
			}
		})
	}
}

func TestInotifyInstances(t *testing.T) {
	proc := t.TempDir()
	for path, to := range map[string]string{
		"1/fd/3": "anon_inode:inotify", "1/fd/4": "socket:[5]", "20/fd/0": "anon_inode:inotify", "self/fd/3": "anon_inode:inotify",
	} {
		if err := os.MkdirAll(filepath.Join(proc, filepath.Dir(path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, filepath.Join(proc, path)); err != nil {
			t.Fatal(err)
		}
	}
	if got := inotifyInstances(proc); got != 2 {
		t.Errorf("counted %d, want 2: each process once, and only what is one", got)
	}
}

func TestComplaints(t *testing.T) {
	cases := map[string]struct{ why, log, want string }{
		"errors among much else": {
			why:  "the cause is never among a busy log's last lines",
			log:  "I0102 start\nE0102 15:04 no more watches\nI0102 going on\nE0102 15:05 again\nI0102 still here\n",
			want: "E0102 15:04 no more watches\nE0102 15:05 again",
		},
		"no error":     {why: "the last lines are better than nothing", log: "I0102 a\nI0102 b\nI0102 c\n", want: "I0102 b\nI0102 c"},
		"more than 2":  {why: "the newest count", log: "E0102 a\nE0102 b\nE0102 c\n", want: "E0102 b\nE0102 c"},
		"a plain word": {why: "a word that begins with E is no error", log: "Exiting\nI0102 b\n", want: "Exiting\nI0102 b"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "log")
			write(t, path, c.log)
			if got := complaints(path, 2); got != c.want {
				t.Errorf("got %q, want %q: %s", got, c.want, c.why)
			}
		})
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
