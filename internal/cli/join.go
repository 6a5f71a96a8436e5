package cli

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/invite"
)

// joinFlags are the words of `causeway join`.
type joinFlags struct {
	clusterFlags
	ruleFlags
	file, as string
	timeout  time.Duration
}

func (a *app) join() *cobra.Command {
	var flags joinFlags
	c := &cobra.Command{
		Use:   "join [PEER]",
		Short: "Join the cluster that a token comes from, and wait until both are connected",
		Long: `Join the cluster that a token of "causeway invite" comes from, and call it PEER (default its own name). The token is read from
stdin or from a file.

This cluster's controller dials a gateway of the inviter; both tell each other trust domain, root and link public key,
and make their Links. Run the command again, with the same token, if it was broken off.`,
		Example: "  causeway join --context west east < token",
		GroupID: operator,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 1 && strings.HasPrefix(args[0], invite.TokenPrefix) {
				return withHint(errors.New("that is the token itself, and others can read a command line"),
					"have it taken back by `causeway invite delete` in the cluster that it is from, and a new one made; it is read from stdin or --file")
			}
			if len(args) > 1 {
				return &hinted{err: errors.New("more than one cluster is named"), code: 2, hint: "the token is read from stdin or --file, never from the command line"}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			return a.runJoin(c.Context(), flags, cmp.Or(append(args, "")...))
		},
	}
	flags.clusterFlags.add(c)
	flags.ruleFlags.add(c)
	c.Flags().StringVar(&flags.file, "file", "", "`path` of a file with the token (default stdin)")
	c.Flags().StringVar(&flags.as, "as", "", "the `name` that this cluster was invited under (default the cluster's own name)")
	c.Flags().DurationVar(&flags.timeout, "timeout", 2*time.Minute, "`how long` to wait until both are connected")
	return c
}

func (a *app) runJoin(ctx context.Context, flags joinFlags, peer string) error {
	export, imports, err := flags.rules()
	if err != nil {
		return err
	}
	text, token, err := a.readToken(ctx, flags.file)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, flags.timeout, errTooLong) // the person has had the time it took
	defer cancel()
	if peer = cmp.Or(peer, token.Inviter); checkLinkName(peer) != nil {
		return checkLinkName(peer)
	}
	s, err := a.side(ctx, flags.clusterFlags)
	if err != nil {
		return err
	}
	s.peer = peer
	as := cmp.Or(flags.as, s.half.ClusterName)
	if err := s.judge(ctx, token, as); err != nil {
		return err
	}
	join := &v1alpha1.Join{
		ObjectMeta: metav1.ObjectMeta{Namespace: flags.namespace, Name: peer},
		Spec:       v1alpha1.JoinSpec{As: as, Export: export, Import: imports},
	}
	if err := makeJoin(ctx, s.cluster, join, text); err != nil {
		return err
	}
	p := newProgress(a.stderr)
	if err := joined(ctx, p, s.cluster, join); err != nil {
		return err
	}
	if err := p.until(ctx, s.connected(ctx)); err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.stdout, "Clusters %s and %s are linked: here the other one is called %s, there this one is called %s.\n", s.half.ClusterName, token.Inviter, peer, as)
	return err
}

// readToken reads the token from a file, or from stdin.
func (a *app) readToken(ctx context.Context, file string) (string, invite.Token, error) {
	in := a.stdin
	if file != "" {
		f, err := os.Open(file)
		if err != nil {
			return "", invite.Token{}, fmt.Errorf("read the token: %w", err)
		}
		defer f.Close()
		in = f
	} else if a.terminal {
		fmt.Fprintln(a.stderr, "Paste the token, and end it with Ctrl-D on a line of its own:")
	}
	b, err := readAll(ctx, io.LimitReader(in, 2*invite.MaxToken+1))
	if err != nil {
		return "", invite.Token{}, fmt.Errorf("read the token: %w", err)
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return "", invite.Token{}, &hinted{err: errors.New("there is no token"), code: 2, hint: "`causeway join PEER < token`, or --file"}
	}
	token, err := invite.ParseToken(string(b))
	if err != nil {
		return "", invite.Token{}, withHint(fmt.Errorf("read the token: %w", err), "`causeway invite` in the other cluster prints one")
	}
	text, err := token.Text()
	return text, token, err
}

