package sink

import (
	"context"
	"time"

	"github.com/nearmiss/nearmiss/stream"
)

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
