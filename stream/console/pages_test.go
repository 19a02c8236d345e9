package console

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/wait"
	"github.com/nearmiss/nearmiss/stream/sink"
)

// upload sends images as a form does.
func (h *hall) upload(path string, files map[string][]byte) (status int, body []byte) {
	h.t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for name, data := range files {
		p, err := w.CreateFormFile("image", name)
		if err != nil {
			h.t.Fatal(err)
		}
		if _, err := p.Write(data); err != nil {
			h.t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		h.t.Fatal(err)
	}
	return asker{h: h, header: http.Header{"Content-Type": {w.FormDataContentType()}}}.do("POST", path, b.Bytes())
}

func TestImagesComeByUploadAndFromCameras(t *testing.T) {
	h := newHall(t, config())
	me := asker{h: h}
	h.detector("parts")
	if status, body := h.upload("detectors/parts/normals", map[string][]byte{"good.jpg": pixels(), "notes.txt": []byte("no image")}); status != 200 || string(body) != `{"added":1,"refused":[{"file":"notes.txt","reason":"no image"}]}` {
		t.Errorf("an image and a text: %d %s", status, body)
	}
	if status, body := h.upload("detectors/parts/normals?anomalies=true", map[string][]byte{"odd.jpg": pixels()}); status != 200 {
		t.Errorf("a labelled anomaly: %d %s", status, body)
	}
	if status, _ := h.upload("detectors/nobody/normals", map[string][]byte{"good.jpg": pixels()}); status != http.StatusNotFound {
		t.Errorf("images for no detector: %d", status)
	}

	ok[any](me, "POST", "detectors/parts/normals/take", map[string]any{"frames": 2})
	publish := func() {
		if err := h.nc.PublishMsg(natsMsg(h.names.Frames("parts", "line1"), pixels())); err != nil {
			t.Error(err)
		}
	}
	list := func(query string) normalPage { return ok[normalPage](me, "GET", "detectors/parts/normals"+query, nil) }
	eventually.True(t, "two frames among the normals", func() bool { publish(); return list("").Total == 3 })
	if p := list("?anomalies=true"); p.Total != 1 || p.Items[0].Source != "odd.jpg" || p.Items[0].Origin != "uploaded by local" {
		t.Errorf("labelled anomalies: %+v", p)
	}
	first := list("?limit=2")
	rest := list("?limit=2&cursor=" + first.Next)
	if len(first.Items) != 2 || len(rest.Items) != 1 || rest.Next != "" || rest.Items[0].Source != "good.jpg" {
		t.Errorf("pages of two: %+v and %+v", first, rest)
	}
	ok[any](me, "DELETE", fmt.Sprint("detectors/parts/normals/", rest.Items[0].Sequence), nil)
	if p := list(""); p.Total != 2 {
		t.Errorf("after a removal there are %d", p.Total)
	}

	// What a camera sees is its next frame.
	ctx, cancel := context.WithCancel(t.Context())
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for ctx.Err() == nil {
			publish()
			wait.Pause(ctx, 50*time.Millisecond)
		}
	}()
	eventually.True(t, "a camera's frame", func() bool { // which may not come within three seconds
		status, body := me.do("GET", "cameras/parts/line1/frame", nil)
		if status == http.StatusOK && !bytes.Equal(body, pixels()) {
			t.Errorf("a camera's frame: %d bytes", len(body))
		}
		return status == http.StatusOK
	})
	cancel()
	<-sent
	if status, _ := me.do("GET", "cameras/parts/line2/frame", nil); status != http.StatusNotFound {
		t.Errorf("the frame of a silent camera: %d", status)
	}
}

