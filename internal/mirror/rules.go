package mirror

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/ledger"
	"github.com/causeway-mesh/causeway/internal/trafficsettings"
)

// Namespaces holds the labels of every namespace of this cluster, by name. A Link's
// namespaceSelector chooses no namespace that is not in it.
type Namespaces map[string]map[string]string

// Rules are the import rules of one Link, parsed once for many Services. They are
// immutable and safe for concurrent use.
type Rules struct {
	link     string
	own      string // Causeway's namespace
	imports  bool
	template string

	services   labels.Selector
	namespaces labels.Selector
	listed     map[string]string // our namespace by the peer's; nil: every namespace
	targets    map[string]bool   // our namespaces that the Link lists

	createNamespaces            bool
	copyLabels, copyAnnotations []string
	quotas                      v1alpha1.ImportQuotas
	defaults                    trafficsettings.Defaults
}

// NewRules parses the import rules of a Link. own is Causeway's namespace. Rules whose
// selectors cannot be parsed let nothing in and come with a Problem. A Link without
// import rules wants nothing.
func NewRules(link *v1alpha1.Link, own string) (*Rules, *Problem) {
	r := &Rules{link: link.Name, own: own, services: labels.Nothing(), namespaces: labels.Nothing()}
	spec := link.Spec.Import
	if spec == nil {
		return r, nil
	}
	r.imports = true
	r.template = cmp.Or(spec.Template, v1alpha1.DefaultTemplate)
	r.createNamespaces = spec.CreateNamespaces
	r.copyLabels, r.copyAnnotations = spec.CopyLabels, spec.CopyAnnotations
	r.quotas = quotasOf(spec.Quotas)
	r.defaults = defaultsOf(spec.Defaults)
	if len(spec.Namespaces) > 0 {
		r.listed = make(map[string]string, len(spec.Namespaces))
		r.targets = make(map[string]bool, len(spec.Namespaces))
	}
	for _, n := range spec.Namespaces {
		here := cmp.Or(n.As, n.Name)
		r.listed[n.Name], r.targets[here] = here, true
	}
	services, err := catalog.SelectServices(spec.Services, spec.Selector)
	namespaces, err2 := catalog.SelectNamespaces(spec.NamespaceSelector)
	if err := cmp.Or(err, err2); err != nil {
		message := fmt.Sprintf("the Link's import rules let nothing in: %v", err)
		return r, &Problem{Reason: InvalidSelector, Message: message}
	}
	r.services, r.namespaces = services, namespaces
	return r, nil
}

// quotasOf returns q with defaults for what it does not set.
func quotasOf(q *v1alpha1.ImportQuotas) v1alpha1.ImportQuotas {
	if q == nil {
		q = &v1alpha1.ImportQuotas{}
	}
	return v1alpha1.ImportQuotas{
		Services:             cmp.Or(q.Services, v1alpha1.DefaultQuotaServices),
		ServicesPerNamespace: cmp.Or(q.ServicesPerNamespace, v1alpha1.DefaultQuotaServicesPerNamespace),
		Ports:                cmp.Or(q.Ports, v1alpha1.DefaultQuotaPorts),
		Hostnames:            cmp.Or(q.Hostnames, v1alpha1.DefaultQuotaHostnames),
		VIPPercent:           cmp.Or(q.VIPPercent, v1alpha1.DefaultQuotaVIPPercent),
		Namespaces:           cmp.Or(q.Namespaces, v1alpha1.DefaultQuotaNamespaces),
	}
}

// defaultsOf returns the traffic settings that the Link's mirrors have by default.
func defaultsOf(d *v1alpha1.ImportDefaults) trafficsettings.Defaults {
	if d == nil {
		return trafficsettings.Defaults{}
	}
	out := trafficsettings.Defaults{Opaque: d.ProtocolDetection == v1alpha1.ProtocolDetectionDisabled}
	if d.Timeout != nil {
		out.Timeout = d.Timeout.Duration
	}
	if d.Retries != nil {
		out.Retries = cmp.Or(int(*d.Retries), trafficsettings.None)
	}
	words := make([]string, len(d.RetryOn))
	for i, c := range d.RetryOn {
		words[i] = string(c)
	}
	out.RetryOn, _ = trafficsettings.ParseRetryOn(words)
	return out
}

// Defaults returns the traffic settings that apply where an exported Service asks for
// nothing.
func (r *Rules) Defaults() trafficsettings.Defaults { return r.defaults }

// Imports reports whether the Link has import rules. Without them nothing of the peer is
// wanted, so that even an incomplete catalog deletes the Link's mirrors.
func (r *Rules) Imports() bool { return r.imports }

// Quotas returns what the ledger has to bound for the Link.
func (r *Rules) Quotas() ledger.Quotas {
	return ledger.Quotas{
		Mirrors:      int(r.quotas.Services),
		PerNamespace: int(r.quotas.ServicesPerNamespace),
		Hostnames:    int(r.quotas.Hostnames),
		VIPPercent:   int(r.quotas.VIPPercent),
	}
}

