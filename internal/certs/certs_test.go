package certs_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nearmiss/nearmiss/internal/certs"
)

func write(t *testing.T, name, kind string, der []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A server is believed by its authority only, and gets the client's certificate.
func TestBothSidesProveWhoTheyAre(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	own := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, own, own, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert, keyFile := write(t, "cert.pem", "CERTIFICATE", der), write(t, "key.pem", "EC PRIVATE KEY", private)

	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	srv.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	srv.StartTLS()
	defer srv.Close()
	ca := write(t, "ca.pem", "CERTIFICATE", srv.Certificate().Raw)
	for name, c := range map[string]struct {
		ca, cert, key string
		ok            bool
	}{
		"both":                 {ca, cert, keyFile, true},
		"another authority":    {cert, cert, keyFile, false},
		"the system's":         {"", cert, keyFile, false},
		"the client is nobody": {ca, "", "", false},
	} {
		conf, err := certs.Client(c.ca, c.cert, c.key)
		if err != nil {
			t.Fatal(err)
		}
		h := &http.Client{Transport: &http.Transport{TLSClientConfig: conf}}
		resp, err := h.Get(srv.URL)
		if err == nil {
			resp.Body.Close()
		}
		h.CloseIdleConnections()
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFilesThatCannotBeUsedAreRefused(t *testing.T) {
	other := write(t, "other.pem", "SOMETHING", nil)
	for name, f := range map[string][3]string{
		"no such authorities": {"nowhere.pem", "", ""},
		"none in the file":    {other, "", ""},
		"no key":              {"", other, ""},
		"no certificate":      {"", "", other},
		"not a pair":          {"", other, other},
	} {
		if _, err := certs.Client(f[0], f[1], f[2]); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
