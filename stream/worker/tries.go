package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
)

// try is what is known of the tries of a frame that was not handled at its first
// delivery. Deliveries are no tries: a frame that was on a slow link, or in a
// process that died of something else, has done nothing wrong.
type try struct {
	// Failed counts the times that its scoring failed.
	Failed int `json:"failed,omitempty"`
	// Died counts the processes that ended while they scored it and nothing else.
	Died int `json:"died,omitempty"`
}

// verdict says why a frame is to be tried no more, or nil. most is how often a
// frame is tried.
func (t try) verdict(most int) error {
	// Before a frame is scored alone in its process it was in a batch, and alone in
	// its lane.
	if deaths := max(most-2, 1); t.Died >= deaths {
		return stream.Permanent(stream.CodeMaxDeliveries, fmt.Errorf("the process that scored it died each time, the last %d times with nothing else in hand", t.Died))
	}
	if t.Failed >= most {
		return stream.Permanent(stream.CodeScoring, fmt.Errorf("failed %d times", t.Failed))
	}
	return nil
}

// tryKey names a frame's record.
func (l *detectorRunner) tryKey(it *frameTask) string {
	return "tries." + strconv.FormatInt(l.w.created.Load(), 36) + "." + strconv.FormatUint(it.meta.Sequence.Stream, 10)
}

// recall reads what is known of a frame's tries.
func (l *detectorRunner) recall(ctx context.Context, it *frameTask) error {
	step, cancel := context.WithTimeout(ctx, stream.PublishWait)
	defer cancel()
	e, err := l.w.work.Get(step, l.tryKey(it))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find earlier tries of frame %s: %w", it.frame.ID, err)
	}
	var t try
	if json.Unmarshal(e.Value(), &t) != nil || t.Failed < 0 || t.Died < 0 {
		t = try{} // somebody else's writing: the count begins anew
	}
	it.tried, it.recorded = t, true
	return nil
}

// record stores what is known of a frame's tries.
func (l *detectorRunner) record(ctx context.Context, it *frameTask, t try) error {
	step, cancel := context.WithTimeout(ctx, stream.PublishWait)
	defer cancel()
	b, err := json.Marshal(t)
	if err == nil {
		_, err = l.w.work.Put(step, l.tryKey(it), b)
	}
	if err != nil {
		return fmt.Errorf("record a try of frame %s: %w", it.frame.ID, err)
	}
	it.recorded = true
	return nil
}

// forget removes a frame's record when the frame has come to its end.
func (l *detectorRunner) forget(ctx context.Context, it *frameTask) {
	if !it.recorded {
		return
	}
	step, cancel := context.WithTimeout(ctx, stream.PublishWait)
	defer cancel()
	if err := l.w.work.Purge(step, l.tryKey(it)); err != nil {
		l.log.Debug().Err(err).Msg("record of tries stays until it is too old")
	}
}
