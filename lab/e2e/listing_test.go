//go:build e2e

package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/causeway-mesh/causeway/lab"
)

// everything lists, sorted, all of a cluster that an installation could leave something in: every object of every kind that its API serves, by name and
// by what it says, and of every node what its kernel and its folders hold. What changes by itself is left out, and nothing else.
func (c *cluster) everything(ctx context.Context) ([]string, error) {
	lines, err := c.objects(ctx)
	if err != nil {
		return nil, err
	}
	for _, node := range c.Nodes() {
		state, err := c.nodeState(ctx, node)
		if err != nil {
			return nil, err
		}
		lines = append(lines, state...)
	}
	slices.Sort(lines)
	return lines, nil
}

// objects lists every object of every kind, once, with its labels, annotations and a hash of all else but its status.
func (c *cluster) objects(ctx context.Context) ([]string, error) {
	kinds, err := c.api.Discovery().ServerPreferredResources()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, group := range kinds {
		for _, r := range group.APIResources {
			if !slices.Contains(r.Verbs, "list") || r.Name == "events" {
				continue
			}
			list, err := c.dyn.Resource(gvr(group.GroupVersion, r)).List(ctx, metav1.ListOptions{})
			if err != nil {
				return nil, fmt.Errorf("list %s: %w", r.Name, err)
			}
			for _, o := range list.Items {
				out = append(out, described(r.Name, &o))
			}
		}
	}
	return out, nil
}

// described is an object in one line.
func described(kind string, o *unstructured.Unstructured) string {
	said := fmt.Sprintf("%s %s/%s %v %v %v", kind, o.GetNamespace(), o.GetName(), o.GetLabels(), o.GetAnnotations(), o.GetFinalizers())
	if kind == "leases" {
		return said // what it says is who is alive
	}
	content := o.DeepCopy().Object
	delete(content, "metadata")
	delete(content, "status")
	raw, _ := json.Marshal(content) // of what came as JSON; keys are sorted
	return fmt.Sprintf("%s %.4x", said, sha256.Sum256(raw))
}

// nodeQuestions are what a node is asked: its answers must be the same whenever the same pods run. Interfaces and addresses of single pods are not asked for,
// and of kube-proxy's own rules only that they are there.
var nodeQuestions = map[string]string{
	"link":      "ip -br link | grep -v veth | awk '{print $1, $2}'",
	"address":   "ip -o addr | grep -v -e veth -e ' fe80:' | awk '{print $2, $3, $4}'",
	"rule":      "ip rule; ip -6 rule",
	"route":     "{ ip route show table all; ip -6 route show table all; } | grep -v -e veth -e fe80:",
	"tables":    "nft list tables",
	"ruleset":   "nft -s list ruleset | awk '/^table /{mine = !/kube-proxy/} mine'",
	"listening": "{ ss -Hltn; ss -Hlun; } | awk '{print $4}'",
	"sockets":   "ss -Hlxa | awk '{print $5}' | grep -i causeway",
	"mounts":    "awk '{print $5}' /proc/self/mountinfo",
	"files":     "find /run/causeway; find /run /var/lib/kubelet /var/log -path /run/lab -prune -o -iname '*causeway*' -print", // in /run/lab is the machine's
	"sysctl":    "sysctl -a | grep '^net' | grep -v -e veth -e conntrack_count",
}

// nodeState is a line for each line of each answer.
func (c *cluster) nodeState(ctx context.Context, node string) ([]string, error) {
	var out []string
	for about, question := range nodeQuestions {
		cmd, err := c.Exec(ctx, lab.OnNode(node), "sh", "-c", "{ "+question+"; } 2>/dev/null || true")
		if err != nil {
			return nil, err
		}
		said, err := output(cmd)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(said) {
			out = append(out, node+" "+about+": "+strings.Join(strings.Fields(line), " "))
		}
	}
	return out, nil
}
