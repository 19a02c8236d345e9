package stream

import "time"

// Tracer makes spans of what is done with frames, events and jobs, for whoever
// follows one of them through all processes. Its parts have a nil Tracer where nobody
// does. Its methods are called from many goroutines: they must not wait.
type Tracer interface {
	// Start begins a span, which must be ended.
	Start(Span) RunningSpan
}

// Span is one thing that is done.
type Span struct {
	Name   string
	Kind   SpanKind
	Parent string   // W3C traceparent; one that cannot be read begins a trace
	Links  []string // traceparents of others that it was done for
	Begin  time.Time
	// Always records it although the trace that it is of is not.
	Always     bool
	Attributes []SpanAttribute
}

// SpanAttribute is a string, int, bool or float64 by its name.
type SpanAttribute struct {
	Key   string
	Value any
}

// SpanKind is who talks to whom.
type SpanKind int

// Kinds of spans.
const (
	SpanInternal SpanKind = iota
	SpanProducer          // gives a message to the broker
	SpanConsumer          // has taken a message
	SpanClient            // asks somebody outside
	SpanServer            // answers somebody outside
)

// RunningSpan is a span that has begun.
type RunningSpan interface {
	// Context is the W3C traceparent of what is done because of it.
	Context() string
	// Recorded says whether anybody will see it.
	Recorded() bool
	// Set adds what was not known at its beginning.
	Set(...SpanAttribute)
	// Event notes that something happened in between.
	Event(name string, about ...SpanAttribute)
	// End ends it; a zero time means now. An error is why it failed.
	End(at time.Time, err error)
}

// MessagingSpan has what all spans about messages say (OpenTelemetry's semantic
// conventions for messaging): the operation (send, process, deliver), and the template
// of the subject, such as nearmiss.frames.
func MessagingSpan(kind SpanKind, operation, template, subject, id string, bytes int) Span {
	return Span{
		Name: operation + " " + template, Kind: kind,
		Attributes: []SpanAttribute{
			{"messaging.system", "nats"},
			{"messaging.operation.type", operation},
			{"messaging.operation.name", operation},
			{"messaging.destination.name", subject},
			{"messaging.destination.template", template},
			{"messaging.message.id", id},
			{"messaging.message.body.size", bytes},
		},
	}
}

// AboutCamera has what spans say of whose frame it is.
func AboutCamera(detector, camera string) []SpanAttribute {
	return []SpanAttribute{{"nearmiss.detector", detector}, {"nearmiss.camera", camera}}
}

// SendSpan is the span of a camera that publishes a frame.
func (f Frame) SendSpan(n Names) Span {
	s := MessagingSpan(SpanProducer, "send", n.Root()+".frames", n.Frames(f.Detector, f.Camera), f.ID, len(f.Image))
	s.Parent = f.Trace
	s.Attributes = append(append(s.Attributes, AboutCamera(f.Detector, f.Camera)...), SpanAttribute{"nearmiss.frame_id", f.ID})
	return s
}
