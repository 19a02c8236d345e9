package access

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
)

// How long certificates are good.
const (
	caLife   = 10 * 365 * 24 * time.Hour
	leafLife = 397 * 24 * time.Hour // the most that common clients take of a server
)

// CA is a certificate authority in a folder: ca.key (readable by its owner
// only) and ca.crt. ca.crt may hold several certificates, the newest first: the
// others are authorities before it that are still trusted.
//
// What writes a key and its certificate waits for other programs that do, until ctx ends:
// of two at once the key would be the one's, the certificate the other's.
type CA struct{ dir string }

// OpenCA names the folder; nothing is read yet.
func OpenCA(dir string) CA { return CA{dir} }

func (c CA) keyFile() string { return filepath.Join(c.dir, "ca.key") }

// CertFile is what others need in order to trust this CA.
func (c CA) CertFile() string { return filepath.Join(c.dir, "ca.crt") }

// Create makes key and certificate. With replace, an authority that is there
// gives way to a new one, and stays trusted in ca.crt: renew every certificate,
// give everybody the new ca.crt before that.
func (c CA) Create(ctx context.Context, name string, replace bool, now time.Time) error {
	unlock, err := lock(ctx, c.CertFile())
	if err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	defer unlock()
	before, err := os.ReadFile(c.CertFile())
	switch {
	case err == nil && !replace:
		return fmt.Errorf("%s is there already: --replace makes a new authority and keeps the old one trusted", c.CertFile())
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("tls: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("tls: make a key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(caLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return fmt.Errorf("tls: make a certificate: %w", err)
	}
	if err := writeKey(c.keyFile(), key); err != nil {
		return err
	}
	return writeCerts(c.CertFile(), append(certPEM(der), before...))
}

// Issue makes a certificate for name and its key: dir/name.crt, which has the
// authority's certificate behind it, and dir/name.key. server certificates are
// good for the given host names and addresses, client certificates for none.
func (c CA) Issue(ctx context.Context, dir, name string, server bool, hosts []string, now time.Time) error {
	if name == "" || name != filepath.Base(name) || name[0] == '.' || name == "ca" {
		return fmt.Errorf("tls: %q cannot name a certificate: use a plain file name other than ca", name)
	}
	if server && len(hosts) == 0 {
		return errors.New("tls: a server's certificate needs the host names or addresses that clients use (--san)")
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if server {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	return c.sign(ctx, filepath.Join(dir, name), template, now)
}

// Renew makes the certificate in certFile anew: same names, same use, another
// key, which is written beside it.
func (c CA) Renew(ctx context.Context, certFile string, now time.Time) error {
	old, err := ReadCert(certFile)
	if err != nil {
		return err
	}
	if old.IsCA {
		return fmt.Errorf("tls: %s is an authority: use nearmiss tls ca --replace", certFile)
	}
	template := &x509.Certificate{
		Subject: old.Subject, BasicConstraintsValid: true,
		KeyUsage: old.KeyUsage, ExtKeyUsage: old.ExtKeyUsage,
		IPAddresses: old.IPAddresses, DNSNames: old.DNSNames,
	}
	return c.sign(ctx, certFile[:len(certFile)-len(filepath.Ext(certFile))], template, now)
}

func (c CA) sign(ctx context.Context, path string, template *x509.Certificate, now time.Time) error {
	pair, err := tls.LoadX509KeyPair(c.CertFile(), c.keyFile())
	if err != nil {
		if _, absent := os.Stat(c.CertFile()); errors.Is(absent, fs.ErrNotExist) {
			return fmt.Errorf("tls: %w (make the authority first: nearmiss tls ca)", err)
		}
		return fmt.Errorf("tls: authority %s with key %s: %w", c.CertFile(), c.keyFile(), err)
	}
	ca := pair.Leaf
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("tls: make a key: %w", err)
	}
	template.SerialNumber, template.NotBefore, template.NotAfter = serial(), now.Add(-time.Hour), now.Add(leafLife)
	der, err := x509.CreateCertificate(rand.Reader, template, ca, key.Public(), pair.PrivateKey)
	if err != nil {
		return fmt.Errorf("tls: make a certificate: %w", err)
	}
	unlock, err := lock(ctx, path)
	if err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	defer unlock()
	// The certificate last: a listener that reads between the two writes finds a
	// key that does not fit, keeps what it has, and looks again when the
	// certificate has changed.
	if err := writeKey(path+".key", key); err != nil {
		return err
	}
	return writeCerts(path+".crt", append(certPEM(der), certPEM(ca.Raw)...))
}

// ReadCert reads the first certificate of a PEM file.
func ReadCert(path string) (*x509.Certificate, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("tls: %s: %w", path, err)
		}
		return c, nil
	}
	return nil, fmt.Errorf("tls: %s has no certificate in PEM", path)
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	if err := renameio.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	return nil
}

func writeCerts(path string, b []byte) error {
	if err := renameio.WriteFile(path, b, 0o644); err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	return nil
}

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// serial is a random positive number of 127 bits.
func serial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		panic(err) // crypto/rand does not fail
	}
	return n
}
