package bank

import (
	"strings"
	"testing"
)

// What goes wrong in coder's library is told once, however many queries meet it.
func TestCoderTellsAPanicOnce(t *testing.T) {
	r := newRows(3)
	for i := range 8 {
		r.add(uint64(i), []float32{float32(i), 0, 0})
	}
	x, err := buildCoder(t.Context(), r, GraphOptions{M: 4, EfSearch: 8})
	if err != nil {
		t.Fatal(err)
	}
	x.graph.Distance = func(_, _ []float32) float32 { panic("a distance") }
	_, err = x.SearchBatch(t.Context(), make([]float32, 3*20), 2)
	if err == nil || strings.Count(err.Error(), "a distance") != 1 {
		t.Errorf("20 queries gave %v", err)
	}
}
