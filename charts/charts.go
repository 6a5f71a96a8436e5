// Package charts holds Causeway's Helm chart and renders it with Helm's own engine, so that `causeway install` and
// `helm install` put the same objects into a cluster.
//
//	causeway/ (embedded) + values ──schema──▶ engine ─▶ Rendered: CRDs, objects in install order, notes
//
// What always holds:
//   - Render asks no cluster and no clock: the same chart and values make the same objects in the same order.
//   - Values that the schema refuses render nothing.
//   - The namespace is not among the objects: whoever installs makes it.
package charts

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/loader/archive"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// Rendered is the chart with values filled in.
type Rendered struct {
	// CRDs come first, and must be established before any use of their kinds.
	CRDs []*unstructured.Unstructured
	// Objects are sorted so that what is needed comes before what needs it.
	Objects []*unstructured.Unstructured
	// Hooks are applied by Helm alone, at the moments that they name; sorted as Objects are.
	Hooks []*unstructured.Unstructured
	// Notes tell the user what to do next.
	Notes string
	// Values are those given and, where none was, the defaults.
	Values map[string]any
}

// Render fills values (nil: the defaults, which lack the required clusterName) into the chart for a release in namespace.
// An error names the value that the schema refuses.
func Render(namespace string, values map[string]any) (Rendered, error) {
	c, err := load()
	if err != nil {
		return Rendered{}, err
	}
	release := common.ReleaseOptions{Name: "causeway", Namespace: namespace, IsInstall: true, Revision: 1}
	filled, err := util.ToRenderValues(c, values, release, nil)
	if err != nil {
		return Rendered{}, valuesError(err)
	}
	out, err := engine.Render(c, filled)
	if err != nil {
		return Rendered{}, fmt.Errorf("render the chart: %w", err)
	}
	used, err := filled.Table("Values")
	if err != nil {
		return Rendered{}, fmt.Errorf("fill in the chart's values: %w", err)
	}
	r := Rendered{Values: used}
	if r.CRDs, err = crds(c); err != nil {
		return Rendered{}, err
	}
	for name, text := range out {
		if path.Base(name) == "NOTES.txt" {
			r.Notes = text
			continue
		}
		objects, err := parse(name, text)
		if err != nil {
			return Rendered{}, err
		}
		for _, o := range objects {
			if _, hook := o.GetAnnotations()["helm.sh/hook"]; hook {
				r.Hooks = append(r.Hooks, o)
			} else {
				r.Objects = append(r.Objects, o)
			}
		}
	}
	slices.SortFunc(r.Objects, byInstallOrder)
	slices.SortFunc(r.Hooks, byInstallOrder)
	return r, nil
}

// CRDs returns the chart's CustomResourceDefinitions, sorted by name.
func CRDs() ([]*unstructured.Unstructured, error) {
	c, err := load()
	if err != nil {
		return nil, err
	}
	return crds(c)
}

func crds(c *chart.Chart) ([]*unstructured.Unstructured, error) {
	var out []*unstructured.Unstructured
	for _, crd := range c.CRDObjects() {
		objects, err := parse(crd.Name, string(crd.File.Data))
		if err != nil {
			return nil, err
		}
		out = append(out, objects...)
	}
	slices.SortFunc(out, byInstallOrder)
	return out, nil
}

// valuesError makes one sentence of Helm's paragraph about values that the schema refuses.
func valuesError(err error) error {
	var faults []string
	for line := range strings.Lines(err.Error()) {
		if fault, ok := strings.CutPrefix(strings.TrimSpace(line), "- at "); ok {
			faults = append(faults, fault)
		}
	}
	if len(faults) == 0 {
		return fmt.Errorf("fill in the chart's values: %w", err)
	}
	slices.Sort(faults)
	return fmt.Errorf("chart values: %s", strings.Join(faults, "; "))
}

func load() (*chart.Chart, error) {
	var buffered []*archive.BufferedFile
	err := fs.WalkDir(files, "causeway", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(files, name)
		if err != nil {
			return err
		}
		buffered = append(buffered, &archive.BufferedFile{Name: strings.TrimPrefix(name, "causeway/"), Data: data})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the chart: %w", err)
	}
	c, err := loader.LoadFiles(buffered)
	if err != nil {
		return nil, fmt.Errorf("read the chart: %w", err)
	}
	return c, nil
}

// parse splits the YAML documents of one file, empty ones left out.
func parse(name, text string) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	d := yaml.NewYAMLOrJSONDecoder(strings.NewReader(text), 4096)
	for {
		u := &unstructured.Unstructured{}
		err := d.Decode(&u.Object)
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, fmt.Errorf("parse %q of the chart: %w", name, err)
		}
		if len(u.Object) > 0 {
			objects = append(objects, u)
		}
	}
}

// installOrder lists the chart's kinds. The test fails for a kind that is not here.
var installOrder = []string{
	"CustomResourceDefinition", "FlowSchema",
	"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding",
	"ConfigMap", "Service", "PodDisruptionBudget", "Deployment", "DaemonSet", "PodMonitor", "PrometheusRule", "Job",
}

func byInstallOrder(a, b *unstructured.Unstructured) int {
	ka, kb := slices.Index(installOrder, a.GetKind()), slices.Index(installOrder, b.GetKind())
	if ka != kb {
		return ka - kb
	}
	return strings.Compare(a.GetName(), b.GetName())
}
