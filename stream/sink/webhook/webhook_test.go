package webhook_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	standard "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/incident"
	"github.com/nearmiss/nearmiss/stream/sink"
	"github.com/nearmiss/nearmiss/stream/sink/webhook"
)

func TestMain(m *testing.M) { eventually.Main(m) }

func anomaly(id string) sink.Notice {
	score, threshold, at := 2.0, 1.0, time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	return sink.Notice{ID: id, At: at, Event: stream.Event{
		ID: id, Kind: stream.KindAnomaly, Detector: "bolts", Camera: "line1", FrameID: "f-1",
		CapturedAt: at, ScoredAt: at, Score: &score, Threshold: &threshold,
	}}
}

func open(t testing.TB, cfg webhook.Config, secret string) (sink.Sender, error) {
	t.Helper()
	b, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s, err := webhook.Opener(stream.Names{}, "test", pictures, links(t))(sink.Sink{Name: "w", Kind: webhook.Kind, Config: b}, secret)
	if err == nil {
		t.Cleanup(func() { s.Close() })
	}
	return s, err
}

// links are signed by a key of this test.
func links(t testing.TB) *sink.Links {
	t.Helper()
	path := sink.LinkKeyFile(t.TempDir())
	if err := sink.EnsureLinkKey(path); err != nil {
		t.Fatal(err)
	}
	return &sink.Links{Key: "file:" + path}
}

func mustOpen(t testing.TB, cfg webhook.Config, secret string) sink.Sender {
	t.Helper()
	s, err := open(t, cfg, secret)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func pictures(_ context.Context, e stream.Event) ([]stream.Picture, error) {
	return []stream.Picture{{Name: "heat.png", Data: []byte("heat")}, {Name: sink.Overlay, Data: []byte("overlay of " + e.ID)}}, nil
}

// The picture goes with the alarm, inside the event or beside it, and the
// signature is of all of it.
func TestPictures(t *testing.T) {
	secret, err := webhook.NewSecret()
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := standard.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	n := anomaly("e1")
	n.Event.Pictures = "NM_EVIDENCE/bolts/e1"
	for name, c := range map[string]struct {
		cfg  webhook.Config
		want []string
	}{
		"inline":    {webhook.Config{Pictures: "inline"}, []string{`"picture":"` + base64.StdEncoding.EncodeToString([]byte("overlay of e1")) + `"`}},
		"template":  {webhook.Config{Pictures: "inline", Template: `{"p":{{json .Picture}}}`}, []string{`{"p":"` + base64.StdEncoding.EncodeToString([]byte("overlay of e1")) + `"}`}},
		"multipart": {webhook.Config{Pictures: "multipart"}, []string{`name="event"`, "overlay of e1", `filename="overlay.jpg"`, `"specversion"`}},
		"discord":   {webhook.Config{Pictures: "multipart", Preset: "discord"}, []string{`name="payload_json"`, "overlay of e1"}},
		"link":      {webhook.Config{Pictures: "link", Console: "https://c.example/"}, []string{`"pictureurl":"https://c.example/api/v1/pictures/bolts/e1/overlay.jpg?e=`}},
		"none":      {webhook.Config{}, []string{`"specversion"`}},
	} {
		url, got := receiver(t, 200)
		c.cfg.URL, c.cfg.AllowLoopback = url, true
		if err := mustOpen(t, c.cfg, secret).Send(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		r := <-got
		if err := verifier.Verify(r.body, r.header); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, want := range c.want {
			if !strings.Contains(string(r.body), want) {
				t.Errorf("%s does not have %q: %s", name, want, r.body)
			}
		}
		if name == "none" && strings.Contains(string(r.body), `"picture":`) {
			t.Errorf("%s", r.body)
		}
	}
}

// PagerDuty's alert is triggered by an incident's beginning and resolved by its
// end; the key is in the body only.
func TestPagerDuty(t *testing.T) {
	url, got := receiver(t, 202)
	s := mustOpen(t, webhook.Config{URL: url, AllowLoopback: true, Preset: "pagerduty", Auth: "routing_key"}, "hunter2")
	for phase, action := range map[string]string{incident.New: "trigger", incident.Update: "trigger", incident.End: "resolve"} {
		n := anomaly("e1")
		n.ID, n.Event.Kind = "i1/0", sink.IncidentPrefix+phase
		n.Incident = &incident.Incident{ID: "i1", Phase: phase, Detector: "bolts", Camera: "line1", Anomalies: 1}
		if err := s.Send(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		r := <-got
		var b struct {
			RoutingKey  string `json:"routing_key"`
			EventAction string `json:"event_action"`
			DedupKey    string `json:"dedup_key"`
			Payload     struct{ Summary, Source, Severity string }
		}
		if err := json.Unmarshal(r.body, &b); err != nil {
			t.Fatal(err)
		}
		if b.RoutingKey != "hunter2" || b.EventAction != action || b.DedupKey != "i1" || b.Payload.Source != "bolts/line1" || b.Payload.Summary == "" {
			t.Errorf("%s: %+v", phase, b)
		}
		for k, v := range r.header {
			if strings.Contains(strings.Join(v, ""), "hunter2") {
				t.Errorf("%s shows the key", k)
			}
		}
	}
}

// request is what a receiver got.
type request struct {
	header http.Header
	body   []byte
}

// receiver answers every request with code and tells of it.
func receiver(t testing.TB, code int) (string, <-chan request) {
	t.Helper()
	got := make(chan request, 100)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got <- request{r.Header.Clone(), b}
		w.WriteHeader(code)
	}))
	t.Cleanup(s.Close)
	return s.URL, got
}

