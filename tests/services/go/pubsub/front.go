package main

import (
	"io"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/status"
)

// Passes messages on as the bytes that they came as.
type bytesCodec struct{}

func (bytesCodec) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

func (bytesCodec) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}

func (bytesCodec) Name() string { return "proto" }

var _ encoding.Codec = bytesCodec{}

// Listens, and passes every call that the gate lets in on to the server behind it.
func serve(listen string, g *gate, behind *grpc.ClientConn) (string, error) {
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return "", err
	}
	pass := func(_ any, from grpc.ServerStream) error {
		method, ok := grpc.MethodFromServerStream(from)
		if !ok {
			return status.Error(codes.Internal, "a call without a method")
		}
		if err := g.meet(from.Context(), method); err != nil {
			return err
		}
		return passOn(from, behind, method)
	}
	server := grpc.NewServer(grpc.ForceServerCodec(bytesCodec{}), grpc.UnknownServiceHandler(pass))
	go func() { check(server.Serve(listener)) }()
	return listener.Addr().String(), nil
}

func passOn(from grpc.ServerStream, behind *grpc.ClientConn, method string) error {
	both := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	to, err := behind.NewStream(from.Context(), both, method, grpc.ForceCodec(bytesCodec{}))
	if err != nil {
		return err
	}
	go func() {
		for {
			var request []byte
			if from.RecvMsg(&request) != nil {
				// Ends the request, or finds the stream ended.
				_ = to.CloseSend()
				return
			}
			if to.SendMsg(&request) != nil {
				return
			}
		}
	}()
	for {
		var answer []byte
		if err := to.RecvMsg(&answer); err != nil {
			from.SetTrailer(to.Trailer())
			return ended(err)
		}
		if err := from.SendMsg(&answer); err != nil {
			return err
		}
	}
}

// The end of a stream is no error.
func ended(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}
