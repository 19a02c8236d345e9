package access

import (
	"crypto/x509"
	"errors"
	"time"
)

// ExpirySoon is how long before a certificate's end it is time to renew it.
const ExpirySoon = 21 * 24 * time.Hour

// Expiry says when a certificate ends.
type Expiry struct {
	Name     string    `json:"name"`           // that the certificate was issued for
	File     string    `json:"file,omitempty"` // where it lies, if that is known
	NotAfter time.Time `json:"not_after"`
}

// Soon says whether the certificate has ended, or ends before long.
func (e Expiry) Soon(now time.Time) bool { return e.NotAfter.Before(now.Add(ExpirySoon)) }

// Days are the whole days that are left, negative after the end.
func (e Expiry) Days(now time.Time) int {
	left := e.NotAfter.Sub(now)
	if left < 0 {
		left -= 24*time.Hour - 1 // down
	}
	return int(left / (24 * time.Hour))
}

// ExpiryOf says when a certificate ends that another end has shown.
func ExpiryOf(c *x509.Certificate) Expiry {
	return Expiry{Name: c.Subject.CommonName, NotAfter: c.NotAfter.UTC()}
}

// Expiries are the ends of the certificates of one end of a connection, its own and
// its authority's, as the files have them now. Those that cannot be read are in the
// error.
func (f TLSFiles) Expiries() ([]Expiry, error) {
	var all []Expiry
	var errs []error
	for _, file := range []string{f.Cert, f.CA} {
		if file == "" {
			continue
		}
		c, err := ReadCert(file)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		e := ExpiryOf(c)
		e.File = file
		all = append(all, e)
	}
	return all, errors.Join(errs...)
}
