package inference

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/inference/heatmap"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/release"
)

// writeTileModel writes a backbone whose patches say where in an input they are: each
// of grid × grid has its mean colour and that of the input. Its embedding is the
// latter.
func writeTileModel(t testing.TB, batch, grid int) string {
	t.Helper()
	g := onnx.New("tiles")
	x := g.Input(inputImage, onnx.Uint8, max(batch, 1), side, side, 3)
	f := g.Scale(g.Cast(x, onnx.Float), 1.0/255)
	all := g.ReduceMean(f, false, 1, 2)
	g.Output(outputEmbedding, all)
	p := g.ReduceMean(g.Reshape(f, -1, grid, side/grid, grid, side/grid, 3), false, 2, 4)
	p = g.Reshape(p, -1, grid*grid, 3)
	g.Output(release.OutputPatches, g.Concat(2, p, g.Add(g.Scale(p, 0), g.Reshape(all, -1, 1, 3))))
	if batch == 0 {
		x.SetDimName(0, "N")
		for _, v := range g.Outputs() {
			v.SetDimName(0, "N")
		}
	}
	prepare := preprocess()
	prepare.Squash = true
	b, err := json.Marshal(prepare)
	if err != nil {
		t.Fatal(err)
	}
	g.SetMetadata(metadataPreprocess, string(b))
	path := filepath.Join(t.TempDir(), "tiles.onnx")
	if err := g.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// scenes are pictures of w × h pixels of noise, the same for a seed.
func scenes(t testing.TB, n, w, h int, seed uint64) (files [][]byte, decoded []*imaging.Image) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 9))
	for range n {
		m := imaging.New(w, h)
		for i := range m.Pix {
			m.Pix[i] = uint8(r.IntN(256))
		}
		b, err := m.PNG()
		if err != nil {
			t.Fatal(err)
		}
		files, decoded = append(files, b), append(decoded, m)
	}
	return files, decoded
}

// The patches of tiles are those that the model gives of the pieces of the picture,
// embedded one by one, and the embedding is the whole picture's.
func TestTilesArePutTogether(t *testing.T) {
	const w, h = 41, 23
	files, decoded := scenes(t, 9, w, h, 1)
	for name, c := range map[string]struct {
		batch, grid, overlap int
		o                    EmbedOptions
	}{
		"any batch":                   {0, 8, 1, EmbedOptions{Tiles: imaging.Tiles{Rows: 2, Columns: 3}}},
		"nothing shared":              {0, 2, 0, EmbedOptions{Tiles: imaging.Tiles{Rows: 3, Columns: 2}}},
		"a model for one image":       {1, 8, 1, EmbedOptions{Tiles: imaging.Tiles{Rows: 2, Columns: 2}}},
		"a model for four":            {4, 4, 2, EmbedOptions{Tiles: imaging.Tiles{Rows: 2, Columns: 2}}},
		"runs of three":               {0, 8, 1, EmbedOptions{Tiles: imaging.Tiles{Rows: 1, Columns: 4}, Batch: 3}},
		"several images in a run":     {0, 8, 1, EmbedOptions{Tiles: imaging.Tiles{Rows: 1, Columns: 2}, Batch: 9, Threads: 1}},
		"averaged over mirror images": {0, 8, 1, EmbedOptions{Tiles: imaging.Tiles{Rows: 2, Columns: 2}, Symmetry: imaging.Flip}},
	} {
		t.Run(name, func(t *testing.T) {
			path := writeTileModel(t, c.batch, c.grid)
			c.o.Patches = []string{release.OutputPatches}
			e := newTestEmbedder(t, path, c.o)
			plain := newTestEmbedder(t, path, EmbedOptions{Patches: c.o.Patches})
			tiles := *e.Preprocess().Tiles
			if tiles.Overlap != c.overlap {
				t.Fatalf("%d pixels are shared, want %d", tiles.Overlap, c.overlap)
			}
			step := side - tiles.Overlap
			canvasW, canvasH := side+(tiles.Columns-1)*step, side+(tiles.Rows-1)*step
			cell := side / c.grid
			across, down := canvasW/cell, canvasH/cell
			if p := e.patches[slices.Index(e.o.Patches, release.OutputPatches)]; p.all != across*down || p.dim != 6 {
				t.Fatalf("%d patches of %d, want %d×%d", p.all, p.dim, across, down)
			}
			got, err := e.Embed(t.Context(), files)
			if err != nil {
				t.Fatal(err)
			}
			ofImages, err := e.EmbedImages(t.Context(), decoded)
			if err != nil {
				t.Fatal(err)
			}
			for i, m := range decoded {
				canvas := imaging.Resize(m, canvasW, canvasH, imaging.Bilinear)
				pieces := []*imaging.Image{m}
				for r := range tiles.Rows {
					for col := range tiles.Columns {
						pieces = append(pieces, canvas.Crop(col*step, r*step, side, side))
					}
				}
				each, err := plain.EmbedImages(t.Context(), pieces)
				if err != nil {
					t.Fatal(err)
				}
				// deepest is the tile, of n along a side, in whose middle a patch lies deepest;
				// the first of those that are alike.
				deepest := func(at, n int) int {
					best, most := 0, -1
					for k := range n {
						p := at - k*step/cell
						if d := min(p, c.grid-1-p); d > most {
							best, most = k, d
						}
					}
					return best
				}
				var want []float32
				for y := range down {
					for x := range across {
						r, col := deepest(y, tiles.Rows), deepest(x, tiles.Columns)
						at := (y-r*step/cell)*c.grid + x - col*step/cell
						want = append(want, each[1+r*tiles.Columns+col].Patches[0][at*6:(at+1)*6]...)
					}
				}
				for from, v := range map[string]Embedding{"file": got[i], "image": ofImages[i]} {
					if v.Err != nil || !near(v.Vector, each[0].Vector) || !alike(v.Patches[0], want, (tiles.Rows-1)*across+(tiles.Columns-1)*down) {
						t.Fatalf("%s %d: %v, vector %v, want %v, patches differ: %v", from, i, v.Err, v.Vector, each[0].Vector, !near(v.Patches[0], want))
					}
				}
			}
		})
	}
}

