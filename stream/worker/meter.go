package worker

import (
	"time"

	"github.com/nearmiss/nearmiss/stream"
)

// Meter counts what a worker does. Its methods are
// called from many goroutines, in the way of frames: they must not wait.
type Meter interface {
	// Frame has come to its end: e is its event, with a score or rejected. The
	// frame was stored in the queue and delivered to this worker at those times.
	Frame(e *stream.Event, stored, delivered time.Time)
	// Frames counts n frames of a detector that were retried, dropped or learned.
	Frames(detector, what string, n uint64)
	// Batch is the number of frames that were scored at once.
	Batch(detector string, frames int)
	// Stage is the time that a batch (score, publish) or an anomaly (evidence,
	// pictures) took.
	Stage(stage string, took time.Duration)
	// CameraFrame says that a camera's frame was stored at that time.
	CameraFrame(detector, camera string, at time.Time)
	// Drift is what the test of a camera knows.
	Drift(detector, camera string, s stream.DriftStatus)
	// Swap says that a release came into service or was refused (result), as the
	// active one or as the candidate (role).
	Swap(detector, role, release, result string, took time.Duration)
	// Left says that no release serves in that role any more.
	Left(detector, role string)
	// Shadow counts frames that a candidate has judged: both, neither, only_active,
	// only_candidate, failed.
	Shadow(detector, outcome string, n int)
	// Pictures says what became of an anomaly's pictures: kept, busy, failed, privacy, storage.
	Pictures(result string)
	// Stored counts an event that is stored.
	Stored(kind string)
	// Gone says that the detector is served no more.
	Gone(detector string)
}

// What [Meter.Frames] counts.
const (
	FramesRetried = "retried" // given back to be tried again
	FramesDropped = "dropped" // of a live detector, too old
	FramesLearned = "learned" // have become normals
)

// Stages of [Meter.Stage].
const (
	StageScore    = "score" // decode, embed and search
	StagePublish  = "publish"
	StageEvidence = "evidence"
	StagePictures = "pictures"
)

// PicturesKept is the result of pictures that are kept; the others are
// [stream.NoPicturesBusy] and so on.
const PicturesKept = "kept"

// unmetered counts nothing.
type unmetered struct{}

func (unmetered) Frame(*stream.Event, time.Time, time.Time) {}
func (unmetered) Frames(string, string, uint64)             {}
func (unmetered) Batch(string, int)                         {}
func (unmetered) Stage(string, time.Duration)               {}
func (unmetered) CameraFrame(string, string, time.Time)     {}
func (unmetered) Drift(string, string, stream.DriftStatus)  {}
func (unmetered) Swap(_, _, _, _ string, _ time.Duration)   {}
func (unmetered) Left(string, string)                       {}
func (unmetered) Shadow(string, string, int)                {}
func (unmetered) Pictures(string)                           {}
func (unmetered) Stored(string)                             {}
func (unmetered) Gone(string)                               {}
