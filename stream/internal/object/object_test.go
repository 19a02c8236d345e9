package object_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/stream/broker"
	"github.com/nearmiss/nearmiss/stream/internal/object"
)

func TestMain(m *testing.M) { brokertest.Main(m) }

func store(t testing.TB) (jetstream.JetStream, jetstream.ObjectStore) {
	t.Helper()
	js := brokertest.JetStream(t, broker.Config{})
	s, err := js.CreateObjectStore(t.Context(), jetstream.ObjectStoreConfig{Bucket: "B"})
	if err != nil {
		t.Fatal(err)
	}
	return js, s
}

// forge writes an object's metadata as anybody could who may publish.
func forge(t testing.TB, js jetstream.JetStream, name string, meta any) {
	t.Helper()
	m := nats.NewMsg("$O.B.M." + base64.URLEncoding.EncodeToString([]byte(name)))
	m.Header.Set("Nats-Rollup", "sub")
	switch v := meta.(type) {
	case string:
		m.Data = []byte(v)
	default:
		m.Data, _ = json.Marshal(v)
	}
	if _, err := js.PublishMsg(t.Context(), m); err != nil {
		t.Fatal(err)
	}
}

func TestReadBelievesNoMetadata(t *testing.T) {
	js, s := store(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	good := bytes.Repeat([]byte("0123456789"), 40_000) // several chunks
	info, err := s.PutBytes(ctx, "good", good)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := object.Read(ctx, js, "B", "good", 1<<20); err != nil || !bytes.Equal(b, good) {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if _, err := s.PutBytes(ctx, "empty", nil); err != nil {
		t.Fatal(err)
	}
	if b, err := object.Read(ctx, js, "B", "empty", 1<<20); err != nil || len(b) != 0 {
		t.Errorf("empty: %d bytes, %v", len(b), err)
	}
	change := func(f func(*jetstream.ObjectInfo)) jetstream.ObjectInfo {
		c := *info
		c.Name = "x"
		f(&c)
		return c
	}
	for what, c := range map[string]struct {
		meta any
		most int64
		want error
	}{
		"a size of 2^62":               {change(func(i *jetstream.ObjectInfo) { i.Size = 1 << 62 }), 1 << 20, object.ErrTooLarge},
		"the largest size":             {change(func(i *jetstream.ObjectInfo) { i.Size = 1<<64 - 1 }), 1 << 62, object.ErrTooLarge},
		"more than is wanted":          {change(func(*jetstream.ObjectInfo) {}), 100, object.ErrTooLarge},
		"a size that is too large":     {change(func(i *jetstream.ObjectInfo) { i.Size++ }), 1 << 20, object.ErrBad},
		"a size that is too small":     {change(func(i *jetstream.ObjectInfo) { i.Size = 10 }), 1 << 20, object.ErrBad},
		"another digest":               {change(func(i *jetstream.ObjectInfo) { i.Digest = "SHA-256=AAAA" }), 1 << 20, object.ErrBad},
		"no digest":                    {change(func(i *jetstream.ObjectInfo) { i.Digest = "" }), 1 << 20, object.ErrBad},
		"chunks that are not there":    {change(func(i *jetstream.ObjectInfo) { i.NUID = "nowhere" }), 1 << 20, object.ErrMissing},
		"more chunks than there are":   {change(func(i *jetstream.ObjectInfo) { i.Chunks++ }), 1 << 20, object.ErrMissing},
		"the chunks of all":            {change(func(i *jetstream.ObjectInfo) { i.NUID = "*" }), 1 << 20, object.ErrBad},
		"no chunks' name":              {change(func(i *jetstream.ObjectInfo) { i.NUID = "" }), 1 << 20, object.ErrBad},
		"another name":                 {change(func(i *jetstream.ObjectInfo) { i.Name = "good" }), 1 << 20, object.ErrBad},
		"a link":                       {`{"name":"x","bucket":"B","nuid":"n","options":{"link":{"bucket":"B","name":"good"}}}`, 1 << 20, object.ErrBad},
		"a link to a bucket":           {`{"name":"x","bucket":"B","nuid":"n","options":{"link":{"bucket":"NONE"}}}`, 1 << 20, object.ErrBad},
		"metadata that are no JSON":    {`{`, 1 << 20, object.ErrBad},
		"metadata of another kind":     {`{"name":7,"size":-1}`, 1 << 20, object.ErrBad},
		"a size that is no whole size": {`{"name":"x","nuid":"n","size":1e300}`, 1 << 20, object.ErrBad},
		"that it was deleted":          {change(func(i *jetstream.ObjectInfo) { i.Deleted = true }), 1 << 20, object.ErrMissing},
	} {
		t.Run(what, func(t *testing.T) {
			forge(t, js, "x", c.meta)
			b, err := object.Read(ctx, js, "B", "x", c.most)
			if !errors.Is(err, c.want) {
				t.Errorf("%d bytes, %v; want %v", len(b), err, c.want)
			}
		})
	}
	if _, err := object.Read(ctx, js, "B", "nowhere", 1<<20); !errors.Is(err, object.ErrMissing) {
		t.Error(err)
	}
	if _, err := object.Read(ctx, js, "NONE", "good", 1<<20); err == nil || errors.Is(err, object.ErrMissing) {
		t.Errorf("no bucket: %v", err)
	}
}

// TestListGoesOn: metadata that cannot be understood are counted, wherever they
// are.
// Whenever a read is given up, it leaves nothing behind: goleak looks for what it
// left when the tests of this package end.
func TestReadIsGivenUpAtAnyTime(t *testing.T) {
	js, s := store(t)
	good := bytes.Repeat([]byte("0123456789"), 40_000)
	if _, err := s.PutBytes(t.Context(), "good", good); err != nil {
		t.Fatal(err)
	}
	given := 0
	for i := range 300 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*20*time.Microsecond)
		b, err := object.Read(ctx, js, "B", "good", 1<<20)
		switch {
		case err != nil && ctx.Err() == nil:
			t.Fatalf("read %d: %v", i, err)
		case err != nil:
			given++
		case !bytes.Equal(b, good):
			t.Fatalf("read %d: %d other bytes", i, len(b))
		}
		cancel()
	}
	if given == 0 {
		t.Error("no read was given up")
	}
}

