package training

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/ort"
	"github.com/nearmiss/nearmiss/inference/release"
)

// Method is how a detector learns.
type Method string

// KNN keeps the pretrained backbone and fills the bank with the normals'
// embeddings.
const KNN Method = "knn"

// FITYMI first tunes the backbone to tell normals from fakes that are almost
// normal (arXiv 2205.14297), and keeps the frozen one where that does not help.
const FITYMI Method = "fitymi"

// Defaults of a plan.
const (
	DefaultK     = 2    // neighbours in a score (paper, eq. 4)
	DefaultAlpha = 0.01 // false-alarm rate, where the held-out normals can promise it
)

// ErrPlan is wrapped by what Validate reports: the plan makes no sense, whatever
// the images are.
var ErrPlan = errors.New("bad plan")

// Image is one normal image, read when it is needed.
type Image struct {
	Name string                 // for people; unique in a plan
	Read func() ([]byte, error) // the image file's bytes, the same at every call
	// Camera and At say where and when it was taken, as far as that is known.
	// Frames of a camera resemble those before and after them, which matters for
	// what is held out; without them the names tell the order.
	Camera string
	At     time.Time
}

// Plan says what a detector learns from, how, and where its release goes. The
// zero value of a field means its default.
type Plan struct {
	// Detector names the release: letters, digits, - and _. Required.
	Detector string
	// Out is the release folder that is written; it must not exist. Required.
	Out string
	// Method is how to learn. Default KNN.
	Method Method
	// Seed draws the split. Equal seeds and images give equal banks.
	Seed uint64

	Data        Data
	Model       Model
	Score       Score
	Calibration Calibration
	// Tuning says how FITYMI learns. Default Profile("cpu").
	Tuning *Tuning
	Host   Host

	shapes []imaging.Header // of some of the normals, once they were read
}

// Data is what is learnt from.
type Data struct {
	// Normals are the images to learn from; files with equal bytes count once.
	// Required.
	Normals []Image
	// Anomalies are real ones, for the gate of FITYMI; nothing is trained on them.
	Anomalies []Image
	// View is the part of each image that counts, in learning and in scoring. It
	// travels with the release. Default: all of it.
	View *imaging.View
	// Frame says what counts where View has no region: FrameAuto the part of the
	// frame where normals show anything, with opened shadows where it is dark, FrameAll
	// all of it as it is. Default: FrameAuto for the full score, FrameAll for others.
	Frame string
	// Limits bound the images.
	Limits imaging.Limits
	// NoImages keeps every image of a normal out of the release: it cannot show
	// what is nearest to an anomaly, and is checked with drawn pictures.
	NoImages bool
}

// Model is what embeds images.
type Model struct {
	// Backbone is the ONNX file that embeds images. Required.
	Backbone string
	// Size is the side of the backbone's square input, in pixels; 0: its own, or with a
	// Budget the largest that the normals have pixels for and with which a picture
	// takes no longer.
	Size   int
	Budget time.Duration
	// Tiles are what patches come from, each an input of the backbone beside the
	// whole picture: rows and columns, as in 2x3, TilesNone, or TilesAuto, as many as the
	// normals have pixels for, at most 4x4, and the Budget, if any, has time for, or
	// TilesFew, 2x2 where what counts has 400 pixels or more both ways. They travel
	// with the release. Default: with a Budget TilesAuto, else TilesFew for the full score
	// and a Size that is not given, TilesNone for others.
	Tiles  string
	source string // the base name of Backbone as it was given
	// Precision is that of the backbone's products: PrecisionFloat, PrecisionInt8, which
	// is faster on the CPU, PrecisionHalf, which is on accelerators, or PrecisionAuto, the
	// faster one of the device where it is much faster, held-out normals are separated
	// from spoilt ones as well, and scores move little. It travels with the release. Default: PrecisionFloat.
	Precision string
	gate      precisionGate // what PrecisionAuto asks of it; zero: usualGate
	// See says which part of a picture the model sees: SeeWhole squeezes all of it
	// into its square, SeeMiddle is what the backbone says, usually the square in the
	// middle. It travels with the release. Default: SeeWhole for the full score,
	// SeeMiddle for others.
	See string
	// Light says what is done about light that changes: LightUsual takes pictures as
	// they are, LightEven evens out how bright and contrasty each is, LightColours slight
	// casts of colour, too, LightVaried puts copies in other light into the banks, LightAuto
	// takes the first of all but LightColours that helps where normals in other light would
	// raise false alarms else. All but LightUsual read pictures as grey where all normals
	// are. It travels with the release. Default: LightAuto for the full score, LightUsual for
	// others.
	Light string
	// Sharpness says what is done about pictures that are slightly out of focus:
	// SharpnessUsual nothing, SharpnessWhole puts blurred copies of the normals into the banks
	// of whole pictures, where these have room, SharpnessVaried into those of patches, too,
	// SharpnessAuto takes the first of these that helps where blurred normals would raise many
	// false alarms else. Default: SharpnessAuto for the full score, SharpnessUsual for others.
	Sharpness string
	// Turned puts turned or mirrored copies of the normals into the banks: TurnedNone,
	// a symmetry, or TurnedAuto, where normals are found to lie in any way. Default:
	// TurnedNone.
	Turned string
	// Symmetry is what embeddings are averaged over. It travels with the release.
	// Default: each image is taken as it is.
	Symmetry imaging.Symmetry
	// Advise finds out whether it matters how normals lie, for people to choose by;
	// AutoSymmetry takes what is found in place of Symmetry.
	Advise, AutoSymmetry bool
	found
}

