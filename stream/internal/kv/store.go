package kv

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// MaxValue bounds a value that is decoded, in bytes. What a client of the broker
// puts into a bucket is limited by the payload alone.
const MaxValue = 1 << 20

// ErrUnreadable is returned for a key of which no revision can be read.
var ErrUnreadable = errors.New("the value cannot be read")

// Store reads the values of a bucket as Ts. A value that cannot be read costs
// its own key only, and that only when no earlier revision can be read either.
type Store[T any] struct {
	Bucket jetstream.KeyValue
	// Decode makes a T of a value, or says why it cannot. It sees keys and values
	// that anybody may have written.
	Decode func(key string, value []byte) (T, error)
	// Keys, when set, are those that List reads, "camera.>": the broker keeps the others to
	// itself. JS is where the bucket is, then.
	Keys string
	JS   jetstream.JetStream
	// Skip, when set, says which keys are of another kind.
	Skip func(key string) bool
}

// Entry is the newest readable value of a key.
type Entry[T any] struct {
	Key      string
	Value    T
	Revision uint64    // of Value
	Head     uint64    // newest revision of the key: what a compare-and-set names
	Created  time.Time // when the broker stored Value
	Bad      *Bad      // the newest revision cannot be read, and Value is an older one; nil otherwise
}

// Bad is a value that cannot be read.
type Bad struct {
	Bucket   string `json:"bucket"`
	Key      string `json:"key"`
	Revision uint64 `json:"revision"`        // of the value
	Using    uint64 `json:"using,omitempty"` // older revision that is used instead; 0: there is none
	Reason   string `json:"reason"`
}

func (b Bad) Error() string {
	instead := "no earlier one can"
	if b.Using > 0 {
		instead = fmt.Sprintf("revision %d is used instead", b.Using)
	}
	return fmt.Sprintf("revision %d of key %q in bucket %s cannot be read (%s); %s", b.Revision, Clip(b.Key), b.Bucket, b.Reason, instead)
}

// Get returns a key's newest readable value; [jetstream.ErrKeyNotFound] when the
// key is not there, and [ErrUnreadable], with Head set, when it has no readable
// value.
func (s Store[T]) Get(ctx context.Context, key string) (Entry[T], error) {
	e, err := s.Bucket.Get(ctx, key)
	if errors.Is(err, jetstream.ErrInvalidKey) {
		return Entry[T]{}, jetstream.ErrKeyNotFound
	}
	if err != nil {
		return Entry[T]{}, err
	}
	return s.read(ctx, e)
}

// read decodes an entry, or what its key had before.
func (s Store[T]) read(ctx context.Context, e jetstream.KeyValueEntry) (Entry[T], error) {
	out := Entry[T]{Key: e.Key(), Revision: e.Revision(), Head: e.Revision(), Created: e.Created()}
	v, why := s.decode(e)
	if why == nil {
		out.Value = v
		return out, nil
	}
	out.Bad = &Bad{Bucket: s.Bucket.Bucket(), Key: Clip(e.Key()), Revision: e.Revision(), Reason: why.Error()}
	history, err := s.Bucket.History(ctx, e.Key())
	if err != nil && !errors.Is(err, jetstream.ErrKeyNotFound) && !errors.Is(err, jetstream.ErrInvalidKey) {
		return out, err
	}
	for i := len(history) - 1; i >= 0; i-- {
		h := history[i]
		if h.Revision() >= e.Revision() {
			continue
		}
		if h.Operation() != jetstream.KeyValuePut {
			break // deleted: what was before does not come back
		}
		if v, err := s.decode(h); err == nil {
			out.Value, out.Revision, out.Created, out.Bad.Using = v, h.Revision(), h.Created(), h.Revision()
			return out, nil
		}
	}
	return out, fmt.Errorf("%w: %w", ErrUnreadable, *out.Bad)
}

func (s Store[T]) decode(e jetstream.KeyValueEntry) (T, error) {
	if n := len(e.Value()); n > MaxValue {
		var zero T
		return zero, fmt.Errorf("%d bytes, at most %d are read", n, MaxValue)
	}
	return s.Decode(e.Key(), e.Value())
}

// Put writes a key's value in the place of its revision head, 0: of none, and returns
// the new revision. An error is a [Conflict] when the key has another one.
func (s Store[T]) Put(ctx context.Context, key string, value T, head uint64) (revision uint64, err error) {
	b, err := json.Marshal(value)
	if err != nil {
		return 0, err
	}
	if head == 0 {
		return s.Bucket.Create(ctx, key, b)
	}
	return s.Bucket.Update(ctx, key, b, head)
}

// List returns the newest readable value of every key, in the order of the keys,
// and the values that cannot be read. It is one pass over the bucket.
func (s Store[T]) List(ctx context.Context) ([]Entry[T], []Bad, error) {
	var raw []jetstream.KeyValueEntry
	var err error
	if s.Keys == "" {
		raw, err = newest(ctx, s.Bucket)
	} else {
		raw, err = newestOf(ctx, s.JS, s.Bucket, s.Keys)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read bucket %s: %w", s.Bucket.Bucket(), err)
	}
	var all []Entry[T]
	var bad []Bad
	for _, e := range raw {
		if s.Skip != nil && s.Skip(e.Key()) {
			continue
		}
		v, err := s.read(ctx, e)
		if v.Bad != nil {
			bad = append(bad, *v.Bad)
		}
		switch {
		case err == nil:
			all = append(all, v)
		case !errors.Is(err, ErrUnreadable):
			return nil, nil, fmt.Errorf("read bucket %s: %w", s.Bucket.Bucket(), err)
		}
	}
	return all, bad, nil
}

// History returns a key's readable values, newest first, as far as the bucket
// remembers them and not beyond where the key was deleted.
func (s Store[T]) History(ctx context.Context, key string) ([]Entry[T], error) {
	entries, err := s.Bucket.History(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) || errors.Is(err, jetstream.ErrInvalidKey) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []Entry[T]
	for i := len(entries) - 1; i >= 0; i-- {
		e := entries[i]
		if e.Operation() != jetstream.KeyValuePut {
			break
		}
		if v, err := s.decode(e); err == nil {
			all = append(all, Entry[T]{Key: key, Value: v, Revision: e.Revision(), Head: entries[len(entries)-1].Revision(), Created: e.Created()})
		}
	}
	return all, nil
}

// Conflict says whether a Create or Update failed since the key has another
// revision. A replicated bucket answers with another code than a single one.
func Conflict(err error) bool {
	return errors.Is(err, jetstream.ErrKeyExists) || errors.Is(err, jetstream.ErrKeyRevisionMismatch) || WrongSequence(err)
}

// WrongSequence says whether a publish failed since a subject's last sequence is
// another one than was expected.
func WrongSequence(err error) bool {
	api, ok := errors.AsType[*jetstream.APIError](err)
	return ok && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence ||
		api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

// Object decodes one JSON object into what v points to. Anything else, also null,
// is an error, and so is something behind it. With strict set, so are fields that
// v does not have.
func Object(b []byte, v any, strict bool) error {
	if t := bytes.TrimLeft(b, " \t\r\n"); len(t) == 0 || t[0] != '{' {
		return errors.New("it is no JSON object")
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	if strict {
		dec.DisallowUnknownFields()
	}
	if err := dec.Decode(v); err != nil {
		return errors.New(Clip(err.Error()))
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON object")
	}
	return nil
}

// Clip shortens what came from outside before it goes into a report.
func Clip(s string) string {
	if len(s) > 200 {
		s = s[:200] + "…"
	}
	return s
}