func TestAJobIsAskedForAndCancelled(t *testing.T) {
	h := newHall(t, config())
	me := asker{h: h}
	h.detector("parts")
	j := ok[stream.Job](me, "POST", "detectors/parts/train", map[string]any{"method": "knn", "seed": 3})
	if j.State != stream.JobQueued || j.By != "local" || j.Method != "knn" || j.Seed != 3 || !j.Promote {
		t.Errorf("the job: %+v", j)
	}
	if l := ok[listing[stream.Job]](me, "GET", "jobs?detector=parts", nil); len(l.Items) != 1 || l.Items[0].Job != j.Job {
		t.Errorf("the jobs: %+v", l)
	}
	for i := range 3 {
		loss := float64(i)
		p := stream.Progress{Job: j.Job, Detector: "parts", Step: i, Loss: &loss, At: time.Now()}
		h.c.jobs.add(p)
	}
	if l := ok[listing[stream.Progress]](me, "GET", "jobs/"+j.Job+"/history", nil); len(l.Items) != 3 || l.Items[2].Step != 2 {
		t.Errorf("its progress: %+v", l)
	}
	store, err := h.js.ObjectStore(t.Context(), h.names.ArtifactsBucket())
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{stream.JobHistory: []byte(`[{"job": "x", "step": 7, "at": "2026-01-01T00:00:00Z"}]`), stream.JobSheet: pixels()} {
		if _, err := store.PutBytes(t.Context(), stream.JobObjects+j.Job+"/"+name, b); err != nil {
			t.Fatal(err)
		}
	}
	if l := ok[listing[stream.Progress]](me, "GET", "jobs/"+j.Job+"/history", nil); len(l.Items) != 4 || l.Items[0].Step != 7 || l.Items[3].Step != 2 {
		t.Errorf("its progress from before what was heard: %+v", l)
	}
	if status, b := me.do("GET", "jobs/"+j.Job+"/sheet.jpg", nil); status != 200 || !bytes.Equal(b, pixels()) {
		t.Errorf("its sheet: %d", status)
	}
	if status, _ := me.do("GET", "jobs/none/sheet.jpg", nil); status != http.StatusNotFound {
		t.Errorf("no sheet: %d", status)
	}
	if got := ok[stream.Job](me, "DELETE", "jobs/"+j.Job, nil); got.Job != j.Job || !got.Cancel {
		t.Errorf("cancelled: %+v", got)
	}
	if status, _ := me.do("DELETE", "jobs/none", nil); status != http.StatusNotFound {
		t.Errorf("no job: %d", status)
	}
}

