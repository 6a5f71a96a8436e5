package cli

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/rotation"
)

// rotateFlags are the words of `causeway rotate`.
type rotateFlags struct {
	clusterFlags
	root, revoke, wait, yes bool
	announce                time.Duration
	timeout                 time.Duration
}

func (a *app) rotate() *cobra.Command {
	var flags rotateFlags
	c := &cobra.Command{
		Use:   "rotate",
		Short: "Give this cluster's workloads a new issuer, or revoke the old one; --root: the root, too",
		Long: `Give this cluster's workloads a new issuer.

The new issuer is announced to all peers, signs when all have acknowledged it, at the latest after --announce, and the
old one is trusted until all that it has signed has expired: no connection is lost. Causeway does so by itself, too, after
two thirds of an issuer's life.

With --revoke the old issuer is not trusted any more, at once: what it has signed ends with the next message to the peers,
open connections included, and the agents ask for new certificates. It is for a key that may be known to somebody else.

With --root the cluster gets a new root first, announced in the same way and signed by the old one, so that Links which hold the
old root stay good; a new issuer follows. The old root's key is destroyed when the new root signs. Apply what
"causeway identity" prints in the peers when it suits you.

With --root --revoke nobody vouches for the new root: whoever has stolen the old one could do so, too. No peer believes this
cluster until it is linked anew, and until then each believes whoever holds the old root.`,
		Example: "  causeway rotate --context west --wait\n  causeway rotate --context west --revoke --wait\n  causeway rotate --context west --root --wait",
		GroupID: operator,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.runRotate(c.Context(), flags, c.Flags().Changed("announce"))
		},
	}
	flags.add(c)
	c.Flags().BoolVar(&flags.root, "root", false, "a new root first, and then an issuer of it")
	c.Flags().BoolVar(&flags.revoke, "revoke", false, "trust the issuers of now, and with --root the root, no more, at once")
	c.Flags().BoolVar(&flags.yes, "yes", false, "do not ask before --root --revoke")
	c.Flags().DurationVar(&flags.announce, "announce", rotation.AnnouncePeriod, "`how long` the new root or issuer is announced at most, even if a peer has not acknowledged it")
	c.Flags().BoolVar(&flags.wait, "wait", false, "wait until the new one signs")
	c.Flags().DurationVar(&flags.timeout, "timeout", 0, "`how long` to wait (default --announce, twice with --root, and two minutes)")
	return c
}

func (a *app) runRotate(ctx context.Context, flags rotateFlags, announced bool) error {
	request := rotation.Request{ID: rand.Text(), Root: flags.root, Revoke: flags.revoke, Announce: flags.announce.String()}
	if flags.revoke {
		if announced {
			return &hinted{err: fmt.Errorf("--announce and --revoke exclude each other"), code: 2, hint: "--revoke announces nothing: it acts at once"}
		}
		request.Announce, flags.announce = "", 0
	}
	if err := request.Check(); err != nil {
		return &hinted{err: fmt.Errorf("rotate: %w", err), code: 2, hint: "--announce takes a time as `24h` or `30s`"}
	}
	cl, err := a.connect(flags.clusterFlags, a.stderr)
	if err != nil {
		return err
	}
	parted := ""
	if flags.root && flags.revoke {
		if parted, err = a.parting(ctx, cl, flags); err != nil {
			return err
		}
	}
	if flags.timeout == 0 {
		flags.timeout = 2*flags.announce + 2*time.Minute
	}
	ctx, cancel := context.WithTimeoutCause(ctx, flags.timeout, errTooLong)
	defer cancel()
	if err := ask(ctx, cl, flags.namespace, request); err != nil {
		return err
	}
	if err := a.awaitRotation(ctx, cl, flags, request); err != nil {
		return err
	}
	fmt.Fprint(a.stderr, parted)
	return nil
}

// awaitRotation waits until r is done, if that is wanted.
func (a *app) awaitRotation(ctx context.Context, cl cluster, flags rotateFlags, r rotation.Request) error {
	if !flags.wait {
		fmt.Fprintf(a.stderr, "asked for: the controllers go on by themselves; `causeway rotate --wait` would have told how far they are\n")
		return nil
	}
	what := wait{
		what: "rotation", done: "done: the new issuer signs", undone: "is not done",
		hint:  fmt.Sprintf("it goes on by itself if a controller runs: `kubectl -n %s get pods`", flags.namespace),
		state: func() (string, error) { return rotating(ctx, cl, flags.namespace, r) },
	}
	if flags.root {
		what.done = "done: the new root and its issuer sign"
	}
	return newProgress(a.stderr).until(ctx, what)
}

