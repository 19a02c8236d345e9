package camera_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"hash"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/stream/camera"
)

// TestCamerasNameTheirAnswersInManyWays: what counts is what they answer with.
func TestCamerasNameTheirAnswersInManyWays(t *testing.T) {
	img := encoded(t)[2]
	part := fmt.Appendf(nil, "--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n", len(img), img)
	for _, c := range []struct {
		name, kind string
		body       []byte
		times      int // that it is sent in one answer
		length     bool
	}{
		{"an image of no type", "", img, 1, true},
		{"an octet stream", "application/octet-stream", img, 1, true},
		{"a type that is none", "jpg", img, 1, true},
		{"text", "text/plain", img, 1, true},
		{"a type with a size", "image/jpeg;size=100", img, 1, true},
		{"a line end before it", "image/jpeg", append([]byte("\r\n"), img...), 1, true},
		{"no length", "image/jpeg", img, 1, false},
		{"neither type nor length", "", img, 1, false},
		{"one image, called a stream", "multipart/x-mixed-replace;boundary=ipcam264", img, 1, false},
		{"multipart/mixed", "multipart/mixed; boundary=frame", part, 2, false},
		{"a stream of no type", "", part, 2, false},
		{"a stream called octets", "application/octet-stream", part, 2, false},
		{"a boundary named twice", "multipart/x-mixed-replace; boundary=frame; boundary=frame", part, 2, false},
		{"capitals", `Multipart/X-Mixed-Replace;boundary="frame"`, part, 2, false},
		{"images one after the other", "video/x-motion-jpeg", img, 2, false},
		{"images one after the other, called one", "image/jpeg", img, 2, false},
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Content-Type"] = nil // the server does not guess it
			if c.kind != "" {
				w.Header().Set("Content-Type", c.kind)
			}
			if c.length {
				w.Header().Set("Content-Length", fmt.Sprint(len(c.body)))
			}
			for range c.times {
				_, _ = w.Write(c.body)
				w.(http.Flusher).Flush()
			}
		}))
		s := &camera.Web{URL: srv.URL, FPS: 1000, Log: zerolog.Nop()}
		for range 3 {
			got, err := s.Next(t.Context())
			if err != nil || !bytes.Equal(bytes.TrimLeft(got.Data, "\r\n"), img) {
				t.Errorf("%s: %d bytes, %v", c.name, len(got.Data), err)
				break
			}
		}
		srv.Close()
	}
}

// digestServer asks for digest authentication, with a new nonce every third
// request, and computes the answer by RFC 7616's formulas.
func digestServer(t *testing.T, challenge string, newHash func() hash.Hash, img []byte) *httptest.Server {
	t.Helper()
	asked := 0
	field := func(header, name string) string {
		m := regexp.MustCompile(`(?:^|[ ,])` + name + `="?([^",]*)"?`).FindStringSubmatch(header)
		if m == nil {
			return ""
		}
		return m[1]
	}
	of := func(parts ...string) string {
		h := newHash()
		_, _ = io.WriteString(h, strings.Join(parts, ":"))
		return hex.EncodeToString(h.Sum(nil))
	}
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := r.Header.Get("Authorization")
		if strings.HasPrefix(a, "Basic") {
			t.Error("the password was sent in the clear")
		}
		asked++
		nonce := fmt.Sprint("n", asked/3)
		want := ""
		if a != "" {
			a1 := of("root", "cam", "se#cr@t")
			if strings.Contains(challenge, "-sess") {
				a1 = of(a1, nonce, field(a, "cnonce"))
			}
			a2 := of("GET", r.URL.RequestURI())
			want = of(a1, nonce, field(a, "nc"), field(a, "cnonce"), "auth", a2)
			if !strings.Contains(challenge, "qop") {
				want = of(a1, nonce, a2)
			}
		}
		if want == "" || field(a, "response") != want || field(a, "nonce") != nonce {
			w.Header().Add("WWW-Authenticate", fmt.Sprintf(`Digest realm="cam", nonce="%s"%s`, nonce, challenge))
			w.Header().Add("WWW-Authenticate", `Basic realm="cam"`)
			http.Error(w, "who?", http.StatusUnauthorized)
			return
		}
		_, _ = w.Write(img)
	}))
}

