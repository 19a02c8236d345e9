package worker

import (
	"context"

	"github.com/nearmiss/nearmiss/stream"
)

// Verdict is what a [Scorer] says of one image.
type Verdict struct {
	Score     float64 // sum of squared distances to the K nearest normals
	Threshold float64 // a score above it is anomalous
	PValue    float64 // share of normals at least as strange, 0-1
	Anomalous bool
	K         int
	Nearest   []stream.Near // nearest first
	Width     int           // of the image as taken, pixels
	Height    int           // of the image as taken, pixels

	// Place knows where the image is strange; nil where the release cannot tell.
	Place Place

	// Reject, when not empty, says in one stable word why the image could not
	// be read, and Reason says it in a sentence; the scores are then void.
	Reject string
	Reason string

	Release string // SHA-256 of the release's manifest; empty means the one that was loaded
	Model   string // SHA-256 of the model
	Bank    string // SHA-256 of the bank
}

// Scorer is a loaded release. Score must be safe for concurrent use.
type Scorer interface {
	// Score judges encoded images and returns one verdict an image, in order.
	// An image that cannot be read gives a verdict with Reject; an error means
	// that nothing was judged and that the frames are to be tried again.
	Score(ctx context.Context, images [][]byte) ([]Verdict, error)
	// Close frees it. Nothing is scored during or after Close.
	Close() error
}

// Place knows where one image is strange. It is asked for anomalies only, from
// one goroutine, and before its Scorer is closed.
type Place interface {
	// Regions are the strange parts, strangest first.
	Regions() []stream.Spot
	// Draw makes pictures of them: the image with its regions, the normals nearest
	// to it. It is called apart from scoring, and not at all where no images are to
	// be kept.
	Draw(ctx context.Context, image []byte) ([]stream.Picture, error)
}

// DriftTest watches the p-values of one camera under one release. It need not
// be safe for concurrent use.
type DriftTest interface {
	// Observe takes the p-value of the next frame and returns what the test
	// knows then.
	Observe(p float64) (stream.DriftStatus, error)
}

// DriftTester is a [Scorer] that can say when normal has moved away from what
// it was calibrated on. A Scorer that is none is not watched for drift.
type DriftTester interface {
	// DriftTest makes a new test for a camera of which a share of defective
	// frames, 0-1, is nothing to worry about.
	DriftTest(camera string, defects float64) (DriftTest, error)
}

// Loader opens the release in dir, which is whole and verified, warms it and
// checks it (dimensions, its own check images). An error means that the
// release is not fit to serve.
type Loader func(ctx context.Context, dir string) (Scorer, error)
