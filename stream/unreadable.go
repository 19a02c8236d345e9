package stream

import (
	"context"
	"fmt"
	"sync"

	"github.com/rs/zerolog"
)

// Reporter says once of each entry that cannot be read that it cannot: in the log
// and as an event. Several processes that see the same store one event.
type Reporter struct {
	mu       sync.Mutex
	reported map[Unreadable]bool
}

// Report reports entries. One whose event could not be stored is tried again the next time.
func (r *Reporter) Report(ctx context.Context, in *Installation, log zerolog.Logger, all []Unreadable) {
	for _, u := range all {
		r.mu.Lock()
		done := r.reported[u]
		r.mu.Unlock()
		if done {
			continue
		}
		if err := in.StoreEvent(ctx, unreadableNotice(u)); err != nil {
			if ctx.Err() == nil {
				log.Debug().Err(err).Msg("notice not stored")
			}
			continue
		}
		log.Error().Str("bucket", u.Bucket).Str("key", u.Key).Uint64("revision", u.Revision).Msg(u.Error())
		r.mu.Lock()
		if r.reported == nil {
			r.reported = map[Unreadable]bool{}
		}
		r.reported[u] = true
		r.mu.Unlock()
	}
}

// unreadableNotice is the event about an entry. A key may be anything: the event
// is of its detector only where it can be one.
func unreadableNotice(u Unreadable) *Event {
	detector := u.Key
	if !ValidToken(detector) {
		detector = NoCamera
	}
	return Notice(KindStore, detector, NoCamera, "", StoreUnreadable, u.Error(), fmt.Sprintf("%s/%s/%d", u.Bucket, u.Key, u.Revision))
}
