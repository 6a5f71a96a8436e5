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
	"github.com/causeway-mesh/causeway/internal/link"
	"github.com/causeway-mesh/causeway/internal/mirror"
)

// catalogs reports whether the ledger holds the mirrors that peers' catalogs and the
// Links' rules ask for, and whether it is damaged.
func catalogs(f Facts) []Result {
	contents, damages := ledger.Decode(f.Ledgers)
	var results []Result
	for _, d := range damages {
		results = append(results, fail(checkCatalog, "ledger", d.Service+": "+d.Message,
			"the controller repairs it within seconds: find out who else writes Ledgers"))
	}
	for _, l := range f.links() {
		results = append(results, bound(f.catalog(&l, contents.Live(l.Spec.TrustDomain)))...)
	}
	return results
}

// wants returns the mirrors that the controllers want for a Link: their names by source.
// A name is empty if the controller does not report it. It reports false if no controller
// has the peer's whole catalog.
func (f Facts) wants(link string) (wants map[string]string, complete bool) {
	wants = make(map[string]string)
	for _, r := range f.Replicas {
		for _, p := range r.Answer.Peers {
			if p.Link != link || !p.Complete {
				continue
			}
			complete = true
			for _, source := range p.Wants {
				wants[source] = p.WantNames[source]
			}
		}
	}
	return wants, complete
}

func (f Facts) catalog(l *v1alpha1.Link, entries []ledger.Mirror) []Result {
	wants, complete := f.wants(l.Name)
	if !complete {
		return nil // the Link's condition Synced says so
	}
	var results []Result
	have := map[string]bool{}
	for _, m := range entries {
		source := sourceOf(m)
		have[source] = true
		if _, wanted := wants[source]; !wanted && m.AbsentSince.IsZero() {
			results = append(results, warn(checkCatalog, l.Name, fmt.Sprintf(
				"mirror %s/%s is for %s, which the peer does not export to this cluster",
				m.MirrorNamespace, m.MirrorName, source), leaderHint(f, "deletes")))
		}
	}
	explained := 0
	for _, source := range slices.Sorted(maps.Keys(wants)) {
		switch {
		case have[source]:
		case hasProblem(l, source, wants[source]):
			explained++
		default:
			results = append(results, warn(checkCatalog, l.Name,
				"the peer exports "+source+", which has no mirror yet", leaderHint(f, "creates")))
		}
	}
	if explained > 0 {
		results = append(results, warn(checkCatalog, l.Name, fmt.Sprintf(
			"%d of %s cannot exist", explained, count(len(wants), "wanted mirror")),
			"see the service results: each says why and what to do"))
	}
	if len(results) == 0 {
		results = append(results, ok(checkCatalog, l.Name, "the ledger has each of %s",
			count(len(wants), "wanted mirror")))
	}
	return results
}

func leaderHint(f Facts, does string) string {
	return fmt.Sprintf("the leading controller %s the mirror within seconds: "+
		"`kubectl -n %s get lease causeway-controller` shows whether one leads, and its log says "+
		"more", does, f.Namespace)
}

// blocking are the reasons of problems because of which a mirror does not exist.
var blocking = []string{
	ledger.NameTaken,
	ledger.PortsExhausted,
	ledger.ContentTooLarge,
	ledger.QuotaReached,
	ledger.VIPsExhausted,
	mirror.NamespaceMissing, mirror.Rejected,
}

// hasProblem reports whether a problem in the Link's status names the source or the
// mirror and explains why the mirror does not exist. Problems that name no Service
// explain none.
func hasProblem(l *v1alpha1.Link, source, name string) bool {
	parts := strings.Split(source, "/")
	whole := strings.Join(parts[:min(2, len(parts))], "/") // without a hostname
	return slices.ContainsFunc(l.Status.Problems, func(p v1alpha1.ServiceProblem) bool {
		named := p.Service == source || p.Service == whole || p.Service == name
		return p.Service != "" && named && slices.Contains(blocking, p.Reason)
	})
}

func sourceOf(m ledger.Mirror) string {
	return strings.TrimSuffix(m.Namespace+"/"+m.Service+"/"+m.Hostname, "/")
}

// objects are the cluster's Services, and the EndpointSlices of each, by namespace/name.
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

