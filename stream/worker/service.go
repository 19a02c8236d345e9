package worker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/service"
	"github.com/nearmiss/nearmiss/stream/registry"
)

// scoreRequest asks a worker to score one image now, past the queue. Nothing is
// stored. Instead of JSON, the image itself may be the payload, with the
// detector in the header Nearmiss-Detector.
type scoreRequest struct {
	Detector string `json:"detector"`
	Image    []byte `json:"image"` // the image file's bytes; base64 in JSON
}

func (q *scoreRequest) Read(r micro.Request) []byte {
	if d := nats.Header(r.Headers()).Get(stream.HeaderDetector); d != "" {
		q.Detector, q.Image = d, r.Data()
		return nil
	}
	return r.Data()
}

// Status returns what the worker says of itself.
func (w *Worker) Status() stream.WorkerStatus {
	st := stream.WorkerStatus{WorkerStats: w.Stats(), Name: w.nc.Opts.Name, Serving: map[string]string{}, Refused: map[string]string{}, Shadows: w.Shadows(), Cameras: w.cameras.rates()}
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, l := range w.runners {
		l.mu.Lock()
		if l.cur != nil {
			st.Serving[name] = l.cur.pointer.Release
			l.cur.mu.Lock()
			for camera, d := range l.cur.drift {
				if d.test != nil {
					st.Drift = append(st.Drift, stream.CameraDrift{Detector: name, Camera: camera, DriftStatus: d.status})
				}
			}
			l.cur.mu.Unlock()
		}
		if rev, ok := l.refused[l.want.active.Release]; ok && rev == l.want.active.Revision {
			st.Refused[name] = l.want.active.Release
		}
		l.mu.Unlock()
	}
	return st
}

// service offers the worker's micro service.
func (w *Worker) service(ctx context.Context) (stop func(), err error) {
	return service.Start(ctx, w.nc, stream.WorkerService, "scores frames", []string{w.cfg.API() + ".worker"}, map[string]string{"prefix": w.cfg.Root()}, func(e *service.Endpoints) {
		service.Serve(e, "score-now", w.scoreNow)
		service.Serve(e, "shed", w.shed, micro.WithEndpointSubject("shed.*.*"))
		// Every worker answers for itself.
		service.Serve(e, "status", func(context.Context, struct{}) (stream.WorkerStatus, error) { return w.Status(), nil }, micro.WithEndpointQueueGroupDisabled())
	})
}

// scoreNow scores one image with the release in service.
func (w *Worker) scoreNow(ctx context.Context, q scoreRequest) (*stream.Event, error) {
	if len(q.Image) == 0 || q.Detector == "" {
		return nil, stream.Permanent(stream.CodeBadRequest, errors.New("score-now needs a detector and an image"))
	}
	if err := stream.CheckToken("detector", q.Detector); err != nil {
		return nil, err
	}
	w.mu.Lock()
	l := w.runners[q.Detector]
	w.mu.Unlock()
	if l == nil {
		return nil, fmt.Errorf("this worker does not serve detector %s: %w", q.Detector, stream.ErrNoDetector)
	}
	rel, shadow := l.borrow()
	if shadow != nil {
		shadow.users.Done()
	}
	if rel == nil {
		return nil, fmt.Errorf("detector %s: %w", q.Detector, registry.ErrNoRelease)
	}
	defer rel.users.Done()
	now := time.Now().UTC()
	it := &frameTask{frame: stream.Frame{Detector: q.Detector, Camera: stream.NoCamera, ID: "score-now", CapturedAt: now, Image: q.Image}}
	if err := l.scoreBatch(ctx, rel, []*frameTask{it}); err != nil {
		return nil, err
	}
	if it.failure != nil {
		return nil, it.failure
	}
	it.event.Bytes = len(q.Image)
	conf, _, _, _ := l.state()
	conf.Decide(it.event)
	return it.event, nil
}

// shedRequest is one with whose frames are meant.
type shedRequest struct {
	stream.ShedRequest
	detector, camera string
}

func (q *shedRequest) Read(r micro.Request) []byte {
	parts := strings.Split(r.Subject(), ".")
	q.detector, q.camera = parts[len(parts)-2], parts[len(parts)-1]
	return r.Data()
}

// shed drops a camera's oldest waiting frames.
func (w *Worker) shed(ctx context.Context, q shedRequest) (stream.ShedAnswer, error) {
	if q.Keep < 1 {
		return stream.ShedAnswer{}, stream.Permanent(stream.CodeBadRequest, errors.New(`shed needs {"keep": N} with 1 or more frames to keep`))
	}
	if err := errors.Join(stream.CheckToken("detector", q.detector), stream.CheckToken("camera", q.camera)); err != nil {
		return stream.ShedAnswer{}, err
	}
	n, err := w.in.Shed(ctx, q.detector, q.camera, q.Keep)
	if n > 0 {
		w.count.dropped.Add(n)
		w.log.Warn().Str("detector", q.detector).Str("camera", q.camera).Uint64("frames", n).Msg("the queue is full: old frames of a live camera are dropped")
	}
	return stream.ShedAnswer{Dropped: n}, err
}
