package console

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

// flight keeps an answer that many ask for: it is found once at a time, and again
// when it is old.
type flight[T any] struct {
	group singleflight.Group

	mu  sync.Mutex
	all map[string]flown[T]
}

type flown[T any] struct {
	v  T
	at time.Time
}

// maxFlown bounds what is kept.
const maxFlown = 1000

// get returns what find does, at most age old. find gets a context of base, and not
// of any one who asks.
func (f *flight[T]) get(base context.Context, key string, age time.Duration, find func(context.Context) (T, error)) (T, error) {
	f.mu.Lock()
	old, ok := f.all[key]
	f.mu.Unlock()
	if ok && time.Since(old.at) < age {
		return old.v, nil
	}
	found, err, _ := f.group.Do(key, func() (any, error) {
		work, cancel := context.WithTimeout(base, 20*time.Second)
		defer cancel()
		v, err := find(work)
		if err != nil {
			return v, err
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.all == nil || len(f.all) >= maxFlown {
			f.all = map[string]flown[T]{}
		}
		f.all[key] = flown[T]{v, time.Now()}
		return v, nil
	})
	v, _ := found.(T)
	return v, err
}

// forget has the next get find it anew.
func (f *flight[T]) forget(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.all, key)
}
