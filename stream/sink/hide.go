package sink

import (
	"context"
	"strings"
)

// hider takes a sink's secret out of errors: a receiver may answer with what it
// was sent, and answers are logged, shown and kept in dead letters.
type hider []string

func newHider(secret string) (h hider) {
	for _, part := range append(strings.Fields(secret), secret) {
		if len(part) >= 4 { // shorter ones hide words
			h = append(h, part)
		}
	}
	return h
}

// hide returns err, with another text where that has the secret.
func (h hider) hide(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	for _, part := range h {
		text = strings.ReplaceAll(text, part, "(secret)")
	}
	if text == err.Error() {
		return err
	}
	return &hidden{text, err}
}

type hidden struct {
	text string
	err  error
}

func (e *hidden) Error() string { return e.text }
func (e *hidden) Unwrap() error { return e.err }

// guarded is a sender whose errors do not show its secret.
type guarded struct {
	Sender
	hider
}

func (g guarded) Send(ctx context.Context, n Notice) error { return g.hide(g.Sender.Send(ctx, n)) }
