package main

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// A bartender serves bar by gRPC: Who answers with the pod's name, Caller with what
// /caller answers, and Chat repeats each message.
type bartender struct{ pod string }

// barService is the gRPC service shop.Bar. Its messages are google.protobuf.StringValue.
var barService = grpc.ServiceDesc{
	ServiceName: "shop.Bar",
	HandlerType: (*any)(nil),
	Methods:     []grpc.MethodDesc{{MethodName: "Who", Handler: who}, {MethodName: "Caller", Handler: caller}},
	Streams:     []grpc.StreamDesc{{StreamName: "Chat", Handler: chat, ServerStreams: true, ClientStreams: true}},
}

func who(b any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	if err := decode(new(wrapperspb.StringValue)); err != nil {
		return nil, err
	}
	return wrapperspb.String(b.(bartender).pod), nil
}

func caller(b any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	if err := decode(new(wrapperspb.StringValue)); err != nil {
		return nil, err
	}
	answer := append([]string{b.(bartender).pod}, metadata.ValueFromIncomingContext(ctx, callerField)...)
	return wrapperspb.String(strings.Join(answer, " ")), nil
}

func chat(_ any, s grpc.ServerStream) error {
	for {
		var m wrapperspb.StringValue
		if err := s.RecvMsg(&m); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := s.SendMsg(&m); err != nil {
			return err
		}
	}
}

// serveGRPC serves bar by gRPC on ln until ctx ends; calls under way then end with it.
func serveGRPC(ctx context.Context, ln net.Listener, pod string) error {
	server := grpc.NewServer()
	server.RegisterService(&barService, bartender{pod})
	defer context.AfterFunc(ctx, server.Stop)()
	return server.Serve(ln)
}
