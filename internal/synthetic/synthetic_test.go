package synthetic

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nearmiss/nearmiss/inference/imaging"
)

var (
	update = flag.Bool("update", false, "rewrite testdata/digests.json")
	sheets = flag.String("sheets", "", "write contact sheets of all classes and defects into this folder, to be looked at")
)

func source(t testing.TB, kind string, seed uint64, o Options) *Source {
	t.Helper()
	s, err := New(kind, seed, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func digest(m *imaging.Image) string {
	d := sha256.Sum256(m.Pix)
	return hex.EncodeToString(d[:8])
}

// The digests pin the pictures: recordings, banks and the starter backbone made
// from a seed must not change meaning with a new version of this package.
func TestImagesAreThoseOfTheirSeed(t *testing.T) {
	got := map[string]string{}
	for _, kind := range Kinds() {
		for class := range BasicClasses(kind) + 2 {
			s := source(t, kind, 7, Options{Size: 96, DefectRate: 0.5, Class: class})
			for i := range uint64(2) {
				m, _ := s.At(i)
				got[fmt.Sprintf("%s/%d/%d", kind, class, i)] = digest(m)
			}
		}
	}
	path := filepath.Join("testdata", "digests.json")
	if *update {
		b, err := json.MarshalIndent(got, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var want map[string]string
	if err := json.Unmarshal(b, &want); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("images changed (-want +got); -update accepts it:\n%s", d)
	}
}

func TestAnyOrderAndAnyNumberOfReadersGiveTheSame(t *testing.T) {
	for _, kind := range Kinds() {
		o := Options{Size: 64, DefectRate: 0.3, Classes: 3}
		a, b := source(t, kind, 3, o), source(t, kind, 3, o)
		const n = 12
		var want [n]string
		var truth [n]Truth
		for i := range n {
			m, tr := a.Next()
			want[i], truth[i] = digest(m), tr
		}
		var wg sync.WaitGroup
		for i := n - 1; i >= 0; i-- {
			wg.Go(func() {
				m, tr := b.At(uint64(i))
				if digest(m) != want[i] {
					t.Errorf("%s: image %d differs", kind, i)
				}
				if d := cmp.Diff(truth[i], tr); d != "" {
					t.Errorf("%s: truth %d differs:\n%s", kind, i, d)
				}
			})
		}
		wg.Wait()
		other, _ := source(t, kind, 4, o).At(0)
		if digest(other) == want[0] {
			t.Errorf("%s: another seed gives the same image", kind)
		}
	}
}

func TestEveryDefectShowsWhereTheTruthSays(t *testing.T) {
	for _, kind := range Kinds() {
		for _, name := range Defects(kind) {
			for _, share := range []float64{0, 1} {
				o := Options{Size: 96, DefectRate: 1, SubtleShare: &share, Defects: []string{name}, Classes: BasicClasses(kind)}
				s := source(t, kind, 11, o)
				o.DefectRate = 0
				clean := source(t, kind, 11, o)
				got := 0
				for i := range uint64(4) {
					m, tr := s.At(i)
					normal, _ := clean.At(i)
					if !tr.Anomalous || tr.Box == nil || len(tr.Mask) != 96*96 {
						t.Fatalf("%s %s: truth %+v", kind, name, tr)
					}
					if want := map[float64]string{0: Gross, 1: Subtle}[share]; tr.Severity != want {
						t.Errorf("%s %s: severity %s, want %s", kind, name, tr.Severity, want)
					}
					if tr.Defect == name {
						got++
					}
					for p, v := range tr.Mask {
						x, y := p%96, p/96
						inside := x >= tr.Box.X && x < tr.Box.X+tr.Box.W && y >= tr.Box.Y && y < tr.Box.Y+tr.Box.H
						if v != 0 && !inside {
							t.Fatalf("%s %s: pixel %d,%d of the mask lies outside the box %+v", kind, name, x, y, *tr.Box)
						}
						changed := !bytes.Equal(m.Pix[3*p:3*p+3], normal.Pix[3*p:3*p+3])
						if v != 0 && !changed {
							t.Fatalf("%s %s: the mask marks an unchanged pixel", kind, name)
						}
					}
				}
				if got == 0 {
					t.Errorf("%s %s (subtle share %g): never drawn", kind, name, share)
				}
			}
		}
	}
}

func TestSubtleDefectsChangeLess(t *testing.T) {
	for _, kind := range Kinds() {
		var area [2]int
		for i, share := range []float64{0, 1} {
			s := source(t, kind, 5, Options{Size: 64, DefectRate: 1, SubtleShare: &share})
			for range 24 {
				_, tr := s.Next()
				for _, v := range tr.Mask {
					area[i] += int(v) / 255
				}
			}
		}
		if area[1]*2 > area[0] {
			t.Errorf("%s: subtle defects cover %d pixels, gross ones %d", kind, area[1], area[0])
		}
	}
}

func TestDefectRateIsKept(t *testing.T) {
	for _, kind := range Kinds() {
		s := source(t, kind, 9, Options{Size: 32, DefectRate: 0.2})
		n := 0
		for range 300 {
			if _, tr := s.Next(); tr.Anomalous {
				n++
			}
		}
		if n < 40 || n > 82 { // 60 ± 3 standard deviations
			t.Errorf("%s: %d of 300 images are anomalous at a rate of 0.2", kind, n)
		}
		none := source(t, kind, 9, Options{Size: 32})
		for range 20 {
			if _, tr := none.Next(); tr.Anomalous || tr.Mask != nil || tr.Box != nil {
				t.Fatalf("%s: %+v without defects", kind, tr)
			}
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	over := 1.5
	for name, o := range map[string]Options{
		"tiny": {Size: 8}, "rate": {DefectRate: 2}, "negative class": {Class: -1},
		"unknown defect": {Defects: []string{"rust"}}, "variation": {Variation: -1}, "share": {SubtleShare: &over},
	} {
		if _, err := New(Parts, 1, o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := New("cars", 1, Options{}); err == nil {
		t.Error("a kind that does not exist was accepted")
	}
}

func TestClassNames(t *testing.T) {
	if got := ClassName(Parts, 0); got != "flange" {
		t.Errorf("class 0 is a %s", got)
	}
	if got := ClassName(Cells, 4); got != "neutrophil 2" {
		t.Errorf("class 4 is a %s", got)
	}
}

// TestContactSheets draws every class and defect once, small; with -sheets
// large and into files, for a person to look at.
func TestContactSheets(t *testing.T) {
	const cols = 8
	size := 32
	if *sheets != "" {
		size = 192
	}
	for _, kind := range Kinds() {
		n := BasicClasses(kind)
		sheet := func(name string, rows int, o func(col, row int) Options) {
			out := imaging.New(cols*size, rows*size)
			for row := range rows {
				for col := range cols {
					opt := o(col, row)
					opt.Size = size
					m, tr := source(t, kind, 1, opt).At(uint64(col))
					if b := tr.Box; b != nil {
						for x := b.X; x < b.X+b.W; x++ {
							m.SetRGB(x, b.Y, 255, 0, 0)
							m.SetRGB(x, b.Y+b.H-1, 255, 0, 0)
						}
						for y := b.Y; y < b.Y+b.H; y++ {
							m.SetRGB(b.X, y, 255, 0, 0)
							m.SetRGB(b.X+b.W-1, y, 255, 0, 0)
						}
					}
					for y := range size {
						copy(out.Pix[3*((row*size+y)*out.Width+col*size):], m.Pix[3*y*size:3*(y+1)*size])
					}
				}
			}
			if *sheets == "" {
				return
			}
			b, err := out.PNG()
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(*sheets, kind+"_"+name+".png"), b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		sheet("normal", n, func(_, row int) Options { return Options{Class: row} })
		sheet("designs", 5, func(col, row int) Options { return Options{Class: n + row*cols + col} })
		for severity, share := range map[string]float64{Subtle: 1, Gross: 0} {
			sheet(severity, len(Defects(kind)), func(col, row int) Options {
				return Options{Class: col % n, DefectRate: 1, SubtleShare: &share, Defects: []string{Defects(kind)[row]}}
			})
		}
	}
}

func BenchmarkAt(b *testing.B) {
	for _, kind := range Kinds() {
		b.Run(kind, func(b *testing.B) {
			s := source(b, kind, 1, Options{DefectRate: 0.1, Classes: BasicClasses(kind)})
			for b.Loop() {
				s.Next()
			}
		})
	}
}
