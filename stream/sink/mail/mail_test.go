package mail_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net"
	netmail "net/mail"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
	"go.uber.org/goleak"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/incident"
	"github.com/nearmiss/nearmiss/stream/sink"
	"github.com/nearmiss/nearmiss/stream/sink/mail"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// office is a mail server with one user.
type office struct {
	url, ca string

	mu     sync.Mutex
	answer error // to what comes next
	got    [][]byte
	rcpt   []string
	inTLS  bool
}

const user, password = "alarm", "hunter2"

func (o *office) NewSession(c *smtp.Conn) (smtp.Session, error) { return &session{o, c, false}, nil }

type session struct {
	o  *office
	c  *smtp.Conn
	in bool
}

func (s *session) AuthMechanisms() []string { return []string{sasl.Plain} }
func (s *session) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, u, p string) error {
		if u != user || p != password {
			return smtp.ErrAuthFailed
		}
		s.in = true
		return nil
	}), nil
}

func (s *session) Mail(string, *smtp.MailOptions) error {
	if !s.in {
		return smtp.ErrAuthRequired
	}
	return nil
}

func (s *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	s.o.mu.Lock()
	defer s.o.mu.Unlock()
	s.o.rcpt = append(s.o.rcpt, to)
	return s.o.answer
}

func (s *session) Data(r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	_, encrypted := s.c.TLSConnectionState()
	s.o.mu.Lock()
	defer s.o.mu.Unlock()
	s.o.got, s.o.inTLS = append(s.o.got, b), encrypted
	return nil
}
func (s *session) Reset()        {}
func (s *session) Logout() error { return nil }

// openOffice starts a mail server that encrypts.
func openOffice(t *testing.T) *office {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := &office{url: "smtp://" + l.Addr().String(), ca: ca}
	s := smtp.NewServer(o)
	s.Domain = "office.example.org"
	s.TLSConfig = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	done := make(chan struct{})
	go func() {
		_ = s.Serve(l)
		close(done)
	}()
	t.Cleanup(func() {
		_ = s.Close()
		<-done
	})
	return o
}

func (o *office) set(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.answer = err
}

// last is the mail that came last, and how many there are.
func (o *office) last(t *testing.T) (*netmail.Message, int) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.got) == 0 {
		t.Fatal("there is no mail")
	}
	m, err := netmail.ReadMessage(bytes.NewReader(o.got[len(o.got)-1]))
	if err != nil {
		t.Fatal(err)
	}
	return m, len(o.got)
}

// parts are the bodies of a mail by content type, and the content ids of
// pictures.
func parts(t *testing.T, contentType string, body io.Reader, into map[string]string) {
	t.Helper()
	kind, p, err := mime.ParseMediaType(contentType)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(kind, "multipart/") {
		b, err := io.ReadAll(body)
		if err != nil {
			t.Fatal(err)
		}
		into[kind] = string(b)
		return
	}
	for r := multipart.NewReader(body, p["boundary"]); ; {
		part, err := r.NextRawPart()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		var in io.Reader = part
		switch part.Header.Get("Content-Transfer-Encoding") {
		case "quoted-printable":
			in = quotedprintable.NewReader(part)
		case "base64":
			in = base64.NewDecoder(base64.StdEncoding, part)
		}
		if id := part.Header.Get("Content-ID"); id != "" {
			into["id"] = id
		}
		parts(t, part.Header.Get("Content-Type"), in, into)
	}
}

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
	o := openOffice(t)
	s := open(t, mail.Config{
		URL: o.url, CAFile: o.ca, From: "Nearmiss <alarm@example.org>", To: []string{"shift@example.org", "lead@example.org"}, User: user,
		Link: "https://console.example.org/e/{event}", Console: "https://console.example.org",
	}, password)
	if err := s.Send(t.Context(), phase(incident.New, 0)); err != nil {
		t.Fatal(err)
	}
	m, _ := o.last(t)
	first := m.Header.Get("Message-ID")
	for k, want := range map[string]string{
		"Subject": "Anomaly on bolts/line1", "From": `"Nearmiss" <alarm@example.org>`, "Auto-Submitted": "auto-generated", "X-Auto-Response-Suppress": "All", "In-Reply-To": "",
	} {
		if got := m.Header.Get(k); got != want {
			t.Errorf("%s: %q", k, got)
		}
	}
	if !strings.HasSuffix(first, "@example.org>") || !o.inTLS || len(o.rcpt) != 2 {
		t.Errorf("%q, encrypted %v, to %q", first, o.inTLS, o.rcpt)
	}
	got := map[string]string{}
	parts(t, m.Header.Get("Content-Type"), m.Body, got)
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
	if m, _ := o.last(t); m.Header.Get("Message-ID") != first {
		t.Errorf("another try has the id %s, the first had %s", m.Header.Get("Message-ID"), first)
	}
	if err := s.Send(t.Context(), phase(incident.End, 2)); err != nil {
		t.Fatal(err)
	}
	if m, _ := o.last(t); m.Header.Get("In-Reply-To") != first || m.Header.Get("Message-ID") == first {
		t.Errorf("the end answers %q", m.Header.Get("In-Reply-To"))
	}
	err := s.(sink.Digester).SendAll(t.Context(), []sink.Notice{phase(incident.New, 0), phase(incident.End, 1)})
	if err != nil {
		t.Fatal(err)
	}
	m, n := o.last(t)
	got = map[string]string{}
	parts(t, m.Header.Get("Content-Type"), m.Body, got)
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
	o := openOffice(t)
	cfg := mail.Config{URL: o.url, CAFile: o.ca, From: "alarm@example.org", To: []string{"shift@example.org"}, User: user}
	s := open(t, cfg, password)
	var permanent *sink.Permanent
	for code, is := range map[int]bool{550: true, 451: false, 452: false} {
		o.set(&smtp.SMTPError{Code: code, EnhancedCode: smtp.EnhancedCode{code / 100, 1, 1}, Message: "no"})
		err := s.Send(t.Context(), phase(incident.New, 0))
		if err == nil || errors.As(err, &permanent) != is {
			t.Errorf("%d: %v", code, err)
		}
	}
	o.set(nil)
	err := open(t, cfg, "wrong-password").Send(t.Context(), phase(incident.New, 0))
	if err == nil || errors.As(err, &permanent) || strings.Contains(err.Error(), "wrong-password") {
		t.Errorf("a wrong password: %v", err)
	}
	cfg.CAFile = ""
	if err := open(t, cfg, password).Send(t.Context(), phase(incident.New, 0)); err == nil {
		t.Error("a certificate that nobody trusts is trusted")
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.got) > 0 {
		t.Errorf("%d mails arrived", len(o.got))
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
