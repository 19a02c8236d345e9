package console

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/object"
)

// dead shows the dead letters.
type dead struct {
	backend *backend
	wall    *wall
}

// letter is a dead letter with what it says.
type letter struct {
	stream.DeadLetter
	Headers map[string]string `json:"headers"`
	Head    string            `json:"head"` // first bytes, hexadecimal
	Picture bool              `json:"picture"`
}

func (d *dead) list(q *request) (any, error) {
	all, err := d.backend.in.DeadLetters(q.ctx, 100)
	if err != nil {
		return nil, err
	}
	out := listing[letter]{Items: []letter{}}
	for _, l := range slices.Backward(all) {
		out.Items = append(out.Items, newLetter(l))
	}
	return out, nil
}

// at is the letter at the sequence that the path names.
func (d *dead) at(ctx context.Context, q *request) (*jetstream.RawStreamMsg, jetstream.Stream, error) {
	n, err := q.sequence()
	if err != nil {
		return nil, nil, err
	}
	s, err := d.backend.js.Stream(ctx, d.backend.DeadStream())
	if err != nil {
		return nil, nil, err
	}
	m, err := s.GetMsg(ctx, n)
	if errors.Is(err, jetstream.ErrMsgNotFound) || err == nil && m.Header.Get(stream.HeaderDeadSubject) == "" {
		return nil, nil, missing("there is no dead letter %d", n)
	}
	return m, s, err
}

// maxHead is how much of a dead letter is shown.
const maxHead = 256

func newLetter(d stream.DeadLetter) letter {
	l := letter{DeadLetter: d, Headers: map[string]string{}, Head: hex.EncodeToString(d.Data[:min(len(d.Data), maxHead)]), Picture: pictureType(d.Data) != ""}
	for k, v := range d.Header {
		l.Headers[k] = strings.Join(v, ", ")
	}
	return l
}

// again publishes a dead letter where it had been, and removes it.
func (d *dead) again(q *request) (any, error) {
	m, s, err := d.at(q.ctx, q)
	if err != nil {
		return nil, err
	}
	again := nats.NewMsg(m.Header.Get(stream.HeaderDeadSubject))
	if !d.mayPublishAgain(again.Subject) {
		return nil, problem{http.StatusUnprocessableEntity, stream.CodeBadRequest, "it was published on " + clean(again.Subject) + ", where nothing is published from here"}
	}
	if again.Data = m.Data; m.Header.Get(stream.HeaderDeadObject) != "" {
		if again.Data, err = object.Read(q.ctx, d.backend.js, d.backend.ImagesBucket(), m.Header.Get(stream.HeaderDeadObject), maxImage); err != nil {
			return nil, err
		}
	}
	for k, v := range m.Header {
		if !strings.HasPrefix(k, "Nearmiss-Dead-") && k != nats.MsgIdHdr {
			again.Header[k] = v
		}
	}
	if _, err := d.backend.js.PublishMsg(q.ctx, again); err != nil {
		return nil, fmt.Errorf("publish dead letter %d again: %w", m.Sequence, err)
	}
	if err := s.DeleteMsg(q.ctx, m.Sequence); err != nil {
		return nil, fmt.Errorf("remove dead letter %d, which was published again: %w", m.Sequence, err)
	}
	d.wall.overview.forget("")
	d.backend.record(q, "again", fmt.Sprint("dead/", m.Sequence), map[string]string{"subject": again.Subject})
	return nil, nil
}

// mayPublishAgain: anybody may write a dead letter that claims to have been
// published anywhere.
func (d *dead) mayPublishAgain(subject string) bool {
	if _, _, ok := d.backend.ParseFrames(subject); ok {
		return true
	}
	for _, of := range []func(string) string{d.backend.Feedback, d.backend.Train} {
		if name := subject[strings.LastIndexByte(subject, '.')+1:]; stream.ValidToken(name) && subject == of(name) {
			return true
		}
	}
	return false
}

func (d *dead) remove(q *request) (any, error) {
	m, s, err := d.at(q.ctx, q)
	if err != nil {
		return nil, err
	}
	if err := s.DeleteMsg(q.ctx, m.Sequence); err != nil {
		return nil, fmt.Errorf("remove dead letter %d: %w", m.Sequence, err)
	}
	d.wall.overview.forget("")
	d.backend.record(q, "delete", fmt.Sprint("dead/", m.Sequence), nil)
	return nil, nil
}
