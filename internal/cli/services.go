package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

func (a *app) services() *cobra.Command {
	var flags clusterFlags
	var asJSON bool
	c := &cobra.Command{
		Use:   "services",
		Short: "List Services that are mirrored here, and those that are exported from here",
		Long: `List the Services of linked clusters that are mirrored here, those of this cluster that are exported, by a label or a
ServiceExport, and which of them do not cross and why.`,
		Example: "  causeway services --context west\n  causeway services --json",
		GroupID: operator,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := a.connect(flags, a.stderr)
			if err != nil {
				return err
			}
			r, err := reportServices(c.Context(), cl, flags)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(a.stdout, r)
			}
			return a.printServices(r)
		},
	}
	flags.add(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// servicesReport is what is said of a cluster's Services. Its JSON only ever grows.
type servicesReport struct {
	Mirrors  []mirrorReport  `json:"mirrors"`
	Exports  []exportReport  `json:"exports"`
	Problems []problemReport `json:"problems"`
}

// mirrorReport is a Service of a peer's, as it stands here.
type mirrorReport struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Link      string `json:"link"`
	// Source is the peer's Service, namespace/name.
	Source string `json:"source"`
	// Ready is what the peer says of its endpoints.
	Ready bool         `json:"ready"`
	Ports []portReport `json:"ports"`
}

// exportReport is a Service of this cluster that somebody has asked to export.
type exportReport struct {
	Namespace string       `json:"namespace"`
	Name      string       `json:"name"`
	Ports     []portReport `json:"ports"`
	// Links are those that it crosses.
	Links []string `json:"links"`
}

type portReport struct {
	Name        string `json:"name,omitempty"`
	Port        int32  `json:"port"`
	Protocol    string `json:"protocol"`
	AppProtocol string `json:"appProtocol,omitempty"`
}

// problemReport says why a Service does not cross, wholly or in part.
type problemReport struct {
	v1alpha1.ServiceProblem
	// Links are those whose status says so.
	Links []string `json:"links"`
}

func reportServices(ctx context.Context, cl cluster, flags clusterFlags) (servicesReport, error) {
	links, err := readLinks(ctx, cl, flags)
	if err != nil {
		return servicesReport{}, err
	}
	mirrors, err := reportMirrors(ctx, cl)
	if err != nil {
		return servicesReport{}, err
	}
	exports, err := reportExports(ctx, cl, links.list, flags.namespace)
	if err != nil {
		return servicesReport{}, err
	}
	return servicesReport{mirrors, exports, reportProblems(links.list)}, nil
}

