//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-mesh/causeway/lab"
)

// A store is a pod of a cluster in whose network the servers of long-lived connections run.
type store struct {
	*cluster
	mirror string // its name in west
}

// storeService is the Service of that pod. Its selector and the names of its ports can vary.
func storeService(selector string, names ...string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: store, namespace: shop, labels: {causeway.dev/export: "true"}}
spec:
  selector: {app: %s}
  ports:
    - {name: %s, port: 6379, targetPort: 6379}
    - {name: %s, port: 5432, targetPort: 5432}
    - {name: %s, port: 8081, targetPort: 8081}
---
`, selector, names[0], names[1], names[2])
}

// openStore starts Redis, PostgreSQL and a WebSocket server in the network of a pod of a
// cluster, and waits until they answer through the pod's mirror in west.
func openStore(t *testing.T, in *cluster) *store {
	t.Helper()
	ctx, s := t.Context(), &store{in, "store-" + in.Name()}
	offerIn(t, in, onePod("store", "bar")+storeService("store", "redis", "postgres", "web"), s.mirror)
	must(t, s.kubectl(ctx, "", "-n", "shop", "wait", "--for=condition=Ready", "pod/store", "--timeout=60s"))
	redis, err := s.Exec(ctx, lab.InPod("shop", "store"), "bash", "-c",
		`exec -a redis-server redis-check-rdb --port 6379 --bind 0.0.0.0 --protected-mode no --save "" --dir "$1"`, "bash", t.TempDir())
	must(t, err)
	startProcess(t, redis)
	s.startPostgres(t)
	ln := have(inside(netOf(t, in, "store"), func() (net.Listener, error) { return net.Listen("tcp", "0.0.0.0:8081") }))(t)
	server := &http.Server{
		Handler:           websocket.Handler(func(c *websocket.Conn) { io.Copy(c, c) }),
		ReadHeaderTimeout: 10 * time.Second,
	}
	var serving sync.WaitGroup
	serving.Go(func() { server.Serve(ln) })
	t.Cleanup(func() { server.Close(); serving.Wait() })

	within(t, 30*time.Second, "the mirror of the store answers", func() error {
		if err := s.ask(ctx); err != nil {
			return err
		}
		_, err := west.output(ctx, lab.InPod("shop", "client"), "redis-cli", "-h", s.host(), "ping")
		return err
	})
	return s
}

// host is the name by which west's pods connect.
func (s *store) host() string { return s.mirror + ".shop" }

// ask opens a connection of west's client to PostgreSQL, and asks one question.
func (s *store) ask(ctx context.Context) error {
	_, err := sql(ctx, west, "client", s.host(), "SELECT 1")
	return err
}

// sql runs statements by psql in the store's own pod.
func (s *store) sql(ctx context.Context, statements string) (string, error) {
	return sql(ctx, s.cluster, "store", "127.0.0.1", statements)
}

// startProcess starts a command and kills it with the test.
func startProcess(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
}

// startPostgres starts the machine's PostgreSQL in the network of the store's pod, with a
// table of copySize bytes.
func (s *store) startPostgres(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	found := have(filepath.Glob("/usr/lib/postgresql/*/bin/initdb"))(t)
	if len(found) == 0 {
		t.Fatal("this machine has no PostgreSQL: hack/e2e installs it")
	}
	bin := filepath.Dir(found[len(found)-1])
	data := have(os.MkdirTemp("", "causeway-e2e-postgres-"))(t)
	t.Cleanup(func() { os.RemoveAll(data) })
	// The server refuses to run as root.
	have(output(exec.CommandContext(ctx, "chown", "postgres", data)))(t)
	have(output(exec.CommandContext(ctx, "setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups",
		filepath.Join(bin, "initdb"), "--no-sync", "--auth=trust", "--pgdata="+data)))(t)
	must(t, os.WriteFile(filepath.Join(data, "pg_hba.conf"), []byte("host all all all trust\n"), 0o644))
	server, err := s.Exec(ctx, lab.InPod("shop", "store"), "setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups",
		filepath.Join(bin, "postgres"), "-D", data, "-c", "listen_addresses=*", "-c", "unix_socket_directories=",
		"-c", "fsync=off", "-c", "synchronize_seqscans=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off", "-c", "max_wal_size=4GB")
	must(t, err)
	startProcess(t, server)
	within(t, 30*time.Second, "PostgreSQL has its table", func() error {
		_, err := s.sql(ctx, fmt.Sprintf(`CREATE TABLE IF NOT EXISTS goods AS
			SELECT g AS id, repeat(md5(g::text), 32) AS body FROM generate_series(1, %d) g;
			CREATE TABLE IF NOT EXISTS uploaded (id int, body text)`, copyRows()))
		return err
	})
}

// copyRows is how many rows of about 1 KiB a COPY has.
func copyRows() int { return sized(32<<10, 1<<20) }

// copyTime is about how long a COPY takes, each way.
func copyTime() time.Duration { return time.Duration(sized(8, 40)) * time.Second }

// sql runs statements by psql in a pod's network.
func sql(ctx context.Context, c *cluster, pod, host, statements string) (string, error) {
	return c.output(ctx, lab.InPod("shop", pod), "psql", "-h", host, "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-qAt", "-c", statements)
}

// A liveStream is a long-lived connection of a real client.
type liveStream struct {
	what string
	// alive sends something there and back, in time.
	alive func(within time.Duration) error
}

// openStreams opens one of each kind from west's client pod, by way of the mirror.
func (s *store) openStreams(t *testing.T) []liveStream {
	t.Helper()
	return []liveStream{s.subscribe(t), s.listenNotify(t), s.webSocket(t)}
}

// lines are those that a command has written, as they come.
func lines(t *testing.T, cmd *exec.Cmd) <-chan string {
	t.Helper()
	out := have(cmd.StdoutPipe())(t)
	cmd.Stderr = cmd.Stdout
	startProcess(t, cmd)
	ch := make(chan string, 1024)
	go func() {
		defer close(ch)
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			ch <- scanner.Text()
		}
	}()
	return ch
}

// awaitLine waits for a line that contains a text.
func awaitLine(ch <-chan string, text string, within time.Duration) error {
	late := time.After(within)
	for last := ""; ; {
		select {
		case line, ok := <-ch:
			if !ok {
				return fmt.Errorf("%w: it ended; its last line is %q", io.EOF, last)
			}
			if last = line; strings.Contains(line, text) {
				return nil
			}
		case <-late:
			return fmt.Errorf("no %q in %v; its last line is %q", text, within, last)
		}
	}
}

// subscribe is a redis-cli that subscribes to a channel.
func (s *store) subscribe(t *testing.T) liveStream {
	t.Helper()
	ctx := t.Context()
	cmd := have(west.Exec(ctx, lab.InPod("shop", "client"), "redis-cli", "-h", s.host(), "subscribe", "news"))(t)
	said := lines(t, cmd)
	must(t, awaitLine(said, "subscribe", 10*time.Second))
	n := 0
	return liveStream{"redis-cli SUBSCRIBE", func(within time.Duration) error {
		n++
		message := fmt.Sprintf("message-%d-of-%d", n, time.Now().UnixNano())
		if _, err := s.output(ctx, lab.InPod("shop", "store"), "redis-cli", "publish", "news", message); err != nil {
			return err
		}
		return awaitLine(said, message, within)
	}}
}

// listenNotify is a psql that listens for notifications. A psql that had to connect again
// would not listen any more.
func (s *store) listenNotify(t *testing.T) liveStream {
	t.Helper()
	ctx := t.Context()
	cmd := have(west.Exec(ctx, lab.InPod("shop", "client"), "psql", "-h", s.host(), "-U", "postgres", "-qAt"))(t)
	stdin := have(cmd.StdinPipe())(t)
	said := lines(t, cmd)
	have(io.WriteString(stdin, "LISTEN news;\nSELECT 'ready';\n"))(t)
	must(t, awaitLine(said, "ready", 10*time.Second))
	n := 0
	return liveStream{"psql LISTEN", func(within time.Duration) error {
		n++
		message := fmt.Sprintf("notice-%d-of-%d", n, time.Now().UnixNano())
		if _, err := s.sql(ctx, "NOTIFY news, '"+message+"'"); err != nil {
			return err
		}
		// psql prints notifications after a statement.
		if _, err := fmt.Fprintln(stdin, "SELECT pg_sleep(0.05);"); err != nil {
			return err
		}
		return awaitLine(said, `"`+message+`"`, within)
	}}
}

// webSocket is a WebSocket to an echo.
func (s *store) webSocket(t *testing.T) liveStream {
	t.Helper()
	tcp := have(dial(t.Context(), netOf(t, west, "client"), mirrorOf(t, s.mirror, 8081)))(t)
	config := have(websocket.NewConfig("ws://"+s.host()+":8081/", "http://client.shop/"))(t)
	must(t, tcp.SetDeadline(time.Now().Add(10*time.Second)))
	c := have(websocket.NewClient(config, tcp))(t)
	t.Cleanup(func() { c.Close() })
	n := 0
	return liveStream{"WebSocket", func(within time.Duration) error {
		n++
		sent := fmt.Sprintf("frame-%d", n)
		tcp.SetDeadline(time.Now().Add(within))
		if err := websocket.Message.Send(c, sent); err != nil {
			return err
		}
		var got string
		if err := websocket.Message.Receive(c, &got); err != nil {
			return err
		}
		if got != sent {
			return fmt.Errorf("the echo of %q is %q", sent, got)
		}
		return nil
	}}
}

// live fails the test for each stream that has ended.
func live(t *testing.T, streams []liveStream, after string, within time.Duration) {
	t.Helper()
	for _, s := range streams {
		if err := s.alive(within); err != nil {
			t.Errorf("%s does not live on after %s: %v", s.what, after, err)
		}
	}
}

// startCopies runs a COPY each way, slowly, so that something can happen meanwhile: it takes
// lasts or longer. wait waits for the end of both, and fails the test unless every byte has
// arrived.
func (s *store) startCopies(t *testing.T, lasts time.Duration) (wait func()) {
	t.Helper()
	ctx := t.Context()
	type copied struct {
		sum hash.Hash
		n   int64
		err error
	}
	rate := int64(copyRows()) << 10 / int64(lasts.Seconds()) // bytes per second
	psql := func(c *cluster, pod, host, statement string) *exec.Cmd {
		return have(c.Exec(ctx, lab.InPod("shop", pod), "psql", "-h", host, "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-q", "-c", statement))(t)
	}
	run := func(cmd *exec.Cmd, do func() (int64, hash.Hash, error)) <-chan copied {
		var log strings.Builder
		cmd.Stderr = &log
		must(t, cmd.Start())
		done := make(chan copied, 1)
		go func() {
			n, sum, err := do()
			if werr := cmd.Wait(); werr != nil {
				err = fmt.Errorf("%w: %s; %w", werr, strings.TrimSpace(log.String()), err)
			}
			done <- copied{sum, n, err}
		}()
		return done
	}
	var received atomic.Int64
	start := time.Now()
	down := psql(west, "client", s.host(), "COPY goods TO STDOUT")
	from := have(down.StdoutPipe())(t)
	downloaded := run(down, func() (int64, hash.Hash, error) {
		sum := sha256.New()
		n, err := io.Copy(sum, slowed{from, rate, time.Now(), &received})
		return n, sum, err
	})
	have(s.sql(ctx, "TRUNCATE uploaded"))(t)
	up := psql(west, "client", s.host(), "COPY uploaded FROM STDIN")
	to := have(up.StdinPipe())(t)
	local := psql(s.cluster, "store", "127.0.0.1", "COPY goods TO STDOUT")
	source := have(local.StdoutPipe())(t)
	startProcess(t, local)
	uploaded := run(up, func() (int64, hash.Hash, error) {
		sum := sha256.New()
		n, err := io.Copy(to, io.TeeReader(slowed{source, rate, time.Now(), new(atomic.Int64)}, sum))
		to.Close()
		return n, sum, err
	})
	must(t, poll(ctx, 5*time.Second, func() error {
		const begun = "SELECT command, bytes_processed FROM pg_stat_progress_copy"
		progress, err := s.sql(ctx, begun)
		if err == nil && (received.Load() == 0 || !uploads.MatchString(progress)) {
			err = fmt.Errorf("%d bytes have come down; the server says %q", received.Load(), progress)
		}
		return err
	}))
	return func() {
		t.Helper()
		d, u := <-downloaded, <-uploaded
		took := time.Since(start)
		if d.err != nil {
			t.Errorf("COPY TO ended after %d bytes: %v", d.n, d.err)
		}
		if u.err != nil {
			t.Errorf("COPY FROM ended after %d bytes: %v", u.n, u.err)
		}
		if d.err != nil || u.err != nil {
			return
		}
		if string(d.sum.Sum(nil)) != string(u.sum.Sum(nil)) {
			t.Errorf("COPY TO gave %d bytes, not the %d of the table", d.n, u.n)
		}
		const compare = "SELECT count(*) FROM goods JOIN uploaded USING (id, body)"
		if got := have(s.sql(ctx, compare))(t); strings.TrimSpace(got) != strconv.Itoa(copyRows()) {
			t.Errorf("%s of %d rows have arrived by COPY FROM", strings.TrimSpace(got), copyRows())
		}
		t.Logf("COPY of %d MiB each way in %.1f s", d.n>>20, took.Seconds())
	}
}

// uploads matches what the server says of a COPY FROM that has begun.
var uploads = regexp.MustCompile(`COPY FROM\|[1-9]`)

// slowed is a reader with a rate.
type slowed struct {
	io.Reader
	rate  int64 // bytes per second
	start time.Time
	done  *atomic.Int64
}

func (s slowed) Read(b []byte) (int, error) {
	n, err := s.Reader.Read(b[:min(len(b), 64<<10)])
	due := time.Duration(float64(s.done.Add(int64(n))) / float64(s.rate) * float64(time.Second))
	<-time.After(time.Until(s.start.Add(due)))
	return n, err
}

// TestStreamsLiveOn: what subscribes, listens, copies or holds a WebSocket goes on through
// changes of its Service, an outage of the WAN, and replaced gateways and agents, as long as
// their drain period lasts.
func TestStreamsLiveOn(t *testing.T) {
	ctx := t.Context()
	serves(t)
	drain := drainForCopy(t, west, east)
	s := openStore(t, east)
	t.Run("a selector that moves and a port that is renamed", func(t *testing.T) {
		streams, wait := s.openStreams(t), s.startCopies(t, copyTime())
		must(t, east.kubectl(ctx, storeService("nobody", "redis", "postgres", "web"), "apply", "-f", "-"))
		sleep(ctx, 3*time.Second)
		live(t, streams, "its Service selects no pod", 5*time.Second)
		must(t, east.kubectl(ctx, storeService("store", "cache", "database", "socket"), "apply", "-f", "-"))
		sleep(ctx, 3*time.Second)
		live(t, streams, "its port has another name", 5*time.Second)
		wait()
		within(t, 30*time.Second, "new connections are served", func() error {
			return s.ask(ctx)
		})
	})
	t.Run("an outage of the WAN", func(t *testing.T) {
		streams, wait := s.openStreams(t), s.startCopies(t, copyTime())
		must(t, west.lab.Cut(ctx, "west", "east"))
		mend := sync.OnceFunc(func() { must(t, west.lab.Mend(background(), "west", "east")) })
		t.Cleanup(mend)
		sleep(ctx, time.Duration(sized(6, 45))*time.Second)
		mend()
		live(t, streams, "an outage", time.Minute)
		wait()
		serves(t)
	})
	for _, tc := range []struct {
		what, kind, component string
		c                     *cluster
	}{
		{"gateways replaced", "deployment", "gateway", east},
		{"the callers' agent replaced", "daemonset", "agent", west},
		{"the far agent replaced", "daemonset", "agent", east},
	} {
		t.Run(tc.what, func(t *testing.T) {
			streams, wait := s.openStreams(t), s.startCopies(t, copyTime())
			open := hold(t, "connection to an echo", netOf(t, west, "client"), mirrorOf(t, "bar-east", 7001), "hello\n")
			drained := followDrains(t, tc.c, tc.component)
			start := time.Now()
			roll(t, tc.c, tc.kind, tc.component)
			live(t, streams, tc.what, 5*time.Second)
			wait()
			if full() {
				sleep(ctx, time.Until(start.Add(drain-10*time.Second)))
				live(t, streams, "most of the drain period", 5*time.Second)
				open.lives(t)
				drained.end(t, streams, open)
			}
			serves(t)
		})
	}
}

// defaultDrain is the drain period of agents and gateways.
const defaultDrain = time.Minute

// drainForCopy returns a drain period within which a COPY ends. If the default is too
// short, it installs another one in clusters for the length of the test.
func drainForCopy(t *testing.T, clusters ...*cluster) time.Duration {
	t.Helper()
	if !full() {
		return defaultDrain
	}
	const seconds = "180"
	for _, c := range clusters {
		t.Cleanup(func() { must(t, c.install(background())) })
		must(t, c.install(t.Context(), "agent.drainSeconds="+seconds, "gateway.drainSeconds="+seconds))
	}
	return have(time.ParseDuration(seconds + "s"))(t)
}

// drains are processes that are about to be replaced.
type drains struct {
	c     *cluster
	pods  []corev1.Pod
	reset chan int // how many connections each process has reset after its drain period
}

// followDrains follows the logs of a component's processes until they end.
func followDrains(t *testing.T, c *cluster, component string) *drains {
	t.Helper()
	d := &drains{c: c, pods: have(c.pods(t.Context(), component))(t)}
	d.reset = make(chan int, len(d.pods))
	from := metav1.Now()
	for _, p := range d.pods {
		log := c.api.CoreV1().Pods(system).GetLogs(p.Name, &corev1.PodLogOptions{Container: component, Follow: true, SinceTime: &from})
		go func() {
			raw, _ := log.DoRaw(t.Context())
			n := 0
			for line := range strings.Lines(string(raw)) {
				var e entry
				if json.Unmarshal([]byte(line), &e) == nil && e.text("msg") == "drain period is over, open connections were reset" {
					count, _ := e["connections"].(float64)
					n += int(count)
				}
			}
			d.reset <- n
		}()
	}
	return d
}

// end waits until the drain periods are over. It fails the test unless all processes have
// ended then, and have reset and counted the open connections.
func (d *drains) end(t *testing.T, streams []liveStream, open *caller) {
	t.Helper()
	reset := 0
	for _, p := range d.pods {
		// The kubelet kills a process 10 s after its drain period.
		within(t, 4*time.Minute, p.Name+" is gone", func() error {
			now, err := d.c.api.CoreV1().Pods(system).Get(t.Context(), p.Name, getOptions)
			if apierrors.IsNotFound(err) {
				return nil
			}
			if err == nil {
				err = fmt.Errorf("it is there, to be deleted at %v", now.DeletionTimestamp)
			}
			return err
		})
		reset += <-d.reset
	}
	open.isReset(t, time.Now(), time.Second)
	for _, s := range streams {
		if err := s.alive(5 * time.Second); !isCut(err) {
			t.Errorf("after the drain period %s gets %v, want a reset", s.what, err)
		}
	}
	t.Logf("%d connections were reset after the drain period", reset)
	if least := len(streams) + 1; reset < least {
		t.Errorf("the log counts %d connections that were reset after the drain period, want %d at least", reset, least)
	}
}

// isCut reports whether a stream has ended because its connection was reset.
func isCut(err error) bool { return errors.Is(err, io.EOF) || refused(err) }

// lateBalancer is the public address of a load balancer that the test runs itself.
const lateBalancer = "198.18.2.200"

// TestLateLoadBalancer: behind a load balancer that notices 20 s late that a gateway is
// going, all gateways are replaced. No new call fails, also when the gateways cease to
// accept connections, and open streams live for the drain period. All settings are the
// defaults, but for the drain period that a COPY of full size needs.
func TestLateLoadBalancer(t *testing.T) {
	ctx := t.Context()
	const late = 20 * time.Second
	drain := drainForCopy(t, east)
	serves(t)
	s := openStore(t, east)
	must(t, east.kubectl(ctx, `
