package bank

import (
	"bytes"
	"slices"
	"testing"
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
		got, err := b.Index().Search(q, 2)
		if err != nil {
			t.Fatal(err)
		}
		exactly, err := (&exact{rows: b.rows}).Search(q, 2)
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