// reportMirrors lists the Services that a Link owns and that bear our labels, which the controller keeps on them.
func reportMirrors(ctx context.Context, cl cluster) ([]mirrorReport, error) {
	ours := client.MatchingLabels{v1alpha1.ManagedByLabel: v1alpha1.ManagedBy}
	var services corev1.ServiceList
	if err := cl.List(ctx, &services, ours); err != nil {
		return nil, fmt.Errorf("list mirrors: %w", err)
	}
	var endpoints discoveryv1.EndpointSliceList
	if err := cl.List(ctx, &endpoints, ours); err != nil {
		return nil, fmt.Errorf("list the EndpointSlices of mirrors: %w", err)
	}
	ready := map[client.ObjectKey]bool{}
	for _, s := range endpoints.Items {
		for _, e := range s.Endpoints {
			if e.Conditions.Ready != nil && *e.Conditions.Ready {
				ready[client.ObjectKey{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}] = true
			}
		}
	}
	out := []mirrorReport{}
	for i := range services.Items {
		s := &services.Items[i]
		owner := slices.IndexFunc(s.OwnerReferences, v1alpha1.IsLinkReference)
		if owner < 0 {
			continue
		}
		out = append(out, mirrorReport{
			Namespace: s.Namespace, Name: s.Name, Link: s.OwnerReferences[owner].Name, Source: s.Annotations[v1alpha1.SourceAnnotation],
			Ready: ready[client.ObjectKeyFromObject(s)], Ports: reportPorts(s),
		})
	}
	slices.SortFunc(out, func(a, b mirrorReport) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	return out, nil
}

func reportPorts(s *corev1.Service) []portReport {
	out := []portReport{}
	for _, p := range s.Spec.Ports {
		r := portReport{Name: p.Name, Port: p.Port, Protocol: string(cmp.Or(p.Protocol, corev1.ProtocolTCP))}
		if p.AppProtocol != nil {
			r.AppProtocol = *p.AppProtocol
		}
		out = append(out, r)
	}
	return out
}

// reportProblems joins what the Links' statuses say: a problem of an export is in each of them.
func reportProblems(links []v1alpha1.Link) []problemReport {
	by := map[v1alpha1.ServiceProblem][]string{}
	out := []problemReport{}
	for i := range links {
		for _, p := range links[i].Status.Problems {
			if _, known := by[p]; !known {
				out = append(out, problemReport{ServiceProblem: p})
			}
			by[p] = append(by[p], links[i].Name)
		}
	}
	for i := range out {
		out[i].Links = by[out[i].ServiceProblem]
	}
	slices.SortFunc(out, func(a, b problemReport) int {
		return cmp.Or(strings.Compare(a.Service, b.Service), strings.Compare(a.Reason, b.Reason), strings.Compare(a.Message, b.Message), slices.Compare(a.Links, b.Links))
	})
	return out
}

func (a *app) printServices(r servicesReport) error {
	var tables []func() error
	if len(r.Mirrors) > 0 {
		tables = append(tables, func() error { return a.printMirrors(r.Mirrors) })
	}
	if len(r.Exports) > 0 {
		tables = append(tables, func() error { return a.printExports(r.Exports) })
	}
	if len(r.Problems) > 0 {
		tables = append(tables, func() error { return a.printProblems(r.Problems) })
	}
	if len(tables) == 0 {
		fmt.Fprintln(a.stderr, "No Service is mirrored here, and none is labelled for export: `kubectl label service NAME causeway.dev/export=true` exports one.")
	}
	for i, table := range tables {
		if i > 0 {
			fmt.Fprintln(a.stdout)
		}
		if err := table(); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) printMirrors(mirrors []mirrorReport) error {
	var rows [][]string
	for _, m := range mirrors {
		ready := string(metav1.ConditionFalse)
		if m.Ready {
			ready = string(metav1.ConditionTrue)
		}
		rows = append(rows, []string{m.Namespace, m.Name, m.Link, dash(m.Source), ready, ports(m.Ports)})
	}
	return printTable(a.stdout, []string{"NAMESPACE", "MIRROR", "LINK", "SOURCE", "READY", "PORTS"}, rows)
}

func (a *app) printExports(exports []exportReport) error {
	var rows [][]string
	for _, e := range exports {
		rows = append(rows, []string{e.Namespace, e.Name, dash(strings.Join(e.Links, ",")), ports(e.Ports)})
	}
	return printTable(a.stdout, []string{"NAMESPACE", "EXPORTED", "LINKS", "PORTS"}, rows)
}

func (a *app) printProblems(problems []problemReport) error {
	for _, p := range problems {
		line := fmt.Sprintf("Service %s (%s): %s", p.Service, p.Reason, p.Message)
		if p.Service == "" {
			line = "Link " + strings.Join(p.Links, ", ") + ": " + p.Message
		}
		if _, err := fmt.Fprintln(a.stdout, line); err != nil {
			return err
		}
	}
	return nil
}

// ports is "80/TCP(http),5432/TCP".
func ports(list []portReport) string {
	var out []string
	for _, p := range list {
		text := fmt.Sprintf("%d/%s", p.Port, p.Protocol)
		if p.AppProtocol != "" {
			text += "(" + p.AppProtocol + ")"
		}
		out = append(out, text)
	}
	return dash(strings.Join(out, ","))
}
