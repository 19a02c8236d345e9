// Package trainer turns training requests and operators' verdicts into releases. Many
// trainers can share the queue; each takes one job at a time. What makes a release is a
// [Maker], which the caller gives.
//
// A training request. [stream.Client.Train] asks control, where [stream.Jobs.Request]
// records the job and puts the request into NM_TRAINING. handle takes it:
//
//	begin            one more attempt on the job's record
//	attempt          by work: again where the active release was replaced meanwhile
//	  prepare        normals and the active release into folders: a [Task]
//	  train          Maker.Train, Extend, Retract or Readjust → a release folder
//	  registry.Put   the release into the store
//	  promote        the active pointer, if nobody changed it meanwhile, and asks for
//	                 what follows from that
//	end              the job's record, acknowledge the request
//
// Each worker's swapper sees the pointer, loads the release and exchanges it.
//
// Frames wait for the first release of a detector that learns from them. It is made without
// what may come later (Task.First), and promoted; then a job of its own is asked for, which
// trains with all. Both are in one job's attempt, so that another trainer does the second
// where one dies in between. What that job makes replaces the first release or what was made
// from it, and not what somebody else made active.
//
// A verdict. [stream.Client.Feedback] asks control, which puts it into NM_FEEDBACK.
// handleFeedback takes a batch:
//
//	resolve          finds the event and its image, and adds that to NM_NORMALS, unless
//	                 a later verdict is there
//	takeEffect       asks for a job that extends the active release by it, or takes out
//	                 of it what a later verdict withdrew
//
// # Goroutines and locks
//
// [Worker.Run] handles one job at a time itself, beside goroutines that take feedback,
// remove what nobody needs, put changed configurations into effect, and ask for
// trainings that are due or whose requests are lost; it returns after the last of them. A job adds two: one that
// watches whether it is cancelled or taken over, and the training, which is left behind
// if it does not stop within the drain time. Task.mu guards the time of the last
// progress record and what is kept of the job's history, since a training may report
// from any goroutine; no other lock is taken while it is held.
package trainer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/pull"
	"github.com/nearmiss/nearmiss/stream/internal/service"
	"github.com/nearmiss/nearmiss/stream/internal/wait"
	"github.com/nearmiss/nearmiss/stream/registry"
)

// Maker makes releases.
type Maker interface {
	// Train learns from the task's normals and returns a release folder within
	// task.Dir. It reports progress and saves checkpoints through the task, and
	// stops soon after ctx ends. An error is tried again, from the last
	// checkpoint, unless it is a [stream.PermanentError].
	Train(ctx context.Context, task *Task) (Result, error)
	// Extend returns the task's active release with the task's images added to
	// its bank.
	Extend(ctx context.Context, task *Task) (Result, error)
	// Retract returns the task's active release without the normals that its
	// request names in its bank; their files in it are called as those that Train
	// and Extend got, the sequence in twelve digits and an extension.
	Retract(ctx context.Context, task *Task) (Result, error)
	// Readjust returns the task's active release with the k and the false-alarm
	// rate of its detector.
	Readjust(ctx context.Context, task *Task) (Result, error)
}

// Result is what a trainer made.
type Result struct {
	// Dir is the release folder; empty says that there was nothing to do, and
	// Hold says why.
	Dir string
	// Hold, when not empty, says why the release must not replace the active
	// one, in a sentence: it did not pass the gate.
	Hold string
	// Without says what a Task.First was made without, in a few words; empty: nothing.
	Without string
	// Notes are sentences about what the release cannot promise, for people.
	Notes []string
}

// Config configures a [Worker]. The zero value of a field means
// its default.
type Config struct {
	stream.Names

	// Name of this trainer in jobs' records, another one for each. Default: host and process.
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
	// retraining, or a job's request has been lost. Default a minute; negative: never.
	Schedule time.Duration
	// Collect is how often what nobody can need any more is removed, see
	// [stream.Installation.Collect]; releases of the last week stay. Default an hour; negative:
	// never.
	Collect time.Duration
	// IdleExit ends Run, without an error, when no job has been under way or waiting
	// for so long. Default: never.
	IdleExit time.Duration
	// Meter counts what the trainer does. Default: nothing is counted.
	Meter Meter
	// Drain is how long a job may take to stop when it is cancelled or Run's
	// context ends. Default 20 s.
	Drain time.Duration
	// Read answers what is asked about releases, and about this trainer.
	Read Reader
}

