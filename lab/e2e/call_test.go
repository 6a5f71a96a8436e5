//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

// TestCallByNameAndClusterIP: `curl http://bar-east.shop/` in a west pod answers from east's pods, by name and by ClusterIP; east's
// agent logs the west pod's SPIFFE ID.
func TestCallByNameAndClusterIP(t *testing.T) {
	ctx, since := t.Context(), time.Now()
	answered := make(map[string]int)
	ip := have(clusterIP(ctx, west, "bar-east"))(t)
	for i := range 24 {
		url := []string{"http://bar-east.shop/", "http://bar-east.shop.svc.cluster.local/", "http://" + ip + "/"}[i%3]
		said := have(west.curl(ctx, "client", "-sSf", "-m5", url))(t)
		who, ok := strings.CutPrefix(strings.TrimSpace(said), "bar served by ")
		who, where, _ := strings.Cut(who, " in ")
		if !ok || where != "east" {
			t.Fatalf("%s answers %q, want one of east's pods of bar", url, said)
		}
		answered[who]++
	}
	if len(answered) != 2 {
		t.Errorf("24 calls were answered by %v, want both pods", answered)
	}
	want := callerID(t, "client")
	within(t, 5*time.Second, "east's agent logs the caller", func() error {
		lines, err := east.logs(ctx, "agent", since)
		if err != nil {
			return err
		}
		served := slices.DeleteFunc(lines, func(e entry) bool { return e.text("msg") != "connection served" || e.text("caller") != want })
		if len(served) != 24 {
			return fmt.Errorf("%d calls by %s in its log, want 24", len(served), want)
		}
		return nil
	})
}

// TestWireShowsNothing: a capture in the WAN shows TLS to one port only, no service name in clear, no SNI twice.
func TestWireShowsNothing(t *testing.T) {
	ctx := t.Context()
	const calls = 40
	exportAs(t, "needlework") // a name that no ciphertext has by chance
	within(t, 30*time.Second, "needlework is mirrored", func() error {
		_, err := west.curl(ctx, "client", "-sSf", "-m2", "http://needlework-east.shop/")
		return err
	})
	// What the catalog says of it must be on the wire of this capture, too.
	stop, packets := capture(t, "west")
	must(t, east.kubectl(ctx, "", "-n", "shop", "label", "service", "needlework", "causeway.dev/export-"))
	must(t, gone(t, "needlework-east"))
	must(t, east.kubectl(ctx, "", "-n", "shop", "label", "service", "needlework", "causeway.dev/export=true"))
	client := netOf(t, west, "client")
	within(t, 30*time.Second, "needlework is mirrored anew", func() error {
		_, err := clusterIP(ctx, west, "needlework-east")
		return err
	})
	address := "http://" + mirrorOf(t, "needlework-east", 80)
	within(t, 10*time.Second, "needlework answers", func() error { _, err := fetch(ctx, client, address); return err })
	for range calls {
		if _, err := fetch(ctx, client, address); err != nil {
			t.Fatal(err)
		}
	}
	// The last packet says that all before it are in the file, and that the search below finds what is in clear.
	const marker = "needlework, in clear and on purpose"
	last := have(dial(ctx, have(west.NodeNetns(""))(t), gatewayOf(t, east).String()))(t)
	have(last.Write([]byte(marker)))(t)
	must(t, last.Close())
	within(t, 10*time.Second, "the capture has it all", func() error {
		if !bytes.Contains(packets(), []byte(marker)) {
			return errNotYet
		}
		return nil
	})
	stop()
	flows := flowsOf(t, packets())
	all := len(flows)
	flows = slices.DeleteFunc(flows, func(f flow) bool { return bytes.Contains(f.data, []byte(marker)) })
	if len(flows) != all-1 {
		t.Errorf("%d flows are in clear, want the marker's alone: the search finds nothing", all-len(flows))
	}

	seen, hellos := make(map[string]bool), 0
	for _, f := range flows {
		if f.from.Port() != 4143 && f.to.Port() != 4143 {
			t.Errorf("%v → %v is neither to nor from port 4143", f.from, f.to)
		}
		if !f.whole {
			continue // began before the capture, as the catalog stream did; its bytes are searched below
		}
		hello, err := recordsOf(f.data)
		if err != nil {
			t.Errorf("%v → %v is not TLS: %v", f.from, f.to, err)
			continue
		}
		if f.to.Port() != 4143 {
			continue
		}
		h, err := transport.ParseClientHello(hello)
		if err != nil {
			t.Errorf("%v → %v begins with no ClientHello: %v", f.from, f.to, err)
			continue
		}
		if hellos++; h.ServerName == "" || seen[h.ServerName] {
			t.Errorf("SNI %q was seen before, or is none", h.ServerName)
		}
		seen[h.ServerName] = true
		if !strings.HasSuffix(h.ServerName, ".causeway.internal") {
			t.Errorf("SNI %q is no sealed label", h.ServerName)
		}
	}
	if hellos == 0 { // calls share sessions, and the catalog stream may be older
		t.Error("no ClientHello was captured: the capture shows nothing")
	}
	for _, word := range []string{"needlework", "served by", "spiffe://", "/sa/client", "kube-system"} {
		for _, f := range flows {
			if bytes.Contains(bytes.ToLower(f.data), []byte(word)) {
				t.Errorf("%q is in clear in %v → %v", word, f.from, f.to)
			}
		}
	}
	t.Logf("%d flows, %d ClientHellos", len(flows), hellos)
}