// readAll reads all of r, unless ctx ends first. A read from a terminal cannot be broken off: it ends with the process then.
func readAll(ctx context.Context, r io.Reader) ([]byte, error) {
	type all struct {
		bytes []byte
		err   error
	}
	read := make(chan all, 1)
	go func() {
		b, err := io.ReadAll(r)
		read <- all{b, err}
	}()
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case a := <-read:
		return a.bytes, a.err
	}
}

// judge refuses a token that is of no use in the side's cluster, before anybody is asked.
func (s *side) judge(ctx context.Context, token invite.Token, as string) error {
	root, err := s.half.rootHash()
	if err != nil {
		return err
	}
	links, err := readLinks(ctx, s.cluster, s.flags)
	if err != nil {
		return err
	}
	r := token.Check(as, s.peer, root, links.list, time.Now())
	switch {
	case r == nil:
		return nil
	case r.Reason == invite.WrongName:
		return withHint(r, fmt.Sprintf("is the context the right one? If this cluster is the one that was invited, `--as %s` says so", token.Peer))
	case r.Reason == invite.NameTaken:
		return withHint(r, "`causeway join OTHER-NAME` calls the inviter otherwise")
	}
	return r
}

// makeJoin makes a Join with its Secret. One of the same token that is on its way is gone on with.
func makeJoin(ctx context.Context, cl cluster, join *v1alpha1.Join, text string) error {
	var old v1alpha1.Join
	name := invite.JoinSecretName(join.Name)
	err := cl.Get(ctx, client.ObjectKeyFromObject(join), &old)
	switch {
	case apierrors.IsNotFound(err):
	case err != nil:
		return listError("Joins", err)
	default:
		if same, err := holds(ctx, cl, join.Namespace, name, text); err != nil {
			return err
		} else if same && old.Status.State != v1alpha1.JoinRefused {
			*join = old
			return nil
		}
		if err := deleteWithSecret(ctx, cl, &old, name); err != nil {
			return err
		}
	}
	return makeWithSecret(ctx, cl, join, "Join", name, invite.TokenKey, []byte(text))
}

// holds reports whether the Secret of that name holds the token.
func holds(ctx context.Context, cl cluster, namespace, name, text string) (bool, error) {
	var s corev1.Secret
	err := cl.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &s)
	if client.IgnoreNotFound(err) != nil {
		return false, fmt.Errorf("read Secret %s: %w", name, err)
	}
	return err == nil && string(s.Data[invite.TokenKey]) == text, nil
}

// joined waits until the Link is made or refused, and takes the Join away then.
func joined(ctx context.Context, p *progress, cl cluster, join *v1alpha1.Join) error {
	var now v1alpha1.Join
	err := p.until(ctx, wait{
		what: "Join " + join.Name, done: "answered", undone: "is not answered",
		hint: "the controller goes on until the token runs out; running this command again with the same token waits on",
		state: func() (string, error) {
			if err := cl.Get(ctx, client.ObjectKeyFromObject(join), &now); err != nil {
				return "", err
			}
			switch now.Status.State {
			case v1alpha1.JoinLinked, v1alpha1.JoinRefused:
				return "", nil
			}
			return cmp.Or(now.Status.Message, "the controller has not looked at it yet"), nil
		},
	})
	if err != nil {
		return err
	}
	if err := deleteWithSecret(ctx, cl, &now, invite.JoinSecretName(now.Name)); err != nil {
		return err
	}
	if now.Status.State == v1alpha1.JoinRefused {
		return refusal(now.Status)
	}
	return nil
}

// refusal says why a Join was refused, and what can be done with the same token.
func refusal(s v1alpha1.JoinStatus) error {
	err := fmt.Errorf("refused (%s): %s", s.Reason, s.Message)
	switch invite.Reason(s.Reason) {
	case invite.NameTaken, invite.AlreadyLinked:
		return withHint(err, "the token stays good for this cluster until it runs out: bring it again when nothing stands in the way any more, or here under another name by `causeway join OTHER-NAME`")
	}
	return err
}
