// Package webhook sends notices by HTTP POST, signed as Standard Webhooks has
// it (specification 1.0), as a CloudEvent or in the words of a known receiver
// ([Presets]) or of a template.
package webhook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nearmiss/nearmiss/internal/certs"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/sink"
)

// Kind is the name of this kind of sink.
const Kind = "webhook"

// Config is the kind's configuration.
type Config struct {
	// URL of the receiver, http or https. Where its path or query is itself what
	// must not be known, as those of chats are, {secret} there stands for the secret.
	URL string `json:"url"`
	// Preset speaks a known receiver's language; see [Presets].
	Preset string `json:"preset,omitempty"`
	// Template makes the body (Go text/template); see [Presets] for examples of
	// what it can use.
	Template string `json:"template,omitempty"`
	// ContentType of a template's result. Default application/json, which the
	// result must then be.
	ContentType string `json:"content_type,omitempty"`
	// Mode of CloudEvents without preset and template: structured (default), or
	// binary: attributes in ce-… headers, data as the body.
	Mode string `json:"mode,omitempty"`
	// Headers are added to each request. Their values are not secret.
	Headers map[string]string `json:"headers,omitempty"`
	// Auth says what the secret is: signature (default; "whsec_…" as Standard
	// Webhooks has it, several separated by blanks while one is replaced), bearer
	// (a token) or routing_key (PagerDuty's, which the body has).
	Auth string `json:"auth,omitempty"`
	// CAFile has the certificates that may have signed the receiver's.
	CAFile string `json:"ca_file,omitempty"`
	// CertFile and KeyFile are the client's certificate.
	CertFile string `json:"cert_file,omitempty"`
	KeyFile  string `json:"key_file,omitempty"`
	// AllowLoopback lets the receiver be on this machine.
	AllowLoopback bool `json:"allow_loopback,omitempty"`
	// Link is the address of a page about an event; {event}, {incident},
	// {detector} and {camera} are filled in.
	Link string `json:"link,omitempty"`
	// Pictures is how the picture of an alarm goes with it: none (default);
	// inline, as base64 in a CloudEvent's extension picture and a template's
	// .Picture; multipart: a form with the body as its first part, named
	// payload_json for Discord and else event, and the picture as a file; or link:
	// the address of the picture at the console (see [sink.Links]) in a CloudEvent's
	// extension pictureurl and a template's .PictureURL. A picture of more than
	// 256 KiB is left out, but for links.
	Pictures string `json:"pictures,omitempty"`
	// Console is the console's address, as the receiver reaches it, in links.
	Console string `json:"console,omitempty"`
}

// Limits of requests and answers.
const (
	timeOut   = 15 * time.Second
	maxAnswer = 64 << 10
	maxBody   = 1 << 20
	perHost   = 20 // connections
)

// sender is an open webhook.
type sender struct {
	cfg    Config
	url    string // with the secret in it, where it is there
	names  stream.Names
	body   *body
	keys   [][]byte // of signatures, the newest first
	bearer string
	// routing is written into the body.
	routing  string
	pictures sink.Pictures
	links    *sink.Links
	client   *http.Client
	now      func() time.Time
	agent    string
}

// Opener makes the opener of webhooks for an installation; version is the
// program's. Pictures may be nil, and links where sinks are only checked.
func Opener(names stream.Names, version string, pictures sink.Pictures, links *sink.Links) func(sink.Sink, string) (sink.Sender, error) {
	return func(s sink.Sink, secret string) (sink.Sender, error) {
		return open(s, secret, names, version, pictures, links)
	}
}

func open(s sink.Sink, secret string, names stream.Names, version string, pictures sink.Pictures, links *sink.Links) (*sender, error) {
	var cfg Config
	if err := s.Decode(&cfg); err != nil {
		return nil, fmt.Errorf("webhook: %w", err)
	}
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.Pictures == "link" && links != nil {
		if err := links.Check(); err != nil {
			return nil, fmt.Errorf("webhook: pictures link: %w", err)
		}
	}
	b, err := newBody(cfg)
	if err != nil {
		return nil, err
	}
	out := &sender{cfg: cfg, url: cfg.URL, names: names, body: b, now: time.Now, agent: "nearmiss/" + version, pictures: pictures, links: links}
	switch {
	case secret == "":
	case strings.Contains(cfg.URL, inURL):
		if out.url, err = fill(cfg.URL, secret); err != nil {
			return nil, err
		}
	case cfg.Auth == "routing_key":
		out.routing = secret
	case cfg.Auth == "bearer":
		if strings.ContainsAny(secret, "\r\n") {
			return nil, errors.New("webhook: the token has several lines")
		}
		out.bearer = secret
	default:
		if out.keys, err = parseKeys(secret); err != nil {
			return nil, err
		}
	}
	if out.client, err = cfg.clientOf(newGuard(cfg.AllowLoopback)); err != nil {
		return nil, err
	}
	return out, nil
}

