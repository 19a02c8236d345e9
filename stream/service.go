package stream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/nearmiss/nearmiss/stream/registry"
)

// Names of the micro services, as $SRV knows them.
const (
	WorkerService  = "nearmiss-worker"
	TrainerService = "nearmiss-trainer"
)

// HeaderDetector names the detector of a score-now request whose payload is the
// image.
const HeaderDetector = "Nearmiss-Detector"

// serviceVersion is the version of the requests and responses.
const serviceVersion = "1.0.0"

// requestTime bounds the handling of one request.
const requestTime = 30 * time.Second

// ServiceError is what a service answers when it cannot do what was asked.
type ServiceError struct {
	Code    string // one of the codes
	Message string // a sentence
}

func (e *ServiceError) Error() string { return e.Message + " (" + e.Code + ")" }

// codeFor turns an error into the code with which a service answers.
func codeFor(err error) string {
	var perm *PermanentError
	switch {
	case errors.As(err, &perm):
		return perm.Code
	case errors.Is(err, ErrBadName), errors.Is(err, ErrBadMessage):
		return CodeBadRequest
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrNoDetector), errors.Is(err, registry.ErrNoRelease), errors.Is(err, registry.ErrNoPrevious):
		return CodeNotFound
	case errors.Is(err, ErrConflict), errors.Is(err, ErrDetectorExists), errors.Is(err, registry.ErrConflict):
		return CodeConflict
	default:
		return CodeInternal
	}
}

// endpoints are the endpoints of a service.
type endpoints struct {
	ctx   context.Context
	group micro.Group
	err   error
}

// serve answers the requests of one endpoint, one after the other; endpoints do
// not wait for each other.
func serve[Q, A any](e *endpoints, name string, f func(context.Context, Q) (A, error), opts ...micro.EndpointOpt) {
	if e.err != nil {
		return
	}
	e.err = e.group.AddEndpoint(name, micro.HandlerFunc(func(r micro.Request) {
		var q Q
		if raw, ok := any(&q).(rawRequest); ok {
			raw.read(r)
		} else if len(r.Data()) > 0 {
			dec := json.NewDecoder(bytes.NewReader(r.Data()))
			dec.DisallowUnknownFields()
			if err := dec.Decode(&q); err != nil {
				_ = r.Error(CodeBadRequest, headerSafe(fmt.Sprintf("the request of %s cannot be understood: %v", name, err)), nil)
				return
			}
		}
		ctx, cancel := context.WithTimeout(e.ctx, requestTime)
		defer cancel()
		a, err := f(ctx, q)
		if err != nil {
			_ = r.Error(codeFor(err), headerSafe(err.Error()), nil)
			return
		}
		_ = r.RespondJSON(a)
	}), opts...)
}

// rawRequest is a request that is not JSON alone.
type rawRequest interface{ read(micro.Request) }

// startService adds a micro service until ctx ends; add declares its endpoints.
func startService(ctx context.Context, nc *nats.Conn, name, description, subject string, meta map[string]string, add func(*endpoints)) (stop func(), err error) {
	s, err := micro.AddService(nc, micro.Config{Name: name, Version: serviceVersion, Description: description, Metadata: meta})
	if err != nil {
		return nil, fmt.Errorf("start service %s: %w", name, err)
	}
	e := &endpoints{ctx: ctx, group: s.AddGroup(subject)}
	add(e)
	if e.err != nil {
		_ = s.Stop()
		return nil, fmt.Errorf("start service %s: %w", name, e.err)
	}
	return func() { _ = s.Stop() }, nil
}

// ScoreRequest asks a worker to score one image now, past the queue. Nothing is
// stored. Instead of JSON, the image itself may be the payload, with the
// detector in the header Nearmiss-Detector.
type ScoreRequest struct {
	Detector string `json:"detector"`
	Image    []byte `json:"image"` // the image file's bytes; base64 in JSON
}

