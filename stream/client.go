package stream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/nearmiss/nearmiss/stream/internal/text"
	"github.com/nearmiss/nearmiss/stream/registry"
)

// Client asks the services: package control's, which is the only way to change
// something, the workers' and the trainers'.
type Client struct {
	nc    *nats.Conn
	names Names
	by    string
}

// NewClient makes a client on a connection that the caller closes.
func NewClient(nc *nats.Conn, n Names) *Client { return &Client{nc: nc, names: n} }

// For is a client that says for whom it asks: a person.
func (c *Client) For(by string) *Client { return &Client{nc: c.nc, names: c.names, by: by} }

// SetSink stores a sink, new or changed; value is its entry. A revision other than 0
// must be the newest, or it is [ErrConflict].
func (c *Client) SetSink(ctx context.Context, name string, value []byte, revision uint64) (a SinkAnswer, err error) {
	return a, c.ask(ctx, "set-sink", SinkRequest{Sink: name, Value: value, Revision: revision}, &a)
}

// CreateSink stores a new sink; where there is one of the name, it is [ErrConflict].
func (c *Client) CreateSink(ctx context.Context, name string, value []byte) (a SinkAnswer, err error) {
	return a, c.ask(ctx, "set-sink", SinkRequest{Sink: name, Value: value, Create: true}, &a)
}

// RemoveSink removes a sink, or returns [ErrNotFound].
func (c *Client) RemoveSink(ctx context.Context, name string) error {
	return c.ask(ctx, "remove-sink", SinkRequest{Sink: name}, &struct{}{})
}

// AskSink has the control ask who runs the sinks: test or replay, with the requests
// and answers of package sink.
func (c *Client) AskSink(ctx context.Context, what string, q, a any) error {
	return c.ask(ctx, what+"-sink", q, a)
}

// ask sends a request to the control and reads the answer. Errors of the service
// are [*ServiceError]; where none is there, it is [ErrNobody].
func (c *Client) ask(ctx context.Context, endpoint string, q, a any) error {
	data, err := json.Marshal(q)
	if err != nil {
		return err
	}
	m := &nats.Msg{Subject: c.names.API() + ".control." + endpoint, Data: data, Header: nats.Header{}}
	setHeader(m, HeaderBy, text.Line(c.by))
	err = c.send(ctx, m, LimitOf(endpoint), a)
	if errors.Is(err, ErrNobody) {
		err = fmt.Errorf("%w: start nearmiss up, nearmiss broker or, with a broker of your own, nearmiss control", err)
	}
	return err
}

func (c *Client) send(ctx context.Context, q *nats.Msg, limit time.Duration, a any) error {
	ctx, cancel := context.WithTimeout(ctx, limit+RequestTime)
	defer cancel()
	err := UnlessForbidden(ctx, c.nc, q.Subject, func(ctx context.Context) error { return Ask(ctx, c.nc, q, a) })
	if errors.Is(err, ErrForbidden) {
		err = fmt.Errorf("ask %s: %w", q.Subject, err)
	}
	return err
}

// Ask sends a request to a service and decodes the answer into what a points to. Errors of
// the service are [*ServiceError]; where none is there, it is [ErrNobody].
func Ask(ctx context.Context, nc *nats.Conn, q *nats.Msg, a any) error {
	m, err := nc.RequestMsgWithContext(ctx, q)
	if errors.Is(err, nats.ErrNoResponders) {
		return fmt.Errorf("%w on %s", ErrNobody, q.Subject)
	}
	if err != nil {
		return fmt.Errorf("ask %s: %w", q.Subject, err)
	}
	return decodeReply(m, a)
}

func decodeReply(m *nats.Msg, a any) error {
	if code := m.Header.Get(micro.ErrorCodeHeader); code != "" {
		return &ServiceError{Code: code, Message: m.Header.Get(micro.ErrorHeader)}
	}
	if err := json.Unmarshal(m.Data, a); err != nil {
		return fmt.Errorf("the answer on %s: %v: %w", m.Subject, err, ErrBadMessage)
	}
	return nil
}

func (c *Client) worker(endpoint string) string { return c.names.API() + ".worker." + endpoint }

// ScoreNow has a worker score one image now.
func (c *Client) ScoreNow(ctx context.Context, detector string, image []byte) (e Event, err error) {
	m := &nats.Msg{Subject: c.worker("score-now"), Data: image, Header: nats.Header{HeaderDetector: {detector}}}
	return e, c.send(ctx, m, RequestTime, &e)
}

// Shed has a worker drop the oldest waiting frames of a camera until keep are left.
func (c *Client) Shed(ctx context.Context, detector, camera string, keep int) (dropped uint64, err error) {
	data, err := json.Marshal(ShedRequest{Keep: keep})
	if err != nil {
		return 0, err
	}
	var a ShedAnswer
	err = c.send(ctx, &nats.Msg{Subject: c.names.Shed(detector, camera), Data: data}, RequestTime, &a)
	return a.Dropped, err
}

// Detectors returns the configurations.
func (c *Client) Detectors(ctx context.Context) (a DetectorsAnswer, err error) {
	return a, c.ask(ctx, "detectors", DetectorRequest{}, &a)
}

// Detector returns a detector's configuration, or [ErrNotFound].
func (c *Client) Detector(ctx context.Context, name string) (Detector, error) {
	if err := CheckToken("detector", name); err != nil {
		return Detector{}, err
	}
	var a DetectorsAnswer
	if err := c.ask(ctx, "detectors", DetectorRequest{name}, &a); err != nil {
		return Detector{}, err
	}
	if len(a.Detectors) != 1 {
		return Detector{}, fmt.Errorf("ask for detector %s: %d were answered: %w", name, len(a.Detectors), ErrBadMessage)
	}
	d := a.Detectors[0].Detector
	d.Revision = a.Detectors[0].Revision
	return d, nil
}