// found is what came of Tiles, Turned and what is done about light and dark frames.
type found struct {
	tiles  imaging.Tiles
	turned imaging.Symmetry
	tone   *imaging.Tone
}

// What counts of a frame.
const (
	FrameAuto = "auto"
	FrameAll  = "all"
)

// What a model sees of a picture.
const (
	SeeWhole  = "whole"
	SeeMiddle = "middle"
)

// Precisions of a backbone's products.
const (
	PrecisionFloat = release.Float32
	PrecisionInt8  = release.Int8
	PrecisionHalf  = release.Half
	PrecisionAuto  = autoChoice
)

// What patches come from, beside rows and columns of tiles.
const (
	TilesAuto = autoChoice
	TilesFew  = "few"
	TilesNone = "none"
)

// choosesTiles says whether the frames' size decides.
func (m Model) choosesTiles() bool { return m.Tiles == TilesAuto || m.Tiles == TilesFew }

// What is done about light.
const (
	LightAuto    = "auto"
	LightUsual   = "usual"
	LightEven    = "even"
	LightVaried  = "varied"
	LightColours = "colours"
)

// What is done about blur.
const (
	SharpnessAuto   = autoChoice
	SharpnessUsual  = "usual"
	SharpnessWhole  = "whole"
	SharpnessVaried = "varied"
)

// Which turned copies of normals join the banks, beside those of a symmetry.
const (
	TurnedAuto = autoChoice
	TurnedNone = "none"
)

// Calibration says what a threshold promises.
type Calibration struct {
	// Alpha is the false-alarm rate, 0..1, that the threshold promises. Default
	// DefaultAlpha.
	Alpha float64
	// Settle takes the smallest rate that the held-out normals can promise where
	// that is above Alpha, and warns; else such a plan fails.
	Settle bool
	// HeldOut is the share of the normals, 0..1, that calibrates and stays out
	// of the bank. Default: DefaultHeldOut. Where the score has several parts, the
	// network stays as it is and frames do not resemble those before them, the other
	// normals then calibrate, too: each share of them is held out in turn, and
	// scored by banks made of the rest, as the release's are. A number that is given
	// has the share alone calibrate, for which the promise is exact.
	HeldOut float64
	folds   bool // what the default allows
}

// Host is where a plan is carried out, and where its progress goes.
type Host struct {
	// Device and Threads say where the backbone runs, as in inference.
	Device  ort.Device
	Threads int
	// Batch is the most images in one run of the backbone; 0: as in inference.
	Batch int
	// Work is the folder where FITYMI leaves the results of its steps. A run with
	// the same folder, images, backbone and seed takes up what is there. Default: a
	// folder beside Out, which is removed once the release is written.
	Work string
	// Tool is the program and its version, for the manifest.
	Tool string
	// Progress, when set, is called with how far each step is; from one goroutine at a
	// time.
	Progress func(Progress)
	// Log gets warnings. The zero value is silent.
	Log zerolog.Logger
}

