// A Pub/Sub of tests: the one of Google's own Go library, in memory, with what a test may have happen in front of it.
//
// It, or another one that it is told of, as Google's emulator. Orders come as lines of JSON, each answered by a line; the first line says where it listens. It ends with its input.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path"
	"sync"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"cloud.google.com/go/pubsub/v2/pstest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

type order struct {
	Do, Topic, Subscription string
	Ordered, ExactlyOnce    bool
	Messages                []message
	Fault                   fault
}

// What is published.
type message struct{ Text, Key string }

// What was published.
type published struct {
	Text, Key  string
	Attributes map[string]string
}

type fault struct {
	// The last part of the method's name; empty: all.
	Method string
	// Calls are refused with it, if it is not 0.
	Code codes.Code
	// So many calls pass before.
	After int
	// How many calls meet it; 0: all.
	Times int
	// Every call takes so long.
	DelayMs int
	// What takes so long is the answer, after the call has done what it does.
	Late bool
	// Only who shows it comes in.
	Token string
}

type gate struct {
	mutex sync.Mutex
	fault fault
	met   int
}

// What a call meets; how long its answer takes.
func (g *gate) meet(ctx context.Context, method string) (time.Duration, error) {
	g.mutex.Lock()
	met := g.fault
	if met.Method != "" && met.Method != path.Base(method) {
		g.mutex.Unlock()
		return 0, nil
	}
	if met.Code != 0 && met.After > 0 {
		g.fault.After--
		met.Code = 0
	}
	if met.Code != 0 {
		g.met++
		if g.fault.Times > 0 {
			if g.fault.Times--; g.fault.Times == 0 {
				g.fault.Code = 0
			}
		}
	}
	g.mutex.Unlock()
	delay, late := time.Duration(met.DelayMs)*time.Millisecond, time.Duration(0)
	if met.Late {
		delay, late = 0, delay
	}
	select {
	case <-time.After(delay):
	case <-ctx.Done():
		return 0, status.FromContextError(ctx.Err()).Err()
	}
	if met.Token != "" && first(ctx, "authorization") != "Bearer "+met.Token {
		return 0, status.Error(codes.Unauthenticated, "Request had invalid authentication credentials")
	}
	if met.Code != 0 {
		return 0, status.Error(met.Code, "as the test wants it")
	}
	return late, nil
}

func first(ctx context.Context, name string) string {
	list := metadata.ValueFromIncomingContext(ctx, name)
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "host:port")
	behind := flag.String("behind", "", "host:port of another Pub/Sub that answers instead of the library")
	flag.Parse()
	g := &gate{}
	// pstest makes its gRPC server itself: what stands in front of it is a server of ours that passes calls on.
	var inner *pstest.Server
	streams := 1
	if *behind == "" {
		inner = pstest.NewServerWithAddress("127.0.0.1:0")
		*behind = inner.Addr
		streams = pulls
	}
	client, err := grpc.NewClient(*behind, grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(err)
	address, err := serve(*listen, g, client, streams)
	check(err)
	fmt.Println(address)
	orders := bufio.NewReader(os.Stdin)
	for {
		line, err := orders.ReadBytes('\n')
		if err != nil {
			return
		}
		var o order
		answer := any("ok")
		if err := json.Unmarshal(line, &o); err != nil {
			answer = err.Error()
		} else if a, err := obey(o, inner, g, client); err != nil {
			answer = err.Error()
		} else if a != nil {
			answer = a
		}
		text, err := json.Marshal(answer)
		check(err)
		fmt.Println(string(text))
	}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// What a subscription has now, which is taken out of it.
func pull(ctx context.Context, client pubsubpb.SubscriberClient, subscription string) ([]published, error) {
	answer, err := client.Pull(ctx, &pubsubpb.PullRequest{
		Subscription: subscription, MaxMessages: 1_000, ReturnImmediately: true,
	})
	if err != nil {
		return nil, err
	}
	list, ids := []published{}, []string{}
	for _, m := range answer.ReceivedMessages {
		list = append(list, published{string(m.Message.Data), m.Message.OrderingKey, m.Message.Attributes})
		ids = append(ids, m.AckId)
	}
	if len(ids) > 0 {
		_, err = client.Acknowledge(ctx, &pubsubpb.AcknowledgeRequest{Subscription: subscription, AckIds: ids})
	}
	return list, err
}

func obey(o order, inner *pstest.Server, g *gate, client *grpc.ClientConn) (any, error) {
	ctx := context.Background()
	switch o.Do {
	case "topic":
		_, err := pubsubpb.NewPublisherClient(client).CreateTopic(ctx, &pubsubpb.Topic{Name: o.Topic})
		return nil, err
	case "subscription":
		_, err := pubsubpb.NewSubscriberClient(client).CreateSubscription(ctx, &pubsubpb.Subscription{
			Name: o.Subscription, Topic: o.Topic, AckDeadlineSeconds: 10,
			EnableMessageOrdering: o.Ordered, EnableExactlyOnceDelivery: o.ExactlyOnce,
		})
		return nil, err
	case "publish":
		for _, m := range o.Messages {
			if _, err := pubsubpb.NewPublisherClient(client).Publish(ctx, &pubsubpb.PublishRequest{
				Topic:    o.Topic,
				Messages: []*pubsubpb.PubsubMessage{{Data: []byte(m.Text), OrderingKey: m.Key}},
			}); err != nil {
				return nil, err
			}
		}
		return nil, nil
	case "pull":
		return pull(ctx, pubsubpb.NewSubscriberClient(client), o.Subscription)
	case "published":
		list := []published{}
		for _, m := range inner.Messages() {
			if m.Topic == o.Topic {
				list = append(list, published{string(m.Data), m.OrderingKey, m.Attributes})
			}
		}
		return list, nil
	case "fault":
		g.mutex.Lock()
		defer g.mutex.Unlock()
		g.fault = o.Fault
		return nil, nil
	case "counts":
		acked, delivered := 0, 0
		for _, m := range inner.Messages() {
			if m.Acks > 0 {
				acked++
			}
			delivered += m.Deliveries
		}
		g.mutex.Lock()
		defer g.mutex.Unlock()
		return map[string]int{"acked": acked, "delivered": delivered, "met": g.met}, nil
	}
	return nil, fmt.Errorf("no such order: %q", o.Do)
}
