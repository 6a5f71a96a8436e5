//go:build e2e

// Package meshtests runs the mesh tests of the Gateway API's own conformance suite, with
// clients in one cluster and mirrors of another cluster's Services. The tests are unchanged.
// Of the base manifests the clients go to this cluster, and everything to the peer, with an
// echo server of ours in place of the image. hack/mesh-tests makes the clusters.
package meshtests

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/gateway-api/conformance"
	confv1 "sigs.k8s.io/gateway-api/conformance/apis/v1"
	"sigs.k8s.io/gateway-api/conformance/utils/suite"
	"sigs.k8s.io/gateway-api/pkg/features"
	"sigs.k8s.io/yaml"
)

const (
	manifests = "mesh/manifests.yaml"
	namespace = "gateway-conformance-mesh"
	image     = "causeway.dev/echo:demo"
)

// supported are the features of the suite that Causeway has on mirrors.
var supported = []features.FeatureName{
	features.SupportMesh,
	features.SupportMeshClusterIPMatching,
	features.SupportMeshConsumerRoute,
	features.SupportMeshHTTPRouteBackendRequestHeaderModification,
	features.SupportMeshHTTPRouteNamedRouteRule,
	features.SupportMeshHTTPRouteQueryParamMatching,
	features.SupportMeshHTTPRouteRedirectPath,
	features.SupportMeshHTTPRouteRedirectPort,
	features.SupportMeshHTTPRouteRewritePath,
	features.SupportMeshHTTPRouteSchemeRedirect,
	features.SupportHTTPRoute,
	features.SupportHTTPRouteParentRefPort,
	features.SupportHTTPRoute303RedirectStatusCode,
	features.SupportHTTPRoute307RedirectStatusCode,
	features.SupportHTTPRoute308RedirectStatusCode,
	features.SupportHTTPRouteResponseHeaderModification,
	features.SupportGRPCRoute,
	features.SupportReferenceGrant,
}

func TestMeshOnMirrors(t *testing.T) {
	peer := clientOf(t, os.Getenv("MESH_PEER"))
	here := clientOf(t, "")
	for _, o := range objects(t) {
		if o.GetKind() == "Service" {
			o.SetLabels(map[string]string{"causeway.dev/export": "true"})
		}
		apply(t, peer, o)
	}
	var clients bytes.Buffer
	for _, o := range objects(t) {
		if o.GetKind() == "Service" {
			continue
		}
		raw, err := yaml.Marshal(o.Object)
		if err != nil {
			t.Fatal(err)
		}
		clients.WriteString("---\n")
		clients.Write(raw)
		if o.GetKind() == "Namespace" {
			apply(t, here, o) // mirrors are made once it exists
		}
	}
	for _, name := range []string{"echo", "echo-v1", "echo-v2"} {
		awaitService(t, here, name)
	}
	opts := conformance.DefaultOptions(t)
	opts.ManifestFS = []fs.FS{overlay{
		FS:  &conformance.Manifests,
		own: fstest.MapFS{manifests: &fstest.MapFile{Data: clients.Bytes()}},
	}}
	opts.SupportedFeatures = supported
	opts.ConformanceProfiles = []suite.ConformanceProfileName{suite.MeshHTTPConformanceProfileName, suite.MeshGRPCConformanceProfileName}
	opts.Implementation = confv1.Implementation{
		Organization: "causeway-mesh",
		Project:      "causeway",
		URL:          "https://github.com/causeway-mesh/causeway",
		Version:      "devel",
		Contact:      []string{"https://github.com/causeway-mesh/causeway/issues"},
	}
	opts.ReportOutputPath = os.Getenv("MESH_REPORT")
	conformance.RunConformanceWithOptions(t, opts)
}

// overlay is the suite's files, with some replaced. The suite would apply a file of each
// file system that has it.
type overlay struct {
	fs.FS
	own fstest.MapFS
}

// Open implements fs.FS.
func (o overlay) Open(name string) (fs.File, error) {
	if _, ok := o.own[name]; ok {
		return o.own.Open(name)
	}
	return o.FS.Open(name)
}

func clientOf(t *testing.T, context string) client.Client {
	t.Helper()
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		clientcmd.NewDefaultClientConfigLoadingRules(),
		&clientcmd.ConfigOverrides{CurrentContext: context}).ClientConfig()
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// objects returns the objects of the suite's base manifests, with the image replaced.
func objects(t *testing.T) []*unstructured.Unstructured {
	t.Helper()
	raw, err := fs.ReadFile(conformance.Manifests, manifests)
	if err != nil {
		t.Fatal(err)
	}
	var out []*unstructured.Unstructured
	for _, text := range strings.Split(string(raw), "\n---\n") {
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(strings.TrimPrefix(text, "---\n")), &o.Object); err != nil {
			t.Fatal(err)
		}
		if len(o.Object) == 0 {
			continue
		}
		if o.GetKind() == "Deployment" {
			replaceImage(t, o)
		}
		out = append(out, o)
	}
	return out
}

func replaceImage(t *testing.T, o *unstructured.Unstructured) {
	t.Helper()
	path := []string{"spec", "template", "spec", "containers"}
	list, _, err := unstructured.NestedSlice(o.Object, path...)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		container := c.(map[string]any)
		container["image"], container["imagePullPolicy"] = image, "Never"
	}
	if err := unstructured.SetNestedSlice(o.Object, list, path...); err != nil {
		t.Fatal(err)
	}
}

func apply(t *testing.T, c client.Client, o *unstructured.Unstructured) {
	t.Helper()
	err := c.Create(t.Context(), o.DeepCopy())
	if err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
}

func awaitService(t *testing.T, c client.Client, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for {
		o := &unstructured.Unstructured{}
		o.SetGroupVersionKind(schema.GroupVersionKind{Version: "v1", Kind: "Service"})
		err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, o)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("no mirror %s: %v", name, err)
		case <-time.After(time.Second):
		}
	}
}
