package stream_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/broker"
)

// TestWrongCredentialsAreNoMissingBroker, neither for commands nor for services,
// which wait for their broker.
func TestWrongCredentialsAreNoMissingBroker(t *testing.T) {
	t.Parallel()
	b, _ := brokertest.Start(t, broker.Config{Port: -1, User: "u", Password: "right"})
	for what, url := range map[string]string{
		"none":             b.ClientURL(),
		"a wrong password": strings.Replace(b.ClientURL(), "://", "://u:wr%23ng@", 1),
		"a token":          strings.Replace(b.ClientURL(), "://", "://wr%23ng@", 1),
	} {
		for kind, opts := range map[string][]nats.Option{"a command": {nats.RetryOnFailedConnect(false)}, "a service": nil} {
			nc, err := stream.Connect(url, "test", zerolog.Nop(), opts...)
			if !errors.Is(err, stream.ErrNotAuthorised) || strings.Contains(err.Error(), "wr%23ng") {
				t.Errorf("%s with %s: %v, %v", kind, what, nc, err)
			}
		}
	}
	nc, err := stream.Connect(strings.Replace(b.ClientURL(), "://", "://u:right@", 1), "test", zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
}

// TestConnectPrintsNoPassword, whatever is wrong with the address.
func TestConnectPrintsNoPassword(t *testing.T) {
	var buf bytes.Buffer
	for _, url := range []string{"nats://u:s3cret@127.0.0.1:1", "nats://u:s3#cret@127.0.0.1:1", "nats://u:s3%zcret@127.0.0.1:1", "wss://u:s3cret@["} {
		nc, err := stream.Connect(url, "test", zerolog.New(&buf), nats.RetryOnFailedConnect(false), nats.Timeout(time.Second))
		if err == nil {
			nc.Close()
			t.Errorf("%s: connected", url)
			continue
		}
		if s := err.Error() + buf.String(); strings.Contains(s, "s3") {
			t.Errorf("%s: %s", url, s)
		}
	}
}