// TestOnePortOnly asserts the firewall itself: what tests show of clusters that reach each other by one port alone is worth no more.
func TestOnePortOnly(t *testing.T) {
	ctx := t.Context()
	gateway := gatewayOf(t, east)
	before := have(west.lab.Firewall(ctx))(t)
	// No session with a new mirror exists, so the first call needs a connection to the gateway.
	exportAs(t, "wicket")
	within(t, 30*time.Second, "a new mirror answers", func() error {
		_, err := west.curl(ctx, "client", "-sSf", "-m5", "http://wicket-east.shop/")
		return err
	})
	after := have(west.lab.Firewall(ctx))(t)
	if after.Admitted.Packets == before.Admitted.Packets {
		t.Errorf("calls were answered and the firewall admitted nothing: %+v", after)
	}
	for _, port := range []string{"22", "80", "4144", "4146", "4200", "6443", "9464", "10250"} {
		before := have(west.lab.Firewall(ctx))(t)
		if said, err := west.curl(ctx, "client", "-sS", "-m3", "http://"+gateway.Addr().String()+":"+port+"/"); err == nil {
			t.Errorf("port %s of east answers %q", port, said)
		}
		after := have(west.lab.Firewall(ctx))(t)
		if after.Refused.Packets == before.Refused.Packets {
			t.Errorf("port %s: the firewall counted no refusal", port)
		}
	}
}

// capture records what passes a link of the WAN's until stop; packets then reads it.
func capture(t *testing.T, link string) (stop func(), packets func() []byte) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "capture.pcap")
	cmd := west.lab.WAN().Command(t.Context(), "tcpdump", "-i", link, "-s0", "-U", "--immediate-mode", "-B", "65536", "-Z", "root", "-w", file)
	var log bytes.Buffer
	cmd.Stderr = &log
	must(t, cmd.Start())
	stop = func() {
		_ = cmd.Process.Signal(syscall.SIGINT)
		if err := cmd.Wait(); err != nil {
			t.Errorf("tcpdump: %v: %s", err, &log)
		}
		if !strings.Contains(log.String(), "\n0 packets dropped by kernel") {
			t.Errorf("the capture is not whole: %s", &log)
		}
	}
	within(t, 10*time.Second, "tcpdump listens", func() error {
		if out, err := exec.Command("wc", "-c", file).Output(); err != nil || strings.HasPrefix(string(out), "0 ") {
			return errNotYet
		}
		return nil
	})
	return stop, func() []byte { return have(readFile(file))(t) }
}

// callerID is the SPIFFE ID of an account of west's namespace shop.
func callerID(t *testing.T, account string) string {
	t.Helper()
	return "spiffe://" + have(west.trustDomain(t.Context()))(t) + "/ns/shop/sa/" + account
}

// exportAs makes another Service of bar's pods in east, exported, for the length of the test.
func exportAs(t *testing.T, name string) {
	t.Helper()
	must(t, east.kubectl(t.Context(), fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: shop, labels: {causeway.dev/export: "true"}, annotations: {causeway.dev/protocol: tcp}}
spec:
  selector: {app: bar}
  ports: [{name: http, port: 80, targetPort: http}]
`, name), "apply", "-f", "-"))
	t.Cleanup(func() {
		_ = east.kubectl(background(), "", "-n", "shop", "delete", "service", name, "--ignore-not-found")
		if err := gone(t, name+"-east"); err != nil {
			t.Error(err)
		}
	})
}
