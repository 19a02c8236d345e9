package kv_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/stream/broker"
	"github.com/nearmiss/nearmiss/stream/internal/kv"
)

// TestAListHasAllKeysWhileOneChanges: nats-server ends what there is one key too early then.
// What a list lacks would be taken for gone, and what it needs be removed.
func TestAListHasAllKeysWhileOneChanges(t *testing.T) {
	for history := range uint8(2) {
		b, err := brokertest.JetStream(t, broker.Config{}).CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "B", History: 1 + 3*history})
		if err != nil {
			t.Fatal(err)
		}
		s := kv.Store[thing]{Bucket: b, Decode: decodeThing}
		var want []string
		update := func(key string, n int) {
			if _, err := b.PutString(t.Context(), key, fmt.Sprintf(`{"name":%q,"n":%d}`, key, n)); err != nil {
				t.Error(err)
			}
		}
		for i := range 40 {
			want = append(want, fmt.Sprintf("key-%02d", i))
			update(want[i], 0)
		}
		if err := b.Delete(t.Context(), want[0]); err != nil {
			t.Fatal(err)
		}
		want = want[1:]
		for i := range 300 {
			var changes sync.WaitGroup
			changes.Go(func() { update(want[len(want)-1-i%4], i) })
			var got []string
			var err error
			if i%2 == 0 {
				got, err = kv.Keys(t.Context(), b)
			} else {
				var all []kv.Entry[thing]
				all, _, err = s.List(t.Context())
				for _, e := range all {
					got = append(got, e.Key)
				}
			}
			changes.Wait()
			if err != nil || !slices.Equal(got, want) {
				t.Fatalf("history %d, list %d: %v, %v", 1+3*history, i, got, err)
			}
		}
	}
}

// early is a bucket whose watch says that it has delivered all when the last entry of now
// is still to come.
type early struct {
	jetstream.KeyValue
	updates chan jetstream.KeyValueEntry
	asked   int
	then    map[int]func() // what happens after the bucket was asked for its state so often
}

func (b *early) Updates() <-chan jetstream.KeyValueEntry { return b.updates }
func (b *early) Error() <-chan error                     { return nil }
func (b *early) Stop() error                             { return nil }

func (b *early) Watch(context.Context, string, ...jetstream.WatchOpt) (jetstream.KeyWatcher, error) {
	return b, nil
}

func (b *early) Status(ctx context.Context) (jetstream.KeyValueStatus, error) {
	s, err := b.KeyValue.Status(ctx)
	if b.asked++; b.then[b.asked] != nil {
		b.then[b.asked]()
	}
	return s, err
}

// TestAListHasWhatChangedBeforeItCame: its old value is not delivered any more, and the new
// one comes behind all that was there.
func TestAListHasWhatChangedBeforeItCame(t *testing.T) {
	for _, another := range []string{"", "d"} { // a key that has come meanwhile, and makes the number right
		real := bucket(t)
		change := func(key string) jetstream.KeyValueEntry {
			t.Helper()
			put(t, real, key)
			e, err := real.Get(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			return e
		}
		b := &early{KeyValue: real, updates: make(chan jetstream.KeyValueEntry, 9)}
		want := []string{"a", "b", "c"}
		for _, key := range want {
			if e := change(key); key != "b" {
				b.updates <- e
			}
		}
		b.updates <- nil
		var late jetstream.KeyValueEntry
		b.then = map[int]func(){
			1: func() {
				if another != "" {
					want = append(want, another)
					b.updates <- change(another)
				}
				late = change("b")
			},
			2: func() { b.updates <- late },
		}
		if got, err := kv.Keys(t.Context(), b); err != nil || !slices.Equal(got, want) {
			t.Errorf("%v, want %v: %v", got, want, err)
		}
	}
}

// TestAListWaitsForWhatIsThere, however late it comes, and not for what was removed since.
func TestAListWaitsForWhatIsThere(t *testing.T) {
	js := brokertest.JetStream(t, broker.Config{})
	real, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "B"})
	if err != nil {
		t.Fatal(err)
	}
	all := []string{"a", "b", "c"}
	list := func(then func(b *early, last jetstream.KeyValueEntry)) (keys []string, asked int) {
		t.Helper()
		b := &early{KeyValue: real, updates: make(chan jetstream.KeyValueEntry, len(all)+1)}
		for i, key := range all {
			put(t, real, key)
			e, err := real.Get(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			if i < len(all)-1 {
				b.updates <- e
				continue
			}
			b.updates <- nil
			then(b, e)
		}
		if keys, err = kv.Keys(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		return keys, b.asked
	}
	if got, asked := list(func(b *early, last jetstream.KeyValueEntry) {
		b.then = map[int]func(){3: func() { b.updates <- last }}
	}); !slices.Equal(got, all) || asked < 3 {
		t.Errorf("asked %d times: %v", asked, got)
	}
	remove := func(key string) {
		s, err := js.Stream(t.Context(), "KV_B")
		if err == nil {
			err = s.Purge(t.Context(), jetstream.WithPurgeSubject("$KV.B."+key))
		}
		if err != nil {
			t.Error(err)
		}
	}
	if got, asked := list(func(b *early, last jetstream.KeyValueEntry) {
		b.then = map[int]func(){1: func() { remove(last.Key()) }}
	}); !slices.Equal(got, all[:2]) || asked < 2 {
		t.Errorf("asked %d times: %v", asked, got)
	}
	if got, asked := list(func(b *early, last jetstream.KeyValueEntry) {
		for range all { // and nothing says that all has come
			if e := <-b.updates; e != nil {
				defer func() { b.updates <- e }()
			}
		}
		remove(last.Key())
	}); !slices.Equal(got, all[:2]) || asked < 2 {
		t.Errorf("asked %d times: %v", asked, got)
	}
}

// TestAListOfSomeKeysHasThemAll, and has the broker send no others: the bucket may have
// many.
func TestAListOfSomeKeysHasThemAll(t *testing.T) {
	js := brokertest.JetStream(t, broker.Config{})
	real, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "B"})
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"some.a", "some.b", "some.c", "some.gone", "other.a", "others"} {
		put(t, real, key)
	}
	if err := real.Delete(t.Context(), "some.gone"); err != nil {
		t.Fatal(err)
	}
	late := func(said bool) jetstream.KeyValue {
		b := &early{KeyValue: real, updates: make(chan jetstream.KeyValueEntry, 9)}
		e, err := real.Get(t.Context(), "some.c")
		if err != nil {
			t.Fatal(err)
		}
		if b.updates <- e; said {
			b.updates <- nil
		}
		return b
	}
	for what, b := range map[string]jetstream.KeyValue{
		"a bucket":                        real,
		"one whose watch ends too early":  late(true),
		"one whose watch does not say so": late(false),
	} {
		asked := 0
		s := kv.Store[string]{Bucket: b, JS: js, Keys: "some.>", Decode: func(key string, _ []byte) (string, error) {
			asked++
			return key, nil
		}}
		all, bad, err := s.List(t.Context())
		var got []string
		for _, e := range all {
			got = append(got, e.Value)
		}
		if want := []string{"some.a", "some.b", "some.c"}; err != nil || len(bad) > 0 || !slices.Equal(got, want) || asked != len(want) {
			t.Errorf("%s: %v of %d, %v, %v", what, got, asked, bad, err)
		}
	}
}
