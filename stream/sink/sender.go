package sink

import (
	"context"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/nearmiss/nearmiss/stream"
)

// A Sender brings one notice to its receiver and returns when the receiver has
// it. It is called from several goroutines, unless the sink is ordered.
type Sender interface {
	Send(ctx context.Context, n Notice) error
	// Close ends what it holds open.
	Close() error
}

// A Follower does something beside the deliveries, such as keeping a state up to
// date, from when its sink is at work until ctx ends. What it returns before that
// stops the sink, which is then opened again.
type Follower interface {
	Sender
	Follow(ctx context.Context, live Live) error
}

// A Watcher takes scores as they come instead of events from the broker's store:
// its sink has no consumers, and Send serves tests only.
type Watcher interface {
	Sender
	Watch(ctx context.Context, live Live) error
}

// Live is what followers and watchers work with.
type Live struct {
	stream.Names
	Sink Sink
	NC   *nats.Conn
	// Count counts an outcome, with its reason where it was not [ResultSent].
	Count func(result, why string)
	// Delivered takes note of a delivery and how long it took from when its score
	// was published.
	Delivered func(at time.Time, delay time.Duration)
	// Failed takes note of a failure.
	Failed func(err error)
}

// Scores are the subjects of the scores that the sink is about.
func (l Live) Scores() []string {
	var all []string
	for _, d := range l.Detectors() {
		for _, c := range orAny(l.Sink.Cameras) {
			all = append(all, l.Names.Scores(d, c))
		}
	}
	return all
}

// Detectors are those that the sink is about, as tokens of subjects.
func (l Live) Detectors() []string { return orAny(l.Sink.Detectors) }

// Wants says whether the sink is about a camera.
func (l Live) Wants(camera string) bool {
	return len(l.Sink.Cameras) == 0 || slices.Contains(l.Sink.Cameras, camera)
}

// Kinds open the senders of the kinds that there are: config is the sink's
// own, checked in full, and secret is what the sink's reference led to.
type Kinds map[string]func(s Sink, secret string) (Sender, error)

// receiver is where a sink's events go.
type receiver struct {
	guarded
	name, kind string        // of the sink
	tracer     stream.Tracer // nil: nobody follows events
}

// try sends one notice, as a span of the trace that its message is of.
func (r receiver) try(ctx context.Context, t taken) error {
	// What is under way when the program ends may finish: the receiver may
	// already have it.
	step, cancel := context.WithTimeout(context.WithoutCancel(ctx), sendTime)
	defer cancel()
	if r.tracer == nil {
		return r.Send(step, t.notice)
	}
	span := r.tracer.Start(stream.Span{
		Name: "deliver " + r.name, Kind: stream.SpanClient, Parent: t.Headers().Get(stream.HeaderTrace),
		Attributes: []stream.SpanAttribute{
			{Key: "nearmiss.sink", Value: r.name},
			{Key: "nearmiss.sink.kind", Value: r.kind},
			{Key: "messaging.system", Value: "nats"},
			{Key: "messaging.destination.name", Value: t.Subject()},
			{Key: "messaging.message.id", Value: t.notice.ID},
		},
	})
	err := r.Send(step, t.notice)
	span.End(time.Time{}, err)
	return err
}
