package access

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
)

// ClientCerts is what a listener asks of clients' certificates.
type ClientCerts string

// What a listener asks.
const (
	ClientCertsNone     ClientCerts = ""         // nothing
	ClientCertsOptional ClientCerts = "optional" // a certificate that is shown must be of the CA
	ClientCertsRequired ClientCerts = "required" // no connection without one
)

// TLSFiles are the PEM files of one end of a connection.
type TLSFiles struct {
	// CA has the certificates that the other end's may be signed by. On a
	// client, empty means the system's.
	CA string
	// Cert and Key are this end's own.
	Cert, Key string
	// Verify is what a listener asks of clients.
	Verify ClientCerts
}

// On says whether a listener with these files speaks TLS.
func (f TLSFiles) On() bool { return f.Cert != "" || f.Key != "" || f.CA != "" || f.Verify != "" }

// Validate reports what cannot work, without reading the files.
func (f TLSFiles) Validate() error {
	var errs []error
	if (f.Cert == "") != (f.Key == "") {
		errs = append(errs, errors.New("tls: a certificate needs its key and a key its certificate"))
	}
	switch f.Verify {
	case ClientCertsNone, ClientCertsOptional, ClientCertsRequired:
	default:
		errs = append(errs, fmt.Errorf("tls: verify is %q: use %q, %q or leave it out", f.Verify, ClientCertsOptional, ClientCertsRequired))
	}
	if f.Verify != ClientCertsNone && f.CA == "" {
		errs = append(errs, errors.New("tls: checking clients' certificates needs the file of the CA that signed them"))
	}
	return errors.Join(errs...)
}

// Server makes the configuration of a listener. Each handshake looks whether
// the files have changed, so that a renewed certificate or another CA is in
// force at once and no connection is dropped; new files that cannot be used are
// given to report, and the ones before stay in force.
func (f TLSFiles) Server(report func(error)) (*tls.Config, error) {
	if f.Cert == "" {
		return nil, errors.New("tls: a listener needs a certificate and its key: see nearmiss tls issue server")
	}
	if err := f.Validate(); err != nil {
		return nil, err
	}
	l := &reloading{files: f, report: report}
	if err := l.load(); err != nil {
		return nil, err
	}
	c := l.current.Clone()
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return l.get(), nil }
	return c, nil
}

// reloading keeps a listener's configuration in step with its files.
type reloading struct {
	files  TLSFiles
	report func(error)

	mu      sync.Mutex
	stamp   [3]os.FileInfo // the files that current was made of
	current *tls.Config
}

func (l *reloading) get() *tls.Config {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed() {
		if err := l.load(); err != nil {
			l.stamp = l.stamps() // once for each change
			l.report(err)
		}
	}
	return l.current
}

func (l *reloading) stamps() (s [3]os.FileInfo) {
	for i, path := range []string{l.files.CA, l.files.Cert, l.files.Key} {
		if st, err := os.Stat(path); err == nil {
			s[i] = st
		}
	}
	return s
}

func (l *reloading) changed() bool {
	for i, now := range l.stamps() {
		before := l.stamp[i]
		switch {
		case now == nil && before == nil:
		case now == nil || before == nil, !os.SameFile(now, before), now.Size() != before.Size(), !now.ModTime().Equal(before.ModTime()):
			return true
		}
	}
	return false
}

func (l *reloading) load() error {
	stamp := l.stamps()
	pair, err := tls.LoadX509KeyPair(l.files.Cert, l.files.Key)
	if err != nil {
		return fmt.Errorf("tls: certificate %s with key %s: %w", l.files.Cert, l.files.Key, err)
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
	if l.files.CA != "" {
		if c.ClientCAs, err = pool(l.files.CA); err != nil {
			return err
		}
	}
	switch l.files.Verify {
	case ClientCertsOptional:
		c.ClientAuth = tls.VerifyClientCertIfGiven
	case ClientCertsRequired:
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	l.current, l.stamp = c, stamp
	return nil
}

// pool reads a file of CA certificates.
func pool(path string) (*x509.CertPool, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("tls: %s has no certificate in PEM", path)
	}
	return p, nil
}
