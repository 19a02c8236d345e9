package metrics_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/broker"
	"github.com/nearmiss/nearmiss/stream/metrics"
	"github.com/nearmiss/nearmiss/stream/registry"
	"github.com/nearmiss/nearmiss/stream/worker"
)

func get(t *testing.T, h http.Handler, path string) (status int, body string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	b, err := io.ReadAll(w.Result().Body)
	if err != nil {
		t.Fatal(err)
	}
	return w.Code, string(b)
}

// byLength scores an image by its length: above three it is anomalous.
type byLength struct{}

func (byLength) Score(_ context.Context, images [][]byte) ([]worker.Verdict, error) {
	var all []worker.Verdict
	for _, i := range images {
		v := worker.Verdict{Score: float64(len(i)), Threshold: 3, PValue: .5, Anomalous: len(i) > 3}
		if string(i) == "bad" {
			v.Reject, v.Reason = "truncated", "it ends too early"
		}
		all = append(all, v)
	}
	return all, nil
}

func (byLength) Close() error { return nil }

func release(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	model := []byte("model")
	sum := sha256.Sum256(model)
	manifest := fmt.Sprintf(`{"schema_version":1,"files":{"m":{"sha256":%q,"size":%d}}}`, hex.EncodeToString(sum[:]), len(model))
	for name, b := range map[string][]byte{"m": model, "manifest.json": []byte(manifest)} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestAWorkerIsMeasured, on a real broker: what goes in comes out as numbers, and
// what the broker knows beside it.
func TestAWorkerIsMeasured(t *testing.T) {
	t.Parallel()
	js := brokertest.JetStream(t, broker.Config{})
	ctx, n := t.Context(), stream.Names{}
	if err := stream.Ensure(ctx, js, stream.Topology{Names: n}); err != nil {
		t.Fatal(err)
	}
	reg, err := stream.NewInstallation(js, n).Registry(ctx)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := reg.Put(ctx, "bolts", release(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reg.Promote(ctx, "bolts", digest, registry.Change{By: "test"}); err != nil {
		t.Fatal(err)
	}

	m := metrics.New(metrics.Build{Version: "v1", Commit: "abc"})
	m.Connection(js.Conn())
	m.Installation(stream.NewInstallation(js, n).Levels)
	w, err := worker.New(worker.Config{Names: n, CacheDir: t.TempDir(), Meter: m.Worker()}, js.Conn(),
		func(context.Context, string) (worker.Scorer, error) { return byLength{}, nil }, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	s := &metrics.Server{Metrics: m, Ready: w.Ready}
	h := s.Handler()
	if status, body := get(t, h, "/readyz"); status != http.StatusServiceUnavailable {
		t.Errorf("a worker that does not run is ready: %s", body)
	}
	stop := brokertest.Run(t, "worker", w.Run)
	publish := func(image string) {
		t.Helper()
		if _, err := js.Publish(ctx, n.Frames("bolts", "one"), []byte(image)); err != nil {
			t.Fatal(err)
		}
	}
	for range 10 {
		publish("ok")
	}
	for range 3 {
		publish("strange")
	}
	publish("bad")
	publish("")
	for _, want := range []string{
		`nearmiss_build_info{commit="abc",goversion=`,
		`nearmiss_frames_scored_total{camera="one",detector="bolts"} 14`,
		`nearmiss_frames_anomalous_total{camera="one",detector="bolts"} 3`,
		`nearmiss_frames_rejected_total{code="truncated",detector="bolts"} 1`,
		`nearmiss_score_ratio_count{detector="bolts"} 14`,
		`nearmiss_frame_delay_seconds_count{detector="bolts"} 14`,
		`nearmiss_frame_queue_seconds_count{detector="bolts"} 15`,
		`nearmiss_release_info{detector="bolts",release="` + digest[:12] + `",role="active"} 1`,
		`nearmiss_release_swaps_total{detector="bolts",result="in_service"} 1`,
		`nearmiss_release_threshold{detector="bolts"} 3`,
		`nearmiss_events_total{kind="anomaly"} 3`,
		`nearmiss_stage_seconds_count{stage="score"}`,
		`nearmiss_broker_connected 1`,
	} {
		eventually.True(t, want, func() bool {
			_, body := get(t, h, "/metrics")
			return strings.Contains(body, want)
		})
	}
	if status, body := get(t, h, "/readyz"); status != http.StatusOK || !strings.Contains(body, "release "+digest[:12]+" serves") {
		t.Errorf("readyz: %d %s", status, body)
	}
	stop()

	publish("waits")
	if err := stream.NewInstallation(js, n).SetLostFrames(ctx, []stream.Lost{{Subject: "a", Code: stream.LostNotStored, Frames: 2}, {Subject: "b", Code: stream.LostNotStored, Frames: 3}}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`nearmiss_installation_readable 1`,
		`nearmiss_frames_waiting{detector="bolts"} 1`,
		`nearmiss_stream_messages{stream="NM_EVENTS"}`,
		`nearmiss_stream_max_bytes{stream="NM_FRAMES"} 2.147483648e+09`,
		`nearmiss_dead_letters{stream="NM_FRAMES"} 1`,
		`nearmiss_frames_lost_total{code="not_stored"} 5`,
		`nearmiss_normals{detector="bolts"} 0`,
		`nearmiss_release_age_seconds{detector="bolts"}`,
		`nearmiss_store_bytes `,
	} {
		eventually.True(t, want, func() bool { // the server takes acknowledgements when it gets to them
			m = metrics.New(metrics.Build{}) // without old levels
			m.Installation(stream.NewInstallation(js, n).Levels)
			_, body := get(t, (&metrics.Server{Metrics: m}).Handler(), "/metrics")
			return strings.Contains(body, want) && !strings.Contains(body, "nearmiss_frames_oldest_seconds{detector=\"bolts\"} 0\n")
		})
	}
	exported(t, m)
}

// exported: whatever is shown is defined, by that name and with those labels.
func exported(t *testing.T, m *metrics.Metrics) {
	t.Helper()
	families, err := m.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	defs := m.Definitions()
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "nearmiss_") {
			continue
		}
		i := slices.IndexFunc(defs, func(d metrics.Definition) bool { return d.Name == f.GetName() })
		if i < 0 {
			t.Errorf("%s is not defined", f.GetName())
			continue
		}
		if got := strings.ToLower(f.GetType().String()); got != defs[i].Kind {
			t.Errorf("%s is a %s, and a %s by its definition", f.GetName(), got, defs[i].Kind)
		}
		for _, l := range f.GetMetric()[0].GetLabel() {
			if !slices.Contains(defs[i].Labels, l.GetName()) {
				t.Errorf("%s has label %s", f.GetName(), l.GetName())
			}
		}
	}
}

// TestNames follow Prometheus's rules: base units, counters end in _total.
func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for _, d := range metrics.New(metrics.Build{}).Definitions() {
		if seen[d.Name] {
			t.Errorf("%s is defined twice", d.Name)
		}
		seen[d.Name] = true
		if (d.Kind == "counter") != strings.HasSuffix(d.Name, "_total") {
			t.Errorf("%s is a %s", d.Name, d.Kind)
		}
		if d.Kind == "histogram" && slices.Contains(d.Labels, "camera") {
			t.Errorf("%s: a histogram for each camera is too much", d.Name)
		}
		if d.Help == "" || !strings.HasSuffix(d.Help, ".") {
			t.Errorf("%s: help %q is no sentence", d.Name, d.Help)
		}
	}
}

// TestCameraNamesAreBounded: whoever publishes frames chooses them.
func TestCameraNamesAreBounded(t *testing.T) {
	m := metrics.New(metrics.Build{})
	w := m.Worker()
	for i := range 20_000 {
		w.CameraFrame("bolts", "c"+strconv.Itoa(i), time.Unix(1, 0))
	}
	families, err := m.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "nearmiss_camera_last_frame_timestamp_seconds" {
			if n := len(f.GetMetric()); n > 6000 {
				t.Errorf("%d rows", n)
			}
		}
	}
	w.Gone("bolts")
	if _, body := get(t, (&metrics.Server{Metrics: m}).Handler(), "/metrics"); strings.Contains(body, `detector="bolts"`) {
		t.Error("a detector that is gone has rows")
	}
	w.CameraFrame("nuts", "one", time.Unix(1, 0))
	if _, body := get(t, (&metrics.Server{Metrics: m}).Handler(), "/metrics"); !strings.Contains(body, `camera="one",detector="nuts"`) {
		t.Error("what a detector took up is not free again")
	}
}

