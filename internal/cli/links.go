package cli

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/check"
	"github.com/causeway-mesh/causeway/internal/link"
)

func (a *app) links() *cobra.Command {
	var flags clusterFlags
	var asJSON, askNodes bool
	c := &cobra.Command{
		Use:   "links",
		Short: "List Links, their conditions, and what is wrong with them",
		Long: `List the cluster's Links with their conditions, and below them what is wrong and what to do.

With --nodes the command also asks each node's agent, through the controllers, which Links the node
cannot use. This takes some seconds, and needs the right to forward ports to pods of Causeway's namespace.

The exit code is 0 whatever state they are in.`,
		Example: "  causeway links --context west\n  causeway links --nodes\n  causeway links --json",
		GroupID: operator,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := a.connect(flags, a.stderr)
			if err != nil {
				return err
			}
			links, err := readLinks(c.Context(), cl, flags)
			if err != nil {
				return err
			}
			reports := make([]linkReport, 0, len(links.list)) // [] in JSON, not null
			for i := range links.list {
				reports = append(reports, reportLink(&links.list[i], flags.namespace))
			}
			if askNodes {
				replicas, err := cl.askControllers(c.Context(), flags.namespace)
				if err != nil {
					return flags.in(err)
				}
				for _, r := range replicas {
					if r.Error != "" {
						fmt.Fprintf(a.stderr, "controller %s did not answer for its nodes: %s\n", r.Pod, r.Error)
					}
				}
				addUnusable(reports, replicas)
			}
			if asJSON {
				return printJSON(a.stdout, map[string]any{"links": reports})
			}
			return a.printLinks(reports)
		},
	}
	flags.add(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&askNodes, "nodes", false, "also ask each node which Links it cannot use")
	return c
}

// linkReport is what is said of one Link. Its JSON only ever grows.
type linkReport struct {
	Name        string                    `json:"name"`
	TrustDomain string                    `json:"trustDomain"`
	Gateways    []string                  `json:"gateways"`
	Conditions  []conditionReport         `json:"conditions"`
	Mirrors     int32                     `json:"mirrors"`
	Exports     int32                     `json:"exports"`
	PeerVersion string                    `json:"peerVersion"`
	Problems    []v1alpha1.ServiceProblem `json:"problems"`
	// Unusable are the nodes that cannot use the Link; absent without --nodes.
	Unusable []check.UnusableNode `json:"unusable,omitempty"`
}

// addUnusable adds to each report the nodes that cannot use the Link.
func addUnusable(reports []linkReport, replicas []check.Replica) {
	for i := range reports {
		reports[i].Unusable = check.UnusableNodes(replicas, reports[i].Name)
	}
}

