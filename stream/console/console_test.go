package console

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/jpeg"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"golang.org/x/crypto/bcrypt"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/broker"
	"github.com/nearmiss/nearmiss/stream/control"
	"github.com/nearmiss/nearmiss/stream/sink"
)

func TestMain(m *testing.M) { brokertest.Main(m) }

// patience is how long a test waits for what must come.
const patience = time.Minute

// hall is a broker and a console on it.
type hall struct {
	t     testing.TB
	names stream.Names
	nc    *nats.Conn
	js    jetstream.JetStream
	c     *Console
	url   string
	stop  func()
}

func config() Config {
	return Config{
		Listen: "127.0.0.1:0", Version: "test", cost: bcrypt.MinCost,
		Shrink: func(b []byte, _ int) ([]byte, error) {
			if pictureType(b) == "" {
				return nil, errors.New("no image")
			}
			return b, nil
		},
		Check: func(b []byte) error {
			if pictureType(b) == "" {
				return errors.New("no image")
			}
			return nil
		},
		CheckSink:   func(s sink.Sink) (sink.Sink, error) { return s, nil },
		Describe:    func([]byte) (Facts, error) { return Facts{Method: "knn"}, nil },
		FalseAlarms: func(int, float64) (low, high float64) { return 0, 1 },
	}
}

