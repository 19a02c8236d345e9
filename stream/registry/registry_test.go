package registry_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/inference/release/envelope"
	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/stream/broker"
	"github.com/nearmiss/nearmiss/stream/registry"
)

func TestMain(m *testing.M) { brokertest.Main(m) }

const bucket = "ARTIFACTS"

type rig struct {
	js    jetstream.JetStream
	reg   *registry.Registry
	blobs jetstream.ObjectStore
	cache string
}

func setUp(t testing.TB) *rig {
	t.Helper()
	js := brokertest.JetStream(t, broker.Config{})
	if _, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "ACTIVE", History: 64}); err != nil {
		t.Fatal(err)
	}
	r := &rig{js: js, cache: t.TempDir()}
	var err error
	if r.blobs, err = js.CreateObjectStore(t.Context(), jetstream.ObjectStoreConfig{Bucket: bucket}); err != nil {
		t.Fatal(err)
	}
	r.reg = r.open(t, r.cache)
	return r
}

func (r *rig) open(t testing.TB, cache string) *registry.Registry {
	t.Helper()
	reg, err := registry.Open(t.Context(), r.js, registry.Config{ActiveBucket: "ACTIVE", ArtifactsBucket: bucket, CacheDir: cache})
	if err != nil {
		t.Fatal(err)
	}
	return reg
}

// folder writes a release of these files.
func folder(t testing.TB, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	type file struct {
		SHA256 string `json:"sha256"`
		Size   int    `json:"size"`
	}
	m := struct {
		Files map[string]file `json:"files"`
	}{map[string]file{}}
	for name, data := range files {
		sum := sha256.Sum256(data)
		m.Files[name] = file{hex.EncodeToString(sum[:]), len(data)}
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, envelope.ManifestName), raw, 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// noise is n random bytes.
func noise(n int, seed byte) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func (r *rig) put(t testing.TB, files map[string][]byte) string {
	t.Helper()
	digest, err := r.reg.Put(t.Context(), "bolts", folder(t, files))
	if err != nil {
		t.Fatal(err)
	}
	return digest
}

func same(t testing.TB, dir string, files map[string][]byte) {
	t.Helper()
	for name, want := range files {
		if got, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name))); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, want %d: %v", name, len(got), len(want), err)
		}
	}
}