// conditionReport is a condition, with what to do if it is not True.
type conditionReport struct {
	Type    string `json:"type"`
	Status  string `json:"status"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// linkConditions are all conditions of a Link, in the order in which they are shown.
var linkConditions = []string{
	v1alpha1.LinkReady, v1alpha1.LinkConnected, v1alpha1.LinkTrusted, v1alpha1.LinkSynced, v1alpha1.LinkGatewayReachable,
}

func reportLink(l *v1alpha1.Link, namespace string) linkReport {
	r := linkReport{
		Name: l.Name, TrustDomain: l.Spec.TrustDomain, Gateways: append([]string{}, l.Spec.Gateways...),
		Mirrors: l.Status.Mirrors, Exports: l.Status.Exports, PeerVersion: l.Status.PeerVersion,
		Problems: append([]v1alpha1.ServiceProblem{}, l.Status.Problems...),
	}
	for _, kind := range linkConditions {
		c := conditionOf(l, kind)
		said := conditionReport{Type: kind, Status: string(c.Status), Reason: c.Reason, Message: c.Message}
		if c.Status != metav1.ConditionTrue {
			said.Hint = conditionHint(l, c, namespace)
		}
		r.Conditions = append(r.Conditions, said)
	}
	return r
}

// conditionHint is what to do about a condition that is not True; "" where its message says it, or where it follows
// from another condition.
func conditionHint(l *v1alpha1.Link, c metav1.Condition, namespace string) string {
	switch c.Reason {
	case notLookedAt:
		return fmt.Sprintf("does the controller run? `kubectl -n %s get pods` tells", namespace)
	case "Suspended":
		return "set spec.suspend to false to end it"
	case string(link.DuplicatePeer):
		return "delete the older Link to use this one, or this one if it is not wanted"
	case string(link.BadRoot), string(link.BadLinkKey), string(link.BadGateway):
		return "apply what `causeway identity` prints in the peer, or run `causeway link` again"
	case "Disconnected":
		return fmt.Sprintf("`causeway links` in the peer shows the other side; `kubectl -n %s logs deployment/causeway-controller` tells more", namespace)
	case "ReplicaDisconnected":
		return fmt.Sprintf("`kubectl -n %s get pods -o wide` shows that replica's node: what does its network lack that the others' have?", namespace)
	case "WaitingForPeer":
		return "the peer must dial: `causeway links` there shows why it does not"
	case "NoAddress":
		return "in a link of one direction, in which the peer calls and is not called, this is as it should be; otherwise the peer's gateway needs an address that can be dialled from here"
	case "PeerUnreachable":
		return fmt.Sprintf("if the peer's Services are not wanted here, say so: `kubectl patch link %s --type=json -p '[{\"op\":\"remove\",\"path\":\"/spec/import\"}]'`", l.Name)
	case "DNS":
		return "the name must resolve in this cluster's pods; an IP in spec.gateways needs no DNS"
	case "Unreachable":
		return "from this cluster's pods and nodes TCP to these addresses must be open; `causeway identity` in the peer prints those of today"
	}
	return ""
}

func (a *app) printLinks(reports []linkReport) error {
	if len(reports) == 0 {
		fmt.Fprintln(a.stderr, "This cluster has no Links: `causeway link` makes one.")
		return nil
	}
	var rows [][]string
	for _, r := range reports {
		row := []string{r.Name, r.TrustDomain}
		for _, c := range r.Conditions {
			row = append(row, c.Status)
		}
		rows = append(rows, append(row, strconv.Itoa(int(r.Mirrors)), strconv.Itoa(int(r.Exports)), dash(r.PeerVersion)))
	}
	header := []string{
		"NAME", "TRUST DOMAIN", "READY", "CONNECTED", "TRUSTED", "SYNCED", "GATEWAY REACHABLE", "MIRRORS", "EXPORTS", "PEER VERSION",
	}
	err := printTable(a.stdout, header, rows)
	if err != nil {
		return err
	}
	var faults strings.Builder
	for _, r := range reports {
		r.faults(&faults)
	}
	if faults.Len() > 0 {
		_, err = fmt.Fprintf(a.stdout, "\n%s", faults.String())
	}
	return err
}

// faults writes a line for each condition that is not True, for gateway addresses that do not
// answer, and for each problem of a Service.
func (r linkReport) faults(out *strings.Builder) {
	if !slices.ContainsFunc(r.Conditions, func(c conditionReport) bool { return c.Reason != notLookedAt }) {
		fmt.Fprintf(out, "%s: %s\n  hint: %s\n", r.Name, r.Conditions[0].Message, r.Conditions[0].Hint)
		return
	}
	for _, c := range r.Conditions {
		if c.Reason == link.PartlyReachable {
			fmt.Fprintf(out, "%s: %s\n", r.Name, c.Message)
		}
		if c.Status == string(metav1.ConditionTrue) {
			continue
		}
		fmt.Fprintf(out, "%s: not %s (%s): %s\n", r.Name, c.Type, c.Reason, c.Message)
		if c.Hint != "" {
			fmt.Fprintf(out, "  hint: %s\n", c.Hint)
		}
		if c.Type == v1alpha1.LinkReady && c.Status == string(metav1.ConditionFalse) && c.Reason != "Suspended" {
			break // the other conditions follow from it
		}
	}
	for _, n := range r.Unusable {
		fmt.Fprintf(out, "%s: unusable on node %s\n", r.Name, n)
	}
	for _, p := range r.Problems {
		if p.Reason == link.More {
			fmt.Fprintf(out, "%s: %s\n", r.Name, p.Message)
			continue
		}
		if p.Service == "" { // of the whole Link
			fmt.Fprintf(out, "%s: %s: %s\n", r.Name, p.Reason, p.Message)
			continue
		}
		fmt.Fprintf(out, "%s: Service %s (%s): %s\n", r.Name, p.Service, p.Reason, p.Message)
	}
}
