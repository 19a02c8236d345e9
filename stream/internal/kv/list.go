package kv

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// late is how long a list waits for what a stream's last sequence says is there: what
// was removed and left no mark does not come.
const late = 200 * time.Millisecond

// Keys are the keys of a bucket that have a value, in their order.
func Keys(ctx context.Context, bucket jetstream.KeyValue) ([]string, error) {
	all, err := newest(ctx, bucket, jetstream.AllKeys, jetstream.MetaOnly())
	if err != nil {
		return nil, fmt.Errorf("list the keys of bucket %s: %w", bucket.Bucket(), err)
	}
	var keys []string
	for _, e := range all {
		keys = append(keys, e.Key())
	}
	return keys, nil
}

// newest are the newest entries of the keys that are not deleted, in the order of the keys.
//
// A watch may say that all of now has been delivered when an entry is still to come: with
// nats-server 2.15 whenever another key changes meanwhile. So a list of all keys goes on to
// where the bucket ended when the watch had begun. Keys that are filtered have no such end.
func newest(ctx context.Context, bucket jetstream.KeyValue, keys string, opts ...jetstream.WatchOpt) ([]jetstream.KeyValueEntry, error) {
	w, err := bucket.Watch(ctx, keys, opts...)
	if err != nil {
		return nil, err
	}
	defer w.Stop()
	end := uint64(0)
	if keys == jetstream.AllKeys {
		status, err := bucket.Status(ctx)
		if err != nil {
			return nil, err
		}
		if of, ok := status.(*jetstream.KeyValueBucketStatus); ok && of.StreamInfo().State.Msgs > 0 {
			end = of.StreamInfo().State.LastSeq
		}
	}
	found := map[string]jetstream.KeyValueEntry{}
	var at uint64
	var tooLate <-chan time.Time
	for said := false; !said || at < end; {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tooLate:
			end = at
		case e, ok := <-w.Updates():
			if !ok {
				return nil, errEnded
			}
			if e == nil {
				said, tooLate = true, time.After(late)
				continue
			}
			at, found[e.Key()] = e.Revision(), e
		}
	}
	var all []jetstream.KeyValueEntry
	for _, e := range found {
		if e.Operation() == jetstream.KeyValuePut {
			all = append(all, e)
		}
	}
	slices.SortFunc(all, func(a, b jetstream.KeyValueEntry) int { return strings.Compare(a.Key(), b.Key()) })
	return all, nil
}
