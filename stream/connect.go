package stream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	neturl "net/url"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/redact"
	"github.com/nearmiss/nearmiss/stream/internal/wait"
)

// Await does what needs the broker as soon as that can, for ever. It says once
// that it waits.
func Await(ctx context.Context, log zerolog.Logger, do func(context.Context) error) error {
	logged := false
	return Retry(ctx, wait.Patient(), func() error {
		step, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		err := do(step)
		if err != nil && ctx.Err() == nil && !logged {
			logged = true
			log.Warn().Err(err).Msg("waiting for the broker")
		}
		return err
	})
}

// ErrNotAuthorised is returned when the broker is there and does not let this
// client in.
var ErrNotAuthorised = errors.New("not authorised")

// unauthorised says whether the broker refused a client.
func unauthorised(err error) bool {
	return errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrAuthExpired) || errors.Is(err, nats.ErrAuthRevoked) || errors.Is(err, nats.ErrAccountAuthExpired)
}

var errAddress = errors.New("the address cannot be understood: write what is special in a user or password as %23 (#), %40 (@), %2F (/) and so on")

// refusal is the sentence for a client that is not let in.
func refusal(url string, err error) error {
	return redact.Error(fmt.Errorf("%w at the broker %s: its answer is %q; name this client's credentials, or user and password in the broker's URL",
		ErrNotAuthorised, url, err))
}

// waits says whether the options ask to wait for a broker that is not there yet.
func waits(opts []nats.Option) bool {
	o := nats.GetDefaultOptions()
	for _, f := range opts {
		if f == nil || f(&o) != nil {
			return false
		}
	}
	return o.RetryOnFailedConnect
}

// Connect opens a connection as every part of Nearmiss wants it: it reconnects
// for ever, and waits for a broker that is not there yet; one that is there and
// refuses it is [ErrNotAuthorised], and one that cannot be trusted is
// [tls.CertificateVerificationError], unless by the clock alone: a machine that starts may
// not know the time yet. name shows in the broker's connection list.
func Connect(url, name string, log zerolog.Logger, extra ...nats.Option) (*nats.Conn, error) {
	log = log.With().Str("component", "connection").Logger()
	opts := append([]nats.Option{
		nats.Name(name),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(250 * time.Millisecond),
		nats.ReconnectJitter(250*time.Millisecond, time.Second),
		nats.RetryOnFailedConnect(true),
		nats.IgnoreAuthErrorAbort(), // credentials may be put right while it runs
		nats.ReconnectBufSize(64 << 20),
		nats.PingInterval(10 * time.Second),
		nats.MaxPingsOutstanding(3),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				log.Warn().Err(redact.Error(err)).Msg("connection to the broker lost: trying again")
			}
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) { log.Info().Str("url", nc.ConnectedUrlRedacted()).Msg("connected again") }),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			e := log.Warn().Err(err)
			if sub != nil {
				e = e.Str("subject", sub.Subject)
			}
			if unauthorised(err) {
				log.Error().Err(refusal(url, err)).Msg("the broker does not let this client in any more: trying again")
				return
			}
			if errors.Is(err, nats.ErrSlowConsumer) {
				e.Msg("messages were dropped: this process is too slow for them")
				return
			}
			e.Msg("the broker complained")
		}),
	}, extra...)
	// The first try is one alone: while nats.go tries again in the background, what
	// the broker has answered is soon forgotten.
	nc, err := nats.Connect(url, append(opts[:len(opts):len(opts)], nats.RetryOnFailedConnect(false))...)
	if untrusted := (*tls.CertificateVerificationError)(nil); errors.As(err, &untrusted) {
		expired, host := x509.CertificateInvalidError{}, x509.HostnameError{}
		advice := "name the authority of its certificate (--tls-ca), or the configuration that was made for this machine (--config)"
		switch {
		case errors.As(err, &expired) && expired.Reason == x509.Expired:
			advice = "set the clock, or renew the broker's certificate (nearmiss tls renew)"
		case errors.As(err, &host):
			advice = "name the broker by a name of its certificate, or issue it one for this name (nearmiss tls issue)"
		}
		advised := redact.Error(fmt.Errorf("%w at the broker %s: %s", err, url, advice))
		if expired.Reason != x509.Expired || !waits(opts) {
			return nil, advised
		}
		log.Warn().Err(advised).Msg("the broker's certificate is not valid at this time: trying again") // until then
	}
	if err != nil && !unauthorised(err) && waits(opts) {
		nc, err = nats.Connect(url, opts...)
	}
	if unauthorised(err) {
		return nil, refusal(url, err)
	}
	if bad := (*neturl.Error)(nil); errors.As(err, &bad) {
		err = errAddress // its own text repeats what may be a password
	}
	if err != nil {
		return nil, redact.Error(fmt.Errorf("connect to the broker at %s: %w", url, err))
	}
	return nc, nil
}

// IsForbidden says whether the broker's last complaint was that this client may
// not publish on subject. A publisher that waits for an answer gets none then.
func IsForbidden(nc *nats.Conn, subject string) bool {
	err := nc.LastError()
	return errors.Is(err, nats.ErrPermissionViolation) && strings.Contains(err.Error(), strconv.Quote(subject))
}

// ErrForbidden is the broker's word that this client may not ask.
var ErrForbidden = errors.New("this client's rights do not allow to ask for it")

// UnlessForbidden calls f with a context that ends early when the broker says that this
// client may not publish on subject: there is no other answer then. The error is
// [ErrForbidden].
func UnlessForbidden(ctx context.Context, nc *nats.Conn, subject string, f func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	before := nc.LastError() // who may ask by now is not held to what was said then
	forbidden := func() bool { return nc.LastError() != before && IsForbidden(nc, subject) }
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for {
		select {
		case err := <-done:
			if err != nil && forbidden() {
				return ErrForbidden
			}
			return err
		case <-look.C:
			if forbidden() {
				cancel()
			}
		}
	}
}

// PublishWait is how long one publish may wait for the broker's answer.
const PublishWait = 5 * time.Second
