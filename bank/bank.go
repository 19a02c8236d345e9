package bank

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/mapped"
)

const (
	maxDim   = 1 << 16
	defaultK = 2
)

// Kind names an index.
type Kind string

const (
	// Auto is Exact below Options.Cutoff and HNSW from there on.
	Auto Kind = "auto"
	// Exact compares with every entry.
	Exact Kind = "exact"
	// HNSW walks our own navigable small world graph.
	HNSW Kind = "hnsw"
	// Coder is github.com/coder/hnsw, built once and never changed.
	Coder Kind = "coder"
	// Sketch dismisses most entries by a short description of them, for banks that
	// answer many queries at once through a BlockEngine; else it is exact.
	Sketch Kind = "sketch"
)

// Options make a bank. The zero value of a field means its default.
type Options struct {
	// Dim is the length of the embeddings that come in, 1..65536. Required.
	Dim int
	// K is the number of neighbours in a score. Default 2.
	K int
	// Kind is the index that Build makes. Default Auto.
	Kind Kind
	// Cutoff is the number of entries from which on Auto means HNSW. Default
	// DefaultCutoff.
	Cutoff int
	// Graph shapes the HNSW graph and, as far as it can be, coder's.
	Graph GraphOptions
	// Gate says what an approximate index must reach to serve.
	Gate Gate
	// Transform is applied to every embedding on its way in, entries and
	// queries alike; nil for none.
	Transform *Transform
	// Batch answers large batches of exact search; nil for loops on the CPU.
	Batch BatchEngine
	// Log gets the warnings of the recall gate. The zero value is silent.
	Log zerolog.Logger
}

// Result is the verdict on one embedding.
type Result struct {
	// Score is the sum of the K Distances in Nearest: the novelty score.
	Score float64
	// PValue is the conformal p-value, 1/(n+1)..1; 0 where the bank is not
	// calibrated.
	PValue float64
	// Threshold is the score above which an embedding is anomalous: +Inf where
	// the calibration's rate is unreachable or the bank is not calibrated.
	Threshold float64
	// Anomalous says whether PValue ≤ the calibration's rate; false where the
	// bank is not calibrated.
	Anomalous bool
	// Nearest are the K nearest entries, nearest first.
	Nearest []Neighbour
}

// Bank is an index over the embeddings of normal images and the calibration of
// their scores. All methods may be called from many goroutines.
type Bank struct {
	dim       int
	k         int
	kind      Kind
	cutoff    int
	graph     GraphOptions
	gate      Gate
	transform *Transform
	log       zerolog.Logger
	rows      *rows

	change sync.Mutex   // held by whatever changes entries or replaces the index
	file   *mapped.File // that rows and graph are in, or nil; guarded by change

	measured
}

// measured is a bank's index and what was found out about it.
type measured struct {
	mu          sync.RWMutex // guards what follows, not what it points to
	index       Index
	report      Report
	queries     []float32 // the recall gate's, transformed, n×rows.dim
	calibration *Calibration
	heldOut     []float32 // what Calibrate was given, transformed; nil after SetCalibration
}

// New makes an empty bank. It searches exactly until Build is called.
func New(o Options) (*Bank, error) {
	if o.Dim < 1 || o.Dim > maxDim {
		return nil, fmt.Errorf("new bank: dimension %d is not in 1..%d", o.Dim, maxDim)
	}
	if o.K = cmp.Or(o.K, defaultK); o.K < 1 {
		return nil, fmt.Errorf("new bank: k is %d, must be at least 1", o.K)
	}
	switch o.Kind = cmp.Or(o.Kind, Auto); o.Kind {
	case Auto, Exact, HNSW, Coder, Sketch:
	default:
		return nil, fmt.Errorf("new bank: unknown kind of index %q; use auto, exact, hnsw, coder or sketch", o.Kind)
	}
	o.Cutoff = cmp.Or(o.Cutoff, DefaultCutoff)
	graph, err := o.Graph.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("new bank: %w", err)
	}
	gate, err := o.Gate.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("new bank: %w", err)
	}
	dim := o.Dim
	if o.Transform != nil {
		if err := o.Transform.check(o.Dim); err != nil {
			return nil, fmt.Errorf("new bank: %w", err)
		}
		dim = o.Transform.Out()
	}
	r := newRows(dim)
	r.engine = o.Batch
	r.warn = func(err error) {
		o.Log.Warn().Err(err).Msg("the bank searches with its own loops instead of the batch engine")
	}
	return &Bank{
		dim: o.Dim, k: o.K, kind: o.Kind, cutoff: o.Cutoff, graph: graph, gate: gate,
		transform: o.Transform, log: o.Log, rows: r, measured: measured{index: &exact{rows: r}},
	}, nil
}

