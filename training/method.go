package training

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/heatmap"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/training/dataset"
	"github.com/nearmiss/nearmiss/training/evaluate"
)

// of returns what the plan's frozen backbone gives for the plan's score. It must be
// closed. Which products stay in 32 bits with PrecisionInt8 the normals say that come first.
func (s *Shared) of(ctx context.Context, p Plan) (*cachedModel, error) {
	view, err := json.Marshal([]any{p.Model.tone, p.Data.View})
	if err != nil {
		return nil, err
	}
	key := fmt.Sprintf("%s %s %s %s %v %v %s %s %s", p.Model.Backbone, p.Model.Precision, p.Model.See, p.Score.name(), p.Score.NoPatches, p.Score.NoMaps, p.Model.Symmetry, p.Model.tiles, view)
	return s.get(key, func() (*cachedModel, error) {
		return p.cachedModel(ctx, networks{served: p.Model.Backbone, frozen: p.Model.Backbone})
	})
}

// cachedModel loads what the plan's score needs of networks, by way of a file in the work
// folder. It must be closed.
func (p Plan) cachedModel(ctx context.Context, n networks) (*cachedModel, error) {
	if err := os.MkdirAll(p.Host.Work, 0o755); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(p.Host.Work, "parts-")
	if err != nil {
		return nil, err
	}
	k := &cachedModel{data: p.Data, users: 1}
	k.b, err = p.scoreBuilder(ctx, filepath.Join(dir, "parts.onnx"), n)
	if err := errors.Join(err, os.RemoveAll(dir)); err != nil {
		return nil, err
	}
	k.b.progress = nil
	k.features = evaluate.NewFeatures(k.vectors)
	return k, nil
}

