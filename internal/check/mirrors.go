package check

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/ledger"
)

// catalogs tells whether the ledger holds what peers' catalogs and the Links' rules ask for.
func catalogs(f Facts) []Line {
	entries, damages := f.ledger()
	var lines []Line
	for _, d := range damages {
		lines = append(lines, fail(checkCatalog, "ledger", d.Service+": "+d.Message, "the controller repairs it within seconds: find out who else writes Ledgers"))
	}
	for _, l := range f.links() {
		lines = append(lines, bound(f.catalog(&l, entries[l.Spec.TrustDomain]))...)
	}
	return lines
}

// ledger decodes the ledger: its live entries by the peer's trust domain, sorted by source.
func (f Facts) ledger() (map[string][]ledger.Mirror, []ledger.Problem) {
	stored, damages := ledger.Decode(f.Ledgers)
	out := make(map[string][]ledger.Mirror)
	for _, m := range stored.Mirrors {
		if m.Released.IsZero() {
			out[m.TrustDomain] = append(out[m.TrustDomain], m.Mirror)
		}
	}
	return out, damages
}

func (f Facts) catalog(l *v1alpha1.Link, entries []ledger.Mirror) []Line {
	wants, complete := map[string]bool{}, false
	for _, r := range f.Replicas {
		for _, p := range r.Answer.Peers {
			if p.Link != l.Name || !p.Complete {
				continue
			}
			complete = true
			for _, w := range p.Wants {
				wants[w] = true
			}
		}
	}
	if !complete {
		return nil // the Link's condition says so
	}
	var lines []Line
	have := map[string]bool{}
	for _, m := range entries {
		have[sourceOf(m)] = true
		if !wants[sourceOf(m)] && m.AbsentSince.IsZero() {
			lines = append(lines, warn(checkCatalog, l.Name, fmt.Sprintf("mirror %s/%s stands for %s, which the peer does not export to us", m.MirrorNamespace, m.MirrorName, sourceOf(m)), "the leading controller takes it away within seconds: does one lead?"))
		}
	}
	for _, w := range slices.Sorted(maps.Keys(wants)) {
		if !have[w] && !excused(l, w) {
			lines = append(lines, warn(checkCatalog, l.Name, "the peer exports "+w+", which has no mirror yet", "the leading controller makes it within seconds: does one lead?"))
		}
	}
	if len(lines) == 0 {
		lines = append(lines, ok(checkCatalog, l.Name, "%s asked for, as many given", count(len(wants), "mirror")))
	}
	return lines
}

// excused reports whether the Link's status says of a Service that it has no mirror.
func excused(l *v1alpha1.Link, source string) bool {
	_, name, _ := strings.Cut(source, "/")
	name, _, _ = strings.Cut(name, "/")
	return slices.ContainsFunc(l.Status.Problems, func(p v1alpha1.ServiceProblem) bool {
		return p.Service == source || p.Service != "" && strings.HasSuffix(p.Service, "/"+name) || strings.Contains(p.Service, "/"+name+"-")
	})
}

func sourceOf(m ledger.Mirror) string {
	return strings.TrimSuffix(m.Namespace+"/"+m.Service+"/"+m.Hostname, "/")
}

// objects finds the cluster's Services, and the slices of each.
type objects struct {
	services map[string]*corev1.Service
	slices   map[string][]*discoveryv1.EndpointSlice
}

func (f Facts) objects() objects {
	o := objects{map[string]*corev1.Service{}, map[string][]*discoveryv1.EndpointSlice{}}
	for i := range f.Services {
		s := &f.Services[i]
		o.services[s.Namespace+"/"+s.Name] = s
	}
	for i := range f.Slices {
		s := &f.Slices[i]
		key := s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]
		o.slices[key] = append(o.slices[key], s)
	}
	return o
}

