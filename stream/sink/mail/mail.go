// Package mail sends notices by SMTP: one mail for each, in the thread of its
// incident and with the picture in it, or a digest of what came in a while.
package mail

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"html"
	"net/mail"
	"net/url"
	"strconv"
	"strings"
	"time"

	gomail "github.com/wneessen/go-mail"

	"github.com/nearmiss/nearmiss/internal/certs"
	"github.com/nearmiss/nearmiss/stream/sink"
)

// Kind is the name of this kind of sink.
const Kind = "mail"

// Config is the kind's configuration. The sink's secret is the user's password.
type Config struct {
	// URL is smtp://HOST[:587], which must encrypt (STARTTLS), or
	// smtps://HOST[:465], which does from the start.
	URL  string   `json:"url"`
	From string   `json:"from"` // an address, with or without a name
	To   []string `json:"to"`
	User string   `json:"user,omitempty"`
	// Auth is how the user signs in: plain, login or xoauth2; default: the best
	// that the server offers.
	Auth string `json:"auth,omitempty"`
	// Plain sends without encryption; it cannot be used with a password.
	Plain bool `json:"plain,omitempty"`
	// CAFile has the certificates that may have signed the server's.
	CAFile string `json:"ca_file,omitempty"`
	// Digest collects for so long, and sends one mail.
	Digest sink.Duration `json:"digest,omitzero"`
	// Link is the address of a page about an event; {event}, {incident},
	// {detector} and {camera} are filled in.
	Link string `json:"link,omitempty"`
	// Console is the console's address, as the receivers reach it: pictures that are
	// not in the mail, those of a digest and large ones, are linked there.
	Console string `json:"console,omitempty"`
	// NoPicture leaves the picture out, and the link to it.
	NoPicture bool `json:"no_picture,omitempty"`
}

// Limits.
const (
	timeOut    = 20 * time.Second
	maxPicture = 300 << 10 // bytes; a larger one is left out
	maxTo      = 100
)

// Opener makes the opener of mail sinks; pictures may be nil, and links where sinks
// are only checked.
func Opener(version string, pictures sink.Pictures, links *sink.Links) func(sink.Sink, string) (sink.Sender, error) {
	return func(s sink.Sink, secret string) (sink.Sender, error) {
		var c Config
		if err := s.Decode(&c); err != nil {
			return nil, fmt.Errorf("mail: %w", err)
		}
		if c.Console != "" {
			err := sink.CheckConsole(c.Console)
			if err == nil && links != nil {
				err = links.Check()
			}
			if err != nil {
				return nil, fmt.Errorf("mail: %w", err)
			}
		}
		out := &sender{cfg: c, version: version, pictures: pictures, links: links, password: secret}
		if _, err := out.client(); err != nil { // what cannot work says so now
			return nil, err
		}
		if len(c.To) == 0 || len(c.To) > maxTo {
			return nil, fmt.Errorf("mail: %d receivers: name 1 to %d in to", len(c.To), maxTo)
		}
		for _, a := range append([]string{c.From}, c.To...) {
			if _, err := mail.ParseAddress(a); err != nil {
				return nil, fmt.Errorf("mail: address %q: %w", a, err)
			}
		}
		return out, nil
	}
}

type sender struct {
	cfg      Config
	version  string
	pictures sink.Pictures
	links    *sink.Links
	password string
}

// client is a connection to be; nothing is dialled yet.
func (s *sender) client() (*gomail.Client, error) {
	u, err := url.Parse(s.cfg.URL)
	if err != nil || u.Hostname() == "" || u.Scheme != "smtp" && u.Scheme != "smtps" {
		return nil, errors.New("mail: the server's address is not smtp://HOST or smtps://HOST")
	}
	if u.User != nil {
		return nil, errors.New("mail: the server's address holds a password: name the user, and where the secret is")
	}
	port := 587
	opts := []gomail.Option{gomail.WithTimeout(timeOut), gomail.WithTLSPolicy(gomail.TLSMandatory)}
	switch {
	case u.Scheme == "smtps":
		port, opts = 465, append(opts, gomail.WithSSL())
	case s.cfg.Plain && s.cfg.User != "":
		return nil, errors.New("mail: plain would send the password in the clear")
	case s.cfg.Plain:
		opts = append(opts, gomail.WithTLSPolicy(gomail.NoTLS))
	}
	if u.Port() != "" {
		port, _ = strconv.Atoi(u.Port())
	}
	trust, err := certs.Client(s.cfg.CAFile, "", "")
	if err != nil {
		return nil, fmt.Errorf("mail: %w", err)
	}
	trust.ServerName = u.Hostname()
	opts = append(opts, gomail.WithPort(port), gomail.WithTLSConfig(trust))
	auths := map[string]gomail.SMTPAuthType{
		"": gomail.SMTPAuthAutoDiscover, "plain": gomail.SMTPAuthPlain, "login": gomail.SMTPAuthLogin, "xoauth2": gomail.SMTPAuthXOAUTH2,
	}
	auth, ok := auths[s.cfg.Auth]
	if !ok {
		return nil, fmt.Errorf("mail: auth %q: use plain, login or xoauth2", s.cfg.Auth)
	}
	if s.cfg.User != "" {
		opts = append(opts, gomail.WithSMTPAuth(auth), gomail.WithUsername(s.cfg.User), gomail.WithPassword(s.password))
	}
	c, err := gomail.NewClient(u.Hostname(), opts...)
	if err != nil {
		return nil, fmt.Errorf("mail: %w", err)
	}
	return c, nil
}

