//go:build e2e

package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// named waits until check in a cluster names all that is wanted.
func named(t *testing.T, c *cluster, d time.Duration, args []string, want ...finding) {
	t.Helper()
	within(t, d, "check in "+c.Name()+" names it", func() error {
		lines, err := checkIn(t.Context(), c, args...)
		if err != nil {
			return err
		}
		return found(lines, want)
	})
}

var quick = []string{"--skip-canary"}

// agree waits until `causeway links` says the words too: a condition follows a few seconds behind what may mend by itself.
func agree(t *testing.T, c *cluster, words ...string) {
	t.Helper()
	agreeWithin(t, c, 15*time.Second, words...)
}

func agreeWithin(t *testing.T, c *cluster, limit time.Duration, words ...string) {
	t.Helper()
	within(t, limit, "links in "+c.Name()+" agrees", func() error {
		said, err := c.causeway(t.Context(), "links")
		for _, w := range words {
			if err == nil && !strings.Contains(said, w) {
				err = fmt.Errorf("check says %q, and links does not:\n%s", w, said)
			}
		}
		return err
	})
}

// TestCheckNamesFlushedRoutes: with vip-guard frozen nobody mends what is taken from the node. A canary finds that calls are refused;
// that nothing lies beneath them any more, the agent sees. What failed stays known at the agent's pod until it is proved anew.
func TestCheckNamesFlushedRoutes(t *testing.T) {
	ctx := t.Context()
	agent, node := freshAgent(t, west), west.Nodes()[0]
	guard := func(s syscall.Signal) error { return west.KillContainer(background(), system, agent, "vip-guard", s) }
	must(t, guard(syscall.SIGSTOP))
	t.Cleanup(func() {
		must(t, guard(syscall.SIGCONT))
		serves(t)
		sound(t)
		if kept := have(west.pathCondition(background(), agent))(t); kept != nil {
			t.Errorf("the path is good, and the agent's pod still says %v", kept)
		}
	})
	must(t, onNode(ctx, west, "ip", "route", "del", "local", "240.64.0.0/12", "table", "local"))
	named(t, west, 40*time.Second, nil,
		finding{"path", node, "fail", "the node refuses a pod's connection"},
		finding{"vip-guard", node, "fail", "the local route for 240.64.0.0/12 is not there"},
		finding{"vip-guard", node, "fail", "vip-guard does not answer"})
	if kept := have(west.pathCondition(ctx, agent))(t); kept == nil || !strings.Contains(kept.Message, "the node refuses a pod's connection") {
		t.Errorf("the agent's pod keeps %v of the path that failed", kept)
	}
	must(t, onNode(ctx, west, "ip", "route", "del", "unreachable", "240.64.0.0/12"))
	named(t, west, 20*time.Second, quick,
		finding{"path", node, "fail", "an earlier test failed: the node refuses a pod's connection"},
		finding{"vip-guard", node, "fail", "the unreachable route for 240.64.0.0/12 is not there"})
}

// pathCondition is what an agent's pod bears in mind of its node's path; nil: nothing.
func (c *cluster) pathCondition(ctx context.Context, pod string) (*corev1.PodCondition, error) {
	p, err := c.api.CoreV1().Pods(system).Get(ctx, pod, getOptions)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(p.Status.Conditions, func(k corev1.PodCondition) bool { return k.Type == "causeway.dev/PathProved" })
	if i < 0 {
		return nil, nil
	}
	return &p.Status.Conditions[i], nil
}

// TestCheckNamesDNS: pods without DNS cannot call mirrors by name, though the way to them is good.
func TestCheckNamesDNS(t *testing.T) {
	scale := func(n int) error {
		return west.kubectl(background(), "", "-n", "kube-system", "scale", "deployment", "coredns", fmt.Sprintf("--replicas=%d", n))
	}
	t.Cleanup(func() {
		must(t, scale(1))
		serves(t) // by name
		sound(t)
	})
	must(t, scale(0))
	named(t, west, 40*time.Second, nil, finding{"dns", west.Nodes()[0], "fail", "cannot resolve the name of a Service"})
}

