//go:build e2e

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/causeway-mesh/causeway/lab"
)

// TestRedis: redis-cli works. The server is the machine's redis, too: Debian's redis-check-rdb is the server under another name.
func TestRedis(t *testing.T) {
	ctx := t.Context()
	server, err := east.Exec(ctx, lab.InPod("shop", "redis"), "bash", "-c", `exec -a redis-server redis-check-rdb --port 6379 --bind 0.0.0.0 --protected-mode no --save "" --dir "$1"`, "bash", t.TempDir())
	must(t, err)
	must(t, server.Start())
	t.Cleanup(func() { _ = server.Process.Kill(); _ = server.Wait() })
	cli := func(stdin string, args ...string) (string, error) {
		cmd, err := west.Exec(ctx, lab.InPod("shop", "client"), append([]string{"redis-cli", "-h", "redis-east.shop"}, args...)...)
		if err != nil {
			return "", err
		}
		cmd.Stdin = strings.NewReader(stdin)
		out, err := output(cmd)
		return strings.TrimSpace(out), err
	}
	within(t, 10*time.Second, "redis answers", func() error {
		if said, err := cli("", "ping"); err != nil || said != "PONG" {
			return fmt.Errorf("PING: %q, %w", said, err)
		}
		return nil
	})
	start := time.Now()
	for _, step := range []struct{ command, want string }{
		{"set greeting hello", "OK"}, {"get greeting", "hello"}, {"rpush list a b c", "3"}, {"lrange list 0 -1", "a\nb\nc"}, {"incr n", "1"},
	} {
		if said, err := cli("", strings.Fields(step.command)...); err != nil || said != step.want {
			t.Errorf("%s: %q, %v; want %q", step.command, said, err, step.want)
		}
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("five commands, each on a connection of its own, took %.1f s: something stalls", took.Seconds())
	}
	big := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB
	if said, err := cli(big, "-x", "set", "big"); err != nil || said != "OK" {
		t.Errorf("set big: %q, %v", said, err)
	}
	if said, err := cli("", "get", "big"); err != nil || said != big {
		t.Errorf("get big gives %d bytes, %v; want %d", len(said), err, len(big))
	}
	// Many commands on one connection, one waiting for the other.
	said, err := cli(strings.Repeat("incr n\n", 500))
	if err != nil || !strings.HasSuffix(said, "\n501") {
		t.Errorf("500 commands on one connection end with %q, %v", said[max(0, len(said)-10):], err)
	}
}

// TestServerFirst: a server-first protocol works without a stall.
func TestServerFirst(t *testing.T) {
	ctx := t.Context()
	ns, address := netOf(t, west, "client"), mirrorOf(t, "bar-east", 7000)
	for range 5 {
		start := time.Now()
		c := have(dial(ctx, ns, address))(t)
		said, err := line(c, 5*time.Second)
		if err != nil || !strings.HasPrefix(said, "hello from bar-") {
			t.Errorf("the greeting is %q, %v", said, err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("the greeting took %v, want less than a second", took)
		}
		have(io.WriteString(c, "good day\n"))(t)
		if said, err := line(c, 5*time.Second); err != nil || said != "you said good day\n" {
			t.Errorf("the answer is %q, %v", said, err)
		}
		must(t, c.Close())
	}
}

// TestHalfClose: a caller ends what it sends, and still gets all of the answer and a clean end.
func TestHalfClose(t *testing.T) {
	c := have(dial(t.Context(), netOf(t, west, "client"), mirrorOf(t, "bar-east", 7001)))(t)
	defer c.Close()
	must(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	sent := make([]byte, 3<<20)
	rand.NewChaCha8([32]byte{}).Read(sent)
	go func() {
		_, _ = c.Write(sent)
		_ = c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("the echo gave %d bytes, %v; want the %d sent and a clean end", len(got), err, len(sent))
	}
}

// TestGibibyte: a 1 GiB download has the right checksum.
func TestGibibyte(t *testing.T) {
	ctx := t.Context()
	const size = 1 << 30
	start := time.Now()
	cmd, err := west.Exec(ctx, lab.InPod("shop", "client"), "bash", "-c",
		fmt.Sprintf("set -o pipefail; curl -sSf -m 300 'http://bar-east.shop/download?bytes=%d' | sha256sum", size))
	must(t, err)
	got := have(output(cmd))(t)
	took := time.Since(start)
	t.Logf("1 GiB in %.1f s, %.0f MiB/s", took.Seconds(), 1024/took.Seconds())
	// What it should be is asked of a pod from within east.
	pods := have(east.api.CoreV1().Pods("shop").List(ctx, listOptions))(t)
	for _, p := range pods.Items {
		if p.Labels["app"] == "baz" {
			want := have(east.curl(ctx, p.Name, "-sSf", "-m", "120", fmt.Sprintf("http://localhost:8080/checksum?bytes=%d", size)))(t)
			if strings.Fields(got)[0] != strings.TrimSpace(want) {
				t.Errorf("the download's checksum is %s, want %s", got, want)
			}
			return
		}
	}
	t.Fatal("no pod of baz to ask")
}

// TestKilledAgentsAbortUploads: an application whose caller's upload is cut off by an agent's death sees a reset, never the end: it
// would keep a part for the whole.
func TestKilledAgentsAbortUploads(t *testing.T) {
	for _, c := range []*cluster{east, west} {
		t.Run("in "+c.Name(), func(t *testing.T) {
			ctx := t.Context()
			agent := freshAgent(t, c)
			t.Cleanup(func() { serves(t) })
			ln := have(inside(netOf(t, east, "redis"), func() (net.Listener, error) { return net.Listen("tcp", "0.0.0.0:6379") }))(t)
			defer ln.Close()
			ended := make(chan error, 1)
			begun := make(chan bool)
			go func() {
				app, err := ln.Accept()
				if err == nil {
					defer app.Close()
					_, err = io.ReadFull(app, make([]byte, 1<<20))
					close(begun)
				}
				if err == nil {
					_, err = io.Copy(io.Discard, app) // nil is a clean end
				}
				ended <- err
			}()
			// A pod behind no agent is not ready, and its mirror neither: the case before may just have ended that.
			client, address := netOf(t, west, "client"), mirrorOf(t, "redis-east", 6379)
			var up *net.TCPConn
			within(t, 15*time.Second, "redis-east takes a connection", func() (err error) {
				up, err = dial(ctx, client, address)
				return err
			})
			defer up.Close()
			go func() {
				for buf := make([]byte, 64<<10); ; {
					if _, err := up.Write(buf); err != nil {
						return
					}
				}
			}()
			select {
			case <-begun:
			case <-time.After(10 * time.Second):
				t.Fatal("the upload does not reach the application")
			}
			slay(t, c, agent, "agent")
			select {
			case err := <-ended:
				if !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("the upload ended with %v at the application, want a reset", err)
				}
			case <-time.After(5 * time.Second):
				t.Error("the application still waits for the upload")
			}
		})
	}
}
