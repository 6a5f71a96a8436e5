package lab

import "testing"

func TestSplitProcess(t *testing.T) {
	cases := map[string]struct {
		why         string
		where, name string
	}{
		"etcd":             {why: "without a node it is the control plane's", where: "cp", name: "etcd"},
		"west-1/kubelet":   {why: "a node's process is named like its log", where: "west-1", name: "kubelet"},
		"":                 {why: "nothing would be the whole control plane"},
		".":                {why: "the whole control plane is no process"},
		"..":               {why: "it would be the whole cluster"},
		"../..":            {why: "it would be the root of all cgroups: every process of the machine"},
		"west-1/..":        {why: "it would be the whole cluster"},
		"west-1/":          {why: "a node is switched off by lab power"},
		"/kubelet":         {why: "no node is named"},
		"west-1/a/../../b": {why: "a name has two parts"},
		"etcd\n":           {why: "a line's end is not part of a name"},
	}
	for process, c := range cases {
		t.Run(process, func(t *testing.T) {
			where, name, err := splitProcess(process)
			if (err != nil) != (c.name == "") || where != c.where || name != c.name {
				t.Errorf("got %q, %q, %v, want %q, %q: %s", where, name, err, c.where, c.name, c.why)
			}
		})
	}
}
