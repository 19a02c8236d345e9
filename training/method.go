package training

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/heatmap"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/training/dataset"
	"github.com/nearmiss/nearmiss/training/evaluate"
)

// Shared keeps what a frozen backbone says of images, for several evaluations of
// it that differ in how they score: each image is embedded once. It must be
// closed after them. The zero value is ready.
type Shared struct {
	looks map[string]*shownImages
}

// shownImages are a model and its features of images.
type shownImages struct {
	*look
	features *evaluate.Features
}

// Close unloads the models.
func (s *Shared) Close() error {
	var errs []error
	for _, k := range s.looks {
		errs = append(errs, k.Close())
	}
	clear(s.looks)
	return errors.Join(errs...)
}

// of returns the features of the plan's frozen backbone: class and pooled tokens
// and, where asked for, patches.
func (s *Shared) of(p Plan, patches bool) (*shownImages, error) {
	spec, layer, ok, err := patchSpec(p.Backbone, p.Patches.Layer)
	if err != nil {
		return nil, err
	}
	see := sight{parts: []Part{ClassPart}}
	if ok && spec.Class {
		see.parts = append(see.parts, PooledPart)
	}
	if patches && !ok {
		return nil, fmt.Errorf("%w: %s is a foreign model, which gives no patches: score on part %q", ErrPlan, p.Backbone, ClassPart)
	}
	if patches {
		see.layer = layer
	}
	key := fmt.Sprintf("%s %v %s", p.Backbone, see, p.Symmetry)
	if k := s.looks[key]; k != nil {
		return k, nil
	}
	k, err := p.show(p.Backbone, see)
	if err != nil {
		return nil, err
	}
	if s.looks == nil {
		s.looks = map[string]*shownImages{}
	}
	s.looks[key] = k
	return k, nil
}

// show loads what is to be seen of a network, by way of a file in the work
// folder.
func (p Plan) show(network string, s sight) (*shownImages, error) {
	if err := os.MkdirAll(p.Work, 0o755); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(p.Work, "parts-")
	if err != nil {
		return nil, err
	}
	k := &shownImages{}
	k.look, err = p.open(filepath.Join(dir, "parts.onnx"), network, s)
	if err := errors.Join(err, os.RemoveAll(dir)); err != nil {
		return nil, err
	}
	k.features = evaluate.NewFeatures(k.vectors)
	return k, nil
}

// vectors are the parts of the embedding and then the patch vectors, image by
// image. It fails where one file cannot be embedded: a data set with a broken
// image gives no figures.
func (k *shownImages) vectors(ctx context.Context, files [][]byte) ([][]float32, error) {
	all, err := k.e.Embed(ctx, files)
	if err != nil {
		return nil, err
	}
	out := make([][]float32, len(all))
	for i, v := range all {
		if v.Err != nil {
			return nil, fmt.Errorf("image %d: %w", i, v.Err)
		}
		out[i] = slices.Concat(v.Vector, slices.Concat(v.Patches...))
	}
	return out, nil
}

// ForEvaluation adapts a plan to the protocols of package evaluate, which give
// the normals and the seeds; the plan's own, Out and what concerns calibration
// count for nothing. Every normal that is given joins the bank, as in the paper.
// Work must be set. Several evaluations may share what they know of images; nil
// shares nothing. heard, if not nil, is told how each model came about. A method
// that is an io.Closer must be closed.
func ForEvaluation(p Plan, shared *Shared, heard func(Learning)) (evaluate.Method, error) {
	p.Detector, p.Out = "evaluation", "none"
	if err := p.Validate(); err != nil {
		return nil, err
	}
	if p.Work == "" {
		return nil, fmt.Errorf("%w: no work folder is given", ErrPlan)
	}
	m := &evaluation{plan: p.withDefaults(), shared: shared, heard: heard}
	if shared == nil {
		m.shared, m.own = &Shared{}, true
	}
	return m, nil
}

type evaluation struct {
	plan   Plan
	heard  func(Learning)
	shared *Shared
	own    bool // shared is no one else's
}

// Close unloads what is kept from one fit to the next.
func (m *evaluation) Close() error {
	if !m.own {
		return nil
	}
	return m.shared.Close()
}

// Name is the method's, with the parts of the score where they are not the
// paper's.
func (m *evaluation) Name() string {
	name := string(m.plan.Method)
	if m.plan.Auto {
		return name + " " + autoChoice
	}
	if !plain(m.plan.Parts) {
		name += " " + partsName(m.plan.Parts)
	}
	return name
}

