package cli

import (
	"bytes"
	"context"
	"encoding/pem"
	"fmt"
	"reflect"
	"regexp"
	"strings"
	"text/template"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/clusterinfo"
)

func (a *app) identity() *cobra.Command {
	var flags clusterFlags
	var name string
	c := &cobra.Command{
		Use:   "identity",
		Short: "Print this cluster's public half, for a peer to apply",
		Long: `Print the Link that a peer applies to be linked with this cluster.

It holds public material only: gateway addresses, trust domain, root certificate and link public key. Two clusters
are linked when each has applied the other's.`,
		Example: "  causeway identity --context west | kubectl --context east apply -f -",
		GroupID: operator,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := a.connect(flags, a.stderr)
			if err != nil {
				return err
			}
			half, err := readPublicHalf(c.Context(), cl, flags.namespace)
			if err != nil {
				return err
			}
			if len(half.Gateways) == 0 {
				fmt.Fprintf(a.stderr, "warning: no gateway address is known yet, so a peer could not dial this cluster; see `kubectl -n %s get service causeway-gateway`\n", flags.namespace)
			}
			out, err := half.link(name)
			if err != nil {
				return err
			}
			_, err = a.stdout.Write(out)
			return err
		},
	}
	flags.add(c)
	c.Flags().StringVar(&name, "name", "", "the `name` that the peer gives this cluster, and the suffix of its mirrors (default the cluster's own name)")
	return c
}

// publicHalf is what a cluster tells its peers of itself.
type publicHalf struct {
	ClusterName, TrustDomain, Root, LinkPublicKey string
	Gateways                                      []string
	// CASecret is where somebody else keeps the root, if Root is not it but who has signed it.
	CASecret string
}

// readPublicHalf reads the cluster's public half, which the controller of namespace keeps.
func readPublicHalf(ctx context.Context, c client.Reader, namespace string) (publicHalf, error) {
	var m corev1.ConfigMap
	err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: clusterinfo.IdentityConfigMap}, &m)
	if apierrors.IsNotFound(err) {
		return publicHalf{}, withHint(fmt.Errorf("this cluster has no identity yet: %w", err),
			"`causeway install` first; the controller makes the identity at its first start")
	}
	if err != nil {
		return publicHalf{}, fmt.Errorf("read this cluster's identity: %w", err)
	}
	half := publicHalf{
		ClusterName: m.Data[clusterinfo.KeyClusterName], TrustDomain: m.Data[clusterinfo.KeyTrustDomain],
		Root: strings.TrimSpace(m.Data[clusterinfo.KeyRoot]) + "\n", LinkPublicKey: m.Data[clusterinfo.KeyLinkPublicKey],
		CASecret: m.Data[clusterinfo.KeyCASecret],
	}
	for g := range strings.SplitSeq(m.Data[clusterinfo.KeyGateways], ",") {
		if g = strings.TrimSpace(g); g != "" {
			half.Gateways = append(half.Gateways, g)
		}
	}
	if block, rest := pem.Decode([]byte(half.Root)); block == nil || block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
		return publicHalf{}, fmt.Errorf("ConfigMap %s/%s: root.pem is not one PEM certificate", namespace, clusterinfo.IdentityConfigMap)
	}
	return half, nil
}

var linkName = regexp.MustCompile(`^[a-z]([-a-z0-9]{0,30}[a-z0-9])?$`)

var linkTemplate = template.Must(template.New("link").Funcs(template.FuncMap{
	"indent": func(s string) string { return strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n    ") },
}).Parse(`# The public half of cluster {{.Half.ClusterName}}, for a peer to apply. Nothing in it is secret.
apiVersion: causeway.dev/v1alpha1
kind: Link
metadata:
  # The peer's name for {{.Half.ClusterName}}: its mirrors will be called SERVICE-{{.Name}}.
  name: {{.Name}}
spec:
  trustDomain: {{.Half.TrustDomain}}
  root: |
    {{indent .Half.Root}}
  linkPublicKey: {{.Half.LinkPublicKey}}
{{- if .Half.Gateways}}
  gateways:
  {{- range .Half.Gateways}}
    - "{{.}}"
  {{- end}}
{{- end}}
  # What may cross, seen from the peer: All means each Service with the label causeway.dev/export=true on it. A rule
  # taken away lets nothing cross in its direction.
  export:
    services: All
  import:
    services: All
`))

func checkLinkName(name string) error {
	if linkName.MatchString(name) {
		return nil
	}
	return withHint(fmt.Errorf("%q cannot be the name of a Link", name),
		"use at most 32 lower-case letters, digits and dashes, beginning with a letter")
}

// spec is the Link, as it is when new, by which a peer knows the cluster.
func (h publicHalf) spec() v1alpha1.LinkSpec {
	return v1alpha1.LinkSpec{
		TrustDomain: h.TrustDomain, Root: h.Root, LinkPublicKey: h.LinkPublicKey, Gateways: h.Gateways,
		Export: &v1alpha1.ExportRules{Services: v1alpha1.AllServices},
		Import: &v1alpha1.ImportRules{Services: v1alpha1.AllServices},
	}
}

// link is the Link, as commented YAML, that a peer applies under name (empty: the cluster's own).
func (h publicHalf) link(name string) ([]byte, error) {
	if name == "" {
		name = h.ClusterName
	}
	if err := checkLinkName(name); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := linkTemplate.Execute(&out, map[string]any{"Name": name, "Half": h}); err != nil {
		return nil, fmt.Errorf("write the Link: %w", err)
	}
	// What stands in the ConfigMap must not be able to say more than it should.
	var got v1alpha1.Link
	err := yaml.UnmarshalStrict(out.Bytes(), &got)
	if err != nil || !reflect.DeepEqual(h.spec(), got.Spec) || got.Name != name {
		return nil, fmt.Errorf("this cluster's identity is damaged: ConfigMap %s holds a value that YAML reads as something else", clusterinfo.IdentityConfigMap)
	}
	return out.Bytes(), nil
}
