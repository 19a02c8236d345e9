package bank

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"github.com/nearmiss/nearmiss/internal/cputime"
)

// A machine without the vector instructions reads a bank with codes and searches
// its graph by the rows.
func TestCodesOnAMachineWithoutVectors(t *testing.T) {
	if !accelerated {
		t.Skip("this machine makes no codes")
	}
	const dim = 40
	coded := codedBank(t, 2000, dim)
	content, fresh := encoded(t, coded), clustered(3, 100, dim)
	accelerated = false
	defer func() { accelerated = true }()
	b, _ := written(t, content, ReadOptions{Verified: true})
	want := coded.Report()
	if r := b.Report(); r.Kind != HNSW || r.Coded || r.GraphBytes != want.GraphBytes-int64(len(coded.Index().(*hnsw).codes.data)) {
		t.Errorf("%+v, where codes serve %+v", r, want)
	}
	if err := b.Add(1<<40, fresh[:dim]); err != nil {
		t.Fatal(err)
	}
	hits := 0
	for i := range 100 {
		q := fresh[i*dim : (i+1)*dim]
		got, err := searchOne(b.Index(), q, 2)
		if err != nil {
			t.Fatal(err)
		}
		exactly, err := searchOne(&exact{rows: b.rows}, q, 2)
		if err != nil {
			t.Fatal(err)
		}
		if slices.Equal(got, exactly) {
			hits++
		}
	}
	if hits < 98 {
		t.Errorf("the same as an exact search for %d of 100 queries", hits)
	}
	rewritten := encoded(t, b)
	if back, err := decode(rewritten, ReadOptions{Verified: true}); err != nil || !bytes.Equal(encoded(t, back), rewritten) {
		t.Errorf("written by this machine: %v", err)
	}
}

// Every machine has a kernel that agrees: those without AVX-512 too.
func TestKernelsWithoutAVX512(t *testing.T) {
	if !accelerated {
		t.Skip("this machine has no AVX2")
	}
	w, d := wide, dotsOfBytes
	wide, dotsOfBytes = false, false
	defer func() { wide, dotsOfBytes = w, d }()
	t.Run("rows", TestKernelsAgree)
	t.Run("codes", TestCodesKernelsAgree)
}

// BenchmarkKernels has AVX2 and AVX-512 take turns on rows that lie anywhere in 400 MB
// of floats and 100 MB of codes: nanoseconds of processor time a row, the best of eight.
func BenchmarkKernels(b *testing.B) {
	if !dotsOfBytes {
		b.Skip("this machine has no AVX-512")
	}
	defer func() { wide, dotsOfBytes = true, true }()
	for _, dim := range []int{192, 768} {
		b.Run(fmt.Sprint(dim), func(b *testing.B) {
			n := 100 << 20 / dim
			data, codes := make([]float32, n*dim), make([]uint8, n*dim)
			for i := range data {
				data[i], codes[i] = float32(i%127), uint8(i%127)
			}
			list, out, x := make([]uint32, 20), make([]float32, 20), uint64(1)
			best := map[string]float64{}
			for range 8 {
				for _, w := range []bool{false, true} {
					wide, dotsOfBytes = w, w
					for name, kernel := range map[string]func(){
						"floats": func() { squaredL2Rows(data[:dim], data, list, out) },
						"codes":  func() { codeRows(codes[:dim], codes, list, out) },
					} {
						const rounds = 3000
						cpu := cputime.Seconds()
						for range rounds {
							for i := range list {
								x = mix(x)
								list[i] = uint32(x % uint64(n))
							}
							kernel()
						}
						took := 1e9 * (cputime.Seconds() - cpu) / rounds / float64(len(list))
						unit := name + map[bool]string{false: "-avx2-ns", true: "-avx512-ns"}[w]
						if had, ok := best[unit]; !ok || took < had {
							best[unit] = took
						}
					}
				}
			}
			for unit, v := range best {
				b.ReportMetric(v, unit)
			}
		})
	}
}
