package inference

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"

	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/inference/heatmap"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/release"
)

// defaultTolerance is how far a check image's score may be off, relative:
// other processors and devices sum in another order.
const defaultTolerance = 1e-3

// decoderTolerance is that of a JPEG file where the release was made with
// another decoder: pixels differ by a few levels.
const decoderTolerance = 0.05

// coarseTolerance is that of a model whose products are in 8 or 16 bits: what another
// processor sums in another order is rounded to another step here and there.
const coarseTolerance = 0.02

// ErrMismatch: the parts of a release do not belong together, or do not score
// as they did where the release was made.
var ErrMismatch = errors.New("release does not fit together")

// Options adjust a Detector.
type Options struct {
	Embed EmbedOptions
	// Verified says that the release's files were compared with their digests by
	// whoever brought them here, as the registry does, and need not be read for
	// that again. Its check images are scored all the same.
	Verified bool
	// NoBatchEngine searches the bank with loops on the CPU even where many
	// images are scored at once, instead of a matrix product on the device.
	NoBatchEngine bool
	// Maps says which images get a grid of patch distances.
	Maps Maps
	// Log gets warnings. The zero value is silent.
	Log zerolog.Logger
}

// Score is the verdict on one image.
type Score struct {
	// Score is the sum of the squared distances to the K nearest normals, or
	// what CombineScores makes of several Parts.
	Score float64
	// Parts are what the score is made of.
	Parts []PartScore
	// Threshold is the score above which an image is anomalous, +Inf where the
	// release has no usable calibration.
	Threshold float64
	// PValue is the share, 1/(n+1)..1, of held-out normals that look at least as
	// strange; 0 without calibration.
	PValue    float64
	Anomalous bool
	K         int
	Nearest   []bank.Neighbour // by the main part of the score, nearest first
	// Map is the grid of the squared distances of the patches to the nearest patch
	// of a normal, where the release has a bank of them and Options.Maps asks; or
	// nil.
	Map *heatmap.Grid
	// Width and Height are those of the upright image, in pixels.
	Width, Height int
	// Err says why there is no score: an *imaging.RejectError for an image that
	// cannot be used, or ErrNotFinite. The other fields then mean nothing, and
	// Anomalous is true: what cannot be judged is not normal.
	Err error
}

// Info names what a Detector scores with.
type Info struct {
	Detector string
	Method   string
	Release  string   // digest of the release, empty where there is none
	Model    string   // digest of the backbone file
	Bank     string   // digest of the main bank's file
	Parts    []string // of the score
	Device   string
	Dim      int
	Count    int     // entries of the bank
	K        int     // neighbours in a score
	Alpha    float64 // false-alarm rate of the calibration, 0 without one
	HeldOut  int     // normals behind the calibration
	Worth    float64 // independent normals that these are worth, 1..HeldOut
	Promise  float64 // false-alarm rate that they can promise, at least Alpha
	Alike    float64 // frames in a row that tell as much as one, at least 1
}

// Detector scores images with one backbone and the banks made for it. All
// methods may be called from many goroutines.
type Detector struct {
	*Scorer
	e    *Embedder
	info Info
	rel  *release.Release
	end  func() error // closes what belongs to the detector
}

// newOfParts joins an Embedder and the banks of several parts of its outputs, as
// NewScorer does, without a release. All stay the caller's.
func newOfParts(e *Embedder, parts []Part, join *release.Join, maps Maps) (*Detector, error) {
	s, err := NewScorer(e.Outputs(), parts, join, maps)
	if err != nil {
		return nil, err
	}
	d := &Detector{Scorer: s, e: e}
	b := d.Bank()
	d.info = Info{Device: e.o.Device.String(), Dim: e.Dim(), Count: b.Len(), K: b.K()}
	if c := b.Calibration(); c != nil {
		d.info.Alpha, d.info.HeldOut = c.Alpha(), c.Len()
	}
	for _, p := range parts {
		if p.About.Scored {
			d.info.Parts = append(d.info.Parts, p.About.Name)
		}
	}
	return d, nil
}

// Open loads the release in dir. It refuses one whose files are not those that
// the manifest names, whose model and bank do not fit together, or whose check
// images score otherwise than they did where it was made.
func Open(ctx context.Context, dir string, o Options) (*Detector, error) {
	d, err := open(ctx, dir, o)
	if err != nil {
		return nil, fmt.Errorf("load release %s: %w", dir, err)
	}
	return d, nil
}

