package training

import (
	"context"

	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/ort"
)

// Derivation says from which release another one of the same model is made, and
// where: by [Extend], [Retract] and [Readjust], none of which trains.
type Derivation struct {
	// Release is the folder of the release; it stays as it is.
	Release string
	// Verified says that its files were compared with their digests already.
	Verified bool
	// Out is the release folder that is written; it must not exist.
	Out string
	// NoImages keeps every image of a normal out, also those that the release has.
	NoImages bool

	Device  ort.Device
	Threads int
	Limits  imaging.Limits
	Tool    string
	Log     zerolog.Logger
}

// open loads the release.
func (x Derivation) open(ctx context.Context) (*inference.Detector, error) {
	return inference.Open(ctx, x.Release, inference.Options{
		Embed: inference.EmbedOptions{Device: x.Device, Threads: x.Threads, Limits: x.Limits}, Verified: x.Verified, Log: x.Log,
	})
}