func newHall(t testing.TB, cfg Config) *hall {
	t.Helper()
	h := &hall{t: t, js: brokertest.JetStream(t, broker.Config{})}
	h.nc = h.js.Conn()
	if err := stream.Ensure(t.Context(), h.js, stream.Topology{}); err != nil {
		t.Fatal(err)
	}
	asked, err := control.New(h.nc, stream.Names{}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	stop, err := asked.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	h.start(cfg)
	return h
}

// start runs a console until the test ends or stop is called.
func (h *hall) start(cfg Config) {
	h.t.Helper()
	c, err := New(cfg, zerolog.Nop())
	if err != nil {
		h.t.Fatal(err)
	}
	url, err := c.Listen()
	if err != nil {
		h.t.Fatal(err)
	}
	h.c, h.url = c, url
	h.stop = brokertest.Run(h.t, "console", func(ctx context.Context) error { return c.Run(ctx, h.nc) })
	eventually.True(h.t, "the console", c.backend.isReady)
}

// asker asks as somebody, and holds every answer against the contract.
type asker struct {
	h      *hall
	token  string
	header http.Header
	jar    []*http.Cookie
}

var contractOf = sync.OnceValues(func() (routers.Router, error) {
	doc, err := openapi3.NewLoader().LoadFromData(openapi)
	if err != nil {
		return nil, err
	}
	doc.Servers = openapi3.Servers{{URL: "/api/v1"}}
	return legacy.NewRouter(doc)
})

// do asks and returns status and body.
func (c asker) do(method, path string, body any) (int, []byte) {
	c.h.t.Helper()
	var b io.Reader
	switch v := body.(type) {
	case nil:
	case []byte:
		b = bytes.NewReader(v)
	default:
		data, err := json.Marshal(v)
		if err != nil {
			c.h.t.Fatal(err)
		}
		b = bytes.NewReader(data)
	}
	r, err := http.NewRequestWithContext(c.h.t.Context(), method, c.h.url+"api/v1/"+path, b)
	if err != nil {
		c.h.t.Fatal(err)
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	maps.Copy(r.Header, c.header)
	if c.token != "" {
		r.Header.Set("Authorization", "Bearer "+c.token)
	}
	for _, k := range c.jar {
		r.AddCookie(k)
	}
	a, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(r)
	if err != nil {
		c.h.t.Fatal(err)
	}
	defer a.Body.Close()
	data, err := io.ReadAll(a.Body)
	if err != nil {
		c.h.t.Fatal(err)
	}
	c.h.check(r, a, data)
	return a.StatusCode, data
}

// check holds an answer against the contract.
func (h *hall) check(r *http.Request, a *http.Response, data []byte) {
	h.t.Helper()
	contract, err := contractOf()
	if err != nil {
		h.t.Fatal(err)
	}
	route, params, err := contract.FindRoute(r)
	if err != nil {
		return // no route of the API: what says so is tested elsewhere
	}
	err = openapi3filter.ValidateResponse(h.t.Context(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{Request: r, PathParams: params, Route: route},
		Status:                 a.StatusCode, Header: a.Header, Body: io.NopCloser(bytes.NewReader(data)),
	})
	if err != nil && pictureType(data) == "" {
		h.t.Errorf("%s %s answers otherwise than openapi.yaml says: %v\n%.400s", r.Method, r.URL, err, data)
	}
}

// ok asks and decodes the answer, which is no error.
func ok[T any](c asker, method, path string, body any) (v T) {
	c.h.t.Helper()
	status, data := c.do(method, path, body)
	if status >= 300 {
		c.h.t.Fatalf("%s %s: %d %s", method, path, status, data)
	}
	if len(data) > 0 {
		v = decode[T](c.h.t, data)
	}
	return v
}

func decode[T any](t testing.TB, data []byte) (v T) {
	t.Helper()
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatalf("%v: %.200s", err, data)
	}
	return v
}

func pixels() []byte {
	var b bytes.Buffer
	if err := jpeg.Encode(&b, image.NewGray(image.Rect(0, 0, 8, 8)), nil); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// alarm stores an event and waits until the console knows it.
func (h *hall) alarm(id string) (sequence uint64) {
	h.t.Helper()
	score, threshold, p, yes := 2.0, 1.0, 0.01, true
	e := stream.Event{
		ID: id, Kind: stream.KindAnomaly, FrameID: id, Detector: "parts", Camera: "line1", ScoredAt: time.Now().UTC(),
		Score: &score, Threshold: &threshold, PValue: &p, Anomalous: &yes,
	}
	m, err := e.Message(h.names)
	if err != nil {
		h.t.Fatal(err)
	}
	ack, err := h.js.PublishMsg(h.t.Context(), m)
	if err != nil {
		h.t.Fatal(err)
	}
	eventually.True(h.t, "the alarm in the index", func() bool { _, ok := h.c.alarms.index.find(ack.Sequence); return ok })
	return ack.Sequence
}

// feedback is what stands in the stream of verdicts.
func (h *hall) feedback() (all []string) {
	h.t.Helper()
	s, err := h.js.Stream(h.t.Context(), h.names.FeedbackStream())
	if err != nil {
		h.t.Fatal(err)
	}
	last := s.CachedInfo().State.LastSeq
	for n := uint64(1); n <= last; n++ {
		m, err := s.GetMsg(h.t.Context(), n)
		if err != nil {
			h.t.Fatal(err)
		}
		f, err := stream.ParseFeedback(m.Data)
		if err != nil {
			h.t.Fatal(err)
		}
		all = append(all, f.Event+" "+f.Verdict+" by "+f.By+" "+f.Note)
	}
	return all
}

func (h *hall) detector(name string) {
	h.t.Helper()
	if _, err := h.c.backend.detectors.Create(h.t.Context(), stream.Detector{Name: name}); err != nil {
		h.t.Fatal(err)
	}
}

func TestVerdictsAreHeldAndSent(t *testing.T) {
	h := newHall(t, config())
	me := asker{h: h}
	a, b := h.alarm("a"), h.alarm("b")
	say := func(n uint64, verdict string, hold float64) string {
		v := ok[struct{ Token string }](me, "POST", "verdicts", map[string]any{"events": []uint64{n}, "verdict": verdict, "hold": hold, "reason": "dirt"})
		return v.Token
	}
	state := func(n uint64) string {
		v := ok[struct {
			State   string
			Pending bool
		}](me, "GET", fmt.Sprint("events/", n), nil)
		return fmt.Sprint(v.State, " ", v.Pending)
	}
	token := say(a, "normal", 60)
	if got := state(a); got != "false_alarm true" {
		t.Errorf("a held verdict is shown as %s", got)
	}
	ok[any](me, "DELETE", "verdicts/"+token, nil)
	if got := state(a); got != "open false" {
		t.Errorf("a verdict that was taken back is shown as %s", got)
	}
	if status, _ := me.do("DELETE", "verdicts/"+token, nil); status != http.StatusConflict {
		t.Errorf("taken back twice: %d", status)
	}
	say(b, "anomalous", 0)
	eventually.True(t, "the verdict in the stream", func() bool { return len(h.feedback()) == 1 })
	eventually.True(t, "the verdict as sent", func() bool { return state(b) == "confirmed false" })
	if got := h.feedback(); len(got) != 1 || got[0] != "b anomalous by local dirt" {
		t.Errorf("the stream has %q", got)
	}
	list := ok[struct {
		Items []struct{ Sequence uint64 }
		Open  int
	}](me, "GET", "events?kind=anomaly&state=open&detector=parts", nil)
	if len(list.Items) != 1 || list.Items[0].Sequence != a || list.Open != 1 {
		t.Errorf("open alarms: %+v", list)
	}

	say(a, "seen", 60)
	h.stop() // what is held is sent: for who said it it is said
	if got := h.feedback(); len(got) != 2 || got[1] != "a seen by local dirt" {
		t.Errorf("after the end the stream has %q", got)
	}
	h.start(config())
	me = asker{h: h}
	eventually.True(t, "the verdicts after a restart", func() bool {
		return h.c.alarms.index.of("a").State == stateSeen && h.c.alarms.index.of("b").State == stateConfirmed
	})
}

// An event may leave its stream before a verdict on it is sent: nothing is tried for
// ever, nothing else waits for it, and the page does not show what is not stored.
func TestAVerdictOnAnEventThatIsGone(t *testing.T) {
	h := newHall(t, config())
	gone, there := h.alarm("gone"), h.alarm("there")
	s, err := h.js.Stream(t.Context(), h.names.EventsStream())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteMsg(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	ok[any](asker{h: h}, "POST", "verdicts", map[string]any{"events": []uint64{gone, there}, "verdict": "seen", "hold": 0})
	eventually.True(t, "the verdict as sent", func() bool { v := h.c.alarms.index.of("there"); return v.State == stateSeen && !v.Pending })
	if v := h.c.alarms.index.of("gone"); v.State != stateOpen || v.Pending {
		t.Errorf("the event that is gone is shown as %+v", v)
	}
	if got := h.feedback(); len(got) != 1 || got[0] != "there seen by local " {
		t.Errorf("the stream has %q", got)
	}
}

func TestDetectorsAreChangedByOneAtATime(t *testing.T) {
	h := newHall(t, config())
	me := asker{h: h}
	d := ok[struct{ Revision uint64 }](me, "POST", "detectors", map[string]any{"name": "parts", "k": 3})
	var wins, stale sync.Map
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			c := asker{h: h, header: http.Header{"If-Match": {fmt.Sprintf(`"%d"`, d.Revision)}}}
			switch status, body := c.do("PATCH", "detectors/parts", map[string]any{"smoothing": i + 2}); status {
			case http.StatusOK:
				wins.Store(i, true)
			case http.StatusPreconditionFailed:
				stale.Store(i, true)
			default:
				t.Errorf("%d %s", status, body)
			}
		})
	}
	all.Wait()
	count := func(m *sync.Map) (n int) { m.Range(func(any, any) bool { n++; return true }); return n }
	if count(&wins) != 1 || count(&stale) != 7 {
		t.Errorf("%d won, %d came late", count(&wins), count(&stale))
	}
	got := ok[map[string]any](me, "PATCH", "detectors/parts", map[string]any{"k": nil, "silence": "1m0s", "ignore": []any{map[string]any{"x": 0, "y": 0, "width": 0.5, "height": 0.5}}})
	if got["k"] != 2.0 || got["silence"] != "1m0s" || len(got["ignore"].([]any)) != 1 {
		t.Errorf("%v", got)
	}
	for body, want := range map[string]int{
		`{"backbone": "/etc/passwd"}`: 422, `{"name": "other"}`: 400, `{"colour": 1}`: 400, `{"k": -1}`: 422, `[]`: 400, `{"k": 1} {}`: 400,
	} {
		if status, data := me.do("PATCH", "detectors/parts", []byte(body)); status != want {
			t.Errorf("%s: %d %s", body, status, data)
		}
	}
	if status, _ := me.do("POST", "detectors", map[string]any{"name": "parts"}); status != http.StatusConflict {
		t.Errorf("a second detector of the same name: %d", status)
	}
}