func open(ctx context.Context, dir string, o Options) (_ *Detector, err error) {
	rel, err := release.Open(dir)
	if err != nil {
		return nil, err
	}
	if !o.Verified {
		if err := rel.Verify(ctx); err != nil {
			return nil, err
		}
	}
	m := rel.Manifest
	if made, here := m.Model.Preprocess.Decoder, imaging.DecoderName(); made != "" && made != here {
		o.Log.Warn().Str("release", rel.Digest).Str("made_with", made).Str("here", here).
			Msg("the release was made with another JPEG decoder: scores of JPEG files may differ a little")
	}
	about := m.Parts
	if len(about) == 0 {
		about = []release.Part{wholePartOf(m)}
	}
	o.Embed.Preprocess, o.Embed.Precision, o.Embed.FloatProducts = &m.Model.Preprocess, m.Model.Precision, m.Model.FloatProducts
	about = slices.DeleteFunc(slices.Clone(about), func(p release.Part) bool {
		return p.IsPatch() && !p.Scored && o.Maps == MapNone
	})
	o.Embed.Patches = patchOutputs(about)
	e, err := NewEmbedder(rel.Path(m.Model.File), o.Embed)
	if err != nil {
		return nil, err
	}
	if _, why := e.Captured(); why != nil {
		o.Log.Warn().Err(why).Str("release", rel.Digest).Str("device", o.Embed.Device.String()).
			Msg("runs of the model are not captured in graphs: it runs without")
	}
	end := e.Close
	defer func() {
		if err != nil {
			_ = end()
		}
	}()
	read := bank.ReadOptions{Verified: true, Log: o.Log} // with the release, above or by its bringer
	if !o.NoBatchEngine {
		session := o.Embed.Session
		session.Device = o.Embed.Device
		engine, err := NewBatchEngine(session)
		if err != nil {
			return nil, err
		}
		read.Batch = engine
		end = func() error { return errors.Join(e.Close(), engine.Close()) }
	}
	if e.Dim() != m.Model.Dim {
		return nil, fmt.Errorf("%w: the model gives %d dimensions, the manifest says %d", ErrMismatch, e.Dim(), m.Model.Dim)
	}
	var parts []Part
	for _, p := range about {
		b, err := bank.ReadFile(rel.Path(p.Bank.File), read)
		if err != nil {
			return nil, err
		}
		rest := end
		end = func() error { return errors.Join(b.Close(), rest()) } // the bank's searcher before its engine
		if b.Len() != p.Bank.Count || b.K() != p.Bank.K {
			return nil, fmt.Errorf("%w: bank %s has %d entries and k = %d, the manifest says %d and %d",
				ErrMismatch, p.Bank.File, b.Len(), b.K(), p.Bank.Count, p.Bank.K)
		}
		parts = append(parts, Part{About: p, Bank: b})
	}
	d, err := newOfParts(e, parts, m.Join, o.Maps)
	if err != nil {
		return nil, err
	}
	if got := d.parts[d.main].About.Bank.File; got != m.Bank.File {
		return nil, fmt.Errorf("%w: the main bank is %s, the manifest says %s", ErrMismatch, got, m.Bank.File)
	}
	d.rel, d.end = rel, end
	d.info.Detector, d.info.Method, d.info.Release = m.Detector, m.Method, rel.Digest
	d.info.Model, d.info.Bank = m.ModelDigest(), m.BankDigest()
	if err := d.Verify(ctx); err != nil {
		return nil, err
	}
	return d, nil
}

// Verify scores the release's check images and compares with what the manifest
// foretells. A release without check images passes.
func (d *Detector) Verify(ctx context.Context) error {
	if d.rel == nil {
		return nil
	}
	checks := d.rel.Manifest.Check
	files := make([][]byte, len(checks))
	for i, c := range checks {
		b, err := os.ReadFile(d.rel.Path(c.File))
		if err != nil {
			return fmt.Errorf("check the release: %w", err)
		}
		files[i] = b
	}
	scores, err := d.Score(ctx, files)
	if err != nil {
		return fmt.Errorf("check the release: %w", err)
	}
	for i, c := range checks {
		tolerance := cmp.Or(c.Tolerance, defaultTolerance)
		if made := d.rel.Manifest.Model.Preprocess.Decoder; made != imaging.DecoderName() && filepath.Ext(c.File) == ".jpeg" {
			tolerance = max(tolerance, decoderTolerance)
		}
		got := scores[i]
		if got.Err != nil {
			return fmt.Errorf("%w: check image %s: %w", ErrMismatch, c.File, got.Err)
		}
		if !(math.Abs(got.Score-c.Score) <= tolerance*math.Max(math.Abs(c.Score), 1e-6)) {
			return fmt.Errorf("%w: check image %s scores %g, %g where the release was made", ErrMismatch, c.File, got.Score, c.Score)
		}
	}
	return nil
}

