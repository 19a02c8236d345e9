package training

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/training/dataset"
	"github.com/nearmiss/nearmiss/training/evaluate"
)

// ForEvaluation adapts a plan to the protocols of package evaluate, which give
// the normals and the seeds; the plan's own, Out and what concerns calibration
// count for nothing. Every normal that is given joins the bank, as in the paper.
// Work must be set. heard, if not nil, is told how each model came about. A method that is
// an io.Closer must be closed.
func ForEvaluation(p Plan, heard func(Learning)) (evaluate.Method, error) {
	p.Detector, p.Out = "evaluation", "none"
	if err := p.Validate(); err != nil {
		return nil, err
	}
	if p.Work == "" {
		return nil, fmt.Errorf("%w: no work folder is given", ErrPlan)
	}
	return &evaluation{plan: p.withDefaults(), heard: heard}, nil
}

type evaluation struct {
	plan  Plan
	heard func(Learning)
	// Of a frozen backbone whose parts are joined: nothing changes but scales, so
	// each image is embedded once.
	parts *inference.Embedder
	known *evaluate.Features
}

// Close unloads what is kept from one fit to the next.
func (m *evaluation) Close() error {
	if m.parts == nil {
		return nil
	}
	return m.parts.Close()
}

// Name is the method's, with the parts of the embedding where they are not the
// paper's.
func (m *evaluation) Name() string {
	name := string(m.plan.Method)
	if !plain(m.plan.Parts) {
		for i, p := range m.plan.Parts {
			name += []string{" ", "+"}[min(i, 1)] + string(p)
		}
	}
	return name
}

// Fit implements evaluate.Method.
func (m *evaluation) Fit(ctx context.Context, items []dataset.Item, seed uint64) (evaluate.Scorer, error) {
	p := m.plan
	p.Seed, p.Normals = seed, nil
	var digests []string
	seen := map[[32]byte]bool{}
	for _, it := range items {
		b, err := it.Read()
		if err != nil {
			return nil, fmt.Errorf("read normal image %s: %w", it.Name, err)
		}
		sum := sha256.Sum256(b)
		if !seen[sum] {
			seen[sum] = true
			p.Normals = append(p.Normals, Image{Name: it.Name, Read: it.Read})
			digests = append(digests, hex.EncodeToString(sum[:]))
		}
	}
	if p.Method == KNN && !plain(p.Parts) {
		return m.joined(ctx, p, items)
	}
	model := p.Backbone
	if p.Method == FITYMI {
		l, err := p.learn(ctx, p.Normals, digests)
		if err != nil {
			return nil, err
		}
		model = l.model
		if m.heard != nil {
			m.heard(l.about)
		}
	}
	return newBankScorer(ctx, p, model, items)
}

// joined scores on several parts of the frozen embedding, scaled as in a release.
func (m *evaluation) joined(ctx context.Context, p Plan, items []dataset.Item) (evaluate.Scorer, error) {
	parts := withoutTuned(p.Parts)
	if m.known == nil {
		if err := os.MkdirAll(p.Work, 0o755); err != nil {
			return nil, err
		}
		var pieces []piece
		for _, part := range parts {
			pieces = append(pieces, piece{part, 1})
		}
		model := filepath.Join(p.Work, "parts.onnx")
		if err := compose(model, p.Backbone, p.Backbone, pieces); err != nil {
			return nil, err
		}
		var err error
		if m.parts, err = p.embedder(model); err != nil {
			return nil, err
		}
		s := bankScorer{e: m.parts}
		m.known = evaluate.NewFeatures(s.embedFiles)
	}
	j := &joinedScorer{known: m.known, dim: m.parts.Dim() / len(parts), scales: make([]float64, len(parts)), k: p.K}
	fit, unseen, err := combineOnly().split(len(items), p.K, p.Seed)
	if err != nil {
		return nil, err
	}
	rows, err := m.known.Of(ctx, items)
	if err != nil {
		return nil, err
	}
	medians := make([]float64, len(parts))
	for i := range parts {
		pick := func(which []int) (out []float32) {
			for _, r := range which {
				out = append(out, rows[r][i*j.dim:(i+1)*j.dim]...)
			}
			return out
		}
		scores, err := knnScores(ctx, pick(fit), pick(unseen), j.dim, p.K)
		if err != nil {
			return nil, err
		}
		medians[i] = median(scores)
	}
	j.scales = equalise(medians)
	j.bank = j.scaled(rows)
	return j, nil
}

