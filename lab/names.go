package lab

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
)

// Names within the kernel's and Kubernetes' limits. A lab's name has no dash, so that no lab's prefix begins another's.
var (
	labName     = regexp.MustCompile(`^[a-z][a-z0-9]{0,11}$`)
	clusterName = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,10}[a-z0-9])?$`)
)

// reserved are cluster names that would collide with the lab's own folders and namespaces.
var reserved = map[string]bool{"wan": true, tollLink: true, "netns": true, "bin": true}

// names derives every name of one lab from the lab's own.
type names struct {
	lab   string
	state string // the folder that holds the state of all labs
}

// CheckName says whether a lab may be called name.
func CheckName(name string) error {
	if !labName.MatchString(name) {
		return fmt.Errorf("lab name %q: want 1 to 12 lower-case letters and digits, a letter first", name)
	}
	return nil
}

// CheckClusterName says whether a cluster may be called name: it becomes a link's name and a part of node names.
func CheckClusterName(name string) error {
	if !clusterName.MatchString(name) || strings.Contains(name, "--") || reserved[name] {
		return fmt.Errorf("cluster name %q: want 1 to 12 lower-case letters, digits and single dashes, a letter first, and not a reserved word", name)
	}
	return nil
}

func (n names) dir() string             { return filepath.Join(n.state, n.lab) }
func (n names) cluster(c string) string { return filepath.Join(n.dir(), c) }

// cgroupPrefix begins the name of every lab's top cgroup.
const cgroupPrefix = "cwl-"

// prefix begins the name of every network namespace and the one top cgroup of this lab, and of no other lab's.
func (n names) prefix() string                { return cgroupPrefix + n.lab }
func (n names) wanNS() string                 { return n.prefix() + "-wan" }
func (n names) clusterNS(c string) string     { return n.prefix() + "-" + c + "--" } // begins those of a cluster, and of no other's
func (n names) routerNS(c string) string      { return n.clusterNS(c) + "router" }
func (n names) controlNS(c string) string     { return n.clusterNS(c) + "cp" }
func (n names) nodeNS(c string, i int) string { return fmt.Sprintf("%sn%d", n.clusterNS(c), i) }

// cgroup is relative to a hierarchy's root.
func (n names) cgroup(parts ...string) string {
	return filepath.Join(append([]string{n.prefix()}, parts...)...)
}

// nodeName is what kubectl shows; i counts from 1.
func nodeName(cluster string, i int) string { return fmt.Sprintf("%s-%d", cluster, i) }

// ownsNetns says whether a file in /run/netns is this lab's.
func (n names) ownsNetns(file string) bool { return strings.HasPrefix(file, n.prefix()+"-") }