// Score judges image files. The result has one entry for each file, in their
// order; a file that cannot be used has an Err of its own. The call fails as a
// whole only when ctx ends, the model fails, or the Detector is closed.
func (d *Detector) Score(ctx context.Context, files [][]byte) ([]Score, error) {
	embeddings, err := d.e.Embed(ctx, files)
	if err != nil {
		return nil, err
	}
	return d.ScoreEmbeddings(ctx, embeddings)
}

// ScoreEmbeddings judges what the Detector's own Embedder gave.
func (d *Detector) ScoreEmbeddings(ctx context.Context, embeddings []Embedding) ([]Score, error) {
	scores := make([]Score, len(embeddings))
	var good []*Embedding
	var to []*Score
	for i := range embeddings {
		e := &embeddings[i]
		scores[i] = Score{Anomalous: true, K: d.info.K, Width: e.Width, Height: e.Height, Err: e.Err}
		if e.Err == nil {
			good, to = append(good, e), append(to, &scores[i])
		}
	}
	if len(good) == 0 {
		return scores, nil
	}
	if err := d.Judge(ctx, good, to); err != nil {
		return nil, fmt.Errorf("score %d images: %w", len(good), err)
	}
	return scores, nil
}

// Info says what the Detector scores with.
func (d *Detector) Info() Info { return d.info }

// Embedder is the Detector's own.
func (d *Detector) Embedder() *Embedder { return d.e }

// Release is what the Detector was loaded from, or nil.
func (d *Detector) Release() *release.Release { return d.rel }

// Close unloads the release.
func (d *Detector) Close() error {
	if d.end == nil {
		return nil
	}
	return d.end()
}

// ReleaseSpec is what WriteRelease makes a release of.
type ReleaseSpec struct {
	Detector string // the inspection task
	Method   string // "knn", "fitymi"
	// Model is the backbone's ONNX file, which Embedder has loaded. The files of its
	// external data go along.
	Model    string
	Embedder *Embedder
	// Bank is of whole embeddings; or Parts are the parts of the score.
	Bank  *bank.Bank
	Parts []Part
	Join  *release.Join // how groups of Parts become one score, or nil
	// Recall and Excess are the measured quality of Bank's index, if approximate.
	Recall, Excess *float64
	// RandomWeights and StarterWeights say where the model's weights come from,
	// if not from photographs: see [release.Model].
	RandomWeights, StarterWeights bool
	// Folded is how many of the normals that calibrate are in the banks, too: see
	// [release.Calibration].
	Folded int
	// Check has a few image files whose scores the manifest will foretell.
	Check [][]byte
	// Files are further files of the release: name to content.
	Files map[string][]byte
	// Training says where the release comes from; it is written as JSON.
	Training any
}

// WriteRelease writes a release at dir, which must not exist: the model, the
// bank, the check images and the manifest. The scores of the check images are
// those of the bank as it was read back.
func WriteRelease(ctx context.Context, dir string, s ReleaseSpec) (*release.Release, error) {
	b, err := release.Create(dir)
	if err != nil {
		return nil, err
	}
	defer b.Abort()
	m, err := s.fill(ctx, b)
	if err != nil {
		return nil, fmt.Errorf("write release %s: %w", dir, err)
	}
	r, err := b.Commit(ctx, m)
	if err != nil {
		return nil, err
	}
	if err := s.try(ctx, r); err != nil {
		return nil, errors.Join(fmt.Errorf("write release %s: it does not load, so it was removed: %w", dir, err), os.RemoveAll(dir))
	}
	return r, nil
}

// try loads the release and scores its check images, as whoever serves it will.
func (s ReleaseSpec) try(ctx context.Context, r *release.Release) error {
	o := Options{Verified: true, NoBatchEngine: true}
	o.Embed.Device, o.Embed.Threads, o.Embed.Session = s.Embedder.o.Device, s.Embedder.o.Threads, s.Embedder.o.Session
	o.Embed.Batch, o.Embed.Limits = s.Embedder.o.Batch, s.Embedder.o.Limits
	d, err := open(ctx, r.Dir, o)
	if err != nil {
		return err
	}
	return d.Close()
}

