package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/invite"
)

// invitation is one of what `causeway invite list` prints; --json prints its fields.
type invitation struct {
	Peer     string                   `json:"peer"`
	State    string                   `json:"state"`
	Expires  string                   `json:"expires"`
	Joined   *v1alpha1.Joiner         `json:"joined,omitempty"`
	Refusals []v1alpha1.InviteRefusal `json:"refusals,omitempty"`
}

func (a *app) inviteList() *cobra.Command {
	var flags clusterFlags
	var asJSON bool
	c := &cobra.Command{
		Use:     "list",
		Short:   "Show what became of this cluster's invites",
		Example: "  causeway invite list --context east",
		Args:    cobra.NoArgs,
		RunE:    func(c *cobra.Command, _ []string) error { return a.runInviteList(c.Context(), flags, asJSON) },
	}
	flags.add(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func (a *app) runInviteList(ctx context.Context, flags clusterFlags, asJSON bool) error {
	cl, err := a.connect(flags, a.stderr)
	if err != nil {
		return err
	}
	var list v1alpha1.InviteList
	if err := cl.List(ctx, &list, client.InNamespace(flags.namespace)); err != nil {
		return listError("Invites", err)
	}
	all := make([]invitation, 0, len(list.Items))
	for i := range list.Items {
		inv := &list.Items[i]
		all = append(all, invitation{
			Peer: inv.Name, State: inv.Status.State, Expires: invite.Expires(inv).UTC().Format("2006-01-02T15:04:05Z"),
			Joined: inv.Status.Joined, Refusals: inv.Status.Refusals,
		})
	}
	slices.SortFunc(all, func(x, y invitation) int { return strings.Compare(x.Peer, y.Peer) })
	if asJSON {
		return printJSON(a.stdout, all)
	}
	if len(all) == 0 {
		_, err := fmt.Fprintln(a.stderr, "no invites")
		return err
	}
	var rows [][]string
	for _, i := range all {
		rows = append(rows, i.row())
	}
	return printTable(a.stdout, []string{"PEER", "STATE", "EXPIRES", "JOINED", "REFUSED"}, rows)
}

func (i invitation) row() []string {
	joined := "-"
	if i.Joined != nil {
		joined = i.Joined.TrustDomain + " from " + i.Joined.Address
	}
	var refused []string
	for _, r := range i.Refusals {
		refused = append(refused, fmt.Sprintf("%s from %s (%s)", r.TrustDomain, r.Address, r.Reason))
	}
	if len(refused) == 0 {
		refused = []string{"-"}
	}
	return []string{i.Peer, dash(i.State), i.Expires, joined, strings.Join(refused, ", ")}
}

func (a *app) inviteDelete() *cobra.Command {
	var flags clusterFlags
	c := &cobra.Command{
		Use:     "delete PEER",
		Short:   "Take an invite back; a Link that was made by it stays",
		Example: "  causeway invite delete --context east west",
		Args:    onePeer,
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := a.connect(flags, a.stderr)
			if err != nil {
				return err
			}
			var inv v1alpha1.Invite
			err = cl.Get(c.Context(), client.ObjectKey{Namespace: flags.namespace, Name: args[0]}, &inv)
			if apierrors.IsNotFound(err) {
				return withHint(fmt.Errorf("there is no invite for %q", args[0]), "`causeway invite list` lists them")
			}
			if err != nil {
				return listError("Invites", err)
			}
			if err := deleteWithSecret(c.Context(), cl, &inv, invite.SecretName(inv.Name)); err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.stdout, "Taken back: the invite for %s\n", inv.Name)
			return err
		},
	}
	flags.add(c)
	return c
}
