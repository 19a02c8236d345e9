package kv

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// late is how long a list waits for what it lacks before it asks again what there is.
const late = 200 * time.Millisecond

// unsaid is how long it waits, or one of some keys for the next, before it does so without
// a word that all has come: a watch does not say that when the last was removed meanwhile.
const unsaid = 10 * late

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
// bucket ended when the watch had begun. A key that was changed before it could be delivered
// is behind that: where a key is missing, or something has changed, the list goes on to
// where the bucket ends now, or until it has as many keys, since what stood at the end may
// have been removed without a mark.
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
	found, end := map[string]jetstream.KeyValueEntry{}, begun
	var at uint64
	tooLate := time.After(unsaid)
	for said, complete := false, false; !complete; {
		ask := false
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tooLate:
			ask = true
		case e, ok := <-w.Updates():
			if !ok {
				return nil, errEnded
			}
			if e == nil {
				said, tooLate = true, time.After(late)
			} else {
				at, found[e.Key()] = e.Revision(), e
			}
			if !said || at < end.LastSeq {
				continue
			}
			ask = at > begun.LastSeq || uint64(len(found)) < begun.NumSubjects
			complete = !ask
		}
		if ask {
			if end, err = state(ctx, bucket); err != nil {
				return nil, err
			}
			complete, tooLate = at >= end.LastSeq || uint64(len(found)) >= end.NumSubjects, time.After(late)
		}
	}
	return sorted(found), nil
}

// newestOf is [newest] of the keys that a pattern fits, of a bucket in js that may have many
// others. Such a list cannot tell from sequences what it lacks: it asks the stream for the
// keys, and for each that has not come.
func newestOf(ctx context.Context, js jetstream.JetStream, bucket jetstream.KeyValue, keys string) ([]jetstream.KeyValueEntry, error) {
	w, err := bucket.Watch(ctx, keys)
	if err != nil {
		return nil, err
	}
	defer w.Stop()
	found := map[string]jetstream.KeyValueEntry{}
	for said := false; !said; {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(unsaid):
			said = true
		case e, ok := <-w.Updates():
			switch {
			case !ok:
				return nil, errEnded
			case e == nil:
				said = true
			default:
				found[e.Key()] = e
			}
		}
	}
	s, err := js.Stream(ctx, "KV_"+bucket.Bucket())
	if err != nil {
		return nil, err
	}
	prefix := "$KV." + bucket.Bucket() + "."
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(prefix+keys))
	if err != nil {
		return nil, err
	}
	for subject := range info.State.Subjects {
		key := strings.TrimPrefix(subject, prefix)
		if found[key] != nil {
			continue
		}
		e, err := bucket.Get(ctx, key)
		if errors.Is(err, jetstream.ErrKeyNotFound) || errors.Is(err, jetstream.ErrInvalidKey) {
			continue
		}
		if err != nil {
			return nil, err
		}
		found[key] = e
	}
	return sorted(found), nil
}

// sorted are the entries of the keys that are not deleted, in the order of the keys.
func sorted(found map[string]jetstream.KeyValueEntry) (all []jetstream.KeyValueEntry) {
	for _, e := range found {
		if e.Operation() == jetstream.KeyValuePut {
			all = append(all, e)
		}
	}
	slices.SortFunc(all, func(a, b jetstream.KeyValueEntry) int { return strings.Compare(a.Key(), b.Key()) })
	return all
}

// state is what the stream of a bucket has; one that has nothing ends at 0.
func state(ctx context.Context, bucket jetstream.KeyValue) (jetstream.StreamState, error) {
	status, err := bucket.Status(ctx)
	if err != nil {
		return jetstream.StreamState{}, err
	}
	of, ok := status.(*jetstream.KeyValueBucketStatus)
	if !ok {
		return jetstream.StreamState{}, fmt.Errorf("bucket %s is a %T", bucket.Bucket(), status)
	}
	s := of.StreamInfo().State
	if s.Msgs == 0 {
		s.LastSeq = 0
	}
	return s, nil
}
