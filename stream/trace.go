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

// messagingSpan has what all spans about messages say (OpenTelemetry's semantic
// conventions for messaging): the operation (send, process, deliver), and the template
// of the subject, such as nearmiss.frames.
func messagingSpan(kind SpanKind, operation, template, subject, id string, bytes int) Span {
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

func about(detector, camera string) []SpanAttribute {
	return []SpanAttribute{{"nearmiss.detector", detector}, {"nearmiss.camera", camera}}
}

// SendSpan is the span of a camera that publishes a frame.
func (f Frame) SendSpan(n Names) Span {
	s := messagingSpan(SpanProducer, "send", n.Root()+".frames", n.Frames(f.Detector, f.Camera), f.ID, len(f.Image))
	s.Parent = f.Trace
	s.Attributes = append(append(s.Attributes, about(f.Detector, f.Camera)...), SpanAttribute{"nearmiss.frame_id", f.ID})
	return s
}

// frameSpans are the spans of one frame in a worker.
type frameSpans struct {
	process RunningSpan
	send    RunningSpan // of its event; nil: it has none
}

// scoring is one call of the scorer.
type scoring struct {
	begin, end time.Time
	frames     int
}

// trace begins the spans of frames that have been judged. They could not begin before:
// an anomaly is recorded whatever the camera has decided.
func (l *detectorRunner) trace(rel *loaded, items []*frameTask) {
	t := l.w.cfg.Tracer
	if t == nil {
		return
	}
	batches := map[*scoring][]string{}
	for _, it := range items {
		if it.event == nil || it.spans != nil {
			continue
		}
		it.spans = &frameSpans{process: t.Start(l.processSpan(it, rel.pointer.Release))}
		it.event.Trace = it.spans.process.Context()
		if it.announce {
			subject := l.w.cfg.Events(it.event.Detector, it.event.Camera, it.event.Kind)
			s := messagingSpan(SpanProducer, "send", l.w.cfg.Root()+".events", subject, it.event.ID, 0)
			s.Parent = it.event.Trace
			it.spans.send = t.Start(s)
			it.event.Trace = it.spans.send.Context()
		}
		if it.scoring != nil && it.spans.process.Recorded() {
			batches[it.scoring] = append(batches[it.scoring], it.spans.process.Context())
		}
	}
	for b, frames := range batches {
		t.Start(Span{
			Name: "score batch", Begin: b.begin, Links: frames, Always: true,
			Attributes: []SpanAttribute{
				{"messaging.batch.message_count", b.frames}, {"nearmiss.detector", l.name}, {"nearmiss.release", rel.pointer.Release},
			},
		}).End(b.end, nil)
	}
}

func (l *detectorRunner) processSpan(it *frameTask, release string) Span {
	s := messagingSpan(SpanConsumer, "process", l.w.cfg.Root()+".frames", it.msg.Subject(), it.frame.ID, it.bytes)
	s.Parent, s.Begin = it.frame.Trace, it.taken
	s.Attributes = append(append(s.Attributes, about(it.frame.Detector, it.frame.Camera)...),
		SpanAttribute{"messaging.consumer.group.name", FramesConsumer(l.name)},
		SpanAttribute{"nearmiss.frame_id", it.frame.ID}, SpanAttribute{"nearmiss.delivery", it.deliveries}, SpanAttribute{"nearmiss.release", release})
	if e := it.event; e != nil && e.Anomalous != nil {
		s.Always = *e.Anomalous
		s.Attributes = append(s.Attributes, SpanAttribute{"nearmiss.anomalous", *e.Anomalous})
		if *e.Threshold > 0 {
			s.Attributes = append(s.Attributes, SpanAttribute{"nearmiss.score_ratio", *e.Score / *e.Threshold})
		}
	} else if e != nil && e.Code != "" {
		s.Attributes = append(s.Attributes, SpanAttribute{"error.type", e.Code})
	}
	return s
}

// traced ends a frame's spans.
func (l *detectorRunner) traced(it *frameTask, err error) {
	t := l.w.cfg.Tracer
	if t == nil {
		return
	}
	if it.spans == nil { // it was not judged, or has been before
		t.Start(l.processSpan(it, "")).End(time.Time{}, err)
		return
	}
	if it.spans.send != nil {
		it.spans.send.End(time.Time{}, err)
	}
	it.spans.process.End(time.Time{}, err)
}
