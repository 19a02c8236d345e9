package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/stream"
)

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain, ümlaut, 東京, tab\tand\nline": "plain, ümlaut, 東京, tab\tand\nline",
		"\x1b[31mred\x1b]0;title\a":         "�[31mred�]0;title�",
		"C1 \u009b31m":                      "C1 �31m",
		"a raw one \x9b31m":                 "a raw one �31m",
		"back\bspace, del\x7f, return\r":    "back�space, del�, return�",
		"turned \u202eround\u2066":          "turned �round�",
	} {
		if got := printable(in); got != want {
			t.Errorf("%q became %q", in, got)
		}
	}
}

// FuzzEdge: however bytes arrive, what comes out is text without orders, and the
// same as when they arrive at once.
func FuzzEdge(f *testing.F) {
	f.Add([]byte("ü\x1b[31m\xc2\x9b東"), uint8(1))
	f.Add([]byte("\xf0\x9f\x92"), uint8(2))
	f.Fuzz(func(t *testing.T, b []byte, step uint8) {
		var whole, pieces bytes.Buffer
		for out, n := range map[*bytes.Buffer]int{&whole: len(b), &pieces: int(step%7) + 1} {
			e := &edge{w: out}
			for rest := b; len(rest) > 0; {
				k := min(n, len(rest))
				if got, err := e.Write(rest[:k]); got != k || err != nil {
					t.Fatal(got, err)
				}
				rest = rest[k:]
			}
		}
		if strings.IndexFunc(whole.String(), order) >= 0 || !utf8.Valid(whole.Bytes()) {
			t.Fatalf("%q became %q", b, whole.String())
		}
		// Bytes that are no character may be counted otherwise in pieces.
		if utf8.Valid(b) && whole.String() != pieces.String() {
			t.Fatalf("%q became %q, in pieces %q", b, whole.String(), pieces.String())
		}
		if strings.IndexFunc(pieces.String(), order) >= 0 {
			t.Fatalf("in pieces %q", pieces.String())
		}
	})
}

func TestLogsObeyNobodyAndKeepSecrets(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		var buf bytes.Buffer
		log := newLogger(&buf, "info", format)
		log.Warn().Err(fmt.Errorf("at nats://u:s3cret@h: \x1b[2J")).Str("camera", "a\x1b[31m\u009bb\r").Str("server", "nats://s3cret@h").Msg("\x1b]0;x\a and \\u001b")
		s := buf.String()
		if format == "text" { // what its own colours are made of is not the message's
			s = strings.NewReplacer("\x1b[0m", "", "\x1b[1m", "", "\x1b[31m", "", "\x1b[33m", "", "\x1b[36m", "", "\x1b[90m", "").Replace(s)
		}
		if strings.IndexFunc(s, order) >= 0 || strings.Contains(s, "s3cret") || !strings.Contains(s, "xxxxx@h") {
			t.Errorf("%s: %q", format, s)
		}
		if format == "json" && !json.Valid(buf.Bytes()) {
			t.Errorf("no JSON: %s", s)
		}
	}
}

// TestNothingThatIsPublishedReachesTheTerminal as an order: headers, names and
// reasons of messages come from whoever may publish.
func TestNothingThatIsPublishedReachesTheTerminal(t *testing.T) {
	url := startBroker(t)
	at := "--server=" + url
	program(t, 0, "detector", "create", "bolts", at)
	js := brokertest.Streams(t, url)
	var n stream.Names
	const evil = "\x1b[2J\x1b]0;owned\a\u009b31m\u202e"
	publish := func(subject string, header map[string]string, data string) {
		t.Helper()
		m := nats.NewMsg(subject)
		m.Data = []byte(data)
		for k, v := range header {
			m.Header.Set(k, v)
		}
		if _, err := js.PublishMsg(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	publish(n.Normals("bolts"), map[string]string{stream.HeaderOrigin: evil, stream.HeaderSource: evil + "http://u:s3cret@h/?password=s3cret"}, "x")
	publish(n.Dead("NM_FRAMES"), map[string]string{stream.HeaderDeadReason: evil, stream.HeaderDeadCode: evil, stream.HeaderDeadSubject: evil}, "x")
	e, err := json.Marshal(map[string]any{
		"detector": evil, "camera": evil, "frame_id": evil, "scored_at": time.Now(), "source": evil + "rtsp://u:s3cret@h", "code": evil, "reason": evil, "no_pictures": evil,
	})
	if err != nil {
		t.Fatal(err)
	}
	publish(n.Events("bolts", "left", stream.KindRejected), map[string]string{"ce-specversion": "1.0", "ce-id": evil}, string(e))
	publish("$KV."+n.DetectorsBucket()+"."+"\u009b31m", nil, evil)

	check := func(what, stdout, stderr string) {
		t.Helper()
		for _, s := range []string{stdout, stderr} {
			if strings.IndexFunc(s, order) >= 0 || strings.Contains(s, "s3cret") {
				t.Errorf("%s prints %q", what, s)
			}
		}
		if !strings.Contains(stdout, "owned") {
			t.Errorf("%s does not show it at all: %q", what, stdout)
		}
	}
	for _, args := range [][]string{{"normals", "list", "bolts"}, {"status", "--dead", "5", "--workers=10ms"}} {
		stdout, stderr := program(t, 0, append(args, at)...)
		check(args[0], stdout, stderr)
		stdout, _ = program(t, 0, append(args, "--json", at)...)
		if strings.IndexFunc(stdout, order) >= 0 {
			t.Errorf("%v as JSON prints %q", args, stdout)
		}
	}
	w := start(t, "watch", "--since", "1h", at)
	line := w.line("the event", func(l string) bool { return strings.Contains(l, "rejected") })
	w.stop()
	check("watch", line, w.stderr())
}
