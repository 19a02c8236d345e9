package bench

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/internal/cputime"
)

// BankCase is one bank to measure.
type BankCase struct {
	Count int `json:"count"` // entries
	Dim   int `json:"dim"`
}

// bankCases are the sizes that the project reports.
func bankCases() []BankCase {
	var out []BankCase
	for _, n := range []int{2_000, 20_000, 100_000} {
		for _, d := range []int{192, 768} {
			out = append(out, BankCase{n, d})
		}
	}
	return out
}

// BankOptions choose what is measured. The zero value of a field means its default.
type BankOptions struct {
	// Cases default to bankCases().
	Cases []BankCase
	// Indexes to measure: exact, hnsw, coder and, where the program was built
	// with the tag hnswlib, hnswlib. Default all.
	Indexes []string
	// Queries is the number of held-out queries. Default 512.
	Queries int
	// K is the number of neighbours. Default 2.
	K int
	// Seed of the made-up embeddings and of the graphs.
	Seed uint64
	// Batch answers the batches of exact search; nil for loops on the CPU.
	Batch bank.BatchEngine
	// MinTime is how long each speed is measured at least. Default 1 s.
	MinTime time.Duration
	// Log gets warnings. The zero value is silent.
	Log zerolog.Logger
}

// BankResult is one index on one case.
type BankResult struct {
	Index string `json:"index"`
	BankCase
	K int `json:"k"`
	// Recall@K, 0..1, and the mean of (d−d*)/d* over first distances.
	Recall      float64 `json:"recall"`
	FirstExcess float64 `json:"first_excess"`
	// QueriesPerSecond one after the other on one core, BatchPerSecond as one
	// batch of all queries on all cores (or the batch engine).
	QueriesPerSecond float64 `json:"queries_per_second"`
	BatchPerSecond   float64 `json:"batch_per_second"`
	// QueriesPerCPU is the first in queries per second of processor time; 0 where it is
	// unknown.
	QueriesPerCPU float64 `json:"queries_per_cpu_second"`
	// BuildSeconds on all cores (coder: one).
	BuildSeconds float64 `json:"build_seconds"`
	// BuildCPU is that in seconds of processor time, without the measuring of recall;
	// 0 where it is unknown.
	BuildCPU float64 `json:"build_cpu_seconds"`
	// LoadSeconds is how long it takes to read the bank, with the index, from a file
	// whose bytes were verified; 0 where that was not measured.
	LoadSeconds float64 `json:"load_seconds,omitempty"`
	// Bytes is the size of vectors, ids and graph as they are stored; coder's
	// graph is not.
	Bytes int64 `json:"bytes"`
	// EfSearch is the search width that HNSW's tuning chose; 0 where there is
	// none.
	EfSearch int `json:"ef_search,omitempty"`
	// Served is false where the recall gate would turn the index down.
	Served bool `json:"served"`
}

// bankIndexes lists what this program can measure.
func bankIndexes() []string {
	out := []string{string(bank.Exact), string(bank.HNSW), string(bank.Coder)}
	if runHNSWLib != nil {
		out = append(out, "hnswlib")
	}
	return out
}

// runHNSWLib measures hnswlib; nil where the program was built without it.
var runHNSWLib func(ctx context.Context, o BankOptions, c BankCase, data, queries []float32) (BankResult, error)

// Bank measures case after case, index after index, and hands each result to
// each as soon as it is there. It stops at the first error.
func Bank(ctx context.Context, o BankOptions, each func(BankResult) error) error {
	if len(o.Cases) == 0 {
		o.Cases = bankCases()
	}
	if len(o.Indexes) == 0 {
		o.Indexes = bankIndexes()
	}
	o.Queries = cmp.Or(o.Queries, 512)
	o.K = cmp.Or(o.K, 2)
	o.MinTime = cmp.Or(o.MinTime, time.Second)
	for _, c := range o.Cases {
		if c.Count < o.K || c.Dim < 1 {
			return fmt.Errorf("bench bank: case of %d entries of dimension %d: need at least k = %d entries", c.Count, c.Dim, o.K)
		}
		data := madeUpEmbeddings(o.Seed, c.Count, c.Dim)
		queries := madeUpEmbeddings(o.Seed+1, o.Queries, c.Dim)
		for _, index := range o.Indexes {
			var r BankResult
			var err error
			switch {
			case index == "hnswlib" && runHNSWLib != nil:
				r, err = runHNSWLib(ctx, o, c, data, queries)
			case index == "hnswlib":
				err = fmt.Errorf("this program was built without it; install libhnswlib-dev and build with -tags hnswlib")
			default:
				r, err = runBank(ctx, o, bank.Kind(index), c, data, queries)
			}
			if err != nil {
				return fmt.Errorf("bench bank: %s at %d×%d: %w", index, c.Count, c.Dim, err)
			}
			if err := each(r); err != nil {
				return err
			}
		}
	}
	return nil
}