// vectors are the embedding and then the patch vectors, image by image. It fails
// where one file cannot be embedded: a data set with a broken image gives no
// figures.
func (k *cachedModel) vectors(ctx context.Context, files [][]byte) ([][]float32, error) {
	all, err := k.b.model.e.Embed(ctx, files)
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

// embedding is a row of vectors as the model gave it.
func (k *cachedModel) embedding(row []float32) *inference.Embedding {
	o := k.b.model.e.Outputs()
	e := &inference.Embedding{Vector: row[:o.Dim]}
	row = row[o.Dim:]
	for _, p := range o.Patches {
		n := p.Count * p.Dim
		e.Patches, row = append(e.Patches, row[:n]), row[n:]
	}
	return e
}

// each calls f with what the model gives of items, in their order.
func (k *cachedModel) each(ctx context.Context, items []dataset.Item, f func(e *inference.Embedding) error) error {
	const chunk = 64 // items in memory at a time
	for some := range slices.Chunk(items, chunk) {
		rows, err := k.features.Of(ctx, some)
		if err != nil {
			return err
		}
		for _, row := range rows {
			if err := f(k.embedding(row)); err != nil {
				return err
			}
		}
	}
	return nil
}

// normals are the items, to build a score of.
func (k *cachedModel) normals(ctx context.Context, items []dataset.Item, seed uint64) (*normals, error) {
	n := k.b.empty()
	n.replay = func(ctx context.Context, which []int, f func(e *inference.Embedding) error) error {
		return k.each(ctx, picked(items, which), f)
	}
	n.vary = func(ctx context.Context, which []int, c copying, f func(e *inference.Embedding) error) error {
		images := make([]Image, len(which))
		for i, at := range which {
			images[i] = Image{Name: items[at].Name, Read: items[at].Read}
		}
		return k.b.model.vary(ctx, k.data, images, c, f)
	}
	most := mostNumbers / max(len(items), 1)
	return n, k.each(ctx, items, func(e *inference.Embedding) error {
		return n.add(ctx, uint64(n.size()), e, most, seed)
	})
}

// ForEvaluation adapts a plan to the protocols of package evaluate, which give
// the normals and the seeds; the plan's own, Out and what concerns calibration
// count for nothing. Every normal that is given joins the bank, as in the paper.
// Host.Work must be set. Several evaluations may share their embeddings;
// nil shares nothing. report, if not nil, is called with how each model came about. A
// method that is an io.Closer must be closed.
func ForEvaluation(p Plan, shared *Shared, report func(Learning)) (evaluate.Method, error) {
	p.Detector, p.Out = "evaluation", "none"
	if err := p.Validate(); err != nil {
		return nil, err
	}
	if p.Model.Precision == PrecisionAuto {
		return nil, fmt.Errorf("%w: precision %s is chosen by held-out normals, of which an evaluation has none: take %s, %s or %s", ErrPlan, PrecisionAuto, PrecisionFloat, PrecisionHalf, PrecisionInt8)
	}
	if p.Host.Work == "" {
		return nil, fmt.Errorf("%w: no work folder is given", ErrPlan)
	}
	m := &evaluation{plan: p.withDefaults(), shared: shared, report: report}
	if shared == nil {
		m.shared, m.own = &Shared{}, true
	}
	return m, nil
}

type evaluation struct {
	plan   Plan
	report func(Learning)
	shared *Shared
	own    bool // shared is no one else's
	// folding asks what the normals score by banks that they are not in.
	folding bool
}

// Close unloads what is kept from one fit to the next.
func (m *evaluation) Close() error {
	if !m.own {
		return nil
	}
	return m.shared.Close()
}

// Name is the method's, with the score where it is not the paper's.
func (m *evaluation) Name() string {
	name := string(m.plan.Method)
	if score := m.plan.Score.name(); score != ClassScore {
		name += " " + score
	}
	return name
}

// Folding implements evaluate.Folder. The part that counts is found of all items, so that
// each is embedded once however often they are drawn.
func (m *evaluation) Folding(items []dataset.Item) evaluate.Method {
	a, err := backbone.Dissect(m.plan.Model.Backbone)
	if err != nil || !m.plan.folds() {
		return nil // Fit says what is wrong
	}
	if c, err := m.plan.Score.compose(m.plan.Model.Backbone, a, false); err != nil || len(c.scored()) < 2 {
		return nil
	}
	out := *m
	out.own, out.folding = false, true
	out.plan.Score.NoMaps = true
	if out.plan.frames() {
		images := make([]Image, len(items))
		for i, it := range items {
			images[i] = Image{Name: it.Name, Read: it.Read}
		}
		f := frame(images, out.plan.Data)
		f.apply(&out.plan)
		out.plan.Data.Frame = FrameAll
		out.plan.Host.Log.Info().Msg(f.String())
	}
	return &out
}

// Fit implements evaluate.Method.
func (m *evaluation) Fit(ctx context.Context, items []dataset.Item, seed uint64) (_ evaluate.Scorer, err error) {
	p := m.plan
	p.Seed, p.Data.Normals = seed, nil
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
			p.Data.Normals = append(p.Data.Normals, Image{Name: it.Name, Read: it.Read})
			digests = append(digests, hex.EncodeToString(sum[:]))
		}
	}
	tried, err := p.sized(ctx, p.Host.Work)
	if err != nil {
		return nil, err
	}
	if err := p.readGrey(ctx); err != nil {
		return nil, err
	}
	if p.frames() {
		f := frame(p.Data.Normals, p.Data)
		f.apply(&p)
		p.Host.Log.Info().Msg(f.String())
	}
	if p.Model.AutoSymmetry {
		if p.Model.Symmetry, err = m.chooseSymmetry(ctx, p, kept); err != nil {
			return nil, err
		}
	} else if p.Model.Turned == TurnedAuto {
		if p.Model.turned, err = m.chooseSymmetry(ctx, p, kept); err != nil {
			return nil, err
		}
	}
	nets := networks{served: p.Model.Backbone, frozen: p.Model.Backbone}
	open := func(p Plan) (*cachedModel, error) { return m.shared.of(ctx, p) }
	if p.Method != KNN {
		t, err := tune(ctx, p, p.Data.Normals, digests)
		if err != nil {
			return nil, err
		}
		if m.report != nil {
			m.report(t.about)
		}
		nets.served = t.network
		open = func(p Plan) (*cachedModel, error) { return p.cachedModel(ctx, nets) }
	}
	usual, err := open(p)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, usual.Close()) }()
	if r := p.resolution(usual.b.model, tried); r != nil {
		p.Host.Log.Info().Msg(r.String())
	}
	best, report, err := inLight(p.Model.Light, func(choice string) (*evaluatedScore, effect, error) {
		s, q := &evaluatedScore{cached: usual}, p
		if evensOut(choice) {
			var err error
			if q.Model.tone, err = evenTone(usual.b.model, p.Data, p.Data.Normals, choice == LightColours); err != nil {
				return nil, effect{}, err
			}
			if s.cached, err = open(q); err != nil {
				return nil, effect{}, err
			}
		} else {
			usual.users++
		}
		// As in the paper, copies of normals count as often as they are given.
		if err := s.build(ctx, q, items, copyingOf(len(items), p.Model, choice, p.Model.Sharpness), m.folding); err != nil {
			return nil, effect{}, errors.Join(err, s.Close())
		}
		return s, s.score.effect, nil
	})
	if err != nil {
		return nil, err
	}
	var sharpness *SharpnessReport
	if best.score, sharpness, err = best.score.sharpen(ctx, p.Model, report.Choice); err != nil {
		return nil, errors.Join(err, best.cached.Close())
	}
	if sharpness != nil {
		p.Host.Log.Info().Msg(sharpness.String())
	}
	if err := best.score.draw(ctx); err != nil {
		return nil, errors.Join(err, best.Close())
	}
	if p.Model.Light != LightUsual {
		report.Grey = p.Model.tone.ReadsGrey()
		p.Host.Log.Info().Msg(report.String())
	}
	return best, nil
}