func TestListGoesOn(t *testing.T) {
	js, s := store(t)
	if all, bad, err := object.List(t.Context(), js, "B"); err != nil || bad != 0 || len(all) != 0 {
		t.Errorf("%v, %d, %v", all, bad, err)
	}
	for i, junk := range []string{`{`, `[]`, `null`, `{"name":""}`} {
		forge(t, js, fmt.Sprint("junk", i), junk)
		if _, err := s.PutBytes(t.Context(), fmt.Sprint("good", i), []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Delete(t.Context(), "good1"); err != nil {
		t.Fatal(err)
	}
	forge(t, js, "last", "\xff")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	all, bad, err := object.List(ctx, js, "B")
	if err != nil || bad != 5 || len(all) != 3 || all[2].Name != "good3" || all[2].ModTime.IsZero() {
		t.Errorf("%d objects, %d bad, %v", len(all), bad, err)
	}
	if _, _, err := object.List(ctx, js, "NONE"); !errors.Is(err, jetstream.ErrBucketNotFound) {
		t.Error(err)
	}
}

// FuzzRead: whatever stands where an object's metadata are, reading ends at
// once, without a panic, and gives no more than was allowed.
func FuzzRead(f *testing.F) {
	js, _ := store(f)
	for _, s := range []string{
		`{"name":"x","bucket":"B","nuid":"abc","size":4611686018427387904,"chunks":1,"digest":"SHA-256=AA=="}`,
		`{"name":"x","bucket":"B","nuid":"../..","size":-1,"chunks":4294967295}`,
		`{"name":"x","options":{"link":{"bucket":"B","name":"x"}},"nuid":"n","size":1,"chunks":1}`,
		`{"name":"x","nuid":"*","size":3,"chunks":1}`, `{"name":"x","nuid":">","size":0,"chunks":0}`,
		`null`, `[]`, `{"size":"big"}`, `{"options":{"max_chunk_size":1}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, meta []byte) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		forge(t, js, "x", string(meta))
		b, err := object.Read(ctx, js, "B", "x", 1<<20)
		if len(b) > 1<<20 || ctx.Err() != nil {
			t.Fatalf("%q: %d bytes, %v, %v", meta, len(b), err, ctx.Err())
		}
		if _, _, err := object.List(ctx, js, "B"); err != nil {
			t.Fatalf("%q: the list ends: %v", meta, err)
		}
	})
}

// TestAListHasAllObjectsWhileOneChanges: a release that a list lacks would be collected.
func TestAListHasAllObjectsWhileOneChanges(t *testing.T) {
	js, store := store(t)
	const many = 40
	put := func(i int) {
		if _, err := store.PutString(t.Context(), fmt.Sprint("object ", i), "its bytes"); err != nil {
			t.Error(err)
		}
	}
	for i := range many {
		put(i)
	}
	for i := range 25 {
		var changes sync.WaitGroup
		changes.Go(func() { put(many - 1 - i%4) })
		all, bad, err := object.List(t.Context(), js, "B")
		changes.Wait()
		if err != nil || bad != 0 || len(all) != many {
			t.Fatalf("list %d has %d objects, want %d: %d bad, %v", i, len(all), many, bad, err)
		}
	}
}