// TestReadyIsNotAlive: a lost broker is no reason for a restart.
func TestReadyIsNotAlive(t *testing.T) {
	checks := []stream.Check{{Name: "broker"}, {Name: "setup", OK: true}}
	s := &metrics.Server{Metrics: metrics.New(metrics.Build{}), Ready: func() []stream.Check { return slices.Clone(checks) }}
	h := s.Handler()
	if status, body := get(t, h, "/livez"); status != http.StatusOK {
		t.Errorf("livez: %d %s", status, body)
	}
	status, body := get(t, h, "/readyz")
	var first metrics.Health
	if err := json.Unmarshal([]byte(body), &first); err != nil || status != http.StatusServiceUnavailable || first.OK || len(first.Checks) != 2 {
		t.Fatalf("readyz: %d %s", status, body)
	}
	checks[0].OK = true
	status, body = get(t, h, "/readyz")
	var second metrics.Health
	if err := json.Unmarshal([]byte(body), &second); err != nil || status != http.StatusOK || !second.OK {
		t.Fatalf("readyz: %d %s", status, body)
	}
	if !second.Checks[0].Since.After(first.Checks[0].Since) || !second.Checks[1].Since.Equal(first.Checks[1].Since) {
		t.Errorf("since: first %+v, then %+v", first, second)
	}
	if status, _ := get(t, h, "/debug/pprof/"); status != http.StatusNotFound {
		t.Errorf("pprof without being asked for: %d", status)
	}
}

