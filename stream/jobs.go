package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/nearmiss/nearmiss/stream/internal/kv"
	"github.com/nearmiss/nearmiss/stream/internal/text"
	"github.com/nearmiss/nearmiss/stream/internal/wait"
)

// TrainRequest asks for a new release of a detector.
type TrainRequest struct {
	Job      string `json:"job"`               // names the job; asking for the same job again within an hour asks for nothing
	Detector string `json:"detector"`          // whose configuration and normals are used
	Method   string `json:"method,omitempty"`  // instead of the detector's
	Profile  string `json:"profile,omitempty"` // instead of the detector's
	Seed     int64  `json:"seed,omitempty"`    // of everything random; the same seed and normals give the same model
	Promote  bool   `json:"promote"`           // make the release active when it passes its gate
	Force    bool   `json:"force,omitempty"`   // also when it would be worse than what serves, by its own promise or by far fewer normals
	By       string `json:"by,omitempty"`
	Reason   string `json:"reason,omitempty"`
	// Extend asks for the active release with these normals (sequences in the
	// normals stream) added to its bank, instead of training.
	Extend []uint64 `json:"extend,omitempty"`
	// Retract asks for the active release without these normals in its bank, the
	// opposite of Extend.
	Retract []uint64 `json:"retract,omitempty"`
	// Readjust asks for the active release with the detector's k and false-alarm
	// rate, instead of training.
	Readjust bool      `json:"readjust,omitempty"`
	At       time.Time `json:"at"`
}

// Derived says whether the job changes the active release instead of training.
func (r TrainRequest) Derived() bool { return len(r.Extend) > 0 || len(r.Retract) > 0 || r.Readjust }

// Validate says whether the request can be published.
func (r TrainRequest) Validate() error {
	if err := CheckToken("detector", r.Detector); err != nil {
		return err
	}
	if !validJob(r.Job) {
		return fmt.Errorf("job name %q: use 1 to %d letters, digits, - and _: %w", text.Clip(r.Job), maxJob, ErrBadName)
	}
	if kinds := min(len(r.Extend), 1) + min(len(r.Retract), 1); kinds > 1 || kinds == 1 && r.Readjust {
		return fmt.Errorf("job %s: a release is extended, retracted from or readjusted, one of these: %w", r.Job, ErrBadMessage)
	}
	for what, s := range map[string]string{"method": r.Method, "profile": r.Profile} {
		if s != "" {
			if err := CheckToken(what, s); err != nil {
				return err
			}
		}
	}
	return nil
}

// ParseTrainRequest reads a request as it is published. Anybody may have written
// it: fields that are not known are refused.
func ParseTrainRequest(b []byte) (TrainRequest, error) {
	var r TrainRequest
	if err := kv.Object(b, &r, true); err != nil {
		return r, fmt.Errorf("%w: %w", ErrBadMessage, err)
	}
	return r, text.OneLine(r.Validate())
}

// maxJob leaves room for a detector's name and a time.
const maxJob = 2 * maxToken

func validJob(s string) bool {
	return len(s) <= maxJob && (ValidToken(s) || len(s) > maxToken && ValidToken(s[:maxToken]) && ValidToken(s[maxToken:]))
}

// NewJob makes a job name that nobody else makes.
func NewJob(detector string) string {
	return detector + "-" + time.Now().UTC().Format("20060102-150405") + "-" + nuid.Next()[16:]
}

// States of a job.
const (
	JobQueued    = "queued"
	JobRunning   = "running"
	JobDone      = "done"
	JobFailed    = "failed" // in the dead letters, with its reason
	JobCancelled = "cancelled"
)

