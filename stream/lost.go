package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Lost is what was published on one subject and not stored, by a sender that got no error.
type Lost struct {
	Subject string    `json:"subject"` // an MQTT topic has slashes for dots
	Code    string    `json:"code"`    // bad_topic or not_stored
	Frames  uint64    `json:"frames"`
	Last    time.Time `json:"last"`
}

// Codes of lost frames.
const (
	LostBadTopic    = "bad_topic"  // no stream takes the subject
	LostNotStored   = "not_stored" // the queue, the detector's share or the disk was full
	LostShare       = "share_full" // a detector's share is full: its cameras are refused
	LostDisk        = "disk_full"  // no frames are taken
	LostOver        = "over"       // frames are taken again
	LostUndelivered = "untold"     // events, by age or size, before a sink had them
)

// lostKey is their place in the work bucket.
const lostKey = "lost"

// SetLostFrames stores what was lost; an empty list removes it.
func (in *Installation) SetLostFrames(ctx context.Context, all []Lost) error {
	kv, err := in.js.KeyValue(ctx, in.names.WorkBucket())
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return kv.Purge(ctx, lostKey)
	}
	b, err := json.Marshal(all)
	if err != nil {
		return err
	}
	_, err = kv.Put(ctx, lostKey, b)
	return err
}

// LostFrames returns what was published and not stored since the broker started,
// as package steward has counted it, newest first. There may be none that counts.
func (in *Installation) LostFrames(ctx context.Context) ([]Lost, error) {
	kv, err := in.js.KeyValue(ctx, in.names.WorkBucket())
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find lost frames: %w", err)
	}
	e, err := kv.Get(ctx, lostKey)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find lost frames: %w", err)
	}
	var all []Lost
	if err := json.Unmarshal(e.Value(), &all); err != nil {
		return nil, nil // somebody else's writing
	}
	return all, nil
}
