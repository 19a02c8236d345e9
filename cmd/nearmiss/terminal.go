package main

import (
	"bytes"
	"io"
	"regexp"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/nearmiss/nearmiss/internal/redact"
)

// A terminal obeys what is printed. Names, reasons and sources come from whoever
// may publish, so that all output goes through here: what a terminal could take
// for an order comes out as U+FFFD.

// printable returns s without control characters other than line ends and tabs,
// and without the ones that turn the direction of text.
func printable(s string) string {
	if strings.IndexFunc(s, order) < 0 && utf8.ValidString(s) {
		return s
	}
	return strings.Map(func(r rune) rune {
		if order(r) {
			return utf8.RuneError
		}
		return r
	}, strings.ToValidUTF8(s, string(utf8.RuneError)))
}

// order says whether a terminal may act on r instead of showing it.
func order(r rune) bool {
	switch {
	case r == '\n', r == '\t':
		return false
	case r < 0x20, r >= 0x7f && r <= 0x9f: // C0, DEL, C1
		return true
	case r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069: // bidirectional
		return true
	}
	return r == 0x2028 || r == 0x2029 // line and paragraph separator
}

// edge is the last writer before standard output or standard error.
type edge struct {
	w      io.Writer
	redact bool // also take credentials out of addresses

	mu   sync.Mutex
	held []byte // beginning of a character that the next write ends
}

func (e *edge) Write(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	b := append(e.held, p...)
	whole := len(b)
	for i := 1; i < utf8.UTFMax && i <= len(b); i++ {
		if utf8.RuneStart(b[len(b)-i]) {
			if !utf8.FullRune(b[len(b)-i:]) {
				whole = len(b) - i
			}
			break
		}
	}
	s := printable(string(b[:whole]))
	e.held = append([]byte(nil), b[whole:]...)
	if e.redact {
		s = redact.Text(s)
	}
	if _, err := io.WriteString(e.w, s); err != nil {
		return 0, err
	}
	return len(p), nil
}

// escapedOrder is a control character as JSON has it.
var escapedOrder = regexp.MustCompile(`(?i)\\u00(?:0[0-8bcef]|1[0-9a-f]|7f|[89][0-9a-f])|\\u20(?:2[89a-e])|\\u206[6-9]|\\[bfr]`)

// logEdge is the writer that log lines, JSON at this point, go through before
// they are made text for a terminal.
type logEdge struct{ w io.Writer }

func (e logEdge) Write(p []byte) (int, error) {
	line := redact.Text(printable(string(p)))
	if strings.Contains(line, `\`) {
		// An escaped backslash is no beginning of an escape.
		parts := bytes.Split([]byte(line), []byte(`\\`))
		for i := range parts {
			parts[i] = escapedOrder.ReplaceAll(parts[i], []byte(`\ufffd`))
		}
		line = string(bytes.Join(parts, []byte(`\\`)))
	}
	if _, err := io.WriteString(e.w, line); err != nil {
		return 0, err
	}
	return len(p), nil
}