// CreateDetector stores a new detector; where there is one, it is [ErrConflict].
func (c *Client) CreateDetector(ctx context.Context, d Detector) (a DetectorAnswer, err error) {
	return a, c.ask(ctx, "create", d, &a)
}

// SetDetector has f change a configuration. Only the fields that f changes are
// sent: what others change meanwhile stays.
func (c *Client) SetDetector(ctx context.Context, name string, f func(*Detector) error) (a DetectorAnswer, err error) {
	d, err := c.Detector(ctx, name)
	if err != nil {
		return a, err
	}
	was, err := fieldsOf(d)
	if err != nil {
		return a, err
	}
	if err := f(&d); err != nil {
		return a, err
	}
	is, err := fieldsOf(d)
	if err != nil {
		return a, err
	}
	q := SetRequest{Detector: name, Set: map[string]json.RawMessage{}}
	for field := range was {
		if _, ok := is[field]; !ok {
			q.Set[field] = json.RawMessage("null")
		}
	}
	for field, value := range is {
		if !bytes.Equal(value, was[field]) {
			q.Set[field] = value
		}
	}
	return c.Set(ctx, q)
}

// Set changes single fields of a configuration.
func (c *Client) Set(ctx context.Context, q SetRequest) (a DetectorAnswer, err error) {
	return a, c.ask(ctx, "set", q, &a)
}

// DeleteDetector removes a detector and its waiting frames; with everything, its
// training set, too.
func (c *Client) DeleteDetector(ctx context.Context, name string, everything bool) error {
	return c.ask(ctx, "delete", DeleteRequest{name, everything}, &struct{}{})
}

// RemoveNormals takes images out of a training set for good, by their sequences.
func (c *Client) RemoveNormals(ctx context.Context, detector string, sequences []uint64) error {
	return c.ask(ctx, "remove-normals", RemoveRequest{detector, sequences}, &struct{}{})
}

// Feedback sends an operator's feedback.
func (c *Client) Feedback(ctx context.Context, f Feedback) error {
	return c.ask(ctx, "feedback", f, &struct{}{})
}

// Train asks for training; see [Jobs.Wait] for its end.
func (c *Client) Train(ctx context.Context, r TrainRequest) (j Job, err error) {
	return j, c.ask(ctx, "train", r, &j)
}

// Cancel asks for a job's end.
func (c *Client) Cancel(ctx context.Context, job string) (j Job, err error) {
	return j, c.ask(ctx, "cancel", JobRequest{job}, &j)
}

// Jobs lists a detector's jobs, oldest first; an empty detector means all.
func (c *Client) Jobs(ctx context.Context, detector string) (all []Job, err error) {
	return all, c.ask(ctx, "jobs", DetectorRequest{detector}, &all)
}

// Releases lists a detector's releases and pointers.
func (c *Client) Releases(ctx context.Context, detector string) (a ReleasesAnswer, err error) {
	return a, c.ask(ctx, "releases", DetectorRequest{detector}, &a)
}

// Promote makes a release active.
func (c *Client) Promote(ctx context.Context, q PromoteRequest) (p registry.Pointer, err error) {
	return p, c.ask(ctx, "promote", q, &p)
}

// Rollback returns to the release before.
func (c *Client) Rollback(ctx context.Context, q PromoteRequest) (p registry.Pointer, err error) {
	return p, c.ask(ctx, "rollback", q, &p)
}

// Shadow has a candidate score alongside; without a release it ends that.
func (c *Client) Shadow(ctx context.Context, q PromoteRequest) error {
	return c.ask(ctx, "shadow", q, &struct{}{})
}

// Pin keeps a release from being collected, or lets it go.
func (c *Client) Pin(ctx context.Context, q PinRequest) error {
	return c.ask(ctx, "pin", q, &struct{}{})
}

// Collect removes what nobody can need any more.
func (c *Client) Collect(ctx context.Context, o registry.CollectOptions) (a Collected, err error) {
	return a, c.ask(ctx, "collect", o, &a)
}

// Status reads the state of the installation.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.ask(ctx, "status", struct{}{}, &s)
}

// Workers asks all workers for their status, and returns what came within wait.
func (c *Client) Workers(ctx context.Context, wait time.Duration) ([]WorkerStatus, error) {
	var all []WorkerStatus
	err := Gather(ctx, c.nc, c.worker("status"), wait, func(m *nats.Msg) error {
		var s WorkerStatus
		err := decodeReply(m, &s)
		if err == nil {
			all = append(all, s)
		}
		return err
	})
	if err != nil {
		err = fmt.Errorf("ask the workers: %w", err)
	}
	return all, err
}

// Gather asks everybody who answers on a subject, and hands take each answer that
// comes within wait, until take fails. That nobody is there is no error.
func Gather(ctx context.Context, nc *nats.Conn, subject string, wait time.Duration, take func(*nats.Msg) error) error {
	sub, err := nc.SubscribeSync(nc.NewInbox())
	if err != nil {
		return err
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := nc.PublishRequest(subject, sub.Subject, nil); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		m, err := sub.NextMsgWithContext(ctx)
		switch {
		case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrNoResponders):
			return nil
		case err != nil:
			return err
		case m.Header.Get("Status") == "503":
			return nil
		}
		if err := take(m); err != nil {
			return err
		}
	}
}
