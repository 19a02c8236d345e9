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

	"github.com/nearmiss/nearmiss/stream/internal/text"
	"github.com/nearmiss/nearmiss/stream/registry"
)

// Names of the micro services, as $SRV knows them.
const (
	WorkerService  = "nearmiss-worker"
	TrainerService = "nearmiss-trainer"
	ControlService = "nearmiss-control"
)

// HeaderDetector names the detector of a score-now request whose payload is the
// image.
const HeaderDetector = "Nearmiss-Detector"

// HeaderBy names the person for whom a client asks.
const HeaderBy = "Nearmiss-By"

// serviceVersion is the version of the requests and responses.
const serviceVersion = "1.0.0"

// requestTime bounds the handling of one request.
const requestTime = 30 * time.Second

// limitOf is requestTime, or more for a request that goes through all that is stored.
func limitOf(endpoint string) time.Duration {
	switch endpoint {
	case "collect", "delete", "remove-normals":
		return 10 * time.Minute
	}
	return requestTime
}

// ServiceError is what a service answers when it cannot do what was asked.
type ServiceError struct {
	Code    string // one of the codes
	Message string // a sentence
}

func (e *ServiceError) Error() string { return e.Message + " (" + e.Code + ")" }

// Is has errors that came over the wire be what they were: [ErrNotFound],
// [ErrConflict] and [ErrBadMessage].
func (e *ServiceError) Is(target error) bool {
	switch target {
	case ErrNotFound:
		return e.Code == CodeNotFound
	case ErrConflict:
		return e.Code == CodeConflict
	case ErrBadMessage:
		return e.Code == CodeBadRequest
	}
	return false
}

// ErrNobody is returned by a [Client] when no process answers.
var ErrNobody = errors.New("nobody answers")

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
	serveRequest(e, name, func(ctx context.Context, _ micro.Request, q Q) (A, error) { return f(ctx, q) }, opts...)
}

// serveRequest is serve for handlers that look at more than what is asked.
func serveRequest[Q, A any](e *endpoints, name string, f func(context.Context, micro.Request, Q) (A, error), opts ...micro.EndpointOpt) {
	if e.err != nil {
		return
	}
	e.err = e.group.AddEndpoint(name, micro.HandlerFunc(func(r micro.Request) {
		var q Q
		data := r.Data()
		if raw, ok := any(&q).(rawRequest); ok {
			data = raw.read(r)
		}
		if len(data) > 0 {
			dec := json.NewDecoder(bytes.NewReader(data))
			dec.DisallowUnknownFields()
			if err := dec.Decode(&q); err != nil {
				_ = r.Error(CodeBadRequest, text.Line(fmt.Sprintf("the request of %s cannot be understood: %v", name, err)), nil)
				return
			}
		}
		ctx, cancel := context.WithTimeout(e.ctx, limitOf(name))
		defer cancel()
		a, err := f(ctx, r, q)
		if err != nil {
			_ = r.Error(codeFor(err), text.Line(err.Error()), nil)
			return
		}
		if err := r.RespondJSON(a); err != nil && strings.Contains(err.Error(), nats.ErrMaxPayload.Error()) {
			_ = r.Error(CodeTooLarge, text.Line("the answer of "+name+" does not fit into a message: ask for one detector"), nil)
		}
	}), opts...)
}

// rawRequest is a request that is not JSON alone: read takes the rest, and returns
// the JSON.
type rawRequest interface{ read(micro.Request) []byte }

// startService adds a micro service; add declares its endpoints, below each of the
// subjects.
func startService(ctx context.Context, nc *nats.Conn, name, description string, subjects []string, meta map[string]string, add func(*endpoints)) (stop func(), err error) {
	s, err := micro.AddService(nc, micro.Config{Name: name, Version: serviceVersion, Description: description, Metadata: meta})
	if err != nil {
		return nil, fmt.Errorf("start service %s: %w", name, err)
	}
	for _, subject := range subjects {
		e := &endpoints{ctx: ctx, group: s.AddGroup(subject)}
		add(e)
		if e.err != nil {
			_ = s.Stop()
			return nil, fmt.Errorf("start service %s: %w", name, e.err)
		}
	}
	return func() { _ = s.Stop() }, nil
}
