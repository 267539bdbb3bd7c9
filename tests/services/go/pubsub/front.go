package main

import (
	"context"
	"io"
	"net"
	"path"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
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

// The library gives a stream one message every 10 ms. So behind each stream that is pulled there are several.
const pulls = 64

// Listens, and passes every call that the gate lets in on to the server behind it; a stream that is pulled as so many.
func serve(listen string, g *gate, behind *grpc.ClientConn, streams int) (string, error) {
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return "", err
	}
	pass := func(_ any, from grpc.ServerStream) error {
		method, ok := grpc.MethodFromServerStream(from)
		if !ok {
			return status.Error(codes.Internal, "a call without a method")
		}
		late, err := g.meet(from.Context(), method)
		if err != nil {
			return err
		}
		if path.Base(method) == "Publish" {
			var request []byte
			if err := from.RecvMsg(&request); err != nil {
				return err
			}
			if err := refused(request); err != nil {
				return err
			}
			from = &begun{from, request}
		}
		if path.Base(method) == "StreamingPull" {
			err = passOn(from, behind, method, streams)
		} else {
			err = passOn(from, behind, method, 1)
		}
		select {
		case <-time.After(late):
		case <-from.Context().Done():
		}
		return err
	}
	server := grpc.NewServer(grpc.ForceServerCodec(bytesCodec{}), grpc.UnknownServiceHandler(pass))
	go func() { check(server.Serve(listener)) }()
	return listener.Addr().String(), nil
}

// A stream whose first message was read already.
type begun struct {
	grpc.ServerStream
	first []byte
}

func (b *begun) RecvMsg(m any) error {
	if b.first == nil {
		return b.ServerStream.RecvMsg(m)
	}
	*m.(*[]byte) = b.first
	b.first = nil
	return nil
}

// What the service refuses of what is published, and the library does not: its documented limits, and keys that differ.
func refused(request []byte) error {
	var r pubsubpb.PublishRequest
	if err := proto.Unmarshal(request, &r); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	if len(request) > 10_000_000 || len(r.Messages) > 1_000 {
		return status.Error(codes.InvalidArgument, "the request is too large")
	}
	for _, m := range r.Messages {
		if m.OrderingKey != r.Messages[0].OrderingKey {
			return status.Error(codes.InvalidArgument, "messages of one request have different ordering keys")
		}
		if len(m.Data) == 0 && len(m.Attributes) == 0 {
			return status.Error(codes.InvalidArgument, "a message is empty")
		}
	}
	return nil
}

// The first request goes to each of the streams behind, all further ones to the first of them; their answers come as they come.
func passOn(from grpc.ServerStream, behind *grpc.ClientConn, method string, streams int) error {
	ctx, cancel := context.WithCancel(from.Context())
	defer cancel()
	both := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	to := make([]grpc.ClientStream, streams)
	for i := range to {
		var err error
		if to[i], err = behind.NewStream(ctx, both, method, grpc.ForceCodec(bytesCodec{})); err != nil {
			return err
		}
	}
	go func() {
		for first := true; ; first = false {
			var request []byte
			if from.RecvMsg(&request) != nil {
				// Ends the request, or finds the stream ended.
				for _, stream := range to {
					_ = stream.CloseSend()
				}
				return
			}
			for i, stream := range to {
				if first || i == 0 {
					if stream.SendMsg(&request) != nil {
						return
					}
				}
			}
		}
	}()
	type heard struct {
		answer  []byte
		err     error
		trailer metadata.MD
	}
	answers := make(chan heard)
	for _, stream := range to {
		go func() {
			for {
				var h heard
				if h.err = stream.RecvMsg(&h.answer); h.err != nil {
					h.trailer = stream.Trailer()
				}
				select {
				case answers <- h:
				case <-ctx.Done():
					return
				}
				if h.err != nil {
					return
				}
			}
		}()
	}
	for {
		select {
		case h := <-answers:
			if h.err != nil {
				from.SetTrailer(h.trailer)
				return ended(h.err)
			}
			if err := from.SendMsg(&h.answer); err != nil {
				return err
			}
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
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
