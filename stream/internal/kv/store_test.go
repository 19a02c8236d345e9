package kv_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/stream/broker"
	"github.com/nearmiss/nearmiss/stream/internal/kv"
)

type thing struct {
	Name string `json:"name"`
	N    int    `json:"n"`
}

func decodeThing(key string, value []byte) (thing, error) {
	var v thing
	if err := kv.Object(value, &v, true); err != nil {
		return v, err
	}
	if v.Name != key {
		return v, errors.New("another name")
	}
	return v, nil
}

// TestABadValueCostsItsKeyOnly writes what clients of the broker could write.
func TestABadValueCostsItsKeyOnly(t *testing.T) {
	js := brokertest.JetStream(t, broker.Config{})
	b, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "B", History: 8})
	if err != nil {
		t.Fatal(err)
	}
	s := kv.Store[thing]{Bucket: b, Decode: decodeThing, Skip: func(key string) bool { return strings.HasPrefix(key, "other/") }}
	if all, bad, err := s.List(t.Context()); err != nil || len(all)+len(bad) != 0 {
		t.Fatalf("an empty bucket: %v, %v, %v", all, bad, err)
	}
	// Past the client library, which checks keys.
	put := func(key, value string) {
		t.Helper()
		if _, err := js.Publish(t.Context(), "$KV.B."+key, []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	good := func(key string, n int) { t.Helper(); put(key, fmt.Sprintf(`{"name":%q,"n":%d}`, key, n)) }
	good("a", 1)
	good("b", 1)
	good("b", 2)
	put("b", `{"name":"b","n":"three"}`)
	put("b", "")
	put("c", "null")
	good("d", 1)
	if err := b.Delete(t.Context(), "d"); err != nil {
		t.Fatal(err)
	}
	put("d", "[]")
	put("ü.x", "{}")
	put("e", `{"name":"e","n":1,"m":2}`)
	put("f", `{"name":"f"} {"name":"f"}`)
	put("g", strings.Repeat(" ", kv.MaxValue)+`{"name":"g"}`)
	put("other/x", "junk")
	good("z", 9)

	all, bad, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range all {
		got = append(got, fmt.Sprintf("%s=%d", e.Key, e.Value.N))
	}
	if want := "a=1 b=2 z=9"; strings.Join(got, " ") != want {
		t.Errorf("read %v, want %s", got, want)
	}
	unread := map[string]kv.Bad{}
	for _, x := range bad {
		unread[x.Key] = x
	}
	for _, key := range []string{"b", "c", "d", "ü.x", "e", "f", "g"} {
		if x, ok := unread[key]; !ok || x.Reason == "" || x.Bucket != "B" || (x.Using > 0) != (key == "b") {
			t.Errorf("%s: %+v, %v", key, x, ok)
		}
		delete(unread, key)
	}
	if len(unread) > 0 {
		t.Errorf("also unreadable: %v", unread)
	}

	e, err := s.Get(t.Context(), "b")
	if err != nil || e.Value.N != 2 || e.Bad == nil || e.Head <= e.Revision {
		t.Errorf("%+v, %v", e, err)
	}
	if _, err := b.Update(t.Context(), "b", []byte(`{"name":"b","n":3}`), e.Head); err != nil {
		t.Errorf("a bad value cannot be written over: %v", err)
	}
	if h, err := s.History(t.Context(), "b"); err != nil || len(h) != 3 || h[0].Value.N != 3 || h[2].Value.N != 1 {
		t.Errorf("history %+v, %v", h, err)
	}
	if e, err := s.Get(t.Context(), "c"); !errors.Is(err, kv.ErrUnreadable) || e.Head == 0 {
		t.Errorf("%+v, %v", e, err)
	}
	for _, key := range []string{"nowhere", "ü", ""} {
		if _, err := s.Get(t.Context(), key); !errors.Is(err, jetstream.ErrKeyNotFound) {
			t.Errorf("%q: %v", key, err)
		}
	}
}

// TestConflicts: a replicated bucket answers 10164 where a single one answers
// 10071.
func TestConflicts(t *testing.T) {
	for code, want := range map[jetstream.ErrorCode]bool{10071: true, 10164: true, 10077: false} {
		err := fmt.Errorf("update: %w", &jetstream.APIError{Code: 400, ErrorCode: code})
		if kv.Conflict(err) != want || kv.WrongSequence(err) != want {
			t.Errorf("code %d: %v, %v", code, kv.Conflict(err), kv.WrongSequence(err))
		}
	}
	b := bucket(t)
	put(t, b, "k")
	if _, err := b.Create(t.Context(), "k", nil); !kv.Conflict(err) {
		t.Error(err)
	}
	if _, err := b.Update(t.Context(), "k", nil, 99); !kv.Conflict(err) {
		t.Error(err)
	}
	if !kv.Conflict(fmt.Errorf("x: %w", jetstream.ErrKeyRevisionMismatch)) || kv.Conflict(nil) || kv.Conflict(errors.New("y")) {
		t.Error("wrong word on other errors")
	}
}

// FuzzObject: one JSON object and nothing else is taken, and what is taken is
// what the standard decoder reads.
func FuzzObject(f *testing.F) {
	for _, s := range []string{`{"name":"a","n":1}`, `null`, `{}{}`, `[]`, ` {"n":1e9} `, `{"n":`, "\xff", `{"name":"a","x":1}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var strict, loose thing
		errStrict, errLoose := kv.Object(b, &strict, true), kv.Object(b, &loose, false)
		if errStrict == nil && (errLoose != nil || strict != loose) {
			t.Fatalf("%q: %+v, but %+v, %v", b, strict, loose, errLoose)
		}
		if errLoose != nil {
			return
		}
		if t1 := strings.Trim(string(b), " \t\r\n"); t1[0] != '{' || t1[len(t1)-1] != '}' {
			t.Fatalf("%q is no object", b)
		}
	})
}