// inURL stands for the secret in a URL's path or query.
const inURL = "{secret}"

// fill puts the secret where the URL has its place, and nowhere else: it decides
// neither on the host nor on the scheme. Errors do not show it.
func fill(address, secret string) (string, error) {
	out := strings.ReplaceAll(address, inURL, secret)
	before, err1 := url.Parse(address)
	after, err2 := url.Parse(out)
	if err1 != nil || err2 != nil || before.Host != after.Host || before.Scheme != after.Scheme || after.User != nil {
		return "", errors.New("webhook: the secret does not fit into the URL's path or query")
	}
	return out, nil
}

func (c Config) validate() error {
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return errors.New("webhook: the URL is not http:// or https:// and a host") // not the URL: it may hold a token
	}
	if strings.Contains(u.Host, inURL) || strings.Contains(c.URL, inURL) && c.Auth != "" {
		return errors.New("webhook: {secret} is for the URL's path or query, and the request then has no other secret")
	}
	if u.User != nil {
		return errors.New("webhook: the URL holds a password: name it as the sink's secret, with auth bearer")
	}
	switch {
	case c.Mode != "" && c.Mode != "structured" && c.Mode != "binary":
		return fmt.Errorf("webhook: mode %q: use structured or binary", c.Mode)
	case c.Auth != "" && c.Auth != "signature" && c.Auth != "bearer" && c.Auth != "routing_key":
		return fmt.Errorf("webhook: auth %q: use signature, bearer or routing_key", c.Auth)
	case !slices.Contains([]string{"", "none", "inline", "multipart", "link"}, c.Pictures):
		return fmt.Errorf("webhook: pictures %q: use none, inline, multipart or link", c.Pictures)
	}
	if c.Pictures == "link" || c.Console != "" {
		if err := sink.CheckConsole(c.Console); err != nil {
			return fmt.Errorf("webhook: %w", err)
		}
	}
	for k, v := range c.Headers {
		if !token(k) || strings.ContainsAny(v, "\r\n\x00") {
			return fmt.Errorf("webhook: header %q cannot be sent", k)
		}
		switch strings.ToLower(k) {
		case "authorization", "proxy-authorization", "cookie":
			return fmt.Errorf("webhook: header %s is a secret: name it as the sink's secret, with auth bearer", k)
		case "host", "content-length", "transfer-encoding", "connection":
			return fmt.Errorf("webhook: header %s is not for configurations", k)
		}
	}
	return nil
}

// token says whether s can be the name of a header (RFC 9110, 5.6.2).
func token(s string) bool {
	for _, r := range s {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("!#$%&'*+-.^_`|~", r)) {
			return false
		}
	}
	return s != ""
}

func (c Config) clientOf(g guard) (*http.Client, error) {
	t, err := certs.Client(c.CAFile, c.CertFile, c.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("webhook: %w", err)
	}
	return &http.Client{
		Timeout: timeOut,
		// A redirect could lead anywhere, with the body and its signature.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext: g.dial, TLSClientConfig: t, ForceAttemptHTTP2: true,
			MaxConnsPerHost: perHost, MaxIdleConnsPerHost: perHost, IdleConnTimeout: time.Minute,
			TLSHandshakeTimeout: timeOut, ResponseHeaderTimeout: timeOut, MaxResponseHeaderBytes: maxAnswer,
		},
	}, nil
}

func (s *sender) Close() error {
	s.client.CloseIdleConnections()
	return nil
}

