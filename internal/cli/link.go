package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// linkOwner is whose fields those of a Link are that `causeway link` wrote.
const linkOwner = client.FieldOwner("causeway-link")

// gatewayGrace is how long a gateway's address is waited for: a load balancer takes a while, a cluster that cannot be
// dialled never has one.
const gatewayGrace = 30 * time.Second

// peerFlags say which other cluster is meant.
type peerFlags struct{ kubeconfig, context string }

func (f *peerFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.context, "peer-context", "", "`name` of the peer's kubeconfig context")
	c.Flags().StringVar(&f.kubeconfig, "peer-kubeconfig", "", "path of the kubeconfig `file` that has it (default the one of --kubeconfig)")
}

// of returns the flags of the peer of the cluster that own names.
func (f peerFlags) of(own clusterFlags) clusterFlags {
	return clusterFlags{kubeconfig: cmp.Or(f.kubeconfig, own.kubeconfig), context: f.context, namespace: own.namespace}
}

// linkFlags are the words of `causeway link`.
type linkFlags struct {
	clusterFlags
	peer           peerFlags
	name, peerName string
	timeout        time.Duration
}

func (a *app) link() *cobra.Command {
	var flags linkFlags
	c := &cobra.Command{
		Use:   "link",
		Short: "Link two clusters, both of whose contexts are at hand",
		Long: `Link two clusters: apply the public half of each as a Link in the other, and wait until both are connected.

A new Link says "services: All" for both directions, which means each Service with the label causeway.dev/export=true
on it. Run the command again to bring two Links up to date, such as after a gateway's address has changed: their rules
and gateway addresses that somebody else added stay as they are then.`,
		Example: "  causeway link --context west --peer-context east",
		GroupID: operator,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := required(c, "peer-context"); err != nil {
				return &hinted{err: err, code: 2, hint: "both clusters must be at hand; where they are not, `causeway invite` in one and `causeway join` in the other"}
			}
			return a.runLink(c.Context(), flags)
		},
	}
	flags.clusterFlags.add(c)
	flags.peer.add(c)
	c.Flags().StringVar(&flags.name, "name", "", "the `name` that the peer gives this cluster, and the suffix of its mirrors there (default the cluster's own name)")
	c.Flags().StringVar(&flags.peerName, "peer-name", "", "the `name` that this cluster gives the peer, and the suffix of its mirrors here (default the peer's own name)")
	c.Flags().DurationVar(&flags.timeout, "timeout", 2*time.Minute, "`how long` to wait until both are connected")
	return c
}

func (a *app) runLink(ctx context.Context, flags linkFlags) error {
	ctx, cancel := context.WithTimeoutCause(ctx, flags.timeout, errTooLong)
	defer cancel()
	here, err := a.side(ctx, flags.clusterFlags)
	if err != nil {
		return err
	}
	there, err := a.side(ctx, flags.peer.of(flags.clusterFlags))
	if err != nil {
		return err
	}
	here.peer, there.peer = cmp.Or(flags.peerName, there.half.ClusterName), cmp.Or(flags.name, here.half.ClusterName)
	if err := distinct(here, there); err != nil {
		return err
	}
	p := newProgress(a.stderr)
	if err := a.awaitGateways(ctx, p, here, there); err != nil {
		return err
	}
	// Nothing is written before both clusters are known to take it.
	for _, s := range []*side{here, there} {
		if err := s.look(ctx, otherOf(s, here, there).half); err != nil {
			return err
		}
	}
	for _, s := range []*side{here, there} {
		if err := s.apply(ctx, p, otherOf(s, here, there).half); err != nil {
			return err
		}
	}
	if err := p.until(ctx, here.connected(ctx), there.connected(ctx)); err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.stdout, `Clusters %s and %s are linked. To call a Service of one from the other:

  kubectl --context %s -n NAMESPACE label service NAME causeway.dev/export=true
  causeway services --context %s
`, here.half.ClusterName, there.half.ClusterName, flags.peer.context, cmp.Or(flags.context, "CONTEXT"))
	return err
}

// side is one of two clusters that are linked.
type side struct {
	cluster
	flags clusterFlags
	half  publicHalf
	// peer is the name of its Link for the other one.
	peer string
	// have is that Link as it stands; nil: there is none.
	have *v1alpha1.Link
}

