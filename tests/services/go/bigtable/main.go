// A Bigtable of tests: the one of Google's own Go library, in memory, with what a test may have happen in front of it.
//
// Orders come as lines of JSON, each answered by a line; the first line says where it listens. It ends with its input. What the
// library sends in one piece is sent as the service may send it: values in pieces, nothing said twice, now and then a row begun anew.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"sync"
	"time"

	"cloud.google.com/go/bigtable"
	"cloud.google.com/go/bigtable/apiv2/bigtablepb"
	"cloud.google.com/go/bigtable/bttest"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const (
	project  = "p"
	instance = "i"
	readRows = "/google.bigtable.v2.Bigtable/ReadRows"
	// Bytes of a value in one piece, and pieces in one message.
	pieceBytes    = 5
	messagePieces = 3
	// One row in so many is begun twice.
	resetEvery = 4
)

type order struct {
	Do       string
	Table    string
	Families []string
	Family   string
	Rows     []row
	// What calls meet from now on.
	Fault fault
}

// A cell of a row; the value is base64.
type row struct {
	Key, Family, Qualifier string
	Value                  []byte
	Micros                 int64
}

type fault struct {
	// Calls are refused with it, if it is not 0.
	Code codes.Code
	// Rows are sent first, in the middle of the next it breaks off: with the code, or as if that were all.
	AfterRows *int
	// How many calls meet it; 0: all.
	Times int
	// Every call takes so long.
	DelayMs int
	// Only who shows it comes in.
	Token string
}

type counts struct {
	Calls, Keys, KeysInCallMax, Met int
}

type server struct {
	mutex  sync.Mutex
	fault  fault
	counts counts
}

func (s *server) meet() fault {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	met := s.fault
	if met.Code != 0 || met.AfterRows != nil {
		s.counts.Met++
		if s.fault.Times > 0 {
			if s.fault.Times--; s.fault.Times == 0 {
				s.fault.Code, s.fault.AfterRows = 0, nil
			}
		}
	}
	return met
}

func first(stream grpc.ServerStream, name string) string {
	list := metadata.ValueFromIncomingContext(stream.Context(), name)
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

func (s *server) intercept(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if info.FullMethod != readRows {
		return next(srv, stream)
	}
	met := s.meet()
	select {
	case <-time.After(time.Duration(met.DelayMs) * time.Millisecond):
	case <-stream.Context().Done():
		return status.FromContextError(stream.Context().Err()).Err()
	}
	if met.Token != "" && first(stream, "authorization") != "Bearer "+met.Token {
		return status.Error(codes.Unauthenticated, "Request had invalid authentication credentials")
	}
	if met.Code != 0 && met.AfterRows == nil {
		return status.Error(met.Code, "as the test wants it")
	}
	cut := &cutting{ServerStream: stream, server: s, met: met}
	err := next(srv, cut)
	if cut.broken {
		if met.Code != 0 {
			return status.Error(met.Code, "as the test wants it")
		}
		return nil
	}
	return err
}

// Sends a row as the service may.
type cutting struct {
	grpc.ServerStream
	server *server
	met    fault
	rows   int
	broken bool
}

func (c *cutting) RecvMsg(m any) error {
	if err := c.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	request := m.(*bigtablepb.ReadRowsRequest)
	keys := len(request.GetRows().GetRowKeys())
	if first(c.ServerStream, "x-goog-request-params") == "" {
		return status.Error(codes.InvalidArgument, "no routing header")
	}
	if keys == 0 || request.RowsLimit != int64(keys) {
		return status.Error(codes.InvalidArgument, "not the rows of a list of keys")
	}
	c.server.mutex.Lock()
	defer c.server.mutex.Unlock()
	c.server.counts.Calls++
	c.server.counts.Keys += keys
	c.server.counts.KeysInCallMax = max(c.server.counts.KeysInCallMax, keys)
	return nil
}

func (c *cutting) SendMsg(m any) error {
	chunks := pieces(m.(*bigtablepb.ReadRowsResponse).Chunks)
	if c.met.AfterRows != nil && c.rows >= *c.met.AfterRows {
		c.broken = true
		begun := proto.Clone(chunks[0]).(*bigtablepb.ReadRowsResponse_CellChunk)
		begun.RowStatus = nil
		if err := c.ServerStream.SendMsg(&bigtablepb.ReadRowsResponse{Chunks: []*bigtablepb.ReadRowsResponse_CellChunk{begun}}); err != nil {
			return err
		}
		return status.Error(codes.Aborted, "broken off")
	}
	if c.rows%resetEvery == 0 && len(chunks) > 1 {
		reset := &bigtablepb.ReadRowsResponse_CellChunk{RowStatus: &bigtablepb.ReadRowsResponse_CellChunk_ResetRow{ResetRow: true}}
		chunks = append([]*bigtablepb.ReadRowsResponse_CellChunk{chunks[0], reset}, chunks...)
	}
	c.rows++
	for len(chunks) > 0 {
		n := min(messagePieces, len(chunks))
		if err := c.ServerStream.SendMsg(&bigtablepb.ReadRowsResponse{Chunks: chunks[:n]}); err != nil {
			return err
		}
		chunks = chunks[n:]
	}
	return nil
}

// The chunks of a row: what is as before is not said again, long values come in pieces.
func pieces(row []*bigtablepb.ReadRowsResponse_CellChunk) (all []*bigtablepb.ReadRowsResponse_CellChunk) {
	for i, chunk := range row {
		chunk := proto.Clone(chunk).(*bigtablepb.ReadRowsResponse_CellChunk)
		value, committed, size := chunk.Value, chunk.RowStatus, int32(len(chunk.Value))
		if i > 0 {
			chunk.RowKey = nil
			if row[i-1].FamilyName.Value == chunk.FamilyName.Value {
				chunk.FamilyName = nil
			}
		}
		// A value of many bytes comes in some pieces, not in very many.
		step := max(pieceBytes, len(value)/8)
		for len(value) > step {
			chunk.Value, chunk.ValueSize, chunk.RowStatus = value[:step], size, nil
			all = append(all, chunk)
			value = value[step:]
			chunk = &bigtablepb.ReadRowsResponse_CellChunk{}
		}
		chunk.Value, chunk.RowStatus = value, committed
		all = append(all, chunk)
	}
	return all
}

type clients struct {
	admin *bigtable.AdminClient
	data  *bigtable.Client
}

func connect(ctx context.Context, address string) (c clients, err error) {
	options := []option.ClientOption{
		option.WithEndpoint(address), option.WithoutAuthentication(),
		option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())),
	}
	if c.admin, err = bigtable.NewAdminClient(ctx, project, instance, options...); err != nil {
		return
	}
	c.data, err = bigtable.NewClientWithConfig(ctx, project, instance, bigtable.ClientConfig{MetricsProvider: bigtable.NoopMetricsProvider{}}, options...)
	return
}

