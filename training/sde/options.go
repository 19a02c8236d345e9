package sde

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/training/frechet"
)

// Extractor embeds images for distances between sets: the detector's own
// pretrained backbone, or FID's Inception.
type Extractor interface {
	// Vectors returns one vector an image, all of one length.
	Vectors(ctx context.Context, images []*imaging.Image) ([][]float32, error)
}

// Detail says what becomes of the frequencies that the network is too small for.
type Detail string

const (
	// DetailNone leaves fakes at the network's size.
	DetailNone Detail = "none"
	// DetailResidual gives a fake that was made from a normal (Edit) that
	// normal's own high frequencies back, at its full size.
	DetailResidual Detail = "residual"
)

// Options of [Generate]. [Profile] fills in a sensible set.
type Options struct {
	SDE     string       `json:"sde"`     // see [New]
	Network Network      `json:"network"` // its size and channels are those of the fakes
	Train   TrainOptions `json:"train"`
	// MaxSteps bounds training. ProbeEvery steps the generator is compared with
	// the normals, on Probes samples at most (and at most half the normals).
	MaxSteps   int `json:"max_steps"`
	ProbeEvery int `json:"probe_every"`
	Probes     int `json:"probes"`
	// Stop is where training ends; Control tunes how.
	Stop    frechet.Target            `json:"stop"`
	Control frechet.ControllerOptions `json:"control"`
	// Mix draws fakes from several checkpoints around the target.
	Mix bool `json:"mix"`

	N       int     `json:"n"` // fakes to make
	Sampler Sampler `json:"sampler"`
	Steps   int     `json:"sampler_steps"` // 0: the sampler's default
	Batch   int     `json:"batch"`         // images a network call in sampling
	// Edit makes fakes from normals by partial diffusion, up to the noise level
	// that vp reaches at time Edit in (0, 1]; small is near. 0: from noise.
	Edit float64 `json:"edit"`
	// EditFrom, with Edit, is the lower end of the range that each fake's own
	// level is drawn from; 0 means Edit for all.
	EditFrom float64 `json:"edit_from"`
	Detail   Detail  `json:"detail"`
	// DropCopies makes another fake for each that is a copy of a normal.
	DropCopies bool   `json:"drop_copies"`
	Seed       uint64 `json:"seed"`

	// Reference bounds the embeddings of normals that fakes are measured against,
	// mirror images included; default 4000.
	Reference int `json:"reference"`
	// Resume goes on with an interrupted run of the same options in the same
	// folder; the target may be another.
	Resume bool `json:"-"`
	// Names are the names of the normals for the manifest; nil for numbers.
	Names []string `json:"-"`
	// Extractor is needed but for a target in steps, where it may be nil: then
	// no distances are measured and copies go unnoticed.
	Extractor Extractor `json:"-"`
	// Log gets JSON lines: steps, probes and the outcome.
	Log io.Writer `json:"-"`
	// Progress is called with what is done and how far it is.
	Progress func(Progress) `json:"-"`
}

// Progress is how far a generation is.
type Progress struct {
	Stage       string // what is done
	Done, Total int
	Loss        *float64       // of the last step, while training
	Probe       *frechet.Probe // the last with a distance; nil before the first
}

// Profiles are the names that [Profile] knows.
var Profiles = []string{"cpu", "gpu", "paper", "paper-high"}

// Profile returns options for images of size×size pixels:
//
//   - paper: the paper's sizes and steps; days on a CPU, hours on a GPU
//   - paper-high: those for high resolution, NCSN++ by ve at 256 pixels, for which
//     alone there is a published configuration; a week on a GPU
//   - gpu: a network of a tenth of the operations, EDM's loss, an hour
//   - cpu: a network of a hundredth, minutes on two cores
//
// With an SDE "" the profile chooses: vp for paper, ve for paper-high, edm else;
// with size 0, too: 256 for paper-high, 32 else.
func Profile(name, sdeName string, size, channels int) (Options, error) {
	o := Options{
		SDE: sdeName, Sampler: Heun, Probes: 500, N: 1000, Mix: true, DropCopies: true, Detail: DetailNone,
		Stop: frechet.Target{Kind: frechet.Ratio, Value: 0.25},
	}
	o.SDE = cmp.Or(o.SDE, "edm")
	if size == 0 {
		size = 32
		if name == "paper-high" {
			size = 256
		}
	}
	var preset string
	switch name {
	case "paper":
		if sdeName == "" {
			o.SDE = "vp"
		}
		preset = "ddpm++"
		o.Sampler = EulerMaruyama
		if o.SDE == "ve" {
			preset, o.Sampler = "ncsn++", PredictorCorrector
			if size >= 256 {
				preset = "ncsn++-256"
			}
		}
		o.MaxSteps, o.ProbeEvery, o.Batch = 200_000, 2500, 256
	case "paper-high":
		if sdeName != "" && sdeName != "ve" || size < 256 {
			return o, fmt.Errorf("choose profile %q: it is ve at 256 pixels or more, not %s at %d: take paper", name, o.SDE, size)
		}
		o.SDE, preset, o.Sampler, o.Steps = "ve", "ncsn++-256", PredictorCorrector, 2000
		o.Train.Batch = 64
		o.MaxSteps, o.ProbeEvery, o.Batch = 500_000, 5000, 16
	case "gpu":
		preset = "medium"
		o.Train = TrainOptions{Batch: 128, LearningRate: 5e-4, Warmup: 500, EMA: 0.999}
		o.MaxSteps, o.ProbeEvery, o.Batch = 40_000, 500, 256
	case "cpu":
		preset = "nano"
		o.Train = TrainOptions{Batch: 32, LearningRate: 2e-3, Warmup: 100, EMA: 0.995}
		o.MaxSteps, o.ProbeEvery, o.Batch, o.Probes = 2000, 100, 32, 64
		o.Reference = 1200
	default:
		return o, fmt.Errorf("choose profile %q: unknown, take one of %v", name, Profiles)
	}
	n, err := Preset(preset, size, channels)
	if err != nil {
		return o, err
	}
	if name != "paper" && name != "paper-high" { // small networks on short runs have no time to overfit
		n.Dropout = 0
	}
	o.Network = n
	return o, nil
}

// ErrOptions marks options that do not fit each other, or not the images.
var ErrOptions = errors.New("options that cannot work")
