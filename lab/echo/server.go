package main

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"maps"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// A server is what the arguments of the server say.
type server struct {
	http, tls, grpc, tcp []int
	crt, key             string
	version              string
	hostname             string
}

// ports is a flag that can be repeated.
type ports struct{ list *[]int }

func (p ports) String() string { return "" }

func (p ports) Set(s string) error {
	n, err := strconv.ParseUint(s, 10, 16)
	if err == nil {
		*p.list = append(*p.list, int(n))
	}
	return err
}

func parseServer(args []string) (*server, error) {
	s := &server{hostname: cmp.Or(os.Getenv("POD_NAME"), os.Getenv("HOSTNAME"))}
	if s.hostname == "" {
		s.hostname, _ = os.Hostname()
	}
	f := flag.NewFlagSet("server", flag.ContinueOnError)
	f.Var(ports{&s.http}, "port", "a port for HTTP/1 and HTTP/2")
	f.Var(ports{&s.tls}, "tls", "a port of --port that speaks TLS")
	f.Var(ports{&s.grpc}, "grpc", "a port for gRPC")
	f.Var(ports{&s.tcp}, "tcp", "a port for TCP")
	f.StringVar(&s.crt, "crt", "", "a certificate; without the file, one is made")
	f.StringVar(&s.key, "key", "", "its key")
	f.StringVar(&s.version, "version", "", "the version that responses name")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if len(s.http) == 0 && len(s.grpc) == 0 && len(s.tcp) == 0 {
		s.http = []int{8080}
	}
	return s, nil
}

// serve serves all ports until ctx ends.
func (s *server) serve(ctx context.Context) error {
	var cert tls.Certificate
	if len(s.tls) > 0 {
		var err error
		if cert, err = s.certificate(); err != nil {
			return err
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	listen := func(port int, serve func(net.Listener) error) error {
		ln, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		context.AfterFunc(ctx, func() { ln.Close() })
		group.Go(func() error {
			if err := serve(ln); err != nil && ctx.Err() == nil {
				return err
			}
			return nil
		})
		return nil
	}
	var errs []error
	for _, port := range s.http {
		errs = append(errs, listen(port, func(ln net.Listener) error {
			if slices.Contains(s.tls, port) {
				ln = tls.NewListener(ln, &tls.Config{
					Certificates: []tls.Certificate{cert},
					NextProtos:   []string{"h2", "http/1.1"},
				})
			}
			return s.httpServer(port).Serve(ln)
		}))
	}
	for _, port := range s.grpc {
		errs = append(errs, listen(port, func(ln net.Listener) error { return s.grpcServer(port).Serve(ln) }))
	}
	for _, port := range s.tcp {
		errs = append(errs, listen(port, func(ln net.Listener) error { return s.serveTCP(ln, port) }))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	log.Printf("echo listens: http %v, grpc %v, tcp %v", s.http, s.grpc, s.tcp)
	return group.Wait()
}

func (s *server) httpServer(port int) *http.Server {
	h := &http.Server{
		Handler:           http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { s.answer(rw, r, port) }),
		Protocols:         new(http.Protocols),
		ReadHeaderTimeout: time.Minute,
	}
	h.Protocols.SetHTTP1(true)
	h.Protocols.SetHTTP2(true)
	h.Protocols.SetUnencryptedHTTP2(true)
	return h
}

func (s *server) answer(rw http.ResponseWriter, r *http.Request, port int) {
	log.Printf("Echoing back request made to %s to client (%s)", r.RequestURI, r.RemoteAddr)
	query := r.URL.Query()
	if delay, err := time.ParseDuration(query.Get("delay")); err == nil {
		select {
		case <-time.After(delay):
		case <-r.Context().Done():
			return
		}
	}
	status, err := pickCode(query.Get("codes"))
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	io.Copy(io.Discard, r.Body)
	rw.Header().Set("Content-Type", "text/plain")
	rw.WriteHeader(status)
	ip, _, _ := net.SplitHostPort(r.RemoteAddr)
	s.describe(rw, port, map[string]string{
		"Host":   r.Host,
		"URL":    r.RequestURI,
		"Method": r.Method,
		"Proto":  r.Proto,
		"IP":     ip,
	}, r.Header)
}

// describe writes the lines of a response.
func (s *server) describe(w io.Writer, port int, fields map[string]string, header map[string][]string) {
	fmt.Fprintf(w, "ServiceVersion=%s\nServicePort=%d\n", s.version, port)
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		fmt.Fprintf(w, "%s=%s\n", name, fields[name])
	}
	for _, name := range slices.Sorted(maps.Keys(header)) {
		for _, value := range header[name] {
			fmt.Fprintf(w, "RequestHeader=%s:%s\n", name, value)
		}
	}
	fmt.Fprintf(w, "Hostname=%s\n", s.hostname)
}

// pickCode picks a status of a list with weights, such as 503:50,200:50. Without a weight,
// a status has 100.
func pickCode(list string) (int, error) {
	if list == "" {
		return http.StatusOK, nil
	}
	var codes, weights []int
	total := 0
	for item := range strings.SplitSeq(list, ",") {
		code, weight, weighted := strings.Cut(item, ":")
		c, err := strconv.Atoi(code)
		n := 100
		if weighted && err == nil {
			n, err = strconv.Atoi(weight)
		}
		if err != nil || c < 200 || c > 599 || n < 0 || n > 1_000_000 {
			return 0, fmt.Errorf("%q is not a list of statuses", list)
		}
		codes, weights, total = append(codes, c), append(weights, n), total+n
	}
	if total == 0 {
		return http.StatusOK, nil
	}
	at := mathrand.IntN(total)
	for i, n := range weights {
		if at < n {
			return codes[i], nil
		}
		at -= n
	}
	return codes[0], nil
}

// The gRPC service has the name of the one that it stands for. Its messages have one
// field, a string with the number 1, as StringValue has.
const (
	grpcService = "proto.EchoTestService"
	grpcMethod  = "Echo"
)

func (s *server) grpcServer(port int) *grpc.Server {
	g := grpc.NewServer()
	handle := func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		in := new(wrapperspb.StringValue)
		if err := decode(in); err != nil {
			return nil, err
		}
		header, _ := metadata.FromIncomingContext(ctx)
		fields := map[string]string{"Host": strings.Join(header.Get(":authority"), ","), "Echo": in.Value, "Proto": "GRPC"}
		if from, ok := peer.FromContext(ctx); ok {
			fields["IP"], _, _ = net.SplitHostPort(from.Addr.String())
		}
		var out strings.Builder
		s.describe(&out, port, fields, header)
		return wrapperspb.String(out.String()), nil
	}
	g.RegisterService(&grpc.ServiceDesc{
		ServiceName: grpcService,
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: grpcMethod, Handler: handle}},
	}, nil)
	return g
}

// serveTCP answers the first bytes of each connection with them and a description.
func (s *server) serveTCP(ln net.Listener, port int) error {
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			c.SetDeadline(time.Now().Add(time.Minute))
			buf := make([]byte, 4096)
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			fmt.Fprint(c, "StatusCode=200\n")
			ip, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			s.describe(c, port, map[string]string{"Proto": "TCP", "IP": ip, "Echo": strings.TrimSpace(string(buf[:n]))}, nil)
		}()
	}
}

func (s *server) certificate() (tls.Certificate, error) {
	if s.crt != "" {
		cert, err := tls.LoadX509KeyPair(s.crt, s.key)
		if !errors.Is(err, os.ErrNotExist) {
			return cert, err
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "echo"},
		DNSNames:     []string{"echo", "localhost"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().AddDate(1, 0, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