// Send posts one notice.
func (s *sender) Send(ctx context.Context, n sink.Notice) error {
	var form []byte // the picture in it
	var with shown
	switch s.cfg.Pictures {
	case "inline":
		with.picture = s.pictures.Overlay(ctx, n.Event, maxPicture)
	case "multipart":
		form = s.pictures.Overlay(ctx, n.Event, maxPicture)
	case "link":
		with.link, _ = s.links.Picture(s.cfg.Console, n.Event, sink.Overlay) // an alarm is worth more than its picture
	}
	text, contentType, extra, err := s.body.make(s.names, n, with)
	if err == nil && s.routing != "" {
		text, err = withRoutingKey(text, s.routing)
	}
	if err == nil && form != nil {
		text, contentType, err = inForm(s.cfg.Preset, n.ID, text, contentType, form)
	}
	if err != nil {
		return &sink.Permanent{Err: err}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader(text))
	if err != nil {
		return &sink.Permanent{Err: errors.New("webhook: the request could not be made")}
	}
	for k, v := range s.cfg.Headers {
		req.Header.Set(k, v)
	}
	for k, v := range extra {
		req.Header.Set(k, v)
	}
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("User-Agent", s.agent)
	stamp := strconv.FormatInt(s.now().Unix(), 10)
	req.Header.Set("webhook-id", n.ID)
	req.Header.Set("webhook-timestamp", stamp)
	if len(s.keys) > 0 {
		req.Header.Set("webhook-signature", sign(s.keys, n.ID, stamp, text))
	}
	if s.bearer != "" {
		req.Header.Set("Authorization", "Bearer "+s.bearer)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		if refused, ok := errors.AsType[*forbidden](err); ok {
			return &sink.Permanent{Err: refused}
		}
		var u *url.Error // says the URL, which may hold a token
		if errors.As(err, &u) {
			err = u.Err
		}
		return fmt.Errorf("webhook: %w", err)
	}
	defer resp.Body.Close()
	answer, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	return verdict(resp, answer)
}

// verdict says what an answer means.
func verdict(resp *http.Response, answer []byte) error {
	code := resp.StatusCode
	if code >= 200 && code < 300 {
		return nil
	}
	err := fmt.Errorf("webhook: the receiver answers %s: %s", resp.Status, short(answer))
	switch {
	case code == http.StatusGone:
		return &sink.Gone{Err: err}
	case code == http.StatusRequestTimeout, code == http.StatusTooEarly, code == http.StatusTooManyRequests, code >= 500:
		return &sink.Later{After: retryAfter(resp.Header.Get("Retry-After"), time.Now()), Err: err}
	case code >= 300 && code < 400:
		return &sink.Permanent{Err: fmt.Errorf("%w (redirects are not followed: configure the address that it leads to)", err)}
	default:
		return &sink.Permanent{Err: err}
	}
}

// retryAfter reads the header of that name (RFC 9110, 10.2.3): seconds or a date.
func retryAfter(s string, now time.Time) time.Duration {
	if n, err := strconv.Atoi(strings.TrimSpace(s)); err == nil && n > 0 {
		return time.Duration(min(n, 86400)) * time.Second
	}
	if at, err := http.ParseTime(s); err == nil && at.After(now) {
		return min(at.Sub(now), 24*time.Hour)
	}
	return 0
}

// short is the first 200 bytes of an answer, on one line.
func short(b []byte) string {
	if len(b) > 200 {
		b = b[:200]
	}
	return strings.Join(strings.Fields(strings.ToValidUTF8(string(b), "?")), " ")
}

// secretPrefix begins the secrets of Standard Webhooks.
const secretPrefix = "whsec_"

// NewSecret makes a secret of 256 random bits.
func NewSecret() (string, error) {
	b := make([]byte, 32)
	if _, err := rand.Read(b); err != nil {
		return "", fmt.Errorf("make a secret: %w", err)
	}
	return secretPrefix + base64.StdEncoding.EncodeToString(b), nil
}

// parseKeys reads secrets separated by blanks. Errors do not contain them.
func parseKeys(secret string) ([][]byte, error) {
	var keys [][]byte
	for s := range strings.FieldsSeq(secret) {
		raw, ok := strings.CutPrefix(s, secretPrefix)
		key, err := base64.StdEncoding.DecodeString(raw)
		if !ok || err != nil || len(key) < 24 || len(key) > 64 {
			return nil, errors.New("webhook: the secret is not whsec_ and 24 to 64 bytes in base64 (nearmiss sinks add makes one)")
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// sign makes the header webhook-signature (Standard Webhooks 1.0, symmetric).
func sign(keys [][]byte, id, stamp string, body []byte) string {
	var all []string
	for _, k := range keys {
		m := hmac.New(sha256.New, k)
		fmt.Fprintf(m, "%s.%s.", id, stamp)
		m.Write(body)
		all = append(all, "v1,"+base64.StdEncoding.EncodeToString(m.Sum(nil)))
	}
	return strings.Join(all, " ")
}
