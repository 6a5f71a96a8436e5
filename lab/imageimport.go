package lab

import (
	"context"
	"fmt"
	"os"
	"strings"
)

// importImage hands the archive over as a stream: the node need not see the folder it lies in.
func (n *node) importImage(ctx context.Context, tar string) error {
	f, err := os.Open(tar)
	if err != nil {
		return fmt.Errorf("open image: %w", err)
	}
	defer f.Close()
	p, err := n.place()
	if err != nil {
		return err
	}
	cmd := n.cluster.lab.command(ctx, p, []string{"ctr", "-n", "k8s.io", "images", "import", "-"})
	cmd.Stdin = f
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("import image %q on node %q: %w: %s", tar, n.name(), err, strings.TrimSpace(string(said)))
	}
	return nil
}