func (c clients) put(ctx context.Context, o order) error {
	var keys []string
	var mutations []*bigtable.Mutation
	for _, r := range o.Rows {
		m := bigtable.NewMutation()
		m.Set(r.Family, r.Qualifier, bigtable.Timestamp(r.Micros), r.Value)
		keys, mutations = append(keys, r.Key), append(mutations, m)
	}
	errors, err := c.data.Open(o.Table).ApplyBulk(ctx, keys, mutations)
	for _, e := range errors {
		if e != nil && err == nil {
			err = e
		}
	}
	return err
}

func (c clients) create(ctx context.Context, o order) error {
	if err := c.admin.CreateTable(ctx, o.Table); err != nil {
		return err
	}
	for _, family := range o.Families {
		if err := c.admin.CreateColumnFamily(ctx, o.Table, family); err != nil {
			return err
		}
	}
	return nil
}

func (s *server) obey(ctx context.Context, c clients, o order) error {
	switch o.Do {
	case "create":
		return c.create(ctx, o)
	case "put":
		return c.put(ctx, o)
	case "drop":
		return c.admin.DeleteTable(ctx, o.Table)
	case "drop-family":
		return c.admin.DeleteColumnFamily(ctx, o.Table, o.Family)
	case "fault":
		s.mutex.Lock()
		defer s.mutex.Unlock()
		s.fault = o.Fault
		return nil
	case "counts":
		return nil
	}
	return fmt.Errorf("nobody knows how to %q", o.Do)
}

func run() error {
	listen := flag.String("listen", "127.0.0.1:0", "host:port to listen at")
	other := flag.String("fill", "", "host:port of a Bigtable that is there: orders go to it, and none is started")
	flag.Parse()
	s, address := &server{}, *other
	if address == "" {
		most := 256 << 20
		started, err := bttest.NewServer(*listen, grpc.StreamInterceptor(s.intercept), grpc.MaxRecvMsgSize(most), grpc.MaxSendMsgSize(most))
		if err != nil {
			return err
		}
		defer started.Close()
		address = started.Addr
	}
	ctx := context.Background()
	c, err := connect(ctx, address)
	if err != nil {
		return err
	}
	say := json.NewEncoder(os.Stdout)
	say.Encode(address)
	orders := bufio.NewScanner(os.Stdin)
	orders.Buffer(nil, 64<<20)
	for orders.Scan() {
		var o order
		err := json.Unmarshal(orders.Bytes(), &o)
		if err == nil {
			err = s.obey(ctx, c, o)
		}
		if err != nil {
			say.Encode(map[string]string{"Error": err.Error()})
			continue
		}
		s.mutex.Lock()
		say.Encode(s.counts)
		s.mutex.Unlock()
	}
	return orders.Err()
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
