package training

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/training/dataset"
	"github.com/nearmiss/nearmiss/training/evaluate"
)

// ForEvaluation adapts a plan to the protocols of package evaluate, which give
// the normals and the seeds; the plan's own, Out and what concerns calibration
// count for nothing. Every normal that is given joins the bank, as in the paper.
// Work must be set. heard, if not nil, is told how each model came about.
func ForEvaluation(p Plan, heard func(Learning)) (evaluate.Method, error) {
	p.Detector, p.Out = "evaluation", "none"
	if err := p.Validate(); err != nil {
		return nil, err
	}
	if p.Work == "" {
		return nil, fmt.Errorf("%w: no work folder is given", ErrPlan)
	}
	return evaluation{p.withDefaults(), heard}, nil
}

type evaluation struct {
	plan  Plan
	heard func(Learning)
}

// Name is the method's, with the parts of the embedding where they are not the
// paper's.
func (m evaluation) Name() string {
	name := string(m.plan.Method)
	if !plain(m.plan.Parts) {
		for i, p := range m.plan.Parts {
			name += []string{" ", "+"}[min(i, 1)] + string(p)
		}
	}
	return name
}

// Fit implements evaluate.Method.
func (m evaluation) Fit(ctx context.Context, items []dataset.Item, seed uint64) (evaluate.Scorer, error) {
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
	model := p.Backbone
	if p.Method == FITYMI || !plain(p.Parts) {
		if p.Method == KNN {
			p.Tuning = combineOnly()
		}
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
		all, err := s.e.Embed(ctx, files)
		if err != nil {
			return nil, err
		}
		for i, v := range all {
			if v.Err != nil {
				return nil, fmt.Errorf("embed image %s: %w", part[i].Name, v.Err)
			}
			rows = append(rows, v.Vector...)
		}
	}
	return rows, nil
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
