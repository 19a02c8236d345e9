package main

import (
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"

	"github.com/nearmiss/nearmiss/stream"
)

// serverFlags say which broker a command talks to.
type serverFlags struct {
	Server string `default:"nats://127.0.0.1:4222" env:"NEARMISS_SERVER" placeholder:"URL" help:"NATS server; user and password may stand in the URL."`
	Creds  string `type:"existingfile" placeholder:"FILE" help:"NATS credentials file."`
	Prefix string `default:"nearmiss" env:"NEARMISS_PREFIX" help:"First token of every subject."`
}

func (f serverFlags) names() stream.Names { return stream.Names{Prefix: f.Prefix} }

// connect opens a connection for a command that is of no use without the
// broker.
func (f serverFlags) connect(as string, o *output) (*nats.Conn, error) {
	return connect(f.Server, f.Creds, as, o)
}

func connect(url, creds, as string, o *output) (*nats.Conn, error) {
	nc, err := stream.Connect(url, "nearmiss "+as, o.Log, append(credentials(creds), nats.RetryOnFailedConnect(false))...)
	if errors.Is(err, nats.ErrNoServers) {
		return nil, fmt.Errorf("no broker answers at %s: start one with nearmiss up or nearmiss broker, or name yours with --server", url)
	}
	return nc, err
}

// await opens a connection for a service, which waits for its broker.
func (f serverFlags) await(as string, o *output) (*nats.Conn, error) {
	nc, err := stream.Connect(f.Server, "nearmiss "+as, o.Log, credentials(f.Creds)...)
	if err == nil && !nc.IsConnected() {
		o.Log.Warn().Str("server", f.Server).Msg("no broker answers yet: waiting for it")
	}
	return nc, err
}

func credentials(file string) []nats.Option {
	if file == "" {
		return nil
	}
	return []nats.Option{nats.UserCredentials(file)}
}