func TestAReleaseComesBackAsItWasPut(t *testing.T) {
	r := setUp(t)
	files := map[string][]byte{
		"backbone.onnx": noise(5<<20, 1), "bank.nmb": noise(300_000, 2), "empty": {}, "external/weights.bin": noise(1000, 3),
	}
	digest := r.put(t, files)
	dir, err := r.reg.Get(t.Context(), digest)
	if err != nil {
		t.Fatal(err)
	}
	same(t, dir, files)

	t.Run("another release sends only what is new", func(t *testing.T) {
		before := objects(t, r)
		files["bank.nmb"] = noise(300_000, 4)
		r.put(t, files)
		if n := objects(t, r) - before; n != 2 {
			t.Errorf("%d new objects, want the bank and the manifest", n)
		}
	})
	t.Run("a damaged copy in the cache is fetched again", func(t *testing.T) {
		path := filepath.Join(dir, "external", "weights.bin")
		if err := os.WriteFile(path, []byte("wrong"), 0o644); err != nil {
			t.Fatal(err)
		}
		again, err := r.reg.Get(t.Context(), digest)
		if err != nil || again != dir {
			t.Fatalf("%s, %v", again, err)
		}
		same(t, dir, map[string][]byte{"external/weights.bin": noise(1000, 3)})
	})
	t.Run("many can get it at once", func(t *testing.T) {
		cache := t.TempDir()
		var wg sync.WaitGroup
		for range 4 {
			reg := r.open(t, cache)
			wg.Go(func() {
				if _, err := reg.Get(t.Context(), digest); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if left, _ := filepath.Glob(filepath.Join(cache, "*", ".get-*")); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	t.Run("list and show", func(t *testing.T) {
		all, err := r.reg.List(t.Context(), "bolts")
		if err != nil || len(all) != 2 || all[0].Digest != digest {
			t.Fatalf("%+v, %v", all, err)
		}
		rel, err := r.reg.Show(t.Context(), digest)
		if err != nil || len(rel.Files) != 4 || rel.Detector != "bolts" {
			t.Errorf("%+v, %v", rel, err)
		}
		if full, err := r.reg.Resolve(t.Context(), "bolts", digest[:8]); err != nil || full != digest {
			t.Errorf("%s, %v", full, err)
		}
		if _, err := r.reg.Resolve(t.Context(), "nuts", digest[:8]); !errors.Is(err, registry.ErrNoRelease) {
			t.Error(err)
		}
	})
}

func objects(t testing.TB, r *rig) int {
	t.Helper()
	all, err := r.blobs.List(t.Context())
	if err != nil && !errors.Is(err, jetstream.ErrNoObjectsFound) {
		t.Fatal(err)
	}
	return len(all)
}

func TestWhatIsDamagedIsRefused(t *testing.T) {
	r := setUp(t)
	model := noise(1<<20, 1)
	sum := sha256.Sum256(model)
	name := hex.EncodeToString(sum[:])
	digest := r.put(t, map[string][]byte{"backbone.onnx": model})
	if _, err := r.reg.Promote(t.Context(), "bolts", digest, registry.Change{}); err != nil {
		t.Fatal(err)
	}
	chunks := func() (jetstream.Stream, []uint64) {
		info, err := r.blobs.GetInfo(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		s, err := r.js.Stream(t.Context(), "OBJ_"+bucket)
		if err != nil {
			t.Fatal(err)
		}
		var seqs []uint64
		for seq := uint64(1); seq <= s.CachedInfo().State.LastSeq; seq++ {
			if m, err := s.GetMsg(t.Context(), seq); err == nil && m.Subject == "$O."+bucket+".C."+info.NUID {
				seqs = append(seqs, seq)
			}
		}
		return s, seqs
	}
	check := func(t *testing.T, want error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		if _, err := r.open(t, t.TempDir()).Get(ctx, digest); !errors.Is(err, want) {
			t.Errorf("get: %v, want %v", err, want)
		}
		if _, err := r.reg.Promote(ctx, "nuts", digest, registry.Change{}); err == nil {
			t.Error("it can be promoted")
		}
	}
	t.Run("an object of another content", func(t *testing.T) {
		if _, err := r.blobs.PutBytes(t.Context(), name, noise(1<<20, 9)); err != nil {
			t.Fatal(err)
		}
		check(t, registry.ErrCorrupt)
	})
	t.Run("an object of another size", func(t *testing.T) {
		if _, err := r.blobs.PutBytes(t.Context(), name, model[:1000]); err != nil {
			t.Fatal(err)
		}
		check(t, registry.ErrCorrupt)
	})
	t.Run("putting it again does not believe it", func(t *testing.T) {
		if again := r.put(t, map[string][]byte{"backbone.onnx": model}); again != digest {
			t.Fatalf("digest %s", again)
		}
		if _, err := r.open(t, t.TempDir()).Get(t.Context(), digest); err != nil {
			t.Error(err)
		}
	})
	t.Run("an object without its last chunk", func(t *testing.T) {
		s, seqs := chunks()
		if len(seqs) < 3 {
			t.Fatalf("%d chunks", len(seqs))
		}
		if err := s.DeleteMsg(t.Context(), seqs[len(seqs)-1]); err != nil {
			t.Fatal(err)
		}
		check(t, registry.ErrCorrupt)
	})
	t.Run("an object without any chunk", func(t *testing.T) {
		s, seqs := chunks()
		for _, seq := range seqs {
			if err := s.DeleteMsg(t.Context(), seq); err != nil {
				t.Fatal(err)
			}
		}
		check(t, registry.ErrCorrupt)
	})
	t.Run("an object that is gone", func(t *testing.T) {
		if err := r.blobs.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		check(t, registry.ErrNoRelease)
	})
	t.Run("a manifest that is not there", func(t *testing.T) {
		if _, err := r.reg.Get(t.Context(), name); !errors.Is(err, registry.ErrNoRelease) {
			t.Error(err)
		}
		if _, err := r.reg.Get(t.Context(), "../../etc/passwd"); !errors.Is(err, registry.ErrNoRelease) {
			t.Error(err)
		}
	})
	t.Run("a folder that does not match its manifest", func(t *testing.T) {
		dir := folder(t, map[string][]byte{"backbone.onnx": model})
		if err := os.WriteFile(filepath.Join(dir, "backbone.onnx"), []byte("other"), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := r.reg.Put(t.Context(), "bolts", dir); !errors.Is(err, registry.ErrCorrupt) {
			t.Error(err)
		}
	})
}

func TestPointers(t *testing.T) {
	r := setUp(t)
	ctx := t.Context()
	var digests []string
	for i := range 4 {
		digests = append(digests, r.put(t, map[string][]byte{"bank.nmb": {byte(i)}}))
	}
	promote := func(i int, c registry.Change) error {
		_, err := r.reg.Promote(ctx, "bolts", digests[i], c)
		return err
	}
	rollback := func() (string, error) {
		p, err := r.reg.Rollback(ctx, "bolts", registry.Change{By: "me"})
		return p.Release, err
	}
	if _, err := r.reg.Active(ctx, "bolts"); !errors.Is(err, registry.ErrNoRelease) {
		t.Error(err)
	}
	if _, err := rollback(); !errors.Is(err, registry.ErrNoRelease) {
		t.Error(err)
	}
	for i := range 3 {
		if err := promote(i, registry.Change{By: "me", Reason: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := promote(3, registry.Change{Expect: digests[0]}); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("promotion over another release: %v", err)
	}
	if err := promote(3, registry.Change{Expect: digests[2]}); err != nil {
		t.Error(err)
	}
	// 0 1 2 3: back to 2, to 1, then 3 again, and back to 1.
	for _, want := range []int{2, 1} {
		if got, err := rollback(); err != nil || got != digests[want] {
			t.Errorf("rolled back to %s, %v, want %s", got, err, digests[want])
		}
	}
	if err := promote(3, registry.Change{}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []int{1, 0} {
		if got, err := rollback(); err != nil || got != digests[want] {
			t.Errorf("rolled back to %s, %v, want %s", got, err, digests[want])
		}
	}
	if _, err := rollback(); !errors.Is(err, registry.ErrNoPrevious) {
		t.Error(err)
	}
	h, err := r.reg.History(ctx, "bolts")
	if err != nil || len(h) != 9 || h[0].Release != digests[0] || h[0].RolledBack != digests[1] || h[8].Reason != "0" {
		t.Errorf("%d entries %+v, %v", len(h), h, err)
	}

	t.Run("of many who expect the same only one succeeds", func(t *testing.T) {
		var wg sync.WaitGroup
		var mu sync.Mutex
		won := 0
		for i := range 8 {
			wg.Go(func() {
				_, err := r.reg.Promote(ctx, "bolts", digests[1+i%3], registry.Change{Expect: digests[0]})
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					won++
				} else if !errors.Is(err, registry.ErrConflict) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		p, err := r.reg.Active(ctx, "bolts")
		if err != nil {
			t.Fatal(err)
		}
		// Those who found their own release active meanwhile had nothing to do.
		if won < 1 || p.Release == digests[0] {
			t.Errorf("%d won, %s is active", won, p.Release)
		}
	})
	t.Run("a watch tells of changes", func(t *testing.T) {
		wctx, cancel := context.WithCancel(ctx)
		told := make(chan struct{}, 100)
		done := make(chan error, 1)
		go func() { done <- r.reg.Watch(wctx, func() { told <- struct{}{} }) }()
		<-told // it has begun
		if err := r.reg.SetShadow(ctx, "bolts", digests[2], registry.Change{}); err != nil {
			t.Fatal(err)
		}
		<-told
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if p, err := r.reg.Shadow(ctx, "bolts"); err != nil || p.Release != digests[2] {
			t.Errorf("%+v, %v", p, err)
		}
		if err := r.reg.SetShadow(ctx, "bolts", "", registry.Change{}); err != nil {
			t.Fatal(err)
		}
		if _, err := r.reg.Shadow(ctx, "bolts"); !errors.Is(err, registry.ErrNoRelease) {
			t.Error(err)
		}
	})
	t.Run("a forgotten detector has none", func(t *testing.T) {
		if err := r.reg.Forget(ctx, "bolts"); err != nil {
			t.Fatal(err)
		}
		if all, _, _, err := r.reg.Pointers(ctx); err != nil || len(all) != 0 {
			t.Errorf("%v, %v", all, err)
		}
		if err := promote(0, registry.Change{Expect: "none"}); err != nil {
			t.Error(err)
		}
	})
}

// TestALargeRelease passes 350 MB when NEARMISS_LARGE is set, and 48 MB, many
// chunks, otherwise.
func TestALargeRelease(t *testing.T) {
	size := 48 << 20
	if os.Getenv("NEARMISS_LARGE") != "" {
		size = 350 << 20
	}
	r := setUp(t)
	files := map[string][]byte{"backbone.onnx": noise(size, 1)}
	dir := folder(t, files)
	begin := time.Now()
	digest, err := r.reg.Put(t.Context(), "bolts", dir)
	if err != nil {
		t.Fatal(err)
	}
	stored := time.Since(begin)
	begin = time.Now()
	got, err := r.reg.Get(t.Context(), digest)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d MB: put in %v, got in %v", size>>20, stored.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond))
	same(t, got, files)
}

// TestAReleaseOfTwoDetectors is listed for both, and active where it is.
func TestAReleaseOfTwoDetectors(t *testing.T) {
	r := setUp(t)
	ctx := t.Context()
	dir := folder(t, map[string][]byte{"bank.nmb": {1}})
	for range 2 { // storing it again changes nothing
		for _, detector := range []string{"bolts", "pub"} {
			if _, err := r.reg.Put(ctx, detector, dir); err != nil {
				t.Fatal(err)
			}
		}
	}
	digest, err := registry.Digest(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.reg.Promote(ctx, "pub", digest, registry.Change{}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.reg.Promote(ctx, "other", digest, registry.Change{}); err != nil { // never stored for it
		t.Fatal(err)
	}
	for detector, active := range map[string]bool{"bolts": false, "pub": true, "other": true, "": true} {
		all, err := r.reg.List(ctx, detector)
		if err != nil || len(all) != 1 || all[0].Digest != digest || all[0].Active != active || detector != "" && all[0].Detector != detector {
			t.Errorf("%q: %+v, %v", detector, all, err)
		}
	}
	if all, err := r.reg.List(ctx, "nobody"); err != nil || len(all) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
	if d, err := r.reg.Resolve(ctx, "pub", digest[:8]); err != nil || d != digest {
		t.Errorf("%s, %v", d, err)
	}
	if dir, err := r.reg.Get(ctx, digest); err != nil {
		t.Errorf("%s, %v", dir, err)
	}
}

// TestWhatIsPromotedIsThere, whoever collects at the same moment: a release that nobody
// needed until then, and one that is stored and has a file of it.
func TestWhatIsPromotedIsThere(t *testing.T) {
	r := setUp(t)
	ctx := t.Context()
	backbone := noise(300_000, 1)
	for round := range byte(6) {
		old := map[string][]byte{"backbone.onnx": backbone, "bank.nmb": {round}}
		digest := r.put(t, old)
		young := folder(t, map[string][]byte{"backbone.onnx": backbone, "bank.nmb": {round, 1}})
		promoted := make(chan string, 2)
		promote := func(reg *registry.Registry, detector, digest string) error {
			_, err := reg.Promote(ctx, detector, digest, registry.Change{})
			if err == nil {
				promoted <- digest
			} else if errors.Is(err, registry.ErrNoRelease) { // a collection was faster
				err = nil
			}
			return err
		}
		collect := func(reg *registry.Registry) error {
			_, err := reg.Collect(ctx, registry.CollectOptions{Keep: -1, Grace: -1})
			return err
		}
		var ready, ended sync.WaitGroup
		for i, do := range []func(*registry.Registry) error{
			collect, collect,
			func(reg *registry.Registry) error { return promote(reg, "bolts", digest) },
			func(reg *registry.Registry) error {
				digest, err := reg.Put(ctx, "nuts", young)
				if err != nil {
					return err
				}
				return promote(reg, "nuts", digest)
			},
		} {
			reg := r.open(t, t.TempDir())
			ready.Add(1)
			ended.Go(func() {
				ready.Done()
				ready.Wait()
				if err := do(reg); err != nil {
					t.Errorf("round %d: program %d: %v", round, i, err)
				}
			})
		}
		ended.Wait()
		close(promoted)
		for digest := range promoted {
			if _, err := r.open(t, t.TempDir()).Get(ctx, digest); err != nil {
				t.Errorf("round %d: a release is active: %v", round, err)
			}
		}
		for _, detector := range []string{"bolts", "nuts"} {
			if err := r.reg.Forget(ctx, detector); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestTurnsAreNoPointers, neither to this program nor to one of an earlier version, which
// reads the bucket while this one changes it, and knows pins.
func TestTurnsAreNoPointers(t *testing.T) {
	r := setUp(t)
	b, err := r.js.KeyValue(t.Context(), "ACTIVE")
	if err == nil {
		_, err = b.PutString(t.Context(), registry.CollectLease, "another's")
	}
	if err != nil {
		t.Fatal(err)
	}
	active, shadow, bad, err := r.open(t, "").Pointers(t.Context())
	if err != nil || len(active)+len(shadow)+len(bad) > 0 || !strings.HasPrefix(registry.CollectLease, "pin/") {
		t.Errorf("%v, %v, %v, %v", active, shadow, bad, err)
	}
}
