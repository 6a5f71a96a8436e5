package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/causeway-mesh/causeway/internal/canary"
)

// terminationLog is where a container leaves its last words.
const terminationLog = "/dev/termination-log"

// canary is the process of the pods that `check` and `install` send to each node.
func (a *app) canary() *cobra.Command {
	c := &cobra.Command{
		Use: "canary", Short: "Prove a node's way from a pod to its agent, in a pod of its own", GroupID: operator, Args: cobra.NoArgs,
		Hidden: true, // people run `check`
		RunE:   func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	var uid, name string
	var addresses []string
	call := &cobra.Command{
		Use: "call", Short: "Call the canary's Service, and leave what came of it as the container's last words", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := fromEnvironment(c); err != nil {
				return err
			}
			if uid == "" || len(addresses) == 0 {
				return errors.New("--pod-uid and --address must be set")
			}
			said, err := json.Marshal(canary.Run(c.Context(), uid, addresses, name))
			if err != nil {
				return err
			}
			if err := os.WriteFile(terminationLog, said, 0o666); err != nil {
				return fmt.Errorf("leave the last words: %w", err)
			}
			_, err = fmt.Fprintf(a.stdout, "%s\n", said)
			return err
		},
	}
	fromPod(call, "pod-uid", &uid, "the pod's own `UID`")
	call.Flags().StringSliceVar(&addresses, "address", nil, "`host:port` of the canary's Service; may be repeated")
	call.Flags().StringVar(&name, "name", "", "its DNS name, `host:port`")
	c.AddCommand(call)
	return c
}
