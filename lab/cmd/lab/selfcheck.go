package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/causeway-mesh/causeway/lab"
)

func selfcheckCommand(o *lab.Options) *cobra.Command {
	var save, against string
	c := &cobra.Command{
		Use:   "selfcheck (--save FILE | --against FILE)",
		Short: "Save what is on this machine, or say what is on it now that was not, or no longer",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			now, err := lab.TakeInventory()
			if err != nil {
				return err
			}
			if save != "" {
				return now.Save(save)
			}
			before, err := lab.LoadInventory(against)
			if err != nil {
				return err
			}
			diff := before.Diff(now)
			for _, line := range diff {
				fmt.Fprintln(c.OutOrStdout(), line)
			}
			if len(diff) > 0 {
				return fmt.Errorf("%d things differ", len(diff))
			}
			return nil
		},
	}
	c.Flags().StringVar(&save, "save", "", "write the inventory to this file")
	c.Flags().StringVar(&against, "against", "", "compare with the inventory in this file")
	c.MarkFlagsOneRequired("save", "against")
	c.MarkFlagsMutuallyExclusive("save", "against")
	return c
}
