package lab

import (
	"strings"
	"testing"
)

func TestCheckNames(t *testing.T) {
	cases := map[string]struct {
		why         string
		lab, member bool
	}{
		"lab":              {why: "the plain case", lab: true, member: true},
		"west-2":           {why: "a dash would let one lab's prefix begin another's", member: true},
		"west--2":          {why: "two dashes part a cluster from its namespaces' roles"},
		"wan":              {why: "the WAN's namespace has that name", lab: true},
		"":                 {why: "nothing is no name"},
		"2west":            {why: "a DNS label of old begins with a letter"},
		"West":             {why: "Kubernetes names are lower-case"},
		"a/b":              {why: "a name becomes a path"},
		"abcdefghijklm":    {why: "with what is added it must stay a link's name"},
		"west-":            {why: "a DNS label ends in a letter or a digit"},
		"abcdefghijkl":     {why: "twelve letters still fit", lab: true, member: true},
		"west\n":           {why: "a line's end is not part of a name"},
		"../../etc/passwd": {why: "a name becomes a path"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := CheckName(name) == nil; got != c.lab {
				t.Errorf("CheckName says %v, want %v: %s", got, c.lab, c.why)
			}
			if got := CheckClusterName(name) == nil; got != c.member {
				t.Errorf("CheckClusterName says %v, want %v: %s", got, c.member, c.why)
			}
		})
	}
}

func TestNamesOfLabsNeverMeet(t *testing.T) {
	a, b := names{lab: "lab", state: "/s"}, names{lab: "lab2", state: "/s"}
	for _, ns := range []string{b.wanNS(), b.routerNS("west"), b.controlNS("west"), b.nodeNS("west", 1)} {
		if a.ownsNetns(ns) {
			t.Errorf("lab %q would remove %q, which is lab %q's", a.lab, ns, b.lab)
		}
		if !b.ownsNetns(ns) {
			t.Errorf("lab %q would leave %q behind", b.lab, ns)
		}
	}
	if strings.HasPrefix(b.cgroup("west"), a.cgroup()+"/") {
		t.Error("one lab's cgroup lies in another's")
	}
}

func TestNamespaceNamesOfClustersNeverMeet(t *testing.T) {
	n := names{lab: "lab"}
	seen := map[string]string{}
	for _, cluster := range []string{"west", "west-n1", "west-cp", "n1", "cp"} {
		for role, ns := range map[string]string{"router": n.routerNS(cluster), "cp": n.controlNS(cluster), "n1": n.nodeNS(cluster, 1), "n11": n.nodeNS(cluster, 11)} {
			if other, ok := seen[ns]; ok {
				t.Errorf("%s/%s and %s share the namespace %q", cluster, role, other, ns)
			}
			seen[ns] = cluster + "/" + role
		}
	}
}