// Job is the record of a training job.
type Job struct {
	TrainRequest

	State       string    `json:"state"`
	Trainer     string    `json:"trainer,omitempty"`  // who works or worked on it
	Attempts    int       `json:"attempts,omitempty"` // since the last checkpoint
	Cancel      bool      `json:"cancel,omitempty"`   // it is to be cancelled
	StartedAt   time.Time `json:"started_at,omitzero"`
	FinishedAt  time.Time `json:"finished_at,omitzero"`
	Progress    *Progress `json:"progress,omitempty"`     // the last
	Checkpoint  string    `json:"checkpoint,omitempty"`   // object with the last checkpoint
	CheckpointN int       `json:"checkpoint_n,omitempty"` // how many there have been
	Normals     int       `json:"normals,omitempty"`      // images that it was trained on
	DataDigest  string    `json:"data_digest,omitempty"`  // of those images
	LastNormal  uint64    `json:"last_normal,omitempty"`  // sequence of the newest of them
	Skipped     int       `json:"skipped,omitempty"`      // normals that could not be read and were left out
	K           int       `json:"k,omitempty"`            // that it was asked for with
	// FalseAlarmRate is the one that it was asked for with; the release may promise
	// another.
	FalseAlarmRate float64  `json:"false_alarm_rate,omitempty"`
	Base           string   `json:"base,omitempty"`     // release that a derived one was made from: it must still be active when that is promoted
	Release        string   `json:"release,omitempty"`  // the result
	Promoted       bool     `json:"promoted,omitempty"` // the result is or was active
	Held           string   `json:"held,omitempty"`     // why it was not promoted
	Without        string   `json:"without,omitempty"`  // what a first release was made without, see [WholeRequest]
	Notes          []string `json:"notes,omitempty"`    // what the result cannot promise
	Code           string   `json:"code,omitempty"`     // why it failed, as a stable word
	Error          string   `json:"error,omitempty"`    // why it failed, as a sentence

	Revision uint64 `json:"-"`
}

// Finished says whether the job has come to its end.
func (j Job) Finished() bool {
	return j.State == JobDone || j.State == JobFailed || j.State == JobCancelled
}

// Progress is what a job says of itself, on its progress subject and in its
// record.
type Progress struct {
	Job      string   `json:"job"`
	Detector string   `json:"detector"`
	Phase    string   `json:"phase"`          // what it does, in a word
	Step     int      `json:"step"`           // of Steps in this phase
	Steps    int      `json:"steps"`          // 0: not known
	Loss     *float64 `json:"loss,omitempty"` // of the last steps
	// Frechet is the last point of the generator's curve: the distance between
	// its samples and as many normals. Ratio is the same between 0, what two halves
	// of the normals have, and 1, noise.
	Frechet *float64  `json:"frechet,omitempty"`
	Ratio   *float64  `json:"ratio,omitempty"`
	Left    Duration  `json:"left,omitempty"` // estimate of the time that the job still takes; 0: not known
	Message string    `json:"message,omitempty"`
	State   string    `json:"state"` // of the job
	At      time.Time `json:"at"`
}

// Jobs is the store of training jobs' records.
type Jobs struct {
	names Names
	js    jetstream.JetStream
	kv    kv.Store[Job]
}

// decodeJob reads a job's record. Fields that are not known are let through: they
// are a later trainer's.
func decodeJob(key string, value []byte) (Job, error) {
	var j Job
	if err := kv.Object(value, &j, false); err != nil {
		return j, err
	}
	if j.Job != key {
		return j, fmt.Errorf("it is the record of job %q", text.Clip(j.Job))
	}
	if !slices.Contains([]string{JobQueued, JobRunning, JobDone, JobFailed, JobCancelled}, j.State) {
		return j, fmt.Errorf("state %q is none of a job", text.Clip(j.State))
	}
	return j, text.OneLine(j.TrainRequest.Validate())
}

// Request puts a job into the trainers' queue. Requesting a job that has been
// requested does nothing; the record returned is the one that is there.
func (s *Jobs) Request(ctx context.Context, r TrainRequest) (Job, error) {
	if err := r.Validate(); err != nil {
		return Job{}, err
	}
	if j, err := s.Get(ctx, r.Job); err == nil {
		return j, nil
	} else if !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrBadMessage) {
		return Job{}, err
	}
	if r.At.IsZero() {
		r.At = time.Now().UTC()
	}
	if _, err := s.enqueue(ctx, r); err != nil {
		return Job{}, err
	}
	j, err := s.Create(ctx, Job{TrainRequest: r, State: JobQueued})
	if errors.Is(err, ErrConflict) { // a trainer was faster
		return s.Get(ctx, r.Job)
	}
	return j, err
}