func (q *ScoreRequest) read(r micro.Request) {
	if d := nats.Header(r.Headers()).Get(HeaderDetector); d != "" {
		q.Detector, q.Image = d, r.Data()
		return
	}
	if err := json.Unmarshal(r.Data(), q); err != nil {
		*q = ScoreRequest{}
	}
}

// WorkerStatus is what a worker says of itself.
type WorkerStatus struct {
	WorkerStats
	Name    string            `json:"name"`
	Serving map[string]string `json:"serving"`           // detector → release in service
	Refused map[string]string `json:"refused,omitempty"` // detector → release that is wanted and was refused
	Shadows []ShadowReport    `json:"shadows,omitempty"`
	Drift   []CameraDrift     `json:"drift,omitempty"`
	Cameras []CameraRate      `json:"cameras,omitempty"` // that sent this worker frames in the last minute
}

// CameraDrift is the state of the drift test of one camera at one worker.
type CameraDrift struct {
	Detector string `json:"detector"`
	Camera   string `json:"camera"`
	DriftStatus
}

// Status returns what the worker says of itself.
func (w *Worker) Status() WorkerStatus {
	st := WorkerStatus{WorkerStats: w.Stats(), Name: w.nc.Opts.Name, Serving: map[string]string{}, Refused: map[string]string{}, Shadows: w.Shadows(), Cameras: w.seenCameras.rates()}
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, l := range w.runners {
		l.mu.Lock()
		if l.cur != nil {
			st.Serving[name] = l.cur.pointer.Release
			l.cur.mu.Lock()
			for camera, d := range l.cur.drift {
				if d.test != nil {
					st.Drift = append(st.Drift, CameraDrift{Detector: name, Camera: camera, DriftStatus: d.status})
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
	return startService(ctx, w.nc, WorkerService, "scores frames", w.cfg.API()+".worker", map[string]string{"prefix": w.cfg.prefix()}, func(e *endpoints) {
		serve(e, "score-now", w.scoreNow)
		serve(e, "shed", w.shed, micro.WithEndpointSubject("shed.*.*"))
		// Every worker answers for itself.
		serve(e, "status", func(context.Context, struct{}) (WorkerStatus, error) { return w.Status(), nil }, micro.WithEndpointQueueGroupDisabled())
	})
}

// scoreNow scores one image with the release in service.
func (w *Worker) scoreNow(ctx context.Context, q ScoreRequest) (*Event, error) {
	if len(q.Image) == 0 || q.Detector == "" {
		return nil, Permanent(CodeBadRequest, errors.New("score-now needs a detector and an image"))
	}
	if err := CheckToken("detector", q.Detector); err != nil {
		return nil, err
	}
	w.mu.Lock()
	l := w.runners[q.Detector]
	w.mu.Unlock()
	if l == nil {
		return nil, fmt.Errorf("this worker does not serve detector %s: %w", q.Detector, ErrNoDetector)
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
	it := &frameTask{frame: Frame{Detector: q.Detector, Camera: NoCamera, ID: "score-now", CapturedAt: now, Image: q.Image}}
	if err := l.scoreBatch(ctx, rel, []*frameTask{it}); err != nil {
		return nil, err
	}
	if it.failure != nil {
		return nil, it.failure
	}
	it.event.Bytes = len(q.Image)
	conf, _, _, _ := l.state()
	conf.decide(it.event)
	return it.event, nil
}

// ShedRequest asks that a camera's oldest waiting frames be dropped. Whose they
// are is said by the subject ([Names.Shed]), so that a camera can ask for its own
// only.
type ShedRequest struct {
	Keep int `json:"keep"` // frames that are left, the newest

	detector, camera string
	err              error
}

func (q *ShedRequest) read(r micro.Request) {
	parts := strings.Split(r.Subject(), ".")
	q.detector, q.camera = parts[len(parts)-2], parts[len(parts)-1]
	q.err = json.Unmarshal(r.Data(), q)
}

// ShedAnswer says how many frames were dropped.
type ShedAnswer struct {
	Dropped uint64 `json:"dropped"`
}

// shed drops a camera's oldest waiting frames.
func (w *Worker) shed(ctx context.Context, q ShedRequest) (ShedAnswer, error) {
	if q.err != nil || q.Keep < 1 {
		return ShedAnswer{}, Permanent(CodeBadRequest, errors.New(`shed needs {"keep": N} with 1 or more frames to keep`))
	}
	if err := errors.Join(CheckToken("detector", q.detector), CheckToken("camera", q.camera)); err != nil {
		return ShedAnswer{}, err
	}
	n, err := w.in.shed(ctx, q.detector, q.camera, q.Keep)
	if n > 0 {
		w.count.dropped.Add(n)
		w.log.Warn().Str("detector", q.detector).Str("camera", q.camera).Uint64("frames", n).Msg("the queue is full: old frames of a live camera are dropped")
	}
	return ShedAnswer{n}, err
}

// Requests of the trainer's service.
type (
	// JobRequest names a job.
	JobRequest struct {
		Job string `json:"job"`
	}
	// DetectorRequest names a detector; empty means all where that makes sense.
	DetectorRequest struct {
		Detector string `json:"detector,omitempty"`
	}
	// PromoteRequest names a release, in full or by its first characters.
	PromoteRequest struct {
		Detector string `json:"detector"`
		Release  string `json:"release,omitempty"` // not for rollback; empty ends shadow mode
		Expect   string `json:"expect,omitempty"`  // release that must be active, in full
		By       string `json:"by,omitempty"`
		Reason   string `json:"reason,omitempty"`
	}
	// PinRequest keeps a release from being collected, or lets it go.
	PinRequest struct {
		Detector string `json:"detector"`
		Release  string `json:"release"`
		Unpin    bool   `json:"unpin,omitempty"`
		By       string `json:"by,omitempty"`
	}
	// ReleasesAnswer is a detector's releases, oldest first, and its pointers,
	// newest first.
	ReleasesAnswer struct {
		Releases []registry.Release `json:"releases"`
		History  []registry.Pointer `json:"history"`
	}
)

// service offers the trainer's micro service.
func (w *TrainingWorker) service(ctx context.Context) (stop func(), err error) {
	return startService(ctx, w.nc, TrainerService, "trains detectors and keeps their releases", w.cfg.API()+".trainer", map[string]string{"prefix": w.cfg.prefix(), "trainer": w.cfg.Name}, func(e *endpoints) {
		serve(e, "train", func(ctx context.Context, q TrainRequest) (Job, error) {
			if _, err := w.detectors.Get(ctx, q.Detector); err != nil {
				return Job{}, err
			}
			if q.Job == "" {
				q.Job = NewJob(q.Detector)
			}
			return w.jobs.Request(ctx, q)
		})
		serve(e, "cancel", func(ctx context.Context, q JobRequest) (Job, error) { return w.jobs.Cancel(ctx, q.Job) })
		serve(e, "jobs", func(ctx context.Context, q DetectorRequest) ([]Job, error) {
			all, err := w.jobs.List(ctx, q.Detector)
			if all == nil {
				all = []Job{}
			}
			return all, err
		})
		serve(e, "releases", func(ctx context.Context, q DetectorRequest) (a ReleasesAnswer, err error) {
			if a.Releases, err = w.registry.List(ctx, q.Detector); err != nil || q.Detector == "" {
				return a, err
			}
			a.History, err = w.registry.History(ctx, q.Detector)
			return a, err
		})
		serve(e, "promote", func(ctx context.Context, q PromoteRequest) (registry.Pointer, error) {
			if err := CheckToken("detector", q.Detector); err != nil {
				return registry.Pointer{}, err
			}
			digest, err := w.registry.Resolve(ctx, q.Detector, q.Release)
			if err != nil {
				return registry.Pointer{}, err
			}
			return w.registry.Promote(ctx, q.Detector, digest, registry.Change{By: q.By, Reason: q.Reason, Expect: q.Expect})
		})
		serve(e, "rollback", func(ctx context.Context, q PromoteRequest) (registry.Pointer, error) {
			if err := CheckToken("detector", q.Detector); err != nil {
				return registry.Pointer{}, err
			}
			return w.registry.Rollback(ctx, q.Detector, registry.Change{By: q.By, Reason: q.Reason, Expect: q.Expect})
		})
		serve(e, "shadow", func(ctx context.Context, q PromoteRequest) (struct{}, error) {
			if err := CheckToken("detector", q.Detector); err != nil {
				return struct{}{}, err
			}
			digest := ""
			if q.Release != "" {
				var err error
				if digest, err = w.registry.Resolve(ctx, q.Detector, q.Release); err != nil {
					return struct{}{}, err
				}
			}
			return struct{}{}, w.registry.SetShadow(ctx, q.Detector, digest, registry.Change{By: q.By, Reason: q.Reason})
		})
		serve(e, "pin", func(ctx context.Context, q PinRequest) (struct{}, error) {
			digest, err := w.registry.Resolve(ctx, q.Detector, q.Release)
			if err != nil {
				return struct{}{}, err
			}
			if q.Unpin {
				return struct{}{}, w.registry.Unpin(ctx, digest)
			}
			return struct{}{}, w.registry.Pin(ctx, digest, q.By)
		})
		serve(e, "feedback", func(ctx context.Context, q Feedback) (struct{}, error) {
			return struct{}{}, w.in.SendFeedback(ctx, q)
		})
		serve(e, "collect", func(ctx context.Context, q registry.CollectOptions) (Collected, error) {
			return w.in.Collect(ctx, q)
		})
		serve(e, "calibration", w.calibration)
		serve(e, "status", func(ctx context.Context, _ struct{}) (Status, error) { return w.in.Status(ctx) })
	})
}

// Client asks the services.
type Client struct {
	nc    *nats.Conn
	names Names
}

// NewClient makes a client on a connection that the caller closes.
func NewClient(nc *nats.Conn, n Names) *Client { return &Client{nc: nc, names: n} }

// ask sends a request and reads the answer. Errors of the service are
// [*ServiceError]; no service at all is one with code [CodeNotFound].
func (c *Client) ask(ctx context.Context, subject string, q, a any) error {
	data, err := json.Marshal(q)
	if err != nil {
		return err
	}
	return c.send(ctx, &nats.Msg{Subject: subject, Data: data, Header: nats.Header{}}, a)
}

func (c *Client) send(ctx context.Context, q *nats.Msg, a any) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, requestTime)
		defer cancel()
	}
	m, err := c.nc.RequestMsgWithContext(ctx, q)
	if errors.Is(err, nats.ErrNoResponders) {
		return &ServiceError{Code: CodeNotFound, Message: fmt.Sprintf("nobody answers on %s: is a worker or trainer running?", q.Subject)}
	}
	if err != nil {
		return fmt.Errorf("ask %s: %w", q.Subject, err)
	}
	return answer(m, a)
}

func answer(m *nats.Msg, a any) error {
	if code := m.Header.Get(micro.ErrorCodeHeader); code != "" {
		return &ServiceError{Code: code, Message: m.Header.Get(micro.ErrorHeader)}
	}
	if err := json.Unmarshal(m.Data, a); err != nil {
		return fmt.Errorf("the answer on %s: %v: %w", m.Subject, err, ErrBadMessage)
	}
	return nil
}

func (c *Client) trainer(endpoint string) string { return c.names.API() + ".trainer." + endpoint }
func (c *Client) worker(endpoint string) string  { return c.names.API() + ".worker." + endpoint }

// ScoreNow has one image scored now.
func (c *Client) ScoreNow(ctx context.Context, detector string, image []byte) (e Event, err error) {
	m := &nats.Msg{Subject: c.worker("score-now"), Data: image, Header: nats.Header{HeaderDetector: {detector}}}
	err = c.send(ctx, m, &e)
	return e, err
}

// Shed has the oldest waiting frames of a camera dropped until keep are left.
func (c *Client) Shed(ctx context.Context, detector, camera string, keep int) (dropped uint64, err error) {
	var a ShedAnswer
	err = c.ask(ctx, c.names.Shed(detector, camera), ShedRequest{Keep: keep}, &a)
	return a.Dropped, err
}

// Train asks for training; see [Jobs.Wait] for its end.
func (c *Client) Train(ctx context.Context, r TrainRequest) (j Job, err error) {
	return j, c.ask(ctx, c.trainer("train"), r, &j)
}

// Cancel asks for a job's end.
func (c *Client) Cancel(ctx context.Context, job string) (j Job, err error) {
	return j, c.ask(ctx, c.trainer("cancel"), JobRequest{job}, &j)
}

// Jobs lists a detector's jobs, oldest first; an empty detector means all.
func (c *Client) Jobs(ctx context.Context, detector string) (all []Job, err error) {
	return all, c.ask(ctx, c.trainer("jobs"), DetectorRequest{detector}, &all)
}

// Releases lists a detector's releases and pointers.
func (c *Client) Releases(ctx context.Context, detector string) (a ReleasesAnswer, err error) {
	return a, c.ask(ctx, c.trainer("releases"), DetectorRequest{detector}, &a)
}

// Promote makes a release active.
func (c *Client) Promote(ctx context.Context, q PromoteRequest) (p registry.Pointer, err error) {
	return p, c.ask(ctx, c.trainer("promote"), q, &p)
}

// Rollback returns to the release before.
func (c *Client) Rollback(ctx context.Context, q PromoteRequest) (p registry.Pointer, err error) {
	return p, c.ask(ctx, c.trainer("rollback"), q, &p)
}

// Shadow has a candidate score alongside; without a release it ends that.
func (c *Client) Shadow(ctx context.Context, q PromoteRequest) error {
	return c.ask(ctx, c.trainer("shadow"), q, &struct{}{})
}

// Pin keeps a release from being collected, or lets it go.
func (c *Client) Pin(ctx context.Context, q PinRequest) error {
	return c.ask(ctx, c.trainer("pin"), q, &struct{}{})
}

// Feedback sends an operator's feedback.
func (c *Client) Feedback(ctx context.Context, f Feedback) error {
	return c.ask(ctx, c.trainer("feedback"), f, &struct{}{})
}

// Collect removes what nobody can need any more.
func (c *Client) Collect(ctx context.Context, o registry.CollectOptions) (a Collected, err error) {
	return a, c.ask(ctx, c.trainer("collect"), o, &a)
}

// Status reads the state of the installation.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.ask(ctx, c.trainer("status"), struct{}{}, &s)
}

// Workers asks all workers for their status, and returns what came within wait.
func (c *Client) Workers(ctx context.Context, wait time.Duration) ([]WorkerStatus, error) {
	sub, err := c.nc.SubscribeSync(c.nc.NewInbox())
	if err != nil {
		return nil, fmt.Errorf("ask the workers: %w", err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := c.nc.PublishRequest(c.worker("status"), sub.Subject, nil); err != nil {
		return nil, fmt.Errorf("ask the workers: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	var all []WorkerStatus
	for {
		m, err := sub.NextMsgWithContext(ctx)
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrNoResponders) {
			return all, nil
		}
		if err != nil {
			return all, fmt.Errorf("ask the workers: %w", err)
		}
		if m.Header.Get("Status") == "503" {
			return all, nil // there are none
		}
		var s WorkerStatus
		if err := answer(m, &s); err != nil {
			return all, err
		}
		all = append(all, s)
	}
}
