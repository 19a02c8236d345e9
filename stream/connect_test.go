package stream_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/access"
	"github.com/nearmiss/nearmiss/stream/broker"
)

// inTime is enough for an answer of the broker's, also on a loaded machine.
var inTime = nats.Timeout(time.Minute)

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
		for kind, opts := range map[string][]nats.Option{"a command": {inTime, nats.RetryOnFailedConnect(false)}, "a service": {inTime}} {
			nc, err := stream.Connect(url, "test", zerolog.Nop(), opts...)
			if !errors.Is(err, stream.ErrNotAuthorised) || strings.Contains(err.Error(), "wr%23ng") {
				t.Errorf("%s with %s: %v, %v", kind, what, nc, err)
			}
		}
	}
	nc, err := stream.Connect(strings.Replace(b.ClientURL(), "://", "://u:right@", 1), "test", zerolog.Nop(), inTime)
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

// TestABrokerThatIsNotTrusted: commands and services hear what to do. What only time
// makes right, or a clock, services wait for.
func TestABrokerThatIsNotTrusted(t *testing.T) {
	t.Parallel()
	serve := func(issued time.Time, name string) (url, ca string) {
		dir := t.TempDir()
		a := access.OpenCA(dir)
		err := errors.Join(a.Create(t.Context(), "test", false, issued), a.Issue(t.Context(), dir, "server", true, []string{name}, issued))
		if err != nil {
			t.Fatal(err)
		}
		pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key"))
		if err != nil {
			t.Fatal(err)
		}
		return brokertest.Server(t, &server.Options{TLS: true, TLSTimeout: 60, TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}}}), a.CertFile()
	}
	now := time.Now()
	unknown, _ := serve(now, "127.0.0.1")
	_, another := serve(now, "127.0.0.1")
	named, ofNamed := serve(now, "elsewhere.example.org")
	late, ofLate := serve(now.AddDate(-2, 0, 0), "127.0.0.1")
	for what, c := range map[string]struct {
		url, ca, says string
		waits         bool
	}{
		"of an unknown authority": {unknown, another, "--tls-ca", false},
		"for another name":        {named, ofNamed, "name of its certificate", false},
		"expired":                 {late, ofLate, "set the clock", true},
	} {
		nc, err := stream.Connect(c.url, "test", zerolog.Nop(), nats.RootCAs(c.ca), inTime, nats.RetryOnFailedConnect(false))
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("a command, %s: %v, %v", what, nc, err)
		}
		var said bytes.Buffer
		nc, err = stream.Connect(c.url, "test", zerolog.New(&said), nats.RootCAs(c.ca), inTime, nats.ReconnectWait(time.Hour))
		if err == nil {
			nc.Close()
		}
		if (err == nil) != c.waits || c.waits != strings.Contains(said.String(), c.says) {
			t.Errorf("a service, %s: %v, %s", what, err, said.String())
		}
	}
}
