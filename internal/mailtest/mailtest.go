// Package mailtest has a real mail server for tests, which encrypts.
package mailtest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net"
	"net/mail"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

// User and Password are of the only one who has an account.
const User, Password = "alarm", "hunter2"

// Office is a mail server on this machine.
type Office struct {
	URL string // smtp://HOST:PORT
	CA  string // file of the certificate that its clients must trust

	mu     sync.Mutex
	open   bool  // to who has no account, too
	answer error // to what comes next
	got    []Mail
}

// Mail is what has come.
type Mail struct {
	Text      []byte
	To        []string
	Encrypted bool // on its way
}

// Open starts a mail server, which ends with the test.
func Open(t testing.TB) *Office {
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
	o := &Office{URL: "smtp://" + l.Addr().String(), CA: ca}
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

// Anybody has it take mail without an account, as servers do inside a plant.
func (o *Office) Anybody() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.open = true
}

// Answer is what it says to recipients from now on; nil: it takes the mail.
func (o *Office) Answer(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.answer = err
}

// Mails are those that have come.
func (o *Office) Mails() []Mail {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.got)
}

// Last is the mail that came last, and how many there are.
func (o *Office) Last(t testing.TB) (*mail.Message, int) {
	t.Helper()
	all := o.Mails()
	if len(all) == 0 {
		t.Fatal("there is no mail")
	}
	return all[len(all)-1].Read(t), len(all)
}

// Read parses it.
func (m Mail) Read(t testing.TB) *mail.Message {
	t.Helper()
	msg, err := mail.ReadMessage(bytes.NewReader(m.Text))
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

// Parts are the bodies of a mail by content type, and under "id" the content id of
// its picture.
func Parts(t testing.TB, m *mail.Message) map[string]string {
	t.Helper()
	into := map[string]string{}
	parts(t, m.Header.Get("Content-Type"), m.Body, into)
	return into
}

func parts(t testing.TB, contentType string, body io.Reader, into map[string]string) {
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

// NewSession is called by the server for each client.
func (o *Office) NewSession(c *smtp.Conn) (smtp.Session, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return &session{o: o, c: c, in: o.open}, nil
}

type session struct {
	o  *Office
	c  *smtp.Conn
	in bool
	to []string
}

func (s *session) AuthMechanisms() []string { return []string{sasl.Plain} }
func (s *session) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, u, p string) error {
		if u != User || p != Password {
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
	s.to = append(s.to, to)
	s.o.mu.Lock()
	defer s.o.mu.Unlock()
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
	s.o.got = append(s.o.got, Mail{Text: b, To: s.to, Encrypted: encrypted})
	return nil
}
func (s *session) Reset()        { s.to = nil }
func (s *session) Logout() error { return nil }
