//go:build hnswlib

package bench

// #cgo CXXFLAGS: -O3 -march=native -std=c++11
// #cgo LDFLAGS: -lstdc++
// #include <stdlib.h>
// #include "hnswlib.h"
import "C"

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/internal/cputime"
)

func init() { runHNSWLib = measureHNSWLib }

// measureHNSWLib measures github.com/nmslib/hnswlib with the parameters of our
// own graph (M 16, efConstruction 200), its search width chosen as ours is: by half of
// the queries, from 64 on, by doubling and halving the last step thrice.
func measureHNSWLib(ctx context.Context, o BankOptions, c BankCase, data, queries []float32) (BankResult, error) {
	x := C.nm_new(C.int(c.Dim), C.size_t(c.Count), 16, 200, C.size_t(o.Seed))
	defer C.nm_free(x)
	start, cpu := time.Now(), cputime.Seconds()
	var next atomic.Int64
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1) - 1)
				if i >= c.Count {
					return
				}
				C.nm_add(x, (*C.float)(unsafe.Pointer(&data[i*c.Dim])), C.size_t(i))
			}
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return BankResult{}, err
	}
	r := BankResult{Index: "hnswlib", BankCase: c, K: o.K, EfSearch: 64, BuildSeconds: time.Since(start).Seconds(), BuildCPU: cputime.Seconds() - cpu, Bytes: int64(C.nm_bytes(x))}
	truth, err := exactTruth(ctx, o, c, data, queries)
	if err != nil {
		return BankResult{}, err
	}
	m := len(queries) / c.Dim
	rows, distances := make([]C.size_t, o.K), make([]C.float, o.K)
	search := func(i int, rows []C.size_t, distances []C.float) error {
		if n := C.nm_search(x, (*C.float)(unsafe.Pointer(&queries[i*c.Dim])), C.int(o.K), &rows[0], &distances[0]); int(n) != o.K {
			return fmt.Errorf("hnswlib found %d of %d neighbours", n, o.K)
		}
		return nil
	}
	measure := func(from, to int) error {
		C.nm_set_ef(x, C.size_t(r.EfSearch))
		r.Recall, r.FirstExcess = 0, 0
		for i := from; i < to; i++ {
			if err := search(i, rows, distances); err != nil {
				return err
			}
			last := truth[i][o.K-1].Distance * (1 + 1e-5) // its float32 sums differ from ours
			for _, d := range distances {
				if float32(d) <= last {
					r.Recall += 1 / float64((to-from)*o.K)
				}
			}
			r.FirstExcess += max(0, float64(distances[0])/float64(truth[i][0].Distance)-1) / float64(to-from)
		}
		return nil
	}
	for {
		if err := measure(0, m/2); err != nil {
			return BankResult{}, err
		}
		if r.Recall >= 0.995 || r.EfSearch >= 4096 {
			break
		}
		r.EfSearch *= 2
	}
	for step, least := r.EfSearch/4, r.EfSearch/16; step >= least && r.EfSearch > 64; step /= 2 {
		r.EfSearch -= step
		if err := measure(0, m/2); err != nil {
			return BankResult{}, err
		}
		if r.Recall < 0.995 {
			r.EfSearch += step
		}
	}
	C.nm_set_ef(x, C.size_t(r.EfSearch))
	if err := measure(m/2, m); err != nil {
		return BankResult{}, err
	}
	r.Served = r.Recall >= 0.99
	if err := r.single(ctx, o, func(i int) error { return search(i%m, rows, distances) }); err != nil {
		return BankResult{}, err
	}
	r.BatchPerSecond, err = queryRate(ctx, o.MinTime, m, func(int) error {
		var next atomic.Int64
		var wg sync.WaitGroup
		for range runtime.GOMAXPROCS(0) {
			wg.Go(func() {
				rows, distances := make([]C.size_t, o.K), make([]C.float, o.K)
				for i := int(next.Add(1) - 1); i < m; i = int(next.Add(1) - 1) {
					_ = search(i, rows, distances) // each was found above
				}
			})
		}
		wg.Wait()
		return nil
	})
	return r, err
}

func exactTruth(ctx context.Context, o BankOptions, c BankCase, data, queries []float32) ([][]bank.Neighbour, error) {
	b, err := bank.New(bank.Options{Dim: c.Dim, K: o.K, Kind: bank.Exact, Batch: o.Batch})
	if err != nil {
		return nil, err
	}
	defer b.Close()
	if err := b.AddBatch(nil, data); err != nil {
		return nil, err
	}
	return b.Index().SearchBatch(ctx, queries, o.K)
}
