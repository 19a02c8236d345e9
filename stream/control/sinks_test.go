package control_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/streamtest"
	"github.com/nearmiss/nearmiss/stream/registry"
	"github.com/nearmiss/nearmiss/stream/sink"
)

// Sinks are changed by one at a time, and who asked for what is in the audit, done or
// refused.
func TestSinksAreChanged(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	ctx := t.Context()
	c := r.Client().For("Kim")
	desk := func(enabled bool) []byte {
		return fmt.Appendf(nil, `{"name":"desk","kind":"webhook","enabled":%v,"config":{"url":"https://desk.example.org"},"secret":"env:DESK"}`, enabled)
	}
	first, err := c.CreateSink(ctx, "desk", desk(true))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.CreateSink(ctx, "desk", desk(true)); !errors.Is(err, stream.ErrConflict) {
		t.Errorf("a second one of the name: %v", err)
	}
	second, err := c.SetSink(ctx, "desk", desk(false), first.Revision)
	if err != nil || second.Revision <= first.Revision {
		t.Fatalf("%+v, %v", second, err)
	}
	if _, err := c.SetSink(ctx, "desk", desk(true), first.Revision); !errors.Is(err, stream.ErrConflict) {
		t.Errorf("who is late: %v", err)
	}
	b, err := r.JS.KeyValue(ctx, r.Names.SinksBucket())
	if err != nil {
		t.Fatal(err)
	}
	if e, err := b.Get(ctx, "desk"); err != nil || e.Revision() != second.Revision || string(e.Value()) != string(desk(false)) {
		t.Errorf("stored: %s, %v", e.Value(), err)
	}
	for _, value := range []string{`{"name":"other","kind":"webhook"}`, `{"name":"lamp","kind":"webhook","secret":"hunter2"}`, `{"name":"lamp","kind":"webhook","colour":1}`, `[]`} {
		if _, err := c.SetSink(ctx, "lamp", []byte(value), 0); !errors.Is(err, stream.ErrBadMessage) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", value, err)
		}
	}
	// What nobody can read is replaced, and removed.
	if _, err := b.PutString(ctx, "lamp", "{"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.SetSink(ctx, "lamp", []byte(`{"name":"lamp","kind":"webhook","enabled":true}`), 0); err != nil {
		t.Error(err)
	}
	if _, err := b.PutString(ctx, "horn", "{"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"horn", "lamp", "desk"} {
		if err := c.RemoveSink(ctx, name); err != nil {
			t.Error(err)
		}
	}
	if err := c.RemoveSink(ctx, "desk"); !errors.Is(err, stream.ErrNotFound) {
		t.Errorf("one that is gone: %v", err)
	}
	var a sink.TestAnswer
	if err := c.AskSink(ctx, "test", sink.TestRequest{Sink: "desk"}, &a); err == nil || !strings.Contains(err.Error(), "nearmiss sinks") {
		t.Errorf("nobody runs the sinks: %v", err)
	}

	all, err := stream.NewInstallation(r.JS, r.Names).Audit(ctx, stream.AuditFilter{Object: "sink", By: "Kim"}, 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range all {
		result := e.Result
		if result != stream.AuditDone {
			result = "no"
		}
		got = append(got, e.Action+" "+e.Object+" "+result)
	}
	want := []string{
		"test sink/desk no", "delete sink/desk no", "delete sink/desk done", "delete sink/lamp done", "delete sink/horn done", "set sink/lamp done",
		"set sink/lamp no", "set sink/lamp no", "set sink/lamp no", "set sink/lamp no",
		"set sink/desk no", "set sink/desk done", "create sink/desk no", "create sink/desk done",
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the audit has %q\nwant %q", got, want)
	}
	if e := all[11]; !strings.Contains(string(e.Before), `"enabled":true`) || !strings.Contains(string(e.After), `"enabled":false`) {
		t.Errorf("%s → %s", e.Before, e.After)
	}
}

// What a change does without need not be there: while the releases are away, sinks are
// changed, and a collection that only counts is in no audit.
func TestAChangeNeedsOnlyWhatItUses(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	ctx := t.Context()
	if err := r.JS.DeleteObjectStore(ctx, r.Names.ArtifactsBucket()); err != nil {
		t.Fatal(err)
	}
	c := r.Client().For("Kim")
	if _, err := c.CreateSink(ctx, "desk", []byte(`{"name":"desk","kind":"webhook","enabled":true}`)); err != nil {
		t.Error(err)
	}
	if _, err := c.Collect(ctx, registry.CollectOptions{DryRun: true}); err == nil {
		t.Error("it was collected from nothing")
	}
	if err := c.Pin(ctx, stream.PinRequest{Detector: "bolts", Release: "1"}); err == nil {
		t.Error("a release was pinned where there is none")
	}
	var told []string
	for _, m := range r.Stored(r.Names.AuditStream()) {
		var e stream.AuditEntry
		if err := json.Unmarshal(m.Data, &e); err != nil {
			t.Fatal(err)
		}
		told = append(told, e.Action+" "+e.Object+" "+e.Result)
	}
	if want := []string{"create sink/desk done", "pin detector/bolts internal"}; !slices.Equal(told, want) {
		t.Errorf("%q, not %q", told, want)
	}
}