// TestCheckNamesMissingKind: a kind that somebody deletes is named, `install` puts it back, and it has its effect again.
func TestCheckNamesMissingKind(t *testing.T) {
	ctx := t.Context()
	t.Cleanup(func() {
		must(t, east.install(background()))
		serves(t)
	})
	must(t, east.kubectl(ctx, "", "delete", "crd", "exportpolicies.causeway.dev"))
	named(t, east, 20*time.Second, quick, finding{"kinds", "cluster", "fail", "does not serve ExportPolicy"})
	serves(t) // meanwhile
	must(t, east.install(ctx))
	guest, address := netOf(t, west, "guest"), "http://"+mirrorOf(t, "bar-east", 80)
	must(t, east.kubectl(ctx, onlyClient, "apply", "-f", "-"))
	within(t, time.Minute, "a policy is heeded again", func() error {
		if _, err := fetch(ctx, guest, address); !refused(err) {
			return fmt.Errorf("guest got %w, want a refusal", err)
		}
		return nil
	})
	must(t, east.kubectl(ctx, "", "-n", "shop", "delete", "exportpolicy", "bar"))
	within(t, 10*time.Second, "guest is served again", func() error { _, err := fetch(ctx, guest, address); return err })
}

// TestCheckNamesQuota: of the peer's Services one more than there may be has no mirror, and it is said which.
func TestCheckNamesQuota(t *testing.T) {
	ctx := t.Context()
	quota := func(n any) error {
		patch, err := json.Marshal(map[string]any{"spec": map[string]any{"import": map[string]any{"quotas": n}}})
		if err == nil {
			_, err = west.dyn.Resource(links).Patch(background(), "east", types.MergePatchType, patch, metav1.PatchOptions{})
		}
		return err
	}
	const late = `{apiVersion: v1, kind: Service, metadata: {name: late, namespace: shop, labels: {causeway.dev/export: "true"}, annotations: {causeway.dev/protocol: tcp}}, spec: {selector: {app: bar}, ports: [{port: 80, targetPort: 8080}]}}`
	t.Cleanup(func() {
		must(t, east.kubectl(background(), late, "delete", "--ignore-not-found", "-f", "-"))
		must(t, quota(nil))
		serves(t)
		sound(t)
	})
	// The count in the Link's status may be 30 s old, so the mirrors themselves are counted.
	mirrors := have(west.api.CoreV1().Services("").List(ctx, metav1.ListOptions{LabelSelector: v1alpha1.LinkLabel + "=east"}))(t)
	must(t, quota(map[string]any{"services": len(mirrors.Items)}))
	must(t, east.kubectl(ctx, late, "apply", "-f", "-"))
	named(t, west, 30*time.Second, quick, finding{"service", "east", "warning", "QuotaReached: the Link's import quotas leave out 1 mirror"})
	agree(t, west, "QuotaReached")
}

// TestCheckNamesInvites: a token that is about to run out unused is told of.
func TestCheckNamesInvites(t *testing.T) {
	ctx := t.Context()
	t.Cleanup(func() { have(west.causeway(background(), "invite", "delete", "north"))(t) })
	have(west.causeway(ctx, "invite", "north", "--valid-for", "100s"))(t)
	named(t, west, 10*time.Second, quick, finding{"invite", "north", "warning", "open, and expires in"})
}

// TestCheckNamesExpiredIssuer: east's issuer ends, and its controller may not renew it. Both sides say so; when it may again, it
// renews the issuer by itself, and calls work without anybody's doing.
func TestCheckNamesExpiredIssuer(t *testing.T) {
	ctx := t.Context()
	secrets := east.api.CoreV1().Secrets(system)
	s := have(secrets.Get(ctx, "causeway-issuer", getOptions))(t)
	t.Cleanup(func() {
		must(t, east.install(background())) // puts the right back
		serves(t)
		must(t, poll(background(), time.Minute, func() error {
			return west.condition(background(), "east", v1alpha1.LinkTrusted, "True Trusted")
		}))
		sound(t)
	})
	must(t, east.mayNotUpdateSecrets(ctx))
	end := time.Now().Add(15 * time.Second)
	s.Data = have(shortened(s.Data, have(secrets.Get(ctx, "causeway-root", getOptions))(t).Data, end))(t)
	have(secrets.Update(ctx, s, metav1.UpdateOptions{}))(t)
	named(t, east, time.Minute, quick,
		finding{"identity", "cluster", "fail", "this cluster's issuer expired"},
		finding{"rights", "causeway-controller", "fail", "update secrets"})
	named(t, west, 20*time.Second, quick,
		finding{"trust", "east", "fail", "none of the peer's 1 issuer is valid now"},
		finding{"link", "east", "fail", "not Trusted (IssuersEnded)"})
	agree(t, west, "not Trusted (IssuersEnded)")
	if _, err := fetch(ctx, netOf(t, west, "client"), "http://"+mirrorOf(t, "bar-east", 80)); err == nil {
		t.Error("a call was served by a workload whose issuer has ended")
	}
}

