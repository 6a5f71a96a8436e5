package cli

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/util/version"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/clusterinfo"
)

// oldest is the first Kubernetes whose tokens name the node that they are bound to, which the signer relies on.
var oldest = version.MustParseGeneric("1.32.0")

func checkVersion(cl cluster) error {
	info, err := cl.version()
	if err != nil {
		return withHint(fmt.Errorf("ask the API server for its version: %w", err), "--kubeconfig and --context choose a cluster as they do for kubectl")
	}
	v, err := version.ParseGeneric(info.GitVersion)
	if err != nil {
		return fmt.Errorf("read the API server's version: %w", err)
	}
	if v.LessThan(oldest) {
		return withHint(fmt.Errorf("this cluster runs Kubernetes %s", info.GitVersion), "Causeway needs 1.32 or later: older tokens do not say which node they belong to")
	}
	return nil
}

// controllerBinding is the ClusterRoleBinding whose subject tells which namespace Causeway is in.
const controllerBinding = clusterinfo.ControllerName

// checkNamespace refuses a namespace other than the one that Causeway is in: a cluster has one installation, as kinds,
// Links and rights have no namespace.
func checkNamespace(ctx context.Context, c client.Reader, namespace string) error {
	var b rbacv1.ClusterRoleBinding
	err := c.Get(ctx, client.ObjectKey{Name: controllerBinding}, &b)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look which namespace Causeway is in: %w", err)
	}
	here := func(s rbacv1.Subject) bool { return s.Namespace == namespace }
	there := slices.IndexFunc(b.Subjects, func(s rbacv1.Subject) bool { return s.Namespace != "" })
	if there < 0 || slices.ContainsFunc(b.Subjects, here) {
		return nil
	}
	return withHint(fmt.Errorf("Causeway is in namespace %s of this cluster, not in %s", b.Subjects[there].Namespace, namespace),
		fmt.Sprintf("-n %s names that installation; a cluster has no more than one", b.Subjects[there].Namespace))
}

// nameOnce fills in the name that the cluster already has, and refuses another one.
func nameOnce(ctx context.Context, c client.Reader, namespace string, values map[string]any) error {
	var m corev1.ConfigMap
	err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: clusterinfo.IdentityConfigMap}, &m)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read this cluster's identity: %w", err)
	}
	has := m.Data[clusterinfo.KeyClusterName]
	switch asked, _ := values["clusterName"].(string); {
	case has == "" || asked == has:
	case asked == "":
		values["clusterName"] = has
	default:
		return withHint(fmt.Errorf("this cluster is already called %q, not %q", has, asked),
			"leave out --cluster-name, or check --context: a cluster's name is part of its trust domain and cannot change")
	}
	return nil
}

// The ranges of virtual IPs, where nobody chooses others. They are never seen outside a cluster, so every one may have the same.
const (
	defaultVIPs4 = "240.64.0.0/12"
	defaultVIPs6 = "fd63:6175:7365::/108"
)

// coverFamilies fills in a range of virtual IPs for each IP family that Services of the cluster have, if nobody has chosen any:
// the one that the cluster has already, since in another every mirror would get another virtual IP.
func coverFamilies(ctx context.Context, c client.Reader, namespace string, values map[string]any) error {
	if _, chosen := values["vipCIDRs"]; chosen {
		return nil
	}
	vips, err := standingRanges(ctx, c, namespace)
	if err != nil {
		return err
	}
	var texts []string
	var nodes corev1.NodeList
	if err := c.List(ctx, &nodes); err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	for _, n := range nodes.Items {
		texts = append(texts, n.Spec.PodCIDRs...)
	}
	var ranges networkingv1.ServiceCIDRList
	if err := c.List(ctx, &ranges); err != nil && !meta.IsNoMatchError(err) && !apierrors.IsNotFound(err) {
		return fmt.Errorf("list Service ranges: %w", err)
	}
	if len(ranges.Items) > 0 {
		texts = nil // they say it exactly
	}
	for _, r := range ranges.Items {
		texts = append(texts, r.Spec.CIDRs...)
	}
	for _, v := range vipsFor(texts) {
		if !slices.ContainsFunc(vips, func(have any) bool { return is6(have.(string)) == is6(v.(string)) }) {
			vips = append(vips, v)
		}
	}
	if len(vips) > 0 {
		values["vipCIDRs"] = vips
	}
	return nil
}

