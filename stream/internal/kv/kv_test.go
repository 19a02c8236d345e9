package kv_test

import (
	"context"
	"errors"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/stream/broker"
	"github.com/nearmiss/nearmiss/stream/internal/kv"
)

func TestMain(m *testing.M) { brokertest.Main(m) }

func bucket(t *testing.T) jetstream.KeyValue {
	t.Helper()
	b, err := brokertest.JetStream(t, broker.Config{}).CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "B"})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func put(t *testing.T, b jetstream.KeyValue, key string) {
	t.Helper()
	if _, err := b.PutString(t.Context(), key, "a value"); err != nil {
		t.Error(err)
	}
}

// TestWatchSeesWhatIsThereAndWhatChanges puts and deletes only once the watch
// has begun, so nothing of the order is left to chance.
func TestWatchSeesWhatIsThereAndWhatChanges(t *testing.T) {
	b := bucket(t)
	put(t, b, "line.one")
	put(t, b, "other")
	var seen []string
	err := kv.Watch(t.Context(), b, "line.>", func(e jetstream.KeyValueEntry) bool {
		if e == nil {
			seen = append(seen, "begun")
			return true
		}
		if len(e.Value()) > 0 {
			t.Errorf("%s came with its value", e.Key())
		}
		seen = append(seen, e.Key()+" "+e.Operation().String())
		switch len(seen) {
		case 2:
			put(t, b, "other")
			put(t, b, "line.two")
		case 3:
			if err := b.Delete(t.Context(), "line.one"); err != nil {
				t.Error(err)
			}
		}
		return len(seen) < 4
	})
	want := []string{"begun", "line.one KeyValuePutOp", "line.two KeyValuePutOp", "line.one KeyValueDeleteOp"}
	if err != nil || len(seen) != len(want) {
		t.Fatalf("saw %q, %v; want %q", seen, err, want)
	}
	for i := range want {
		if seen[i] != want[i] {
			t.Errorf("saw %q, want %q", seen, want)
		}
	}
}

func TestWatchMayEndAtOnce(t *testing.T) {
	b := bucket(t)
	put(t, b, "k")
	calls := 0
	if err := kv.Watch(t.Context(), b, ">", func(jetstream.KeyValueEntry) bool { calls++; return false }); err != nil || calls != 1 {
		t.Errorf("%d calls, %v", calls, err)
	}
}

// TestChangesTellsOfWhatIsNew and not of what was there, and ends with its
// context without an error.
func TestChangesTellsOfWhatIsNew(t *testing.T) {
	b := bucket(t)
	put(t, b, "old")
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	err := kv.Changes(ctx, b, func() {
		switch calls++; calls {
		case 1: // it has begun
			put(t, b, "new")
		case 2:
			cancel()
		default:
			t.Errorf("call %d", calls)
		}
	})
	if err != nil || calls != 2 {
		t.Errorf("%d calls, %v", calls, err)
	}
}

// TestFollowActsOnChanges that came while it was at work, too, and ends with its
// context without an error, and with that of the act.
func TestFollowActsOnChanges(t *testing.T) {
	b := bucket(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	calls := 0
	err := kv.Follow(ctx, b, func() error {
		if calls++; calls == 1 { // it has begun
			put(t, b, "one")
			put(t, b, "two")
			return nil
		}
		if keys, err := b.Keys(t.Context()); err != nil || len(keys) < 2 {
			t.Errorf("acts on %v, %v", keys, err)
		}
		cancel()
		return ctx.Err()
	})
	if err != nil || calls != 2 {
		t.Errorf("%d calls, %v", calls, err)
	}
	broken := errors.New("it does not act")
	if err := kv.Follow(t.Context(), b, func() error { return broken }); !errors.Is(err, broken) {
		t.Errorf("an act that fails: %v", err)
	}
}

func TestAWatchThatBreaksSaysSo(t *testing.T) {
	b, _ := brokertest.Start(t, broker.Config{Port: -1})
	nc := brokertest.Connect(t, b)
	js := brokertest.StreamsOn(t, nc)
	store, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "B"})
	if err != nil {
		t.Fatal(err)
	}
	err = kv.Watch(t.Context(), store, ">", func(e jetstream.KeyValueEntry) bool {
		nc.Close()
		return true
	})
	if err == nil {
		t.Error("a closed connection is no error")
	}
	if err := kv.Watch(t.Context(), store, ">", func(jetstream.KeyValueEntry) bool { return true }); err == nil {
		t.Error("a watch on a closed connection is no error")
	}
}