func otherOf(s, a, b *side) *side {
	if s == a {
		return b
	}
	return a
}

// side reaches the cluster that f names, and reads who it is.
func (a *app) side(ctx context.Context, f clusterFlags) (*side, error) {
	cl, err := a.connect(f, a.stderr)
	if err != nil {
		return nil, f.in(err)
	}
	half, err := readPublicHalf(ctx, cl, f.namespace)
	if err != nil {
		return nil, f.in(err)
	}
	return &side{cluster: cl, flags: f, half: half}, nil
}

// in says which of two clusters err is about.
func (f clusterFlags) in(err error) error {
	if f.context == "" {
		return fmt.Errorf("current context: %w", err)
	}
	return fmt.Errorf("context %q: %w", f.context, err)
}

// distinct refuses to link a cluster with itself, or with one that cannot be told from it.
func distinct(here, there *side) error {
	switch {
	case here.half.TrustDomain == there.half.TrustDomain:
		return withHint(fmt.Errorf("both contexts lead to cluster %q: a cluster is not linked with itself", here.half.ClusterName),
			"--context and --peer-context choose the two, as `kubectl config get-contexts` lists them")
	case here.half.ClusterName == there.half.ClusterName && here.peer == there.peer:
		return withHint(fmt.Errorf("both clusters are called %q", here.half.ClusterName),
			"--name and --peer-name give them different names in each other's eyes")
	}
	for _, name := range []string{here.peer, there.peer} {
		if err := checkLinkName(name); err != nil {
			return err
		}
	}
	return nil
}

// awaitGateways waits a while for gateway addresses that are not known yet. One cluster may be without for good.
func (a *app) awaitGateways(ctx context.Context, p *progress, sides ...*side) error {
	grace, cancel := context.WithTimeoutCause(ctx, gatewayGrace, errTooLong)
	defer cancel()
	var waits []wait
	for _, s := range sides {
		if len(s.half.Gateways) > 0 {
			continue
		}
		waits = append(waits, wait{
			what: "gateway of " + s.half.ClusterName, done: "its address is known", undone: "has no address",
			state: func() (string, error) {
				half, err := readPublicHalf(grace, s, s.flags.namespace)
				if err != nil {
					return "", s.flags.in(err)
				}
				if s.half = half; len(half.Gateways) == 0 {
					return fmt.Sprintf("waiting up to %v for its address", gatewayGrace), nil
				}
				return "", nil
			},
		})
	}
	if err := p.until(grace, waits...); err != nil && (grace.Err() == nil || ctx.Err() != nil) {
		return err
	}
	return a.judgeGateways(sides)
}

// judgeGateways warns of a cluster without a gateway address, and refuses two of them.
func (a *app) judgeGateways(sides []*side) error {
	var without *side
	for _, s := range sides {
		switch {
		case len(s.half.Gateways) > 0:
		case without != nil:
			return withHint(errors.New("neither cluster has a gateway address, so neither could dial the other"),
				fmt.Sprintf("`kubectl -n %s get service causeway-gateway` tells what address it waits for", s.flags.namespace))
		default:
			without = s
		}
	}
	if without != nil {
		fmt.Fprintf(a.stderr, "warning: cluster %s has no gateway address: it can call its peer's Services, and its own cannot be called; see `kubectl -n %s get service causeway-gateway` there\n",
			without.half.ClusterName, without.flags.namespace)
	}
	return nil
}

// look reads what Links stand, and refuses where the one for peer could not stand beside them.
func (s *side) look(ctx context.Context, peer publicHalf) error {
	var links v1alpha1.LinkList
	if err := s.List(ctx, &links); err != nil {
		return s.flags.in(listError("Links", err))
	}
	for i := range links.Items {
		l := &links.Items[i]
		same := l.Spec.TrustDomain == peer.TrustDomain
		switch {
		case l.Name == s.peer && l.DeletionTimestamp != nil:
			return withHint(s.flags.in(fmt.Errorf("Link %s is being deleted", l.Name)), "run this command again in a moment")
		case l.Name == s.peer && !same:
			return withHint(s.flags.in(fmt.Errorf("Link %s is for another cluster, of trust domain %s, not %s", l.Name, l.Spec.TrustDomain, peer.TrustDomain)),
				fmt.Sprintf("another name for the cluster leaves it alone (--name, --peer-name); `causeway unlink %s` removes it and its mirrors", l.Name))
		case l.Name != s.peer && same:
			return withHint(s.flags.in(fmt.Errorf("cluster %s is linked already, by Link %s", peer.ClusterName, l.Name)),
				fmt.Sprintf("name it %s again (--name, --peer-name) to bring that Link up to date, or `causeway unlink %s` first", l.Name, l.Name))
		case l.Name == s.peer:
			s.have = l
		}
	}
	return nil
}

