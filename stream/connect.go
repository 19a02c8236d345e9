package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"
)

// await does what needs the broker as soon as that can, for ever. It says once
// that it waits.
func await(ctx context.Context, log zerolog.Logger, do func(context.Context) error) error {
	told := false
	return retry(ctx, patient(), func() error {
		step, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		err := do(step)
		if err != nil && ctx.Err() == nil && !told {
			told = true
			log.Warn().Err(err).Msg("waiting for the broker")
		}
		return err
	})
}

// Connect opens a connection as every part of Nearmiss wants it: it reconnects
// for ever, and waits for a broker that is not there yet. name shows in the
// broker's connection list.
func Connect(url, name string, log zerolog.Logger, extra ...nats.Option) (*nats.Conn, error) {
	log = log.With().Str("component", "connection").Logger()
	opts := append([]nats.Option{
		nats.Name(name),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(250 * time.Millisecond),
		nats.ReconnectJitter(250*time.Millisecond, time.Second),
		nats.RetryOnFailedConnect(true),
		nats.ReconnectBufSize(64 << 20),
		nats.PingInterval(10 * time.Second),
		nats.MaxPingsOutstanding(3),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				log.Warn().Err(err).Msg("connection to the broker lost: trying again")
			}
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) { log.Info().Str("url", nc.ConnectedUrlRedacted()).Msg("connected again") }),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			e := log.Warn().Err(err)
			if sub != nil {
				e = e.Str("subject", sub.Subject)
			}
			if errors.Is(err, nats.ErrSlowConsumer) {
				e.Msg("messages were dropped: this process is too slow for them")
				return
			}
			e.Msg("the broker complained")
		}),
	}, extra...)
	nc, err := nats.Connect(url, opts...)
	if err != nil {
		return nil, fmt.Errorf("connect to the broker at %s: %w", url, err)
	}
	return nc, nil
}
