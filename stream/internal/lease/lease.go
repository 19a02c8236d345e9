// Package lease has programs change something in the broker one at a time, where the
// broker itself does not compare: the configuration of a stream. Of two changes at once
// nats-server 2.15 makes a subscription twice, and stores each message twice from then
// on, since it compares both with the configuration before them
// (stream.updateWithAdvisory); and who reads, changes and writes a configuration undoes
// what another has written in between.
package lease

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
	// ErrOthers is returned where another program holds the lease.
	ErrOthers = errors.New("another program changes the same")
	// ErrNone is returned where nobody can have the lease: the store is full, or the
	// server does not let this user write it.
	ErrNone = errors.New("no lease can be had")
)

// Lasts is after how long without a sign of life a lease is taken from its holder.
const Lasts = 15 * time.Second

// timeout is how long to wait for the broker.
const timeout = Lasts / 3

// Lease is that of one key, as one program sees it. Not for concurrent use.
type Lease struct {
	// Silence is after how long without a sign of life another's lease is taken, by our
	// clock: [Lasts], and less in tests.
	Silence time.Duration

	bucket jetstream.KeyValue
	key    string
	me     string // value of the key while we hold it; another one the next time

	others uint64    // revision of another program's lease at the last check
	since  time.Time // when we first read it
}

// Of returns the lease of a key, which is in the bucket as long as somebody holds it.
func Of(bucket jetstream.KeyValue, key string) *Lease {
	return &Lease{bucket: bucket, key: key, me: nuid.Next(), Silence: Lasts}
}

// Take takes the lease, to be ended in less than [Lasts], or [ErrOthers], or [ErrNone].
// The lease of a program that has died is had by asking again and again.
func (t *Lease) Take(ctx context.Context) (end func(), err error) {
	revision, err := t.take(ctx)
	if err != nil {
		return nil, err
	}
	return func() { t.end(ctx, revision) }, nil
}

// HoldIfPossible is Hold for what has to be done in any case: where nobody can have the
// lease, since the store is full or the server was locked by an earlier version, do is at
// work without.
func (t *Lease) HoldIfPossible(ctx context.Context, do func(context.Context) error) error {
	err := t.Hold(ctx, do)
	if errors.Is(err, ErrNone) {
		return do(ctx)
	}
	return err
}

// Hold waits for the lease, and holds it as long as do is at work. The context of do ends
// when the lease is lost. A long wait is logged by the logger of ctx
// ([zerolog.Ctx]), if it has one.
func (t *Lease) Hold(ctx context.Context, do func(context.Context) error) error {
	notice := time.AfterFunc(t.Silence/15, func() {
		zerolog.Ctx(ctx).Info().Str("lease", t.key).Stringer("at_most_if_it_has_died", t.Silence).Msg("another program changes the same: waiting until it is done")
	})
	revision, err := t.take(ctx)
	waited := errors.Is(err, ErrOthers)
	for errors.Is(err, ErrOthers) {
		if wait.Pause(ctx, 50*time.Millisecond); ctx.Err() != nil {
			break
		}
		revision, err = t.take(ctx)
	}
	notice.Stop()
	if err != nil && waited && ctx.Err() != nil {
		return fmt.Errorf("waited for the program that has %s in bucket %s, and it is not done: try again: %w: %w", t.key, t.bucket.Bucket(), ErrOthers, ctx.Err())
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

func (t *Lease) take(ctx context.Context) (uint64, error) {
	step, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	revision, err := t.bucket.Create(step, t.key, []byte(t.me))
	if kv.Conflict(err) {
		revision, err = t.takeOver(step)
	}
	if err != nil && !errors.Is(err, ErrOthers) && ctx.Err() == nil {
		err = fmt.Errorf("write %s into bucket %s, which is the lease for changes: %w: %w", t.key, t.bucket.Bucket(), ErrNone, err)
	}
	return revision, err
}

// takeOver takes the lease of a program that has given no sign of life for too long.
func (t *Lease) takeOver(ctx context.Context) (uint64, error) {
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

func (t *Lease) end(ctx context.Context, revision uint64) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	if t.bucket.Purge(ctx, t.key, jetstream.LastRevision(revision)) == nil { // in vain: others take it over
		t.me = nuid.Next() // a replica that is late may still have the lease that has ended
	}
}

// keep gives signs of life until ctx ends, which lost ends where somebody else has the
// turn. It returns the turn's last revision.
func (t *Lease) keep(ctx context.Context, lost func(), revision uint64) uint64 {
	for wait.Pause(ctx, t.Silence/5); ctx.Err() == nil; wait.Pause(ctx, t.Silence/5) {
		step, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
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
