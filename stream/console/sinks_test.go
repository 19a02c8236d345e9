package console

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/sink"
)

// TestSinksAreMadeAndChanged: by one at a time, with what the kind asks for, and never
// so that a browser gets at files of the machine that runs them.
func TestSinksAreMadeAndChanged(t *testing.T) {
	cfg := config()
	cfg.CheckSink = func(s sink.Sink) (sink.Sink, error) {
		if s.Kind != "webhook" {
			return s, errors.New("there is no such kind")
		}
		return s, nil
	}
	h := newHall(t, cfg)
	h.person("root", Admin) // with users the page says who did it
	me := h.member(Admin)
	type shown struct {
		sink.Sink
		Revision uint64
	}
	made := ok[shown](me, "POST", "sinks", map[string]any{
		"name": "desk", "kind": "webhook", "enabled": true, "detectors": []string{"parts"}, "hours": "Mon 06:00-22:00", "secret": "file:/run/secrets/desk",
		"config": map[string]any{"url": "https://desk.example.org/a", "preset": "slack"},
	})
	if got := ok[shown](me, "GET", "sinks/desk", nil); got.Revision != made.Revision || got.Secret != "file:/run/secrets/desk" || !got.Enabled {
		t.Errorf("%+v", got)
	}
	changed := ok[shown](me, "PATCH", "sinks/desk", map[string]any{"enabled": false, "hours": nil, "config": map[string]any{"url": "https://desk.example.org/b"}})
	if got := string(changed.Config); changed.Enabled || changed.Hours != "" || got != `{"preset":"slack","url":"https://desk.example.org/b"}` {
		t.Errorf("%+v, %s", changed, got)
	}
	late := me
	late.header = http.Header{"If-Match": {fmt.Sprintf(`"%d"`, made.Revision)}}
	if status, body := late.do("PATCH", "sinks/desk", map[string]any{"enabled": true}); status != http.StatusPreconditionFailed {
		t.Errorf("who is late: %d %s", status, body)
	}
	if status, _ := me.do("POST", "sinks", map[string]any{"name": "desk", "kind": "webhook", "enabled": true}); status != http.StatusConflict {
		t.Errorf("a second sink of the name: %d", status)
	}
	for body, want := range map[string]int{
		`{"name": "x", "kind": "smoke", "enabled": true}`: 422, `{"name": "a b", "kind": "webhook", "enabled": true}`: 422, `{"name": "x", "kind": "webhook", "colour": 1}`: 422, `{"name": 1}`: 400, `[]`: 400,
		`{"name": "x", "kind": "webhook", "hours": "noon"}`:                                422,
		`{"name": "x", "kind": "webhook", "secret": "hunter2"}`:                            422,
		`{"name": "x", "kind": "webhook", "secret": "file:/etc/shadow"}`:                   422,
		`{"name": "x", "kind": "webhook", "secret": "file:/run/secrets/../../etc/passwd"}`: 422,
		`{"name": "x", "kind": "webhook", "secret": "env:HOME"}`:                           422,
		`{"name": "x", "kind": "webhook", "config": {"allow_loopback": true}}`:             422,
		`{"name": "x", "kind": "webhook", "config": {"key_file": "/etc/ssl/private/x"}}`:   422,
		`{"name": "x", "kind": "webhook", "config": {"Allow_LOOPBACK": true}}`:             422,
		`{"name": "x", "kind": "webhook", "config": {"CA_FILE": "/etc/ssl/private/x"}}`:    422,
	} {
		if status, data := me.do("POST", "sinks", []byte(body)); status != want {
			t.Errorf("%s: %d %s", body, status, data)
		}
	}
	for _, body := range []string{`{"name": "other"}`, `{"secret": "env:PATH"}`, `{"config": {"allow_loopback": true}}`, `{"kind": "smoke"}`} {
		if status, data := me.do("PATCH", "sinks/desk", []byte(body)); status != 422 {
			t.Errorf("%s: %d %s", body, status, data)
		}
	}
	// What was set on the machine stays, and may be changed back to nothing.
	bucket, err := h.js.KeyValue(t.Context(), h.names.SinksBucket())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bucket.PutString(t.Context(), "own", `{"name": "own", "kind": "webhook", "enabled": true, "secret": "file:/etc/nearmiss/own", "config": {"allow_loopback": true, "ca_file": "/etc/ca"}}`); err != nil {
		t.Fatal(err)
	}
	ok[any](me, "PATCH", "sinks/own", map[string]any{"min_ratio": 2, "config": map[string]any{"ca_file": nil}})
	if got := ok[shown](me, "GET", "sinks/own", nil); got.MinRatio != 2 || string(got.Config) != `{"allow_loopback":true}` {
		t.Errorf("%+v, %s", got, got.Config)
	}
	ok[any](me, "DELETE", "sinks/desk", nil)
	for _, method := range []string{"GET", "PATCH", "DELETE"} {
		if status, _ := me.do(method, "sinks/desk", []byte(`{}`)); status != http.StatusNotFound {
			t.Errorf("%s of a sink that is gone: %d", method, status)
		}
	}
	var said []string
	for _, e := range ok[listing[stream.AuditEntry]](me, "GET", "audit?object=sink", nil).Items {
		if e.Result == stream.AuditDone {
			said = append(said, e.By+" "+e.Action+" "+e.Object)
		}
		if strings.Contains(string(e.Before)+string(e.After), "hunter2") {
			t.Errorf("the audit has a secret: %+v", e)
		}
	}
	if got := fmt.Sprint(said); got != "[admin-script delete sink/desk admin-script set sink/own admin-script set sink/desk admin-script create sink/desk]" {
		t.Errorf("the audit: %s", got)
	}
}