// mirrors holds each mirror's objects against the ledger, and finds those that are in none.
func mirrors(f Facts) []Line {
	entries, _ := f.ledger()
	o := f.objects()
	known := map[string]bool{}
	var lines []Line
	for _, l := range f.links() {
		var bad []Line
		good := 0
		for _, m := range entries[l.Spec.TrustDomain] {
			known[m.MirrorNamespace+"/"+m.MirrorName] = true
			if b := o.mirror(&l, m); len(b) > 0 {
				bad = append(bad, b...)
			} else {
				good++
			}
		}
		lines = append(lines, bound(bad)...)
		if good > 0 {
			lines = append(lines, ok(checkMirror, l.Name, "%s as the ledger says", stand(good)))
		}
	}
	for _, all := range entries {
		for _, m := range all {
			known[m.MirrorNamespace+"/"+m.MirrorName] = true
		}
	}
	return append(lines, bound(f.orphans(o, known))...)
}

func stand(n int) string {
	if n == 1 {
		return "1 mirror stands"
	}
	return fmt.Sprintf("%d mirrors stand", n)
}

// Hints about mirrors.
const (
	rename  = "rename or delete that Service, or change the Link's import template, and the mirror is made"
	written = "the leading controller writes it within seconds: does one lead, and may it? The rights lines and its log tell"
)

// mirror tells what is wrong with one mirror's objects.
func (o objects) mirror(l *v1alpha1.Link, m ledger.Mirror) []Line {
	key := m.MirrorNamespace + "/" + m.MirrorName
	svc := o.services[key]
	switch {
	case svc == nil:
		if excused(l, key) {
			return nil // said as the Link's problem
		}
		return []Line{fail(checkMirror, key, "the mirror of "+sourceOf(m)+" in "+l.Name+" is not there", written)}
	case !l.Owns(svc) && !marked(svc.Labels):
		return []Line{fail(checkMirror, key, "a Service that Causeway did not make has the mirror's name", rename)}
	case svc.DeletionTimestamp != nil:
		return []Line{warn(checkMirror, key, "the mirror is being deleted", "a finalizer of somebody else's may hold it: `kubectl -n "+m.MirrorNamespace+" get service "+m.MirrorName+" -o yaml` shows it")}
	case len(svc.Spec.Selector) > 0:
		return []Line{fail(checkMirror, key, "the mirror has a selector, so pods of this cluster take its calls", written)}
	case !samePorts(svc, m):
		return []Line{fail(checkMirror, key, "the mirror's ports are not those of the ledger", written)}
	}
	return o.endpoints(l, m, key)
}

// endpoints tells what is wrong with the slices of one mirror.
func (o objects) endpoints(l *v1alpha1.Link, m ledger.Mirror, key string) []Line {
	var ours []*discoveryv1.EndpointSlice
	for _, s := range o.slices[key] {
		if s.Labels[discoveryv1.LabelManagedBy] != clusterinfo.SliceManager {
			return []Line{fail(checkMirror, key, "EndpointSlice "+s.Name+", which Causeway did not make, leads the mirror's callers elsewhere, in plaintext",
				"delete it, or the Endpoints object of the mirror's name that it was made from")}
		}
		ours = append(ours, s)
	}
	if m.Headless && m.Hostname == "" {
		return nil // it lists the mirrors of pods
	}
	for _, vip := range m.VIPs {
		leads := slices.ContainsFunc(ours, func(s *discoveryv1.EndpointSlice) bool {
			return len(s.Endpoints) == 1 && slices.Equal(s.Endpoints[0].Addresses, []string{vip.String()})
		})
		if !leads {
			return []Line{fail(checkMirror, key, "no EndpointSlice leads to the mirror's virtual IP "+vip.String(), written)}
		}
	}
	return nil
}

func samePorts(svc *corev1.Service, m ledger.Mirror) bool {
	want, have := map[string]int32{}, map[string]int32{}
	for _, p := range m.Ports {
		if p.Route != 0 {
			want[p.Name+"/"+p.Protocol] = int32(p.Port)
		}
	}
	for _, p := range svc.Spec.Ports {
		have[p.Name+"/"+string(p.Protocol)] = p.Port
	}
	return maps.Equal(want, have)
}

