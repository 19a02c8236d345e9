// Package kv watches key-value buckets.
package kv

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// Watch calls seen when it has begun to watch, with nil, and then with every
// entry of the keys that is delivered: those of now, unless the options say
// otherwise, and their changes; without values. It ends without an error with
// ctx, or when seen returns false.
func Watch(ctx context.Context, bucket jetstream.KeyValue, keys string, seen func(jetstream.KeyValueEntry) bool, opts ...jetstream.WatchOpt) error {
	w, err := bucket.Watch(ctx, keys, append(opts, jetstream.MetaOnly())...)
	if err != nil {
		return fmt.Errorf("watch %s of bucket %s: %w", keys, bucket.Bucket(), err)
	}
	defer w.Stop()
	for more := seen(nil); more; {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-w.Updates():
			if !ok && ctx.Err() != nil { // which ends the watch, too
				return nil
			}
			if !ok {
				return fmt.Errorf("watch %s of bucket %s: %w", keys, bucket.Bucket(), errEnded)
			}
			more = e == nil || seen(e) // nil: those of now have been delivered
		}
	}
	return nil
}

var errEnded = errors.New("the watch ended")

// Changes calls changed when it has begun to watch, and whenever something in
// the bucket may have changed since, until ctx ends.
func Changes(ctx context.Context, bucket jetstream.KeyValue, changed func()) error {
	return Watch(ctx, bucket, jetstream.AllKeys, func(jetstream.KeyValueEntry) bool {
		changed()
		return true
	}, jetstream.UpdatesOnly())
}

// Follow calls act when it has begun to watch, and then whenever something in the
// bucket may have changed: once for what changed while act was at work. It ends with
// the error of act or of the watch, and without one with ctx.
func Follow(ctx context.Context, bucket jetstream.KeyValue, act func() error) error {
	watching, stop := context.WithCancel(ctx)
	defer stop()
	changed, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		ended <- Changes(watching, bucket, func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	}()
	for {
		select {
		case err := <-ended:
			return err
		case <-changed:
			if err := act(); err != nil {
				stop()
				<-ended
				if ctx.Err() != nil {
					return nil
				}
				return err
			}
		}
	}
}