apiVersion: v1
kind: Service
metadata: {name: late, namespace: `+system+`}
spec:
  type: LoadBalancer
  loadBalancerIP: `+lateBalancer+`
  externalTrafficPolicy: Local
  ports: [{name: gateway, port: 4143}]
`, "apply", "-f", "-"))
	balancing, stop := context.WithCancel(ctx)
	var balancer sync.WaitGroup
	t.Cleanup(func() {
		stop()
		balancer.Wait()
		if err := west.relink(background(), "east", `{"gateways":null,"gatewayCIDRs":null}`); err != nil {
			t.Error(err)
		}
		must(t, introduce(background(), east, west))
		must(t, east.kubectl(background(), "", "-n", system, "delete", "service/late", "endpointslice/late", "--ignore-not-found"))
		serves(t)
	})
	balancer.Go(func() { balance(balancing, t, late) })
	wan := west.lab.WAN().Netns()
	within(t, 20*time.Second, "the balancer answers", func() error {
		c, err := dial(ctx, wan, net.JoinHostPort(lateBalancer, "4143"))
		if err == nil {
			c.Close()
		}
		return err
	})
	must(t, west.relink(ctx, "east", `{"gateways":["`+lateBalancer+`:4143"],"gatewayCIDRs":["`+lateBalancer+`/32"]}`))
	node := have(west.NodeNetns(""))(t)
	freshAgent(t, west) // so that no session leads elsewhere
	within(t, 30*time.Second, "all sessions go by way of the balancer", func() error {
		cmd := exec.CommandContext(ctx, "nsenter", "--net="+node, "ss", "-Htn", "state", "established", "dport", "=", ":4143")
		out, err := output(cmd)
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			if !strings.Contains(line, lateBalancer) {
				return fmt.Errorf("a session goes elsewhere: %s", line)
			}
		}
		return answers(ctx, "bar-east")
	})
	load := startLoad(t, netOf(t, west, "client"), mirrorOf(t, "bar-east", 80))
	streams, wait := s.openStreams(t), s.startCopies(t, copyTime())
	sleep(ctx, 2*time.Second)
	start := time.Now()
	roll(t, east, "deployment", "gateway")
	rolled := time.Now()
	live(t, streams, "gateways replaced", 5*time.Second)
	wait()
	sleep(ctx, min(late, time.Until(start.Add(drain-10*time.Second))))
	live(t, streams, "the balancer has noticed", 5*time.Second)
	// A gateway accepts connections for half of its drain period.
	sleep(ctx, time.Until(rolled.Add(drain/2-leaveTime+3*time.Second)))
	f := load.stop(t)
	t.Log(f)
	if len(f.fails) > 0 {
		t.Errorf("%d of %d new calls failed:\n%s", len(f.fails), f.calls, strings.Join(f.fails[:min(len(f.fails), 10)], "\n"))
	}
	if f.calls < 500 {
		t.Errorf("%d calls are no load", f.calls)
	}
}

// balance keeps the endpoints of the Service late: each ready gateway at once, and each that
// is going until late after it was seen so.
func balance(ctx context.Context, t *testing.T, late time.Duration) {
	type backend struct {
		node  string
		going time.Time // zero while it is ready
	}
	backends := make(map[netip.Addr]*backend)
	written := ""
	for ; ctx.Err() == nil; sleep(ctx, 200*time.Millisecond) {
		list, err := east.api.CoreV1().Pods(system).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=gateway"})
		if err != nil {
			continue
		}
		ready := make(map[netip.Addr]bool)
		for i := range list.Items {
			p := &list.Items[i]
			addr, err := netip.ParseAddr(p.Status.PodIP)
			if err != nil || !isReady(p) || p.DeletionTimestamp != nil {
				continue
			}
			ready[addr] = true
			backends[addr] = &backend{node: p.Spec.NodeName}
		}
		var endpoints []discoveryv1.Endpoint
		for addr, b := range backends {
			if !ready[addr] && b.going.IsZero() {
				b.going = time.Now()
			}
			if !b.going.IsZero() && time.Since(b.going) > late {
				delete(backends, addr)
				continue
			}
			endpoints = append(endpoints, discoveryv1.Endpoint{Addresses: []string{addr.String()}, NodeName: &b.node})
		}
		slices.SortFunc(endpoints, func(a, b discoveryv1.Endpoint) int { return strings.Compare(a.Addresses[0], b.Addresses[0]) })
		if now := fmt.Sprint(len(endpoints), endpoints); now == written || len(endpoints) == 0 {
			continue
		} else if err := writeEndpoints(ctx, endpoints); err != nil {
			t.Logf("the balancer cannot write its endpoints: %v", err)
		} else {
			written = now
		}
	}
}

func writeEndpoints(ctx context.Context, endpoints []discoveryv1.Endpoint) error {
	name, port, protocol := "gateway", int32(4143), corev1.ProtocolTCP
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Name:      "late",
			Namespace: system,
			Labels:    map[string]string{discoveryv1.LabelServiceName: "late"},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   endpoints,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &protocol}},
	}
	slices := east.api.DiscoveryV1().EndpointSlices(system)
	_, err := slices.Update(ctx, slice, metav1.UpdateOptions{})
	if err != nil {
		_, err = slices.Create(ctx, slice, metav1.CreateOptions{})
	}
	return err
}