// mirrors compares each mirror's objects with the ledger, and finds objects that the
// ledger does not have.
func mirrors(f Facts) []Result {
	contents, _ := ledger.Decode(f.Ledgers)
	o := f.objects()
	known := map[string]bool{}
	for _, m := range contents.Mirrors {
		known[m.MirrorNamespace+"/"+m.MirrorName] = known[m.MirrorNamespace+"/"+m.MirrorName] ||
			m.Released.IsZero()
	}
	var results []Result
	for _, l := range f.links() {
		if isStandby(&l) {
			continue // the older Link has the mirrors
		}
		var bad []Result
		good := 0
		for _, m := range contents.Live(l.Spec.TrustDomain) {
			if r, wrong := o.mirror(&l, m); wrong {
				bad = append(bad, r)
			} else {
				good++
			}
		}
		results = append(results, bound(bad)...)
		if good > 0 {
			results = append(results, ok(checkMirror, l.Name, "%s as the ledger says", agreeing(good)))
		}
	}
	return append(results, bound(f.orphans(o, known))...)
}

func agreeing(n int) string {
	if n == 1 {
		return "1 mirror is"
	}
	return fmt.Sprintf("%d mirrors are", n)
}

// Hints about mirrors.
const (
	renameHint = "rename or delete that Service, or change the template in the Link's import rules"
	repairHint = "the leading controller repairs it within seconds: if it does not, see the rights " +
		"results and its log"
)

// mirror returns what is wrong with one mirror's objects. It reports false if nothing is.
func (o objects) mirror(l *v1alpha1.Link, m ledger.Mirror) (Result, bool) {
	key := m.MirrorNamespace + "/" + m.MirrorName
	svc := o.services[key]
	switch {
	case svc == nil && hasProblem(l, sourceOf(m), key):
		return Result{}, false // services reports it
	case svc == nil:
		return fail(checkMirror, key, "the mirror of "+sourceOf(m)+" in "+l.Name+" does not exist",
			repairHint), true
	case !l.Owns(svc) && !marked(svc.Labels):
		return fail(checkMirror, key, "a Service that Causeway did not make has the mirror's name",
			renameHint), true
	case svc.DeletionTimestamp != nil:
		return warn(checkMirror, key, "the mirror is being deleted", fmt.Sprintf(
			"another controller's finalizer may delay it: `kubectl -n %s get service %s -o yaml` shows it",
			m.MirrorNamespace, m.MirrorName)), true
	case len(svc.Spec.Selector) > 0:
		return fail(checkMirror, key,
			"the mirror has a selector, so pods of this cluster receive its connections",
			repairHint), true
	case !samePorts(svc, m):
		return fail(checkMirror, key, "the mirror's ports differ from those in the ledger", repairHint), true
	}
	return o.endpoints(m, key)
}

