package trainer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/object"
	"github.com/nearmiss/nearmiss/stream/internal/text"
	"github.com/nearmiss/nearmiss/stream/registry"
)

// Task is one job as a [Maker] sees it.
type Task struct {
	Request  stream.TrainRequest
	Detector stream.Detector // with the request's method and profile, and defaults

	Dir        string                   // scratch folder, empty at first, removed afterwards
	Normals    string                   // folder of the normal images; for Extend: of those to add; for Retract and Readjust: empty
	Anomalies  string                   // folder of the labelled anomalies, maybe empty
	Taken      map[string]stream.Normal // where and when each file in Normals was taken, by its name
	Count      int                      // normal images
	DataDigest string                   // of the normal images
	Active     string                   // folder of the active release, or empty
	ActiveID   string                   // its digest, or empty
	Checkpoint string                   // file of the last checkpoint of an earlier attempt, or empty
	Skipped    []stream.Normal          // normals and labelled anomalies without an image, which are left out
	First      bool                     // nothing serves, and frames wait: a release soon is worth more than the best

	taskState
}

// taskState is what a trainer keeps of a task.
type taskState struct {
	w          *Worker
	saved      []byte // digest of the folder that was saved or restored last
	lastNormal uint64 // sequence
	mu         sync.Mutex
	last       time.Time // when progress was last recorded
	busy, over bool      // progress is being recorded; the attempt has ended
	records    sync.WaitGroup
	past       past
}

// skip notes images of the training set that are not to be had, as far as the
// task wants them.
func (t *Task) skip(all []stream.Normal) {
	for _, n := range all {
		if len(t.Request.Extend) == 0 || slices.Contains(t.Request.Extend, n.Sequence) {
			t.Skipped = append(t.Skipped, n)
		}
	}
}

// Report publishes progress; it may be called as often as there is something
// to say. It does not wait for the broker.
func (t *Task) Report(p stream.Progress) {
	p.Job, p.Detector, p.State, p.At = t.Request.Job, t.Request.Detector, stream.JobRunning, time.Now().UTC()
	t.w.cfg.Meter.Progress(t.Request.Kind(), p)
	t.w.reportProgress(p)
	// The record is for those who come later: once a second is enough, and what
	// comes while one is written is written with the next.
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return
	}
	t.past.add(p)
	if t.busy || time.Since(t.last) < time.Second {
		return
	}
	t.busy, t.last = true, time.Now()
	keep := t.past.sheet != nil || p.Frechet != nil || time.Since(t.past.stored) > historyEvery
	t.records.Go(func() {
		t.record(p)
		if keep {
			t.keep()
		}
		t.mu.Lock()
		t.busy = false
		t.mu.Unlock()
	})
}

func (t *Task) record(p stream.Progress) {
	ctx, cancel := context.WithTimeout(context.Background(), stream.PublishWait)
	defer cancel()
	if _, err := t.w.jobs.Update(ctx, p.Job, func(j *stream.Job) error {
		if err := t.w.mine(j); err != nil {
			return err
		}
		j.Progress = &p
		return nil
	}); err != nil {
		t.w.log.Debug().Err(err).Msg("progress not recorded")
	}
}

// close waits for progress that is being recorded, has none recorded any more, and
// keeps what there was.
func (t *Task) close() {
	t.mu.Lock()
	t.over = true
	t.mu.Unlock()
	t.records.Wait()
	t.keep()
}

// SaveCheckpoint stores a file from which another trainer can go on. When it
// returns nil, the work up to it is safe. It waits a few minutes for a broker
// that is away.
func (t *Task) SaveCheckpoint(ctx context.Context, path string) error {
	b := backoff.NewExponentialBackOff(backoff.WithMaxInterval(5*time.Second), backoff.WithMaxElapsedTime(5*time.Minute))
	if err := stream.Retry(ctx, b, func() error { return t.saveCheckpoint(ctx, path) }); err != nil {
		return fmt.Errorf("save checkpoint of job %s: %w", t.Request.Job, err)
	}
	return nil
}

func (t *Task) saveCheckpoint(ctx context.Context, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return stream.Permanent(stream.CodeInternal, err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return stream.Permanent(stream.CodeInternal, err)
	}
	step, cancel := context.WithTimeout(ctx, 10*time.Second+time.Duration(fi.Size()>>21)*time.Second)
	defer cancel()
	// A new name each time: the last checkpoint is whole until the record names
	// the next one.
	j, err := t.w.jobs.Get(step, t.Request.Job)
	if err != nil {
		return err
	}
	old := j.Checkpoint
	name := fmt.Sprintf("%s%s/%d", stream.CheckpointObjects, t.Request.Job, j.CheckpointN+1)
	if _, err := t.w.artifacts.Put(step, jetstream.ObjectMeta{Name: name, Opts: &jetstream.ObjectMetaOptions{ChunkSize: 252 << 10}}, object.Chunked{Reader: f}); err != nil {
		return err
	}
	if _, err := t.w.jobs.Update(step, t.Request.Job, func(j *stream.Job) error {
		if err := t.w.mine(j); err != nil {
			return err
		}
		j.Checkpoint = name
		j.CheckpointN++
		j.Attempts = 0 // it gets on
		return nil
	}); err != nil {
		return err
	}
	if old != "" && old != name {
		_ = t.w.artifacts.Delete(step, old)
	}
	return nil
}

