//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-mesh/causeway/lab"
)

// raise makes the clusters as every test finds them. A lab that stands already, because it was kept, is used as it is.
func raise(ctx context.Context, o lab.Options) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	l, err := lab.Up(ctx, o)
	if err != nil {
		return fmt.Errorf("make the clusters: %w", err)
	}
	if west, err = newCluster(l, "west"); err != nil {
		return err
	}
	if east, err = newCluster(l, "east"); err != nil {
		return err
	}
	both, bctx := errgroup.WithContext(ctx)
	for c, manifest := range map[*cluster]string{west: callers, east: served} {
		both.Go(func() error { return c.furnish(bctx, manifest) })
	}
	if err := both.Wait(); err != nil {
		return err
	}
	say("the shop is open in both")
	if err := introduce(ctx, west, east); err != nil {
		return err
	}
	if err := introduce(ctx, east, west); err != nil {
		return err
	}
	say("each has applied the other's identity")
	if err := east.kubectl(ctx, "", "-n", "shop", "label", "service", "bar", "causeway.dev/export=true", "--overwrite"); err != nil {
		return err
	}
	return poll(ctx, 2*time.Minute, func() error {
		said, err := west.curl(ctx, "client", "-sSf", "-m2", "http://bar-east.shop/")
		if err == nil && !strings.Contains(said, "in east") {
			err = fmt.Errorf("bar-east answers %q", said)
		}
		return err
	})
}

// furnish installs Causeway into one cluster, and of the shop what manifest says.
func (c *cluster) furnish(ctx context.Context, manifest string) error {
	images := setting("CAUSEWAY_IMAGES", "../../build")
	for _, image := range []string{"causeway.tar", "shop.tar"} {
		if err := c.LoadImage(ctx, filepath.Join(images, image)); err != nil {
			return err
		}
	}
	if err := c.install(ctx); err != nil {
		return err
	}
	say("%s: Causeway is installed", c.Name())
	// A namespace's account may be a moment behind the namespace.
	return poll(ctx, 3*time.Minute, func() error {
		if err := c.kubectl(ctx, strings.ReplaceAll(shop, "CLUSTER", c.Name())+manifest, "apply", "-f", "-"); err != nil {
			return err
		}
		return c.kubectl(ctx, "", "-n", "shop", "wait", "--for=condition=Ready", "pod", "--all", "--timeout=150s")
	})
}

// install runs `causeway install` with values of the chart, and returns when all is ready.
func (c *cluster) install(ctx context.Context, values ...string) error {
	image := os.Getenv("CAUSEWAY_IMAGE")
	_, tag, ok := strings.Cut(image, ":")
	if !ok {
		return fmt.Errorf("CAUSEWAY_IMAGE is %q: run hack/e2e, which sets it", image)
	}
	args := []string{"install", "--cluster-name", c.Name(), "--set", "image.tag=" + tag}
	for _, v := range values {
		args = append(args, "--set", v)
	}
	_, err := c.causeway(ctx, args...)
	return err
}

// causeway runs the product's own command against the cluster and returns what it prints.
func (c *cluster) causeway(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(setting("CAUSEWAY_BIN", "../../bin"), "causeway"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig())
	return output(cmd)
}

// introduce applies the public half of one cluster in another, as its operator would.
func introduce(ctx context.Context, from, to *cluster) error {
	return poll(ctx, time.Minute, func() error {
		half, err := from.causeway(ctx, "identity")
		if err != nil {
			return err
		}
		if !strings.Contains(half, "gateways:") {
			return fmt.Errorf("%s does not know its gateway's address yet", from.Name())
		}
		return to.kubectl(ctx, half, "apply", "-f", "-")
	})
}

// output runs a command. Its error holds what the command wrote to its standard error.
func output(cmd *exec.Cmd) (string, error) {
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, strings.TrimSpace(log.String()))
	}
	return out.String(), nil
}

// poll asks again and again, for at most d, until do returns nil. Its error is do's last.
func poll(ctx context.Context, d time.Duration, do func() error) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	start := time.Now()
	for {
		err := do()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not after %.1f s: %w", time.Since(start).Seconds(), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

var errNotYet = errors.New("not yet")

// Options that say nothing.
var (
	getOptions    metav1.GetOptions
	deleteOptions metav1.DeleteOptions
	listOptions   metav1.ListOptions
)