// The signature is what the specification's own library accepts, with both
// secrets of a rotation; a changed body or an old time is refused.
func TestSignaturesVerifyByTheReferenceLibrary(t *testing.T) {
	first, err1 := webhook.NewSecret()
	second, err2 := webhook.NewSecret()
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	url, got := receiver(t, http.StatusNoContent)
	s := mustOpen(t, webhook.Config{URL: url, AllowLoopback: true}, first+" "+second)
	if err := s.Send(t.Context(), anomaly("event-1")); err != nil {
		t.Fatal(err)
	}
	r := <-got
	for _, secret := range []string{first, second} {
		v, err := standard.NewWebhook(secret)
		if err != nil {
			t.Fatal(err)
		}
		if err := v.Verify(r.body, r.header); err != nil {
			t.Errorf("the reference library: %v", err)
		}
		if v.Verify(append(r.body, ' '), r.header) == nil {
			t.Error("a changed body is accepted")
		}
		late := r.header.Clone()
		late.Set("webhook-timestamp", fmt.Sprint(time.Now().Add(-time.Hour).Unix()))
		if v.Verify(r.body, late) == nil {
			t.Error("an old time is accepted")
		}
	}
	t.Log("the library of Standard Webhooks accepts both secrets of a rotation, and refuses a changed body and an old time")
	if id := r.header.Get("webhook-id"); id != "event-1" {
		t.Errorf("webhook-id %q", id)
	}
	var cloud struct {
		SpecVersion, ID, Source, Type, Subject string
		Data                                   stream.Event
	}
	if err := json.Unmarshal(r.body, &cloud); err != nil {
		t.Fatal(err)
	}
	if cloud.SpecVersion != "1.0" || cloud.ID != "event-1" || cloud.Source != "/nearmiss/bolts" || cloud.Type != "dev.nearmiss.anomaly.v1" ||
		cloud.Subject != "line1/f-1" || *cloud.Data.Score != 2 || r.header.Get("Content-Type") != "application/cloudevents+json" {
		t.Errorf("%+v, %v", cloud, r.header)
	}
}

