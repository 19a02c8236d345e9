package stream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/stream/registry"
)

// Trainer makes releases.
type Trainer interface {
	// Train learns from the task's normals and returns a release folder within
	// task.Dir. It reports progress and saves checkpoints through the task, and
	// stops soon after ctx ends. An error is tried again, from the last
	// checkpoint, unless it is a [PermanentError].
	Train(ctx context.Context, task *Task) (TrainResult, error)
	// Extend returns the task's active release with the task's images added to
	// its bank.
	Extend(ctx context.Context, task *Task) (TrainResult, error)
	// Retract returns the task's active release without the normals that its
	// request names in its bank; their files in it are called as those that Train
	// and Extend got, the sequence in twelve digits and an extension.
	Retract(ctx context.Context, task *Task) (TrainResult, error)
	// Readjust returns the task's active release with the k and the false-alarm
	// rate of its detector.
	Readjust(ctx context.Context, task *Task) (TrainResult, error)
}

// TrainResult is what a trainer made.
type TrainResult struct {
	// Dir is the release folder; empty says that there was nothing to do, and
	// Hold says why.
	Dir string
	// Hold, when not empty, says why the release must not replace the active
	// one, in a sentence: it did not pass the gate.
	Hold string
	// Notes are sentences about what the release cannot promise, for people.
	Notes []string
}

// Task is one job as a [Trainer] sees it.
type Task struct {
	Request  TrainRequest
	Detector Detector // with the request's method and profile, and defaults

	Dir        string            // scratch folder, empty at first, removed afterwards
	Normals    string            // folder of the normal images; for Extend: of those to add; for Retract and Readjust: empty
	Anomalies  string            // folder of the labelled anomalies, maybe empty
	Taken      map[string]Normal // where and when each file in Normals was taken, by its name
	Count      int               // normal images
	DataDigest string            // of the normal images
	Active     string            // folder of the active release, or empty
	ActiveID   string            // its digest, or empty
	Checkpoint string            // file of the last checkpoint of an earlier attempt, or empty
	Skipped    []Normal          // normals and labelled anomalies without an image, which are left out

	w          *TrainingWorker
	saved      []byte // digest of the folder that was saved or restored last
	lastNormal uint64 // sequence
	mu         sync.Mutex
	last       time.Time // when progress was last recorded
	busy, over bool      // progress is being recorded; the attempt has ended
	records    sync.WaitGroup
}

// skip notes images of the training set that are not to be had, as far as the
// task wants them.
func (t *Task) skip(all []Normal) {
	for _, n := range all {
		if len(t.Request.Extend) == 0 || slices.Contains(t.Request.Extend, n.Sequence) {
			t.Skipped = append(t.Skipped, n)
		}
	}
}

// Report publishes progress; it may be called as often as there is something
// to say. It does not wait for the broker.
func (t *Task) Report(p Progress) {
	p.Job, p.Detector, p.State, p.At = t.Request.Job, t.Request.Detector, JobRunning, time.Now().UTC()
	t.w.tell(p)
	// The record is for those who come later: once a second is enough, and what
	// comes while one is written is written with the next.
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.busy || t.over || time.Since(t.last) < time.Second {
		return
	}
	t.busy, t.last = true, time.Now()
	t.records.Go(func() {
		t.record(p)
		t.mu.Lock()
		t.busy = false
		t.mu.Unlock()
	})
}

func (t *Task) record(p Progress) {
	ctx, cancel := context.WithTimeout(context.Background(), publishWait)
	defer cancel()
	if _, err := t.w.jobs.update(ctx, p.Job, func(j *Job) error {
		if err := t.w.mine(j); err != nil {
			return err
		}
		j.Progress = &p
		return nil
	}); err != nil {
		t.w.log.Debug().Err(err).Msg("progress not recorded")
	}
}

// close waits for progress that is being recorded, and has none recorded any more.
func (t *Task) close() {
	t.mu.Lock()
	t.over = true
	t.mu.Unlock()
	t.records.Wait()
}

// SaveCheckpoint stores a file from which another trainer can go on. When it
// returns nil, the work up to it is safe. It waits a few minutes for a broker
// that is away.
func (t *Task) SaveCheckpoint(ctx context.Context, path string) error {
	b := backoff.NewExponentialBackOff(backoff.WithMaxInterval(5*time.Second), backoff.WithMaxElapsedTime(5*time.Minute))
	if err := retry(ctx, b, func() error { return t.saveCheckpoint(ctx, path) }); err != nil {
		return fmt.Errorf("save checkpoint of job %s: %w", t.Request.Job, err)
	}
	return nil
}

