package kv

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// late is how long a list waits for what it lacks before it asks again what there is.
const late = 200 * time.Millisecond

// Keys are the keys of a bucket that have a value, in their order.
func Keys(ctx context.Context, bucket jetstream.KeyValue) ([]string, error) {
	all, err := newest(ctx, bucket, jetstream.MetaOnly())
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
// nats-server 2.15 whenever another key changes meanwhile. So a list goes on to where the
// bucket ended when the watch had begun. What stood there may have been removed since
// without a mark; then the list ends when it has as many keys as the bucket.
func newest(ctx context.Context, bucket jetstream.KeyValue, opts ...jetstream.WatchOpt) ([]jetstream.KeyValueEntry, error) {
	w, err := bucket.Watch(ctx, jetstream.AllKeys, opts...)
	if err != nil {
		return nil, err
	}
	defer w.Stop()
	begun, err := state(ctx, bucket)
	if err != nil {
		return nil, err
	}
	found := map[string]jetstream.KeyValueEntry{}
	var at uint64
	var tooLate <-chan time.Time
	for said, complete := false, begun.Msgs == 0; !said || !complete; {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tooLate:
			now, err := state(ctx, bucket)
			if err != nil {
				return nil, err
			}
			complete, tooLate = uint64(len(found)) >= now.NumSubjects, time.After(late)
		case e, ok := <-w.Updates():
			if !ok {
				return nil, errEnded
			}
			if e == nil {
				said, tooLate = true, time.After(late)
				continue
			}
			at, found[e.Key()] = e.Revision(), e
			complete = complete || at >= begun.LastSeq
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

// state is what the stream of a bucket has.
func state(ctx context.Context, bucket jetstream.KeyValue) (jetstream.StreamState, error) {
	status, err := bucket.Status(ctx)
	if err != nil {
		return jetstream.StreamState{}, err
	}
	of, ok := status.(*jetstream.KeyValueBucketStatus)
	if !ok {
		return jetstream.StreamState{}, fmt.Errorf("bucket %s is a %T", bucket.Bucket(), status)
	}
	return of.StreamInfo().State, nil
}
