package training

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/nearmiss/nearmiss/training/corrupt"
	"github.com/nearmiss/nearmiss/training/finetune"
	"github.com/nearmiss/nearmiss/training/frechet"
	"github.com/nearmiss/nearmiss/training/sde"
)

// Profiles are the names that [Profile] knows.
var Profiles = sde.Profiles

// Tuning says how [FITYMI] learns. [Profile] fills in a sensible set, of which
// every number can be changed.
type Tuning struct {
	Profile string `json:"profile,omitempty"` // that it started from, for people

	// Sources make the fakes. None: nothing is tuned, and the frozen backbone is
	// published.
	Sources []Source `json:"sources"`
	// PerNormal is the number of fakes for each normal.
	PerNormal float64 `json:"per_normal"`
	// SDE has the generator's options, for sources that have one.
	SDE sde.Options `json:"sde"`
	// Inception is an ONNX file in whose space a generator's samples are compared
	// with the normals; needed for a target in FID, which means distances in the
	// space of FID's Inception. Default: the detector's own backbone.
	Inception string `json:"inception,omitempty"`
	// Match is the share of the normals, 0..1, that go through the fakes' size in
	// training where fakes are smaller than what the backbone takes in: else it
	// would learn to see blur.
	Match float64 `json:"match"`

	// Stopping is the share of the normals not held out for calibration that the
	// fine-tune does not see: its curve and the gate are measured on them. They
	// join the bank.
	Stopping float64 `json:"stopping"`
	// Recipe is the fine-tune; its seed is drawn from the plan's.
	Recipe finetune.Recipe `json:"recipe"`
	// LeastSteps raises the epochs where there are so few normals that they would
	// make fewer steps.
	LeastSteps int `json:"least_steps,omitempty"`
	// Probe, above 0, starts from a head that was fitted to the frozen embeddings,
	// with this penalty on its weights; 0: from the recipe's head.
	Probe float64 `json:"probe,omitempty"`
	// Members is the number of fine-tunes with different seeds whose weights are
	// averaged into one model: the outcome of one depends on chance.
	Members int `json:"members"`
	// Gate decides what is published.
	Gate Gate `json:"gate"`
}

// SourceKind is where fakes come from: a corrupt.Kind, or one of these.
type SourceKind string

const (
	// SDESource samples from noise (the paper's fakes).
	SDESource SourceKind = "sde"
	// SDEditSource diffuses normals partly and back, and gives them their fine
	// detail again.
	SDEditSource SourceKind = "sdedit"
	// FolderSource reads fakes that were made before, with nearmiss fakes.
	FolderSource SourceKind = "folder"
)

// Source is one origin of fakes.
type Source struct {
	Kind SourceKind `json:"kind"`
	// Share is this source's part of the fakes, relative to the others'.
	Share float64 `json:"share"`
	// Path is the folder of FolderSource.
	Path string `json:"path,omitempty"`
	// Weak and Strong bound the strength of a corruption, 0..1.
	Weak   float64 `json:"weak,omitempty"`
	Strong float64 `json:"strong,omitempty"`
}

// learns says whether the source trains a generator.
func (s Source) learns() bool { return s.Kind == SDESource || s.Kind == SDEditSource }