// parting asks whether to part from all peers, as revoking the root does, and returns what is to be done afterwards.
func (a *app) parting(ctx context.Context, cl cluster, flags rotateFlags) (string, error) {
	var links v1alpha1.LinkList
	if err := cl.List(ctx, &links); err != nil {
		return "", fmt.Errorf("list Links: %w", err)
	}
	var names []string
	for _, l := range links.Items {
		names = append(names, l.Name)
	}
	peers := strings.Join(names, ", ")
	if peers == "" {
		return "", nil
	}
	if !flags.yes {
		plan := fmt.Sprintf("No peer will believe this cluster until it is linked anew: %s. Calls in both directions fail until then.", peers)
		if err := a.confirm(ctx, plan, "revoked"); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("To be linked anew, by `causeway link` or what `causeway identity` prints here now: %s.\n"+
		"Until then each of them believes whoever holds the old root: where that is too long, delete the Link to this cluster there at once.\n", peers), nil
}

// ask writes the request where the controllers look.
func ask(ctx context.Context, c client.Client, namespace string, r rotation.Request) error {
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("write the request: %w", err)
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{rotation.RequestAnnotation: string(text)}}})
	if err != nil {
		return fmt.Errorf("write the request: %w", err)
	}
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: clusterinfo.IdentityConfigMap}}
	err = c.Patch(ctx, cm, client.RawPatch(types.MergePatchType, patch))
	if apierrors.IsNotFound(err) {
		return withHint(fmt.Errorf("this cluster has no identity yet: %w", err), "`causeway install` first")
	}
	if err != nil {
		return fmt.Errorf("ask the controllers to rotate: %w", err)
	}
	return nil
}

// rotating says what is still missing of the request; "": nothing.
func rotating(ctx context.Context, c client.Reader, namespace string, r rotation.Request) (string, error) {
	var cm corev1.ConfigMap
	if err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: clusterinfo.IdentityConfigMap}, &cm); err != nil {
		return "", err
	}
	p, err := rotation.ParseProgress(cm.Annotations[rotation.ProgressAnnotation])
	if err != nil {
		return "", err
	}
	if now, err := rotation.ParseRequest(cm.Annotations[rotation.RequestAnnotation]); p.Request != r.ID && (err != nil || now.ID != r.ID) {
		return "", fmt.Errorf("another request has taken its place")
	}
	return awaited(p, r), nil
}

// awaited says what a request still waits for.
func awaited(p rotation.Progress, r rotation.Request) string {
	if r.Root {
		if text := awaitedRoot(p, r); text != "" {
			return text
		}
	}
	waiting := unacknowledged(p.Waiting)
	switch {
	case p.Request != r.ID && p.Fault != "":
		return p.Fault
	case p.Request != r.ID && p.NextAllowed != nil:
		return fmt.Sprintf("waits until %s, when one of %d issuers that are trusted still goes; --revoke would not wait", p.NextAllowed.Format(time.RFC3339), p.Listed)
	case p.Request != r.ID:
		return "waits for the controllers"
	case p.Deadline != nil:
		return fmt.Sprintf("the new issuer is announced (list %d), and signs at %s at the latest%s", p.Number, p.Deadline.Format(time.RFC3339), waiting)
	}
	return ""
}

// awaitedRoot says what a request for a root still waits for before the issuer's turn has come.
func awaitedRoot(p rotation.Progress, r rotation.Request) string {
	root := p.Root
	switch {
	case root.Request != r.ID && p.Fault != "":
		return p.Fault
	case root.Request != r.ID && root.RetiringUntil != nil:
		return fmt.Sprintf("waits until %s, when the last issuer of the root before goes; --revoke would not wait", root.RetiringUntil.Format(time.RFC3339))
	case root.Request != r.ID && root.Retiring:
		return "waits for the rotation of the root before to end"
	case root.Request != r.ID:
		return "waits for the controllers"
	case root.Deadline != nil:
		return fmt.Sprintf("the new root is announced (list %d), and signs at %s at the latest%s", p.Number, root.Deadline.Format(time.RFC3339), unacknowledged(root.Waiting))
	case root.Retiring && root.RetiringUntil == nil && p.Deadline == nil:
		return "the new root signs, and its issuer is to be announced"
	}
	return ""
}

func unacknowledged(peers []string) string {
	if len(peers) == 0 {
		return ""
	}
	return "; not acknowledged by " + strings.Join(peers, ", ")
}
