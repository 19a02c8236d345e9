package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/access"
)

// serverFlags say which broker a command talks to.
type serverFlags struct {
	Server string `group:"Connection:" default:"nats://127.0.0.1:4222" env:"NEARMISS_SERVER" placeholder:"URL" help:"NATS server; user and password may stand in the URL."`
	credentialFlags
	Prefix string `group:"Connection:" default:"nearmiss" env:"NEARMISS_PREFIX" help:"First token of every subject."`
	configFlag
}

func (f serverFlags) names() stream.Names {
	return stream.Names{Prefix: f.Prefix, JetStreamAPI: f.jetStreamAPI()}
}

// credentialFlags say how a command proves to the broker who it is.
type credentialFlags struct {
	NKey    string `group:"Connection:" name:"nkey" type:"existingfile" env:"NEARMISS_NKEY" placeholder:"FILE" help:"Key of this machine's identity, from nearmiss users add."`
	Creds   string `group:"Connection:" type:"existingfile" env:"NEARMISS_CREDS" placeholder:"FILE" help:"NATS credentials file."`
	TLSCA   string `group:"Connection:" name:"tls-ca" type:"existingfile" env:"NEARMISS_TLS_CA" placeholder:"FILE" help:"CA that signed the broker's certificate (default: the system's)."`
	TLSCert string `group:"Connection:" name:"tls-cert" type:"existingfile" env:"NEARMISS_TLS_CERT" placeholder:"FILE" help:"This machine's certificate, where the broker asks for one."`
	TLSKey  string `group:"Connection:" name:"tls-key" type:"existingfile" env:"NEARMISS_TLS_KEY" placeholder:"FILE" help:"Key of that certificate."`

	JSDomain    string `group:"Connection:" name:"js-domain" env:"NEARMISS_JS_DOMAIN" placeholder:"NAME" help:"JetStream domain of the streams, where the server is a leaf node that has another."`
	JSAPIPrefix string `group:"Connection:" name:"js-api-prefix" env:"NEARMISS_JS_API_PREFIX" placeholder:"SUBJECT" help:"Where JetStream answers, in an account that imports it: NM.API for subscribers."`
}

// jetStreamAPI is where JetStream answers; empty: where that is its own setting.
func (f credentialFlags) jetStreamAPI() string {
	if f.JSDomain != "" {
		return stream.DomainAPI(f.JSDomain)
	}
	return f.JSAPIPrefix
}

// options are the connection options for a broker at server.
func (f credentialFlags) options(server string) ([]nats.Option, error) {
	opts, err := access.Credentials{
		NKey: f.NKey, Creds: f.Creds,
		TLS: access.TLSFiles{CA: f.TLSCA, Cert: f.TLSCert, Key: f.TLSKey},
	}.Options(server)
	if err != nil {
		return nil, usageError{err}
	}
	return opts, nil
}

// expiries are the ends of the certificates that this connection stands on: the
// broker's, as it has shown it, and this machine's own.
func (f credentialFlags) expiries(nc *nats.Conn) ([]access.Expiry, error) {
	state, err := nc.TLSConnectionState()
	if err != nil || len(state.PeerCertificates) == 0 {
		return nil, nil // it is not one of TLS
	}
	own, err := access.TLSFiles{CA: f.TLSCA, Cert: f.TLSCert}.Expiries()
	return append([]access.Expiry{access.ExpiryOf(state.PeerCertificates[0])}, own...), err
}

// connect opens a connection for a command that is of no use without the
// broker.
func (f serverFlags) connect(as string, o *output) (*nats.Conn, error) {
	opts, err := f.options(f.Server)
	if err != nil {
		return nil, err
	}
	nc, err := stream.Connect(f.Server, "nearmiss "+as, o.Log, append(opts, nats.RetryOnFailedConnect(false))...)
	if errors.Is(err, nats.ErrNoServers) {
		return nil, fmt.Errorf("no broker answers at %s: start one with nearmiss up or nearmiss broker, or name yours with --server", f.Server)
	}
	return nc, err
}

// client asks the control, in the name of this terminal's user.
func (f serverFlags) client(nc *nats.Conn) *stream.Client {
	return stream.NewClient(nc, f.names()).For(userName())
}

// withClient runs f with a client of the control.
func (f serverFlags) withClient(as string, o *output, do func(*stream.Client) error) error {
	nc, err := f.connect(as, o)
	if err != nil {
		return err
	}
	defer nc.Close()
	return answered(nc, do(f.client(nc)))
}

// answered says why nothing was answered in time, where the broker has said that this
// identity may not ask.
func answered(nc *nats.Conn, err error) error {
	late := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout) || errors.Is(err, stream.ErrForbidden)
	if said := nc.LastError(); late && errors.Is(said, nats.ErrPermissionViolation) {
		return fmt.Errorf("this identity may not do that; use one of role operator: %w", said)
	}
	return err
}

// streams is JetStream on a connection that was just opened, js.Conn(), which the
// caller closes.
func (f serverFlags) streams(nc *nats.Conn, err error) (jetstream.JetStream, error) {
	if err != nil {
		return nil, err
	}
	js, err := f.names().JetStreamOn(nc)
	if err != nil {
		nc.Close()
	}
	return js, err
}

// withJetStream runs f with the broker's streams.
func (f serverFlags) withJetStream(as string, o *output, do func(jetstream.JetStream) error) error {
	js, err := f.streams(f.connect(as, o))
	if err != nil {
		return err
	}
	defer js.Conn().Close()
	return answered(js.Conn(), do(js))
}

// withInstallation runs f with what lies in the broker, for reading, and a client
// of the control, for changing it.
func (f serverFlags) withInstallation(as string, o *output, do func(*stream.Installation, *stream.Client) error) error {
	return f.withJetStream(as, o, func(js jetstream.JetStream) error {
		return do(stream.NewInstallation(js, f.names()), f.client(js.Conn()))
	})
}

// serve runs a service on a connection of its own until it ends, seen by who observes it.
func (f serverFlags) serve(ctx context.Context, as string, by observed, o *output, run func(context.Context, *nats.Conn, *observer) error) error {
	return observe(ctx, by, o, []string{as}, func(ctx context.Context, v *observer) error {
		nc, err := f.await(as, o)
		if err != nil {
			return err
		}
		defer nc.Close()
		return run(ctx, nc, v)
	})
}

// await opens a connection for a service, which waits for its broker.
func (f serverFlags) await(as string, o *output) (*nats.Conn, error) {
	opts, err := f.options(f.Server)
	if err != nil {
		return nil, err
	}
	nc, err := stream.Connect(f.Server, "nearmiss "+as, o.Log, opts...)
	if err == nil && !nc.IsConnected() {
		o.Log.Warn().Str("server", f.Server).Msg("no broker answers yet: waiting for it")
	}
	return nc, err
}