// Wants decides what the rules make of one Service of the peer: its mirror, followed by
// the mirrors of its named pods, or nothing. The Problem, if any, says what is left out
// and why. Wants is pure.
func (r *Rules) Wants(s catalog.Service, namespaces Namespaces) ([]ledger.MirrorWant, *Problem) {
	if !r.imports || !r.services.Matches(labels.Set(s.Labels)) {
		return nil, nil
	}
	namespace, ok := r.Target(s.Namespace)
	if !ok {
		return nil, nil
	}
	if reason, message := r.refuses(namespace, namespaces); reason != "" {
		if message == "" { // the Link's owner has decided so
			return nil, nil
		}
		return nil, &Problem{Service: s.Key().String(), Reason: reason, Message: message}
	}
	w := r.want(namespace, s)
	var p *Problem
	switch {
	case len(w.Ports) == 0:
		return nil, &Problem{Service: s.Key().String(), Reason: NoTCPPort, Message: noCarriedPort}
	case len(w.Ports) > int(r.quotas.Ports):
		message := fmt.Sprintf("the Service has more TCP ports than the Link's import quota of %d: "+
			"it is not mirrored", r.quotas.Ports)
		return nil, &Problem{Service: s.Key().String(), Reason: TooManyPorts, Message: message}
	case len(w.Ports) < len(s.Ports):
		p = &Problem{Service: s.Key().String(), Reason: ProtocolUnsupported, Message: onlyTCP}
	}
	return r.companions(w, s), p
}

// Target returns our namespace for mirrors of the peer's; false: the rules leave it out.
func (r *Rules) Target(namespace string) (string, bool) {
	if r.listed == nil {
		return namespace, true
	}
	to, ok := r.listed[namespace]
	return to, ok
}

// allowed reports whether mirrors may be made in one of our namespaces. Causeway's own
// namespace and those of Kubernetes must be listed by name.
func (r *Rules) allowed(namespace string) bool {
	return r.targets[namespace] || namespace != r.own && !strings.HasPrefix(namespace, "kube-")
}

// refuses says why nothing is mirrored into one of our namespaces; no reason: it may be.
// A reason without a message is the decision of the Link's owner and not a problem.
func (r *Rules) refuses(namespace string, namespaces Namespaces) (reason, message string) {
	if !r.allowed(namespace) {
		return NamespaceNotAllowed, notAllowed
	}
	if r.namespaces.Empty() {
		return "", ""
	}
	known, exists := namespaces[namespace]
	switch {
	case !exists:
		return NamespaceMissing, notChosen
	case !r.namespaces.Matches(labels.Set(known)):
		return NamespaceNotAllowed, ""
	}
	return "", ""
}

func (r *Rules) want(namespace string, s catalog.Service) ledger.MirrorWant {
	w := ledger.MirrorWant{
		Namespace:       s.Namespace,
		Service:         s.Name,
		MirrorNamespace: namespace,
		MirrorName:      catalog.MirrorName(r.template, s.Namespace, s.Name, r.link),
		Identities:      s.Identities,
		Headless:        s.Headless,
		Named:           len(s.Hosts) > 0,
		AffinitySeconds: s.SessionAffinitySeconds,
		Settings:        s.Settings,
	}
	for _, p := range s.Ports {
		if p.Carried() {
			w.Ports = append(w.Ports, ledger.PortWant{
				Name: p.Name, Protocol: p.Protocol, Port: p.Port, AppProtocol: p.AppProtocol,
				Declared: p.Declared, Route: p.Route,
			})
		}
	}
	return w
}

// companions returns w and the wants of the Service's named pods. The mirror of a named
// pod is an ordinary one: the pod's name makes its name as a Service's would.
func (r *Rules) companions(w ledger.MirrorWant, s catalog.Service) []ledger.MirrorWant {
	out := make([]ledger.MirrorWant, 0, 1+len(s.Hosts))
	out = append(out, w)
	w.Headless, w.Named, w.AffinitySeconds = false, false, 0
	for _, h := range s.Hosts {
		w.Hostname, w.MirrorName = h.Name, catalog.MirrorName(r.template, s.Namespace, h.Name, r.link)
		out = append(out, w)
	}
	return out
}

// Want returns the mirror of a ledger entry as it should be. s is what the peer says of
// the source now; nil: the peer has said nothing since this process began, or no longer
// exports it. The mirrors of named pods copy no labels.
func (r *Rules) Want(entry ledger.Mirror, s *catalog.Service) *Want {
	w := &Want{Entry: entry, Ready: true}
	if s == nil {
		return w
	}
	w.Known = true
	if entry.Hostname != "" {
		w.Ready = slices.Contains(s.Hosts, catalog.Host{Name: entry.Hostname, Ready: true})
		return w
	}
	w.Ready = s.Ready
	if len(r.copyLabels) > 0 {
		w.Labels = catalog.Copied(s.Labels, r.copyLabels)
	}
	if len(r.copyAnnotations) > 0 {
		w.Annotations = catalog.Copied(s.Annotations, r.copyAnnotations)
	}
	return w
}