// alike says whether patches agree, but for some that lie as deep in two tiles: those
// may be either's, with the same colours.
func alike(a, b []float32, some int) bool {
	differ := 0
	for i := 0; i < len(a) && len(a) == len(b); i += 6 {
		if !near(a[i:i+3], b[i:i+3]) {
			return false
		}
		if !near(a[i+3:i+6], b[i+3:i+6]) {
			differ++
		}
	}
	return len(a) == len(b) && differ <= some
}

// Pixels that were prepared before are taken with their tiles; without, they have an
// embedding and no patches.
func TestPreparedTiles(t *testing.T) {
	e := newTestEmbedder(t, writeTileModel(t, 0, 8), EmbedOptions{Tiles: imaging.Tiles{Rows: 2, Columns: 2}, Patches: []string{release.OutputPatches}})
	files, _ := scenes(t, 1, 30, 30, 2)
	p := e.Preprocess()
	pix := make([]uint8, p.Bytes())
	if _, err := p.Apply(files[0], imaging.Limits{}, pix); err != nil {
		t.Fatal(err)
	}
	got, err := e.EmbedPixels(t.Context(), [][]uint8{pix, pix[:p.InputBytes()], pix})
	if err != nil {
		t.Fatal(err)
	}
	want, err := e.Embed(t.Context(), files)
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range got {
		if v.Err != nil || !near(v.Vector, want[0].Vector) || len(v.Patches) != (1-i%2) || i != 1 && !near(v.Patches[0], want[0].Patches[0]) {
			t.Errorf("picture %d: %v, %d outputs of patches", i, v.Err, len(v.Patches))
		}
	}
	if _, err := e.EmbedPixels(t.Context(), [][]uint8{pix[:p.InputBytes()+1]}); err == nil {
		t.Error("some of a tile was accepted")
	}
}

