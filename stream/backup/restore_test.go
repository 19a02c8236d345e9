package backup_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/backup"
	"github.com/nearmiss/nearmiss/stream/broker"
	"github.com/nearmiss/nearmiss/stream/internal/streamtest"
	"github.com/nearmiss/nearmiss/stream/registry"
)

// installation is a new broker that has been set up.
func installation(t *testing.T, topology stream.Topology) (js jetstream.JetStream, url string) {
	t.Helper()
	b, _ := brokertest.Start(t, broker.Config{Port: -1})
	js = brokertest.Streams(t, b.ClientURL())
	if err := stream.Ensure(t.Context(), js, topology); err != nil {
		t.Fatal(err)
	}
	return js, b.ClientURL()
}

// TestRestoresAtOnce: of several programs that restore at the same moment, while others
// set the broker up, one restores all that was backed up, and the others change nothing.
func TestRestoresAtOnce(t *testing.T) {
	ctx, names := t.Context(), stream.Names{}
	topology := stream.Topology{Names: names}
	from, _ := installation(t, topology)
	const normals = 30
	for i := range normals {
		if _, err := from.Publish(ctx, names.Normals("bolts"), fmt.Append(make([]byte, 100<<10), i)); err != nil {
			t.Fatal(err)
		}
	}
	dir := filepath.Join(t.TempDir(), "b")
	if _, err := (backup.Source{Conn: from.Conn(), Names: names}).Save(ctx, dir, backup.Models); err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		to, url := installation(t, topology)
		var all sync.WaitGroup
		ended := make([]error, 4)
		for i := range ended {
			js := brokertest.Streams(t, url)
			all.Go(func() {
				if i%2 == 0 {
					_, ended[i] = backup.Source{Conn: js.Conn(), Names: names}.Restore(ctx, dir, 1)
				} else {
					ended[i] = stream.Ensure(ctx, js, topology)
				}
			})
		}
		all.Wait()
		done := 0
		for i, err := range ended {
			switch {
			case err == nil && i%2 == 0:
				done++
			case err != nil && (i%2 != 0 || !errors.Is(err, backup.ErrNotEmpty)):
				t.Errorf("round %d, program %d: %v", round, i, err)
			}
		}
		s, err := to.Stream(ctx, names.NormalsStream())
		if err != nil {
			t.Fatal(err)
		}
		if n := s.CachedInfo().State.Msgs; done != 1 || n != normals {
			t.Fatalf("round %d: %d have restored, of %d normals %d are there", round, done, normals, n)
		}
	}
}