// endpoints returns what is wrong with the EndpointSlices of one mirror. It reports false
// if nothing is.
func (o objects) endpoints(m ledger.Mirror, key string) (Result, bool) {
	var ours []*discoveryv1.EndpointSlice
	for _, s := range o.slices[key] {
		if s.Labels[discoveryv1.LabelManagedBy] != clusterinfo.SliceManager {
			return fail(checkMirror, key, "EndpointSlice "+s.Name+
				", which Causeway did not make, leads the mirror's callers elsewhere, in plaintext",
				"delete it, or the Endpoints object with the mirror's name from which Kubernetes made "+
					"it"), true
		}
		ours = append(ours, s)
	}
	if m.Headless && m.Hostname == "" {
		return Result{}, false // it lists the mirrors of pods
	}
	for _, vip := range m.VIPs {
		leads := slices.ContainsFunc(ours, func(s *discoveryv1.EndpointSlice) bool {
			return len(s.Endpoints) == 1 && slices.Equal(s.Endpoints[0].Addresses, []string{vip.String()})
		})
		if !leads {
			return fail(checkMirror, key, "no EndpointSlice has the mirror's virtual IP "+vip.String(),
				repairHint), true
		}
	}
	return Result{}, false
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

// orphans reports objects that look like a mirror's but that the ledger does not have.
func (f Facts) orphans(o objects, known map[string]bool) []Result {
	var results []Result
	for _, key := range slices.Sorted(maps.Keys(o.services)) {
		svc := o.services[key]
		name, ours := linkOf(svc)
		if !ours || known[key] || svc.DeletionTimestamp != nil || f.Link != "" && name != f.Link {
			continue
		}
		message := "it is marked as a mirror of " + name + ", but the ledger does not have it"
		if !slices.ContainsFunc(f.Links, func(l v1alpha1.Link) bool { return l.Name == name }) {
			message = "it is marked as a mirror of " + name + ", and there is no such Link"
		}
		results = append(results, fail(checkMirror, key, message, fmt.Sprintf(
			"if no caller uses it, run `kubectl -n %s delete service %s`", svc.Namespace, svc.Name)))
	}
	for _, key := range slices.Sorted(maps.Keys(o.slices)) {
		for _, s := range o.slices[key] {
			name := s.Labels[v1alpha1.LinkLabel]
			ours := s.Labels[discoveryv1.LabelManagedBy] == clusterinfo.SliceManager && name != ""
			if !ours || o.services[key] != nil || f.Link != "" && name != f.Link {
				continue
			}
			results = append(results, warn(checkMirror, s.Namespace+"/"+s.Name,
				"it is an EndpointSlice of a mirror that does not exist any more",
				"Kubernetes' garbage collector deletes it: check that kube-controller-manager runs"))
		}
	}
	return results
}

// linkOf returns the Link that svc says it is a mirror of, and whether it says so.
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

// partial are the reasons of problems that give a warning: the Service is mirrored or
// exported in part, or its owner or the Link's owner decided so.
var partial = []string{
	catalog.ForeignEndpoint,
	catalog.HostNetworkUnsupported,
	catalog.IdentityForgeable,
	catalog.InvalidTrafficSettings,
	catalog.MetadataTooLarge,
	catalog.MirrorNotExported,
	catalog.NetworkPolicyIsolates, catalog.ProtocolUnsupported, catalog.TooManyHostnames,
	ledger.ContentTooLarge, ledger.PortsExhausted, ledger.QuotaReached, ledger.VIPListed,
	mirror.ChangesTooOften, mirror.Flapping, mirror.ManyServicesInNamespace,
	link.More,
}

// services reports each problem in the Links' status.
func services(f Facts) []Result {
	var results []Result
	for _, l := range f.links() {
		var bad []Result
		for _, p := range l.Status.Problems {
			target, state := p.Service, fail
			if target == "" {
				target = l.Name
			}
			if slices.Contains(partial, p.Reason) {
				state = warn
			}
			message := p.Reason + ": " + p.Message
			if p.Reason == link.More {
				message = p.Message + " problems, which the Link's status leaves out"
			}
			bad = append(bad, state(checkService, target, message, problemHint(l.Name, p)))
		}
		results = append(results, bound(bad)...)
	}
	return results
}

// problemHint says what to do about a Service that is not mirrored or not exported.
func problemHint(linkName string, p v1alpha1.ServiceProblem) string {
	namespace, _, _ := strings.Cut(p.Service, "/")
	switch p.Reason {
	case link.More:
		return "solve those that are listed, and the others appear"
	case catalog.NetworkPolicyIsolates:
		return "add a rule that admits every source of these ports, or name the callers in an ExportPolicy"
	case ledger.NameTaken:
		return renameHint
	case ledger.QuotaReached:
		return "raise the quotas in the import rules of Link " + linkName +
			", or import less by their selector"
	case ledger.VIPsExhausted:
		return "install with a larger vipCIDR, or unexport Services in the peers and wait a day"
	case mirror.NamespaceMissing:
		return "run `kubectl create namespace " + namespace + "`, or set createNamespaces in the Link's " +
			"import rules"
	case mirror.NamespaceNotAllowed:
		return "list the namespace in the import rules of Link " + linkName + ", or export less there"
	case mirror.Rejected:
		return "an admission webhook or a quota of the namespace refuses the mirror: change it, and the " +
			"mirror is made"
	case mirror.ChangesTooOften:
		return "find out what keeps updating the Service in cluster " + linkName +
			", or its mirror in this cluster"
	case mirror.Flapping:
		return "the pods of the Service keep becoming ready and not ready in the peer: " +
			"check their readiness probes and restarts there"
	case mirror.ManyServicesInNamespace:
		return "the kubelet gives each container environment variables for each Service of its namespace: " +
			"set enableServiceLinks: false in the pods of " + namespace
	case "VIPRangeOverlaps":
		return "install with another vipCIDR"
	}
	return "the message says what to change; `causeway services` lists what is mirrored and exported"
}
