package evaluate

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/training/dataset"
)

// EmbedFunc embeds image files: one vector for each, or an error that names
// what cannot be embedded.
type EmbedFunc func(ctx context.Context, files [][]byte) ([][]float32, error)

// Features remembers the embeddings of a frozen model, so that protocols which
// meet an image many times embed it once. Memory: 4 bytes a number.
type Features struct {
	// Room, if not nil, says whether the embedding of another image, of so many bytes,
	// may be remembered; else it is made anew when it is asked for again.
	Room func(bytes int) (bool, error)

	embed  EmbedFunc
	chunk  int
	mu     sync.Mutex
	cached map[string][]float32
	bytes  atomic.Int64
}

// NewFeatures returns an empty memory over a model.
func NewFeatures(embed EmbedFunc) *Features {
	return &Features{embed: embed, chunk: 64, cached: map[string][]float32{}}
}

// key tells items of different sets apart: names are unique within a set only.
func key(it dataset.Item) string {
	if it.Path != "" {
		return it.Path
	}
	b, err := it.Read()
	if err != nil {
		return "memory:" + it.Name
	}
	return fmt.Sprintf("memory:%s:%x", it.Name, sha256.Sum256(b))
}

// Of returns the items' embeddings, in their order. The vectors are shared: do
// not change them.
func (f *Features) Of(ctx context.Context, items []dataset.Item) ([][]float32, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([][]float32, len(items))
	var missing []dataset.Item
	places := map[string][]int{} // of those in out
	for i, it := range items {
		k := key(it)
		if out[i] = f.cached[k]; out[i] != nil {
			continue
		}
		if places[k] == nil {
			missing = append(missing, it)
		}
		places[k] = append(places[k], i)
	}
	for part := range slices.Chunk(missing, f.chunk) {
		files := make([][]byte, len(part))
		for i, it := range part {
			b, err := it.Read()
			if err != nil {
				return nil, fmt.Errorf("embed image %s: %w", it.Name, err)
			}
			files[i] = b
		}
		vectors, err := f.embed(ctx, files)
		if err != nil {
			return nil, fmt.Errorf("embed images %s to %s: %w", part[0].Name, part[len(part)-1].Name, err)
		}
		if len(vectors) != len(part) {
			return nil, fmt.Errorf("embed images: %d vectors for %d images", len(vectors), len(part))
		}
		for i, v := range vectors {
			if len(v) == 0 {
				return nil, fmt.Errorf("embed image %s: the vector is empty", part[i].Name)
			}
			k := key(part[i])
			for _, at := range places[k] {
				out[at] = v
			}
			if err := f.remember(k, v); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// remember keeps a vector, where there is room for it.
func (f *Features) remember(k string, v []float32) error {
	bytes := 4 * len(v)
	if f.Room != nil {
		if room, err := f.Room(bytes); err != nil || !room {
			return err
		}
	}
	f.cached[k] = v
	f.bytes.Add(int64(bytes))
	return nil
}

// Len is the number of images that are remembered.
func (f *Features) Len() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.cached)
}

// Size is about how many bytes their embeddings take. Room may ask for it.
func (f *Features) Size() int { return int(f.bytes.Load()) }

// KNN is the baseline (DN2): the score is the sum of the squared distances to
// the k nearest normal embeddings of the frozen model, all of them where there
// are fewer, searched exactly.
func KNN(f *Features, k int) Method { return knn{f, k} }

type knn struct {
	f *Features
	k int
}

func (knn) Name() string { return "knn" }

func (m knn) Fit(ctx context.Context, normals []dataset.Item, _ uint64) (Scorer, error) {
	rows, err := m.f.Of(ctx, normals)
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 {
		return nil, fmt.Errorf("there are no normal images")
	}
	b, err := bank.New(bank.Options{Dim: len(rows[0]), K: min(m.k, len(rows)), Kind: bank.Exact})
	if err != nil {
		return nil, err
	}
	if err := b.AddBatch(nil, slices.Concat(rows...)); err != nil {
		return nil, err
	}
	return knnScorer{m.f, b}, nil
}

type knnScorer struct {
	f *Features
	b *bank.Bank
}

func (s knnScorer) Score(ctx context.Context, items []dataset.Item) ([]float64, error) {
	rows, err := s.f.Of(ctx, items)
	if err != nil {
		return nil, err
	}
	return s.b.Scores(ctx, slices.Concat(rows...))
}

func (s knnScorer) Close() error { return s.b.Close() }