func TestSettings(t *testing.T) {
	for _, c := range []struct {
		listen string
		pprof  bool
		ok     bool
	}{
		{"", false, true},
		{"off", true, true},
		{"127.0.0.1:9420", true, true},
		{"[::1]:9420", true, true},
		{"0.0.0.0:9420", false, true},
		{"0.0.0.0:9420", true, false},
		{":9420", true, false},
		{"9420", false, false},
	} {
		if err := metrics.Validate(c.listen, c.pprof); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// TestTwoServicesOneAddress: the second goes on without.
func TestTwoServicesOneAddress(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := &metrics.Server{Listen: l.Addr().String(), Metrics: metrics.New(metrics.Build{}), Log: zerolog.Nop()}
	if err := s.Run(t.Context(), nil); err != nil {
		t.Fatal(err)
	}

	s = &metrics.Server{Listen: "127.0.0.1:0", Metrics: metrics.New(metrics.Build{}), Log: zerolog.Nop()}
	at := make(chan string, 1)
	stop := brokertest.Run(t, "server", func(ctx context.Context) error { return s.Run(ctx, func(addr string) { at <- addr }) })
	addr := <-at
	resp, err := http.Get("http://" + addr + "/livez")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("livez: %s", resp.Status)
	}
	stop()
	if _, err := net.DialTimeout("tcp", addr, time.Second); err == nil {
		t.Error("the server goes on when its context has ended")
	}
}

// TestCertificatesSayWhenTheyEnd, as their files are at each scrape.
func TestCertificatesSayWhenTheyEnd(t *testing.T) {
	m := metrics.New(metrics.Build{})
	h := (&metrics.Server{Metrics: m}).Handler()
	const name = "nearmiss_certificate_expiry_timestamp_seconds"
	if _, body := get(t, h, "/metrics"); strings.Contains(body, name) {
		t.Error("a process without certificates has one")
	}
	ends := map[string]time.Time{"tls/broker.crt": time.Unix(1_800_000_000, 0), "bad\xff": time.Unix(2, 0), "bad\xfe": time.Unix(1, 0)}
	m.Certificates(func() map[string]time.Time { return ends })
	status, body := get(t, h, "/metrics")
	for _, want := range []string{`{certificate="tls/broker.crt"} 1.8e+09`, "{certificate=\"bad\uFFFD\"} 1\n"} {
		if status != http.StatusOK || !strings.Contains(body, name+want) {
			t.Errorf("%d, without %s: %s", status, want, body)
		}
	}
	ends = map[string]time.Time{"tls/broker.crt": time.Unix(1_900_000_000, 0)} // it was renewed
	if _, body = get(t, h, "/metrics"); !strings.Contains(body, name+`{certificate="tls/broker.crt"} 1.9e+09`) || strings.Contains(body, "bad") {
		t.Errorf("after renewal: %s", body)
	}
}

// TestALostInstallationIsSaid, and costs a scrape no more than its own rows.
func TestALostInstallationIsSaid(t *testing.T) {
	m := metrics.New(metrics.Build{})
	m.Installation(func(context.Context) (stream.Levels, error) { return stream.Levels{}, errors.New("no broker") })
	status, body := get(t, (&metrics.Server{Metrics: m}).Handler(), "/metrics")
	if status != http.StatusOK || !strings.Contains(body, "nearmiss_installation_readable 0") || strings.Contains(body, "nearmiss_store_bytes ") {
		t.Errorf("%d %s", status, body)
	}
}

// TestRefusalsAreCounted, by a word for the subject and never by the subject:
// whoever is refused chooses it.
func TestRefusalsAreCounted(t *testing.T) {
	may := &server.Permissions{Publish: &server.SubjectPermission{Allow: []string{"free"}}, Subscribe: &server.SubjectPermission{Allow: []string{"free"}}}
	b, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true, Users: []*server.User{{Username: "u", Password: "p", Permissions: may}}})
	if err != nil {
		t.Fatal(err)
	}
	b.Start()
	t.Cleanup(func() { b.Shutdown(); b.WaitForShutdown() })
	if !b.ReadyForConnections(time.Minute) {
		t.Fatal("the server does not start")
	}
	told := make(chan error, 10)
	nc := brokertest.Client(t, b.ClientURL(), nats.UserInfo("u", "p"), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { told <- err }))
	m := metrics.New(metrics.Build{})
	m.Connection(nc)
	refused := []string{"$JS.API.INFO", "$KV.NM_ACTIVE.bolts", "$O.NM_LARGE.C.x", "nearmiss.frames.bolts.one", "nearmiss.frames.bolts.two", "mine"}
	for _, subject := range append(refused, "free") {
		if err := nc.Publish(subject, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := nc.SubscribeSync("_INBOX.other"); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	for range len(refused) + 1 { // the handler of before is told, too
		select {
		case err := <-told:
			if !errors.Is(err, nats.ErrPermissionViolation) {
				t.Error(err)
			}
		case <-time.After(90 * time.Second):
			t.Fatal("a refusal is not told")
		}
	}
	_, body := get(t, (&metrics.Server{Metrics: m}).Handler(), "/metrics")
	for subject, n := range map[string]int{"jetstream": 1, "kv": 1, "objects": 1, "frames": 2, "other": 1, "inbox": 1} {
		if want := fmt.Sprintf("nearmiss_permission_denied_total{subject=%q} %d\n", subject, n); !strings.Contains(body, want) {
			t.Errorf("no %s", want)
		}
	}
	if strings.Contains(body, "bolts") || strings.Contains(body, "mine") {
		t.Error("a subject is a label")
	}
}

func TestTrainersAndSinks(t *testing.T) {
	m := metrics.New(metrics.Build{})
	w, loss := m.Trainer(), 0.25
	w.Took("bolts", "train")
	w.Progress("train", stream.Progress{Detector: "bolts", Step: 1, Steps: 4, Loss: &loss})
	m.Sinks(func() []metrics.SinkState {
		return []metrics.SinkState{{Name: "desk", Results: map[string]uint64{"sent": 7}, Pending: 2, Open: true}}
	})
	m.Camera("bolts", "one", func() metrics.CameraState { return metrics.CameraState{Frames: 3, Bytes: 9, Up: true} })
	h := (&metrics.Server{Metrics: m}).Handler()
	_, body := get(t, h, "/metrics")
	for _, want := range []string{
		`nearmiss_jobs_running{detector="bolts",kind="train"} 1`,
		`nearmiss_job_progress_ratio{detector="bolts",kind="train"} 0.25`,
		`nearmiss_job_loss{detector="bolts",kind="train"} 0.25`,
		`nearmiss_sink_deliveries_total{result="sent",sink="desk"} 7`,
		`nearmiss_sink_breaker_open{sink="desk"} 1`,
		`nearmiss_camera_frames_published_total{camera="one",detector="bolts"} 3`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s in\n%s", want, body)
		}
	}
	exported(t, m)
	w.Ended("bolts", "train", stream.JobDone, time.Minute)
	if _, body = get(t, h, "/metrics"); strings.Contains(body, "job_last_report_timestamp_seconds{") || !strings.Contains(body, `nearmiss_jobs_total{kind="train",result="done"} 1`) {
		t.Errorf("after its end:\n%s", body)
	}
}

// BenchmarkFrame is all that is counted of one frame that is scored alone, which
// is the worst case: compare it with the milliseconds that a frame takes.
func BenchmarkFrame(b *testing.B) {
	w := metrics.New(metrics.Build{}).Worker()
	score, threshold, p, no, at := 1.0, 2.0, .5, false, time.Now()
	e := &stream.Event{Detector: "bolts", Camera: "one", Score: &score, Threshold: &threshold, PValue: &p, Anomalous: &no, CapturedAt: at, ScoredAt: at.Add(time.Millisecond)}
	b.ReportAllocs()
	for b.Loop() {
		w.CameraFrame("bolts", "one", at)
		w.Batch("bolts", 1)
		w.Stage(worker.StageScore, time.Millisecond)
		w.Stage(worker.StagePublish, time.Millisecond)
		w.Drift("bolts", "one", stream.DriftStatus{Frames: 1})
		w.Frame(e, at, at.Add(time.Millisecond))
	}
}
