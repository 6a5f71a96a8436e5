package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// unlinkFlags are the words of `causeway unlink`.
type unlinkFlags struct {
	clusterFlags
	peer    peerFlags
	timeout time.Duration
}

func (a *app) unlink() *cobra.Command {
	var flags unlinkFlags
	c := &cobra.Command{
		Use:   "unlink LINK",
		Short: "Delete a Link and wait until its mirrors are gone",
		Long: `Delete a Link and wait until its mirrors are gone.

Its peer is cut off at once, open connections included. With --peer-context the peer's own Link for this cluster is
deleted too; without, it stays and shows that this cluster does not answer.`,
		Example: "  causeway unlink --context west east --peer-context east",
		GroupID: operator,
		Args:    oneLink,
		RunE:    func(c *cobra.Command, args []string) error { return a.runUnlink(c.Context(), flags, args[0]) },
	}
	flags.clusterFlags.add(c)
	flags.peer.add(c)
	c.Flags().DurationVar(&flags.timeout, "timeout", 2*time.Minute, "`how long` to wait until the mirrors are gone")
	return c
}

func oneLink(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return &hinted{err: fmt.Errorf("one Link must be named, not %d", len(args)), code: 2, hint: "`causeway links` lists them"}
	}
	return nil
}

func (a *app) runUnlink(ctx context.Context, flags unlinkFlags, name string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, flags.timeout, errTooLong)
	defer cancel()
	cl, err := a.connect(flags.clusterFlags, a.stderr)
	if err != nil {
		return err
	}
	here, err := readLinks(ctx, cl, flags.clusterFlags)
	if err != nil {
		return err
	}
	var goes []*departure
	link := here.named(name)
	if link != nil {
		goes = append(goes, here.departure(link))
	}
	if flags.peer.context != "" {
		theirs, err := a.theirLink(ctx, flags, here, name)
		if err != nil {
			return err
		}
		if theirs != nil {
			goes = append(goes, theirs)
		} else if link != nil {
			fmt.Fprintf(a.stderr, "note: the peer has no Link for this cluster\n")
		}
	}
	if len(goes) == 0 {
		return withHint(flags.in(fmt.Errorf("there is no Link %q", name)), here.names())
	}
	if err := a.depart(ctx, goes); err != nil {
		return err
	}
	if flags.peer.context == "" {
		fmt.Fprintf(a.stderr, "note: the peer of trust domain %s keeps its own Link for this cluster until `causeway unlink` is run there\n", link.Spec.TrustDomain)
	}
	return nil
}

// theirLink returns the peer's Link for this cluster, nil if it has none. name is that of this cluster's Link for the
// peer, which may be gone already.
func (a *app) theirLink(ctx context.Context, flags unlinkFlags, here linksOf, name string) (*departure, error) {
	own, err := readPublicHalf(ctx, here, flags.namespace)
	if err != nil {
		return nil, flags.in(err)
	}
	there, err := a.side(ctx, flags.peer.of(flags.clusterFlags))
	if err != nil {
		return nil, err
	}
	if err := here.checkPeer(name, there); err != nil {
		return nil, err
	}
	links, err := readLinks(ctx, there.cluster, there.flags)
	if err != nil {
		return nil, err
	}
	if l := links.forDomain(own.TrustDomain); l != nil {
		return links.departure(l), nil
	}
	return nil, nil
}

// checkPeer refuses unless the Link of that name is the one for peer. If none has the name it must be gone already: one
// that still stands for peer says that the name is a slip.
func (l linksOf) checkPeer(name string, peer *side) error {
	domain := peer.half.TrustDomain
	link, stands := l.named(name), l.forDomain(domain)
	switch {
	case link != nil && link.Spec.TrustDomain != domain:
		return withHint(fmt.Errorf("Link %s is for trust domain %s, and context %q leads to %s", name, link.Spec.TrustDomain, peer.flags.context, domain),
			"choose the peer's own context, or leave out --peer-context to delete this cluster's Link alone")
	case link == nil && stands != nil:
		return withHint(l.flags.in(fmt.Errorf("there is no Link %q, and Link %s is the one for the peer, of trust domain %s", name, stands.Name, domain)),
			fmt.Sprintf("name Link %s if the two clusters shall be unlinked", stands.Name))
	}
	return nil
}