func (c Config) withDefaults() Config {
	if c.Name == "" {
		host, _ := os.Hostname()
		c.Name = nameOf(host, os.Getpid())
	}
	c.AckWait = cmp.Or(c.AckWait, stream.JobAckWait)
	c.MaxAttempts = cmp.Or(c.MaxAttempts, 5)
	c.RetryDelay = cmp.Or(c.RetryDelay, 5*time.Second)
	c.Schedule = cmp.Or(c.Schedule, time.Minute)
	c.Collect = cmp.Or(c.Collect, time.Hour)
	if c.Meter == nil {
		c.Meter = uncounted{}
	}
	c.Drain = cmp.Or(c.Drain, 20*time.Second)
	return c
}

// nameOf is the name of a process. In containers all are number 1, and with the host's
// network all have the host's name: two trainers that are called the same would each
// take the other's job for its own.
func nameOf(host string, pid int) string {
	if pid == 1 {
		return fmt.Sprintf("%s-%08x", host, rand.Uint32())
	}
	return fmt.Sprintf("%s-%d", host, pid)
}

// Validate reports every setting that cannot work.
func (c Config) Validate() error {
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

// Worker takes training jobs from the queue, one at a time, and turns
// each into a release. Many trainers can share the queue.
type Worker struct {
	cfg     Config
	nc      *nats.Conn
	trainer Maker
	log     zerolog.Logger
	epoch   *pull.Epoch

	js        jetstream.JetStream
	in        *stream.Installation
	registry  *registry.Registry
	detectors *stream.Detectors
	jobs      *stream.Jobs
	normals   *stream.Normals
	artifacts jetstream.ObjectStore
	unread    stream.Reporter // of what is stored and cannot be read
	opened    atomic.Bool
	busy      atomic.Bool // with a job
}

// New prepares a trainer on a connection that the caller closes
// after Run has returned.
func New(cfg Config, nc *nats.Conn, t Maker, log zerolog.Logger) (*Worker, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Worker{cfg: cfg.withDefaults(), nc: nc, trainer: t, epoch: pull.NewEpoch(), log: log.With().Str("component", "trainer").Logger()}, nil
}

// Run works until ctx ends. A job under way is then stopped and given back: the
// next trainer goes on from its last checkpoint.
func (w *Worker) Run(ctx context.Context) error {
	if err := w.open(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	w.opened.Store(true)
	if err := sweep(w.cfg.ScratchDir); err != nil {
		return fmt.Errorf("clear the folder of jobs: %w", err)
	}
	stopService, err := service.Start(ctx, w.nc, stream.TrainerService, "trains detectors", []string{w.cfg.API() + ".trainer"},
		map[string]string{"prefix": w.cfg.Root(), "trainer": w.cfg.Name}, func(e *service.Endpoints) {
			service.Serve(e, "calibration", w.calibration)
			service.Serve(e, "outliers", w.outliers)
			service.Serve(e, "choices", w.choices)
		})
	if err != nil {
		return err
	}
	defer stopService()
	var helpers sync.WaitGroup
	defer helpers.Wait()
	ctx, leave := context.WithCancel(ctx) // ends helpers, too, when nothing is left to do
	defer leave()
	helpers.Go(func() { w.epoch.Follow(ctx, w.nc, func() {}) })
	if w.cfg.IdleExit > 0 {
		helpers.Go(func() { w.leaveWhenIdle(ctx, leave) })
	}
	helpers.Go(func() {
		w.epoch.Pull(ctx, w.log, w.feedbackConsumer, feedbackBatch, func(msgs []jetstream.Msg) { w.handleFeedback(ctx, msgs) })
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
	w.epoch.Pull(ctx, w.log, w.consumer, 1, func(msgs []jetstream.Msg) {
		w.busy.Store(true)
		for _, m := range msgs {
			w.handle(ctx, m)
		}
		w.busy.Store(false)
	})
	if w.nc.IsConnected() {
		if err := w.nc.FlushTimeout(2 * time.Second); err != nil {
			w.log.Debug().Err(err).Msg("last acknowledgements may be late")
		}
	}
	return nil
}

func (w *Worker) open(ctx context.Context) error {
	var err error
	if w.js, err = w.cfg.JetStreamOn(w.nc); err != nil {
		return fmt.Errorf("start trainer: %w", err)
	}
	w.in = stream.NewCachingInstallation(w.js, w.cfg.Names, w.cfg.CacheDir)
	w.normals = w.in.Normals()
	return stream.Await(ctx, w.log, func(step context.Context) error {
		s, err := w.in.Stores(step)
		if err != nil {
			return err
		}
		w.registry, w.detectors, w.jobs = s.Registry, s.Detectors, s.Jobs
		w.artifacts, err = w.js.ObjectStore(step, w.cfg.ArtifactsBucket())
		return err
	})
}

// consumer is shared by all trainers.
func (w *Worker) consumer(ctx context.Context) (jetstream.Consumer, error) {
	c, err := w.js.CreateOrUpdateConsumer(ctx, w.cfg.TrainingStream(), stream.JobsConsumerConfig(w.cfg.AckWait))
	if err != nil {
		return nil, fmt.Errorf("trainers' consumer: %w", err)
	}
	return c, nil
}

// leaveWhenIdle ends the trainer when no job has been under way or waiting for as
// long as it may be idle. What it cannot find out is no idleness.
func (w *Worker) leaveWhenIdle(ctx context.Context, leave func()) {
	since := time.Now()
	for every := min(w.cfg.IdleExit/4, 5*time.Second); ctx.Err() == nil; wait.Pause(ctx, every) {
		step, cancel := context.WithTimeout(ctx, 5*time.Second)
		s, err := w.js.Stream(step, w.cfg.TrainingStream())
		cancel()
		if err != nil || s.CachedInfo().State.Msgs > 0 || w.busy.Load() {
			since = time.Now()
			continue
		}
		if time.Since(since) >= w.cfg.IdleExit {
			w.log.Info().Dur("after", w.cfg.IdleExit).Msg("nothing to do: this trainer ends")
			leave()
			return
		}
	}
}

// collect removes what nobody can need any more, from time to time.
func (w *Worker) collect(ctx context.Context) {
	for wait.Pause(ctx, w.cfg.Collect); ctx.Err() == nil; wait.Pause(ctx, w.cfg.Collect) {
		c, err := w.in.Collect(ctx, registry.CollectOptions{Grace: 7 * 24 * time.Hour})
		switch {
		case err != nil && ctx.Err() == nil:
			w.log.Warn().Err(err).Msg("collection failed")
		case len(c.Releases)+c.Files+c.Chunks+c.Evidence+c.Pictures+c.Frames+c.Checkpoints+c.Jobs > 0:
			w.log.Info().Int("releases", len(c.Releases)).Int("files", c.Files).Uint64("bytes", c.Bytes).Int("chunks", c.Chunks).
				Int("evidence", c.Evidence).Int("pictures", c.Pictures).Int("frames", c.Frames).Int("checkpoints", c.Checkpoints).Int("jobs", c.Jobs).Msg("removed what nobody needs")
		}
	}
}

// schedule asks for the training of detectors that are due, and again for jobs whose
// requests are lost.
func (w *Worker) schedule(ctx context.Context) {
	t := time.Tick(w.cfg.Schedule)
	for {
		records, bad, err := w.jobs.Check(ctx, "")
		if err == nil {
			w.unread.Report(ctx, w.in, w.log, bad)
			err = errors.Join(w.requeue(ctx, records), w.due(ctx, records, time.Now()))
		}
		if err != nil && ctx.Err() == nil {
			w.log.Debug().Err(err).Msg("cannot find the trainings that are due")
		}
		select {
		case <-ctx.Done():
			return
		case <-t:
		}
	}
}

func (w *Worker) requeue(ctx context.Context, records []stream.Job) error {
	lost, err := w.jobs.Requeue(ctx, records, w.detectors)
	for _, j := range lost {
		w.log.Warn().Str("detector", j.Detector).Str("job", j.Job).Msg("the job's request was lost, as after a restore: it is in the queue again")
	}
	return err
}

// due requests what is due at a time. The names of the jobs are the same in
// every trainer, so that each is requested once.
func (w *Worker) due(ctx context.Context, records []stream.Job, now time.Time) error {
	all, err := w.detectors.List(ctx)
	if err != nil {
		return err
	}
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
			case !j.Derived() && j.FinishedAt.After(last):
				last, once = j.FinishedAt, once || j.State == stream.JobDone
				if n := j.Normals + j.Skipped; n > 0 { // one that ended before it had read them says nothing of them
					trained = n
				}
			}
		}
		if open || !once {
			continue // under way, or never trained: that is the operator's to begin
		}
		req := stream.TrainRequest{Detector: d.Name, By: "schedule", Promote: true}
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

// Ready says whether this trainer can do its work.
func (w *Worker) Ready() []stream.Check {
	return []stream.Check{
		{Name: "broker", OK: w.nc.IsConnected(), Detail: w.nc.Status().String()},
		{Name: "setup", OK: w.opened.Load(), Detail: fmt.Sprintf("trainer %s", w.cfg.Name)},
	}
}