// mayNotUpdateSecrets takes that right from the controllers.
func (c *cluster) mayNotUpdateSecrets(ctx context.Context) error {
	roles := c.api.RbacV1().Roles(system)
	role, err := roles.Get(ctx, "causeway-controller", getOptions)
	if err != nil {
		return err
	}
	for i, r := range role.Rules {
		if slices.Contains(r.Resources, "secrets") {
			role.Rules[i].Verbs = slices.DeleteFunc(r.Verbs, func(v string) bool { return v == "update" })
		}
	}
	_, err = roles.Update(ctx, role, metav1.UpdateOptions{})
	return err
}

// shortened is the issuers' Secret with the same issuer signed anew, to end soon, and none beside it.
func shortened(issuer, root map[string][]byte, end time.Time) (map[string][]byte, error) {
	first := func(text []byte) []byte {
		if b, _ := pem.Decode(text); b != nil {
			return b.Bytes
		}
		return nil
	}
	rootCert, err1 := x509.ParseCertificate(first(root["tls.crt"]))
	rootKey, err2 := x509.ParsePKCS8PrivateKey(first(root["tls.key"]))
	was, err3 := x509.ParseCertificate(first(issuer["tls.crt"]))
	var state struct {
		Number uint64 `json:"number"`
		Needed uint64 `json:"needed"`
	}
	state.Number = 1
	var err4 error
	if text := issuer["rotation.json"]; len(text) > 0 {
		err4 = json.Unmarshal(text, &state)
	}
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return nil, err
	}
	state.Number++
	state.Needed = state.Number
	template := *was
	template.SerialNumber, template.NotAfter = big.NewInt(time.Now().UnixNano()), end
	der, err := x509.CreateCertificate(rand.Reader, &template, rootCert, was.PublicKey, rootKey.(*ecdsa.PrivateKey))
	if err != nil {
		return nil, err
	}
	rotation, err := json.Marshal(state)
	return map[string][]byte{
		"tls.crt": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), "tls.key": issuer["tls.key"], "rotation.json": rotation,
	}, err
}

// TestCheckNamesWrongClock: every process of Causeway's in west is ten minutes ahead, as on nodes with the wrong time. Both clusters
// say whose clock it is, by their API servers'; and once the time is right all is well, though certificates of the future were kept.
func TestCheckNamesWrongClock(t *testing.T) {
	ctx := t.Context()
	must(t, west.LoadImage(ctx, filepath.Join(setting("CAUSEWAY_IMAGES", "../../build"), "causeway-ahead.tar")))
	t.Cleanup(func() {
		must(t, west.install(background()))
		serves(t)
		must(t, poll(background(), time.Minute, func() error {
			return west.condition(background(), "east", v1alpha1.LinkTrusted, "True Trusted")
		}))
		sound(t)
	})
	have(west.causeway(ctx, "install", "--cluster-name", "west", "--set", "image.tag=ahead"))(t)
	named(t, west, time.Minute, quick,
		finding{"clock", west.Nodes()[0], "fail", "the node's clock is 10 minutes ahead of the API server's"},
		finding{"clock", "causeway-controller-", "fail", "its clock is 10 minutes ahead of the API server's"})
	named(t, east, time.Minute, quick, finding{"clock", "west", "fail", "the peer's clock is 10 minutes ahead of the API server's"})
	agree(t, east, "not Trusted (ClockSkew)", "10m0s ahead of ours")
}
