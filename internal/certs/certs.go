// Package certs reads the files of certificates that the configurations of
// clients name.
package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// Client is how a client speaks TLS: caFile has the certificates that may have
// signed the server's, in PEM; certFile and keyFile are the client's own
// certificate. Empty are the system's authorities and no certificate.
func Client(caFile, certFile, keyFile string) (*tls.Config, error) {
	if (certFile == "") != (keyFile == "") {
		return nil, errors.New("a client certificate needs its key and a key its certificate")
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile != "" {
		b, err := os.ReadFile(caFile)
		if err != nil {
			return nil, err
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("%s has no certificate in PEM", caFile)
		}
	}
	if certFile != "" {
		pair, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return nil, fmt.Errorf("certificate %s: %w", certFile, err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}