// enqueue publishes a request. It is not stored where the broker had it within the hour.
func (s *Jobs) enqueue(ctx context.Context, r TrainRequest) (stored bool, err error) {
	data, err := json.Marshal(r)
	if err != nil {
		return false, err
	}
	m := nats.NewMsg(s.names.Train(r.Detector))
	m.Header.Set(nats.MsgIdHdr, r.Job)
	m.Data = data
	ack, err := s.js.PublishMsg(ctx, m)
	if err != nil {
		return false, fmt.Errorf("ask for training of %s: %w", r.Detector, err)
	}
	return !ack.Duplicate, nil
}

// Requeue puts the jobs among records that are open, and whose detector has no request in
// the queue, into it again, and returns them. A request leaves the queue after its job has
// ended; what is lost is a queue, as in a restored installation, since a backup has none.
// Earlier versions left the jobs of a deleted detector open, too: these are cancelled.
func (s *Jobs) Requeue(ctx context.Context, records []Job, detectors *Detectors) ([]Job, error) {
	open := slices.DeleteFunc(slices.Clone(records), Job.Finished)
	if len(open) == 0 {
		return nil, nil
	}
	queue, err := s.js.Stream(ctx, s.names.TrainingStream())
	if err != nil {
		return nil, fmt.Errorf("find the training requests: %w", err)
	}
	info, err := queue.Info(ctx, jetstream.WithSubjectFilter(s.names.Train("*")))
	if err != nil {
		return nil, fmt.Errorf("find the training requests: %w", err)
	}
	var lost []Job
	for _, j := range open {
		if info.State.Subjects[s.names.Train(j.Detector)] > 0 {
			continue
		}
		if j, err = s.Get(ctx, j.Job); errors.Is(err, ErrNotFound) || err == nil && j.Finished() {
			continue // it has ended meanwhile
		} else if err != nil {
			return lost, err
		}
		d, err := detectors.Get(ctx, j.Detector)
		switch {
		case errors.Is(err, ErrNoDetector), err == nil && !j.At.IsZero() && d.CreatedAt.After(j.At): // that is another one of its name
			if err := s.abandon(ctx, j.Job); err != nil {
				return lost, err
			}
			continue
		case err != nil && !errors.Is(err, ErrBadMessage): // which the job will say
			return lost, err
		}
		stored, err := s.enqueue(ctx, j.TrainRequest)
		if err != nil {
			return lost, err
		}
		if stored { // else another trainer was faster
			lost = append(lost, j)
		}
	}
	return lost, nil
}

// Create stores a new record, also in place of one that cannot be read.
func (s *Jobs) Create(ctx context.Context, j Job) (Job, error) {
	var err error
	if j.Revision, err = s.kv.Put(ctx, j.Job, j, 0); kv.Conflict(err) {
		if have, unread := s.Get(ctx, j.Job); errors.Is(unread, ErrBadMessage) {
			j.Revision, err = s.kv.Put(ctx, j.Job, j, have.Revision)
		}
	}
	if kv.Conflict(err) {
		err = ErrConflict
	}
	if err != nil {
		return j, fmt.Errorf("record job %s: %w", j.Job, err)
	}
	return j, nil
}

// Get returns a job's record, or [ErrNotFound].
func (s *Jobs) Get(ctx context.Context, job string) (Job, error) {
	if !validJob(job) {
		return Job{}, fmt.Errorf("job %q: %w", text.Clip(job), ErrNotFound)
	}
	e, err := s.kv.Get(ctx, job)
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		return Job{}, fmt.Errorf("job %s: %w", job, ErrNotFound)
	case errors.Is(err, kv.ErrUnreadable):
		return Job{Revision: e.Head}, fmt.Errorf("job %s: %w: %w", job, ErrBadMessage, err)
	case err != nil:
		return Job{}, fmt.Errorf("read job %s: %w", job, err)
	}
	e.Value.Revision = e.Head
	return e.Value, nil
}

// List returns the jobs of a detector, oldest first; an empty detector means
// all.
func (s *Jobs) List(ctx context.Context, detector string) ([]Job, error) {
	all, _, err := s.Check(ctx, detector)
	return all, err
}

