package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/lab"
)

const (
	system = "causeway-system"

	// Namespaces of the exported Services and their mirrors.
	mirrorNamespaceCount = 20
	// plainNamespace holds what the plain client and the relay make.
	plainNamespace = "scale-plain"
)

var links = v1alpha1.GroupVersion.WithResource("links")

func mirrorNamespace(i int) string { return fmt.Sprintf("scale-%02d", i%mirrorNamespaceCount) }

func mirrorNamespaces() []string {
	var out []string
	for i := range mirrorNamespaceCount {
		out = append(out, mirrorNamespace(i))
	}
	return out
}

// raise makes the pair, installs Causeway in both and links them. The quotas of both Links
// are raised, because their defaults would stop a bulk of thousands.
func (b *bench) raise(ctx context.Context, o lab.Options) error {
	ctx, cancel := context.WithTimeout(ctx, 12*time.Minute)
	defer cancel()
	l, err := lab.Up(ctx, o)
	if err != nil {
		return fmt.Errorf("raise the lab: %w", err)
	}
	b.lab = l
	if b.importer, err = newCluster(l.Cluster("west")); err != nil {
		return err
	}
	if b.exporter, err = newCluster(l.Cluster("east")); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, c := range b.pair() {
		g.Go(func() error { return b.install(gctx, c) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	b.progress("Causeway is installed in both clusters")
	if err := b.link(ctx, b.importer, b.exporter); err != nil {
		return err
	}
	return b.link(ctx, b.exporter, b.importer)
}

// install loads the image, runs `causeway install`, which returns once all is ready, and
// makes the namespaces.
func (b *bench) install(ctx context.Context, c *cluster) error {
	if err := c.LoadImage(ctx, filepath.Join(b.images, "causeway.tar")); err != nil {
		return err
	}
	_, tag, ok := strings.Cut(b.image, ":")
	if !ok {
		return fmt.Errorf("image %q has no tag: run hack/bench-scale, which names it", b.image)
	}
	// The chart's limit is for a cluster with few Links.
	_, err := c.causeway(ctx, b.bin, "install", "--cluster-name", c.Name(), "--set", "image.tag="+tag,
		"--set", "controller.resources.limits.memory=4Gi")
	if err != nil {
		return fmt.Errorf("install Causeway in %s: %w", c.Name(), err)
	}
	for _, name := range append(mirrorNamespaces(), plainNamespace) {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if _, err := c.api.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("create namespace %s in %s: %w", name, c.Name(), err)
		}
	}
	return nil
}

// link applies the public half of one cluster in the other and raises the quotas there.
func (b *bench) link(ctx context.Context, from, to *cluster) error {
	err := poll(ctx, time.Minute, 500*time.Millisecond, func() error {
		half, err := from.causeway(ctx, b.bin, "identity")
		if err != nil {
			return err
		}
		if !strings.Contains(half, "gateways:") {
			return fmt.Errorf("%s does not know the address of its gateway yet", from.Name())
		}
		return to.kubectl(ctx, half, "apply", "-f", "-")
	})
	if err != nil {
		return fmt.Errorf("link %s to %s: %w", to.Name(), from.Name(), err)
	}
	quotas := fmt.Appendf(nil, `{"spec":{"import":{"quotas":{
		"services":%d,"servicesPerNamespace":%d,"vipPercent":100}}}}`, maxServices, maxServices)
	_, err = to.dyn.Resource(links).Patch(ctx, from.Name(), types.MergePatchType, quotas, metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("raise the quotas of %s's Link: %w", to.Name(), err)
	}
	return nil
}