// Close gives back what a batch engine holds for the bank, and the file that it was
// read from, once the searches under way are through. Afterwards a bank that was in
// a file fails with ErrClosed; any other may still be used.
func (b *Bank) Close() error {
	b.change.Lock()
	defer b.change.Unlock()
	b.rows.mu.Lock()
	defer b.rows.mu.Unlock()
	b.rows.dropPrepared()
	if b.file == nil {
		return nil
	}
	f := b.file
	b.file, b.rows.ids, b.rows.data, b.rows.closed = nil, nil, nil, true
	return f.Close()
}

// Dim is the length of the embeddings that go in and are scored.
func (b *Bank) Dim() int { return b.dim }

// K is the number of neighbours in a score.
func (b *Bank) K() int { return b.k }

// Len is the number of entries.
func (b *Bank) Len() int { return b.Index().Len() }

// Index is the index that answers at present, for searching it directly; its
// vectors are transformed ones. Change the bank through the bank alone.
func (b *Bank) Index() Index {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.index
}

// IDs lists the entries in no particular order.
func (b *Bank) IDs() []uint64 {
	b.rows.mu.RLock()
	defer b.rows.mu.RUnlock()
	return slices.Clone(b.rows.ids)
}

// Add puts one embedding in: ErrDim, ErrNotFinite or ErrExists.
func (b *Bank) Add(id uint64, v []float32) error {
	t, err := b.apply(v)
	if err != nil {
		return fmt.Errorf("add %d: %w", id, err)
	}
	b.change.Lock()
	defer b.change.Unlock()
	if err := b.own(); err != nil {
		return fmt.Errorf("add %d: %w", id, err)
	}
	return b.Index().Add(id, t)
}

// AddBatch puts n embeddings in, row-major n×Dim; with nil their ids are 0, 1, … On
// an error those before it stay in.
func (b *Bank) AddBatch(ids []uint64, embeddings []float32) error {
	if ids == nil {
		for i := range len(embeddings) / b.dim {
			ids = append(ids, uint64(i))
		}
	}
	if len(embeddings) != len(ids)*b.dim {
		return fmt.Errorf("add %d entries: %w: got %d numbers, want %d×%d",
			len(ids), ErrDim, len(embeddings), len(ids), b.dim)
	}
	b.change.Lock()
	err := b.own()
	if err == nil {
		b.rows.mu.Lock()
		b.rows.grow(len(ids))
		b.rows.mu.Unlock()
	}
	b.change.Unlock()
	if err != nil {
		return fmt.Errorf("add %d entries: %w", len(ids), err)
	}
	for i, id := range ids {
		if err := b.Add(id, embeddings[i*b.dim:(i+1)*b.dim]); err != nil {
			return err
		}
	}
	return nil
}

// Remove takes an entry out.
func (b *Bank) Remove(id uint64) error {
	b.change.Lock()
	defer b.change.Unlock()
	if err := b.own(); err != nil {
		return fmt.Errorf("remove %d: %w", id, err)
	}
	return b.Index().Remove(id)
}