// Progress is how far a run is.
type Progress struct {
	Step        string
	Done, Total int // 0 of 0: it begins
	// Loss, where the step has one, is the mean of its last chunk; finite.
	Loss *float64
	// Frechet is the last point of a generator's curve, the Fréchet distance of its
	// samples to as many normals; Ratio is the same on the scale from 0, what two
	// halves of the normals have, to 1, noise. Nil where nothing is measured.
	Frechet, Ratio *float64
	// Left is how long the run will take at least: the rest of the step at its
	// speed so far, and the fine-tunes to come. 0: not known yet.
	Left time.Duration
}

// report reports how far a step without a loss is.
func (h Host) report(step string, done, total int) {
	h.Progress(Progress{Step: step, Done: done, Total: total})
}

func (p Plan) withDefaults() Plan {
	p.Method = cmp.Or(p.Method, KNN)
	p.Score = p.Score.withDefaults()
	p.Model.source = filepath.Base(p.Model.Backbone)
	usual := func(plain, full string) string {
		if p.Score.name() == FullScore {
			return full
		}
		return plain
	}
	p.Model.See = cmp.Or(p.Model.See, usual(SeeMiddle, SeeWhole))
	p.Data.Frame = cmp.Or(p.Data.Frame, usual(FrameAll, FrameAuto))
	p.Model.Light = cmp.Or(p.Model.Light, usual(LightUsual, LightAuto))
	p.Model.Sharpness = cmp.Or(p.Model.Sharpness, usual(SharpnessUsual, SharpnessAuto))
	p.Model.Turned = cmp.Or(p.Model.Turned, TurnedNone)
	if p.Model.Tiles == "" {
		p.Model.Tiles = TilesNone
		switch {
		case !p.tileable():
		case p.Model.Budget > 0:
			p.Model.Tiles = TilesAuto
		case p.Score.name() == FullScore && p.Model.Size == 0:
			p.Model.Tiles = TilesFew
		}
	}
	if !p.Model.choosesTiles() {
		p.Model.tiles, _ = imaging.ParseTiles(p.Model.Tiles)
	}
	if p.Model.Turned != TurnedAuto {
		p.Model.turned, _ = imaging.ParseSymmetry(p.Model.Turned)
	}
	p.Calibration.Alpha = cmp.Or(p.Calibration.Alpha, DefaultAlpha)
	if p.Calibration.HeldOut == 0 {
		p.Calibration.HeldOut, p.Calibration.folds = DefaultHeldOut, true
	}
	if p.Method == FITYMI && p.Tuning == nil {
		t, _ := Profile("cpu")
		p.Tuning = &t
	}
	c, report := &clock{now: time.Now}, p.Host.Progress
	if p.Tuning != nil {
		c.fineTunes = p.Tuning.Members
	}
	if report == nil {
		report = func(Progress) {}
	}
	p.Host.Progress = func(at Progress) {
		at.Left = c.left(at.Step, at.Done, at.Total)
		for _, v := range []**float64{&at.Loss, &at.Frechet, &at.Ratio} {
			if *v != nil && (math.IsNaN(**v) || math.IsInf(**v, 0)) {
				*v = nil
			}
		}
		report(at)
	}
	return p
}

// Hasten leaves out what a release need not have that is to be there soon, and says what in
// a few words; empty: nothing. On pictures like the normals such a release is as good; in
// other light or focus it may raise false alarms.
func (p *Plan) Hasten() (without string) {
	var left []string
	q := p.withDefaults()
	if q.Method == FITYMI {
		p.Method, p.Tuning, p.Data.Anomalies, p.Host.Work = KNN, nil, nil, ""
		left = append(left, "tuning the network")
	}
	if q.Model.Light == LightAuto {
		p.Model.Light = LightUsual
		left = append(left, "a look at other light")
	}
	if q.Model.Sharpness == SharpnessAuto {
		p.Model.Sharpness = SharpnessUsual
		left = append(left, "a look at a slight blur")
	}
	return strings.Join(left, " and ")
}

// tileable says whether tiles are of any use to a plan with defaults.
func (p Plan) tileable() bool { return p.Model.See == SeeWhole && !p.Score.NoPatches }

