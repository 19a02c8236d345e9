package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/release"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/registry"
)

// tinySpec is the ViT of tests in which its embeddings hardly matter.
var tinySpec = backbone.Spec{
	Family: backbone.ViT, Dim: 64, Depth: 1, Heads: 2, Hidden: 128, Patch: 16, Size: 64, ClassPos: true, NormEps: 1e-6,
}

// smallRelease learns from the folder with a small ViT of random weights, by further
// flags of fit, and returns the release's folder and its score of each image.
func smallRelease(t *testing.T, normals string, seed uint64, images [][]byte, flags ...string) (dir string, scores []inference.Score) {
	t.Helper()
	model := filepath.Join(t.TempDir(), "model.onnx")
	if _, err := writeRandomBackbone(tinySpec, seed, model); err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(t.TempDir(), "release")
	fit := []string{"fit", "--normals", normals, "--backbone", model, "--out", dir, "--detector", "cells", "--alpha", "0.1", "--seed", "1"}
	program(t, 0, append(fit, flags...)...)
	return dir, scoresBy(t, dir, images)
}

// scoresBy scores the images with the release in a folder.
func scoresBy(t *testing.T, dir string, images [][]byte) []inference.Score {
	t.Helper()
	d, err := inference.Open(t.Context(), dir, inference.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	scores, err := d.Score(t.Context(), images)
	if err != nil {
		t.Fatal(err)
	}
	return scores
}

func readImages(t *testing.T, dir string) (files [][]byte) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, b)
	}
	return files
}

