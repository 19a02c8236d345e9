package access_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nearmiss/nearmiss/stream/access"
)

// authority is a CA with a server's and a client's certificate in dir.
func authority(t testing.TB, dir string, now time.Time) access.CA {
	t.Helper()
	ca := access.OpenCA(dir)
	must(t, ca.Create(t.Context(), "test", false, now))
	must(t, ca.Issue(t.Context(), dir, "server", true, []string{"localhost", "127.0.0.1"}, now))
	must(t, ca.Issue(t.Context(), dir, "client", false, nil, now))
	return ca
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// listen answers every handshake until the test ends.
func listen(t testing.TB, c *tls.Config) string {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", c)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if conn.(*tls.Conn).Handshake() == nil {
					_, _ = conn.Write([]byte("ok"))
				}
			}()
		}
	}()
	return l.Addr().String()
}

// shake connects, trusting the CA in caFile, and reads the two bytes.
func shake(t testing.TB, addr, name, caFile string, cert ...string) error {
	t.Helper()
	pem, err := os.ReadFile(caFile)
	must(t, err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	c := &tls.Config{RootCAs: roots, ServerName: name}
	if len(cert) == 2 {
		pair, err := tls.LoadX509KeyPair(cert[0], cert[1])
		must(t, err)
		c.Certificates = []tls.Certificate{pair}
	}
	conn, err := tls.Dial("tcp", addr, c)
	if err != nil {
		return err
	}
	defer conn.Close()
	must(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	_, err = conn.Read(make([]byte, 2))
	return err
}

func TestListenersTakeWhomTheyShould(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	now := time.Now()
	authority(t, dir, now)
	authority(t, other, now)
	in := func(dir, name string) string { return filepath.Join(dir, name) }
	files := access.TLSFiles{CA: in(dir, "ca.crt"), Cert: in(dir, "server.crt"), Key: in(dir, "server.key"), Verify: access.ClientCertsRequired}
	c, err := files.Server(func(err error) { t.Error(err) })
	must(t, err)
	addr := listen(t, c)
	mine := []string{in(dir, "client.crt"), in(dir, "client.key")}
	if err := shake(t, addr, "localhost", in(dir, "ca.crt"), mine...); err != nil {
		t.Errorf("a client with its certificate: %v", err)
	}
	if shake(t, addr, "localhost", in(dir, "ca.crt")) == nil {
		t.Error("a client without a certificate was taken")
	}
	if shake(t, addr, "localhost", in(dir, "ca.crt"), in(other, "client.crt"), in(other, "client.key")) == nil {
		t.Error("a client of another CA was taken")
	}
	if shake(t, addr, "localhost", in(dir, "ca.crt"), in(dir, "server.crt"), in(dir, "server.key")) == nil {
		t.Error("a server's certificate was taken for a client's")
	}
	var unknown x509.UnknownAuthorityError
	if err := shake(t, addr, "localhost", in(other, "ca.crt"), mine...); !errors.As(err, &unknown) {
		t.Errorf("a client that trusts another CA: %v", err)
	}
	var host x509.HostnameError
	if err := shake(t, addr, "elsewhere", in(dir, "ca.crt"), mine...); !errors.As(err, &host) {
		t.Errorf("a client that asked for another name: %v", err)
	}
}

func TestExpiredCertificatesAreRefused(t *testing.T) {
	dir := t.TempDir()
	authority(t, dir, time.Now().Add(-400*24*time.Hour))
	c, err := access.TLSFiles{Cert: filepath.Join(dir, "server.crt"), Key: filepath.Join(dir, "server.key")}.Server(nil)
	must(t, err)
	err = shake(t, listen(t, c), "localhost", filepath.Join(dir, "ca.crt"))
	if err == nil || !strings.Contains(err.Error(), "expired") {
		t.Fatalf("%v", err)
	}
}

// A renewed certificate and a new CA are in force at the next handshake; files
// that cannot be used change nothing.
func TestCertificatesChangeWhileListening(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	ca := authority(t, dir, now)
	in := func(name string) string { return filepath.Join(dir, name) }
	reports := make(chan error, 10)
	c, err := access.TLSFiles{Cert: in("server.crt"), Key: in("server.key")}.Server(func(err error) { reports <- err })
	must(t, err)
	addr := listen(t, c)
	before, err := os.ReadFile(in("ca.crt"))
	must(t, err)

	must(t, ca.Renew(t.Context(), in("server.crt"), now))
	must(t, shake(t, addr, "localhost", in("ca.crt")))

	must(t, ca.Create(t.Context(), "second", true, now))
	must(t, shake(t, addr, "localhost", in("ca.crt"))) // still the first CA's certificate, which is still trusted
	must(t, ca.Renew(t.Context(), in("server.crt"), now))
	must(t, shake(t, addr, "localhost", in("ca.crt")))
	must(t, os.WriteFile(in("old.crt"), before, 0o600))
	if shake(t, addr, "localhost", in("old.crt")) == nil {
		t.Fatal("who trusts the first CA alone takes the second's certificate")
	}
	must(t, os.WriteFile(in("server.crt"), []byte("nothing"), 0o600))
	must(t, shake(t, addr, "localhost", in("ca.crt")))
	select {
	case <-reports:
	default:
		t.Fatal("a certificate that cannot be used was not reported")
	}
}

// TestACertificateIsRenewedAtOnce by several programs, and has its key afterwards.
func TestACertificateIsRenewedAtOnce(t *testing.T) {
	dir := t.TempDir()
	ca := authority(t, dir, time.Now())
	cert, key := filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key")
	for range 10 {
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				if err := ca.Renew(t.Context(), cert, time.Now()); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if _, err := tls.LoadX509KeyPair(cert, key); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCAsAreNotLostByMistake(t *testing.T) {
	dir := t.TempDir()
	ca := authority(t, dir, time.Now())
	if err := ca.Create(t.Context(), "again", false, time.Now()); err == nil || !strings.Contains(err.Error(), "--replace") {
		t.Errorf("a second CA: %v", err)
	}
	if st, err := os.Stat(filepath.Join(dir, "ca.key")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("key: %v, %v", st, err)
	}
	// Only who has no authority is told to make one: a new one has everybody renew.
	for kind, make := range map[string]func(dir string) error{
		"no authority": func(string) error { return nil },
		"no key":       func(other string) error { return os.Remove(filepath.Join(other, "ca.key")) },
		"another key": func(other string) error {
			key, err := os.ReadFile(filepath.Join(dir, "ca.key"))
			return errors.Join(err, os.WriteFile(filepath.Join(other, "ca.key"), key, 0o600))
		},
	} {
		other := access.OpenCA(t.TempDir())
		if kind != "no authority" {
			must(t, other.Create(t.Context(), "other", false, time.Now()))
		}
		must(t, make(filepath.Dir(other.CertFile())))
		err := other.Issue(t.Context(), t.TempDir(), "client", false, nil, time.Now())
		if err == nil || strings.Contains(err.Error(), "nearmiss tls ca") != (kind == "no authority") {
			t.Errorf("%s: %v", kind, err)
		}
	}
	for _, name := range []string{"", "../x", "ca", ".hidden"} {
		if ca.Issue(t.Context(), dir, name, false, nil, time.Now()) == nil {
			t.Errorf("a certificate called %q was made", name)
		}
	}
	if ca.Issue(t.Context(), dir, "s", true, nil, time.Now()) == nil {
		t.Error("a server's certificate for no host was made")
	}
	c, err := access.ReadCert(filepath.Join(dir, "server.crt"))
	must(t, err)
	if c.VerifyHostname("127.0.0.1") != nil || c.VerifyHostname("localhost") != nil || !c.NotAfter.After(time.Now().Add(396*24*time.Hour)) {
		t.Errorf("%v %v %v", c.DNSNames, c.IPAddresses, c.NotAfter)
	}
}