// standingRanges are the ranges of virtual IPs that an installation goes by now, each a string; none: there is none.
func standingRanges(ctx context.Context, c client.Reader, namespace string) ([]any, error) {
	var d appsv1.Deployment
	err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: clusterinfo.ControllerName}, &d)
	if client.IgnoreNotFound(err) != nil {
		return nil, fmt.Errorf("look which virtual IPs the cluster has: %w", err)
	}
	var out []any
	for _, container := range d.Spec.Template.Spec.Containers {
		for _, arg := range container.Args {
			list, ok := strings.CutPrefix(arg, "--vip-cidrs=")
			for v := range strings.SplitSeq(list, ",") {
				if ok && v != "" {
					out = append(out, v)
				}
			}
		}
	}
	return out, nil
}

func is6(s string) bool { return strings.Contains(s, ":") }

// vipsFor returns the default ranges of the IP families that addresses and ranges are of.
func vipsFor(texts []string) []any {
	var out []any
	if slices.ContainsFunc(texts, func(s string) bool { return !is6(s) }) {
		out = append(out, defaultVIPs4)
	}
	if slices.ContainsFunc(texts, is6) {
		out = append(out, defaultVIPs6)
	}
	return out
}

// usedRange is a range of addresses that the cluster routes, and who says so.
type usedRange struct {
	prefix netip.Prefix
	by     string
}

// overlap returns an error that names the first of used, in sorted order, which a VIP range overlaps.
func overlap(vips []netip.Prefix, used []usedRange) error {
	used = slices.SortedFunc(slices.Values(used), func(a, b usedRange) int {
		return cmp.Or(a.prefix.Addr().Compare(b.prefix.Addr()), cmp.Compare(a.prefix.Bits(), b.prefix.Bits()), cmp.Compare(a.by, b.by))
	})
	for _, v := range vips {
		for _, u := range used {
			if v.Overlaps(u.prefix) {
				return withHint(fmt.Errorf("the virtual IPs %v overlap %v of %s", v, u.prefix, u.by),
					"--set vipCIDRs={RANGE} chooses a range that nothing in this cluster uses")
			}
		}
	}
	return nil
}

// checkRanges refuses VIP ranges that overlap what the cluster says it routes. Routes of nodes are vip-guard's to check.
func checkRanges(ctx context.Context, c client.Reader, values map[string]any) error {
	vips, err := prefixes(values, "vipCIDRs")
	if err != nil {
		return err
	}
	var used []usedRange
	for _, key := range []string{"podCIDRs", "serviceCIDRs"} {
		ps, err := prefixes(values, key)
		if err != nil {
			return err
		}
		for _, p := range ps {
			used = append(used, usedRange{p, "value " + key})
		}
	}
	seen, err := seenRanges(ctx, c)
	if err != nil {
		return err
	}
	return overlap(vips, append(used, seen...))
}

// prefixes parses the CIDRs of a chart value.
func prefixes(values map[string]any, key string) ([]netip.Prefix, error) {
	list, _ := values[key].([]any)
	var out []netip.Prefix
	for _, raw := range list {
		p, err := parsePrefix(fmt.Sprint(raw))
		if err != nil {
			return nil, fmt.Errorf("value %s: %w", key, err)
		}
		out = append(out, p)
	}
	return out, nil
}

// sample is how many pods and Services are looked at: a range is wanted, not each address in it.
const sample = client.Limit(500)

func seenRanges(ctx context.Context, c client.Reader) ([]usedRange, error) {
	var used []usedRange
	add := func(by string, texts ...string) {
		for _, t := range texts {
			if p, err := netip.ParsePrefix(t); err == nil {
				used = append(used, usedRange{p.Masked(), by})
			} else if a, err := netip.ParseAddr(t); err == nil {
				used = append(used, usedRange{netip.PrefixFrom(a, a.BitLen()), by})
			}
		}
	}
	var nodes corev1.NodeList
	if err := c.List(ctx, &nodes); err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	for _, n := range nodes.Items {
		add("node "+n.Name, n.Spec.PodCIDRs...)
		for _, a := range n.Status.Addresses {
			add("node "+n.Name, a.Address)
		}
	}
	var ranges networkingv1.ServiceCIDRList // an API of Kubernetes 1.33 and later
	if err := c.List(ctx, &ranges); err != nil && !meta.IsNoMatchError(err) && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("list Service ranges: %w", err)
	}
	for _, r := range ranges.Items {
		add("ServiceCIDR "+r.Name, r.Spec.CIDRs...)
	}
	var services corev1.ServiceList
	if err := c.List(ctx, &services, sample); err != nil {
		return nil, fmt.Errorf("list Services: %w", err)
	}
	for _, s := range services.Items {
		add("Service "+s.Namespace+"/"+s.Name, s.Spec.ClusterIPs...)
	}
	var pods corev1.PodList
	if err := c.List(ctx, &pods, sample); err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	for _, p := range pods.Items {
		for _, ip := range p.Status.PodIPs {
			add("pod "+p.Namespace+"/"+p.Name, ip.IP)
		}
	}
	return used, nil
}
