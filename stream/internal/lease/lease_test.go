package lease_test

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream/internal/lease"
)

func TestMain(m *testing.M) { brokertest.Main(m) }

// programs are clients of one server, each with the same bucket.
func programs(t *testing.T, n int, o *server.Options) []jetstream.KeyValue {
	t.Helper()
	o.JetStream, o.StoreDir = true, t.TempDir()
	url := brokertest.Server(t, o)
	all := make([]jetstream.KeyValue, n)
	for i := range all {
		var err error
		if all[i], err = brokertest.Streams(t, url).CreateOrUpdateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "B"}); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// TestOneAtATime has programs count together without comparing.
func TestOneAtATime(t *testing.T) {
	ctx, all := t.Context(), programs(t, 4, &server.Options{})
	if _, err := all[0].PutString(ctx, "count", "0"); err != nil {
		t.Fatal(err)
	}
	const each = 5
	var wg sync.WaitGroup
	for _, bucket := range all {
		own := lease.Of(bucket, "turn")
		wg.Go(func() {
			for range each {
				if err := own.Hold(ctx, func(ctx context.Context) error {
					e, err := bucket.Get(ctx, "count")
					if err != nil {
						return err
					}
					n, err := strconv.Atoi(string(e.Value()))
					if err == nil {
						_, err = bucket.PutString(ctx, "count", strconv.Itoa(n+1))
					}
					return err
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if e, err := all[0].Get(ctx, "count"); err != nil || string(e.Value()) != strconv.Itoa(each*len(all)) {
		t.Errorf("%d programs counted to %d, together to %s (%v)", len(all), each, e.Value(), err)
	}
	if e, err := all[0].Get(ctx, "turn"); !errors.Is(err, jetstream.ErrKeyNotFound) {
		t.Errorf("a lease is left: %v, %v", e, err)
	}
}

// TestWhoIsAtWorkKeepsTheTurn and shows so; who takes it all the same ends the work.
func TestWhoIsAtWorkKeepsTheTurn(t *testing.T) {
	ctx, all := t.Context(), programs(t, 2, &server.Options{})
	own, broken := lease.Of(all[0], "turn"), errors.New("it does not work")
	own.Silence = 300 * time.Millisecond
	if err := own.Hold(ctx, func(ctx context.Context) error {
		first, err := all[1].Get(ctx, "turn")
		if err != nil {
			return err
		}
		eventually.True(t, "there are signs of life", func() bool {
			e, err := all[1].Get(ctx, "turn")
			return err == nil && e.Revision() > first.Revision()+1
		})
		if _, err := lease.Of(all[1], "turn").Take(ctx); !errors.Is(err, lease.ErrOthers) {
			t.Errorf("two hold the lease: %v", err)
		}
		if _, err := all[1].PutString(ctx, "turn", "another's"); err != nil {
			return err
		}
		<-ctx.Done()
		return broken
	}); !errors.Is(err, broken) || !errors.Is(err, lease.ErrOthers) {
		t.Error(err)
	}
	if e, err := all[1].Get(ctx, "turn"); err != nil || string(e.Value()) != "another's" {
		t.Errorf("another's lease was ended: %v", err)
	}
}

// TestTheTurnOfTheDeadIsTaken, and an answer that was lost is no other program.
func TestTheTurnOfTheDeadIsTaken(t *testing.T) {
	ctx, all := t.Context(), programs(t, 2, &server.Options{})
	dead := lease.Of(all[0], "turn")
	if _, err := dead.Take(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := dead.Take(ctx); err != nil { // as after an answer that was lost
		t.Errorf("its own lease: %v", err)
	}
	heir := lease.Of(all[1], "turn")
	heir.Silence = 300 * time.Millisecond
	for begin := time.Now(); ; {
		end, err := heir.Take(ctx)
		if err == nil {
			if time.Since(begin) < heir.Silence {
				t.Error("the lease was taken at once")
			}
			end()
			break
		}
		if !errors.Is(err, lease.ErrOthers) {
			t.Fatal(err)
		}
	}
	if end, err := lease.Of(all[0], "turn").Take(ctx); err != nil {
		t.Errorf("after an end: %v", err)
	} else {
		end()
	}
}

// lines are what a logger has written, line by line.
type lines chan string

func (l lines) Write(b []byte) (int, error) {
	l <- string(b)
	return len(b), nil
}

// TestWhoWaitsIsTold what for, while it waits, and says so when it gives up.
func TestWhoWaitsIsTold(t *testing.T) {
	bucket := programs(t, 1, &server.Options{})[0]
	if _, err := bucket.PutString(t.Context(), "turn", "another's"); err != nil {
		t.Fatal(err)
	}
	said := make(lines, 1)
	ctx, giveUp := context.WithCancel(zerolog.New(said).WithContext(t.Context()))
	defer giveUp()
	ended := make(chan error, 1)
	go func() {
		ended <- lease.Of(bucket, "turn").Hold(ctx, func(context.Context) error { return errors.New("it has the turn of another") })
	}()
	select {
	case line := <-said:
		if !strings.Contains(line, "another program") || !strings.Contains(line, "15s") {
			t.Error(line)
		}
	case <-time.After(time.Minute):
		t.Error("nothing is said")
	}
	giveUp()
	if err := <-ended; !errors.Is(err, lease.ErrOthers) || !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "turn in bucket B") {
		t.Error(err)
	}
	if err := bucket.Purge(t.Context(), "turn"); err != nil {
		t.Fatal(err)
	}
	free := lease.Of(bucket, "turn")
	free.Silence *= 60 // even where the machine is slow
	if err := free.Hold(zerolog.New(said).WithContext(t.Context()), func(context.Context) error { return nil }); err != nil || len(said) > 0 {
		t.Errorf("%v; who does not wait is told %d lines", err, len(said))
	}
}

// TestNobodyHasATurnInAFullStore, which whoever wants it is told; what has to be done is
// done without.
func TestNobodyHasATurnInAFullStore(t *testing.T) {
	bucket := programs(t, 1, &server.Options{JetStreamMaxStore: 1 << 20})[0]
	full := false
	for i := 0; i < 20 && !full; i++ {
		_, err := bucket.Put(t.Context(), strconv.Itoa(i), make([]byte, 100<<10))
		full = err != nil
	}
	if !full {
		t.Fatal("2 MB are in a store of 1: the test tries nothing")
	}
	if err := lease.Of(bucket, "turn").Hold(t.Context(), func(context.Context) error { return nil }); !errors.Is(err, lease.ErrNone) {
		t.Error(err)
	}
	done := false
	if err := lease.Of(bucket, "turn").HoldIfPossible(t.Context(), func(context.Context) error { done = true; return nil }); err != nil || !done {
		t.Errorf("%v, done: %v", err, done)
	}
}
