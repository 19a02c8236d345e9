package camera

import (
	"context"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/icholy/digest"
)

// login asks for an address, with the authentication that its server wants:
// none, basic (RFC 7617) or digest (RFC 7616). The password is sent to that
// server only, and readable only where it asks for that.
type login struct {
	url    *url.URL // without user and password
	user   *url.Userinfo
	client *http.Client
	basic  bool
	digest *digest.Challenge
	count  int // requests with this challenge
}

func newLogin(address string, trust *tls.Config) (*login, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, cleanError(err, address)
	}
	l := &login{user: u.User}
	plain := *u
	plain.User = nil
	l.url = &plain
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = trust
	t.IdleConnTimeout = 30 * time.Second
	l.client = &http.Client{Transport: t, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		req.Header.Del("Referer") // it would tell the parameters
		if len(via) >= 5 {
			return errors.New("it redirects again and again")
		}
		if req.URL.Host != u.Host {
			req.Header.Del("Authorization")
		}
		return nil
	}}
	return l, nil
}

// hasUser says whether there is a user.
func (l *login) hasUser() bool { return l.user != nil && l.user.Username() != "" }

// get asks, and once more when the server wants to know who asks, or wants to
// know it anew.
func (l *login) get(ctx context.Context) (*http.Response, error) {
	resp, err := l.once(ctx, l.url)
	if err != nil || resp.StatusCode != http.StatusUnauthorized || !l.hasUser() || resp.Request.URL.Host != l.url.Host {
		return resp, err
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	resp.Body.Close()
	if err := l.choose(resp.Header.Values("WWW-Authenticate")); err != nil {
		return nil, err
	}
	return l.once(ctx, resp.Request.URL)
}

// choose takes the first digest challenge that it can answer, else basic
// authentication, which some servers expect without asking for it. It is not
// sent to a server that asks for a digest only.
func (l *login) choose(challenges []string) error {
	l.basic, l.digest, l.count = len(challenges) == 0, nil, 0
	var unknown string
	for _, text := range challenges {
		if !digest.IsDigest(text) {
			l.basic = true
			continue
		}
		c, err := digest.ParseChallenge(text)
		if err != nil {
			unknown = err.Error()
			continue
		}
		for i, q := range c.QOP {
			c.QOP[i] = strings.TrimSpace(q)
		}
		plain, _ := withoutSession(c)
		if !digest.CanDigest(plain) {
			unknown = c.Algorithm
			continue
		}
		l.digest, l.basic = c, false
		return nil
	}
	if !l.basic {
		return fmt.Errorf("it asks for digest authentication of a kind that is not known (%q)", unknown)
	}
	return nil
}

// withoutSession is a challenge of the algorithm behind one like MD5-sess, and
// whether it was one.
func withoutSession(c *digest.Challenge) (*digest.Challenge, bool) {
	plain := *c
	if name, ok := strings.CutSuffix(strings.ToLower(c.Algorithm), "-sess"); ok {
		plain.Algorithm = strings.ToUpper(name)
		return &plain, true
	}
	return &plain, false
}

// answer answers the digest challenge.
func (l *login) answer(uri, name, password string) (string, error) {
	l.count++
	c, session := withoutSession(l.digest)
	o := digest.Options{Method: http.MethodGet, URI: uri, Count: l.count, Username: name, Password: password}
	if session { // RFC 7616 3.4.2: A1 is of this session
		newHash := map[string]func() hash.Hash{"MD5": md5.New, "SHA-256": sha256.New, "SHA-512": sha512.New, "SHA-512-256": sha512.New512_256}[c.Algorithm]
		of := func(parts ...string) string {
			h := newHash()
			_, _ = io.WriteString(h, strings.Join(parts, ":"))
			return hex.EncodeToString(h.Sum(nil))
		}
		o.Cnonce = rand.Text()
		o.A1 = of(of(name, c.Realm, password), c.Nonce, o.Cnonce)
	}
	cred, err := digest.Digest(c, o)
	if err != nil {
		return "", err
	}
	cred.Algorithm = l.digest.Algorithm
	return cred.String(), nil
}

func (l *login) once(ctx context.Context, u *url.URL) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	name, password := l.user.Username(), ""
	if l.hasUser() {
		password, _ = l.user.Password()
	}
	switch {
	case l.basic:
		req.SetBasicAuth(name, password)
	case l.digest != nil:
		answer, err := l.answer(u.RequestURI(), name, password)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", answer)
	}
	return l.client.Do(req)
}
