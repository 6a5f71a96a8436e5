package cli

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/invite"
)

// ruleFlags say what a new Link lets cross.
type ruleFlags struct{ export, imports string }

func (f *ruleFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.export, "export", "All", "which labelled Services the peer sees: All or `None`")
	c.Flags().StringVar(&f.imports, "import", "All", "which of the peer's Services are mirrored here: All or `None`")
}

// rules are those of the Link to be made.
func (f ruleFlags) rules() (*v1alpha1.ExportRules, *v1alpha1.ImportRules, error) {
	var export *v1alpha1.ExportRules
	var imports *v1alpha1.ImportRules
	for flag, word := range map[string]string{"--export": f.export, "--import": f.imports} {
		if word != "All" && word != "None" {
			return nil, nil, &hinted{err: fmt.Errorf("%s %q is neither All nor None", flag, word), code: 2,
				hint: "rules that select are written into the Link when it stands: `kubectl edit link`"}
		}
	}
	if f.export == "All" {
		export = &v1alpha1.ExportRules{Services: v1alpha1.AllServices}
	}
	if f.imports == "All" {
		imports = &v1alpha1.ImportRules{Services: v1alpha1.AllServices}
	}
	return export, imports, nil
}

// inviteFlags are the words of `causeway invite`.
type inviteFlags struct {
	clusterFlags
	ruleFlags
	validFor, timeout time.Duration
}

func (a *app) invite() *cobra.Command {
	var flags inviteFlags
	c := &cobra.Command{
		Use:   "invite PEER",
		Short: "Print a token by which a cluster whose context is not at hand can join",
		Long: `Print a token for the cluster that this one is to call PEER. Whoever brings it to that cluster runs "causeway join" there,
and both make their Links.

The token is good once, for 15 minutes at most, and for one cluster: it belongs to the first that uses it. It is a
password until then, so carry it as one. "causeway invite list" tells what became of it.`,
		Example: "  causeway invite --context east west > token",
		GroupID: operator,
		Args:    onePeer,
		RunE:    func(c *cobra.Command, args []string) error { return a.runInvite(c.Context(), flags, args[0]) },
	}
	flags.clusterFlags.add(c)
	flags.ruleFlags.add(c)
	c.Flags().DurationVar(&flags.validFor, "valid-for", invite.Lifetime, "for `how long` the token is good, at most 15m")
	c.Flags().DurationVar(&flags.timeout, "timeout", 30*time.Second, "`how long` to wait until the controller knows of it")
	c.AddCommand(a.inviteList(), a.inviteDelete())
	return c
}

func onePeer(_ *cobra.Command, args []string) error {
	if len(args) == 1 {
		return nil
	}
	return &hinted{err: fmt.Errorf("one cluster must be named, not %d", len(args)), code: 2,
		hint: "the name is what this cluster calls the other one, and the suffix of its mirrors"}
}

func (a *app) runInvite(ctx context.Context, flags inviteFlags, peer string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, flags.timeout, errTooLong)
	defer cancel()
	if err := checkLinkName(peer); err != nil {
		return err
	}
	if flags.validFor < time.Second || flags.validFor > invite.Lifetime {
		return &hinted{err: fmt.Errorf("--valid-for is %v, and a token is good for 1s to %v", flags.validFor, invite.Lifetime), code: 2, hint: "leave it out for 15m"}
	}
	export, imports, err := flags.rules()
	if err != nil {
		return err
	}
	cl, err := a.connect(flags.clusterFlags, a.stderr)
	if err != nil {
		return err
	}
	token, err := newToken(ctx, cl, flags.clusterFlags, peer)
	if err != nil {
		return err
	}
	inv := &v1alpha1.Invite{
		ObjectMeta: metav1.ObjectMeta{Namespace: flags.namespace, Name: peer},
		Spec:       v1alpha1.InviteSpec{ValidSeconds: int32(flags.validFor / time.Second), Export: export, Import: imports},
	}
	if err := makeInvite(ctx, cl, inv, token.Secret); err != nil {
		return err
	}
	token.Expires = invite.Expires(inv)
	text, err := token.Text()
	if err != nil {
		return fmt.Errorf("write the token: %w", err)
	}
	if err := newProgress(a.stderr).until(ctx, known(ctx, cl, inv)); err != nil {
		return err
	}
	fmt.Fprintf(a.stderr, "Link %s will be made (exports %s, imports %s) when the token is used, before %s. There:\n\n  causeway join %s < token\n\n",
		peer, exported(export), imported(imports), token.Expires.Format("15:04:05 MST"), token.Inviter)
	_, err = fmt.Fprintln(a.stdout, text)
	return err
}

