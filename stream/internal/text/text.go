// Package text makes what came from outside fit for headers, logs and errors.
package text

import (
	"strings"
)

// Line makes s one line of text, as NATS headers must be.
func Line(s string) string {
	return strings.TrimSpace(strings.NewReplacer("\r", " ", "\n", " ", "\x00", " ").Replace(s))
}

// MaxToken bounds a subject token: stream, consumer and bucket names are made
// of them, and the file store turns those into file names.
const MaxToken = 64

// IsToken says whether s is 1 to 64 of [A-Za-z0-9_-].
func IsToken(s string) bool {
	return s != "" && len(s) <= MaxToken &&
		strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") == ""
}

// Clip shortens what came from outside before it goes into an error.
func Clip(s string) string {
	if len(s) > 80 {
		s = s[:80] + "…"
	}
	return s
}

// Short is what people see of a digest.
func Short(digest string) string {
	if len(digest) > 12 {
		return digest[:12]
	}
	return digest
}
