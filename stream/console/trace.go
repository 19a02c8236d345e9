package console

import (
	"cmp"
	"net/http"
	"time"

	"github.com/nearmiss/nearmiss/stream"
)

// Trace has requests be spans. Call it before Run.
func (c *Console) Trace(t stream.Tracer) { c.tracer = t }

// traced has each request be a span, of the trace that the browser or a proxy names.
func traced(t stream.Tracer, h http.Handler) http.Handler {
	if t == nil {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		span := t.Start(stream.Span{
			Name: r.Method, Kind: stream.SpanServer, Parent: r.Header.Get(stream.HeaderTrace),
			Attributes: []stream.SpanAttribute{{Key: "http.request.method", Value: r.Method}, {Key: "url.path", Value: r.URL.Path}},
		})
		code := &coded{ResponseWriter: w}
		defer func() {
			span.Set(stream.SpanAttribute{Key: "http.response.status_code", Value: code.status()})
			span.End(time.Time{}, nil)
		}()
		h.ServeHTTP(code, r)
	})
}

// coded remembers the status of an answer.
type coded struct {
	http.ResponseWriter
	code int
}

func (c *coded) WriteHeader(code int) {
	c.code = cmp.Or(c.code, code)
	c.ResponseWriter.WriteHeader(code)
}

// Unwrap lets [http.ResponseController] flush.
func (c *coded) Unwrap() http.ResponseWriter { return c.ResponseWriter }

func (c *coded) status() int {
	if c.code == 0 {
		return http.StatusOK
	}
	return c.code
}