// What cameras send is shown as an image, or not at all.
func TestOnlyImagesAreShown(t *testing.T) {
	h := newHall(t, config())
	me := asker{h: h}
	h.detector("parts")
	for name, b := range map[string][]byte{
		"svg": []byte(`<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>`), "html": []byte("<!doctype html><script>alert(1)</script>"),
		"gif": []byte("GIF89a<script>"), "empty jpeg": []byte("\xff\xd8"), "jpeg": pixels(),
	} {
		seq, err := h.c.backend.normals.Add(t.Context(), stream.Normal{Detector: "parts", ID: name, Image: b})
		if err != nil {
			t.Fatal(err)
		}
		r, err := http.NewRequestWithContext(t.Context(), "GET", fmt.Sprintf("%sapi/v1/detectors/parts/normals/%d", h.url, seq), nil)
		if err != nil {
			t.Fatal(err)
		}
		a, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		a.Body.Close()
		kind := a.Header.Get("Content-Type")
		if name == "jpeg" {
			if a.StatusCode != 200 || kind != "image/jpeg" || !strings.Contains(a.Header.Get("Content-Security-Policy"), "sandbox") {
				t.Errorf("%s: %d %s %v", name, a.StatusCode, kind, a.Header)
			}
		} else if a.StatusCode < 400 || kind != "application/problem+json" {
			t.Errorf("%s is answered with %d %s", name, a.StatusCode, kind)
		}
		if a.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: browsers may guess", name)
		}
	}
	for _, path := range []string{
		"events/1/pictures/..%2f..%2fetc%2fpasswd", "cameras/a.b/c/frame", "cameras/*/>/frame", "detectors/%2e%2e/normals", "detectors/parts/normals/0", "detectors/a%20b", "events/x",
	} {
		if status, body := me.do("GET", path, nil); status != http.StatusNotFound {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
}
