package console

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/wait"
	"github.com/nearmiss/nearmiss/stream/registry"
)

// backend is what the page reads, follows and asks. It can be used from when it is
// ready on.
type backend struct {
	stream.Names
	log   zerolog.Logger
	ready chan struct{} // closed when what is stored has been read

	nc        *nats.Conn
	js        jetstream.JetStream
	client    *stream.Client
	in        *stream.Installation
	normals   *stream.Normals
	detectors *stream.Detectors
	registry  *registry.Registry
}

// open waits until the broker has what the console reads, and then does what more
// is to be opened.
func (b *backend) open(ctx context.Context, nc *nats.Conn, more func(context.Context) error) (err error) {
	b.nc = nc
	if b.js, err = b.JetStreamOn(nc); err != nil {
		return err
	}
	b.client, b.in = stream.NewClient(nc, b.Names), stream.NewInstallation(b.js, b.Names)
	b.normals = b.in.Normals()
	logged := false
	for ctx.Err() == nil {
		if err = b.openBuckets(ctx, more); err == nil {
			return nil
		}
		if !logged {
			b.log.Warn().Err(err).Msg("the page waits for the broker")
			logged = true
		}
		wait.Pause(ctx, time.Second)
	}
	return nil
}

func (b *backend) openBuckets(ctx context.Context, more func(context.Context) error) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if b.detectors, err = b.in.Detectors(ctx); err != nil {
		return err
	}
	if b.registry, err = b.in.Registry(ctx); err != nil {
		return err
	}
	return more(ctx)
}

// isReady says whether what is stored has been read.
func (b *backend) isReady() bool {
	select {
	case <-b.ready:
		return true
	default:
		return false
	}
}

// repeat calls f until ctx ends; f returns when the broker was away.
func (b *backend) repeat(ctx context.Context, what string, f func(context.Context) error) {
	for ctx.Err() == nil {
		if err := f(ctx); err != nil && ctx.Err() == nil {
			b.log.Warn().Err(err).Msgf("%s are followed again", what)
		}
		wait.Pause(ctx, time.Second)
	}
}

// stored is the event at the sequence that the path names.
func (b *backend) stored(ctx context.Context, q *request) (stream.Event, error) {
	n, err := q.sequence()
	if err != nil {
		return stream.Event{}, err
	}
	return b.in.Event(ctx, n)
}

// about reads the request's JSON into v and returns the detector that the path
// names, which there must be.
func (b *backend) about(q *request, v any) (name string, err error) {
	if err := q.read(v); err != nil {
		return "", err
	}
	d, err := b.detectors.Get(q.ctx, q.PathValue("detector"))
	return d.Name, err
}

// control asks for a change in the name of who is signed in.
func (b *backend) control(q *request) *stream.Client { return b.client.For(q.who.Name) }

// logAction writes into the log who did what.
func (b *backend) logAction(q *request, what, object string) {
	b.log.Info().Str("by", q.who.Name).Stringer("role", q.who.Role).Str("object", object).Msg(what)
}

// record writes down a change that the console makes itself, in the log and the audit;
// of others control does.
func (b *backend) record(q *request, action, object string, after any) {
	b.logAction(q, action, object)
	e := stream.AuditEntry{By: q.who.Name, Action: action, Object: clean(object), After: stream.Audited(after)}
	if err := b.in.WriteAudit(context.WithoutCancel(q.ctx), e); err != nil {
		b.log.Error().Err(err).Str("by", q.who.Name).Str("object", object).Msg("a change is missing in the audit")
	}
}