// TestARestoreWhereNothingIsLeft: marks of keys that are gone, such as trainers leave, are in
// nobody's way; what was written is, also where it was deleted.
func TestARestoreWhereNothingIsLeft(t *testing.T) {
	ctx, names := t.Context(), stream.Names{}
	from, _ := installation(t, stream.Topology{Names: names})
	dir := filepath.Join(t.TempDir(), "b")
	if _, err := (backup.Source{Conn: from.Conn(), Names: names}).Save(ctx, dir, backup.Config); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		before func(kv jetstream.KeyValue) error
		want   error
	}{
		"a lease that has ended": {func(kv jetstream.KeyValue) error { return kv.Purge(ctx, registry.CollectLease) }, nil},
		"a value": {func(kv jetstream.KeyValue) error {
			_, err := kv.PutString(ctx, "bolts", "{}")
			return err
		}, backup.ErrNotEmpty},
		"a value that was deleted": {func(kv jetstream.KeyValue) error {
			_, err := kv.PutString(ctx, "bolts", "{}")
			return errors.Join(err, kv.Delete(ctx, "bolts"))
		}, backup.ErrNotEmpty},
	} {
		t.Run(name, func(t *testing.T) {
			to, _ := installation(t, stream.Topology{Names: names})
			kv, err := to.KeyValue(ctx, names.ActiveBucket())
			if err == nil {
				err = c.before(kv)
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := (backup.Source{Conn: to.Conn(), Names: names}).Restore(ctx, dir, 1); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
}

// TestABackupLacksNoReleaseOfItsPointers: of releases that served or scored alongside for a
// moment, and were collected before the files were copied.
func TestABackupLacksNoReleaseOfItsPointers(t *testing.T) {
	for name, c := range map[string]struct {
		before, after func(r *streamtest.Rig, old, other string) error
	}{
		"active for a moment": {
			func(r *streamtest.Rig, _, other string) error {
				_, err := r.Registry.Promote(r.T.Context(), "bolts", other, registry.Change{})
				return err
			},
			func(r *streamtest.Rig, old, _ string) error {
				_, err := r.Registry.Promote(r.T.Context(), "bolts", old, registry.Change{})
				return err
			},
		},
		"a candidate": {
			func(r *streamtest.Rig, _, other string) error {
				return r.Registry.SetShadow(r.T.Context(), "bolts", other, registry.Change{})
			},
			func(r *streamtest.Rig, _, _ string) error {
				return r.Registry.SetShadow(r.T.Context(), "bolts", "", registry.Change{})
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := streamtest.New(t, stream.Topology{})
			old := r.Release("bolts", streamtest.Fake{Name: "A"})
			other := r.Put("bolts", streamtest.Fake{Name: "B"})
			told := func(e backup.Entry) {
				var err error
				switch e.Stream {
				case "KV_" + r.Names.DetectorsBucket(): // the copy before
					err = c.before(r, old, other)
				case "KV_" + r.Names.ActiveBucket():
					if err = c.after(r, old, other); err == nil {
						_, err = r.Registry.Collect(t.Context(), registry.CollectOptions{Keep: -1, Grace: -1})
					}
				}
				if err != nil {
					t.Error(err)
				}
			}
			dir := filepath.Join(t.TempDir(), "b")
			_, err := backup.Source{Conn: r.NC, Names: r.Names, Done: told}.Save(t.Context(), dir, backup.Models)
			if !errors.Is(err, registry.ErrNoRelease) || !strings.Contains(err.Error(), "detector bolts") {
				t.Errorf("without %.8s: %v", other, err)
			}
		})
	}
}

// TestABackupLacksNoRelease: one that is replaced and collected between the copies of the
// pointers and of the files makes no backup.
func TestABackupLacksNoRelease(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	first := r.Release("bolts", streamtest.Fake{Name: "A"})
	source := backup.Source{Conn: r.NC, Names: r.Names}
	saved := source
	saved.Done = func(e backup.Entry) {
		if e.Stream != "KV_"+r.Names.ActiveBucket() {
			return
		}
		r.Release("bolts", streamtest.Fake{Name: "B"})
		if got, err := r.Registry.Collect(t.Context(), registry.CollectOptions{Keep: -1, Grace: -1}); err != nil || !slices.Equal(got.Releases, []string{first}) {
			t.Errorf("%+v, %v", got, err)
		}
	}
	dir := filepath.Join(t.TempDir(), "b")
	if _, err := saved.Save(t.Context(), dir, backup.Models); !errors.Is(err, registry.ErrNoRelease) || !strings.Contains(err.Error(), "detector bolts") {
		t.Errorf("without %s: %v", first, err)
	}
	if _, err := backup.Read(dir); err == nil {
		t.Error("there is a backup all the same")
	}
	if _, err := source.Save(t.Context(), dir+"2", backup.Models); err != nil {
		t.Error(err)
	}
	now, err := r.Registry.Active(t.Context(), "bolts")
	if err != nil {
		t.Fatal(err)
	}
	files, err := r.JS.ObjectStore(t.Context(), r.Names.ArtifactsBucket())
	if err == nil {
		err = files.Delete(t.Context(), now.Release)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := source.Save(t.Context(), dir+"3", backup.Models); err != nil {
		t.Errorf("where a release was lost before: %v", err)
	}
}