func (s ReleaseSpec) fill(ctx context.Context, b *release.Builder) (release.Manifest, error) {
	fail := func(err error) (release.Manifest, error) { return release.Manifest{}, err }
	if err := b.AddFile(ctx, release.BackboneName, s.Model); err != nil {
		return fail(err)
	}
	// The model names its external data, so these names are kept.
	external, err := onnx.External(s.Model)
	if err != nil {
		return fail(err)
	}
	for _, name := range external {
		if err := b.AddFile(ctx, filepath.ToSlash(name), filepath.Join(filepath.Dir(s.Model), name)); err != nil {
			return fail(fmt.Errorf("the model's weights in %s: %w", name, err))
		}
	}
	for name, content := range s.Files {
		if err := b.AddBytes(name, content); err != nil {
			return fail(err)
		}
	}
	parts := s.Parts
	if len(parts) == 0 {
		parts = []Part{wholePart(s.Bank)}
		parts[0].About.Bank.Recall, parts[0].About.Bank.Excess = s.Recall, s.Excess
	}
	main := mainPart(parts)
	if main < 0 {
		return fail(fmt.Errorf("%w: no part of the score is of the embedding", ErrMismatch))
	}
	var written []Part
	for i, p := range parts {
		about := p.About
		about.Bank.File = release.BankName
		if i != main {
			about.Bank.File = release.PartBankName(about.Name)
		}
		path, err := b.Path(about.Bank.File)
		if err != nil {
			return fail(err)
		}
		if err := p.Bank.WriteFile(path); err != nil {
			return fail(err)
		}
		read, err := bank.ReadFile(path, bank.ReadOptions{})
		if err != nil {
			return fail(err)
		}
		defer read.Close()
		about.Bank.Kind, about.Bank.Count, about.Bank.K = string(read.Index().Kind()), read.Len(), read.K()
		about.Bank.Normals = 0
		if n := release.Originals(read.IDs()); !about.IsPatch() && n < read.Len() {
			about.Bank.Normals = n
		}
		written = append(written, Part{About: about, Bank: read})
	}
	d, err := newOfParts(s.Embedder, written, s.Join, MapNone)
	if err != nil {
		return fail(err)
	}
	preprocess := s.Embedder.Preprocess()
	preprocess.Decoder = imaging.DecoderName()
	m := release.Manifest{
		Detector: s.Detector,
		Method:   s.Method,
		Model: release.Model{
			File: release.BackboneName, Dim: s.Embedder.Dim(), Preprocess: preprocess, Precision: s.Embedder.o.Precision, FloatProducts: s.Embedder.o.FloatProducts, RandomWeights: s.RandomWeights, StarterWeights: s.StarterWeights,
		},
		Bank: written[main].About.Bank,
	}
	if len(s.Parts) > 0 {
		for _, p := range written {
			m.Parts = append(m.Parts, p.About)
		}
		m.Join = s.Join
	}
	var about struct{ Name, Family string }
	if err := json.Unmarshal(s.Embedder.Backbone(), &about); err == nil {
		m.Model.Name, m.Model.Family = about.Name, about.Family
	}
	if c := d.Bank().Calibration(); c != nil {
		m.Calibration = release.Calibration{Alpha: c.Alpha(), SmallestAlpha: c.SmallestAlpha(), HeldOut: c.Len(), Folded: s.Folded}
		if c.Worth() < float64(c.Len()) {
			m.Calibration.Worth, m.Calibration.Promised = c.Worth(), c.Promise()
		}
		if t := c.Threshold(); !math.IsInf(t, 0) {
			m.Calibration.Threshold = &t
		}
	}
	if s.Training != nil {
		if m.Training, err = json.Marshal(s.Training); err != nil {
			return fail(err)
		}
	}
	scores, err := d.Score(ctx, s.Check)
	if err != nil {
		return fail(err)
	}
	for i, score := range scores {
		if score.Err != nil {
			return fail(fmt.Errorf("check image %d: %w", i, score.Err))
		}
		h, err := imaging.Inspect(s.Check[i], s.Embedder.o.Limits)
		if err != nil {
			return fail(fmt.Errorf("check image %d: %w", i, err))
		}
		name := fmt.Sprintf("check/%d.%s", i, h.Format)
		if err := b.AddBytes(name, s.Check[i]); err != nil {
			return fail(err)
		}
		check := release.Check{File: name, Score: score.Score}
		if p := m.Model.Precision; p == release.Int8 || p == release.Half {
			check.Tolerance = coarseTolerance
		}
		m.Check = append(m.Check, check)
	}
	return m, nil
}

// wholePartOf is the only part of a release whose manifest names none.
func wholePartOf(m release.Manifest) release.Part {
	return release.Part{
		Name: "class", Output: release.OutputEmbedding, Dim: m.Model.Dim, Bank: m.Bank,
		Statistic: release.StatisticKNN, Scored: true, Scale: 1, Weight: 1,
	}
}

// patchOutputs are the outputs of patch vectors that parts are taken from.
func patchOutputs(parts []release.Part) (out []string) {
	for _, p := range parts {
		if p.IsPatch() && !slices.Contains(out, p.Output) {
			out = append(out, p.Output)
		}
	}
	return out
}
