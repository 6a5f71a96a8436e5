package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
)

// marker is in the environment of all that the lab starts, with the lab's name: a process is ours from its very first moment. It is no
// name that a person or a script would set: what has it dies with the lab.
const marker = "CAUSEWAY_LAB_OWNS"

// place says in which namespaces something runs. Empty fields mean the machine's own.
type place struct {
	netns  string // a name in netnsDir
	holder int    // pid of the node's holder, whose mount and UTS namespaces are meant
}

// enter prefixes argv with what enters the place. Never `ip netns exec`: that remounts /sys, and a kubelet then finds no cgroups.
func (p place) enter(argv []string) []string {
	if p == (place{}) {
		return argv
	}
	out := []string{"nsenter"}
	if p.netns != "" {
		out = append(out, "--net="+netnsPath(p.netns))
	}
	if p.holder != 0 {
		out = append(out, fmt.Sprintf("--mount=/proc/%d/ns/mnt", p.holder), fmt.Sprintf("--uts=/proc/%d/ns/uts", p.holder))
	}
	return append(append(out, "--"), argv...)
}

// daemon is one long-running process of the lab. Its cgroup holds it and nothing else that the lab starts.
type daemon struct {
	cgroup string
	place  place
	argv   []string
	env    []string
	log    string
}

func (d daemon) name() string { return filepath.Base(d.cgroup) }

// joinAndRun puts itself into the cgroup, then becomes a child that nobody waits for: init reaps it, and the lab command may end.
const joinAndRun = `echo $$ > "$1" || exit 1; shift; "$@" </dev/null &`

// start runs the daemon unless it runs already.
func (l *Lab) start(ctx context.Context, d daemon) error {
	if l.cgroups.populated(d.cgroup) {
		return nil
	}
	if err := l.cgroups.ensure(d.cgroup); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(d.log), 0o755); err != nil {
		return fmt.Errorf("make the folder of logs: %w", err)
	}
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open log of %s: %w", d.name(), err)
	}
	defer log.Close()
	procs := filepath.Join(l.cgroups.tracking, d.cgroup, "cgroup.procs")
	cmd := exec.CommandContext(ctx, "sh", append([]string{"-c", joinAndRun, "lab", procs}, d.place.enter(d.argv)...)...)
	cmd.Env = append(l.environ(), d.env...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("start %s: %w", d.name(), err)
	}
	return nil
}

func (l *Lab) environ() []string {
	return append(os.Environ(), marker+"="+l.names.lab)
}

// run runs a short command in a place and returns what it printed on stdout; the error holds what it printed on stderr.
func (l *Lab) run(ctx context.Context, p place, stdin string, argv ...string) (string, error) {
	full := p.enter(argv)
	cmd := exec.CommandContext(ctx, full[0], full[1:]...)
	cmd.Env = l.environ()
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("run %s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// tail returns a log's last lines, for an error that would otherwise send the reader looking.
func tail(path string, lines int) string {
	raw, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return lastOf(strings.Split(strings.TrimRight(string(raw), "\n"), "\n"), lines)
}

func lastOf(all []string, lines int) string {
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// linesWith returns the last lines of a log that hold a text.
func linesWith(path, text string, lines int) string {
	raw, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	var found []string
	for line := range strings.Lines(string(raw)) {
		if strings.Contains(line, text) {
			found = append(found, strings.TrimRight(line, "\n"))
		}
	}
	return lastOf(found, lines)
}

// complaint begins a line by which a Kubernetes process reports an error.
var complaint = regexp.MustCompile(`\A[EF][0-9]{4} `)

// complaints returns the last errors in a log of Kubernetes', or its last lines if there is none.
func complaints(path string, lines int) string {
	raw, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	var errs []string
	for line := range strings.Lines(string(raw)) {
		if complaint.MatchString(line) {
			errs = append(errs, strings.TrimRight(line, "\n"))
		}
	}
	if len(errs) == 0 {
		return tail(path, lines)
	}
	return lastOf(errs, lines)
}
