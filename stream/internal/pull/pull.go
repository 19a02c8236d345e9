// Package pull takes messages from consumers, whatever happens to the broker, and keeps
// them in hand while they are worked on.
package pull

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/stream/internal/wait"
)

// FetchWait is how long one pull waits at the broker for the first message.
const FetchWait = 5 * time.Second

// Fetch takes up to n messages: what is there at once, or else the first that
// comes within FetchWait and what is there with it. A batch thus fills by
// itself when frames come faster than they are scored, and a single frame does
// not wait for others. Nothing is held in the client beyond n messages: two
// workers share a queue evenly. No message and no error means that none came.
func Fetch(ctx context.Context, c jetstream.Consumer, n int) ([]jetstream.Msg, error) {
	msgs, err := drainBatch(c.FetchNoWait(n))
	if len(msgs) > 0 || err != nil {
		return msgs, err
	}
	wait, cancel := context.WithTimeout(ctx, FetchWait)
	defer cancel()
	msgs, err = drainBatch(c.Fetch(1, jetstream.FetchContext(wait)))
	if ctx.Err() != nil && len(msgs) == 0 {
		return nil, nil
	}
	if len(msgs) == 0 || n == 1 {
		return msgs, err
	}
	more, _ := drainBatch(c.FetchNoWait(n - 1))
	return append(msgs, more...), nil
}

// drainBatch collects a batch. An error is returned only with no message:
// messages that came with it are there to be handled.
func drainBatch(b jetstream.MessageBatch, err error) ([]jetstream.Msg, error) {
	if err != nil {
		return nil, err
	}
	var msgs []jetstream.Msg
	for m := range b.Messages() {
		msgs = append(msgs, m)
	}
	err = b.Error()
	if len(msgs) > 0 || err == nil || errors.Is(err, nats.ErrTimeout) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, context.Canceled) || errors.Is(err, jetstream.ErrNoMessages) {
		return msgs, nil
	}
	return nil, err
}

// Epoch is the time between two reconnects. What waits for an answer of the
// broker when the connection is lost waits in vain: it is better asked again as
// soon as the connection is back.
type Epoch struct {
	mu     sync.Mutex
	epoch  context.Context // until the next reconnect
	finish context.CancelFunc
}

// NewEpoch begins the first epoch; Follow has others begin.
func NewEpoch() *Epoch {
	e := &Epoch{}
	e.epoch, e.finish = context.WithCancel(context.Background())
	return e
}

// Follow begins a new epoch, and calls begun, whenever the connection comes back,
// until ctx ends.
func (e *Epoch) Follow(ctx context.Context, nc *nats.Conn, begun func()) {
	connected := nc.StatusChanged(nats.CONNECTED)
	defer nc.RemoveStatusListener(connected)
	for {
		select {
		case <-ctx.Done():
			return
		case <-connected:
			e.mu.Lock()
			e.finish()
			e.epoch, e.finish = context.WithCancel(context.Background())
			e.mu.Unlock()
			begun()
		}
	}
}

// Within returns a context that ends with the epoch.
func (e *Epoch) Within(ctx context.Context) (context.Context, context.CancelFunc) {
	e.mu.Lock()
	epoch := e.epoch
	e.mu.Unlock()
	return wait.Either(ctx, epoch)
}

// Pull calls handle with what a consumer delivers, up to n messages at a time,
// until ctx ends. Whatever happens to the broker, it goes on when that is back.
func (e *Epoch) Pull(ctx context.Context, log zerolog.Logger, consumer func(context.Context) (jetstream.Consumer, error), n int, handle func([]jetstream.Msg)) {
	var cons jetstream.Consumer
	for ctx.Err() == nil {
		if cons == nil {
			step, cancel := context.WithTimeout(ctx, 10*time.Second)
			c, err := consumer(step)
			cancel()
			if err != nil {
				if ctx.Err() == nil {
					log.Warn().Err(err).Msg("cannot take messages yet")
					wait.Pause(ctx, time.Second)
				}
				continue
			}
			cons = c
		}
		msgs, err := e.fetch(ctx, cons, n)
		if err != nil && ctx.Err() == nil {
			log.Debug().Err(err).Msg("cannot take messages")
			cons = nil
			wait.Pause(ctx, 250*time.Millisecond)
			continue
		}
		if len(msgs) > 0 {
			handle(msgs)
		}
	}
}

// fetch is [Fetch] for as long as the connection lasts.
func (e *Epoch) fetch(ctx context.Context, c jetstream.Consumer, n int) ([]jetstream.Msg, error) {
	ctx, cancel := e.Within(ctx)
	defer cancel()
	return Fetch(ctx, c, n)
}
