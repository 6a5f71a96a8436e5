//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/causeway-mesh/causeway/lab"
)

// nginxConfig has nginx answer with the PROXY header. nginx keeps its files in %[1]s.
const nginxConfig = `
daemon off;
master_process off;
pid %[1]s/pid;
error_log stderr;
events {}
http {
  access_log off;
  client_body_temp_path %[1]s/body;
  proxy_temp_path %[1]s/proxy;
  fastcgi_temp_path %[1]s/fastcgi;
  uwsgi_temp_path %[1]s/uwsgi;
  scgi_temp_path %[1]s/scgi;
  server {
    listen 8080 proxy_protocol;
    location / { return 200 "$proxy_protocol_server_port%[2]s"; }
  }
}
`

// tlvOfNginx is the variable that docs/using.md names. nginx has it since 1.23.2, and
// Debian 12 has 1.22.1.
const tlvOfNginx = " $proxy_protocol_tlv_ssl_cn"

var nginxVersion = regexp.MustCompile(`nginx/(\d+)\.(\d+)\.(\d+)`)

// nginxHasTLVs reports whether the machine's nginx has tlvOfNginx.
func nginxHasTLVs(t *testing.T) bool {
	t.Helper()
	said := string(have(exec.CommandContext(t.Context(), "nginx", "-v").CombinedOutput())(t))
	match := nginxVersion.FindStringSubmatch(said)
	if match == nil {
		t.Fatalf("nginx -v says %q", said)
	}
	version := 0
	for _, part := range match[1:] {
		version = version*1000 + have(strconv.Atoi(part))(t)
	}
	t.Logf("the machine has %s", match[0])
	return version >= 1_023_002
}

// TestNginxReadsCallers: nginx learns the callers of its connections by the PROXY
// protocol, as docs/using.md describes. An nginx that is too old for that still accepts
// the header.
func TestNginxReadsCallers(t *testing.T) {
	ctx := t.Context()
	offer(t, podWithService("nginx", ", "+recognized+", annotations: {causeway.dev/forward-identity: proxy-v2}", 8080), "nginx-east")
	must(t, east.kubectl(ctx, "", "-n", "shop", "wait", "--for=condition=Ready", "pod/nginx", "--timeout=60s"))
	dir, tlv, want := t.TempDir(), "", func(string) string { return "8080" }
	if nginxHasTLVs(t) {
		tlv = tlvOfNginx
		want = func(account string) string { return "8080 " + callerID(t, account) }
	}
	config := filepath.Join(dir, "nginx.conf")
	must(t, os.WriteFile(config, fmt.Appendf(nil, nginxConfig, dir, tlv), 0o600))
	startProcess(t, have(east.Exec(ctx, lab.InPod("shop", "nginx"), "nginx", "-e", "stderr", "-p", dir, "-c", config))(t))
	within(t, soon, "nginx answers", func() error {
		_, err := west.curl(ctx, "client", "-sSf", "-m5", "http://nginx-east.shop:8080/")
		return err
	})
	address := mirrorOf(t, "nginx-east", 8080)
	clients := make(map[string]*http.Client)
	for _, account := range []string{"client", "guest"} {
		clients[account] = httpClient(t, func(ctx context.Context, address string) (net.Conn, error) {
			return dial(ctx, netOf(t, west, account), address)
		}, false, 1)
	}
	// The far agent keeps connections to nginx, each for one caller.
	for i := range 50 {
		for account, client := range clients {
			got, _, err := get(ctx, client, "http://"+address+"/")
			if err != nil || got != want(account) {
				t.Fatalf("request %d of %s: nginx learns %q, %v; want %q", i, account, got, err, want(account))
			}
		}
	}
	// A connection that is not HTTP to Causeway has a header too: here the first bytes are late.
	for account := range clients {
		c := have(dial(ctx, netOf(t, west, account), address))(t)
		defer c.Close()
		must(t, c.SetDeadline(time.Now().Add(10*time.Second)))
		sleep(ctx, 1500*time.Millisecond)
		have(fmt.Fprint(c, "GET / HTTP/1.0\r\n\r\n"))(t)
		answer, err := io.ReadAll(c)
		if err != nil || !strings.HasSuffix(string(answer), "\r\n"+want(account)) {
			t.Errorf("on an opaque connection of %s nginx learns %q, %v", account, answer, err)
		}
	}
}
