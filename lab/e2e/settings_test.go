//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/dataplane/admit"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
	"github.com/causeway-mesh/causeway/lab"
)

// agentView returns the resources that the agent of a node saved last.
func (c *cluster) agentView(ctx context.Context, node string) (nodestream.View, error) {
	cmd, err := c.Exec(ctx, lab.OnNode(node), "cat", "/run/causeway/agent/state")
	if err != nil {
		return nil, err
	}
	said, err := output(cmd)
	if err != nil {
		return nil, err
	}
	raw := []byte(said)
	begin := bytes.Index(raw, []byte(`{"view"`))
	if begin < 0 {
		return nil, fmt.Errorf("the agent of %s saved nothing that can be read", node)
	}
	var saved struct {
		View []byte `json:"view"`
	}
	if err := json.NewDecoder(bytes.NewReader(raw[begin:])).Decode(&saved); err != nil {
		return nil, err
	}
	return nodestream.Unmarshal(saved.View)
}

// everyAgent wants the agents of all nodes of a cluster to have a resource that is right.
func everyAgent(c *cluster, key string, right func(*wire.Resource) bool) func() error {
	return func() error {
		for _, node := range c.Nodes() {
			view, err := c.agentView(context.Background(), node)
			if err != nil {
				return err
			}
			if !right(view[key]) {
				return errors.Join(errNotYet, fmt.Errorf("the agent of %s has %v", node, view[key]))
			}
		}
		return nil
	}
}

// TestTrafficSettings: annotations of an exported Service reach the agents of both
// clusters, no mirror is written for them, and what is not valid is reported.
func TestTrafficSettings(t *testing.T) {
	ctx := t.Context()
	const agentSaves = 75 * time.Second // an agent saves its state every minute
	annotate := func(pairs ...string) error {
		return east.kubectl(ctx, "", append([]string{"-n", "shop", "annotate", "--overwrite", "service", "bar"}, pairs...)...)
	}
	t.Cleanup(func() {
		_ = east.kubectl(background(), "", "-n", "shop", "annotate", "service", "bar",
			"causeway.dev/protocol-", "causeway.dev/timeout-", "causeway.dev/retries-", "causeway.dev/forward-identity-")
		_ = east.kubectl(background(), "", "-n", "shop", "delete", "exportpolicy", "bar", "--ignore-not-found")
		if err := west.relink(background(), "east", `{"import":{"defaults":null}}`); err != nil {
			t.Error(err)
		}
		serves(t)
	})
	const frontend, export = "frontend/shop/bar-east", "export/shop/bar"
	from, since := have(west.auditEnd())(t), time.Now()
	must(t, annotate(v1alpha1.ProtocolAnnotation+"=80=tcp", v1alpha1.TimeoutAnnotation+"=90s", v1alpha1.RetriesAnnotation+"=some"))
	within(t, soon, "what is not valid is an Event", func() error {
		return east.told(t, since, "Service", "bar", catalog.InvalidTrafficSettings, v1alpha1.RetriesAnnotation)
	})
	within(t, agentSaves, "the callers' agents have the settings", everyAgent(west, frontend, func(r *wire.Resource) bool {
		f := r.GetFrontend()
		if f == nil {
			return false
		}
		s := f.Tiers[0].Backends[0].Settings
		return s.GetTimeoutMs() == 90_000 && s.Retries == nil && declaredAs(f.Ports, "http") == wire.Protocol_TCP
	}))
	for _, w := range have(west.writes(from))(t) {
		if w.ObjectRef.Resource == "services" || w.ObjectRef.Resource == "endpointslices" {
			t.Errorf("a traffic setting made the importer write %v", w)
		}
	}
	within(t, agentSaves, "the exporter's agents have the protocol", everyAgent(east, export, func(r *wire.Resource) bool {
		for _, p := range r.GetExport().GetPorts() {
			if p.Port == 80 {
				return p.Declared == wire.Protocol_TCP
			}
		}
		return r == nil // the node has no pod of the namespace
	}))

	must(t, west.relink(ctx, "east", `{"import":{"defaults":{"timeout":"5s","retries":2,"retryOn":["reset"]}}}`))
	within(t, agentSaves, "the Link's defaults fill the rest", everyAgent(west, frontend, func(r *wire.Resource) bool {
		if r == nil {
			return false
		}
		s := r.GetFrontend().Tiers[0].Backends[0].Settings
		return s.GetTimeoutMs() == 90_000 && s.GetRetries() == 2 && s.GetRetryOn() == 2
	}))
	if err := west.relink(ctx, "east", `{"import":{"defaults":{"timeout":"25h"}}}`); err == nil {
		t.Error("a default timeout of 25h was accepted")
	}

	// The port is opaque, so a rule for requests admits nothing.
	client, address := netOf(t, west, "client"), "http://"+mirrorOf(t, "bar-east", 80)
	must(t, east.kubectl(ctx, `
apiVersion: causeway.dev/v1alpha1
kind: ExportPolicy
metadata: {name: bar, namespace: shop}
spec:
  services: [bar]
  callers: [{link: west, methods: [GET], paths: [{prefix: /}]}]
`, "apply", "-f", "-"))
	within(t, soon, "an opaque connection is refused", func() error { return refusedBy(t, client, address) })
	within(t, soon, "the refusal has its reason", func() error {
		lines, err := east.logs(ctx, "agent", since)
		for _, e := range lines {
			if e.text("msg") == "connection refused" && e.text("reason") == admit.RequestsOnly.String() {
				return nil
			}
		}
		return errors.Join(err, errNotYet)
	})
}

func declaredAs(ports []*wire.FrontendPort, name string) wire.Protocol {
	for _, p := range ports {
		if p.Name == name {
			return p.Declared
		}
	}
	return wire.Protocol_DETECT
}