// linksOf are the Links of one cluster.
type linksOf struct {
	cluster
	flags clusterFlags
	list  []v1alpha1.Link
}

func readLinks(ctx context.Context, cl cluster, flags clusterFlags) (linksOf, error) {
	var l v1alpha1.LinkList
	if err := cl.List(ctx, &l); err != nil {
		return linksOf{}, flags.in(listError("Links", err))
	}
	slices.SortFunc(l.Items, func(a, b v1alpha1.Link) int { return strings.Compare(a.Name, b.Name) })
	return linksOf{cl, flags, l.Items}, nil
}

func (l linksOf) find(match func(v1alpha1.Link) bool) *v1alpha1.Link {
	if i := slices.IndexFunc(l.list, match); i >= 0 {
		return &l.list[i]
	}
	return nil
}

func (l linksOf) named(name string) *v1alpha1.Link {
	return l.find(func(l v1alpha1.Link) bool { return l.Name == name })
}

// forDomain returns the Link for the peer of that trust domain, the first by name if there are more.
func (l linksOf) forDomain(domain string) *v1alpha1.Link {
	return l.find(func(l v1alpha1.Link) bool { return l.Spec.TrustDomain == domain })
}

// names is a hint that lists the Links.
func (l linksOf) names() string {
	if len(l.list) == 0 {
		return "this cluster has no Links"
	}
	var names []string
	for _, link := range l.list {
		names = append(names, link.Name)
	}
	return "the Links here: " + strings.Join(names, ", ")
}

func (l linksOf) departure(link *v1alpha1.Link) *departure {
	return &departure{cluster: l.cluster, link: link, where: l.flags.context}
}

// departure is a Link that goes, with its mirrors.
type departure struct {
	cluster
	link *v1alpha1.Link
	// where is the name of the context, "" for the current one.
	where   string
	mirrors []string
}

func (d *departure) title() string {
	if d.where == "" {
		return "Link " + d.link.Name
	}
	return fmt.Sprintf("Link %s in context %s", d.link.Name, d.where)
}

// depart deletes Links, waits until nothing of them is left, and prints what was removed.
func (a *app) depart(ctx context.Context, goes []*departure) error {
	for _, d := range goes {
		var err error
		if d.mirrors, err = mirrorsOf(d, d.link).services(ctx); err != nil {
			return err
		}
	}
	p := newProgress(a.stderr)
	var waits []wait
	for _, d := range goes {
		if err := deleteLink(ctx, d, d.link); err != nil {
			return fmt.Errorf("%s: %w", d.title(), err)
		}
		p.say(d.title(), "deleted")
		waits = append(waits, d.wait(ctx))
	}
	if err := p.until(ctx, waits...); err != nil {
		return err
	}
	for _, d := range goes {
		fmt.Fprintf(a.stdout, "Removed: %s\n", d.title())
		for _, m := range d.mirrors {
			fmt.Fprintf(a.stdout, "  Service %s\n", m)
		}
	}
	return nil
}

func (d *departure) wait(ctx context.Context) wait {
	return wait{
		what: d.title(), done: "gone, and its mirrors with it", undone: "is not wholly gone",
		hint: "Kubernetes' garbage collector removes the mirrors: does kube-controller-manager run? `causeway services` shows what is left",
		state: func() (string, error) {
			var l v1alpha1.Link
			err := d.Get(ctx, client.ObjectKeyFromObject(d.link), &l)
			switch {
			case err == nil && l.UID == d.link.UID:
				return "being deleted", nil
			case err != nil && !apierrors.IsNotFound(err):
				return "", err
			}
			return mirrorsOf(d, d.link).left(ctx)
		},
	}
}

// deleteLink deletes this very Link, and not another that has its name by now. One that is gone already is no error.
func deleteLink(ctx context.Context, c client.Writer, l *v1alpha1.Link) error {
	err := c.Delete(ctx, l, client.Preconditions{UID: &l.UID}, client.PropagationPolicy("Background"))
	switch {
	case apierrors.IsForbidden(err):
		return withHint(fmt.Errorf("delete it: %w", err), "this needs the right to delete Links")
	case apierrors.IsConflict(err):
		return withHint(errors.New("another Link has taken its name meanwhile"), "look with `causeway links`, and run this command again if that one shall go")
	case client.IgnoreNotFound(err) != nil:
		return fmt.Errorf("delete it: %w", err)
	}
	return nil
}
