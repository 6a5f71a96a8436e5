// Command echo is a server that describes each request in its response, and a client that
// prints what it received. It stands for the image echo-advanced of the Gateway API's
// conformance tests, whose arguments and output it has:
//
//	server --port=8080 --grpc=7070 --tcp=9090 --port=8443 --tls=8443 --crt=/cert.crt --key=/cert.key
//	client http://echo:80/path?query --method=GET -H name:value --count=2
//
// It is client if its first argument or the name of its file is that, and server otherwise.
// A request's query may have delay=2s, and codes=503:50,200:50 with weights.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, argv []string) error {
	args := argv[1:]
	name := filepath.Base(argv[0])
	if len(args) > 0 && (args[0] == "client" || args[0] == "server") {
		name, args = args[0], args[1:]
	}
	if name == "client" {
		return runClient(ctx, args, os.Stdout)
	}
	o, err := parseServer(args)
	if err != nil {
		return err
	}
	return o.serve(ctx)
}
