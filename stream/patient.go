package stream

import (
	"context"
	"errors"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// takeover is how long nobody may answer while the broker takes over users that have
// changed: nats-server 2.15 answers no JetStream request in that moment.
const takeover = 5 * time.Second

// answered asks until somebody answers, for at most [takeover].
func answered[T any](ctx context.Context, ask func() (T, error)) (T, error) {
	b := backoff.NewExponentialBackOff(backoff.WithInitialInterval(50*time.Millisecond), backoff.WithMaxElapsedTime(takeover))
	return backoff.RetryWithData(func() (T, error) {
		v, err := ask()
		for _, moment := range []error{nats.ErrNoResponders, jetstream.ErrJetStreamNotEnabled, nats.ErrJetStreamNotEnabled} {
			if errors.Is(err, moment) {
				return v, err
			}
		}
		if err != nil {
			err = backoff.Permanent(err)
		}
		return v, err
	}, backoff.WithContext(b, ctx))
}

// patient is a JetStream whose readers wait while a broker takes over users: what an
// [Installation] asks.
type patient struct{ jetstream.JetStream }

func (p patient) AccountInfo(ctx context.Context) (*jetstream.AccountInfo, error) {
	return answered(ctx, func() (*jetstream.AccountInfo, error) { return p.JetStream.AccountInfo(ctx) })
}

func (p patient) Stream(ctx context.Context, name string) (jetstream.Stream, error) {
	s, err := answered(ctx, func() (jetstream.Stream, error) { return p.JetStream.Stream(ctx, name) })
	return patientStream{s}, err
}

func (p patient) OrderedConsumer(ctx context.Context, stream string, cfg jetstream.OrderedConsumerConfig) (jetstream.Consumer, error) {
	c, err := answered(ctx, func() (jetstream.Consumer, error) { return p.JetStream.OrderedConsumer(ctx, stream, cfg) })
	return patientConsumer{c}, err
}

func (p patient) KeyValue(ctx context.Context, bucket string) (jetstream.KeyValue, error) {
	b, err := answered(ctx, func() (jetstream.KeyValue, error) { return p.JetStream.KeyValue(ctx, bucket) })
	return patientBucket{b}, err
}

func (p patient) ObjectStore(ctx context.Context, bucket string) (jetstream.ObjectStore, error) {
	b, err := answered(ctx, func() (jetstream.ObjectStore, error) { return p.JetStream.ObjectStore(ctx, bucket) })
	return patientObjects{b}, err
}

type patientStream struct{ jetstream.Stream }

func (p patientStream) Info(ctx context.Context, opts ...jetstream.StreamInfoOpt) (*jetstream.StreamInfo, error) {
	return answered(ctx, func() (*jetstream.StreamInfo, error) { return p.Stream.Info(ctx, opts...) })
}

func (p patientStream) GetMsg(ctx context.Context, seq uint64, opts ...jetstream.GetMsgOpt) (*jetstream.RawStreamMsg, error) {
	return answered(ctx, func() (*jetstream.RawStreamMsg, error) { return p.Stream.GetMsg(ctx, seq, opts...) })
}

func (p patientStream) GetLastMsgForSubject(ctx context.Context, subject string) (*jetstream.RawStreamMsg, error) {
	return answered(ctx, func() (*jetstream.RawStreamMsg, error) { return p.Stream.GetLastMsgForSubject(ctx, subject) })
}

func (p patientStream) Consumer(ctx context.Context, name string) (jetstream.Consumer, error) {
	c, err := answered(ctx, func() (jetstream.Consumer, error) { return p.Stream.Consumer(ctx, name) })
	return patientConsumer{c}, err
}

type patientConsumer struct{ jetstream.Consumer }

func (p patientConsumer) Info(ctx context.Context) (*jetstream.ConsumerInfo, error) {
	return answered(ctx, func() (*jetstream.ConsumerInfo, error) { return p.Consumer.Info(ctx) })
}

type patientBucket struct{ jetstream.KeyValue }

func (p patientBucket) Get(ctx context.Context, key string) (jetstream.KeyValueEntry, error) {
	return answered(ctx, func() (jetstream.KeyValueEntry, error) { return p.KeyValue.Get(ctx, key) })
}

func (p patientBucket) Status(ctx context.Context) (jetstream.KeyValueStatus, error) {
	return answered(ctx, func() (jetstream.KeyValueStatus, error) { return p.KeyValue.Status(ctx) })
}

func (p patientBucket) History(ctx context.Context, key string, opts ...jetstream.WatchOpt) ([]jetstream.KeyValueEntry, error) {
	return answered(ctx, func() ([]jetstream.KeyValueEntry, error) { return p.KeyValue.History(ctx, key, opts...) })
}

func (p patientBucket) Watch(ctx context.Context, keys string, opts ...jetstream.WatchOpt) (jetstream.KeyWatcher, error) {
	return answered(ctx, func() (jetstream.KeyWatcher, error) { return p.KeyValue.Watch(ctx, keys, opts...) })
}

type patientObjects struct{ jetstream.ObjectStore }

func (p patientObjects) GetInfo(ctx context.Context, name string, opts ...jetstream.GetObjectInfoOpt) (*jetstream.ObjectInfo, error) {
	return answered(ctx, func() (*jetstream.ObjectInfo, error) { return p.ObjectStore.GetInfo(ctx, name, opts...) })
}
