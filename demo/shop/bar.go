package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// callerField is the header field, or the key of gRPC metadata, with the caller's SPIFFE
// ID. It is there if the Service has the annotation causeway.dev/forward-identity:
// header.
const callerField = "causeway-client-id"

// handler answers / with who answers, and /who?work=D with the pod's name after that
// time. With rest=D, the response ends that time after its beginning. It answers /caller
// with the pod's name and each value of callerField, separated by spaces,
// /download?bytes=N with N bytes that are the same everywhere, /checksum?bytes=N with
// their SHA-256.
func handler(pod, cluster string, slowness int) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "bar served by %s in %s\n", pod, cluster)
	})
	mux.HandleFunc("GET /who", func(w http.ResponseWriter, r *http.Request) {
		work, err := time.ParseDuration(cmp.Or(r.FormValue("work"), "0s"))
		if err != nil {
			http.Error(w, "say how long: ?work=1ms", http.StatusBadRequest)
			return
		}
		rest, err := time.ParseDuration(cmp.Or(r.FormValue("rest"), "0s"))
		if err != nil {
			http.Error(w, "say how long: ?rest=1ms", http.StatusBadRequest)
			return
		}
		pause(r.Context(), work*time.Duration(slowness))
		io.WriteString(w, pod)
		if rest > 0 {
			http.NewResponseController(w).Flush()
			pause(r.Context(), rest)
		}
	})
	mux.HandleFunc("GET /caller", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, strings.Join(append([]string{pod}, r.Header.Values(callerField)...), " "))
	})
	mux.HandleFunc("GET /download", func(w http.ResponseWriter, r *http.Request) {
		n, ok := size(w, r)
		if !ok {
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		if _, err := io.Copy(w, goods(n)); err != nil {
			slog.Info("a download ended early", "error", err)
		}
	})
	mux.HandleFunc("GET /checksum", func(w http.ResponseWriter, r *http.Request) {
		n, ok := size(w, r)
		if !ok {
			return
		}
		sum := sha256.New()
		if _, err := io.Copy(sum, goods(n)); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintf(w, "%x\n", sum.Sum(nil))
	})
	return mux
}

// pause waits for a time, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func size(w http.ResponseWriter, r *http.Request) (int64, bool) {
	n, err := strconv.ParseInt(r.FormValue("bytes"), 10, 64)
	if err != nil || n < 0 {
		http.Error(w, "say how many: ?bytes=N", http.StatusBadRequest)
		return 0, false
	}
	return n, true
}

// goods are n bytes that do not compress and are always the same.
func goods(n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte([]byte("causeway demo: the goods of bar."))), n)
}

// greet speaks first, as mail and database servers do, and then answers each line.
func greet(c net.Conn, pod, cluster string) error {
	if _, err := fmt.Fprintf(c, "hello from %s in %s\n", pod, cluster); err != nil {
		return err
	}
	lines := bufio.NewScanner(c)
	for lines.Scan() {
		if _, err := fmt.Fprintf(c, "you said %s\n", lines.Text()); err != nil {
			return err
		}
	}
	return lines.Err()
}

// echo gives back what it is sent, and then the end. A connection that sends nothing takes
// one file, and not three as io.Copy does, because thousands of them may be open.
func echo(c net.Conn) error {
	first := make([]byte, 512)
	n, err := c.Read(first)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := c.Write(first[:n]); err != nil {
		return err
	}
	_, err = io.Copy(c, c)
	return err
}

// accept serves each connection of ln in a goroutine of its own until ctx ends, and waits for all of them.
// It goes on when the process has too many open files.
func accept(ctx context.Context, ln net.Listener, serve func(net.Conn) error) error {
	var conns sync.WaitGroup
	defer conns.Wait()
	context.AfterFunc(ctx, func() { ln.Close() })
	for {
		c, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, syscall.EMFILE) { // until a connection ends
				pause(ctx, 10*time.Millisecond)
				continue
			}
			return err
		}
		conns.Go(func() {
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			defer c.Close()
			if err := serve(c); err != nil {
				slog.Info("a connection ended early", "address", ln.Addr().String(), "error", err)
			}
		})
	}
}