func openRegistry(t *testing.T, js jetstream.JetStream) *registry.Registry {
	t.Helper()
	n := stream.Names{}
	r, err := stream.NewInstallation(js, n).Registry(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestAHundredHotSwapsOfRealReleases exchanges two models and their banks in a
// worker process that always has frames waiting. A score that mixed two releases
// would be that of neither.
func TestAHundredHotSwapsOfRealReleases(t *testing.T) {
	needRuntime(t)
	const swaps, ahead = 100, 64
	normals, shown := filepath.Join(t.TempDir(), "normals"), filepath.Join(t.TempDir(), "shown")
	drawImages(t, normals, 60, 0)
	drawImages(t, shown, 40, 0.5)
	images := readImages(t, shown)

	url := startBroker(t)
	l := listen(t, url)
	reg := openRegistry(t, l.js)
	var digests [2]string
	want := map[string][]inference.Score{}
	parts := map[string]release.Manifest{}
	for i := range digests {
		dir, scores := smallRelease(t, normals, uint64(i+1), images)
		digest, err := reg.Put(t.Context(), "cells", dir)
		if err != nil {
			t.Fatal(err)
		}
		rel, err := release.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		digests[i], want[digest], parts[digest] = digest, scores, rel.Manifest
	}
	// Shown are the images by whose scores the releases can be told apart.
	var show []int
	for i := range images {
		if a, b := want[digests[0]][i].Score, want[digests[1]][i].Score; math.Abs(a-b) > 1e-2*a {
			show = append(show, i)
		}
	}
	if len(show) < 20 {
		t.Fatalf("only %d images score otherwise with the other release", len(show))
	}
	promote := func(i int) {
		t.Helper()
		if _, err := reg.Promote(t.Context(), "cells", digests[i%2], registry.Change{}); err != nil {
			t.Fatal(err)
		}
	}
	promote(0)
	w := start(t, "worker", "--server", url, "--data", t.TempDir(), "--batch", "8")
	w.logged("release is in service")

	// A camera that is always a little ahead of the worker.
	ctx, stop := context.WithCancel(t.Context())
	var camera sync.WaitGroup
	published := 0
	camera.Go(func() {
		for ctx.Err() == nil {
			if scores, _ := l.seen(); published >= len(scores)+ahead {
				time.Sleep(time.Millisecond)
				continue
			}
			m, err := stream.Frame{
				Detector: "cells", Camera: "one", ID: fmt.Sprint("f", published), Image: images[show[published%len(show)]],
			}.Message(stream.Names{})
			if err == nil {
				_, err = l.js.PublishMsg(context.WithoutCancel(ctx), m)
			}
			if err != nil {
				t.Error(err)
				return
			}
			published++
		}
	})
	latest := func() string {
		l.mu.Lock()
		defer l.mu.Unlock()
		if len(l.scores) == 0 {
			return ""
		}
		return l.scores[len(l.scores)-1].Release
	}
	var resident []int64 // MiB
	for i := 1; i <= swaps; i++ {
		promote(i)
		eventually.True(t, "the release scores", func() bool { return latest() == digests[i%2] })
		if i%10 == 0 {
			resident = append(resident, memory(t, w, "VmRSS:")>>20)
		}
	}
	stop()
	camera.Wait()
	eventually.True(t, "every frame is scored", func() bool {
		scores, _ := l.seen()
		return len(scores) >= published && l.waiting(t) == 0
	})
	w.stop()

	scores, _ := l.seen()
	seen := map[string]int{}
	mixed := 0
	var at []time.Time
	for _, e := range scores {
		seen[e.FrameID]++
		at = append(at, e.ScoredAt)
		var n int
		if _, err := fmt.Sscanf(e.FrameID, "f%d", &n); err != nil {
			t.Fatal(err)
		}
		rel, ok := want[e.Release]
		if !ok {
			t.Fatalf("frame %s: release %q", e.FrameID, e.Release)
		}
		s, m := rel[show[n%len(show)]], parts[e.Release]
		if math.Abs(*e.Score-s.Score) > 1e-4*s.Score || *e.Threshold != s.Threshold || e.Model != m.ModelDigest() || e.Bank != m.BankDigest() {
			mixed++
			t.Errorf("frame %s: score %v over %v, model %.12s, bank %.12s; release %.12s gives %v over %v",
				e.FrameID, *e.Score, *e.Threshold, e.Model, e.Bank, e.Release, s.Score, s.Threshold)
		}
	}
	lost, twice := published-len(seen), len(scores)-len(seen)
	if lost != 0 || twice != 0 {
		t.Errorf("of %d frames %d are lost and %d were scored twice", published, lost, twice)
	}
	slices.SortFunc(at, time.Time.Compare)
	var pause time.Duration
	for i := 1; i < len(at); i++ {
		pause = max(pause, at[i].Sub(at[i-1]))
	}
	if early, late := resident[1], slices.Max(resident[2:]); late > early+early/2 {
		t.Errorf("the worker's memory grew from %d MiB after 20 swaps to %d MiB", early, late)
	}
	t.Logf("%d swaps under %d frames (%.0f/s): %d lost, %d twice, %d mixed; longest pause between scores %v; resident memory after each 10 swaps %v MiB",
		swaps, published, float64(len(at))/at[len(at)-1].Sub(at[0]).Seconds(), lost, twice, mixed, pause.Round(time.Millisecond), resident)
}

// TestReleasesThatAreUnfitAreRefused promotes one bad release after the other in
// a running worker: each is refused with its reason, and the good one serves.
func TestReleasesThatAreUnfitAreRefused(t *testing.T) {
	needRuntime(t)
	normals := filepath.Join(t.TempDir(), "normals")
	drawImages(t, normals, 60, 0)
	images := readImages(t, normals)[:1]
	dir, _ := smallRelease(t, normals, 1, nil)
	other, _ := smallRelease(t, normals, 2, nil)
	read := func(dir, name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	// changed is the release with other content, whose digests are true.
	changed := func(t *testing.T, name string, content []byte) string {
		t.Helper()
		rel, err := release.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(t.TempDir(), "changed")
		b, err := release.Create(out)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Abort()
		for file := range rel.Manifest.Files {
			c := content
			if file != name {
				c = read(dir, file)
			}
			if err := b.AddBytes(file, c); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := b.Commit(t.Context(), rel.Manifest); err != nil {
			t.Fatal(err)
		}
		return out
	}
	model := read(dir, release.BackboneName)
	// notFinite is the model with a NaN among its largest weights.
	notFinite := func(t *testing.T) []byte {
		t.Helper()
		g, err := onnx.Decode(model, onnx.BindBatch(1))
		if err != nil {
			t.Fatal(err)
		}
		var weights []byte
		for _, v := range g.Initializers() {
			if w := v.Const(); w.Type == onnx.Float && len(w.Data) > len(weights) {
				weights = w.Data
			}
		}
		at := bytes.Index(model, weights)
		if at < 0 {
			t.Fatal("the weights are not in the model's file as they are")
		}
		b := slices.Clone(model)
		binary.LittleEndian.PutUint32(b[at:], math.Float32bits(float32(math.NaN())))
		return b
	}

	url := startBroker(t)
	l := listen(t, url)
	reg := openRegistry(t, l.js)
	// future publishes what a trainer of a later version may: a manifest of which this
	// program does not know the half.
	future := func(t *testing.T) string {
		t.Helper()
		out := changed(t, "", nil)
		name := filepath.Join(out, "manifest.json")
		b := read(out, "manifest.json")
		later := regexp.MustCompile(`"schema_version": \d+`).ReplaceAll(b, fmt.Appendf(nil, `"schema_version": %d, "aura": {"hue": [1, 2]}`, release.SchemaVersion+1))
		if bytes.Equal(later, b) {
			t.Fatalf("the manifest has no schema version: %.100s", b)
		}
		if err := os.WriteFile(name, later, 0o600); err != nil {
			t.Fatal(err)
		}
		return put(t, reg, out)
	}
	good, err := reg.Put(t.Context(), "cells", dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reg.Promote(t.Context(), "cells", good, registry.Change{}); err != nil {
		t.Fatal(err)
	}
	w := start(t, "worker", "--server", url, "--data", t.TempDir())
	w.logged("release is in service")
	watch := start(t, "watch", "cells", "--kind", "release", "--since", "1h", "--json", "--server", url)
	frames := 0
	for _, c := range []struct {
		name string
		bad  func(t *testing.T) string // publishes it, returns its digest
		want string                    // of the reason
	}{
		{"a corrupted model", func(t *testing.T) string {
			return put(t, reg, changed(t, release.BackboneName, model[:len(model)/2]))
		}, "backbone.onnx"},
		{"a bank of another model", func(t *testing.T) string {
			return put(t, reg, changed(t, release.BankName, read(other, release.BankName)))
		}, "check image"},
		{"another model for the bank", func(t *testing.T) string {
			return put(t, reg, changed(t, release.BackboneName, read(other, release.BackboneName)))
		}, "check image"},
		{"a model that gives NaN", func(t *testing.T) string {
			return put(t, reg, changed(t, release.BackboneName, notFinite(t)))
		}, "not finite"},
		{"a truncated object", func(t *testing.T) string {
			out := changed(t, release.BankName, read(other, release.BankName)[:1000])
			digest := put(t, reg, out)
			rel, err := release.Open(out)
			if err != nil {
				t.Fatal(err)
			}
			store, err := l.js.ObjectStore(t.Context(), stream.Names{}.ArtifactsBucket())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := store.PutBytes(t.Context(), rel.Manifest.BankDigest(), read(out, release.BankName)[:500]); err != nil {
				t.Fatal(err)
			}
			return digest
		}, "bytes"},
		{"a release of a later version", future, fmt.Sprintf("schema version %d, this program reads 1 to %d: use a matching version of nearmiss", release.SchemaVersion+1, release.SchemaVersion)},
	} {
		t.Run(c.name, func(t *testing.T) {
			digest := c.bad(t)
			// Past the registry's own check, which sees some of this.
			kv, err := l.js.KeyValue(t.Context(), stream.Names{}.ActiveBucket())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := kv.PutString(t.Context(), "cells", `{"detector":"cells","release":"`+digest+`"}`); err != nil {
				t.Fatal(err)
			}
			line := watch.line("the refusal", func(l string) bool {
				return strings.Contains(l, digest) && strings.Contains(l, stream.ReleaseRefused)
			})
			var e stream.Event
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatal(err)
			}
			t.Log(e.Reason)
			if !strings.Contains(e.Reason, c.want) || !strings.Contains(e.Reason, good[:12]+" goes on serving") {
				t.Errorf("the reason %q does not name %q or what serves", e.Reason, c.want)
			}
			m, err := stream.Frame{Detector: "cells", Camera: "one", ID: fmt.Sprint("f", frames), Image: images[0]}.Message(stream.Names{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := l.js.PublishMsg(t.Context(), m); err != nil {
				t.Fatal(err)
			}
			frames++
			eventually.True(t, "the frame is scored", func() bool { return len(l.scoresOf("cells")) == frames })
			if s := l.scoresOf("cells")[frames-1]; s.Release != good {
				t.Errorf("release %.12s scored it", s.Release)
			}
		})
	}
	watch.stop()

	// As a trainer of a later version does it. People see it, and a worker that is
	// started anew does not leave the frames.
	for _, digest := range []string{good, future(t)} {
		if _, err := reg.Promote(t.Context(), "cells", digest, registry.Change{}); err != nil {
			t.Fatal(err)
		}
	}
	said := func(when string) {
		t.Helper()
		eventually.True(t, "status and health say that it is refused "+when, func() bool {
			var status, health bytes.Buffer // a worker that is busy may not answer at once
			return run(t.Context(), []string{"status", "--server", url}, &status, io.Discard) == 0 && strings.Contains(status.String(), " was refused") &&
				run(t.Context(), []string{"health", "--server", url}, &health, io.Discard) == 0 && strings.Contains(health.String(), "healthy: ") &&
				strings.Contains(health.String(), "refuses the active release") && strings.Contains(health.String(), "serves "+good[:12])
		})
	}
	said("while the one before goes on")
	w.stop()
	w = start(t, "worker", "--server", url, "--data", t.TempDir())
	w.logged("falling back to the release before")
	w.logged("release is in service")
	said("after a start")
	m, err := stream.Frame{Detector: "cells", Camera: "one", ID: "last", Image: images[0]}.Message(stream.Names{})
	if err == nil {
		_, err = l.js.PublishMsg(t.Context(), m)
	}
	if err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "the frame is scored", func() bool { return len(l.scoresOf("cells")) == frames+1 })
	if s := l.scoresOf("cells")[frames]; s.Release != good {
		t.Errorf("release %.12s scored it", s.Release)
	}
	eventually.True(t, "no frame waits", func() bool { return l.waiting(t) == 0 }) // its score is sent before it is acknowledged
	w.stop()
}

func put(t *testing.T, reg *registry.Registry, dir string) string {
	t.Helper()
	digest, err := reg.Put(t.Context(), "cells", dir)
	if err != nil {
		t.Fatal(err)
	}
	return digest
}
