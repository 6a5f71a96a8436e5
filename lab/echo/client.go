package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// A client is what the arguments of the client say.
type client struct {
	url     *url.URL
	method  string
	header  http.Header
	count   int
	timeout time.Duration
	http2   bool
	message string
	out     io.Writer
}

// fields is a flag name:value that can be repeated.
type fields struct{ header http.Header }

func (f fields) String() string { return "" }

func (f fields) Set(s string) error {
	name, value, ok := strings.Cut(s, ":")
	if !ok {
		return fmt.Errorf("%q has no colon", s)
	}
	f.header.Add(name, strings.TrimSpace(value))
	return nil
}

// parseClient accepts the URL before and after flags.
func parseClient(args []string) (*client, error) {
	c := &client{header: http.Header{}}
	f := flag.NewFlagSet("client", flag.ContinueOnError)
	f.StringVar(&c.method, "method", "GET", "the method")
	f.Var(fields{c.header}, "H", "a field, name:value; may be repeated")
	f.Var(fields{c.header}, "header", "as -H")
	f.IntVar(&c.count, "count", 1, "how many requests to make, one after the other")
	f.DurationVar(&c.timeout, "timeout", 10*time.Second, "of one request")
	f.BoolVar(&c.http2, "http2", false, "speak HTTP/2 with prior knowledge")
	f.StringVar(&c.message, "msg", "HelloWorld", "the message for gRPC and TCP")
	var target string
	for len(args) > 0 {
		if err := f.Parse(args); err != nil {
			return nil, err
		}
		if args = f.Args(); len(args) > 0 {
			if target != "" {
				return nil, fmt.Errorf("more than one URL: %s and %s", target, args[0])
			}
			target, args = args[0], args[1:]
		}
	}
	var err error
	if c.url, err = url.Parse(target); err != nil {
		return nil, err
	}
	if c.url.Host == "" {
		return nil, fmt.Errorf("%q is not a URL with a host", target)
	}
	return c, nil
}

func runClient(ctx context.Context, args []string, out io.Writer) error {
	c, err := parseClient(args)
	if err != nil {
		return err
	}
	buffered := bufio.NewWriter(out)
	defer buffered.Flush()
	c.out = buffered
	ask, end, err := c.asker()
	if err != nil {
		return err
	}
	defer end()
	for i := range c.count {
		if err := c.once(ctx, i, ask); err != nil {
			return fmt.Errorf("request %d: %w", i, err)
		}
	}
	return nil
}

func (c *client) once(ctx context.Context, i int, ask func(context.Context, int) error) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	start := time.Now()
	fmt.Fprintf(c.out, "[%d] Url=%s\n", i, c.url)
	if err := ask(ctx, i); err != nil {
		return err
	}
	fmt.Fprintf(c.out, "[%d] Latency=%v\n", i, time.Since(start))
	if i < c.count-1 {
		fmt.Fprintln(c.out) // an empty line ends a response
	}
	return nil
}

// asker returns a function that makes one request and prints its response.
func (c *client) asker() (ask func(context.Context, int) error, end func(), err error) {
	switch c.url.Scheme {
	case "http", "https":
		t := &http.Transport{
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
			Protocols:       new(http.Protocols),
		}
		t.Protocols.SetHTTP1(!c.http2)
		t.Protocols.SetHTTP2(c.http2)
		t.Protocols.SetUnencryptedHTTP2(c.http2)
		h := &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		}}
		return func(ctx context.Context, i int) error { return c.askHTTP(ctx, h, i) }, t.CloseIdleConnections, nil
	case "grpc":
		conn, err := grpc.NewClient("dns:///"+withPort(c.url.Host, "7070"),
			grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, nil, err
		}
		return func(ctx context.Context, i int) error { return c.askGRPC(ctx, conn, i) }, func() { conn.Close() }, nil
	case "tcp":
		return c.askTCP, func() {}, nil
	}
	return nil, nil, fmt.Errorf("the scheme %q is not supported", c.url.Scheme)
}

func (c *client) askHTTP(ctx context.Context, h *http.Client, i int) error {
	req, err := http.NewRequestWithContext(ctx, c.method, c.url.String(), nil)
	if err != nil {
		return err
	}
	req.Header = c.header.Clone()
	if host := req.Header.Get("Host"); host != "" {
		req.Host = host
		req.Header.Del("Host")
	}
	resp, err := h.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	fmt.Fprintf(c.out, "[%d] StatusCode=%d\n", i, resp.StatusCode)
	for _, name := range slices.Sorted(maps.Keys(resp.Header)) {
		for _, value := range resp.Header[name] {
			fmt.Fprintf(c.out, "[%d] ResponseHeader=%s:%s\n", i, name, value)
		}
	}
	return c.printBody(i, resp.Body)
}

func (c *client) printBody(i int, r io.Reader) error {
	lines := bufio.NewScanner(io.LimitReader(r, 1<<20))
	for lines.Scan() {
		if line := strings.TrimRight(lines.Text(), "\r"); line != "" {
			fmt.Fprintf(c.out, "[%d body] %s\n", i, line)
		}
	}
	return lines.Err()
}

func (c *client) askGRPC(ctx context.Context, conn *grpc.ClientConn, i int) error {
	for name, values := range c.header {
		for _, value := range values {
			ctx = metadata.AppendToOutgoingContext(ctx, strings.ToLower(name), value)
		}
	}
	out := new(wrapperspb.StringValue)
	err := conn.Invoke(ctx, "/"+grpcService+"/"+grpcMethod, wrapperspb.String(c.message), out)
	if err != nil {
		return fmt.Errorf("gRPC status %d: %w", status.Code(err), err)
	}
	fmt.Fprintf(c.out, "[%d] StatusCode=200\n", i)
	return c.printBody(i, strings.NewReader(out.Value))
}

func (c *client) askTCP(ctx context.Context, i int) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", withPort(c.url.Host, "9090"))
	if err != nil {
		return err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		conn.SetDeadline(deadline)
	}
	if _, err := fmt.Fprintln(conn, c.message); err != nil {
		return err
	}
	return c.printBody(i, conn)
}

func withPort(host, port string) string {
	if _, _, err := net.SplitHostPort(host); err == nil {
		return host
	}
	return net.JoinHostPort(host, port)
}