func TestBinaryModeAndBearer(t *testing.T) {
	url, got := receiver(t, http.StatusAccepted)
	s := mustOpen(t, webhook.Config{URL: url, AllowLoopback: true, Mode: "binary", Auth: "bearer", Headers: map[string]string{"X-Line": "7"}}, "tok")
	if err := s.Send(t.Context(), anomaly("e")); err != nil {
		t.Fatal(err)
	}
	r := <-got
	for k, want := range map[string]string{"ce-id": "e", "ce-type": "dev.nearmiss.anomaly.v1", "Authorization": "Bearer tok", "X-Line": "7", "webhook-signature": ""} {
		if r.header.Get(k) != want {
			t.Errorf("%s: %q", k, r.header.Get(k))
		}
	}
}

// A receiver may misbehave in every way; each means what it should, and costs
// neither memory nor for ever.
func TestAnswersOfAllKinds(t *testing.T) {
	var permanent *sink.Permanent
	var later *sink.Later
	var gone *sink.Gone
	for name, c := range map[string]struct {
		answer func(http.ResponseWriter)
		is     func(error) bool
	}{
		"400":  {func(w http.ResponseWriter) { w.WriteHeader(400) }, func(err error) bool { return errors.As(err, &permanent) }},
		"401":  {func(w http.ResponseWriter) { w.WriteHeader(401) }, func(err error) bool { return errors.As(err, &permanent) }},
		"408":  {func(w http.ResponseWriter) { w.WriteHeader(408) }, func(err error) bool { return errors.As(err, &later) }},
		"500":  {func(w http.ResponseWriter) { w.WriteHeader(500) }, func(err error) bool { return errors.As(err, &later) && later.After == 0 }},
		"410":  {func(w http.ResponseWriter) { w.WriteHeader(410) }, func(err error) bool { return errors.As(err, &gone) }},
		"301":  {func(w http.ResponseWriter) { w.Header().Set("Location", "http://169.254.169.254/"); w.WriteHeader(301) }, func(err error) bool { return errors.As(err, &permanent) && strings.Contains(err.Error(), "redirects") }},
		"429":  {func(w http.ResponseWriter) { w.Header().Set("Retry-After", "7"); w.WriteHeader(429) }, func(err error) bool { return errors.As(err, &later) && later.After == 7*time.Second }},
		"1GiB": {func(w http.ResponseWriter) { w.WriteHeader(400); endless(w) }, func(err error) bool { return errors.As(err, &permanent) && len(err.Error()) < 400 }},
		"hangs up": {func(w http.ResponseWriter) { panic(http.ErrAbortHandler) }, func(err error) bool {
			return err != nil && !errors.As(err, &permanent) && !errors.As(err, &gone)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { c.answer(w) }))
			defer srv.Close()
			s := mustOpen(t, webhook.Config{URL: srv.URL + "/?token=hunter2", AllowLoopback: true}, "")
			err := s.Send(t.Context(), anomaly("e"))
			if !c.is(err) {
				t.Fatalf("%T %v", err, err)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error shows the URL's token: %v", err)
			}
		})
	}
}

// endless writes as long as somebody reads, at most 1 GiB.
func endless(w io.Writer) {
	b := make([]byte, 1<<20)
	for range 1024 {
		if _, err := w.Write(b); err != nil {
			return
		}
	}
}

// Nothing leads to this machine, or to a metadata service, unless it is allowed.
func TestForbiddenAddressesAreNotDialled(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	for _, host := range []string{
		"127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "[::]", "169.254.169.254", "[fe80::1]", "224.0.0.1",
		"[64:ff9b::a9fe:a9fe]", "[2002:7f00:1::]", "[::ffff:169.254.169.254]", "[::7f00:1]", "100.100.100.200", "[fd00:ec2::254]", "2130706433", "0x7f.1",
	} {
		s, err := open(t, webhook.Config{URL: "http://" + host + ":" + port}, "")
		if err != nil {
			continue // not an address at all
		}
		if err := s.Send(t.Context(), anomaly("e")); err == nil {
			t.Errorf("%s was reached", host)
		}
	}
	// Whoever had connected would be in the listener's queue by now.
	if err := l.(*net.TCPListener).SetDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if c, err := l.Accept(); err == nil {
		t.Errorf("%v was dialled", c.RemoteAddr())
	}
}

