package cli

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// joinedMeanwhile is a cluster that another one joins while Causeway is being removed: its Link comes when the first has been found.
type joinedMeanwhile struct {
	client.Client
	late *v1alpha1.Link
}

func (j *joinedMeanwhile) Delete(ctx context.Context, o client.Object, opts ...client.DeleteOption) error {
	if _, ok := o.(*v1alpha1.Link); ok && j.late != nil {
		late := j.late
		j.late = nil
		if err := j.Create(ctx, late); err != nil {
			return err
		}
	}
	return j.Client.Delete(ctx, o, opts...)
}

// A Link that is made while an uninstall runs goes with the others, and its peer is named: else the command would wait for it to go
// by itself until its time is up.
func TestUninstallTakesLateLinks(t *testing.T) {
	cl := prepared(t, "living")
	before := listing(t, cl)
	var stderr bytes.Buffer
	late := &joinedMeanwhile{Client: cl.Client, late: linkTo("north", "north-9a8b7c6d")}
	a := &app{stdout: &stderr, stderr: &stderr, connect: func(clusterFlags, io.Writer) (cluster, error) {
		return cluster{Client: late, version: cl.version}, nil
	}}
	synctest.Test(t, func(t *testing.T) {
		if code := run(t.Context(), []string{"install", "--cluster-name", "west"}, a); code != 0 {
			t.Fatalf("install: exit code %d", code)
		}
		create(t, cl, belongs()...)
		if code := run(t.Context(), []string{"uninstall", "--yes"}, a); code != 0 {
			t.Fatalf("uninstall: exit code %d\n%s", code, &stderr)
		}
	})
	if late.late != nil {
		t.Fatal("the late Link never came: this shows nothing")
	}
	if diff := cmp.Diff(before, listing(t, cl)); diff != "" {
		t.Errorf("left by uninstall (-before +after):\n%s", diff)
	}
	for _, want := range []string{"Link east\n", "Link north\n", "is run there: east, north\n"} {
		if !strings.Contains(stderr.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, &stderr)
		}
	}
}