func (t *Task) saveCheckpoint(ctx context.Context, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return Permanent(CodeInternal, err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return Permanent(CodeInternal, err)
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
	name := fmt.Sprintf("%s%s/%d", CheckpointObjects, t.Request.Job, j.CheckpointN+1)
	if _, err := t.w.artifacts.Put(step, jetstream.ObjectMeta{Name: name, Opts: &jetstream.ObjectMetaOptions{ChunkSize: 252 << 10}}, bigReads{f}); err != nil {
		return err
	}
	if _, err := t.w.jobs.update(step, t.Request.Job, func(j *Job) error {
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

// CheckpointObjects is what the names of checkpoints begin with.
const CheckpointObjects = "checkpoints/"

// bigReads fills the buffer it is given: the Object Store makes one chunk of
// every Read.
type bigReads struct{ io.Reader }

func (r bigReads) Read(p []byte) (int, error) {
	n, err := io.ReadFull(r.Reader, p)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = io.EOF
	}
	return n, err
}

// TrainerConfig configures a [TrainingWorker]. The zero value of a field means
// its default.
type TrainerConfig struct {
	Names

	// Name of this trainer in jobs' records. Default: host and process.
	Name string
	// CacheDir holds releases, ScratchDir jobs under way. Both required.
	CacheDir, ScratchDir string
	// AckWait is how long the broker waits for a sign of life before it gives
	// the job to another trainer. Default 30 s.
	AckWait time.Duration
	// MaxAttempts is how often a job may fail, or kill its trainer, without a
	// new checkpoint, before it goes to the dead letters. Default 5.
	MaxAttempts int
	// RetryDelay is the wait before the second attempt; it doubles with each.
	// Default 5 s, at most 10 minutes.
	RetryDelay time.Duration
	// Schedule is how often it is looked whether a detector is due for
	// retraining. Default a minute; negative: never.
	Schedule time.Duration
	// Collect is how often what nobody can need any more is removed, see
	// [Collect]; releases of the last week stay. Default an hour; negative:
	// never.
	Collect time.Duration
	// Drain is how long a job may take to stop when it is cancelled or Run's
	// context ends. Default 20 s.
	Drain time.Duration
}

func (c TrainerConfig) withDefaults() TrainerConfig {
	if c.Name == "" {
		host, _ := os.Hostname()
		c.Name = fmt.Sprintf("%s-%d", host, os.Getpid())
	}
	if c.AckWait == 0 {
		c.AckWait = 30 * time.Second
	}
	if c.MaxAttempts == 0 {
		c.MaxAttempts = 5
	}
	if c.RetryDelay == 0 {
		c.RetryDelay = 5 * time.Second
	}
	if c.Schedule == 0 {
		c.Schedule = time.Minute
	}
	if c.Collect == 0 {
		c.Collect = time.Hour
	}
	if c.Drain == 0 {
		c.Drain = 20 * time.Second
	}
	return c
}

// Validate reports every setting that cannot work.
func (c TrainerConfig) Validate() error {
	errs := []error{c.Names.Validate()}
	d := c.withDefaults()
	if d.CacheDir == "" || d.ScratchDir == "" {
		errs = append(errs, errors.New("trainer: a cache folder and a scratch folder are needed"))
	}
	if d.AckWait < 100*time.Millisecond {
		errs = append(errs, fmt.Errorf("trainer: ack wait %v: use 100ms or more", d.AckWait))
	}
	if d.MaxAttempts < 1 {
		errs = append(errs, fmt.Errorf("trainer: %d attempts: use 1 or more", d.MaxAttempts))
	}
	return errors.Join(errs...)
}

// TrainingWorker takes training jobs from the queue, one at a time, and turns
// each into a release. Many trainers can share the queue.
type TrainingWorker struct {
	cfg     TrainerConfig
	nc      *nats.Conn
	trainer Trainer
	log     zerolog.Logger
	epoch   *Epoch

	js        jetstream.JetStream
	registry  *registry.Registry
	detectors *Detectors
	jobs      *Jobs
	normals   *Normals
	artifacts jetstream.ObjectStore
	unread    reporter // of what is stored and cannot be read
}

// NewTrainingWorker prepares a trainer on a connection that the caller closes
// after Run has returned.
func NewTrainingWorker(cfg TrainerConfig, nc *nats.Conn, t Trainer, log zerolog.Logger) (*TrainingWorker, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &TrainingWorker{cfg: cfg.withDefaults(), nc: nc, trainer: t, epoch: NewEpoch(), log: log.With().Str("component", "trainer").Logger()}, nil
}

// Run works until ctx ends. A job under way is then stopped and given back: the
// next trainer goes on from its last checkpoint.
func (w *TrainingWorker) Run(ctx context.Context) error {
	if err := w.open(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	if err := sweep(w.cfg.ScratchDir); err != nil {
		return fmt.Errorf("clear the folder of jobs: %w", err)
	}
	stopService, err := w.service(ctx)
	if err != nil {
		return err
	}
	defer stopService()
	var helpers sync.WaitGroup
	defer helpers.Wait()
	helpers.Go(func() { w.epoch.Follow(ctx, w.nc, func() {}) })
	helpers.Go(func() {
		w.epoch.pull(ctx, w.log, w.feedbackConsumer, feedbackBatch, func(msgs []jetstream.Msg) { w.handleFeedback(ctx, msgs) })
	})
	helpers.Go(func() { w.adjustments(ctx) })
	if w.cfg.Collect > 0 {
		helpers.Go(func() { w.collect(ctx) })
	}
	if w.cfg.Schedule > 0 {
		helpers.Go(func() { w.schedule(ctx) })
	}
	w.log.Info().Str("trainer", w.cfg.Name).Msg("trainer is up")
	defer w.log.Info().Msg("trainer is down")
	w.epoch.pull(ctx, w.log, w.consumer, 1, func(msgs []jetstream.Msg) {
		for _, m := range msgs {
			w.handle(ctx, m)
		}
	})
	if w.nc.IsConnected() {
		if err := w.nc.FlushTimeout(2 * time.Second); err != nil {
			w.log.Debug().Err(err).Msg("last acknowledgements may be late")
		}
	}
	return nil
}

func (w *TrainingWorker) open(ctx context.Context) error {
	var err error
	if w.js, err = jetstream.New(w.nc); err != nil {
		return fmt.Errorf("start trainer: %w", err)
	}
	w.normals = OpenNormals(w.js, w.cfg.Names)
	return await(ctx, w.log, func(step context.Context) error {
		var err error
		if w.registry, err = registry.Open(step, w.js, w.cfg.registry(w.cfg.CacheDir)); err != nil {
			return err
		}
		if w.detectors, err = OpenDetectors(step, w.js, w.cfg.Names); err != nil {
			return err
		}
		if w.jobs, err = OpenJobs(step, w.js, w.cfg.Names); err != nil {
			return err
		}
		w.artifacts, err = w.js.ObjectStore(step, w.cfg.ArtifactsBucket())
		return err
	})
}

// consumer is shared by all trainers. Each takes one job at a time; the limit
// of unacknowledged messages is the limit of trainers at work, so it is not 1.
func (w *TrainingWorker) consumer(ctx context.Context) (jetstream.Consumer, error) {
	c, err := w.js.CreateOrUpdateConsumer(ctx, w.cfg.TrainingStream(), jetstream.ConsumerConfig{
		Durable: "trainers", Description: "trainers",
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: w.cfg.AckWait,
		// A job may lose its trainer as often as it gets on in between; the
		// attempts that count are in its record.
		MaxDeliver: -1, MaxAckPending: 1000,
	})
	if err != nil {
		return nil, fmt.Errorf("trainers' consumer: %w", err)
	}
	return c, nil
}

// maxTries ends a job whose record cannot be kept.
const maxTries = 1000

// handle sees one job to its end, or gives it back.
func (w *TrainingWorker) handle(ctx context.Context, m jetstream.Msg) {
	beat := newHeartbeat(w.cfg.AckWait/3, []jetstream.Msg{m})
	defer beat.stop()
	req, err := ParseTrainRequest(m.Data())
	if err == nil && m.Subject() != w.cfg.Train(req.Detector) {
		err = fmt.Errorf("it asks for detector %s on subject %s: %w", req.Detector, m.Subject(), ErrBadMessage)
	}
	if err != nil {
		w.bury(ctx, m, nil, CodeBadRequest, fmt.Errorf("training request: %w", err))
		return
	}
	log := w.log.With().Str("detector", req.Detector).Str("job", req.Job).Logger()
	job, err := w.begin(ctx, m, req)
	if err != nil {
		if ctx.Err() == nil {
			log.Warn().Err(err).Msg("cannot record the job: it comes again")
		}
		_ = m.NakWithDelay(time.Second)
		return
	}
	switch {
	case job.Finished():
		_ = m.Ack()
		return
	case job.Cancel:
		w.end(ctx, m, job, func(j *Job) { j.State = JobCancelled }, "cancelled before it began")
		return
	case job.Attempts > w.cfg.MaxAttempts:
		reason := job.Error
		if reason == "" {
			reason = "its trainer died each time"
		}
		w.bury(ctx, m, &job, CodeTraining, fmt.Errorf("%d attempts without a new checkpoint: %s", job.Attempts-1, reason))
		return
	}
	log.Info().Int("attempt", job.Attempts).Str("reason", req.Reason).Msg("job taken")

	run, stop := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	watch.Go(func() { w.watchCancel(run, job, stop) })
	job, err = w.work(run, job)
	cause := context.Cause(run)
	stop(nil)
	watch.Wait()

	var perm *PermanentError
	switch {
	case err == nil:
		w.end(ctx, m, job, func(j *Job) {
			j.State, j.Release, j.Promoted, j.Held, j.Notes = JobDone, job.Release, job.Promoted, job.Held, job.Notes
			j.Error, j.Code = "", ""
		}, "done")
	case errors.Is(cause, errTakenOver), errors.Is(err, errTakenOver):
		log.Warn().Msg("job lost: another trainer has taken it over")
	case errors.Is(cause, errJobCancelled):
		w.end(ctx, m, job, func(j *Job) { j.State = JobCancelled }, "cancelled")
	case ctx.Err() != nil:
		log.Info().Msg("job given back: this trainer stops")
		w.release(ctx, m, job, 0, "", false)
	case errors.As(err, &perm):
		w.bury(ctx, m, &job, perm.Code, perm)
	case job.Attempts >= w.cfg.MaxAttempts:
		w.bury(ctx, m, &job, CodeTraining, fmt.Errorf("%d attempts without a new checkpoint: %w", job.Attempts, err))
	default:
		delay := min(w.cfg.RetryDelay<<min(max(job.Attempts-1, 0), 7), 10*time.Minute)
		log.Warn().Err(err).Int("attempt", job.Attempts).Dur("again_in", delay).Msg("job failed")
		w.release(ctx, m, job, delay, err.Error(), true)
	}
}

// begin records that an attempt begins, before it can do harm.
func (w *TrainingWorker) begin(ctx context.Context, m jetstream.Msg, req TrainRequest) (Job, error) {
	if meta, err := m.Metadata(); err == nil && meta.NumDelivered > maxTries {
		return Job{TrainRequest: req, State: JobQueued, Attempts: maxTries}, nil
	}
	if _, err := w.jobs.create(ctx, Job{TrainRequest: req, State: JobQueued}); err != nil && !errors.Is(err, ErrConflict) {
		return Job{}, err
	}
	return w.jobs.update(ctx, req.Job, func(j *Job) error {
		if j.Finished() || j.Cancel {
			return nil
		}
		j.State, j.Trainer = JobRunning, w.cfg.Name
		j.Attempts++
		if j.StartedAt.IsZero() {
			j.StartedAt = time.Now().UTC()
		}
		return nil
	})
}

// work does one attempt. An extension of a release that was replaced meanwhile
// would undo what replaced it: it is made again.
func (w *TrainingWorker) work(ctx context.Context, job Job) (Job, error) {
	for {
		done, err := w.attempt(ctx, job)
		if !errors.Is(err, registry.ErrConflict) || ctx.Err() != nil {
			return done, err
		}
		w.log.Info().Str("job", job.Job).Msg("the active release was replaced meanwhile: once more")
		if job, err = w.jobs.update(ctx, job.Job, func(j *Job) error {
			j.Release = ""
			return w.mine(j)
		}); err != nil {
			return done, err
		}
	}
}

func (w *TrainingWorker) attempt(ctx context.Context, job Job) (done Job, err error) {
	done = job
	// An earlier attempt may have died between storing the release and saying
	// so. One that was made from another release goes only into that one's place;
	// without a record of which that was it is made again.
	if job.Release != "" && (!job.derived() || job.Base != "") {
		if _, err := w.registry.Show(ctx, job.Release); err == nil {
			return w.promote(ctx, done)
		}
	}
	dir, remove, err := scratch(w.cfg.ScratchDir)
	if err != nil {
		return done, fmt.Errorf("make a scratch folder: %w", err)
	}
	defer remove()
	task, err := w.prepare(ctx, job, dir)
	if err != nil {
		return done, err
	}
	defer task.close()
	done.Normals, done.DataDigest, done.LastNormal = task.Count, task.DataDigest, task.lastNormal
	done.K, done.FalseAlarmRate = task.Detector.K, task.Detector.FalseAlarmRate
	done.Skipped = 0
	for _, n := range task.Skipped {
		if !n.Anomaly {
			done.Skipped++
		}
	}
	// Also of a job that fails: it is what the next one is asked for after.
	if done.Base, done.Release = "", ""; job.derived() {
		done.Base = task.ActiveID
	}
	if _, err := w.jobs.update(ctx, job.Job, func(j *Job) error {
		j.Base, j.Release, j.K, j.FalseAlarmRate = done.Base, "", done.K, done.FalseAlarmRate
		j.Normals, j.DataDigest, j.LastNormal, j.Skipped = done.Normals, done.DataDigest, done.LastNormal, done.Skipped
		return w.mine(j)
	}); err != nil {
		return done, err
	}
	task.Report(Progress{Phase: "begin", Message: fmt.Sprintf("%d normal images", task.Count)})

	res, err := w.train(ctx, task)
	if now, gerr := w.jobs.Get(ctx, job.Job); gerr == nil {
		done.Attempts = now.Attempts // checkpoints begin a new count
	}
	if err != nil {
		return done, err
	}
	done.Notes = res.Notes
	if done.Held = res.Hold; res.Dir == "" {
		return done, nil
	}
	if done.Release, err = registry.Digest(res.Dir); err != nil {
		return done, Permanent(CodeTraining, fmt.Errorf("the trainer's release: %w", err))
	}
	if _, err := w.jobs.update(ctx, job.Job, func(j *Job) error {
		j.Release, j.Held, j.Notes = done.Release, done.Held, done.Notes
		return w.mine(j)
	}); err != nil {
		return done, err
	}
	task.Report(Progress{Phase: "store", Message: "release " + short(done.Release)})
	if _, err := w.registry.Put(ctx, job.Detector, res.Dir); err != nil {
		return done, err
	}
	return w.promote(ctx, done)
}

// train calls the trainer. A panic is a failed attempt, and so is a trainer
// that does not stop in time: it is left behind.
func (w *TrainingWorker) train(ctx context.Context, task *Task) (TrainResult, error) {
	type outcome struct {
		res TrainResult
		err error
	}
	out := make(chan outcome, 1)
	go func() {
		var o outcome
		defer func() {
			if p := recover(); p != nil {
				o.err = fmt.Errorf("train %s: panic: %v", task.Request.Detector, p)
			}
			out <- o
		}()
		switch {
		case task.Request.Readjust:
			o.res, o.err = w.trainer.Readjust(ctx, task)
		case len(task.Request.Extend) > 0 && task.Count == 0:
			o.res.Hold = "the images have been removed from the training set meanwhile"
		case len(task.Request.Extend) > 0:
			o.res, o.err = w.trainer.Extend(ctx, task)
		case len(task.Request.Retract) > 0:
			o.res, o.err = w.trainer.Retract(ctx, task)
		default:
			o.res, o.err = w.trainer.Train(ctx, task)
		}
	}()
	select {
	case o := <-out:
		return o.res, o.err
	case <-ctx.Done():
	}
	hard := time.NewTimer(w.cfg.Drain)
	defer hard.Stop()
	select {
	case o := <-out:
		return o.res, o.err
	case <-hard.C:
		return TrainResult{}, fmt.Errorf("train %s: it did not stop within %v", task.Request.Detector, w.cfg.Drain)
	}
}

// promote makes a job's release active if it was asked for and allowed. One that
// was made from another release must find that one active.
func (w *TrainingWorker) promote(ctx context.Context, job Job) (Job, error) {
	if !job.Promote || job.Held != "" {
		return job, nil
	}
	for {
		_, err := w.registry.Promote(ctx, job.Detector, job.Release, registry.Change{By: w.cfg.Name, Reason: "job " + job.Job, Expect: job.Base})
		if errors.Is(err, registry.ErrConflict) && job.Base == "" && ctx.Err() == nil {
			continue // whoever was faster: this release is newer
		}
		if err != nil {
			return job, err
		}
		job.Promoted = true
		return job, w.catchUp(ctx, job)
	}
}

// catchUp brings into a newly trained release what operators have called normal
// while it was trained: the release that it replaces had that already.
func (w *TrainingWorker) catchUp(ctx context.Context, job Job) error {
	if err := w.retractLate(ctx, job); err != nil || job.derived() {
		return err
	}
	if err := w.overtaken(ctx, job); err != nil {
		return err
	}
	var late []uint64
	if _, err := w.normals.Replay(ctx, job.Detector, false, false, func(n Normal) error {
		if n.Sequence > job.LastNormal && strings.HasPrefix(n.ID, feedbackID) {
			late = append(late, n.Sequence)
		}
		return nil
	}); err != nil || len(late) == 0 {
		return err
	}
	_, err := w.jobs.Request(ctx, TrainRequest{
		Job: "late-" + job.Detector + "-" + short(job.Release), Detector: job.Detector, Extend: late, Promote: true,
		By: w.cfg.Name, Reason: fmt.Sprintf("%d frames were confirmed normal during job %s", len(late), job.Job),
	})
	return err
}

// prepare brings a job's data to this machine.
func (w *TrainingWorker) prepare(ctx context.Context, job Job, dir string) (*Task, error) {
	det, err := w.detectors.Get(ctx, job.Detector)
	if errors.Is(err, ErrNoDetector) {
		return nil, Permanent(CodeNotFound, err)
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
		Request: job.TrainRequest, Detector: det, w: w,
		Dir: filepath.Join(dir, "work"), Normals: filepath.Join(dir, "normals"), Anomalies: filepath.Join(dir, "anomalies"),
		Taken: map[string]Normal{},
	}
	for _, d := range []string{t.Dir, t.Normals, t.Anomalies} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return nil, err
		}
	}
	only := map[uint64]bool{}
	for _, seq := range job.Extend {
		only[seq] = true
	}
	save := func(folder string) func(Normal) error {
		return func(n Normal) error {
			name := fmt.Sprintf("%012d%s", n.Sequence, ImageExtension(n.Image))
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
		seen, err := w.normals.Replay(ctx, job.Detector, false, true, save(t.Normals))
		if err != nil {
			return nil, err
		}
		t.DataDigest = seen.Digest
		t.skip(seen.Skipped)
		if t.Count == 0 && len(job.Extend) == 0 {
			return nil, Permanent(CodeBadRequest, fmt.Errorf("detector %s has no such normal images: add some first", job.Detector))
		}
	}
	if !job.derived() {
		seen, err := w.normals.Replay(ctx, job.Detector, true, true, save(t.Anomalies))
		if err != nil {
			return nil, err
		}
		t.skip(seen.Skipped)
	}
	w.tellSkipped(ctx, job, t.Skipped)
	p, err := w.registry.Active(ctx, job.Detector)
	switch {
	case errors.Is(err, registry.ErrNoRelease), errors.Is(err, registry.ErrCorrupt):
	case err != nil:
		return nil, err
	default:
		if t.Active, err = w.registry.Get(ctx, p.Release); err != nil {
			w.log.Warn().Err(err).Str("release", short(p.Release)).Msg("the active release cannot be read: training without it")
			t.Active = ""
		} else {
			t.ActiveID = p.Release
		}
	}
	if job.derived() && t.Active == "" {
		return nil, Permanent(CodeBadRequest, fmt.Errorf("detector %s has no release to change: train it", job.Detector))
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

// tellSkipped says which images of a training set are left out, and how to be rid
// of them.
func (w *TrainingWorker) tellSkipped(ctx context.Context, job Job, all []Normal) {
	if len(all) == 0 {
		return
	}
	first := all[0]
	why := fmt.Sprintf("%d images of the training set of %s cannot be read and are left out, the first is number %d: %s; "+
		"nearmiss normals list %s shows them, nearmiss normals remove %s %d removes one",
		len(all), job.Detector, first.Sequence, first.Problem, job.Detector, job.Detector, first.Sequence)
	w.log.Warn().Str("job", job.Job).Msg(why)
	last := all[len(all)-1].Sequence
	if err := publishNotice(ctx, w.js, w.cfg.Names, notice(KindStore, job.Detector, NoCamera, "", StoreMissing, why, fmt.Sprintf("%d/%d", len(all), last))); err != nil {
		w.log.Debug().Err(err).Msg("notice not stored")
	}
}

func (w *TrainingWorker) download(ctx context.Context, name, path string) error {
	info, err := w.artifacts.GetInfo(ctx, name)
	if err != nil {
		return err
	}
	step, cancel := context.WithTimeout(ctx, time.Minute+time.Duration(info.Size>>21)*time.Second)
	defer cancel()
	r, err := w.artifacts.Get(step, name)
	if err != nil {
		return err
	}
	defer r.Close()
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, struct{ io.Reader }{r}, make([]byte, 1<<20))
	if err = errors.Join(err, r.Error(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// ImageExtension is what an image file of these bytes is called, by their
// beginning: ".jpg", ".png" and so on, or ".img".
func ImageExtension(b []byte) string {
	for _, k := range []struct{ magic, ext string }{
		{"\xff\xd8\xff", ".jpg"}, {"\x89PNG", ".png"}, {"BM", ".bmp"}, {"II*\x00", ".tif"}, {"MM\x00*", ".tif"}, {"RIFF", ".webp"},
	} {
		if bytes.HasPrefix(b, []byte(k.magic)) {
			return k.ext
		}
	}
	return ".img"
}

var (
	errJobCancelled = errors.New("the job was cancelled")
	errTakenOver    = errors.New("another trainer has taken the job over")
)

// mine says whether this trainer still has the job: one that gave no sign of
// life for too long has lost it, and must not touch it any more.
func (w *TrainingWorker) mine(j *Job) error {
	if j.Trainer != w.cfg.Name {
		return Permanent(CodeConflict, fmt.Errorf("job %s: %w (%s)", j.Job, errTakenOver, j.Trainer))
	}
	return nil
}

// watchCancel stops a job when its record says so.
func (w *TrainingWorker) watchCancel(ctx context.Context, job Job, stop context.CancelCauseFunc) {
	revision := job.Revision
	for ctx.Err() == nil {
		step, cancel := context.WithTimeout(ctx, 5*time.Second)
		if err := w.jobs.changed(step, job.Job, revision); err != nil {
			pause(step, time.Second)
		}
		cancel()
		j, err := w.jobs.Get(ctx, job.Job)
		if err != nil {
			continue
		}
		revision = j.Revision
		switch {
		case j.Cancel:
			stop(errJobCancelled)
			return
		case j.Trainer != w.cfg.Name:
			stop(errTakenOver)
			return
		}
	}
}

// lasting is a context for what must be said even when ctx has ended.
func (w *TrainingWorker) lasting(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), w.cfg.Drain)
}

// end records a job's end and takes it out of the queue.
func (w *TrainingWorker) end(ctx context.Context, m jetstream.Msg, job Job, change func(*Job), said string) {
	ctx, cancel := w.lasting(ctx)
	defer cancel()
	var final Job
	err := retry(ctx, brief(), func() (err error) {
		final, err = w.jobs.update(ctx, job.Job, func(j *Job) error {
			change(j)
			j.FinishedAt = time.Now().UTC()
			if j.Progress != nil {
				j.Progress.State = j.State
			}
			return nil
		})
		return err
	})
	if err != nil {
		w.log.Warn().Err(err).Str("job", job.Job).Msg("cannot record the job's end: it comes again")
		_ = m.NakWithDelay(time.Second)
		return
	}
	if final.Checkpoint != "" {
		_ = w.artifacts.Delete(ctx, final.Checkpoint)
	}
	if err := m.DoubleAck(ctx); err != nil {
		w.log.Debug().Err(err).Str("job", job.Job).Msg("acknowledgement not confirmed")
	}
	w.tell(Progress{Job: job.Job, Detector: job.Detector, Phase: "end", State: final.State, Message: said, At: time.Now().UTC()})
	e := w.log.Info()
	if final.State == JobFailed {
		e = w.log.Error().Str("error", final.Error)
	}
	e.Str("detector", job.Detector).Str("job", job.Job).Str("state", final.State).Str("release", short(final.Release)).
		Bool("promoted", final.Promoted).Str("held", final.Held).Msg("job ended")
}

// release gives a job back to the queue. An attempt that ended because this
// trainer stops does not count.
func (w *TrainingWorker) release(ctx context.Context, m jetstream.Msg, job Job, delay time.Duration, why string, counts bool) {
	ctx, cancel := w.lasting(ctx)
	defer cancel()
	if _, err := w.jobs.update(ctx, job.Job, func(j *Job) error {
		j.State, j.Error = JobQueued, why
		if !counts {
			j.Attempts = max(j.Attempts-1, 0)
		}
		return w.mine(j)
	}); err != nil {
		w.log.Warn().Err(err).Str("job", job.Job).Msg("cannot record that the job goes back")
	}
	if err := m.NakWithDelay(max(delay, 100*time.Millisecond)); err != nil {
		w.log.Debug().Err(err).Str("job", job.Job).Msg("the job comes again when its time is up")
	}
}

// bury moves a job to the dead letters.
func (w *TrainingWorker) bury(ctx context.Context, m jetstream.Msg, job *Job, code string, why error) {
	ctx, cancel := w.lasting(ctx)
	defer cancel()
	meta, err := m.Metadata()
	if err != nil {
		return
	}
	dead := deadMessage(w.cfg.Names, m.Subject(), w.cfg.TrainingStream(), meta.Sequence.Stream, int(meta.NumDelivered), m.Headers(), m.Data(), code, why.Error())
	if err := retry(ctx, brief(), func() error { return publishDead(ctx, w.js, w.cfg.Names, dead) }); err != nil {
		w.log.Warn().Err(err).Msg("dead letter not stored: the job comes again")
		_ = m.NakWithDelay(time.Second)
		return
	}
	if job == nil {
		w.log.Error().Err(why).Str("subject", m.Subject()).Msg("training request refused")
		_ = m.Ack()
		return
	}
	w.end(ctx, m, *job, func(j *Job) { j.State, j.Code, j.Error = JobFailed, code, why.Error() }, why.Error())
}

// tell publishes progress on core NATS.
func (w *TrainingWorker) tell(p Progress) {
	data, err := json.Marshal(p)
	if err != nil {
		return
	}
	if err := w.nc.Publish(w.cfg.Progress(p.Detector, p.Job), data); err != nil {
		w.log.Debug().Err(err).Msg("progress not sent")
	}
}

// collect removes what nobody can need any more, from time to time.
func (w *TrainingWorker) collect(ctx context.Context) {
	for pause(ctx, w.cfg.Collect); ctx.Err() == nil; pause(ctx, w.cfg.Collect) {
		c, err := Collect(ctx, w.js, w.cfg.Names, registry.CollectOptions{Grace: 7 * 24 * time.Hour})
		switch {
		case err != nil && ctx.Err() == nil:
			w.log.Warn().Err(err).Msg("collection failed")
		case len(c.Releases)+c.Files+c.Chunks+c.Evidence+c.Pictures+c.Frames+c.Checkpoints+c.Jobs > 0:
			w.log.Info().Int("releases", len(c.Releases)).Int("files", c.Files).Uint64("bytes", c.Bytes).Int("chunks", c.Chunks).
				Int("evidence", c.Evidence).Int("pictures", c.Pictures).Int("frames", c.Frames).Int("checkpoints", c.Checkpoints).Int("jobs", c.Jobs).Msg("removed what nobody needs")
		}
	}
}

// schedule asks for the training of detectors that are due.
func (w *TrainingWorker) schedule(ctx context.Context) {
	t := time.NewTicker(w.cfg.Schedule)
	defer t.Stop()
	for {
		if err := w.due(ctx, time.Now()); err != nil && ctx.Err() == nil {
			w.log.Debug().Err(err).Msg("cannot look for detectors that are due for retraining")
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// due requests what is due at a time. The names of the jobs are the same in
// every trainer, so that each is requested once.
func (w *TrainingWorker) due(ctx context.Context, now time.Time) error {
	all, err := w.detectors.List(ctx)
	if err != nil {
		return err
	}
	records, lost, err := w.jobs.Check(ctx, "")
	if err != nil {
		return err
	}
	w.unread.report(ctx, w.js, w.cfg.Names, w.log, lost)
	for _, d := range all {
		if d.RetrainEvery == 0 && d.RetrainAfter == 0 {
			continue
		}
		// One that failed or was cancelled was a training, too: the next is due as
		// much later.
		last, trained, open, once := time.Time{}, 0, false, false
		for _, j := range records {
			switch {
			case j.Detector != d.Name:
			case !j.Finished():
				open = true
			case !j.derived() && j.FinishedAt.After(last):
				last, trained, once = j.FinishedAt, j.Normals+j.Skipped, once || j.State == JobDone
			}
		}
		if open || !once {
			continue // under way, or never trained: that is the operator's to begin
		}
		req := TrainRequest{Detector: d.Name, By: "schedule", Promote: true}
		have, err := w.normals.Count(ctx, d.Name)
		if err != nil {
			return err
		}
		switch {
		case d.RetrainEvery > 0 && now.Sub(last) >= time.Duration(d.RetrainEvery):
			req.Job = strings.Join([]string{"every", d.Name, fmt.Sprint(last.UnixMilli())}, "-")
			req.Reason = fmt.Sprintf("the last training was %v ago", now.Sub(last).Round(time.Second))
		case d.RetrainAfter > 0 && have-trained >= d.RetrainAfter:
			req.Job = strings.Join([]string{"after", d.Name, fmt.Sprint(last.UnixMilli())}, "-")
			req.Reason = fmt.Sprintf("%d new normals since the last training", have-trained)
		default:
			continue
		}
		if _, err := w.jobs.Request(ctx, req); err != nil {
			return err
		}
	}
	return nil
}
