// Package turn has programs change something in the broker one at a time, where the
// broker itself does not compare: the configuration of a stream. Of two changes at once
// nats-server 2.15 makes a subscription twice, and stores each message twice from then
// on, since it compares both with the configuration before them
// (stream.updateWithAdvisory); and who reads, changes and writes a configuration undoes
// what another has written in between.
package turn

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/stream/internal/kv"
	"github.com/nearmiss/nearmiss/stream/internal/wait"
)

var (
	// ErrOthers is returned where it is another program's turn.
	ErrOthers = errors.New("another program changes the same")
	// ErrNone is returned where nobody can have a turn: the store is full, or the
	// server does not let this user write it.
	ErrNone = errors.New("no turn can be had")
)

// Lasts is after how long without a sign of life a turn is taken from who has it.
const Lasts = 15 * time.Second

// answer is how long the broker is waited for.
const answer = Lasts / 3

// Turns are those of one key, as one program sees them. Not for concurrent use.
type Turns struct {
	// Silence is after how long without a sign of life another's turn is taken, by our
	// clock: [Lasts], and less in tests.
	Silence time.Duration

	bucket jetstream.KeyValue
	key    string
	me     string // value of the key in our turn; another one in the next

	others uint64    // revision of another program's turn that was seen last
	since  time.Time // when it was seen first
}

// Of returns the turns of a key, which is in the bucket as long as it is somebody's.
func Of(bucket jetstream.KeyValue, key string) *Turns {
	return &Turns{bucket: bucket, key: key, me: nuid.Next(), Silence: Lasts}
}

// Take returns the turn, to be ended in less than [Lasts], or [ErrOthers], or [ErrNone].
// The turn of a program that has died is had by asking again and again.
func (t *Turns) Take(ctx context.Context) (end func(), err error) {
	revision, err := t.take(ctx)
	if err != nil {
		return nil, err
	}
	return func() { t.end(ctx, revision) }, nil
}

// HoldIfPossible is Hold for what has to be done in any case: where nobody can have a
// turn, since the store is full or the server was locked by an earlier version, do is at
// work without.
func (t *Turns) HoldIfPossible(ctx context.Context, do func(context.Context) error) error {
	err := t.Hold(ctx, do)
	if errors.Is(err, ErrNone) {
		return do(ctx)
	}
	return err
}

// Hold waits for the turn, and has it as long as do is at work. The context of do ends
// when the turn is lost. Whoever waits for long is told by the logger of ctx
// ([zerolog.Ctx]), if it has one.
func (t *Turns) Hold(ctx context.Context, do func(context.Context) error) error {
	told := time.AfterFunc(t.Silence/15, func() {
		zerolog.Ctx(ctx).Info().Str("turn", t.key).Stringer("at_most_if_it_has_died", t.Silence).Msg("another program changes the same: waiting until it is done")
	})
	revision, err := t.take(ctx)
	for errors.Is(err, ErrOthers) {
		if wait.Pause(ctx, 50*time.Millisecond); ctx.Err() != nil {
			break
		}
		revision, err = t.take(ctx)
	}
	told.Stop()
	if errors.Is(err, ErrOthers) {
		return fmt.Errorf("waited for the program that has %s in bucket %s, and it is not done: try again: %w: %w", t.key, t.bucket.Bucket(), err, ctx.Err())
	}
	if err != nil {
		return err
	}
	work, stop := context.WithCancelCause(ctx)
	kept := make(chan uint64)
	go func() { kept <- t.keep(work, func() { stop(ErrOthers) }, revision) }()
	err = do(work)
	stop(nil)
	t.end(ctx, <-kept)
	if err != nil && errors.Is(context.Cause(work), ErrOthers) { // else it says that it was cancelled, and nobody has
		err = fmt.Errorf("%w: %w", ErrOthers, err)
	}
	return err
}

func (t *Turns) take(ctx context.Context) (uint64, error) {
	step, cancel := context.WithTimeout(ctx, answer)
	defer cancel()
	revision, err := t.bucket.Create(step, t.key, []byte(t.me))
	if kv.Conflict(err) {
		revision, err = t.takeOver(step)
	}
	if err != nil && !errors.Is(err, ErrOthers) && ctx.Err() == nil {
		err = fmt.Errorf("write %s into bucket %s, which says whose turn it is: %w: %w", t.key, t.bucket.Bucket(), ErrNone, err)
	}
	return revision, err
}

// takeOver takes the turn of a program that has given no sign of life for too long.
func (t *Turns) takeOver(ctx context.Context) (uint64, error) {
	e, err := t.bucket.Get(ctx, t.key)
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		return 0, ErrOthers // it has ended meanwhile: what it has changed is to be seen first
	case err != nil:
		return 0, err
	case string(e.Value()) == t.me: // the answer was lost
		return e.Revision(), nil
	case t.others != e.Revision():
		t.others, t.since = e.Revision(), time.Now()
	}
	if time.Since(t.since) < t.Silence {
		return 0, ErrOthers
	}
	revision, err := t.bucket.Update(ctx, t.key, []byte(t.me), e.Revision())
	if kv.Conflict(err) {
		return 0, ErrOthers // somebody was faster
	}
	return revision, err
}

func (t *Turns) end(ctx context.Context, revision uint64) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answer)
	defer cancel()
	if t.bucket.Purge(ctx, t.key, jetstream.LastRevision(revision)) == nil { // in vain: others take it over
		t.me = nuid.Next() // a replica that is late may still have the turn that has ended
	}
}

// keep gives signs of life until ctx ends, which lost ends where somebody else has the
// turn. It returns the turn's last revision.
func (t *Turns) keep(ctx context.Context, lost func(), revision uint64) uint64 {
	for wait.Pause(ctx, t.Silence/5); ctx.Err() == nil; wait.Pause(ctx, t.Silence/5) {
		step, cancel := context.WithTimeout(context.WithoutCancel(ctx), answer)
		next, err := t.bucket.Update(step, t.key, []byte(t.me), revision)
		if kv.Conflict(err) { // the answer to the sign before was lost, maybe
			e, again := t.bucket.Get(step, t.key)
			switch {
			case again == nil && string(e.Value()) == t.me:
				next, err = e.Revision(), nil
			case again == nil || errors.Is(again, jetstream.ErrKeyNotFound):
				lost()
			}
		}
		if cancel(); err == nil {
			revision = next
		}
	}
	return revision
}