// joinedScorer scores rows of several parts, scaled.
type joinedScorer struct {
	known  *evaluate.Features
	dim    int // of a part
	scales []float64
	bank   []float32
	k      int
}

func (j *joinedScorer) scaled(rows [][]float32) []float32 {
	var out []float32
	for _, r := range rows {
		for i, v := range r {
			out = append(out, v*float32(j.scales[i/j.dim]))
		}
	}
	return out
}

// Score implements evaluate.Scorer.
func (j *joinedScorer) Score(ctx context.Context, items []dataset.Item) ([]float64, error) {
	rows, err := j.known.Of(ctx, items)
	if err != nil {
		return nil, err
	}
	return knnScores(ctx, j.bank, j.scaled(rows), j.dim*len(j.scales), j.k)
}

// bankScorer scores with a model and a bank of everything that it learnt from.
type bankScorer struct {
	e *inference.Embedder
	b *bank.Bank
}

func newBankScorer(ctx context.Context, p Plan, model string, items []dataset.Item) (_ *bankScorer, err error) {
	s := &bankScorer{}
	if s.e, err = p.embedder(model); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = s.e.Close()
		}
	}()
	rows, err := s.embed(ctx, items)
	if err != nil {
		return nil, err
	}
	if s.b, err = bank.New(bank.Options{Dim: s.e.Dim(), K: p.K, Kind: bank.Exact}); err != nil {
		return nil, err
	}
	ids := make([]uint64, len(items))
	for i := range ids {
		ids[i] = uint64(i)
	}
	return s, s.b.AddBatch(ids, rows)
}

func (s *bankScorer) embed(ctx context.Context, items []dataset.Item) ([]float32, error) {
	const chunk = 64 // images in memory at a time
	var rows []float32
	for lo := 0; lo < len(items); lo += chunk {
		part := items[lo:min(lo+chunk, len(items))]
		files := make([][]byte, len(part))
		for i, it := range part {
			var err error
			if files[i], err = it.Read(); err != nil {
				return nil, fmt.Errorf("embed image %s: %w", it.Name, err)
			}
		}
		vectors, err := s.embedFiles(ctx, files)
		if err != nil {
			return nil, fmt.Errorf("embed images %s to %s: %w", part[0].Name, part[len(part)-1].Name, err)
		}
		for _, v := range vectors {
			rows = append(rows, v...)
		}
	}
	return rows, nil
}

// embedFiles fails where one file cannot be embedded: a data set with a broken
// image gives no figures.
func (s *bankScorer) embedFiles(ctx context.Context, files [][]byte) ([][]float32, error) {
	all, err := s.e.Embed(ctx, files)
	if err != nil {
		return nil, err
	}
	out := make([][]float32, len(all))
	for i, v := range all {
		if v.Err != nil {
			return nil, fmt.Errorf("image %d: %w", i, v.Err)
		}
		out[i] = v.Vector
	}
	return out, nil
}

// Score implements evaluate.Scorer.
func (s *bankScorer) Score(ctx context.Context, items []dataset.Item) ([]float64, error) {
	rows, err := s.embed(ctx, items)
	if err != nil {
		return nil, err
	}
	return s.b.Scores(ctx, rows)
}

// Close unloads the model.
func (s *bankScorer) Close() error { return errors.Join(s.b.Close(), s.e.Close()) }
