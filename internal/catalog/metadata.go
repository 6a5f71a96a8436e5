package catalog

import (
	"maps"
	"slices"
	"strings"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// maxMetadata bounds the labels and annotations of one Service together, in bytes
// of their keys and values.
const maxMetadata = 16 << 10

// lastApplied is the annotation in which kubectl stores a whole Service with its
// addresses.
const lastApplied = "kubectl.kubernetes.io/last-applied-configuration"

// crosses reports whether a label or annotation may cross a Link at all.
func crosses(key string) bool {
	domain, _, prefixed := strings.Cut(key, "/")
	return key != lastApplied && !(prefixed && (domain == "causeway.dev" || domain == "mirror.linkerd.io"))
}

// commanding lists domains, each with its subdomains, whose keys on a Service instruct
// some controller of the cluster: to publish the Service, to route to it, to scrape it,
// or to adopt and prune it.
var commanding = map[string]bool{
	// Kubernetes and what its projects run: kube-proxy, cloud load balancers,
	// external-dns, ingress controllers, Helm's and other tools' ownership.
	"kubernetes.io": true, "k8s.io": true, "x-k8s.io": true,
	// Controllers that adopt every object with their labels.
	"argoproj.io": true, "cattle.io": true, "coreos.com": true, "crossplane.io": true,
	"fluxcd.io": true, "helm.sh": true,
	"k14s.io": true, "knative.dev": true, "kpt.dev": true, "olm.openshift.io": true,
	"openshift.io": true, "pulumi.com": true,
	"rancher.io": true, "werf.io": true,
	// Edge proxies and meshes.
	"consul.hashicorp.com": true, "getambassador.io": true, "haproxy.org": true, "istio.io": true,
	"konghq.com": true,
	"kuma.io":    true, "linkerd.io": true, "nginx.org": true, "projectcontour.io": true,
	"solo.io": true, "traefik.io": true,
	// Networks and load balancers.
	"amazonaws.com": true, "azure.com": true, "cilium.io": true, "io.cilium": true,
	"cloudflare.com": true, "digitalocean.com": true,
	"google.com": true, "gke.io": true, "k8s.aws": true, "kube-vip.io": true, "metallb.io": true,
	"metallb.universe.tf": true,
	"ngrok.com":           true, "openelb.io": true, "oraclecloud.com": true, "purelb.io": true,
	"skupper.io": true, "submariner.io": true,
	"tailscale.com": true, "hetzner.cloud": true,
	// Scrapers, certificates, reloaders.
	"cert-manager.io": true, "datadoghq.com": true, "grafana.com": true, "prometheus.io": true,
	"signoz.io": true, "stakater.com": true,
}

// commands reports whether a key instructs other controllers.
func commands(key string) bool {
	domain, _, prefixed := strings.Cut(key, "/")
	for prefixed {
		if commanding[domain] {
			return true
		}
		_, domain, prefixed = strings.Cut(domain, ".")
	}
	return false
}

// Copied returns those of a peer's labels or annotations that a mirror copies, according
// to a Link's list of keys. A key that instructs other controllers is copied only if the
// list names it.
func Copied(pairs map[string]string, list []string) map[string]string {
	all := slices.Contains(list, v1alpha1.CopyAll)
	out := make(map[string]string)
	for key, value := range pairs {
		if crosses(key) && (slices.Contains(list, key) || all && !commands(key)) {
			out[key] = value
		}
	}
	return out
}

// shownMetadata returns the labels and annotations that peers may see, and whether the
// bound on their size left none out. Labels come first, and keys in order. The results
// can share memory with the arguments.
func shownMetadata(labels, annotations map[string]string) (l, a map[string]string, whole bool) {
	left, whole := maxMetadata, true
	show := func(pairs map[string]string) map[string]string {
		if size, all := measure(pairs); all && size <= left {
			left -= size
			return pairs
		}
		out := make(map[string]string, len(pairs))
		for _, key := range slices.Sorted(maps.Keys(pairs)) {
			if !crosses(key) {
				continue
			}
			size := len(key) + len(pairs[key])
			if size > left {
				whole = false
				continue
			}
			left -= size
			out[key] = pairs[key]
		}
		if len(out) == 0 {
			return nil
		}
		return out
	}
	l = show(labels)
	a = show(annotations)
	return l, a, whole
}

// measure returns the size of labels or annotations, and whether all of them may cross.
func measure(pairs map[string]string) (size int, all bool) {
	for key, value := range pairs {
		if !crosses(key) {
			return 0, false
		}
		size += len(key) + len(value)
	}
	return size, true
}

// validMetadata returns those of a peer's labels and annotations that Kubernetes accepts,
// and whether these are all of them. The results can share memory with the arguments.
func validMetadata(labels, annotations map[string]string) (l, a map[string]string, whole bool) {
	keep := func(pairs map[string]string, valid func(key, value string) bool) map[string]string {
		bad := 0
		for key, value := range pairs {
			if !valid(key, value) {
				bad++
			}
		}
		if bad == 0 {
			return pairs
		}
		out := make(map[string]string, len(pairs)-bad)
		for key, value := range pairs {
			if valid(key, value) {
				out[key] = value
			}
		}
		return out
	}
	good := keep(labels, func(key, value string) bool { return isQualifiedName(key) && isLabelValue(value) })
	// The API server, too, checks an annotation's key in lower case.
	notes := keep(annotations, func(key, _ string) bool { return isQualifiedName(strings.ToLower(key)) })
	whole = len(good) == len(labels) && len(notes) == len(annotations)
	l, a, fits := shownMetadata(good, notes)
	return l, a, whole && fits
}
