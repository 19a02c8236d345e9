package backbone

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/ort"
	"github.com/nearmiss/nearmiss/internal/mapped"
)

// draw is the script's generator: splitmix64 counted from the CRC-32 of name.
func draw(name string, n int) []float64 {
	const golden = 0x9E3779B97F4A7C15
	out := make([]float64, n)
	start := uint64(crc32.ChecksumIEEE([]byte(name))) * golden
	for i := range out {
		z := start + uint64(i+1)*golden
		z = (z ^ z>>30) * 0xBF58476D1CE4E5B9
		z = (z ^ z>>27) * 0x94D049BB133111EB
		z ^= z >> 31
		out[i] = float64(z>>40) / (1 << 24)
	}
	return out
}

type drawn struct {
	Name   string
	Shape  []int
	Scale  float64
	Offset float64
}

func (d drawn) values() []float32 {
	n := 1
	for _, x := range d.Shape {
		n *= x
	}
	out := make([]float32, n)
	for i, u := range draw(d.Name, n) {
		out[i] = float32(d.Offset) + float32(d.Scale)*float32(2*u-1)
	}
	return out
}

// testImages are n images of the script's.
func testImages(n, size int) []uint8 {
	out := make([]uint8, n*size*size*3)
	for i, u := range draw("image", len(out)) {
		out[i] = uint8(u * 256)
	}
	return out
}

// encodeSafetensors writes a file as the reference implementation does.
func encodeSafetensors(ws []drawn) []byte {
	head := map[string]any{"__metadata__": map[string]string{"format": "pt"}}
	var data []byte
	for _, w := range ws {
		raw := mapped.Bytes(w.values())
		head[w.Name] = map[string]any{"dtype": "F32", "shape": w.Shape, "data_offsets": []int{len(data), len(data) + len(raw)}}
		data = append(data, raw...)
	}
	j, err := json.Marshal(head)
	if err != nil {
		panic(err)
	}
	for len(j)%8 != 0 {
		j = append(j, ' ')
	}
	return append(append(binary.LittleEndian.AppendUint64(nil, uint64(len(j))), j...), data...)
}

