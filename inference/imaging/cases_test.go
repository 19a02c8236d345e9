package imaging

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/internal/evaldata"
)

// Each picture of a case has its right pixels beside it, NAME_right.png; two of
// one number may share them.
func TestCasesOfImages(t *testing.T) {
	for _, kind := range []string{
		"bmp-unsupported", "jpeg-no-huffman-tables", "jpeg-odd-sampling", "png-16bit-range", "tiff-bilevel", "tiff-thumbnail-first", "tiff-valid-called-corrupt",
	} {
		t.Run(kind, func(t *testing.T) {
			dir := evaldata.Cases(t, kind)
			files, err := filepath.Glob(filepath.Join(dir, "*"))
			if err != nil {
				t.Fatal(err)
			}
			compared := 0
			for _, f := range files {
				ext := filepath.Ext(f)
				if ext == ".md" || strings.HasSuffix(f, "_right.png") {
					continue
				}
				stem := strings.TrimSuffix(f, ext)
				right, err := os.ReadFile(stem + "_right.png")
				for short := stem; err != nil && strings.Contains(filepath.Base(short), "_"); { // t11_12in16.tif has t11_12in16_right.png, t20_fillorder2.tif t20_right.png
					short = short[:strings.LastIndex(short, "_")]
					right, err = os.ReadFile(short + "_right.png")
				}
				if err != nil {
					continue
				}
				b, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				got, err := Decode(b, Limits{})
				if err != nil {
					t.Errorf("%s: %v", filepath.Base(f), err)
					continue
				}
				want, err := Decode(right, Limits{})
				if err != nil {
					t.Fatal(err)
				}
				if got.Width != want.Width || got.Height != want.Height {
					t.Errorf("%s: %d×%d pixels, %d×%d are right", filepath.Base(f), got.Width, got.Height, want.Width, want.Height)
					continue
				}
				worst := 0
				for i, v := range want.Pix {
					d := int(v) - int(got.Pix[i])
					worst = max(worst, d, -d)
				}
				if worst > 2 {
					t.Errorf("%s: a sample is off by %d levels", filepath.Base(f), worst)
				}
				compared++
			}
			if compared == 0 {
				t.Error("nothing was compared")
			}
		})
	}
}

// A frame of 12 bits in 16 of which nobody says so is refused where it is
// judged; with the bits, a defect of four levels is seen.
func TestCasesOfAnUnknownDepth(t *testing.T) {
	dir := evaldata.Cases(t, "png-16bit-range")
	var pictures []*Image
	for _, name := range []string{"t12_good.png", "t12_defect.png"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (*View)(nil).Decode(b, Limits{}); Rejection(err) == nil {
			t.Errorf("%s: %v", name, err)
		}
		bits, err := NeededBits(b, Limits{})
		if err != nil || bits != 12 {
			t.Errorf("%s needs %d bits, %v", name, bits, err)
		}
		m, err := (&View{Bits: bits}).Decode(b, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		pictures = append(pictures, m)
	}
	worst := 0
	for i, v := range pictures[0].Pix {
		d := int(v) - int(pictures[1].Pix[i])
		worst = max(worst, d, -d)
	}
	if worst < 4 {
		t.Errorf("the defect differs by %d levels", worst)
	}
}

func TestCasesOfACutJPEG(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(evaldata.Cases(t, "jpeg-progressive-cut"), "j08_prog_first_scan_eoi.jpg"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(b, Limits{}); Rejection(err) == nil || Rejection(err).Code != CodeTruncated {
		t.Errorf("got %v, want truncated", err)
	}
}
