// Package brokertest runs brokers, and services on them, for tests, and has
// connections that can be cut.
package brokertest

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream/broker"
)

// leaks are others': a Put into an Object Store of nats.go that ends before its helper has
// begun leaves the helper waiting (v1.55), and a nats-server that is stopped while a stream
// begins to take from another waits for the answer for up to 30 s more (v2.15).
var leaks = []goleak.Option{
	goleak.IgnoreTopFunction("github.com/nats-io/nats.go/jetstream.(*jetStream).resetPendingAcksOnReconnect"),
	goleak.IgnoreTopFunction("github.com/nats-io/nats-server/v2/server.(*stream).trySetupSourceConsumer.func3"),
}

// Main is [eventually.Main] for tests that use brokers.
func Main(m *testing.M) { eventually.Main(m, leaks...) }

// Room is what the store of a server may take that says nothing else, in bytes: enough
// for the limits of [stream.Topology]. A server without the setting makes it a share of the
// disk, so that tests would need as much free space as those limits are large, of which
// they use next to nothing.
const Room = 16 << 30

// Roomy is [broker.Config.Free] of a disk with that much room.
func Roomy(string) (int64, error) { return 2 * Room, nil }

// Start runs a broker until the test ends or stop is called, which waits for its
// end. Without a StoreDir it keeps what it stores in a folder of the test's. Its disk
// is [Roomy] unless the configuration says otherwise.
func Start(t testing.TB, cfg broker.Config) (b *broker.Broker, stop func()) {
	t.Helper()
	if cfg.StoreDir == "" {
		cfg.StoreDir = t.TempDir()
	}
	if cfg.Free == nil {
		cfg.Free = Roomy
	}
	b, err := broker.New(cfg, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	stop = Run(t, "broker", func(ctx context.Context) error {
		defer close(ended)
		return b.Run(ctx)
	})
	select {
	case <-b.Ready():
	case <-ended:
		stop()
		t.FailNow()
	}
	return b, stop
}

// Run runs a service until the test ends or stop is called, which waits for its
// end; an error of it fails the test.
func Run(t testing.TB, name string, run func(ctx context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", name, err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// How long a broker may take to let a client in, and to answer a request of JetStream's.
// Without them nats.go gives it two seconds and five, which a loaded machine needs now and
// then.
const (
	connectTime = time.Minute
	requestTime = time.Minute
)

// Connect is a client of the broker's until the test ends.
func Connect(t testing.TB, b *broker.Broker, opts ...nats.Option) *nats.Conn {
	t.Helper()
	return Client(t, b.ClientURL(), opts...)
}

// Client is a client of any server until the test ends.
func Client(t testing.TB, url string, opts ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(url, append([]nats.Option{nats.Timeout(connectTime)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// Streams are what such a client sees of JetStream.
func Streams(t testing.TB, url string, opts ...nats.Option) jetstream.JetStream {
	t.Helper()
	return StreamsOn(t, Client(t, url, opts...))
}

// StreamsOn is [Streams] on a connection that is there.
func StreamsOn(t testing.TB, nc *nats.Conn) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(requestTime))
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// JetStream is a client of a broker that runs until the test ends, at any free
// port.
func JetStream(t testing.TB, cfg broker.Config) jetstream.JetStream {
	t.Helper()
	cfg.Port = -1
	b, _ := Start(t, cfg)
	return Streams(t, b.ClientURL())
}

// Server runs a plain nats-server, as somebody has who has one of their own, until the
// test ends, and returns its URL. Without an address it listens on any free port, and
// without a limit it may store as much as [Room].
func Server(t testing.TB, o *server.Options) (url string) {
	t.Helper()
	o.NoSigs, o.NoLog = true, true
	if o.Host == "" {
		o.Host, o.Port = "127.0.0.1", server.RANDOM_PORT
	}
	if o.JetStream && o.JetStreamMaxStore <= 0 {
		o.JetStreamMaxStore = Room
	}
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	if !s.ReadyForConnections(2 * time.Minute) {
		t.Fatal("the server does not start")
	}
	return s.ClientURL()
}
