// Package traces sends spans of what the parts of an installation do to a collector,
// by OpenTelemetry's protocol over HTTP. It is off unless an endpoint is named: then
// the parts have no tracer, and this package does nothing.
//
// A share of the traces is recorded, which who begins them decides: the camera, or the
// worker for cameras that say nothing. What raises an alarm is recorded from the
// worker on, whatever the camera has decided.
package traces

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/nearmiss/nearmiss/stream"
)

// Config says where spans go.
type Config struct {
	// Endpoint is the collector's address, http://host:4318 or https://…; without a
	// path it is /v1/traces. Empty: there are no traces.
	Endpoint string
	// Share of the traces that are recorded, 0 to 1; 0: those of alarms and jobs only.
	Share float64
	// Service and Version name the process.
	Service, Version string
}

// Validate reports what cannot work.
func (c Config) Validate() error {
	var errs []error
	if c.Endpoint != "" {
		u, err := url.Parse(c.Endpoint)
		switch {
		case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
			errs = append(errs, errors.New("the endpoint of traces is no address of a collector, such as http://127.0.0.1:4318"))
		case u.User != nil:
			errs = append(errs, errors.New("the endpoint of traces has a password in it: give headers in OTEL_EXPORTER_OTLP_HEADERS"))
		}
	}
	if !(c.Share >= 0 && c.Share <= 1) {
		errs = append(errs, fmt.Errorf("a share of %g of the traces: use 0 to 1", c.Share))
	}
	return errors.Join(errs...)
}

// Tracer implements [stream.Tracer].
type Tracer struct {
	provider *sdk.TracerProvider
	tracer   trace.Tracer
	log      zerolog.Logger

	mu       sync.Mutex
	loggedAt time.Time // when a failure was last logged
}

// closing is how long the last spans may take to be sent.
const closing = 5 * time.Second

// New begins to send spans until Close. A collector that is away costs nothing but
// the spans.
func New(ctx context.Context, cfg Config, log zerolog.Logger) (*Tracer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	u, err := url.Parse(cfg.Endpoint)
	if err != nil {
		return nil, errors.New("the endpoint of traces cannot be read")
	}
	if strings.Trim(u.Path, "/") == "" {
		u.Path = "/v1/traces"
	}
	exporter, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(u.String()))
	if err != nil {
		return nil, fmt.Errorf("send traces to %s: %w", u.Redacted(), err)
	}
	t := &Tracer{log: log.With().Str("component", "traces").Logger()}
	t.provider = sdk.NewTracerProvider(
		sdk.WithBatcher(lossLogger{exporter, t}),
		sdk.WithSampler(sampler{sdk.ParentBased(sdk.TraceIDRatioBased(cfg.Share))}),
		sdk.WithResource(resource.NewSchemaless(
			attribute.String("service.name", cfg.Service), attribute.String("service.namespace", "nearmiss"), attribute.String("service.version", cfg.Version),
		)),
	)
	t.tracer = t.provider.Tracer("nearmiss")
	t.log.Info().Str("endpoint", u.Redacted()).Float64("share", cfg.Share).Msg("traces are sent")
	return t, nil
}

// Close sends what is left.
func (t *Tracer) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), closing)
	defer cancel()
	_ = t.provider.Shutdown(ctx) // lossLogger has logged it
}

// lossLogger says once a minute that spans are lost.
type lossLogger struct {
	sdk.SpanExporter
	t *Tracer
}

func (e lossLogger) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(ctx, spans)
	if err == nil {
		return nil
	}
	e.t.mu.Lock()
	defer e.t.mu.Unlock()
	if time.Since(e.t.loggedAt) > time.Minute {
		e.t.loggedAt = time.Now()
		e.t.log.Warn().Err(err).Int("spans", len(spans)).Msg("the collector does not take traces")
	}
	return nil // it is logged
}

// always marks a span that is recorded whatever its trace is.
const always = attribute.Key("nearmiss.always")

// sampler is another one, but for what is marked.
type sampler struct{ sdk.Sampler }

func (s sampler) ShouldSample(p sdk.SamplingParameters) sdk.SamplingResult {
	for _, a := range p.Attributes {
		if a.Key == always {
			return sdk.SamplingResult{Decision: sdk.RecordAndSample, Tracestate: trace.SpanContextFromContext(p.ParentContext).TraceState()}
		}
	}
	return s.Sampler.ShouldSample(p)
}

var propagator propagation.TraceContext

// remote is a context below what a traceparent says.
func remote(traceparent string) context.Context {
	if traceparent == "" {
		return context.Background()
	}
	return propagator.Extract(context.Background(), propagation.MapCarrier{"traceparent": traceparent})
}

// Start implements [stream.Tracer].
func (t *Tracer) Start(s stream.Span) stream.RunningSpan {
	opts := []trace.SpanStartOption{trace.WithSpanKind(kinds[s.Kind]), trace.WithAttributes(attributes(s.Attributes)...)}
	if !s.Begin.IsZero() {
		opts = append(opts, trace.WithTimestamp(s.Begin))
	}
	if s.Always {
		opts = append(opts, trace.WithAttributes(always.Bool(true)))
	}
	for _, l := range s.Links {
		opts = append(opts, trace.WithLinks(trace.LinkFromContext(remote(l))))
	}
	ctx, span := t.tracer.Start(remote(s.Parent), s.Name, opts...)
	return running{ctx, span}
}

var kinds = map[stream.SpanKind]trace.SpanKind{
	stream.SpanInternal: trace.SpanKindInternal, stream.SpanProducer: trace.SpanKindProducer, stream.SpanConsumer: trace.SpanKindConsumer,
	stream.SpanClient: trace.SpanKindClient, stream.SpanServer: trace.SpanKindServer,
}

func attributes(all []stream.SpanAttribute) []attribute.KeyValue {
	out := make([]attribute.KeyValue, len(all))
	for i, a := range all {
		switch v := a.Value.(type) {
		case string:
			out[i] = attribute.String(a.Key, v)
		case int:
			out[i] = attribute.Int(a.Key, v)
		case bool:
			out[i] = attribute.Bool(a.Key, v)
		case float64:
			out[i] = attribute.Float64(a.Key, v)
		default:
			out[i] = attribute.String(a.Key, fmt.Sprint(v))
		}
	}
	return out
}

// running implements [stream.RunningSpan].
type running struct {
	ctx  context.Context
	span trace.Span
}

func (r running) Context() string {
	c := propagation.MapCarrier{}
	propagator.Inject(r.ctx, c)
	return c["traceparent"]
}

func (r running) Recorded() bool { return r.span.IsRecording() }

func (r running) Set(all ...stream.SpanAttribute) { r.span.SetAttributes(attributes(all)...) }

func (r running) Event(name string, about ...stream.SpanAttribute) {
	r.span.AddEvent(name, trace.WithAttributes(attributes(about)...))
}

func (r running) End(at time.Time, err error) {
	if err != nil {
		r.span.RecordError(err)
		r.span.SetStatus(codes.Error, err.Error())
	}
	if at.IsZero() {
		r.span.End()
		return
	}
	r.span.End(trace.WithTimestamp(at))
}