// orphans tells of objects that look like a mirror's and are none that the ledger knows.
func (f Facts) orphans(o objects, known map[string]bool) []Line {
	var lines []Line
	for _, key := range slices.Sorted(maps.Keys(o.services)) {
		svc := o.services[key]
		name, ours := linkOf(svc)
		if !ours || known[key] || svc.DeletionTimestamp != nil || f.Link != "" && name != f.Link {
			continue
		}
		seen, hint := "it is marked as a mirror of "+name+", but the ledger knows no such", "if nobody calls it, `kubectl -n "+svc.Namespace+" delete service "+svc.Name+"`"
		if !slices.ContainsFunc(f.Links, func(l v1alpha1.Link) bool { return l.Name == name }) {
			seen = "it is marked as a mirror of " + name + ", and there is no such Link"
		}
		lines = append(lines, fail(checkMirror, key, seen, hint))
	}
	for _, key := range slices.Sorted(maps.Keys(o.slices)) {
		for _, s := range o.slices[key] {
			link := s.Labels[v1alpha1.LinkLabel]
			if s.Labels[discoveryv1.LabelManagedBy] != clusterinfo.SliceManager || link == "" || o.services[key] != nil || f.Link != "" && link != f.Link {
				continue
			}
			lines = append(lines, warn(checkMirror, s.Namespace+"/"+s.Name, "it is an EndpointSlice of a mirror that is gone", "Kubernetes' garbage collector removes it: does kube-controller-manager run?"))
		}
	}
	return lines
}

// linkOf is the Link that svc says it is a mirror of.
func linkOf(svc *corev1.Service) (name string, ours bool) {
	for _, o := range svc.OwnerReferences {
		if v1alpha1.IsLinkReference(o) {
			return o.Name, true
		}
	}
	return svc.Labels[v1alpha1.LinkLabel], marked(svc.Labels)
}

func marked(labels map[string]string) bool {
	return labels[v1alpha1.ManagedByLabel] == v1alpha1.ManagedBy && labels[v1alpha1.LinkLabel] != ""
}

// partial are the problems by which a Service crosses in part, or as somebody wanted.
var partial = []string{catalog.ProtocolUnsupported, catalog.HostNetworkUnsupported, catalog.MirrorNotExported, catalog.MetadataTooLarge, catalog.TooManyHostnames, catalog.ForeignEndpoint}

// services tells of each Service that does not cross.
func services(f Facts) []Line {
	var lines []Line
	for _, l := range f.links() {
		var bad []Line
		for _, p := range l.Status.Problems {
			on, state := p.Service, fail
			if on == "" {
				on = l.Name
			}
			if slices.Contains(partial, p.Reason) {
				state = warn
			}
			bad = append(bad, state(checkService, on, fmt.Sprintf("%s: %s", p.Reason, p.Message), problemHint(l.Name, p)))
		}
		lines = append(lines, bound(bad)...)
	}
	return lines
}

// problemHint is what to do about a Service that does not cross.
func problemHint(link string, p v1alpha1.ServiceProblem) string {
	namespace, _, _ := strings.Cut(p.Service, "/")
	switch p.Reason {
	case ledger.NameTaken:
		return rename
	case "NamespaceMissing":
		return "`kubectl create namespace " + namespace + "`, or let the Link's import rules create namespaces"
	case "NamespaceNotAllowed":
		return "name the namespace in the import rules of Link " + link + ", or export less there"
	case ledger.QuotaReached:
		return "raise the quotas in the import rules of Link " + link + ", or import less by its selector"
	case ledger.VIPsExhausted:
		return "install with a larger vipCIDR, or unexport something and wait a day"
	case "Rejected":
		return "an admission webhook or a quota of the namespace refuses the mirror: mend that, and it is written"
	case "VIPRangeOverlaps":
		return "install with another vipCIDR"
	case "Flapping":
		return "somebody else keeps writing the mirror: find out who, by its managed fields"
	}
	return "the message says what to change; `causeway services` lists what crosses"
}
