package mail_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-smtp"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/mailtest"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/incident"
	"github.com/nearmiss/nearmiss/stream/sink"
	"github.com/nearmiss/nearmiss/stream/sink/mail"
)

func TestMain(m *testing.M) { brokertest.Main(m) }

func open(t *testing.T, cfg mail.Config, secret string) sink.Sender {
	t.Helper()
	raw, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s, err := mail.Opener("test", func(_ context.Context, e stream.Event) ([]stream.Picture, error) {
		return []stream.Picture{{Name: "heat.png", Data: []byte("heat")}, {Name: sink.Overlay, Data: []byte("\xff\xd8 the overlay of " + e.ID)}}, nil
	}, links(t))(sink.Sink{Name: "m", Config: raw}, secret)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// links are signed by a key of this test.
func links(t *testing.T) *sink.Links {
	t.Helper()
	path := sink.LinkKeyFile(t.TempDir())
	if err := sink.EnsureLinkKey(path); err != nil {
		t.Fatal(err)
	}
	return &sink.Links{Key: "file:" + path}
}

func phase(phase string, n int) sink.Notice {
	score, threshold, at := 2.0, 1.0, time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	i := incident.Incident{ID: "i1", Phase: phase, N: n, Detector: "bolts", Camera: "line1", OpenedAt: at, LastAt: at, Anomalies: 3, Peak: incident.Peak{Ratio: 2}}
	return sink.Notice{ID: "i1/" + string(rune('0'+n)), At: at, Incident: &i, Event: stream.Event{
		ID: "e7", Kind: sink.IncidentPrefix + phase, Detector: "bolts", Camera: "line1", ScoredAt: at, Score: &score, Threshold: &threshold, Pictures: "NM_EVIDENCE/bolts/e7",
	}}
}

// A mail has the words, the link and the picture; the end of an incident is in
// the thread of its beginning; and a second try is the same mail.
func TestAnAlarmIsAMailWithItsPicture(t *testing.T) {
	o := mailtest.Open(t)
	s := open(t, mail.Config{
		URL: o.URL, CAFile: o.CA, From: "Nearmiss <alarm@example.org>", To: []string{"shift@example.org", "lead@example.org"}, User: mailtest.User,
		Link: "https://console.example.org/e/{event}", Console: "https://console.example.org",
	}, mailtest.Password)
	if err := s.Send(t.Context(), phase(incident.New, 0)); err != nil {
		t.Fatal(err)
	}
	m, _ := o.Last(t)
	first := m.Header.Get("Message-ID")
	for k, want := range map[string]string{
		"Subject": "Anomaly on bolts/line1", "From": `"Nearmiss" <alarm@example.org>`, "Auto-Submitted": "auto-generated", "X-Auto-Response-Suppress": "All", "In-Reply-To": "",
	} {
		if got := m.Header.Get(k); got != want {
			t.Errorf("%s: %q", k, got)
		}
	}
	if how := o.Mails()[0]; !strings.HasSuffix(first, "@example.org>") || !how.Encrypted || len(how.To) != 2 {
		t.Errorf("%q, encrypted %v, to %q", first, how.Encrypted, how.To)
	}
	got := mailtest.Parts(t, m)
	for kind, want := range map[string]string{
		"text/plain": "https://console.example.org/e/e7", "text/html": `src="cid:overlay.jpg"`, "image/jpeg": "the overlay of e7", "id": "<overlay.jpg>",
	} {
		if !strings.Contains(got[kind], want) {
			t.Errorf("%s: %q", kind, got[kind])
		}
	}
	if err := s.Send(t.Context(), phase(incident.New, 0)); err != nil {
		t.Fatal(err)
	}
	if m, _ := o.Last(t); m.Header.Get("Message-ID") != first {
		t.Errorf("another try has the id %s, the first had %s", m.Header.Get("Message-ID"), first)
	}
	if err := s.Send(t.Context(), phase(incident.End, 2)); err != nil {
		t.Fatal(err)
	}
	if m, _ := o.Last(t); m.Header.Get("In-Reply-To") != first || m.Header.Get("Message-ID") == first {
		t.Errorf("the end answers %q", m.Header.Get("In-Reply-To"))
	}
	err := s.(sink.Digester).SendAll(t.Context(), []sink.Notice{phase(incident.New, 0), phase(incident.End, 1)})
	if err != nil {
		t.Fatal(err)
	}
	m, n := o.Last(t)
	got = mailtest.Parts(t, m)
	if n != 4 || m.Header.Get("Subject") != "2 events" || !strings.Contains(got["text/plain"], "Anomaly on") || !strings.Contains(got["text/plain"], "Over: ") {
		t.Errorf("mail %d, %q: %q", n, m.Header.Get("Subject"), got["text/plain"])
	}
	// The pictures of a digest are linked, that of a mail is in it.
	const link = "https://console.example.org/api/v1/pictures/bolts/e7/overlay.jpg?e="
	if !strings.Contains(got["text/plain"], link) || !strings.Contains(got["text/html"], link) {
		t.Errorf("the digest has no link to the pictures: %q", got["text/html"])
	}
}

// What the server refuses for good is not tried again; a full mailbox, a wrong
// password and a server that does not encrypt are.
func TestWhatMailServersAnswer(t *testing.T) {
	o := mailtest.Open(t)
	cfg := mail.Config{URL: o.URL, CAFile: o.CA, From: "alarm@example.org", To: []string{"shift@example.org"}, User: mailtest.User}
	s := open(t, cfg, mailtest.Password)
	var permanent *sink.Permanent
	for code, is := range map[int]bool{550: true, 451: false, 452: false} {
		o.Answer(&smtp.SMTPError{Code: code, EnhancedCode: smtp.EnhancedCode{code / 100, 1, 1}, Message: "no"})
		err := s.Send(t.Context(), phase(incident.New, 0))
		if err == nil || errors.As(err, &permanent) != is {
			t.Errorf("%d: %v", code, err)
		}
	}
	o.Answer(nil)
	err := open(t, cfg, "wrong-password").Send(t.Context(), phase(incident.New, 0))
	if err == nil || errors.As(err, &permanent) || strings.Contains(err.Error(), "wrong-password") {
		t.Errorf("a wrong password: %v", err)
	}
	cfg.CAFile = ""
	if err := open(t, cfg, mailtest.Password).Send(t.Context(), phase(incident.New, 0)); err == nil {
		t.Error("a certificate that nobody trusts is trusted")
	}
	if n := len(o.Mails()); n > 0 {
		t.Errorf("%d mails arrived", n)
	}
}

func TestConfigurationsThatCannotWorkAreRefused(t *testing.T) {
	for _, cfg := range []string{
		`{}`, `{"url":"http://h","from":"a@b","to":["a@b"]}`, `{"url":"smtp://u:hunter2@h","from":"a@b","to":["a@b"]}`,
		`{"url":"smtp://h","from":"a","to":["a@b"]}`, `{"url":"smtp://h","from":"a@b","to":[]}`, `{"url":"smtp://h","from":"a@b","to":["a@b\r\nBcc: c@d"]}`,
		`{"url":"smtp://h","from":"a@b","to":["a@b"],"plain":true,"user":"u"}`, `{"url":"smtp://h","from":"a@b","to":["a@b"],"auth":"kerberos"}`,
	} {
		if _, err := mail.Opener("", nil, nil)(sink.Sink{Name: "s", Config: []byte(cfg)}, ""); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", cfg, err)
		}
	}
}
