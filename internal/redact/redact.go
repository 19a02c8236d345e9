// Package redact takes credentials out of what people and subscribers see:
// addresses of brokers and cameras travel in logs, errors and events.
package redact

import (
	"regexp"
	"strings"
)

// placeholder stands in the place of a secret, as net/url's Redacted has it.
const placeholder = "xxxxx"

var (
	// address is a URL up to what cannot be of it. A password that was not escaped
	// may hold nearly anything.
	address = regexp.MustCompile(`[A-Za-z][A-Za-z0-9+.-]*://[^\s"'<>` + "`" + `\x00-\x1f]+`)
	// secret is a parameter whose name says that its value is one, in a query or,
	// as some cameras have it, in a path.
	secret = regexp.MustCompile(`(?i)([?&;/_]|%3f|%26)([a-z0-9_.-]*?(?:pass|pwd|passwd|psw|token|secret|apikey|api_key|api-key|access_key|accesskey|auth|signature|credential|session)[a-z0-9_.-]*|key|sig|sid|pw)(=|%3d)([^&;\s"'<>]+)`)
)

// Text returns s with the passwords and tokens of every URL in it replaced. It
// rather takes away too much: a URL whose password was not escaped (#, @ and /
// stand in many) is cut where the password may end.
func Text(s string) string {
	if !strings.Contains(s, "://") {
		return s
	}
	return address.ReplaceAllStringFunc(s, one)
}

// one redacts one URL.
func one(s string) string {
	scheme, rest, _ := strings.Cut(s, "://")
	if user, host, ok := split(rest); ok {
		name, _, hasPassword := strings.Cut(user, ":")
		if hasPassword && name != "" {
			rest = name + ":" + placeholder + "@" + host
		} else {
			rest = placeholder + "@" + host // a token, or a password alone
		}
	}
	return scheme + "://" + secret.ReplaceAllString(rest, "${1}${2}${3}"+placeholder)
}

// split finds where the user and the password of a URL end, without its scheme.
func split(rest string) (user, host string, ok bool) {
	last := strings.LastIndexByte(rest, '@')
	if last < 0 {
		return "", "", false
	}
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	authority := rest[:end]
	if at := strings.LastIndexByte(authority, '@'); at >= 0 && (last == at || isHost(authority[at+1:]) && strings.ContainsAny(authority[at+1:], ".:")) {
		return rest[:at], rest[at+1:], true
	} else if at < 0 && isHost(authority) {
		return "", "", false // the @ is of the path or the query
	}
	return rest[:last], rest[last+1:], true
}

// isHost says whether s looks like a host's name or address with a port, rather
// than like a piece of a password.
func isHost(s string) bool {
	name, port, hasPort := strings.Cut(s, ":")
	if strings.HasPrefix(s, "[") {
		return strings.Contains(s, "]")
	}
	if strings.Trim(port, "0123456789") != "" || hasPort && port == "" {
		return false
	}
	if name == "" || strings.Trim(strings.ToLower(name), "abcdefghijklmnopqrstuvwxyz0123456789.-_") != "" {
		return false
	}
	return !hasPort || name == "localhost" || strings.Contains(name, ".")
}

// Error is err with the text that [Text] makes of its own.
func Error(err error) error {
	if err == nil || Text(err.Error()) == err.Error() {
		return err
	}
	return redacted{err}
}

type redacted struct{ error }

func (e redacted) Error() string { return Text(e.error.Error()) }
func (e redacted) Unwrap() error { return e.error }
