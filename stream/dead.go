package stream

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/internal/redact"
	"github.com/nearmiss/nearmiss/stream/internal/scan"
	"github.com/nearmiss/nearmiss/stream/internal/text"
)

// Headers of a dead letter, besides those of the message that died. Its payload
// is that message's, so that it can be published again.
const (
	HeaderDeadCode       = "Nearmiss-Dead-Code"       // stable word, see the codes
	HeaderDeadReason     = "Nearmiss-Dead-Reason"     // sentence
	HeaderDeadSubject    = "Nearmiss-Dead-Subject"    // where it had been published
	HeaderDeadStream     = "Nearmiss-Dead-Stream"     // the stream that held it
	HeaderDeadSequence   = "Nearmiss-Dead-Sequence"   // its place there
	HeaderDeadDeliveries = "Nearmiss-Dead-Deliveries" // how often it was tried
	// HeaderDeadObject names the object with the payload of a message that was
	// too large to be published again with these headers.
	HeaderDeadObject = "Nearmiss-Dead-Object"
)

// DeadLetter is a message that could not be handled.
type DeadLetter struct {
	Sequence   uint64      `json:"sequence"` // in the dead letters
	At         time.Time   `json:"at"`
	Code       string      `json:"code"`
	Reason     string      `json:"reason"`
	Subject    string      `json:"subject"`
	Stream     string      `json:"stream"`
	OfSequence uint64      `json:"of_sequence"` // in that stream
	Deliveries int         `json:"deliveries"`
	Bytes      int         `json:"bytes"`
	Header     nats.Header `json:"-"`
	Data       []byte      `json:"-"`
}

// DeadMessage makes the dead letter of a message.
func DeadMessage(n Names, subject, stream string, seq uint64, deliveries int, h nats.Header, data []byte, code, reason string) *nats.Msg {
	m := nats.NewMsg(n.Dead(stream))
	for k, v := range h {
		// The broker's own headers are orders, not content; and a letter must fit
		// into a message, whatever its sender wrote on it.
		if !strings.HasPrefix(k, "Nats-") && len(m.Header) < maxDeadHeaders && validHeader(k, v) {
			m.Header[k] = v
		}
	}
	m.Data = data
	m.Header.Set(nats.MsgIdHdr, fmt.Sprintf("%s/%d", stream, seq))
	m.Header.Set(HeaderDeadCode, code)
	m.Header.Set(HeaderDeadReason, text.Line(reason))
	m.Header.Set(HeaderDeadSubject, subject)
	m.Header.Set(HeaderDeadStream, stream)
	m.Header.Set(HeaderDeadSequence, strconv.FormatUint(seq, 10))
	m.Header.Set(HeaderDeadDeliveries, strconv.Itoa(deliveries))
	return m
}

// maxDeadHeaders bounds the headers that a dead letter keeps of its message.
const maxDeadHeaders = 32

// validHeader says whether a header of a message can be a header of another.
func validHeader(k string, values []string) bool {
	if k == "" || len(k) > 64 || len(values) != 1 || len(values[0]) > maxHeader || values[0] != text.Line(values[0]) {
		return false
	}
	for i := range len(k) {
		if c := k[i]; c <= ' ' || c > '~' || c == ':' {
			return false
		}
	}
	return true
}

// ParseDeadLetter reads a dead letter.
func ParseDeadLetter(seq uint64, at time.Time, h nats.Header, data []byte) DeadLetter {
	d := DeadLetter{
		Sequence: seq, At: at, Header: h, Data: data, Bytes: len(data),
		Code: h.Get(HeaderDeadCode), Reason: h.Get(HeaderDeadReason),
		Subject: h.Get(HeaderDeadSubject), Stream: h.Get(HeaderDeadStream),
	}
	d.OfSequence, _ = strconv.ParseUint(h.Get(HeaderDeadSequence), 10, 64)
	d.Deliveries, _ = strconv.Atoi(h.Get(HeaderDeadDeliveries))
	return d
}

// DeadLetters returns up to limit of the newest dead letters, oldest first.
func (in *Installation) DeadLetters(ctx context.Context, limit int) ([]DeadLetter, error) {
	var all []DeadLetter
	err := scan.Run(ctx, in.js, in.names.DeadStream(), jetstream.OrderedConsumerConfig{FilterSubjects: []string{in.names.Dead("*")}}, func(m jetstream.Msg, meta *jetstream.MsgMetadata) error {
		all = append(all, ParseDeadLetter(meta.Sequence.Stream, meta.Timestamp.UTC(), m.Headers(), m.Data()))
		if limit > 0 && len(all) > limit {
			all = all[1:]
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read dead letters: %w", err)
	}
	return all, nil
}

// StoreDeadLetter stores a dead letter; a payload that no longer fits with the
// headers goes into an object.
func (in *Installation) StoreDeadLetter(ctx context.Context, m *nats.Msg) error {
	for _, k := range []string{HeaderSource, HeaderDeadReason} { // where a camera's password may stand
		if v := m.Header.Get(k); v != "" {
			m.Header.Set(k, redact.Text(v))
		}
	}
	_, err := in.js.PublishMsg(ctx, m)
	if !errors.Is(err, nats.ErrMaxPayload) {
		return err
	}
	store, err := in.js.ObjectStore(ctx, in.names.ImagesBucket())
	if err != nil {
		return err
	}
	name := "dead/" + m.Header.Get(HeaderDeadStream) + "-" + m.Header.Get(HeaderDeadSequence)
	if _, err := store.PutBytes(ctx, name, m.Data); err != nil {
		return err
	}
	m.Header.Set(HeaderDeadObject, name)
	m.Data = nil
	_, err = in.js.PublishMsg(ctx, m)
	return err
}
