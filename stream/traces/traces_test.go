package traces_test

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/camera"
	"github.com/nearmiss/nearmiss/stream/internal/streamtest"
	"github.com/nearmiss/nearmiss/stream/sink"
	"github.com/nearmiss/nearmiss/stream/traces"
	"github.com/nearmiss/nearmiss/stream/trainer"
	"github.com/nearmiss/nearmiss/stream/worker"
)

func TestMain(m *testing.M) { brokertest.Main(m) }

// receiver is a collector.
type receiver struct {
	url string

	mu    sync.Mutex
	spans map[string][]*otlp.Span // by service
}

func newReceiver(t testing.TB) *receiver {
	t.Helper()
	r := &receiver{spans: map[string][]*otlp.Span{}}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		b, err := io.ReadAll(q.Body)
		var in collector.ExportTraceServiceRequest
		if err == nil {
			err = proto.Unmarshal(b, &in)
		}
		if err != nil || q.URL.Path != "/v1/traces" {
			t.Errorf("%s: %v", q.URL, err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, of := range in.ResourceSpans {
			service := ""
			for _, a := range of.Resource.Attributes {
				if a.Key == "service.name" {
					service = a.Value.GetStringValue()
				}
			}
			for _, s := range of.ScopeSpans {
				r.spans[service] = append(r.spans[service], s.Spans...)
			}
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	t.Cleanup(s.Close)
	r.url = s.URL
	return r
}

// named are a service's spans of that name.
func (r *receiver) named(service, name string) (all []*otlp.Span) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.spans[service] {
		if s.Name == name {
			all = append(all, s)
		}
	}
	return all
}

// tracer sends to the receiver until close is called, which has all sent.
func (r *receiver) tracer(t testing.TB, service string, share float64) (tr *traces.Tracer, closed func()) {
	t.Helper()
	tr, err := traces.New(t.Context(), traces.Config{Endpoint: r.url, Share: share, Service: service, Version: "test"}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	closed = sync.OnceFunc(tr.Close)
	t.Cleanup(closed)
	return tr, closed
}

// images are a source of some.
type images struct{ left []float64 }

func (s *images) Next(context.Context) (camera.Image, error) {
	if len(s.left) == 0 {
		return camera.Image{}, io.EOF
	}
	x := s.left[0]
	s.left = s.left[1:]
	return camera.Image{Data: streamtest.Image(x)}, nil
}

// desk takes events.
type desk struct{ got chan string }

func (d desk) Send(_ context.Context, n sink.Notice) error {
	d.got <- n.ID
	return nil
}
func (desk) Close() error { return nil }

// follow sends a frame for each number from a camera to a worker, waits until the
// anomalies are delivered, and returns what the collector has then.
func follow(t *testing.T, cameraShare, workerShare float64, numbers ...float64) *receiver {
	t.Helper()
	r := streamtest.New(t, stream.Topology{})
	got := newReceiver(t)
	atCamera, sentCamera := got.tracer(t, "camera", cameraShare)
	atWorker, sentWorker := got.tracer(t, "worker", workerShare)
	atSink, sentSink := got.tracer(t, "sinks", 0)
	r.Detector(stream.Detector{Name: "bolts"})
	r.Release("bolts", streamtest.Fake{Name: "one"})

	d := desk{make(chan string, len(numbers))}
	b, err := r.JS.KeyValue(t.Context(), r.Names.SinksBucket())
	if err == nil {
		_, err = b.PutString(t.Context(), "desk", `{"name":"desk","kind":"desk","enabled":true,"kinds":["anomaly"]}`)
	}
	if err != nil {
		t.Fatal(err)
	}
	e, err := sink.NewEngine(sink.EngineConfig{Tracer: atSink, Kinds: sink.Kinds{
		"desk": func(sink.Sink, string) (sink.Sender, error) { return d, nil },
	}}, r.Connect(), zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	stopSinks := brokertest.Run(t, "sinks", e.Run)
	eventually.True(t, "the sink listens", func() bool {
		_, err := r.JS.Consumer(t.Context(), r.Names.EventsStream(), "sink-desk")
		return err == nil
	})
	w, stopWorker := r.Worker(worker.Config{Tracer: atWorker}, streamtest.LoadFake)
	p, err := camera.NewPublisher(camera.Config{Detector: "bolts", Camera: "left", Tracer: atCamera}, r.JS, zerolog.Nop())
	if err == nil {
		err = p.Run(t.Context(), &images{numbers})
	}
	if err != nil {
		t.Fatal(err)
	}
	anomalies := 0
	for _, x := range numbers {
		if x > 0.9 {
			anomalies++
		}
	}
	for range anomalies {
		select {
		case <-d.got:
		case <-time.After(time.Minute):
			t.Fatal("an anomaly is not delivered")
		}
	}
	eventually.True(t, "all are scored", func() bool { return w.Stats().Scored == uint64(len(numbers)) })
	stopWorker()
	stopSinks()
	sentCamera()
	sentWorker()
	sentSink()
	return got
}

func id(b []byte) string { return hex.EncodeToString(b) }

// TestAFrameIsFollowedFromCameraToSink: each span hangs on the one before, in another
// process.
func TestAFrameIsFollowedFromCameraToSink(t *testing.T) {
	got := follow(t, 1, 0, 0.1, 0.95)
	sent, processed := got.named("camera", "send nearmiss.frames"), got.named("worker", "process nearmiss.frames")
	if len(sent) != 2 || len(processed) != 2 {
		t.Fatalf("%d frames sent, %d processed", len(sent), len(processed))
	}
	byID := map[string]*otlp.Span{}
	for _, s := range sent {
		byID[id(s.SpanId)] = s
		if s.Kind != otlp.Span_SPAN_KIND_PRODUCER || len(s.ParentSpanId) != 0 {
			t.Errorf("%v", s)
		}
	}
	links := map[string]bool{}
	var alarm *otlp.Span
	for _, s := range processed {
		from := byID[id(s.ParentSpanId)]
		if from == nil || id(from.TraceId) != id(s.TraceId) || s.Kind != otlp.Span_SPAN_KIND_CONSUMER || s.EndTimeUnixNano < s.StartTimeUnixNano {
			t.Errorf("%v hangs on nothing that was sent", s)
		}
		links[id(s.SpanId)] = true
		about := map[string]string{}
		for _, a := range s.Attributes {
			about[a.Key] = strings.TrimSpace(a.Value.String())
		}
		for _, key := range []string{"messaging.system", "messaging.destination.name", "messaging.consumer.group.name", "nearmiss.detector", "nearmiss.frame_id", "nearmiss.release", "nearmiss.score_ratio"} {
			if about[key] == "" {
				t.Errorf("%s is missing: %v", key, about)
			}
		}
		if about["nearmiss.anomalous"] == "bool_value:true" {
			alarm = s
		}
	}
	frames := 0
	for _, b := range got.named("worker", "score batch") {
		for _, l := range b.Links {
			frames++
			if !links[id(l.SpanId)] {
				t.Errorf("a batch of a frame that was not processed: %v", l)
			}
		}
	}
	if frames != 2 {
		t.Errorf("%d frames are in batches", frames)
	}
	events, delivered := got.named("worker", "send nearmiss.events"), got.named("sinks", "deliver desk")
	if alarm == nil || len(events) != 1 || len(delivered) != 1 {
		t.Fatalf("%v, %v, %v", alarm, events, delivered)
	}
	if id(events[0].ParentSpanId) != id(alarm.SpanId) || id(delivered[0].ParentSpanId) != id(events[0].SpanId) || id(delivered[0].TraceId) != id(alarm.TraceId) {
		t.Errorf("%v\n%v\n%v", alarm, events[0], delivered[0])
	}
}

// TestAnAlarmIsFollowedWhateverTheCameraDecided: of frames that are not recorded, only
// what raises an alarm is, from the worker on.
func TestAnAlarmIsFollowedWhateverTheCameraDecided(t *testing.T) {
	got := follow(t, 0, 1, 0.1, 0.95, 0.2)
	if n := len(got.named("camera", "send nearmiss.frames")); n != 0 {
		t.Errorf("%d spans of a camera that records none", n)
	}
	processed, events, delivered := got.named("worker", "process nearmiss.frames"), got.named("worker", "send nearmiss.events"), got.named("sinks", "deliver desk")
	if len(processed) != 1 || len(events) != 1 || len(delivered) != 1 {
		t.Fatalf("%d processed, %d events, %d delivered", len(processed), len(events), len(delivered))
	}
	if len(processed[0].ParentSpanId) == 0 || id(events[0].ParentSpanId) != id(processed[0].SpanId) || id(delivered[0].ParentSpanId) != id(events[0].SpanId) {
		t.Errorf("%v\n%v\n%v", processed[0], events[0], delivered[0])
	}
	if len(got.named("worker", "score batch")) != 1 {
		t.Error("its batch is not recorded")
	}
}

// TestAShareOfNothing: of frames none is recorded then, and what is always recorded is.
func TestAShareOfNothing(t *testing.T) {
	got := newReceiver(t)
	tr, sent := got.tracer(t, "worker", 0)
	for range 2000 {
		s := tr.Start(stream.Span{Name: "frame"})
		if s.Recorded() {
			t.Fatal("a frame is recorded")
		}
		s.End(time.Time{}, nil)
	}
	tr.Start(stream.Span{Name: "alarm", Always: true}).End(time.Time{}, nil)
	sent()
	if n := len(got.named("worker", "alarm")); n != 1 {
		t.Errorf("%d alarms", n)
	}
}

func TestJobsAreSpans(t *testing.T) {
	got := newReceiver(t)
	tr, sent := got.tracer(t, "trainer", 0)
	m := traces.Jobs(tr, silent{})
	m.Took("bolts", "train")
	m.Progress("train", stream.Progress{Detector: "bolts", Job: "j", Phase: "fakes"})
	m.Progress("train", stream.Progress{Detector: "bolts", Job: "j", Phase: "fakes"})
	m.Progress("train", stream.Progress{Detector: "bolts", Job: "j", Phase: "tune"})
	m.Ended("bolts", "train", stream.JobFailed, time.Second)
	m.Ended("nuts", "train", stream.JobDone, time.Second) // that nobody saw begin
	sent()
	all := got.named("trainer", "job train")
	if len(all) != 1 || len(all[0].Events) != 3 || all[0].Events[0].Name != "fakes" || all[0].Events[1].Name != "tune" || all[0].Status.Code != otlp.Status_STATUS_CODE_ERROR {
		t.Errorf("%v", all)
	}
	if traces.Jobs(nil, silent{}) != trainer.Meter(silent{}) {
		t.Error("there is something where there are no traces")
	}
}

type silent struct{}

func (silent) Took(string, string)                         {}
func (silent) Ended(string, string, string, time.Duration) {}
func (silent) Progress(string, stream.Progress)            {}

// TestACollectorThatIsAwayIsTold: nothing else comes of it.
func TestACollectorThatIsAwayIsTold(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }))
	defer s.Close()
	var told strings.Builder
	tr, err := traces.New(t.Context(), traces.Config{Endpoint: s.URL, Share: 1, Service: "x"}, zerolog.New(&told))
	if err != nil {
		t.Fatal(err)
	}
	tr.Start(stream.Span{Name: "x"}).End(time.Time{}, errors.New("why"))
	tr.Close()
	if !strings.Contains(told.String(), "the collector does not take traces") {
		t.Error(told.String())
	}
}

func TestWhatIsNoEndpoint(t *testing.T) {
	for _, bad := range []traces.Config{
		{Endpoint: "127.0.0.1:4318"}, {Endpoint: "ftp://x"}, {Endpoint: "http://"}, {Endpoint: "http://u:secret@x"}, {Endpoint: "http://x", Share: 2}, {Share: -1},
	} {
		err := bad.Validate()
		if err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	for _, good := range []traces.Config{{}, {Endpoint: "https://collector.example.org/otlp/v1/traces", Share: 1}} {
		if err := good.Validate(); err != nil {
			t.Errorf("%+v: %v", good, err)
		}
	}
}

// BenchmarkFrame is what a frame's spans cost a worker: none is recorded, or all are.
func BenchmarkFrame(b *testing.B) {
	for name, share := range map[string]float64{"unrecorded": 0, "recorded": 1} {
		b.Run(name, func(b *testing.B) {
			tr, closed := newReceiver(b).tracer(b, "bench", share)
			f := stream.Frame{Detector: "bolts", Camera: "left", ID: "1", Image: make([]byte, 10)}
			b.ReportAllocs()
			for b.Loop() {
				s := tr.Start(f.SendSpan(stream.Names{}))
				_ = s.Context()
				s.End(time.Time{}, nil)
			}
			closed()
		})
	}
}