// apply writes the Link for peer. The rules of one that stands stay as they are.
func (s *side) apply(ctx context.Context, p *progress, peer publicHalf) error {
	spec := peer.spec()
	if s.have != nil {
		spec.Export, spec.Import = s.have.Spec.Export, s.have.Spec.Import
	}
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&spec)
	if err != nil {
		return fmt.Errorf("write the Link: %w", err)
	}
	if s.have != nil {
		own, err := ownRules(s.have, fields)
		if err != nil {
			return s.flags.in(err)
		}
		delete(fields, "export")
		delete(fields, "import")
		maps.Copy(fields, own)
	}
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": v1alpha1.GroupVersion.String(), "kind": "Link",
		"metadata": map[string]any{"name": s.peer}, "spec": fields,
	}}
	if err := s.Apply(ctx, client.ApplyConfigurationFromUnstructured(u), linkOwner, client.ForceOwnership); err != nil {
		err = s.flags.in(fmt.Errorf("apply Link %s: %w", s.peer, err))
		if apierrors.IsForbidden(err) {
			return withHint(err, "linking needs the rights to list, create and patch Links in both clusters")
		}
		return err
	}
	p.say(s.title(), fmt.Sprintf("applied (exports %s, imports %s)", exported(spec.Export), imported(spec.Import)))
	return nil
}

// title names the side's Link.
func (s *side) title() string { return fmt.Sprintf("Link %s in %s", s.peer, s.half.ClusterName) }

// words says which labelled Services rules let cross; "" stands for no rules.
func words(services v1alpha1.ServiceSelection) string {
	switch services {
	case "":
		return "nothing"
	case v1alpha1.AllServices:
		return "All"
	}
	return "those that its rules select"
}

func exported(r *v1alpha1.ExportRules) string {
	if r == nil {
		return words("")
	}
	return words(r.Services)
}

func imported(r *v1alpha1.ImportRules) string {
	if r == nil {
		return words("")
	}
	return words(r.Services)
}

// connected waits until the side's controller says that all is well with the Link.
func (s *side) connected(ctx context.Context) wait {
	return wait{
		what: s.title(), done: "connected and synced", undone: "is not up",
		hint: fmt.Sprintf("`causeway links` in both clusters and `kubectl -n %s logs deployment/causeway-controller` may tell more; running this command again goes on where it stopped", s.flags.namespace),
		state: func() (string, error) {
			var l v1alpha1.Link
			if err := s.Get(ctx, client.ObjectKey{Name: s.peer}, &l); err != nil {
				return "", s.flags.in(err)
			}
			return missing(&l), nil
		},
	}
}

// missing says what keeps l from being connected and synced; "": nothing.
func missing(l *v1alpha1.Link) string {
	for _, kind := range []string{v1alpha1.LinkConnected, v1alpha1.LinkSynced} {
		c := conditionOf(l, kind)
		switch {
		case c.Status == metav1.ConditionTrue:
			continue
		case c.Reason == "NotTrusted":
			c = conditionOf(l, v1alpha1.LinkTrusted)
		}
		return "not " + c.Type + ": " + c.Message
	}
	return ""
}

// notLookedAt is the reason of a condition that the controller has not set for the Link as it is now.
const notLookedAt = "NotLookedAt"

// conditionOf returns l's condition of that kind: Unknown if the controller has not judged this generation of l.
func conditionOf(l *v1alpha1.Link, kind string) metav1.Condition {
	c := meta.FindStatusCondition(l.Status.Conditions, kind)
	if c == nil || c.ObservedGeneration < l.Generation {
		return metav1.Condition{Type: kind, Status: metav1.ConditionUnknown, Reason: notLookedAt, Message: "the controller has not looked at it yet"}
	}
	return *c
}
