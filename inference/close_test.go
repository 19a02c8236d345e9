package inference

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/inference/ort"
)

// TestCloseWhileItScores: scores that are under way when a detector is closed are right,
// or say that it is closed, whatever they had come to.
func TestCloseWhileItScores(t *testing.T) {
	ctx := context.Background()
	dir, _, _ := writeTestRelease(t, writeModel(t, 0, 1, false))
	files, _ := images(t, 12, 5)
	for name, o := range map[string]Options{
		"with the batch engine": {Embed: EmbedOptions{Threads: 2, Queue: 1}},
		"with loops":            {Embed: EmbedOptions{Threads: 2}, NoBatchEngine: true},
		"captured":              {Embed: EmbedOptions{Threads: 2, Device: capturing(t)}},
	} {
		t.Run(name, func(t *testing.T) {
			var want []Score
			for range 8 {
				d, err := Open(ctx, dir, o)
				if err != nil {
					t.Fatal(err)
				}
				if want == nil {
					if want, err = d.Score(ctx, files); err != nil {
						t.Fatal(err)
					}
				}
				var scorers sync.WaitGroup
				begun := make(chan struct{}, 4)
				for w := range cap(begun) {
					scorers.Go(func() {
						for at := w; ; at++ {
							n := 1 + at%len(files)
							got, err := d.Score(ctx, files[:n])
							if at == w {
								begun <- struct{}{}
							}
							if err != nil {
								if !errors.Is(err, ErrClosed) && !errors.Is(err, bank.ErrClosed) {
									t.Errorf("%d images: %v", n, err)
								}
								return
							}
							for i, g := range got {
								if d := g.Score - want[i].Score; g.Err != nil || !(d*d <= 1e-8*want[i].Score*want[i].Score+1e-12) {
									t.Errorf("image %d: score %g, want %g: %v", i, g.Score, want[i].Score, g.Err)
								}
							}
						}
					})
				}
				for range cap(begun) {
					<-begun
				}
				if err := errors.Join(d.Close(), d.Close()); err != nil {
					t.Error(err)
				}
				scorers.Wait()
			}
		})
	}
}

// TestEngineClosesWhileItsSearchersBegin: on an accelerator a searcher has sessions of its
// own, and asks the engine whether it is closed before it opens one.
func TestEngineClosesWhileItsSearchersBegin(t *testing.T) {
	e, err := NewBatchEngine(ort.Options{Device: ort.Device{Kind: "cuda", ID: 99}})
	if err != nil {
		t.Fatal(err)
	}
	var searching sync.WaitGroup
	for range 2 {
		s, err := e.Prepare(make([]float32, 12), 3)
		if err != nil {
			t.Fatal(err)
		}
		searching.Go(func() {
			for !errors.Is(err, ErrClosed) { // until then the device is not there
				if _, _, err = s.Search(context.Background(), make([]float32, 3), 2); err == nil {
					t.Error("a device that is not there was searched")
				}
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	searching.Wait()
}
