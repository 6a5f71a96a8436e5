package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// release is set by the linker: -X github.com/causeway-mesh/causeway/internal/cli.release=v1.2.3
var release string

// unreleased is the version of a binary that was built without one.
const unreleased = "devel"

// Version is this binary's version: what the build said, else the commit it was built from, else "devel".
func Version() string {
	if release != "" {
		return release
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return unreleased
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return s.Value[:12]
		}
	}
	return unreleased
}

func (a *app) version() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		GroupID: operator,
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintf(a.stdout, "causeway %s %s/%s\n", Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}