// newToken is a token for peer, but for its end.
func newToken(ctx context.Context, cl cluster, f clusterFlags, peer string) (invite.Token, error) {
	half, err := readPublicHalf(ctx, cl, f.namespace)
	if err != nil {
		return invite.Token{}, err
	}
	if len(half.Gateways) == 0 {
		return invite.Token{}, withHint(errors.New("this cluster has no gateway address, so nobody could bring a token to it"),
			fmt.Sprintf("`kubectl -n %s get service causeway-gateway` tells what address it waits for; or invite from the other cluster", f.namespace))
	}
	root, err := half.rootHash()
	if err != nil {
		return invite.Token{}, err
	}
	links, err := readLinks(ctx, cl, f)
	if err != nil {
		return invite.Token{}, err
	}
	if l := links.named(peer); l != nil {
		return invite.Token{}, withHint(fmt.Errorf("there is a Link %s already, for trust domain %s", peer, l.Spec.TrustDomain),
			fmt.Sprintf("choose another name, or `causeway unlink %s` first", peer))
	}
	gateways := half.Gateways[:min(len(half.Gateways), 8)]
	return invite.Token{Root: root, Secret: invite.NewSecret(), Peer: peer, Inviter: half.ClusterName, Gateways: gateways}, nil
}

// rootHash is the hash of the cluster's root.
func (h publicHalf) rootHash() ([32]byte, error) {
	if h.CASecret != "" {
		return [32]byte{}, withHint(fmt.Errorf("an invite names each cluster by its root, and this one's, of Secret %s, is signed by one that others may share", h.CASecret),
			"use `causeway link`, or apply what `causeway identity` prints in each to the other")
	}
	block, _ := pem.Decode([]byte(h.Root))
	if block == nil {
		return [32]byte{}, errors.New("this cluster's identity is damaged: its root is no PEM certificate")
	}
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return [32]byte{}, fmt.Errorf("this cluster's identity is damaged: %w", err)
	}
	return identity.RootHash(root), nil
}

// makeInvite makes an Invite, in the place of one that nobody can use any more, and then its Secret.
func makeInvite(ctx context.Context, cl cluster, inv *v1alpha1.Invite, secret invite.Secret) error {
	var old v1alpha1.Invite
	err := cl.Get(ctx, client.ObjectKeyFromObject(inv), &old)
	switch {
	case apierrors.IsNotFound(err):
	case err != nil:
		return listError("Invites", err)
	case old.Status.State == v1alpha1.InviteExpired || old.Status.State == v1alpha1.InviteLinked:
		if err := deleteWithSecret(ctx, cl, &old, invite.SecretName(old.Name)); err != nil {
			return err
		}
	default:
		return withHint(fmt.Errorf("%s is invited already, until %s", inv.Name, invite.Expires(&old).Format("15:04:05 MST")),
			fmt.Sprintf("`causeway invite delete %s` takes that token back", inv.Name))
	}
	return makeWithSecret(ctx, cl, inv, "Invite", invite.SecretName(inv.Name), invite.SecretKey, secret.Bytes())
}

// known waits until the controller has taken notice of an Invite.
func known(ctx context.Context, cl cluster, inv *v1alpha1.Invite) wait {
	return wait{
		what: "Invite " + inv.Name, done: "open", undone: "is not open",
		hint: fmt.Sprintf("`kubectl -n %s logs deployment/causeway-controller` may tell why; `causeway invite delete %s` takes it back", inv.Namespace, inv.Name),
		state: func() (string, error) {
			var now v1alpha1.Invite
			if err := cl.Get(ctx, client.ObjectKeyFromObject(inv), &now); err != nil {
				return "", err
			}
			if now.Status.State == "" {
				return "the controller has not looked at it yet", nil
			}
			return "", nil
		},
	}
}