// encodeNPZ writes what numpy.savez does.
func encodeNPZ(t *testing.T, ws []drawn) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, w := range ws {
		f, err := z.CreateHeader(&zip.FileHeader{Name: w.Name + ".npy", Method: zip.Store})
		if err != nil {
			t.Fatal(err)
		}
		dims := strings.Trim(strings.ReplaceAll(fmt.Sprint(w.Shape), " ", ", "), "[]")
		dict := fmt.Sprintf("{'descr': '<f4', 'fortran_order': False, 'shape': (%s,), }", dims)
		dict += strings.Repeat(" ", 63-(10+len(dict))%64) + "\n"
		head := append([]byte("\x93NUMPY\x01\x00"), byte(len(dict)), byte(len(dict)>>8))
		if _, err := f.Write(append(append(head, dict...), mapped.Bytes(w.values())...)); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func writeFile(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func writeTemp(t *testing.T, name string, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	writeFile(t, path, b)
	return path
}

// run feeds images of the given size to a model and returns all outputs by name.
func run(t *testing.T, path string, images []uint8, n, size int) map[string]*ort.Tensor {
	t.Helper()
	s, err := ort.Open(path, ort.Options{IntraOpThreads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	in, err := ort.NewTensor([]int{n, size, size, 3}, images)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := s.Run(context.Background(), []*ort.Tensor{in})
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]*ort.Tensor{}
	for i, info := range s.Outputs() {
		byName[info.Name] = out[i]
		t.Cleanup(out[i].Close)
	}
	return byName
}

// near checks rows against a reference, relative to the reference's own scale.
func near(t *testing.T, what string, got []float32, want [][]float64, tol float64) {
	t.Helper()
	n, width, scale := 0, 0, 0.0
	for _, row := range want {
		width = len(row)
		n += width
		for _, v := range row {
			scale = max(scale, math.Abs(v))
		}
	}
	if len(got) != n {
		t.Fatalf("%s: %d numbers, want %d", what, len(got), n)
	}
	worst := 0.0
	for i, v := range got {
		d := math.Abs(float64(v) - want[i/width][i%width])
		if !(d <= worst) {
			worst = d
		}
	}
	if !(worst <= tol*scale) {
		t.Errorf("%s: off by %.3g, want at most %.3g of %.3g", what, worst, tol, scale)
	}
	if spread := rowSpread(want); spread < 1e-3*scale {
		t.Errorf("%s: the reference rows do not differ (%.3g): the test shows nothing", what, spread)
	}
}

func rowSpread(rows [][]float64) float64 {
	if len(rows) < 2 {
		return math.Inf(1)
	}
	d := 0.0
	for i := range rows[0] {
		d = max(d, math.Abs(rows[0][i]-rows[1][i]))
	}
	return d
}

type golden struct {
	Name      string
	Size      int
	Weights   []drawn
	Embedding [][]float64
	Tokens    [][]float64
	Resized   map[string][][]float64
}

func readGolden(t *testing.T, name string) golden {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var g golden
	if err := json.Unmarshal(b, &g); err != nil {
		t.Fatal(err)
	}
	return g
}

func (g golden) file(t *testing.T, npz bool) string {
	t.Helper()
	if npz {
		return writeTemp(t, "weights.npz", encodeNPZ(t, g.Weights))
	}
	return writeTemp(t, "weights.safetensors", encodeSafetensors(g.Weights))
}

// TestGoldens imports weights of every family from files and compares served
// embeddings with those of testdata/goldens.py.
func TestGoldens(t *testing.T) {
	const tol = 2e-5
	for _, name := range []string{"vit", "vit_registers", "vit_npz", "hybrid", "hybrid_npz", "resnet", "resnet_basic", "convnext"} {
		t.Run(name, func(t *testing.T) {
			g := readGolden(t, name)
			src := g.file(t, strings.HasSuffix(name, "npz"))
			dst := filepath.Join(t.TempDir(), "model.onnx")
			info, err := Import(src, dst, ImportOptions{LoadOptions: LoadOptions{Size: g.Size}, Tokens: g.Tokens != nil})
			if err != nil {
				t.Fatal(err)
			}
			if info.Name != g.Name || info.Size != g.Size || info.Dim != len(g.Embedding[0]) {
				t.Errorf("imported %s, %d px, %d dimensions; want %s, %d, %d", info.Name, info.Size, info.Dim, g.Name, g.Size, len(g.Embedding[0]))
			}
			out := run(t, dst, testImages(2, g.Size), 2, g.Size)
			near(t, "embedding", out[OutputEmbedding].Float32s(), g.Embedding, tol)
			if g.Tokens != nil {
				tokens := out[OutputTokens].Float32s()
				near(t, "tokens", tokens[:len(tokens)/2], g.Tokens, tol)
			}
			if name == "vit_npz" || name == "vit" {
				// Without tokens the last block computes the class token alone.
				if _, err := Import(src, dst, ImportOptions{}); err != nil {
					t.Fatal(err)
				}
				near(t, "class token alone", run(t, dst, testImages(2, g.Size), 2, g.Size)[OutputEmbedding].Float32s(), g.Embedding, tol)
			}
			for size, want := range g.Resized {
				var px int
				fmt.Sscan(size, &px)
				again := filepath.Join(t.TempDir(), "resized.onnx")
				if _, err := Import(src, again, ImportOptions{LoadOptions: LoadOptions{Size: px}}); err != nil {
					t.Fatal(err)
				}
				near(t, size+" px", run(t, again, testImages(2, px), 2, px)[OutputEmbedding].Float32s(), want, tol)
			}
		})
	}
}

// TestFromONNX: an exported model gives its weights back, and builds the same
// model again.
func TestFromONNX(t *testing.T) {
	for _, name := range []string{"vit_registers", "hybrid_npz", "resnet_basic", "convnext"} {
		t.Run(name, func(t *testing.T) {
			g := readGolden(t, name)
			first := filepath.Join(t.TempDir(), "first.onnx")
			if _, err := Import(g.file(t, strings.HasSuffix(name, "npz")), first, ImportOptions{}); err != nil {
				t.Fatal(err)
			}
			graph, err := onnx.ReadFile(first, onnx.BindBatch(1))
			if err != nil {
				t.Fatal(err)
			}
			defer graph.Close()
			m, own, err := FromONNX(graph)
			if err != nil || !own {
				t.Fatalf("own %v, error %v", own, err)
			}
			second := filepath.Join(t.TempDir(), "second.onnx")
			if _, err := m.Write(second, Options{}); err != nil {
				t.Fatal(err)
			}
			a, _ := os.ReadFile(first)
			b, _ := os.ReadFile(second)
			if !bytes.Equal(a, b) {
				t.Errorf("the model that was read back is written differently (%d and %d bytes)", len(a), len(b))
			}
		})
	}
}