// Check is List, and also returns the records that cannot be read.
func (s *Jobs) Check(ctx context.Context, detector string) ([]Job, []Unreadable, error) {
	entries, bad, err := s.kv.List(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("list jobs: %w", err)
	}
	var all []Job
	for _, e := range entries {
		e.Value.Revision = e.Head
		if detector == "" || e.Value.Detector == detector {
			all = append(all, e.Value)
		}
	}
	sort.Slice(all, func(a, b int) bool { return all[a].At.Before(all[b].At) })
	return all, bad, nil
}

// Of each detector so many records of ended jobs stay, and besides so many of its
// trainings, which are what the next one is reckoned from.
const (
	keptJobs      = 200
	keptTrainings = 20
)

// prune removes the records of jobs that ended before old, beyond the newest:
// whoever reads the records reads all of them.
func (s *Jobs) prune(ctx context.Context, old time.Time, dry bool) (int, error) {
	all, err := s.List(ctx, "")
	if err != nil {
		return 0, err
	}
	removed := 0
	kept, trainings := map[string]int{}, map[string]int{}
	for _, j := range slices.Backward(all) {
		if !j.Finished() {
			continue
		}
		kept[j.Detector]++
		if !j.Derived() {
			trainings[j.Detector]++
		}
		if kept[j.Detector] <= keptJobs || !j.Derived() && trainings[j.Detector] <= keptTrainings || j.FinishedAt.After(old) {
			continue
		}
		removed++
		if !dry {
			if err := s.kv.Bucket.Purge(ctx, j.Job, jetstream.LastRevision(j.Revision)); err != nil && !kv.Conflict(err) {
				return removed, fmt.Errorf("remove the record of job %s: %w", j.Job, err)
			}
		}
	}
	return removed, nil
}

// Cancel asks for a job's end. A queued job ends when a trainer takes it, a
// running one within seconds; a finished one stays as it is.
func (s *Jobs) Cancel(ctx context.Context, job string) (Job, error) {
	return s.Update(ctx, job, func(j *Job) error {
		if !j.Finished() {
			j.Cancel = true
		}
		return nil
	})
}

// abandonAll ends the open jobs of a detector that is deleted. Their requests leave the queue,
// so that no trainer would; one that is at work on one stops within seconds.
func (s *Jobs) abandonAll(ctx context.Context, detector string) error {
	all, err := s.List(ctx, detector)
	if err != nil {
		return err
	}
	for _, j := range all {
		if j.Finished() {
			continue
		}
		if err := s.abandon(ctx, j.Job); err != nil {
			return err
		}
	}
	return nil
}

func (s *Jobs) abandon(ctx context.Context, job string) error {
	_, err := s.Update(ctx, job, func(j *Job) error {
		if !j.Finished() {
			j.State, j.Cancel, j.FinishedAt = JobCancelled, true, time.Now().UTC()
		}
		return nil
	})
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// Update changes a record by compare-and-set, unless change returns an error.
func (s *Jobs) Update(ctx context.Context, job string, change func(*Job) error) (Job, error) {
	for range 10 {
		j, err := s.Get(ctx, job)
		if err != nil {
			return j, err
		}
		if err := change(&j); err != nil {
			return j, err
		}
		rev, err := s.kv.Put(ctx, job, j, j.Revision)
		if kv.Conflict(err) {
			continue
		}
		if err != nil {
			return j, fmt.Errorf("record job %s: %w", job, err)
		}
		j.Revision = rev
		return j, nil
	}
	return Job{}, fmt.Errorf("record job %s: %w", job, ErrConflict)
}

// Wait calls progress, when it is not nil, with every progress message of a job and
// returns its record when it has finished. progress is called by one goroutine at a time,
// and not after Wait has returned.
func (s *Jobs) Wait(ctx context.Context, job string, progress func(Progress)) (Job, error) {
	read := func() (Job, error) {
		step, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		return s.Get(step, job)
	}
	j, err := read()
	for errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		j, err = read() // a broker that has just come back may lose a question
	}
	if err != nil || j.Finished() {
		return j, err
	}
	if progress != nil {
		var mu sync.Mutex
		ended := false
		defer func() { // whom the end of a subscription does not wait for
			mu.Lock()
			defer mu.Unlock()
			ended = true
		}()
		sub, err := s.js.Conn().Subscribe(s.names.Progress(j.Detector, job), func(m *nats.Msg) {
			mu.Lock()
			defer mu.Unlock()
			var p Progress
			if !ended && json.Unmarshal(m.Data, &p) == nil {
				progress(p)
			}
		})
		if err != nil {
			return j, fmt.Errorf("wait for job %s: %w", job, err)
		}
		defer func() { _ = sub.Unsubscribe() }()
	}
	for {
		// The watch wakes at once; the tick covers a broker that was away.
		step, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := s.Changed(step, job, j.Revision)
		cancel()
		if ctx.Err() != nil {
			return j, ctx.Err()
		}
		if err != nil {
			wait.Pause(ctx, 100*time.Millisecond)
		}
		if k, err := read(); err == nil {
			if j = k; j.Finished() {
				return j, nil
			}
		} else if errors.Is(err, ErrNotFound) {
			return j, err
		}
	}
}

