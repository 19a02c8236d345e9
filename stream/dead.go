package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/redact"
	"github.com/nearmiss/nearmiss/stream/internal/pull"
	"github.com/nearmiss/nearmiss/stream/internal/scan"
	"github.com/nearmiss/nearmiss/stream/internal/text"
	"github.com/nearmiss/nearmiss/stream/internal/wait"
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

// parseDead reads a dead letter.
func parseDead(seq uint64, at time.Time, h nats.Header, data []byte) DeadLetter {
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
		all = append(all, parseDead(meta.Sequence.Stream, meta.Timestamp.UTC(), m.Headers(), m.Data()))
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

// deadLetterMover moves what exceeded its deliveries from a work queue to the dead
// letters: the server leaves such messages in the stream, where nobody sees
// them. It works from the stored advisories, so that none is missed while no
// process runs.
type deadLetterMover struct {
	in  *Installation
	log zerolog.Logger
	// moved is told of each message before it is removed; an error leaves it
	// for later.
	moved func(ctx context.Context, m *jetstream.RawStreamMsg, d DeadLetter) error
}

// run handles the advisories about one work queue until ctx ends.
func (u *deadLetterMover) run(ctx context.Context, queue string) {
	for ctx.Err() == nil {
		err := u.work(ctx, queue)
		if err != nil && ctx.Err() == nil {
			u.log.Warn().Err(err).Str("stream", queue).Msg("dead letters wait")
			wait.Pause(ctx, time.Second)
		}
	}
}

func (u *deadLetterMover) work(ctx context.Context, queue string) error {
	cons, err := u.in.js.CreateOrUpdateConsumer(ctx, u.in.names.DeadStream(), jetstream.ConsumerConfig{
		Durable: "advisories-" + queue, Description: "moves what was delivered too often to the dead letters",
		FilterSubject: advisoryMaxDeliver + queue + ".*", AckPolicy: jetstream.AckExplicitPolicy,
		AckWait: 30 * time.Second, MaxAckPending: 64,
	})
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		msgs, err := pull.Fetch(ctx, cons, 16)
		if err != nil {
			return err
		}
		for _, m := range msgs {
			if err := u.move(ctx, queue, m); err != nil {
				_ = m.NakWithDelay(time.Second)
				return err
			}
			if err := m.DoubleAck(ctx); err != nil {
				return err
			}
			if meta, err := m.Metadata(); err == nil {
				// The advisory has served; only the dead letter is kept.
				if s, err := u.in.js.Stream(ctx, u.in.names.DeadStream()); err == nil {
					_ = s.DeleteMsg(ctx, meta.Sequence.Stream)
				}
			}
		}
	}
	return nil
}

func (u *deadLetterMover) move(ctx context.Context, queue string, advisory jetstream.Msg) error {
	var a struct {
		StreamSeq  uint64 `json:"stream_seq"`
		Deliveries int    `json:"deliveries"`
	}
	if err := json.Unmarshal(advisory.Data(), &a); err != nil || a.StreamSeq == 0 {
		u.log.Warn().Str("subject", advisory.Subject()).Msg("advisory cannot be understood")
		return nil
	}
	s, err := u.in.js.Stream(ctx, queue)
	if err != nil {
		return err
	}
	raw, err := s.GetMsg(ctx, a.StreamSeq)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil // acknowledged late, after all
	}
	if err != nil {
		return err
	}
	reason := fmt.Sprintf("delivered %d times and never acknowledged: the process that handled it died or was too slow each time", a.Deliveries)
	m := DeadMessage(u.in.names, raw.Subject, queue, raw.Sequence, a.Deliveries, raw.Header, raw.Data, CodeMaxDeliveries, reason)
	if u.moved != nil {
		if err := u.moved(ctx, raw, parseDead(0, time.Now().UTC(), m.Header, m.Data)); err != nil {
			return err
		}
	}
	if err := u.in.StoreDeadLetter(ctx, m); err != nil {
		return err
	}
	u.log.Warn().Str("subject", raw.Subject).Uint64("sequence", raw.Sequence).Int("deliveries", a.Deliveries).Msg("moved to the dead letters")
	if err := s.DeleteMsg(ctx, raw.Sequence); err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
		var api *jetstream.APIError
		if errors.As(err, &api) && api.Code == 404 {
			return nil
		}
		return err
	}
	return nil
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
