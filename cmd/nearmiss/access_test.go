package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/access"
)

// TestEachRoleDoesItsJobWithItsRights has every part in a process of its own,
// with its own identity, and goes through the life of a detector. The broker
// refuses nobody anything.
func TestEachRoleDoesItsJobWithItsRights(t *testing.T) {
	needRuntime(t)
	data := t.TempDir()
	in := "--data=" + data
	for _, u := range []string{
		"operator desk", "camera line1 --detector parts --large", "worker w1", "trainer t1",
		"sinks k1", "subscriber lamp --detector parts", "subscriber view --detector parts --live", "setup s1",
	} {
		program(t, 0, append(append([]string{"users", "add"}, strings.Fields(u)...), in)...)
	}
	key := func(name string) string { return "--nkey=" + filepath.Join(data, "auth", name+".nk") }
	up := start(t, "broker", in, "--port=-1", "--json")
	url := up.natsAddress()
	server := "--server=" + url
	if out, _ := program(t, 1, "status", server); strings.TrimSpace(out) != "" {
		t.Errorf("status without a key printed: %s", out)
	}
	services := []*process{
		up,
		start(t, "worker", server, key("w1"), "--data", t.TempDir()),
		start(t, "trainer", server, key("t1"), "--data", t.TempDir()),
		start(t, "sinks", server, key("k1")),
		start(t, "watch", "parts", "--live", "--json", server, key("view")),
		start(t, "watch", "parts", "--durable", "lamp", "--js-api-prefix", "NM.API", "--json", server, key("lamp")),
	}
	view, lamp := services[4], services[5]
	var errs strings.Builder
	desk := func(args ...string) string {
		t.Helper()
		out, stderr := program(t, 0, append(args, server, key("desk"))...)
		errs.WriteString(stderr)
		return out
	}
	camera := func(args ...string) {
		t.Helper()
		_, stderr := program(t, 0, append(append([]string{"camera", "synthetic:parts", "--detector", "parts", "--camera", "line1"}, args...), server, key("line1"))...)
		errs.WriteString(stderr)
	}
	program(t, 0, "broker", "--setup", url, key("s1"))

	services[3].logged("sinks are up")
	got := make(chan []byte, 100_000) // more than come: who is not answered keeps the receiver open
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got <- b
	}))
	defer receiver.Close()
	desk("sinks", "add", "lamp", "webhook", "--url", receiver.URL, "--allow-loopback", "--no-secret", "--event", "anomaly", "--event", "drift")
	eventually.True(t, "the sink is at work", func() bool { return strings.Contains(desk("sinks", "list"), "at work") })
	desk("sinks", "test", "lamp")
	if b := <-got; !strings.Contains(string(b), `"test":true`) {
		t.Errorf("the test was %s", b)
	}

	desk("detector", "create", "parts", "--learn-frames", "60", "--false-alarm-rate", "0.2")
	camera("--count", "60", "--defects", "0")
	eventually.True(t, "a release is active", func() bool { return strings.Contains(desk("releases", "parts"), "* ") })
	// Subscribers hear of what comes once they are there. Of a live one nobody knows when.
	opts, err := access.Credentials{NKey: filepath.Join(data, "auth", "desk.nk")}.Options("")
	if err != nil {
		t.Fatal(err)
	}
	js := brokertest.Streams(t, url, opts...)
	eventually.True(t, "the durable subscriber is there", func() bool {
		_, err := js.Consumer(t.Context(), "NM_EVENTS", "watch-lamp")
		return err == nil
	})
	var e eventLine
	anomaly := func(l string) bool { return json.Unmarshal([]byte(l), &e) == nil && e.Kind == stream.KindAnomaly }
	eventually.True(t, "the live subscriber gets an anomaly, too", func() bool {
		camera("--count", "40", "--defects", "0.5", "--seed", "2")
		if lamp.line("an anomaly", anomaly); e.Detector != "parts" {
			t.Errorf("the durable subscriber got %+v", e)
		}
		for len(view.lines) > 0 {
			if anomaly(<-view.lines) {
				return true
			}
		}
		return false
	})
	if b := <-got; !strings.Contains(string(b), `"type":"dev.nearmiss.anomaly.v1"`) {
		t.Errorf("the alarm was %s", b)
	}
	for _, args := range [][]string{
		{"sinks", "pause", "lamp"},
		{"sinks", "resume", "lamp"},
		{"sinks", "replay", "lamp", "--dead"},
		{"sinks", "replay", "lamp", "--since", "1h"},
		{"sinks", "remove", "lamp"},
		{"mark", "parts", "normal", e.ID},
		{"normals", "list", "parts"},
		{"normals", "export", "parts", t.TempDir()},
		{"evidence", "list", "parts"},
		{"evidence", "get", "parts", "--last", "--out", t.TempDir()},
		{"detector", "set", "parts", "--k", "3"},
		{"detector", "list"},
		{"detector", "show", "parts"},
		{"train", "parts", "--wait"},
		{"jobs", "parts"},
		{"releases", "parts"},
		{"releases", "parts", "rollback"},
		{"status"},
		{"collect"},
	} {
		desk(args...)
	}
	for _, p := range services {
		errs.WriteString(p.stderr())
	}
	for line := range strings.Lines(errs.String()) {
		if strings.Contains(strings.ToLower(line), "permissions violation") {
			t.Errorf("a right is missing: %s", strings.TrimSpace(line))
		}
	}
	// A camera is its own camera only.
	_, stderr := program(t, 1, "camera", "synthetic:parts", "--detector", "parts", "--camera", "line2", "--count", "1", server, key("line1"))
	if !strings.Contains(stderr, "may not publish on nearmiss.frames.parts.line2") {
		t.Errorf("another camera's frames: %s", stderr)
	}
	for _, command := range [][]string{{"status"}, {"jobs", "--cancel", "j"}} {
		if _, stderr := program(t, 1, append(command, server, key("line1"))...); !strings.Contains(stderr, "this identity may not do that; use one of role operator") {
			t.Errorf("a camera asks for %s: %s", command, stderr)
		}
	}
}