// Fit implements evaluate.Method.
func (m *evaluation) Fit(ctx context.Context, items []dataset.Item, seed uint64) (_ evaluate.Scorer, err error) {
	p := m.plan
	p.Seed, p.Normals = seed, nil
	var digests []string
	var kept []dataset.Item // without copies
	have := map[[32]byte]bool{}
	for _, it := range items {
		b, err := it.Read()
		if err != nil {
			return nil, fmt.Errorf("read normal image %s: %w", it.Name, err)
		}
		sum := sha256.Sum256(b)
		if !have[sum] {
			have[sum] = true
			kept = append(kept, it)
			p.Normals = append(p.Normals, Image{Name: it.Name, Read: it.Read})
			digests = append(digests, hex.EncodeToString(sum[:]))
		}
	}
	if p.AutoSymmetry {
		if p.Symmetry, err = m.turn(ctx, p, kept); err != nil {
			return nil, err
		}
	}
	s := &partScorer{plan: p, parts: withoutTuned(p.Parts)}
	if p.Method == KNN {
		if s.look, err = m.shared.of(p, p.Auto || slices.Contains(p.Parts, PatchPart)); err != nil {
			return nil, err
		}
		if p.Auto {
			l := &lesson{Plan: p, normals: p.Normals}
			l.Tuning = compareOnly()
			if l.fit, l.unseen, err = l.Tuning.split(len(kept), p.K, p.Seed); err != nil {
				return nil, err
			}
			if err := s.choose(ctx, l, kept); err != nil {
				return nil, err
			}
		}
	} else {
		l, err := p.learn(ctx, p.Normals, digests)
		if err != nil {
			return nil, err
		}
		if m.heard != nil {
			m.heard(l.about)
		}
		s.parts = l.parts
		see := sight{parts: vectorParts(l.parts)}
		if slices.Contains(l.parts, PatchPart) || p.Auto {
			if _, see.layer, _, err = patchSpec(l.network, p.Patches.Layer); err != nil {
				return nil, err
			}
		}
		if p.Auto && !slices.Contains(see.parts, PooledPart) {
			see.parts = append(see.parts, PooledPart)
		}
		if s.look, err = p.show(l.network, see); err != nil {
			return nil, err
		}
		s.own = true
		if p.Auto {
			if err := s.choose(ctx, l.lesson, kept); err != nil {
				return nil, errors.Join(err, s.Close())
			}
		}
	}
	// As in the paper, copies of normals count as often as they are given.
	if err := s.fill(ctx, items); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// turn finds the symmetry that the frozen backbone's embeddings of the items are
// to be averaged over.
func (m *evaluation) turn(ctx context.Context, p Plan, items []dataset.Item) (imaging.Symmetry, error) {
	k, err := m.shared.of(p, false)
	if err != nil {
		return "", err
	}
	all, err := k.features.Of(ctx, items)
	if err != nil {
		return "", err
	}
	var rows []float32
	for _, r := range all {
		rows = append(rows, r[:k.dim]...)
	}
	o, err := p.orient(ctx, k.look, p.Normals, rows)
	if err != nil {
		return "", err
	}
	p.Log.Info().Str("symmetry", cmp.Or(string(o.Choice), "none")).Msg(o.String())
	return o.Choice, nil
}

// partScorer scores with banks of everything that it learnt from.
type partScorer struct {
	plan   Plan
	look   *shownImages
	own    bool // look is no one else's
	parts  []Part
	engine *inference.BatchEngine
	banks  map[Part]*bank.Bank
	marks  map[Part]mark
}

// choose takes the advised score.
func (s *partScorer) choose(ctx context.Context, l *lesson, items []dataset.Item) error {
	rows, err := s.look.features.Of(ctx, items)
	if err != nil {
		return err
	}
	advice, err := l.advise(ctx, s.look.look, s.known(rows, l.fit, s.look.parts))
	if err != nil {
		return err
	}
	s.parts, err = ParseParts(advice.Choice)
	s.plan.Log.Info().Str("score", advice.Choice).Float64("sure", advice.Sure).Msg(advice.Reason)
	return err
}

// known are the rows at which, part by part, and some of their patches.
func (s *partScorer) known(rows [][]float32, which []int, parts []Part) *known {
	out := &known{rows: map[Part][]float32{}}
	var some sampled
	for _, i := range which {
		for _, p := range parts {
			if p != PatchPart {
				out.rows[p] = append(out.rows[p], s.look.of(p, rows[i])...)
			}
		}
		if s.look.layer > 0 {
			dim := s.look.patchDim()
			some.keep(s.patches(rows[i]), dim, max(1, 8*examPatches/len(which)), s.plan.Seed)
		}
	}
	out.patches = slices.Concat(some.rows...)
	return out
}

func (s *partScorer) patches(row []float32) []float32 { return row[len(s.look.parts)*s.look.dim:] }

// fill makes the banks, and the marks that several parts are joined by: normals
// against the others.
func (s *partScorer) fill(ctx context.Context, items []dataset.Item) (err error) {
	p := s.plan
	if s.engine, err = p.engine(); err != nil {
		return err
	}
	rows, err := s.look.features.Of(ctx, items)
	if err != nil {
		return err
	}
	all := make([]int, len(rows))
	for i := range all {
		all[i] = i
	}
	s.banks = map[Part]*bank.Bank{}
	for _, part := range s.parts {
		if part == PatchPart {
			s.banks[part], err = s.patchBank(ctx, rows, all, nil)
		} else {
			s.banks[part], err = bankOf(s.known(rows, all, []Part{part}).rows[part], s.look.dim, p.K, p.Whiten, s.engine)
		}
		if err != nil {
			return err
		}
	}
	s.marks = map[Part]mark{}
	if len(s.parts) < 2 {
		s.marks[s.parts[0]] = mark{1, 1}
		return nil
	}
	fit, unseen, err := compareOnly().split(len(items), p.K, p.Seed)
	if err != nil {
		return err
	}
	have := s.known(rows, fit, s.parts)
	for _, part := range s.parts {
		var b *bank.Bank
		if part == PatchPart {
			dim := s.look.patchDim()
			b, err = bankOf(drawRows(have.patches, dim, examPatches, p.Seed), dim, 1, p.Patches.Whiten, s.engine)
		} else {
			b, err = bankOf(have.rows[part], s.look.dim, p.K, p.Whiten, s.engine)
		}
		if err != nil {
			return err
		}
		scores, err := s.scores(ctx, part, b, rows, unseen)
		if err := errors.Join(err, b.Close()); err != nil {
			return err
		}
		s.marks[part] = markOf(scores)
	}
	return nil
}

// patchBank is the bank of the patches of rows at which; others are queries for
// the recall gate.
func (s *partScorer) patchBank(ctx context.Context, rows [][]float32, which, others []int) (*bank.Bank, error) {
	dim := s.look.patchDim()
	var some sampled
	ids := make([]uint64, len(rows))
	for i, r := range rows {
		ids[i] = uint64(i)
		some.keep(s.patches(r), dim, max(1, mostPatches/len(rows)), s.plan.Seed)
	}
	p := s.plan
	if p.Index == bank.Auto {
		p.Index = bank.Exact
	}
	b, err := p.fillPatches(ctx, &some, ids, which, others, s.engine)
	if err != nil {
		return nil, err
	}
	return b.Bank, nil
}

// scores are a part's scores of the rows at which.
func (s *partScorer) scores(ctx context.Context, part Part, b *bank.Bank, rows [][]float32, which []int) ([]float64, error) {
	var out []float64
	const chunk = 32 // images whose patches are put together at a time
	for at := 0; at < len(which); at += chunk {
		var some []float32
		for _, i := range which[at:min(at+chunk, len(which))] {
			if part == PatchPart {
				some = append(some, s.patches(rows[i])...)
			} else {
				some = append(some, s.look.of(part, rows[i])...)
			}
		}
		if part != PatchPart {
			scores, err := b.Scores(ctx, some)
			if err != nil {
				return nil, err
			}
			out = append(out, scores...)
			continue
		}
		grids, err := s.look.gridsOf(ctx, b, some)
		if err != nil {
			return nil, err
		}
		for _, g := range grids {
			out = append(out, inference.PatchStatistic(g.Values, s.plan.Patches.Statistic))
		}
	}
	return out, nil
}

// Score implements evaluate.Scorer.
func (s *partScorer) Score(ctx context.Context, items []dataset.Item) ([]float64, error) {
	rows, err := s.look.features.Of(ctx, items)
	if err != nil {
		return nil, err
	}
	all := make([]int, len(rows))
	for i := range all {
		all[i] = i
	}
	parts := make([][]float64, len(s.parts))
	for i, p := range s.parts {
		if parts[i], err = s.scores(ctx, p, s.banks[p], rows, all); err != nil {
			return nil, err
		}
	}
	out := make([]float64, len(items))
	one := make([]inference.PartScore, len(s.parts))
	for j := range out {
		for i, p := range s.parts {
			one[i] = s.marks[p].score(parts[i][j])
		}
		out[j] = inference.CombineScores(one, nil)
	}
	return out, nil
}

// Maps implements evaluate.Localizer.
func (s *partScorer) Maps(ctx context.Context, items []dataset.Item) ([]heatmap.Grid, error) {
	b := s.banks[PatchPart]
	if b == nil {
		return nil, nil
	}
	rows, err := s.look.features.Of(ctx, items)
	if err != nil {
		return nil, err
	}
	var out []heatmap.Grid
	for _, r := range rows {
		g, err := s.look.gridsOf(ctx, b, s.patches(r))
		if err != nil {
			return nil, err
		}
		out = append(out, g...)
	}
	return out, nil
}

// Preprocess implements evaluate.Localizer.
func (s *partScorer) Preprocess() imaging.Preprocess { return s.look.e.Preprocess() }

// Close gives back the banks, and the model where it is its own.
func (s *partScorer) Close() error {
	var errs []error
	for _, b := range s.banks {
		errs = append(errs, b.Close())
	}
	if s.engine != nil {
		errs = append(errs, s.engine.Close())
	}
	if s.own {
		errs = append(errs, s.look.Close())
	}
	return errors.Join(errs...)
}
