package inference

import (
	"context"
	"testing"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/internal/memory"
)

// Small files may be large pictures: what is decoded at the same time stays within
// the one budget, and everything is decoded.
func TestDecodersShareOneMemory(t *testing.T) {
	wide := imaging.New(1600, 1600)
	file, err := wide.PNG()
	if err != nil {
		t.Fatal(err)
	}
	h, err := imaging.Inspect(file, imaging.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	model := writeModel(t, 0, 1, false)
	one := newTestEmbedder(t, model, EmbedOptions{}).preprocess.Memory(h)
	m := memory.New(2*one + one/2)
	e := newTestEmbedder(t, model, EmbedOptions{Workers: 8, Memory: m})
	other := newTestEmbedder(t, model, EmbedOptions{Workers: 8, Memory: m})
	files := make([][]byte, 24)
	for i := range files {
		files[i] = file
	}
	done := make(chan error, 2)
	for _, e := range []*Embedder{e, other} {
		go func() {
			all, err := e.Embed(context.Background(), files)
			for _, a := range all {
				if err == nil {
					err = a.Err
				}
			}
			done <- err
		}()
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if p := m.Peak(); p > m.Total() || p < one {
		t.Errorf("%d bytes of %d were lent at once, one picture takes %d", p, m.Total(), one)
	}
	if free, ok := m.Try(m.Total()); !ok {
		t.Error("not all was given back")
	} else {
		// Who waits for memory in vain ends with its context.
		ctx, cancel := context.WithCancel(context.Background())
		go cancel()
		if _, err := e.Embed(ctx, files[:1]); err == nil {
			t.Error("embedded without memory")
		}
		free()
	}
}
