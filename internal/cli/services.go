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
	var namespace string
	var asJSON bool
	c := &cobra.Command{
		Use:   "services",
		Short: "List mirrors and exported Services, with their problems",
		Long: `List the Services of linked clusters that are mirrored here, and the Services of this cluster that a label or a
ServiceExport exports. Problems say which of them are not mirrored or not exported, and why.

Here --namespace limits the list to Services of one namespace. In other commands it is Causeway's own namespace.`,
		Example: "  causeway services --context west\n  causeway services -n shop --json",
		GroupID: operator,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := a.connect(flags, a.stderr)
			if err != nil {
				return err
			}
			r, err := reportServices(c.Context(), cl, flags, namespace)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(a.stdout, r)
			}
			return a.printServices(r, namespace)
		},
	}
	flags.addBeside(c)
	c.Flags().StringVarP(&namespace, "namespace", "n", "",
		"list only Services of this `namespace` (default all namespaces)")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// servicesReport describes a cluster's Services. Fields may be added to its JSON, and
// none is renamed or removed.
type servicesReport struct {
	Mirrors  []mirrorReport  `json:"mirrors"`
	Exports  []exportReport  `json:"exports"`
	Problems []problemReport `json:"problems"`
}

// mirrorReport describes the mirror of a peer's Service.
type mirrorReport struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Link      string `json:"link"`
	// Source is the peer's Service, namespace/name.
	Source string `json:"source"`
	// Ready: the peer reports ready endpoints.
	Ready bool         `json:"ready"`
	Ports []portReport `json:"ports"`
}

// exportReport describes a Service of this cluster that a label or a ServiceExport
// exports.
type exportReport struct {
	Namespace string       `json:"namespace"`
	Name      string       `json:"name"`
	Ports     []portReport `json:"ports"`
	// Links are those whose peers see it.
	Links []string `json:"links"`
}

type portReport struct {
	Name        string `json:"name,omitempty"`
	Port        int32  `json:"port"`
	Protocol    string `json:"protocol"`
	AppProtocol string `json:"appProtocol,omitempty"`
}

// problemReport says why a Service is not mirrored or exported, wholly or in part.
type problemReport struct {
	v1alpha1.ServiceProblem
	// Links are those whose status has the problem.
	Links []string `json:"links"`
}

// reportServices describes the Services of one namespace, or of all if namespace is
// empty.
func reportServices(ctx context.Context, cl cluster, flags clusterFlags, namespace string) (servicesReport,
	error) {
	links, err := readLinks(ctx, cl, flags)
	if err != nil {
		return servicesReport{}, err
	}
	mirrors, err := reportMirrors(ctx, cl, namespace)
	if err != nil {
		return servicesReport{}, err
	}
	exports, err := reportExports(ctx, cl, links.list, flags.namespace, namespace)
	if err != nil {
		return servicesReport{}, err
	}
	problems := slices.DeleteFunc(reportProblems(links.list), func(p problemReport) bool {
		of, _, _ := strings.Cut(p.Service, "/")
		return namespace != "" && p.Service != "" && of != namespace
	})
	return servicesReport{mirrors, exports, problems}, nil
}

// reportMirrors describes the Services that have Causeway's labels and that a Link owns.
func reportMirrors(ctx context.Context, cl cluster, namespace string) ([]mirrorReport, error) {
	ours := client.MatchingLabels{v1alpha1.ManagedByLabel: v1alpha1.ManagedBy}
	within := client.InNamespace(namespace) // all, if it is empty
	var services corev1.ServiceList
	if err := cl.List(ctx, &services, ours, within); err != nil {
		return nil, fmt.Errorf("list mirrors: %w", err)
	}
	var endpoints discoveryv1.EndpointSliceList
	if err := cl.List(ctx, &endpoints, ours, within); err != nil {
		return nil, fmt.Errorf("list the EndpointSlices of mirrors: %w", err)
	}
	ready := map[client.ObjectKey]bool{}
	for _, s := range endpoints.Items {
		for _, e := range s.Endpoints {
			if e.Conditions.Ready != nil && *e.Conditions.Ready {
				ready[client.ObjectKey{Namespace: s.Namespace,
					Name: s.Labels[discoveryv1.LabelServiceName]}] = true
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
			Namespace: s.Namespace,
			Name:      s.Name,
			Link:      s.OwnerReferences[owner].Name,
			Source:    s.Annotations[v1alpha1.SourceAnnotation],
			Ready:     ready[client.ObjectKeyFromObject(s)],
			Ports:     reportPorts(s),
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

// reportProblems merges the problems of all Links, because a problem of an export is in
// each of their statuses.
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
		return cmp.Or(
			strings.Compare(a.Service, b.Service),
			strings.Compare(a.Reason, b.Reason),
			strings.Compare(a.Message, b.Message),
			slices.Compare(a.Links, b.Links),
		)
	})
	return out
}

func (a *app) printServices(r servicesReport, namespace string) error {
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
		where := "in this cluster"
		if namespace != "" {
			where = "in namespace " + namespace
		}
		fmt.Fprintf(a.stderr, "No Service is mirrored or exported %s. "+
			"Run `kubectl label service NAME causeway.dev/export=true` to export one.\n", where)
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

// ports returns "80/TCP(http),5432/TCP".
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