// TestATrainingSetIsExported: every image under its number, whatever it was called.
func TestATrainingSetIsExported(t *testing.T) {
	h := newHall(t, config())
	me := asker{h: h}
	h.detector("parts")
	want := map[string]string{}
	for i, source := range []string{"good.jpg", "../../etc/passwd", "a\"b\nc"} {
		seq, err := h.c.backend.normals.Add(t.Context(), stream.Normal{Detector: "parts", ID: fmt.Sprint(i), Source: source, Image: append(pixels(), byte(i))})
		if err != nil {
			t.Fatal(err)
		}
		want[fmt.Sprintf("%08d.jpg", seq)] = strings.ReplaceAll(source, "\n", " ") // it is kept in a header
	}
	status, body := me.do("GET", "detectors/parts/normals.zip", nil)
	if status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	z, err := zip.NewReader(bytes.NewReader(body), int64(len(body)))
	if err != nil {
		t.Fatal(err)
	}
	read := func(name string) []byte {
		f, err := z.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		b, err := io.ReadAll(f)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if len(z.File) != len(want)+1 {
		t.Fatalf("%d files", len(z.File))
	}
	for d := json.NewDecoder(bytes.NewReader(read("normals.jsonl"))); d.More(); {
		var line struct{ File, Source string }
		if err := d.Decode(&line); err != nil {
			t.Fatal(err)
		}
		if want[line.File] != line.Source || !bytes.HasPrefix(read(line.File), pixels()) {
			t.Errorf("%+v", line)
		}
		delete(want, line.File)
	}
	if len(want) > 0 {
		t.Errorf("not listed: %v", want)
	}
	if status, body := me.do("GET", "detectors/parts/normals.zip?anomalies=true", nil); status != http.StatusOK || len(body) > 1000 {
		t.Errorf("no labelled anomalies: %d, %d bytes", status, len(body))
	}
	if status, _ := me.do("GET", "detectors/none/normals.zip", nil); status != http.StatusNotFound {
		t.Errorf("no detector: %d", status)
	}
}
