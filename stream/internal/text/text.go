// Package text makes what came from outside fit for headers, logs and errors.
package text

import (
	"strings"
)

// Line makes s one line of text, as NATS headers must be.
func Line(s string) string {
	return strings.TrimSpace(strings.NewReplacer("\r", " ", "\n", " ", "\x00", " ").Replace(s))
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