// ParseSources reads a list such as "sdedit", "sdedit=2,warp=1",
// "folder:made/fakes" or "none". A name's number is its share of the fakes.
func ParseSources(text string) ([]Source, error) {
	if text == "none" {
		return []Source{}, nil
	}
	var out []Source
	for item := range strings.SplitSeq(text, ",") {
		name, share, given := strings.Cut(strings.TrimSpace(item), "=")
		s := Source{Share: 1}
		if given {
			v, err := strconv.ParseFloat(share, 64)
			if err != nil || !(v > 0) || math.IsInf(v, 0) {
				return nil, fmt.Errorf("source of fakes %q: its share must be a number above 0", item)
			}
			s.Share = v
		}
		kind, path, _ := strings.Cut(name, ":")
		s.Kind, s.Path = SourceKind(kind), path
		s.withDefaults()
		out = append(out, s)
	}
	for _, s := range out {
		if err := s.validate(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// withDefaults sets the strengths of a corruption that has none.
func (s *Source) withDefaults() {
	if corrupt.Kind(s.Kind).Valid() && s.Weak == 0 && s.Strong == 0 {
		s.Weak, s.Strong = 0.2, 0.8
	}
}

func (s Source) validate() error {
	known := []SourceKind{SDESource, SDEditSource, FolderSource}
	switch {
	case corrupt.Kind(s.Kind).Valid():
		if !(s.Weak > 0 && s.Weak <= s.Strong && s.Strong <= 1) {
			return fmt.Errorf("source of fakes %q: strengths from %g to %g are not in (0, 1]", s.Kind, s.Weak, s.Strong)
		}
	case !slices.Contains(known, s.Kind):
		return fmt.Errorf("source of fakes %q: unknown, take %v, one of %v, or none", s.Kind, known, corrupt.Kinds)
	case (s.Kind == FolderSource) != (s.Path != ""):
		return fmt.Errorf("source of fakes %q: a folder, and only that, needs a path, as in folder:DIR", s.Kind)
	}
	if !(s.Share > 0) {
		return fmt.Errorf("source of fakes %q: share %g is not above 0", s.Kind, s.Share)
	}
	return nil
}

// Profile returns how FITYMI learns:
//
//   - paper: the paper's generator and fine-tune, one run of it
//   - paper-high: the same for high resolution: a generator of 256 pixels, a longer
//     fine-tune at a higher rate
//   - gpu: smaller and faster, the mean of three runs
//   - cpu: for two cores and hundreds of normals, minutes to half an hour
//
// All of them sample fakes from noise, as the paper does: these did best where
// they were compared with partly diffused normals and with corruptions.
func Profile(name string) (Tuning, error) {
	t := Tuning{
		Profile: name, PerNormal: 1, Match: 0.5, Stopping: 0.2, Members: 3,
		Sources: []Source{{Kind: SDESource, Share: 1}},
		Recipe:  finetune.Paper(), Gate: defaultGate(),
	}
	generator, err := sde.Profile(name, "", 0, 3)
	if err != nil {
		return t, fmt.Errorf("choose how to learn: profile %q is unknown, take one of %v", name, Profiles)
	}
	t.SDE = generator
	if name != "paper" && name != "paper-high" {
		// A random head on a class token of norm 50 starts with a loss of 3 and
		// spoils the features before it knows anything.
		t.Probe, t.Recipe.HeadRate = 0.01, 0.2
		t.LeastSteps = 100
	}
	t.SDE.Edit, t.SDE.EditFrom = 0.45, 0.3
	switch name {
	case "paper", "paper-high":
		t.Members = 1
		t.Gate.Blends = []float64{1}
		if name == "paper-high" {
			t.Recipe = finetune.PaperHigh()
		}
	case "gpu":
		t.Recipe.Epochs, t.Recipe.Optimizer.LearningRate = 10, 1e-3
		t.PerNormal = 2
	case "cpu":
		t.Recipe.Epochs, t.Recipe.Optimizer.LearningRate = 4, 2e-3
		// Frozen up to the middle, gradients need not go farther than that.
		t.Recipe.Freeze = []string{"patch_embed.*", "pos_embed", "cls_token", "reg_token"}
		t.Members = 2
		if t.SDE.Network, err = sde.Preset("nano", 32, 3); err != nil {
			return t, err
		}
		t.SDE.MaxSteps, t.SDE.ProbeEvery, t.SDE.Probes = 600, 100, 40
	}
	return t, nil
}

// MeasureBy compares a generator's samples with the normals in the space of an
// Inception from now on, and stops where the paper does: at 40, for pictures of 256
// pixels at 200.
func (t *Tuning) MeasureBy(inception string) {
	t.Inception = inception
	t.SDE.Stop = frechet.Target{Kind: frechet.FID, Value: 40}
	if t.SDE.Network.Size >= 256 {
		t.SDE.Stop.Value = 200
	}
}

// ParseTuning reads a tuning in JSON, as releases record it. What it leaves out
// is as in the profile that it names; default "cpu".
func ParseTuning(b []byte) (Tuning, error) {
	var base struct {
		Profile string          `json:"profile"`
		Sources json.RawMessage `json:"sources"`
	}
	fail := func(err error) (Tuning, error) { return Tuning{}, fmt.Errorf("read a training profile: %w", err) }
	if err := json.Unmarshal(b, &base); err != nil {
		return fail(err)
	}
	t, err := Profile(cmp.Or(base.Profile, "cpu"))
	if err != nil {
		return fail(err)
	}
	if base.Sources != nil {
		t.Sources = nil // else they would be laid over the profile's
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&t); err != nil {
		return fail(err)
	}
	for i := range t.Sources {
		t.Sources[i].withDefaults()
	}
	if err := t.Validate(); err != nil {
		return fail(err)
	}
	return t, nil
}

// Validate names everything that makes no sense.
func (t Tuning) Validate() error {
	var errs []error
	fail := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	for _, s := range t.Sources {
		if err := s.validate(); err != nil {
			errs = append(errs, err)
		}
	}
	if !(t.PerNormal > 0) || math.IsInf(t.PerNormal, 0) {
		fail("%g fakes for each normal: use a number above 0", t.PerNormal)
	}
	if !(t.Match >= 0 && t.Match <= 1) {
		fail("share %g of normals at the fakes' size: use a number from 0 to 1", t.Match)
	}
	if !(t.Stopping > 0 && t.Stopping < 1) {
		fail("share %g of normals for the gate: use a number between 0 and 1", t.Stopping)
	}
	if !(t.Probe >= 0) || math.IsInf(t.Probe, 0) || t.LeastSteps < 0 {
		fail("penalty %g of the head and at least %d steps: use 0 or more", t.Probe, t.LeastSteps)
	}
	if t.Members < 1 {
		fail("%d fine-tunes: use 1 or more", t.Members)
	}
	if len(t.Sources) > 0 {
		errs = append(errs, t.Recipe.Validate())
	}
	if t.SDE.Stop.Kind == frechet.FID && t.Inception == "" && slices.ContainsFunc(t.Sources, Source.learns) {
		fail("target %s is a distance in the space of FID's Inception: name its ONNX file (--inception), or give a target that any model measures, as r=0.25", t.SDE.Stop)
	}
	errs = append(errs, t.Gate.validate())
	return errors.Join(errs...)
}
