package traces

import (
	"errors"
	"sync"
	"time"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/trainer"
)

// Jobs has a trainer's jobs be spans, and calls next with what it gets. Without a tracer
// it is next.
func Jobs(t *Tracer, next trainer.Meter) trainer.Meter {
	if t == nil {
		return next
	}
	return &jobs{Meter: next, tracer: t, under: map[string]*job{}}
}

type jobs struct {
	trainer.Meter
	tracer *Tracer

	mu    sync.Mutex
	under map[string]*job // way, by detector: a trainer does one job at a time
}

type job struct {
	span  stream.RunningSpan
	phase string
}

func (j *jobs) Took(detector, kind string) {
	j.Meter.Took(detector, kind)
	span := j.tracer.Start(stream.Span{
		Name: "job " + kind, Kind: stream.SpanConsumer, Always: true, // there are few
		Attributes: []stream.SpanAttribute{{Key: "nearmiss.detector", Value: detector}},
	})
	j.mu.Lock()
	defer j.mu.Unlock()
	j.under[detector] = &job{span: span}
}

func (j *jobs) Progress(kind string, p stream.Progress) {
	j.Meter.Progress(kind, p)
	j.mu.Lock()
	defer j.mu.Unlock()
	if under := j.under[p.Detector]; under != nil && under.phase != p.Phase {
		under.phase = p.Phase
		under.span.Event(p.Phase, stream.SpanAttribute{Key: "nearmiss.job", Value: p.Job})
	}
}

func (j *jobs) Ended(detector, kind, result string, took time.Duration) {
	j.Meter.Ended(detector, kind, result, took)
	j.mu.Lock()
	under := j.under[detector]
	delete(j.under, detector)
	j.mu.Unlock()
	if under == nil {
		return
	}
	var err error
	if result == stream.JobFailed || result == trainer.JobTakenOver {
		err = errors.New("the job is " + result)
	}
	under.span.Set(stream.SpanAttribute{Key: "nearmiss.result", Value: result})
	under.span.End(time.Time{}, err)
}