// Lists go on in the stream where the index ends, with what was said of each event.
func TestListsGoOnWhereTheIndexEnds(t *testing.T) {
	h := newHall(t, config())
	me := asker{h: h}
	var want []uint64
	for i := range 5 {
		want = append([]uint64{h.alarm(fmt.Sprint("e", i))}, want...)
	}
	ok[any](me, "POST", "verdicts", map[string]any{"events": want[4:], "verdict": "seen", "hold": 0})
	eventually.True(t, "the verdict", func() bool { v := h.c.alarms.index.of("e0"); return v.State == stateSeen && !v.Pending })
	h.c.alarms.index.mu.Lock()
	h.c.alarms.index.entries = h.c.alarms.index.entries[3:]
	h.c.alarms.index.mu.Unlock()
	for query, want := range map[string][]uint64{"kind=anomaly": want, "kind=anomaly&state=open": want[:4], "kind=anomaly&state=seen": want[4:]} {
		var got []uint64
		for cursor := ""; ; {
			p := ok[events](me, "GET", "events?limit=2&"+query+cursor, nil)
			for _, a := range p.Items {
				got = append(got, a.Sequence)
			}
			if cursor = "&cursor=" + p.Next; p.Next == "" {
				break
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s lists %v, want %v", query, got, want)
		}
	}
	if e := ok[event](me, "GET", fmt.Sprint("events/", want[4]), nil); e.State != stateSeen || e.ID != "e0" {
		t.Errorf("an event that the index has dropped: %+v", e)
	}
}

func TestCamerasHaveAStateWithItsReason(t *testing.T) {
	now := time.Now()
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	serving := stream.DetectorStatus{Release: "r"}
	for name, c := range map[string]struct {
		cam     cameraState
		conf    stream.Detector
		unknown bool
		stat    stream.DetectorStatus
		told    bool
		want    string
	}{
		"no such detector":         {unknown: true, want: "no_detector there is no such detector: create it, or correct the camera"},
		"never a frame":            {stat: serving, want: "silent no frame has come in the last week"},
		"no frame for long":        {cam: cameraState{LastFrame: ago(time.Minute)}, stat: serving, want: "silent no frame has come for 1m0s"},
		"as long as it may":        {cam: cameraState{LastFrame: ago(time.Minute), LastScore: ago(time.Minute)}, conf: stream.Detector{Silence: stream.Duration(time.Hour)}, stat: serving, want: "live "},
		"a worker calls it so":     {cam: cameraState{LastFrame: ago(time.Second)}, stat: serving, told: true, want: "silent no frame has come for 1s"},
		"it learns from frames":    {cam: cameraState{LastFrame: now}, conf: stream.Detector{LearnFrames: 50}, stat: stream.DetectorStatus{Normals: 20}, want: "learning 20 of 50 frames"},
		"it is trained":            {cam: cameraState{LastFrame: now}, stat: stream.DetectorStatus{LastJob: &stream.Job{State: stream.JobRunning}}, want: "learning the first training is under way"},
		"it was not trained":       {cam: cameraState{LastFrame: now}, want: "no_release frames wait: train the detector"},
		"nobody scores":            {cam: cameraState{LastFrame: now, LastScore: ago(time.Minute)}, stat: stream.DetectorStatus{Release: "r", Waiting: 3}, want: "waiting frames wait and none is scored: is a worker running?"},
		"later than it usually is": {cam: cameraState{LastFrame: ago(10 * time.Second), LastScore: ago(10 * time.Second), PerSecond: 2}, stat: serving, want: "slow the last frame came 10s ago"},
		"all is well":              {cam: cameraState{LastFrame: now, LastScore: now, PerSecond: 2}, stat: serving, want: "live "},
	} {
		t.Run(name, func(t *testing.T) {
			state, reason := stateOfCamera(c.cam, c.conf, !c.unknown, c.stat, c.told, now)
			if got := state + " " + reason; got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

// receiver is where a sink of the test sends to.
type receiver struct{}

func (receiver) Send(_ context.Context, n sink.Notice) error {
	if !n.Test {
		return errors.New("no test")
	}
	return nil
}

func (receiver) Close() error { return nil }

func TestSinksAreSeenAndTried(t *testing.T) {
	h := newHall(t, config())
	me := asker{h: h}
	if status, body := me.do("GET", "sinks", nil); status != http.StatusServiceUnavailable || !strings.Contains(string(body), "nearmiss sinks") {
		t.Errorf("while nobody runs them: %d %s", status, body)
	}
	e, err := sink.NewEngine(sink.EngineConfig{Kinds: sink.Kinds{"test": func(sink.Sink, string) (sink.Sender, error) { return receiver{}, nil }}}, h.nc, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	brokertest.Run(t, "sinks", e.Run)
	bucket, err := h.js.KeyValue(t.Context(), h.names.SinksBucket())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bucket.PutString(t.Context(), "desk", `{"name": "desk", "kind": "test", "enabled": true}`); err != nil {
		t.Fatal(err)
	}
	list := func() []sink.Status {
		status, body := me.do("GET", "sinks", nil)
		var l listing[sink.Status]
		if status == http.StatusOK {
			if err := json.Unmarshal(body, &l); err != nil {
				t.Fatal(err)
			}
		}
		return l.Items
	}
	eventually.True(t, "the sink", func() bool { l := list(); return len(l) == 1 && l[0].Name == "desk" && l[0].Enabled })
	if a := ok[sink.TestAnswer](me, "POST", "sinks/desk/test", map[string]any{}); !a.OK || a.Event == "" {
		t.Errorf("the test: %+v", a)
	}
	if a := ok[sink.ReplayAnswer](me, "POST", "sinks/desk/replay", map[string]any{}); a.Sent+a.Failed != 0 {
		t.Errorf("without dead letters: %+v", a)
	}
	if status, _ := me.do("POST", "sinks/nobody/test", map[string]any{}); status != http.StatusNotFound {
		t.Errorf("no such sink: %d", status)
	}
}

func TestTheAuditIsShownPageByPage(t *testing.T) {
	h := newHall(t, config())
	me := asker{h: h}
	for i := range 5 {
		ok[any](me, "POST", "detectors", map[string]any{"name": fmt.Sprint("d", i)})
	}
	if status, _ := me.do("POST", "detectors", map[string]any{"name": "d0"}); status != http.StatusConflict {
		t.Errorf("the same again: %d", status)
	}
	page := func(query string) listing[stream.AuditEntry] {
		return ok[listing[stream.AuditEntry]](me, "GET", "audit?"+query, nil)
	}
	eventually.True(t, "every entry", func() bool { return len(page("").Items) == 6 })
	var got []string
	for cursor := ""; ; {
		p := page("limit=2&action=create" + cursor)
		for _, e := range p.Items {
			got = append(got, e.By+" "+e.Object+" "+e.Result)
		}
		if cursor = "&cursor=" + p.Next; p.Next == "" {
			break
		}
	}
	want := "local detector/d0 conflict, local detector/d4 done, local detector/d3 done, local detector/d2 done, local detector/d1 done, local detector/d0 done"
	if strings.Join(got, ", ") != want {
		t.Errorf("the audit:\n%s, want\n%s", strings.Join(got, ", "), want)
	}
	if p := page("failed=true"); len(p.Items) != 1 || p.Items[0].Error == "" {
		t.Errorf("what was refused: %+v", p)
	}
	if p := page("object=detector/d3&by=local"); len(p.Items) != 1 {
		t.Errorf("of one detector: %+v", p)
	}
}

// release stores a release that nobody could serve and returns its digest.
func (h *hall) release(name string) string {
	h.t.Helper()
	dir, sum := h.t.TempDir(), digest(name)
	manifest := fmt.Sprintf(`{"schema_version":1,"files":{"model":{"sha256":%q,"size":%d}}}`, sum, len(name))
	for file, text := range map[string]string{"model": name, "manifest.json": manifest} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			h.t.Fatal(err)
		}
	}
	d, err := h.c.backend.registry.Put(h.t.Context(), "parts", dir)
	if err != nil {
		h.t.Fatal(err)
	}
	return d
}

func TestReleasesAreChangedWithAReason(t *testing.T) {
	h := newHall(t, config())
	me := asker{h: h}
	h.detector("parts")
	a, b := h.release("a"), h.release("b")
	do := func(what string, body map[string]any, want int) {
		t.Helper()
		if status, data := me.do("POST", "detectors/parts/"+what, body); status != want {
			t.Errorf("%s %v: %d %s", what, body, status, data)
		}
	}
	type state struct {
		Items []struct {
			Release                   string
			Active, Candidate, Pinned bool
		}
		History []struct{ Release, By, Reason string }
	}
	is := func(want string) {
		t.Helper()
		got := ""
		s := ok[state](me, "GET", "detectors/parts/releases", nil)
		for _, r := range s.Items {
			name := map[string]string{a: "a", b: "b"}[r.Release]
			for word, on := range map[string]bool{" serves": r.Active, " beside": r.Candidate, " stays": r.Pinned} {
				if on {
					name += word
				}
			}
			got = strings.Join([]string{got, name}, ";")
		}
		if len(s.History) > 0 {
			got += " for " + s.History[0].Reason + " by " + s.History[0].By
		}
		if got != want {
			t.Errorf("the releases: %s, want %s", got, want)
		}
	}
	is(";b;a")
	do("promote", map[string]any{"release": a}, http.StatusBadRequest) // why?
	do("promote", map[string]any{"release": a, "reason": "the first"}, http.StatusOK)
	is(";b;a serves for the first by local")
	do("promote", map[string]any{"release": b, "expect": b, "reason": "late"}, http.StatusConflict)
	do("promote", map[string]any{"release": b, "expect": a, "reason": "better"}, http.StatusOK)
	is(";b serves;a for better by local")
	do("rollback", map[string]any{"expect": b, "reason": "worse"}, http.StatusOK)
	is(";b;a serves for worse by local")
	do("shadow", map[string]any{"release": b, "reason": "once more"}, http.StatusNoContent)
	is(";b beside;a serves for worse by local")
	do("shadow", map[string]any{"reason": "enough"}, http.StatusNoContent)
	do("pin", map[string]any{"release": b}, http.StatusNoContent)
	is(";b stays;a serves for worse by local")
	do("pin", map[string]any{"release": b, "unpin": true}, http.StatusNoContent)
	is(";b;a serves for worse by local")
	if d := ok[detector](me, "GET", "detectors/parts", nil); d.Facts == nil || d.Facts.Method != "knn" || d.Facts.Bytes != 1 {
		t.Errorf("of the active release is said %+v", d.Facts)
	}
}