// build builds the score of the items, with copies of them; folded asks what they
// score themselves, each by banks that it is not in, and keeps a share out of the
// banks for that.
func (s *evaluatedScore) build(ctx context.Context, p Plan, items []dataset.Item, c copying, folded bool) error {
	n, err := s.cached.normals(ctx, items, p.Seed)
	if err != nil {
		return err
	}
	b := *s.cached.b // several scores may be built of what is known
	b.Score, b.seed, b.copies, b.folded = p.Score, p.Seed, c, folded
	b.light, b.blur = p.Model.Light != LightUsual, p.Model.Sharpness != SharpnessUsual
	if !folded {
		s.score, err = b.build(ctx, n, nil)
		return err
	}
	train, held, err := Split(n.size(), p.Calibration.HeldOut, p.Score.K, p.Seed)
	if err != nil {
		return err
	}
	s.score, err = b.build(ctx, n.at(train), n.at(held))
	return err
}

// chooseSymmetry finds the symmetry that the frozen backbone's embeddings of the items are
// to be averaged over.
func (m *evaluation) chooseSymmetry(ctx context.Context, p Plan, items []dataset.Item) (_ imaging.Symmetry, err error) {
	k, err := m.shared.of(ctx, p)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, k.Close()) }()
	n, err := k.normals(ctx, items, p.Seed)
	if err != nil {
		return "", err
	}
	o, err := orient(ctx, k.b, p.Data.Normals, n, p)
	if err != nil {
		return "", err
	}
	p.Host.Log.Info().Str("symmetry", cmp.Or(string(o.Choice), "none")).Msg(o.String())
	return o.Choice, nil
}

// evaluatedScore scores with banks of everything that it learnt from: a release's
// score before it is calibrated.
type evaluatedScore struct {
	cached *cachedModel
	score  *builtScore
}

// judge scores items, and says where they are strange if maps are asked for.
func (s *evaluatedScore) judge(ctx context.Context, items []dataset.Item, maps inference.Maps) ([]inference.Score, error) {
	scorer, err := inference.NewScorer(s.cached.b.model.e.Outputs(), s.score.Parts(), s.score.Join(), maps)
	if err != nil {
		return nil, err
	}
	const chunk = 32 // images whose patches are searched at a time
	out := make([]inference.Score, len(items))
	var some []*inference.Embedding
	var to []*inference.Score
	done := 0
	flush := func() error {
		defer func() { some, to = some[:0], to[:0] }()
		return scorer.Judge(ctx, some, to)
	}
	err = s.cached.each(ctx, items, func(e *inference.Embedding) error {
		some, to = append(some, e), append(to, &out[done])
		if done++; len(some) < chunk && done < len(items) {
			return nil
		}
		return flush()
	})
	return out, err
}

// Score implements evaluate.Scorer.
func (s *evaluatedScore) Score(ctx context.Context, items []dataset.Item) ([]float64, error) {
	all, err := s.judge(ctx, items, inference.MapNone)
	if err != nil {
		return nil, err
	}
	out := make([]float64, len(all))
	for i, v := range all {
		out[i] = v.Score
	}
	return out, nil
}

// Calibrating implements evaluate.Folded.
func (s *evaluatedScore) Calibrating() []float64 { return s.score.folded }

// Explain implements evaluate.Explainer.
func (s *evaluatedScore) Explain(ctx context.Context, items []dataset.Item) ([]float64, []map[string]float64, error) {
	all, err := s.judge(ctx, items, inference.MapNone)
	if err != nil {
		return nil, nil, err
	}
	scores, parts := make([]float64, len(all)), make([]map[string]float64, len(all))
	for i, v := range all {
		scores[i], parts[i] = v.Score, map[string]float64{}
		for _, p := range v.Parts {
			parts[i][p.Name] = p.Score
		}
	}
	return scores, parts, nil
}

// Cost implements evaluate.Coster.
func (s *evaluatedScore) Cost(ctx context.Context, items []dataset.Item) (*Cost, error) {
	var files [][]byte
	for _, it := range items {
		b, err := it.Read()
		if err != nil {
			return nil, err
		}
		files = append(files, b)
	}
	return s.cached.b.cost(ctx, s.score, files)
}

// Maps implements evaluate.Localizer.
func (s *evaluatedScore) Maps(ctx context.Context, items []dataset.Item) ([]heatmap.Grid, error) {
	if !s.score.HasMaps() {
		return nil, nil
	}
	all, err := s.judge(ctx, items, inference.MapAll)
	if err != nil {
		return nil, err
	}
	out := make([]heatmap.Grid, len(all))
	for i, v := range all {
		out[i] = *v.Map
	}
	return out, nil
}

// Preprocess implements evaluate.Localizer.
func (s *evaluatedScore) Preprocess() imaging.Preprocess { return s.cached.b.model.e.Preprocess() }

// Close gives back the banks and the model.
func (s *evaluatedScore) Close() error {
	var err error
	if s.score != nil {
		err = s.score.Close()
	}
	return errors.Join(err, s.cached.Close())
}