// Validate names everything in the plan that makes no sense.
func (p Plan) Validate() error {
	errs := []error{p.Score.validate(), p.Data.View.Validate(), p.Model.Symmetry.Validate()}
	fail := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	if p.Detector == "" {
		fail("no detector is named")
	}
	switch p.Method {
	case "", KNN, FITYMI:
	default:
		fail("method %q: take %q or %q", p.Method, KNN, FITYMI)
	}
	if p.Method == FITYMI && p.Tuning != nil {
		errs = append(errs, p.Tuning.Validate())
	}
	if p.Model.AutoSymmetry && p.Model.Symmetry != imaging.NoSymmetry {
		fail("symmetry %q is given, and is to be found: choose one", p.Model.Symmetry)
	}
	if !slices.Contains([]string{"", SeeWhole, SeeMiddle}, p.Model.See) {
		fail("the model is to see %q of a picture: take %s or %s", p.Model.See, SeeWhole, SeeMiddle)
	}
	if !slices.Contains([]string{"", FrameAuto, FrameAll}, p.Data.Frame) {
		fail("frame %q is unknown: take %s or %s", p.Data.Frame, FrameAuto, FrameAll)
	}
	if !slices.Contains([]string{"", LightAuto, LightUsual, LightEven, LightVaried, LightColours}, p.Model.Light) {
		fail("light %q: take %s, %s, %s, %s or %s", p.Model.Light, LightAuto, LightUsual, LightEven, LightColours, LightVaried)
	}
	if !slices.Contains([]string{"", SharpnessAuto, SharpnessUsual, SharpnessWhole, SharpnessVaried}, p.Model.Sharpness) {
		fail("sharpness %q: take %s, %s, %s or %s", p.Model.Sharpness, SharpnessAuto, SharpnessUsual, SharpnessWhole, SharpnessVaried)
	}
	if !slices.Contains([]string{"", PrecisionFloat, PrecisionHalf, PrecisionInt8, PrecisionAuto}, p.Model.Precision) {
		fail("precision %q: take %s, %s, %s or %s", p.Model.Precision, PrecisionFloat, PrecisionHalf, PrecisionInt8, PrecisionAuto)
	}
	if p.Model.Turned != "" {
		if _, _, err := ParseSymmetry(p.Model.Turned); err != nil {
			fail("turned copies of normals: %w", err)
		}
	}
	if t, err := imaging.ParseTiles(p.Model.Tiles); !p.Model.choosesTiles() && err != nil {
		fail("%w, %s or %s", err, TilesFew, TilesAuto)
	} else if q := p.withDefaults(); (p.Model.choosesTiles() || t.Count() > 0) && !q.tileable() {
		fail("tiles %s are of the whole picture and for patches: take score %s, or one with patches, and have the model see %s", p.Model.Tiles, FullScore, SeeWhole)
	}
	if p.Model.Backbone == "" {
		fail("no backbone is given")
	}
	if p.Model.Size < 0 || p.Model.Budget < 0 || p.Model.Size > 0 && p.Model.Budget > 0 {
		fail("an input of %d pixels and %v for a picture: give one of them", p.Model.Size, p.Model.Budget)
	}
	if p.Out == "" {
		fail("no folder is given for the release")
	}
	if p.Calibration.Alpha < 0 || p.Calibration.Alpha >= 1 {
		fail("false-alarm rate %v: use a number between 0 and 1", p.Calibration.Alpha)
	}
	if p.Calibration.HeldOut < 0 || p.Calibration.HeldOut >= 1 {
		fail("held-out share %v: use a number between 0 and 1", p.Calibration.HeldOut)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w: %w", ErrPlan, err)
	}
	return nil
}

// clock estimates the time that is left from the speed so far.
type clock struct {
	fineTunes int
	now       func() time.Time
	step      string
	began     time.Time
	first     int // done at the step's first report: resumed steps start late
	members   int // fine-tunes begun
}

func (c *clock) left(step string, done, total int) time.Duration {
	tuning := strings.HasPrefix(step, "finetune-")
	if step != c.step {
		c.step, c.began, c.first = step, c.now(), done
		if tuning {
			c.members++
		}
	}
	if done <= c.first || total <= 0 {
		return 0
	}
	each := float64(c.now().Sub(c.began)) / float64(done-c.first)
	left := each * float64(total-done)
	if tuning {
		left += each * float64(total) * float64(max(c.fineTunes-c.members, 0))
	}
	return time.Duration(left)
}