func TestConfigurationsThatCannotWorkAreRefused(t *testing.T) {
	for name, c := range map[string]webhook.Config{
		"no URL":            {},
		"another scheme":    {URL: "file:///etc/passwd"},
		"a password":        {URL: "https://u:p@example.org/"},
		"a secret header":   {URL: "https://example.org/", Headers: map[string]string{"authorization": "Bearer x"}},
		"an injected one":   {URL: "https://example.org/", Headers: map[string]string{"X-A": "a\r\nX-B: b"}},
		"a bad header name": {URL: "https://example.org/", Headers: map[string]string{"X A": "a"}},
		"nowhere to link":   {URL: "https://example.org/", Pictures: "link"},
		"a link elsewhere":  {URL: "https://example.org/", Pictures: "link", Console: "ftp://c.example"},
		"no such preset":    {URL: "https://example.org/", Preset: "pigeon"},
		"two bodies":        {URL: "https://example.org/", Preset: "slack", Template: "{}"},
		"a broken template": {URL: "https://example.org/", Template: "{{"},
		"not JSON":          {URL: "https://example.org/", Template: `{"a": {{.Title}} }`},
		"no such field":     {URL: "https://example.org/", Template: `{{json .Nothing}}`},
		"an endless one":    {URL: "https://example.org/", ContentType: "text/plain", Template: `{{define "x"}}{{.Title}}{{template "x" .}}{{end}}{{template "x" .}}`},
	} {
		if _, err := open(t, c, ""); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := open(t, webhook.Config{URL: "https://example.org/"}, "hunter2"); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a bad secret: %v", err)
	}
}

// Every preset makes JSON of whatever happens, and says what happened.
func TestPresets(t *testing.T) {
	for name := range webhook.Presets {
		url, got := receiver(t, 200)
		s := mustOpen(t, webhook.Config{
			URL: url, AllowLoopback: true, Preset: name, Link: "https://console.example/#/e/{event}", Pictures: "link", Console: "https://console.example",
		}, "")
		n := anomaly("e")
		n.Event.Pictures = "NM_EVIDENCE/bolts/e"
		if err := s.Send(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		r := <-got
		var v any
		if err := json.Unmarshal(r.body, &v); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, want := range []string{"Anomaly on bolts/line1", "2.0 times the threshold", "https://console.example/#/e/e", "https://console.example/api/v1/pictures/bolts/e/overlay.jpg?e="} {
			if !strings.Contains(string(r.body), want) {
				t.Errorf("%s does not say %q: %s", name, want, r.body)
			}
		}
	}
}

// The address of a chat is itself a secret: it is not in the configuration, and the
// secret leads to no other host.
func TestTheSecretIsInTheAddress(t *testing.T) {
	paths := make(chan string, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		paths <- r.URL.String() + r.Header.Get("webhook-signature")
	}))
	defer srv.Close()
	if err := mustOpen(t, webhook.Config{URL: srv.URL + "/hook/{secret}?x={secret}", AllowLoopback: true}, "T0/B0/hunter2").Send(t.Context(), anomaly("e")); err != nil {
		t.Fatal(err)
	}
	if got := <-paths; got != "/hook/T0/B0/hunter2?x=T0/B0/hunter2" {
		t.Errorf("%s", got)
	}
	for _, c := range []webhook.Config{
		{URL: "https://{secret}/"}, {URL: "https://example.org{secret}/"}, {URL: "https://example.org/{secret}", Auth: "bearer"}, {URL: "{secret}"},
	} {
		if _, err := open(t, c, "a.example.org"); err == nil || strings.Contains(err.Error(), "a.example") {
			t.Errorf("%s: %v", c.URL, err)
		}
	}
	if _, err := open(t, webhook.Config{URL: "https://example.org/{secret}"}, "hunter\x7f2"); err == nil || strings.Contains(err.Error(), "hunter") {
		t.Errorf("%v", err)
	}
}

