package cli

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/ledger"
)

func (a *app) ledger() *cobra.Command {
	var flags clusterFlags
	var asJSON bool
	c := &cobra.Command{
		Use:   "ledger",
		Short: "Print what the ledger holds: virtual IPs, listener ports and route ids",
		Long: `Print the entries of the Ledger objects, which are compressed: the virtual IPs and ports of each mirror, and the route ids
of each exported Service. Released entries keep what they had for a day.`,
		Example: "  causeway ledger --context west\n  causeway ledger --json",
		GroupID: operator,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := a.connect(flags, a.stderr)
			if err != nil {
				return err
			}
			r, err := reportLedger(c.Context(), cl, flags.namespace)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(a.stdout, r)
			}
			return a.printLedger(r)
		},
	}
	flags.add(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// ledgerReport is the content of the ledger. Its JSON only ever grows.
type ledgerReport struct {
	Epoch      string                `json:"epoch"`
	Generation int64                 `json:"generation"`
	Ranges     []string              `json:"ranges"`
	BlockSize  int                   `json:"blockSize"`
	Mirrors    []ledgerMirrorReport  `json:"mirrors"`
	Exports    []ledgerExportReport  `json:"exports"`
	Problems   []ledgerProblemReport `json:"problems"`
}

// ledgerMirrorReport is one entry of a mirror.
type ledgerMirrorReport struct {
	TrustDomain string `json:"trustDomain"`
	Object      string `json:"object"`
	Slot        int    `json:"slot"`
	// Source is the peer's Service, and /hostname of a pod.
	Source    string             `json:"source"`
	Namespace string             `json:"namespace"`
	Name      string             `json:"name"`
	VIPs      []string           `json:"vips"`
	Ports     []ledgerPortReport `json:"ports"`
	// Identities are SPIFFE IDs.
	Identities  []string `json:"identities"`
	Headless    bool     `json:"headless,omitempty"`
	Affinity    uint32   `json:"affinitySeconds,omitempty"`
	Since       string   `json:"since,omitempty"`
	AbsentSince string   `json:"absentSince,omitempty"`
	Released    string   `json:"released,omitempty"`
}

type ledgerPortReport struct {
	Name        string `json:"name,omitempty"`
	Protocol    string `json:"protocol"`
	Listener    int    `json:"listener"`
	Port        uint16 `json:"port,omitempty"`
	AppProtocol string `json:"appProtocol,omitempty"`
	Route       uint32 `json:"route,omitempty"`
}

// ledgerExportReport is one entry of an export.
type ledgerExportReport struct {
	Object    string              `json:"object"`
	Namespace string              `json:"namespace"`
	Name      string              `json:"name"`
	Routes    []ledgerRouteReport `json:"routes"`
	Links     []string            `json:"links"`
	Since     string              `json:"since,omitempty"`
	Released  string              `json:"released,omitempty"`
}

type ledgerRouteReport struct {
	Port     string `json:"port,omitempty"`
	Protocol string `json:"protocol"`
	Route    uint32 `json:"route"`
}

type ledgerProblemReport struct {
	Service string `json:"service,omitempty"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

func reportLedger(ctx context.Context, cl cluster, namespace string) (ledgerReport, error) {
	var list v1alpha1.LedgerList
	if err := cl.List(ctx, &list, client.InNamespace(namespace)); err != nil {
		return ledgerReport{}, fmt.Errorf("list Ledgers: %w", err)
	}
	stored, problems := ledger.Decode(list.Items)
	r := ledgerReport{
		Epoch: stored.Epoch, Generation: stored.Generation, BlockSize: stored.BlockSize,
		Ranges: []string{}, Mirrors: []ledgerMirrorReport{}, Exports: []ledgerExportReport{},
		Problems: []ledgerProblemReport{},
	}
	for _, p := range stored.Ranges {
		r.Ranges = append(r.Ranges, p.String())
	}
	for i := range stored.Mirrors {
		r.Mirrors = append(r.Mirrors, reportLedgerMirror(&stored.Mirrors[i]))
	}
	for i := range stored.Exports {
		r.Exports = append(r.Exports, reportLedgerExport(&stored.Exports[i]))
	}
	for _, p := range problems {
		r.Problems = append(r.Problems, ledgerProblemReport{p.Service, p.Reason, p.Message})
	}
	return r, nil
}

func reportLedgerMirror(m *ledger.StoredMirror) ledgerMirrorReport {
	out := ledgerMirrorReport{
		TrustDomain: m.TrustDomain,
		Object:      m.Object,
		Slot:        m.Slot,
		Source:      m.Source.String(),
		Namespace:   m.MirrorNamespace,
		Name:        m.MirrorName,
		VIPs:        []string{},
		Ports:       []ledgerPortReport{},
		Identities:  append([]string{}, m.Identities...),
		Headless:    m.Headless,
		Affinity:    m.AffinitySeconds,
		Since:       stamp(m.Since),
		AbsentSince: stamp(m.AbsentSince),
		Released:    stamp(m.Released),
	}
	for _, a := range m.VIPs {
		out.VIPs = append(out.VIPs, a.String())
	}
	for _, p := range m.Ports {
		out.Ports = append(out.Ports, ledgerPortReport{
			p.Name, p.Protocol, ledger.FirstListener + int(p.Index), p.Port, p.AppProtocol, p.Route,
		})
	}
	return out
}

func reportLedgerExport(e *ledger.StoredExport) ledgerExportReport {
	out := ledgerExportReport{
		Object:    e.Object,
		Namespace: e.Key.Namespace,
		Name:      e.Key.Service,
		Routes:    []ledgerRouteReport{},
		Links:     append([]string{}, e.Links...),
		Since:     stamp(e.Since),
		Released:  stamp(e.Released),
	}
	ports := slices.SortedFunc(maps.Keys(e.Routes), func(x, y ledger.ExportPort) int {
		return cmp.Compare(e.Routes[x], e.Routes[y])
	})
	for _, p := range ports {
		out.Routes = append(out.Routes, ledgerRouteReport{p.Name, p.Protocol, e.Routes[p]})
	}
	return out
}

// stamp is a time as JSON has it; empty: none.
func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

func (a *app) printLedger(r ledgerReport) error {
	for _, p := range r.Problems {
		fmt.Fprintf(a.stderr, "%s: %s\n", p.Reason, p.Message)
	}
	if len(r.Mirrors)+len(r.Exports) == 0 {
		fmt.Fprintln(a.stderr, "The ledger is empty: nothing was mirrored or exported yet.")
		return nil
	}
	var rows [][]string
	for _, m := range r.Mirrors {
		var ports []string
		for _, p := range m.Ports {
			text := strconv.Itoa(p.Listener)
			if p.Route != 0 {
				text = fmt.Sprintf("%d:%d(%s)", p.Listener, p.Port, cmp.Or(p.Name, p.Protocol))
			}
			ports = append(ports, text)
		}
		rows = append(rows, []string{
			m.TrustDomain, dash(m.Source), m.Namespace + "/" + m.Name, dash(strings.Join(m.VIPs, ",")),
			dash(strings.Join(ports, ",")), dash(m.Released),
		})
	}
	if len(rows) > 0 {
		if err := printTable(a.stdout, []string{"PEER", "SOURCE", "MIRROR", "VIPS", "LISTENERS",
			"RELEASED"}, rows); err != nil {
			return err
		}
	}
	if len(r.Exports) == 0 {
		return nil
	}
	if len(rows) > 0 {
		fmt.Fprintln(a.stdout)
	}
	rows = nil
	for _, e := range r.Exports {
		var routes []string
		for _, p := range e.Routes {
			routes = append(routes, fmt.Sprintf("%d(%s)", p.Route, cmp.Or(p.Port, p.Protocol)))
		}
		rows = append(rows, []string{e.Namespace + "/" + e.Name, dash(strings.Join(routes, ",")),
			dash(strings.Join(e.Links, ",")), dash(e.Released)})
	}
	return printTable(a.stdout, []string{"EXPORTED", "ROUTES", "LINKS", "RELEASED"}, rows)
}