func runBank(ctx context.Context, o BankOptions, kind bank.Kind, c BankCase, data, queries []float32) (BankResult, error) {
	b, err := bank.New(bank.Options{
		Dim: c.Dim, K: o.K, Kind: kind, Graph: bank.GraphOptions{Seed: o.Seed}, Batch: o.Batch, Log: o.Log,
		Gate: bank.Gate{Queries: o.Queries},
	})
	if err != nil {
		return BankResult{}, err
	}
	defer b.Close()
	if err := b.AddBatch(nil, data); err != nil {
		return BankResult{}, err
	}
	var index bank.Index
	var report bank.Report
	if kind != bank.Coder { // whose file holds no graph
		if report, err = b.Build(ctx, queries); err != nil {
			return BankResult{}, err
		}
		index = b.Index()
	}
	if index == nil || index.Kind() != kind { // it does not serve
		if index, report, err = b.Measure(ctx, queries); err != nil {
			return BankResult{}, err
		}
	}
	r := BankResult{
		Index: string(kind), BankCase: c, K: o.K, Recall: report.Recall, FirstExcess: report.FirstExcess,
		BuildSeconds: report.BuildSeconds, BuildCPU: report.BuildCPUSeconds, EfSearch: report.EfSearch, Served: report.Kind == kind,
	}
	m := len(queries) / c.Dim
	if err := r.single(ctx, o, func(i int) error {
		_, err := index.SearchBatch(ctx, queries[i%m*c.Dim:(i%m+1)*c.Dim], o.K)
		return err
	}); err != nil {
		return BankResult{}, err
	}
	if r.BatchPerSecond, err = queryRate(ctx, o.MinTime, m, func(int) error {
		_, err := index.SearchBatch(ctx, queries, o.K)
		return err
	}); err != nil {
		return BankResult{}, err
	}
	if b.Index().Kind() != kind {
		var size counter
		if err := b.Encode(&size); err != nil {
			return BankResult{}, err
		}
		r.Bytes = int64(size) + report.GraphBytes
		return r, nil
	}
	r.Bytes, r.LoadSeconds, err = loading(b)
	return r, err
}

// loading writes the bank and reads it again, the best of three times.
func loading(b *bank.Bank) (size int64, seconds float64, err error) {
	dir, err := os.MkdirTemp("", "nearmiss-bench-")
	if err != nil {
		return 0, 0, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "bank.nmb")
	if err := b.WriteFile(path); err != nil {
		return 0, 0, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return 0, 0, err
	}
	seconds = math.Inf(1)
	for range 3 {
		start := time.Now()
		back, err := bank.ReadFile(path, bank.ReadOptions{Verified: true})
		if err != nil {
			return 0, 0, err
		}
		seconds = min(seconds, time.Since(start).Seconds())
		if err := back.Close(); err != nil {
			return 0, 0, err
		}
	}
	return info.Size(), seconds, nil
}

// single measures queries one by one.
func (r *BankResult) single(ctx context.Context, o BankOptions, search func(i int) error) (err error) {
	asked, cpu := 0, cputime.Seconds()
	r.QueriesPerSecond, err = queryRate(ctx, o.MinTime, 1, func(i int) error {
		asked++
		return search(i)
	})
	if cpu = cputime.Seconds() - cpu; cpu > 0 {
		r.QueriesPerCPU = float64(asked) / cpu
	}
	return err
}

// queryRate calls do, which answers n queries, for at least the given time and
// returns queries per second. One call before warms up.
func queryRate(ctx context.Context, least time.Duration, n int, do func(i int) error) (float64, error) {
	if err := do(0); err != nil {
		return 0, err
	}
	start := time.Now()
	for i := 0; ; i++ {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if err := do(i); err != nil {
			return 0, err
		}
		if took := time.Since(start); took >= least {
			return float64(n*(i+1)) / took.Seconds(), nil
		}
	}
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// madeUpEmbeddings makes n vectors, row-major n×dim, that resemble a backbone's: 32
// clusters (always the same ones), whose spread and whose centres' spread fall
// off along the axes as a power law, so that about 30 axes carry most of it.
// Axes need no rotation: distances do not see it.
func madeUpEmbeddings(seed uint64, n, dim int) []float32 {
	const clusters = 32
	r, rc := rand.New(rand.NewPCG(seed, 7)), rand.New(rand.NewPCG(99, 7))
	scale := make([]float64, dim)
	for i := range scale {
		scale[i] = 1 / math.Sqrt(float64(i+1))
	}
	centres := make([]float64, clusters*dim)
	for i := range centres {
		centres[i] = rc.NormFloat64() * scale[i%dim]
	}
	out := make([]float32, n*dim)
	for i := range n {
		c := centres[r.IntN(clusters)*dim:]
		for j, s := range scale {
			out[i*dim+j] = float32(c[j] + r.NormFloat64()*s)
		}
	}
	return out
}