func (s *sender) Close() error { return nil }

// Every implements [sink.Digester].
func (s *sender) Every() time.Duration { return time.Duration(s.cfg.Digest) }

// messageID makes the id of a mail: the same at each try, so that mailboxes know
// it again.
func (s *sender) messageID(id string) string {
	sum := sha256.Sum256([]byte(id))
	host := s.cfg.From[strings.LastIndex(s.cfg.From, "@")+1:]
	return hex.EncodeToString(sum[:16]) + "@" + strings.TrimRight(host, "> ")
}

// message begins a mail.
func (s *sender) message(id, subject string) (*gomail.Msg, error) {
	m := gomail.NewMsg()
	if err := m.From(s.cfg.From); err != nil {
		return nil, &sink.Permanent{Err: fmt.Errorf("mail: %w", err)}
	}
	if err := m.To(s.cfg.To...); err != nil {
		return nil, &sink.Permanent{Err: fmt.Errorf("mail: %w", err)}
	}
	m.Subject(strings.Join(strings.Fields(subject), " "))
	m.SetMessageIDWithValue(s.messageID(id))
	m.SetDate()
	m.SetGenHeader("Auto-Submitted", "auto-generated")
	m.SetGenHeader("X-Auto-Response-Suppress", "All")
	m.SetUserAgent("nearmiss/" + s.version)
	return m, nil
}

// Send mails one notice.
func (s *sender) Send(ctx context.Context, n sink.Notice) error {
	title, text := n.Words()
	m, err := s.message(n.ID, title)
	if err != nil {
		return err
	}
	if i := n.Incident; i != nil && i.N > 0 { // the first of its incident begins the thread
		first := "<" + s.messageID(i.ID+"/0") + ">"
		m.SetGenHeader("In-Reply-To", first)
		m.SetGenHeader("References", first)
	}
	var picture []byte
	if !s.cfg.NoPicture {
		picture = s.pictures.Overlay(ctx, n.Event, maxPicture)
	}
	plain, rich := s.paragraph(n, title, text, picture != nil)
	m.SetBodyString(gomail.TypeTextPlain, plain)
	m.AddAlternativeString(gomail.TypeTextHTML, rich)
	if picture != nil {
		if err := m.EmbedReader(sink.Overlay, bytes.NewReader(picture), gomail.WithFileContentID("<"+sink.Overlay+">"), gomail.WithFileContentType("image/jpeg")); err != nil {
			return &sink.Permanent{Err: fmt.Errorf("mail: %w", err)}
		}
	}
	return s.send(ctx, m)
}

// SendAll mails a digest.
func (s *sender) SendAll(ctx context.Context, all []sink.Notice) error {
	ids := make([]string, 0, len(all))
	var plain, rich strings.Builder
	for _, n := range all {
		ids = append(ids, n.ID)
		title, text := n.Words()
		p, r := s.paragraph(n, title, text, false)
		plain.WriteString(p + "\n")
		rich.WriteString(r)
	}
	subject := fmt.Sprintf("%d events", len(all))
	if len(all) == 1 {
		subject, _ = all[0].Words()
	}
	m, err := s.message(strings.Join(ids, " "), subject)
	if err != nil {
		return err
	}
	m.SetBodyString(gomail.TypeTextPlain, plain.String())
	m.AddAlternativeString(gomail.TypeTextHTML, rich.String())
	return s.send(ctx, m)
}

// paragraph is a notice in words, plain and as HTML.
func (s *sender) paragraph(n sink.Notice, title, text string, picture bool) (plain, rich string) {
	when, link, shown := n.Event.ScoredAt.UTC().Format("2006-01-02 15:04:05 MST"), "", ""
	if s.cfg.Link != "" {
		link = n.Link(s.cfg.Link)
	}
	if s.cfg.Console != "" && !s.cfg.NoPicture && !picture {
		shown, _ = s.links.Picture(s.cfg.Console, n.Event, sink.Overlay) // an alarm is worth more than its picture
	}
	plain = strings.Join(strings.Fields(title), " ") + "\n"
	rich = "<p><b>" + html.EscapeString(title) + "</b>"
	for _, line := range []string{text, when, link, shown} {
		if line != "" {
			plain += line + "\n"
		}
	}
	if text != "" {
		rich += "<br>" + html.EscapeString(text)
	}
	rich += "<br>" + html.EscapeString(when)
	if link != "" {
		rich += `<br><a href="` + html.EscapeString(link) + `">` + html.EscapeString(link) + "</a>"
	}
	if shown != "" {
		rich += `<br><a href="` + html.EscapeString(shown) + `">the picture</a>`
	}
	rich += "</p>\n"
	if picture {
		rich += `<p><img src="cid:` + sink.Overlay + `" alt="the frame, with the strange places marked"></p>` + "\n"
	}
	return plain, rich
}

func (s *sender) send(ctx context.Context, m *gomail.Msg) error {
	c, err := s.client()
	if err != nil {
		return err
	}
	step, cancel := context.WithTimeout(ctx, timeOut)
	defer cancel()
	err = c.DialAndSendWithContext(step, m)
	var refused *gomail.SendError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refused) && refused.ErrorCode() >= 500 && !refused.IsTemp():
		return &sink.Permanent{Err: fmt.Errorf("mail: %w", err)}
	}
	return fmt.Errorf("mail: %w", err)
}

var _ sink.Digester = (*sender)(nil)
