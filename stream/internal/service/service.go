// Package service answers requests as micro services do, with codes for what fails.
package service

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/text"
	"github.com/nearmiss/nearmiss/stream/registry"
)

// serviceVersion is the version of the requests and responses.
const serviceVersion = "1.0.0"

// CodeOf turns an error into the code with which a service answers.
func CodeOf(err error) string {
	if perm, ok := errors.AsType[*stream.PermanentError](err); ok {
		return perm.Code
	}
	switch {
	case errors.Is(err, stream.ErrBadName), errors.Is(err, stream.ErrBadMessage):
		return stream.CodeBadRequest
	case errors.Is(err, stream.ErrNotFound), errors.Is(err, stream.ErrNoDetector), errors.Is(err, registry.ErrNoRelease), errors.Is(err, registry.ErrNoPrevious):
		return stream.CodeNotFound
	case errors.Is(err, stream.ErrConflict), errors.Is(err, stream.ErrDetectorExists), errors.Is(err, registry.ErrConflict):
		return stream.CodeConflict
	default:
		return stream.CodeInternal
	}
}

// Endpoints are the endpoints of a service.
type Endpoints struct {
	ctx   context.Context
	group micro.Group
	err   error
}

// Serve answers the requests of one endpoint, one after the other; endpoints do
// not wait for each other.
func Serve[Q, A any](e *Endpoints, name string, f func(context.Context, Q) (A, error), opts ...micro.EndpointOpt) {
	ServeRequest(e, name, func(ctx context.Context, _ micro.Request, q Q) (A, error) { return f(ctx, q) }, opts...)
}

// ServeRequest is [Serve] for handlers that need more than the request's data.
func ServeRequest[Q, A any](e *Endpoints, name string, f func(context.Context, micro.Request, Q) (A, error), opts ...micro.EndpointOpt) {
	if e.err != nil {
		return
	}
	e.err = e.group.AddEndpoint(name, micro.HandlerFunc(func(r micro.Request) {
		var q Q
		data := r.Data()
		if raw, ok := any(&q).(Raw); ok {
			data = raw.Read(r)
		}
		if len(data) > 0 {
			dec := json.NewDecoder(bytes.NewReader(data))
			dec.DisallowUnknownFields()
			if err := dec.Decode(&q); err != nil {
				_ = r.Error(stream.CodeBadRequest, text.Line(fmt.Sprintf("the request of %s cannot be understood: %v", name, err)), nil)
				return
			}
		}
		ctx, cancel := context.WithTimeout(e.ctx, stream.LimitOf(name))
		defer cancel()
		a, err := f(ctx, r, q)
		if err != nil {
			_ = r.Error(CodeOf(err), text.Line(err.Error()), nil)
			return
		}
		if err := r.RespondJSON(a); err != nil && strings.Contains(err.Error(), nats.ErrMaxPayload.Error()) {
			_ = r.Error(stream.CodeTooLarge, text.Line("the answer of "+name+" does not fit into a message: ask for one detector"), nil)
		}
	}), opts...)
}

// Raw is a request that is not JSON alone: Read takes the rest, and returns
// the JSON.
type Raw interface{ Read(micro.Request) []byte }

// Start adds a micro service; add declares its endpoints, below each of the
// subjects.
func Start(ctx context.Context, nc *nats.Conn, name, description string, subjects []string, meta map[string]string, add func(*Endpoints)) (stop func(), err error) {
	s, err := micro.AddService(nc, micro.Config{Name: name, Version: serviceVersion, Description: description, Metadata: meta})
	if err != nil {
		return nil, fmt.Errorf("start service %s: %w", name, err)
	}
	for _, subject := range subjects {
		e := &Endpoints{ctx: ctx, group: s.AddGroup(subject)}
		add(e)
		if e.err != nil {
			_ = s.Stop()
			return nil, fmt.Errorf("start service %s: %w", name, e.err)
		}
	}
	return func() { _ = s.Stop() }, nil
}