func TestDigestAuthentication(t *testing.T) {
	img := encoded(t)[2]
	for challenge, newHash := range map[string]func() hash.Hash{
		"":                                    md5.New,
		`, algorithm=MD5, qop="auth"`:         md5.New,
		`, qop="auth-int, auth"`:              md5.New,
		`, algorithm=MD5-sess, qop="auth"`:    md5.New,
		`, algorithm=SHA-256, qop="auth"`:     sha256.New,
		`, algorithm="SHA-256-sess",qop=auth`: sha256.New,
	} {
		srv := digestServer(t, challenge, newHash, img)
		with := func(user string) string {
			return strings.Replace(srv.URL, "http://", "http://"+user+"@", 1) + "/cgi-bin/snap.jpg?channel=1"
		}
		s := &camera.Web{URL: with("root:se%23cr%40t"), FPS: 1000, Log: zerolog.Nop()}
		for i := range 6 {
			if got, err := s.Next(t.Context()); err != nil || !bytes.Equal(got.Data, img) {
				t.Errorf("challenge %q, image %d: %v", challenge, i, err)
				break
			}
		}
		_, err := (&camera.Web{URL: with("root:wrong"), FPS: 1000, Log: zerolog.Nop()}).Next(t.Context())
		if err == nil || !strings.Contains(err.Error(), "401") || strings.Contains(err.Error(), "wrong") {
			t.Errorf("challenge %q, a wrong password: %v", challenge, err)
		}
		_, err = (&camera.Web{URL: srv.URL, FPS: 1000, Log: zerolog.Nop()}).Next(t.Context())
		if err == nil || !strings.Contains(err.Error(), "user:password@") {
			t.Errorf("challenge %q, no password: %v", challenge, err)
		}
		srv.Close()
	}
}

// A password goes to the camera that was named, and to no other.
func TestAPasswordIsNotSentElsewhere(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" || strings.Contains(r.Header.Get("Referer"), "secret") {
			t.Errorf("%v was sent", r.Header)
		}
		http.Error(w, "who?", http.StatusUnauthorized)
	}))
	defer other.Close()
	named := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.URL, http.StatusFound)
	}))
	defer named.Close()
	s := &camera.Web{URL: strings.Replace(named.URL, "http://", "http://eye:secret@", 1) + "/?password=secret", FPS: 1000, Log: zerolog.Nop()}
	if _, err := s.Next(t.Context()); err == nil || strings.Contains(err.Error(), "secret") {
		t.Error(err)
	}
}

func TestCertificatesOfCameras(t *testing.T) {
	img := encoded(t)[2]
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(img) }))
	defer srv.Close()
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // what it says of those who do not trust it
	srv.StartTLS()
	ask := func(ca string, insecure bool) error {
		t.Helper()
		trust, err := camera.TLSConfig(ca, insecure)
		if err != nil {
			return err
		}
		got, err := (&camera.Web{URL: srv.URL + "/?pwd=secret", TLS: trust, FPS: 1000, Log: zerolog.Nop()}).Next(t.Context())
		if err == nil && !bytes.Equal(got.Data, img) {
			t.Error("another image came")
		}
		if err == nil && got.Name != srv.URL+"/?pwd=xxxxx" {
			t.Errorf("its name is %s", got.Name)
		}
		return err
	}
	if err := ask("", false); err == nil || !strings.Contains(err.Error(), "--ca") || !strings.Contains(err.Error(), "--insecure") || strings.Contains(err.Error(), "secret") {
		t.Errorf("nobody trusts it: %v", err)
	}
	if err := ask("", true); err != nil {
		t.Errorf("whoever it is: %v", err)
	}
	file := filepath.Join(t.TempDir(), "camera.pem")
	trust := func(certificate []byte) {
		t.Helper()
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	trust(srv.Certificate().Raw)
	if err := ask(file, false); err != nil {
		t.Errorf("its own certificate: %v", err)
	}
	// Cameras' own certificates name no address.
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	about := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "camera"}, NotAfter: time.Now().Add(time.Hour)}
	nameless, err := x509.CreateCertificate(rand.Reader, about, about, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	trust(nameless)
	if err := ask(file, false); err == nil || !strings.Contains(err.Error(), "--ca") {
		t.Errorf("another certificate: %v", err)
	}
	srv.TLS.Certificates = []tls.Certificate{{Certificate: [][]byte{nameless}, PrivateKey: key}}
	if err := ask(file, false); err != nil {
		t.Errorf("its own certificate, which names no address: %v", err)
	}
	if err := os.WriteFile(file, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ask(file, false); err == nil || !strings.Contains(err.Error(), "PEM") {
		t.Errorf("a file without certificates: %v", err)
	}
}