// prepare brings a job's data to this machine.
func (w *Worker) prepare(ctx context.Context, job stream.Job, dir string) (*Task, error) {
	det, err := w.detectors.Get(ctx, job.Detector)
	if errors.Is(err, stream.ErrNoDetector) {
		return nil, stream.Permanent(stream.CodeNotFound, err)
	}
	if err != nil {
		return nil, err
	}
	det = det.WithDefaults()
	if job.Method != "" {
		det.Method = job.Method
	}
	if job.Profile != "" {
		det.Profile = job.Profile
	}
	t := &Task{
		Request: job.TrainRequest, Detector: det, taskState: taskState{w: w},
		Dir: filepath.Join(dir, "work"), Normals: filepath.Join(dir, "normals"), Anomalies: filepath.Join(dir, "anomalies"),
		Taken: map[string]stream.Normal{},
	}
	if t.past.points, err = w.in.History(ctx, job.Job); err != nil { // of an earlier attempt
		w.log.Debug().Err(err).Str("job", job.Job).Msg("its earlier progress is not known")
	}
	t.past.stored = time.Now()
	for _, d := range []string{t.Dir, t.Normals, t.Anomalies} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return nil, err
		}
	}
	only := map[uint64]bool{}
	for _, seq := range job.Extend {
		only[seq] = true
	}
	save := func(folder string) func(stream.Normal) error {
		return func(n stream.Normal) error {
			name := fmt.Sprintf("%012d%s", n.Sequence, cmp.Or(stream.ImageExtension(n.Image), ".img"))
			if folder == t.Normals {
				if len(only) > 0 && !only[n.Sequence] {
					return nil
				}
				t.Count++
				t.lastNormal = max(t.lastNormal, n.Sequence)
				about := n
				about.Image = nil
				t.Taken[name] = about
			}
			return os.WriteFile(filepath.Join(folder, name), n.Image, 0o644)
		}
	}
	if !job.Readjust && len(job.Retract) == 0 {
		replay, err := w.normals.Replay(ctx, job.Detector, false, true, save(t.Normals))
		if err != nil {
			return nil, err
		}
		t.DataDigest = replay.Digest
		t.skip(replay.Skipped)
		if t.Count == 0 && len(job.Extend) == 0 {
			return nil, stream.Permanent(stream.CodeBadRequest, fmt.Errorf("detector %s has no such normal images: add some first", job.Detector))
		}
	}
	if !job.Derived() {
		replay, err := w.normals.Replay(ctx, job.Detector, true, true, save(t.Anomalies))
		if err != nil {
			return nil, err
		}
		t.skip(replay.Skipped)
	}
	w.reportSkipped(ctx, job, t.Skipped)
	p, err := w.registry.Active(ctx, job.Detector)
	switch {
	case errors.Is(err, registry.ErrNoRelease), errors.Is(err, registry.ErrCorrupt):
	case err != nil:
		return nil, err
	default:
		if t.Active, err = w.registry.Get(ctx, p.Release); err != nil {
			w.log.Warn().Err(err).Str("release", text.Short(p.Release)).Msg("the active release cannot be read: training without it")
			t.Active = ""
		} else {
			t.ActiveID = p.Release
		}
	}
	t.First = job.Learns() && t.Active == ""
	if job.Derived() && t.Active == "" {
		return nil, stream.Permanent(stream.CodeBadRequest, fmt.Errorf("detector %s has no release to change: train it", job.Detector))
	}
	if job.Checkpoint != "" {
		path := filepath.Join(dir, "checkpoint")
		if err := w.download(ctx, job.Checkpoint, path); err != nil {
			w.log.Warn().Err(err).Str("job", job.Job).Msg("the checkpoint cannot be read: beginning anew")
		} else {
			t.Checkpoint = path
		}
	}
	return t, nil
}

// reportSkipped says which images of a training set are left out, and how to be rid
// of them.
func (w *Worker) reportSkipped(ctx context.Context, job stream.Job, all []stream.Normal) {
	if len(all) == 0 {
		return
	}
	first := all[0]
	why := fmt.Sprintf("%d images of the training set of %s cannot be read and are left out, the first is number %d: %s; "+
		"nearmiss normals list %s shows them, nearmiss normals remove %s %d removes one",
		len(all), job.Detector, first.Sequence, first.Problem, job.Detector, job.Detector, first.Sequence)
	w.log.Warn().Str("job", job.Job).Msg(why)
	last := all[len(all)-1].Sequence
	if err := w.in.StoreEvent(ctx, stream.Notice(stream.KindStore, job.Detector, stream.NoCamera, "", stream.StoreMissing, why, fmt.Sprintf("%d/%d", len(all), last))); err != nil {
		w.log.Debug().Err(err).Msg("notice not stored")
	}
}

func (w *Worker) download(ctx context.Context, name, path string) error {
	info, err := w.artifacts.GetInfo(ctx, name)
	if err != nil {
		return err
	}
	step, cancel := context.WithTimeout(ctx, time.Minute+time.Duration(info.Size>>21)*time.Second)
	defer cancel()
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	err = object.Copy(step, w.js, w.cfg.ArtifactsBucket(), info, f)
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}