// bombs are templates that cost much and make little.
var bombs = map[string]string{
	"a long loop":      `{{range 1000000000000}}{{end}}"x"`,
	"loops in loops":   `{{range 10000}}{{range 10000}}{{range 10000}}{{$x := 1}}{{end}}{{end}}{{end}}"x"`,
	"calls that fork":  fork(100),
	"a doubled text":   `{{$x := "0123456789"}}` + strings.Repeat(`{{$x = print $x $x}}`, 40) + `"x"`,
	"by printf":        `{{$x := "0123456789"}}` + strings.Repeat(`{{$x = printf "%s%s" $x $x}}`, 40) + `"x"`,
	"one argument":     `{{$x := "0123456789"}}` + strings.Repeat(`{{$x = printf "%[1]s%[1]s" $x}}`, 40) + `"x"`,
	"an escaped text":  `{{$x := "<<<<<<<<<<"}}` + strings.Repeat(`{{$x = html $x $x}}`, 20) + `"x"`,
	"a long date":      `{{$x := "January"}}` + strings.Repeat(`{{$x = date (print $x $x) .Time}}`, 40) + `"x"`,
	"wide":             `{{$x := printf "` + strings.Repeat("%999999d", 1000) + `"` + strings.Repeat(" 1", 99) + `}}"x"`,
	"wide by argument": `{{$x := printf "%*d" 1000000 1}}"x"`,
	"itself":           `{{define "x"}}{{template "x"}}{{end}}{{template "x"}}"x"`,
	"an endless text":  `{{range 1000000000000}}a{{end}}`,
}

// fork is a template that calls the next one twice, n times over.
func fork(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `{{define "t%d"}}{{template "t%d"}}{{template "t%d"}}{{end}}`, i, i+1, i+1)
	}
	fmt.Fprintf(&b, `{{define "t%d"}}{{end}}{{template "t0"}}"x"`, n)
	return b.String()
}

// A template that would not come to an end, or make a text that does not fit into
// memory, is refused when it is configured; to do that takes little of both.
func TestTemplatesAreBounded(t *testing.T) {
	for name, text := range bombs {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := open(t, webhook.Config{URL: "https://example.org/", Template: text}, "")
		runtime.ReadMemStats(&after)
		if err == nil {
			t.Errorf("%s: taken", name)
		}
		// All that it has made, whether or not it was in use at one time.
		if made := after.TotalAlloc - before.TotalAlloc; made > 64<<20 {
			t.Errorf("%s: %d MiB were allocated", name, made>>20)
		}
	}
	// What templates are for works.
	long := `[{{range $i, $e := .Event.Regions}}{{if $i}},{{end}}{{json $e.X}}{{end}}{{range 500}}{{if false}}{{end}}{{end}}"{{printf "%-20.3f" .Score}}{{html .Detector}}{{short 3 .Camera}}"]`
	if _, err := open(t, webhook.Config{URL: "https://example.org/", Template: long}, ""); err != nil {
		t.Error(err)
	}
}

func FuzzTemplate(f *testing.F) {
	for _, p := range webhook.Presets {
		f.Add(p)
	}
	for _, b := range bombs {
		f.Add(b)
	}
	f.Add(`{{range .Event.Regions}}{{.}}{{end}}`)
	f.Add(`{{printf "%1000000000d" 1}}`)
	f.Fuzz(func(t *testing.T, text string) {
		_, _ = open(t, webhook.Config{URL: "https://example.org/", Template: text}, "")
		_, _ = open(t, webhook.Config{URL: "https://example.org/", ContentType: "text/plain", Template: text}, "")
	})
}
