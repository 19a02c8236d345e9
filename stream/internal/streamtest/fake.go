package streamtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/registry"
	"github.com/nearmiss/nearmiss/stream/trainer"
	"github.com/nearmiss/nearmiss/stream/worker"
)

// Release stores a release whose only file says how the fake scorer behaves,
// and makes it active.
func (r *Rig) Release(detector string, f Fake) string {
	r.T.Helper()
	digest := r.Put(detector, f)
	_, err := r.Registry.Promote(r.T.Context(), detector, digest, registry.Change{By: "test"})
	r.must(err)
	return digest
}

func (r *Rig) Put(detector string, f Fake) string {
	r.T.Helper()
	digest, err := r.Registry.Put(r.T.Context(), detector, WriteRelease(r.T, f))
	r.must(err)
	return digest
}

// WriteRelease makes a release folder.
func WriteRelease(t testing.TB, f Fake) string {
	t.Helper()
	dir := t.TempDir()
	if err := MakeRelease(dir, f); err != nil {
		t.Fatal(err)
	}
	return dir
}

func MakeRelease(dir string, f Fake) error {
	model, err := json.Marshal(f)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	sum := sha256.Sum256(model)
	manifest := fmt.Sprintf(`{"schema_version":1,"files":{"fake.json":{"sha256":%q,"size":%d}}}`, hex.EncodeToString(sum[:]), len(model))
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "fake.json"), model, 0o644),
		os.WriteFile(filepath.Join(dir, "manifest.json"), []byte(manifest), 0o644),
	)
}

// readRelease reads what MakeRelease wrote.
func readRelease(dir string) (f Fake, err error) {
	b, err := os.ReadFile(filepath.Join(dir, "fake.json"))
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	return f, err
}

// Fake is a deterministic scorer: the score is a number of the image's bytes.
type Fake struct {
	Name      string        // makes releases differ
	Threshold float64       // default 0.9
	Delay     time.Duration // of each batch
	Broken    string        // Load fails with it
	Normal    [][]byte      // images that are normal, whatever their number
	Retracted []uint64      // normals that have left the bank

	OnScore func([][]byte) error `json:"-"` // for tests of one process
}

func (f Fake) threshold() float64 {
	if f.Threshold == 0 {
		return 0.9
	}
	return f.Threshold
}

// Image makes the bytes of a fake image; number is between 0 and 1.
func Image(number float64) []byte {
	b := []byte("FAKE")
	return binary.LittleEndian.AppendUint64(b, uint64(number*(1<<32)))
}

func (f Fake) Score(ctx context.Context, images [][]byte) ([]worker.Verdict, error) {
	if f.Delay > 0 {
		select {
		case <-time.After(f.Delay):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if f.OnScore != nil {
		if err := f.OnScore(images); err != nil {
			return nil, err
		}
	}
	out := make([]worker.Verdict, len(images))
	for i, b := range images {
		switch {
		case len(b) == 0:
			out[i] = worker.Verdict{Reject: "empty", Reason: "the image has no bytes"}
		case !bytes.HasPrefix(b, []byte("FAKE")) || len(b) < 12:
			out[i] = worker.Verdict{Reject: "unsupported", Reason: "this is no image"}
		default:
			s := float64(binary.LittleEndian.Uint64(b[4:])) / (1 << 32)
			if slices.ContainsFunc(f.Normal, func(k []byte) bool { return bytes.Equal(k, b) }) {
				s = 0
			}
			out[i] = worker.Verdict{
				Score: s, Threshold: f.threshold(), PValue: 1 - s, Anomalous: s > f.threshold(), K: 2,
				Nearest: []stream.Near{{ID: 1, Distance: s / 2}, {ID: 2, Distance: s / 2}}, Width: 8, Height: 8,
			}
		}
	}
	return out, nil
}

func (f Fake) Close() error { return nil }

// LoadFake is the Loader of fakes.
func LoadFake(_ context.Context, dir string) (worker.Scorer, error) {
	f, err := readRelease(dir)
	if err != nil {
		return nil, err
	}
	if f.Broken != "" {
		return nil, errors.New(f.Broken)
	}
	return f, nil
}

// FakeTrainer makes releases of fakes.
type FakeTrainer struct {
	T       testing.TB
	OnTrain func(ctx context.Context, task *trainer.Task) error // before the release is made
	Model   func(task *trainer.Task) Fake
	Without string // what a first release is made without
}

func (f FakeTrainer) Train(ctx context.Context, task *trainer.Task) (trainer.Result, error) {
	if f.OnTrain != nil {
		if err := f.OnTrain(ctx, task); err != nil {
			return trainer.Result{}, err
		}
	}
	model := Fake{Name: task.Request.Job}
	if f.Model != nil {
		model = f.Model(task)
	}
	made := trainer.Result{Dir: WriteRelease(f.T, model)}
	if task.First {
		made.Without = f.Without
	}
	return made, nil
}

func (f FakeTrainer) Extend(_ context.Context, task *trainer.Task) (trainer.Result, error) {
	return f.derive(task, func(old *Fake) error {
		files, err := os.ReadDir(task.Normals)
		for _, e := range files {
			b, err := os.ReadFile(filepath.Join(task.Normals, e.Name()))
			if err != nil {
				return err
			}
			old.Normal = append(old.Normal, b)
		}
		return err
	})
}

func (f FakeTrainer) Retract(_ context.Context, task *trainer.Task) (trainer.Result, error) {
	return f.derive(task, func(old *Fake) error {
		old.Normal, old.Retracted = nil, append(old.Retracted, task.Request.Retract...)
		return nil
	})
}

func (f FakeTrainer) Readjust(_ context.Context, task *trainer.Task) (trainer.Result, error) {
	return f.derive(task, func(old *Fake) error {
		old.Threshold = 1 - task.Detector.FalseAlarmRate
		return nil
	})
}

// derive makes a release of the active one.
func (f FakeTrainer) derive(task *trainer.Task, change func(*Fake) error) (trainer.Result, error) {
	old, err := readRelease(task.Active)
	if err == nil {
		err = change(&old)
	}
	if err != nil {
		return trainer.Result{}, err
	}
	return trainer.Result{Dir: WriteRelease(f.T, old)}, nil
}

// Serve is a Loader of one scorer.
func Serve(f Fake) worker.Loader {
	return func(context.Context, string) (worker.Scorer, error) { return f, nil }
}
