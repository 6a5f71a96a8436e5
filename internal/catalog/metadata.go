package catalog

import (
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// maxMetadata bounds the labels and annotations of one Service together, in bytes
// of their keys and values.
const maxMetadata = 16 << 10

// lastApplied holds a whole Service as kubectl last saw it, addresses included.
const lastApplied = "kubectl.kubernetes.io/last-applied-configuration"

// crosses reports whether a label or annotation may cross a Link at all.
func crosses(key string) bool {
	domain, _, prefixed := strings.Cut(key, "/")
	return key != lastApplied && !(prefixed && (domain == "causeway.dev" || domain == "mirror.linkerd.io"))
}

// commanding are the domains, with all below them, whose keys on a Service tell
// some controller of the cluster what to do with it: to publish it, to route to
// it, to scrape it, to take it for its own and prune it.
var commanding = map[string]bool{
	// Kubernetes and what its projects run: kube-proxy, cloud load balancers,
	// external-dns, ingress controllers, Helm's and other tools' ownership.
	"kubernetes.io": true, "k8s.io": true, "x-k8s.io": true,
	// Those who believe that what bears their mark is theirs.
	"argoproj.io": true, "cattle.io": true, "coreos.com": true, "crossplane.io": true, "fluxcd.io": true, "helm.sh": true,
	"k14s.io": true, "knative.dev": true, "kpt.dev": true, "olm.openshift.io": true, "openshift.io": true, "pulumi.com": true,
	"rancher.io": true, "werf.io": true,
	// Edge proxies and meshes.
	"consul.hashicorp.com": true, "getambassador.io": true, "haproxy.org": true, "istio.io": true, "konghq.com": true,
	"kuma.io": true, "linkerd.io": true, "nginx.org": true, "projectcontour.io": true, "solo.io": true, "traefik.io": true,
	// Networks and load balancers.
	"amazonaws.com": true, "azure.com": true, "cilium.io": true, "io.cilium": true, "cloudflare.com": true, "digitalocean.com": true,
	"google.com": true, "gke.io": true, "k8s.aws": true, "kube-vip.io": true, "metallb.io": true, "metallb.universe.tf": true,
	"ngrok.com": true, "openelb.io": true, "oraclecloud.com": true, "purelb.io": true, "skupper.io": true, "submariner.io": true,
	"tailscale.com": true, "hetzner.cloud": true,
	// Scrapers, certificates, reloaders.
	"cert-manager.io": true, "datadoghq.com": true, "grafana.com": true, "prometheus.io": true, "signoz.io": true, "stakater.com": true,
}

// commands reports whether a key commands other controllers.
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

// Copied returns those of a peer's labels or annotations that a Link's list of
// keys lets a mirror take over. A key that commands other controllers is among
// them only if it is in the list itself.
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

// shownMetadata is what a peer is shown of labels and annotations: labels first, each in
// the order of its keys, as far as the bound allows.
func shownMetadata(labels, annotations map[string]string) (shownLabels, shownAnnotations map[string]string, whole bool) {
	left, whole := maxMetadata, true
	show := func(pairs map[string]string) map[string]string {
		var out map[string]string
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
			if out == nil {
				out = make(map[string]string, len(pairs))
			}
			out[key] = pairs[key]
		}
		return out
	}
	shownLabels = show(labels)
	shownAnnotations = show(annotations)
	return shownLabels, shownAnnotations, whole
}

// validMetadata returns what may be believed of a peer's labels and annotations,
// and whether that is all of them.
func validMetadata(labels, annotations map[string]string) (validLabels, validAnnotations map[string]string, whole bool) {
	good := make(map[string]string, len(labels))
	for key, value := range labels {
		if len(validation.IsQualifiedName(key)) == 0 && len(validation.IsValidLabelValue(value)) == 0 {
			good[key] = value
		}
	}
	notes := make(map[string]string, len(annotations))
	for key, value := range annotations {
		if len(validation.IsQualifiedName(strings.ToLower(key))) == 0 {
			notes[key] = value
		}
	}
	whole = len(good) == len(labels) && len(notes) == len(annotations)
	validLabels, validAnnotations, fits := shownMetadata(good, notes)
	return validLabels, validAnnotations, whole && fits
}
