package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/sink"
)

// Secrets of sinks of every kind that has one are in nothing that broker, sinks
// and commands write: no file of the broker's (values, events, dead letters), no
// log, no answer. The receivers of webhooks answer with what they were sent.
func TestSecretsAreNowhere(t *testing.T) {
	data, secrets := t.TempDir(), t.TempDir()
	server, at := runBroker(t, "--data", data)
	echo := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		w.WriteHeader(http.StatusForbidden)
		// The first 200 bytes of an answer are kept: the secret is among them.
		fmt.Fprintf(w, "you sent %s %s %s", r.URL.Path, r.Header.Get("Authorization"), body)
	}))
	defer echo.Close()
	hangsUp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer hangsUp.Close()
	go func() {
		for {
			c, err := hangsUp.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	nobody := hangsUp.Addr().String()
	kinds := map[string][]string{
		"bearer": {"webhook", "--url", echo.URL, "--allow-loopback", "--bearer"},
		"path":   {"webhook", "--url", echo.URL + "/{secret}", "--allow-loopback"},
		"key":    {"webhook", "--url", echo.URL, "--allow-loopback", "--set", "auth=routing_key", "--template", filepath.Join(secrets, "template")},
		"mail":   {"mail", "--url", "smtp://" + nobody, "--set", "from=a@example.org", "--set", `to=["b@example.org"]`, "--set", "user=u", "--event", "anomaly"},
		"mqtt":   {"mqtt", "--url", "mqtt://" + nobody, "--set", "user=u"},
		"cloud":  {"archive", "--url", "s3://b/c", "--set", "endpoint=" + strings.TrimPrefix(echo.URL, "http://"), "--set", "plain=true", "--set", "access_key=a"},
	}
	if err := os.WriteFile(filepath.Join(secrets, "template"), []byte(`{"a":1}`), 0o600); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	say := func(code int, args ...string) string {
		t.Helper()
		out, errs := program(t, code, append(args, "--server", at)...)
		said.WriteString(out + errs)
		return out + errs
	}
	worker := start(t, "sinks", "--server", at)
	worker.logged("sinks are up")
	for name, kind := range kinds {
		path := filepath.Join(secrets, name)
		if err := os.WriteFile(path, []byte("hunter2-"+name), 0o600); err != nil {
			t.Fatal(err)
		}
		say(0, append(append([]string{"sinks", "add", name}, kind...), "--secret", "file:"+path, "--event", "anomaly")...)
	}
	l := listen(t, at)
	for name := range kinds {
		eventually.True(t, name+" has its consumer", func() bool {
			_, err := l.js.Consumer(t.Context(), "NM_EVENTS", "sink-"+name)
			return err == nil
		})
	}
	score, threshold := 2.0, 1.0
	m, err := stream.Event{ID: "e1", Kind: stream.KindAnomaly, Detector: "bolts", Camera: "line1", FrameID: "1", ScoredAt: time.Now().UTC(), Score: &score, Threshold: &threshold}.Message(stream.Names{})
	if err == nil {
		_, err = l.js.PublishMsg(t.Context(), m)
	}
	if err != nil {
		t.Fatal(err)
	}
	in := stream.NewInstallation(l.js, stream.Names{})
	eventually.True(t, "what the webhooks refuse is in the dead letters", func() bool {
		dead, err := in.DeadLetters(t.Context(), 0)
		return err == nil && len(dead) == 3
	})
	// Commands print what the process answers, so that is asked of each.
	ask := func(what string, q, a any) {
		t.Helper()
		if err := sink.Ask(t.Context(), l.js.Conn(), stream.Names{}, what, q, a); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&said, "%+v\n", a)
	}
	eventually.True(t, "each has failed", func() bool {
		var all []sink.Status
		ask("status", nil, &all)
		return len(all) == len(kinds) && !slices.ContainsFunc(all, func(s sink.Status) bool { return s.Error == "" })
	})
	for name := range kinds {
		var a sink.TestAnswer
		if ask("test", sink.TestRequest{Sink: name}, &a); a.OK || a.Error == "" {
			t.Errorf("the test of %s: %+v", name, a)
		}
	}
	say(exitFailed, "sinks", "test", "cloud")
	say(0, "sinks", "show", "mail")
	say(0, "sinks", "show", "mqtt", "--json")
	say(exitFailed, "sinks", "replay", "bearer", "--dead")
	say(exitFailed, "sinks", "replay", "path", "--since", "1h")
	say(0, "sinks", "list", "--json")
	say(0, "sinks", "pause", "bearer")
	dead, err := in.DeadLetters(context.WithoutCancel(t.Context()), 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dead {
		if !strings.Contains(d.Reason, "(secret)") {
			t.Errorf("the answer of %s did not have its secret: %q", d.Header.Get("Nearmiss-Dead-Sink"), d.Reason)
		}
	}
	worker.stop()
	server.stop()

	written := map[string][]byte{"what commands said": said.Bytes(), "the sinks' log": []byte(worker.stderr()), "the broker's log": []byte(server.stderr())}
	err = filepath.WalkDir(data, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			written[path], err = os.ReadFile(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for where, b := range written {
		if i := bytes.Index(b, []byte("hunter2")); i >= 0 {
			t.Errorf("%s has a secret: %q", where, b[max(0, i-100):min(len(b), i+40)])
		}
		found = found || strings.HasPrefix(where, data) && bytes.Contains(b, []byte("(secret)"))
	}
	if !found {
		t.Error("the search does not see what the broker has stored")
	}
	total := 0
	for _, b := range written {
		total += len(b)
	}
	t.Logf("%d secrets of %d kinds of sinks are not in %d files, logs and answers (%d KiB)", len(kinds), 4, len(written), total>>10)
}
