package worker

import (
	"time"

	"github.com/nearmiss/nearmiss/stream"
)

// frameSpans are the spans of one frame in a worker.
type frameSpans struct {
	process stream.RunningSpan
	send    stream.RunningSpan // of its event; nil: it has none
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
			s := stream.MessagingSpan(stream.SpanProducer, "send", l.w.cfg.Root()+".events", subject, it.event.ID, 0)
			s.Parent = it.event.Trace
			it.spans.send = t.Start(s)
			it.event.Trace = it.spans.send.Context()
		}
		if it.scoring != nil && it.spans.process.Recorded() {
			batches[it.scoring] = append(batches[it.scoring], it.spans.process.Context())
		}
	}
	for b, frames := range batches {
		t.Start(stream.Span{
			Name: "score batch", Begin: b.begin, Links: frames, Always: true,
			Attributes: []stream.SpanAttribute{
				{Key: "messaging.batch.message_count", Value: b.frames}, {Key: "nearmiss.detector", Value: l.name}, {Key: "nearmiss.release", Value: rel.pointer.Release},
			},
		}).End(b.end, nil)
	}
}

func (l *detectorRunner) processSpan(it *frameTask, release string) stream.Span {
	s := stream.MessagingSpan(stream.SpanConsumer, "process", l.w.cfg.Root()+".frames", it.msg.Subject(), it.frame.ID, it.bytes)
	s.Parent, s.Begin = it.frame.Trace, it.taken
	s.Attributes = append(append(s.Attributes, stream.AboutCamera(it.frame.Detector, it.frame.Camera)...),
		stream.SpanAttribute{Key: "messaging.consumer.group.name", Value: stream.FramesConsumer(l.name)},
		stream.SpanAttribute{Key: "nearmiss.frame_id", Value: it.frame.ID}, stream.SpanAttribute{Key: "nearmiss.delivery", Value: it.deliveries}, stream.SpanAttribute{Key: "nearmiss.release", Value: release})
	if e := it.event; e != nil && e.Anomalous != nil {
		s.Always = *e.Anomalous
		s.Attributes = append(s.Attributes, stream.SpanAttribute{Key: "nearmiss.anomalous", Value: *e.Anomalous})
		if *e.Threshold > 0 {
			s.Attributes = append(s.Attributes, stream.SpanAttribute{Key: "nearmiss.score_ratio", Value: *e.Score / *e.Threshold})
		}
	} else if e != nil && e.Code != "" {
		s.Attributes = append(s.Attributes, stream.SpanAttribute{Key: "error.type", Value: e.Code})
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