// A small defect of a large frame stands out much more, and where it is, in a release of
// tiles than in one of the whole picture; both score as what wrote them did.
func TestReleaseOfTiles(t *testing.T) {
	ctx := context.Background()
	const w, h = 8 * 12, 8 * 8
	path := writeTileModel(t, 0, 8)
	const n, others = 10, 5 // normals of the bank and not; the last picture has a defect
	files, decoded := scenes(t, n+others+1, w, h, 4)
	for i, m := range decoded { // clouds of greys
		copy(m.Pix, imaging.Resize(m.Crop(0, 0, 4, 4), w, h, imaging.Bilinear).Pix)
		for at := range m.Pix {
			m.Pix[at] = 90 + m.Pix[at-at%3]/4
		}
		for y := 40; y < 44 && i == n+others; y++ {
			for x := 3 * 70; x < 3*74; x++ {
				m.Pix[3*w*y+x] = 255
			}
		}
		var err error
		if files[i], err = m.PNG(); err != nil {
			t.Fatal(err)
		}
	}
	ratio := map[string]float64{}
	for _, tiles := range []imaging.Tiles{{}, {Rows: 2, Columns: 3}} {
		e := newTestEmbedder(t, path, EmbedOptions{Tiles: tiles, Patches: []string{release.OutputPatches}})
		normals, err := e.Embed(ctx, files[:n])
		if err != nil {
			t.Fatal(err)
		}
		var patches, vectors [][]float32
		for _, v := range normals {
			vectors = append(vectors, v.Vector)
			for p := range slices.Chunk(v.Patches[0], 6) {
				patches = append(patches, p)
			}
		}
		across, down := e.Preprocess().Grid(8, 8)
		parts := []Part{
			{release.Part{Name: "class", Output: release.OutputEmbedding, Dim: 3, Statistic: release.StatisticKNN, Scale: 1, Weight: 1}, bankOfRows(t, 3, 1, vectors...)},
			{release.Part{Name: "patch", Output: release.OutputPatches, Dim: 6, Statistic: release.StatisticMax, Scored: true, Scale: 1, Weight: 1, Width: across, Height: down}, bankOfRows(t, 6, 1, patches...)},
		}
		written, err := newOfParts(e, parts, nil, MapAll)
		if err != nil {
			t.Fatal(err)
		}
		want, err := written.Score(ctx, files)
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(t.TempDir(), "release")
		r, err := WriteRelease(ctx, dir, ReleaseSpec{Detector: "frames", Method: "knn", Model: path, Embedder: e, Parts: parts, Check: files[:1]})
		if err != nil {
			t.Fatal(err)
		}
		if got := r.Manifest.Model.Preprocess.Tiles; (got != nil) != (tiles.Rows > 0) || got != nil && *got != *e.Preprocess().Tiles {
			t.Fatalf("the manifest has tiles %+v", got)
		}
		d, err := Open(ctx, dir, Options{Maps: MapAll})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		got, err := d.Score(ctx, files)
		if err != nil {
			t.Fatal(err)
		}
		for i := range got {
			if got[i].Err != nil || !near([]float32{float32(got[i].Score)}, []float32{float32(want[i].Score)}) {
				t.Errorf("tiles %v, picture %d scores %v, %v before: %v", tiles, i, got[i].Score, want[i].Score, got[i].Err)
			}
		}
		good := 0.0
		for _, v := range got[n : n+others] {
			good = max(good, v.Score)
		}
		ratio[tiles.String()] = got[n+others].Score / good
		at := slices.Index(got[n+others].Map.Values, slices.Max(got[n+others].Map.Values))
		x0, y0, x1, y1 := heatmap.GeometryOf(d.Embedder().Preprocess(), w, h).Rect(across, down, at%across, at/across)
		if tiles.Rows > 0 && (x0 > 74 || x1 < 70 || y0 > 44 || y1 < 40) {
			t.Errorf("the defect at 70, 40 is found from %v, %v to %v, %v", x0, y0, x1, y1)
		}
	}
	if ratio["2x3"] < 10*ratio["none"] || ratio["2x3"] < 20 {
		t.Errorf("a defect of 4 pixels stands out by %v", ratio)
	}
}

func TestTilesThatCannotBePutTogether(t *testing.T) {
	path := writeTileModel(t, 0, 8)
	patches := []string{release.OutputPatches}
	p := preprocess()
	if _, err := NewEmbedder(path, EmbedOptions{Preprocess: &p, Tiles: imaging.Tiles{Rows: 2, Columns: 2}, Patches: patches}); err == nil || !strings.Contains(err.Error(), "middle") {
		t.Errorf("tiles of the middle: %v", err)
	}
	p.Squash, p.Tiles = true, &imaging.Tiles{Rows: 2, Columns: 2, Overlap: 3}
	if e, err := NewEmbedder(writeTileModel(t, 0, 4), EmbedOptions{Preprocess: &p, Patches: patches}); err == nil {
		_ = e.Close()
		t.Error("half patches are put together")
	}
	if _, err := NewEmbedder(path, EmbedOptions{Tiles: imaging.Tiles{Rows: 20, Columns: 2}, Patches: patches}); err == nil {
		t.Error("20 rows of tiles are accepted")
	}
}