// Changed returns when a job's record has another revision, or when ctx ends.
func (s *Jobs) Changed(ctx context.Context, job string, revision uint64) error {
	return kv.Watch(ctx, s.kv.Bucket, job, func(e jetstream.KeyValueEntry) bool { return e == nil || e.Revision() == revision })
}

// Kind is what a job does: train, extend, retract or readjust.
func (r TrainRequest) Kind() string {
	switch {
	case r.Readjust:
		return "readjust"
	case len(r.Extend) > 0:
		return "extend"
	case len(r.Retract) > 0:
		return "retract"
	}
	return "train"
}

// ReadjustRequest asks for a detector's active release with its k and its
// false-alarm rate, which were changed in the configuration's revision. The job
// has the same name whoever asks for it, so that it is done once.
func ReadjustRequest(d Detector, by string) TrainRequest {
	d = d.WithDefaults()
	return TrainRequest{
		Job: fmt.Sprintf("readjust-%s-%d", d.Name, d.Revision), Detector: d.Name, Readjust: true, Promote: true, By: by,
		Reason: fmt.Sprintf("k is %d, the false-alarm rate %g", d.K, d.FalseAlarmRate),
	}
}

// LearnRequest asks for the first release of a detector, whose first frames have become
// normals. The job has the same name whoever asks for it, so that it is done once.
func LearnRequest(d Detector, frames int, by string) TrainRequest {
	return TrainRequest{
		Job: fmt.Sprintf("%s%s-%d", learnJob, d.Name, d.Revision), Detector: d.Name, Promote: true, By: by,
		Reason: fmt.Sprintf("the first %d frames have become normals", frames),
	}
}

// Learns says whether the request is a [LearnRequest]: frames wait for its release, which
// is to be there soon.
func (r TrainRequest) Learns() bool {
	return !r.Derived() && strings.HasPrefix(r.Job, learnJob+r.Detector+"-")
}

// WholeRequest asks for a release with all that the job's, a first one, was made without.
// It replaces that one and what was made from it, and nothing else.
func WholeRequest(first Job, by string) TrainRequest {
	return TrainRequest{
		Job: wholeJob + first.Job, Detector: first.Detector, Promote: true, By: by,
		// It is what the detector is configured to have, whatever the first one promises.
		Force:  true,
		Reason: fmt.Sprintf("job %s made the first release without %s", first.Job, first.Without),
	}
}

// Completes is the job whose release a [WholeRequest] replaces; empty: it is none.
func (r TrainRequest) Completes() string {
	first, whole := strings.CutPrefix(r.Job, wholeJob)
	if !whole || r.Derived() || !strings.HasPrefix(first, learnJob+r.Detector+"-") {
		return ""
	}
	return first
}

// What the names of these jobs begin with. Trainers of earlier versions refuse requests with
// fields that they do not know, and do these jobs like any other.
const (
	learnJob = "learn-"
	wholeJob = "whole-"
)

// CheckpointObjects is what the names of checkpoints begin with.
const CheckpointObjects = "checkpoints/"