// ScoreBatch finds the K nearest entries of each of m embeddings, row-major m×Dim,
// on all cores or the batch engine, and judges them: ErrDim, ErrNotFinite (a broken
// embedding never gets a verdict, least of all "normal"), or ErrTooFew where the
// bank has fewer than K entries. It fails as a whole if one embedding is bad.
func (b *Bank) ScoreBatch(ctx context.Context, embeddings []float32) ([]Result, error) {
	t, err := b.applyAll(embeddings)
	if err != nil {
		return nil, fmt.Errorf("score: %w", err)
	}
	b.mu.RLock()
	index, calibration := b.index, b.calibration
	b.mu.RUnlock()
	near, err := index.SearchBatch(ctx, t, b.k)
	if err != nil {
		return nil, err
	}
	out := make([]Result, len(near))
	for i := range near {
		if out[i], err = b.judge(near[i], calibration); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Scores is ScoreBatch's scores alone: novelty scores of m embeddings.
func (b *Bank) Scores(ctx context.Context, embeddings []float32) ([]float64, error) {
	results, err := b.ScoreBatch(ctx, embeddings)
	if err != nil {
		return nil, err
	}
	out := make([]float64, len(results))
	for i, r := range results {
		out[i] = r.Score
	}
	return out, nil
}

// LeaveOneOut gives every entry's score against the rest of the bank, by id.
// It needs more than K entries.
func (b *Bank) LeaveOneOut(ctx context.Context) (map[uint64]float64, error) {
	b.rows.mu.RLock()
	ids, data := slices.Clone(b.rows.ids), slices.Clone(b.rows.data)
	b.rows.mu.RUnlock()
	if len(ids) <= b.k {
		return nil, fmt.Errorf("leave one out: %w: %d entries, need more than k = %d", ErrTooFew, len(ids), b.k)
	}
	near, err := b.Index().SearchBatch(ctx, data, b.k+1)
	if err != nil {
		return nil, fmt.Errorf("leave one out: %w", err)
	}
	out := make(map[uint64]float64, len(ids))
	for i, id := range ids {
		// Without itself; where k+1 duplicates with smaller ids pushed it out,
		// the first k are as good.
		others := slices.DeleteFunc(near[i], func(n Neighbour) bool { return n.ID == id })
		if len(others) < b.k {
			return nil, fmt.Errorf("leave one out: %w: entry %d has %d neighbours", ErrTooFew, id, len(others))
		}
		out[id] = sum(others[:b.k])
	}
	return out, nil
}

// Calibrate scores held-out normals, row-major n×Dim, which must not be in the
// bank (nor have been seen by whatever made the embeddings), and sets the
// bank's calibration for the false-alarm rate alpha. It fails with an
// *UnreachableError, and changes nothing, where n is too small for alpha.
//
// The bank keeps the held-out embeddings for Recalibrate. Entries that are added
// later leave the promise intact, since scores only fall; after removals it
// needs Recalibrate.
func (b *Bank) Calibrate(ctx context.Context, heldOut []float32, alpha float64) (*Calibration, error) {
	t, err := b.applyAll(heldOut)
	if err != nil {
		return nil, fmt.Errorf("calibrate: %w", err)
	}
	return b.calibrate(ctx, slices.Clone(t), alpha, nil)
}

// ErrNoHeldOut: the bank has no held-out embeddings to calibrate with anew.
var ErrNoHeldOut = errors.New("the bank keeps no held-out embeddings")

// Recalibrate scores the held-out embeddings of the last Calibrate, also one
// before the bank was written to a file, against the entries as they are now,
// under the same rate. It fails with ErrNoHeldOut where there was none.
func (b *Bank) Recalibrate(ctx context.Context) (*Calibration, error) {
	b.mu.RLock()
	heldOut, c := b.heldOut, b.calibration
	b.mu.RUnlock()
	if heldOut == nil || c == nil {
		return nil, fmt.Errorf("recalibrate: %w; call Calibrate", ErrNoHeldOut)
	}
	return b.calibrate(ctx, heldOut, c.alpha, c)
}

// Readjust changes the number of neighbours and the false-alarm rate, 0..1, and
// decides by the held-out embeddings scored anew. With k as it is the held-out
// scores do. It fails with ErrNoHeldOut where the bank keeps neither, and then
// and on every other error stays as it was. Nobody may score meanwhile.
func (b *Bank) Readjust(ctx context.Context, k int, alpha float64) (*Calibration, error) {
	if k < 1 {
		return nil, fmt.Errorf("readjust the bank: %d neighbours in a score: use 1 or more", k)
	}
	b.change.Lock()
	defer b.change.Unlock()
	if b.calibration == nil || k != b.k && b.heldOut == nil {
		return nil, fmt.Errorf("readjust the bank: %w", ErrNoHeldOut)
	}
	if k == b.k {
		c, err := b.calibration.WithAlpha(alpha)
		if err == nil {
			err = c.Err()
		}
		if err != nil {
			return nil, err
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.calibration = c
		return c, nil
	}
	was := b.keep()
	b.k = k
	if err := b.rejudge(ctx); err != nil {
		b.putBack(was)
		return nil, fmt.Errorf("readjust the bank to k = %d: %w", k, err)
	}
	c, err := b.calibrate(ctx, b.heldOut, alpha, b.calibration)
	if err != nil {
		b.putBack(was)
		return nil, fmt.Errorf("readjust the bank to k = %d: %w", k, err)
	}
	return c, nil
}

// kept is what Readjust changes.
type kept struct {
	k       int
	index   Index
	width   int // of an approximate index's search
	report  Report
	queries []float32
}

func (b *Bank) keep() kept {
	b.mu.RLock()
	defer b.mu.RUnlock()
	was := kept{k: b.k, index: b.index, report: b.report, queries: b.queries}
	if w := searchWidth(b.index); w != nil {
		was.width = *w
	}
	return was
}

func (b *Bank) putBack(was kept) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.k, b.index, b.report, b.queries = was.k, was.index, was.report, was.queries
	if w := searchWidth(b.index); w != nil {
		*w = was.width
	}
}

// rejudge puts an approximate index to the recall gate again: what it is worth
// depends on k.
func (b *Bank) rejudge(ctx context.Context) error {
	kind := b.index.Kind()
	if kind == Exact {
		return nil
	}
	r, err := b.judgeIndex(ctx, kind, b.index, b.queries, 0)
	if err == nil {
		b.install(b.index, r, b.queries)
	}
	return err
}

// calibrate scores held-out embeddings; they are worth what those of before are, if
// not nil, which are of the same.
func (b *Bank) calibrate(ctx context.Context, heldOut []float32, alpha float64, before *Calibration) (*Calibration, error) {
	near, err := b.Index().SearchBatch(ctx, heldOut, b.k)
	if err != nil {
		return nil, fmt.Errorf("calibrate: %w", err)
	}
	scores := make([]float64, len(near))
	for i := range near {
		r, err := b.judge(near[i], nil)
		if err != nil {
			return nil, fmt.Errorf("calibrate: %w", err)
		}
		scores[i] = r.Score
	}
	c, err := NewCalibration(scores, alpha)
	if err != nil {
		return nil, err
	}
	if err := c.Err(); err != nil {
		return nil, err
	}
	if before != nil {
		c.worth, c.alike = before.worth, before.alike
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calibration, b.heldOut = c, heldOut
	return c, nil
}

// Rest says that the held-out scores of the calibration are worth only so many
// independent ones, as [Calibration.Resting] does. Later calibrations of the same
// embeddings keep it.
func (b *Bank) Rest(worth, alike float64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.calibration != nil {
		b.calibration = b.calibration.Resting(worth, alike)
	}
}

// SetCalibration replaces the calibration by one made elsewhere; nil removes
// it. Unlike Calibrate it accepts one whose rate is unreachable, which then
// raises no alarms.
func (b *Bank) SetCalibration(c *Calibration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calibration, b.heldOut = c, nil
}

// Calibration is the bank's calibration, or nil.
func (b *Bank) Calibration() *Calibration {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.calibration
}

func (b *Bank) judge(near []Neighbour, c *Calibration) (Result, error) {
	if len(near) < b.k {
		return Result{}, fmt.Errorf("score: %w: found %d entries, need k = %d", ErrTooFew, len(near), b.k)
	}
	r := Result{Score: sum(near), Nearest: near}
	if c == nil {
		r.Threshold = math.Inf(1)
		return r, nil
	}
	r.PValue, r.Threshold, r.Anomalous = c.PValue(r.Score), c.Threshold(), c.Anomalous(r.Score)
	return r, nil
}

func sum(near []Neighbour) float64 {
	s := 0.0
	for _, n := range near {
		s += float64(n.Distance)
	}
	return s
}

func (b *Bank) apply(v []float32) ([]float32, error) {
	if b.transform == nil {
		return v, nil
	}
	return b.transform.apply(v)
}

func (b *Bank) applyAll(m []float32) ([]float32, error) {
	if len(m)%b.dim != 0 {
		return nil, fmt.Errorf("%w: %d numbers are not whole embeddings of dimension %d", ErrDim, len(m), b.dim)
	}
	if b.transform == nil {
		return m, nil
	}
	return b.transform.ApplyAll(m)
}
