package dataset

import (
	"bytes"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/image/bmp"
	"golang.org/x/image/tiff"
)

const (
	maskWidth  = 24
	maskHeight = 16
)

// inSpot says which pixels of the drawn masks are marked.
func inSpot(x, y int) bool { return x >= 4 && x < 12 && y >= 3 && y < 9 }

func drawn(img interface {
	image.Image
	Set(x, y int, c color.Color)
}, on, off color.Color,
) image.Image {
	for y := range maskHeight {
		for x := range maskWidth {
			c := off
			if inSpot(x, y) {
				c = on
			}
			img.Set(x, y, c)
		}
	}
	return img
}

func encoded(t *testing.T, name string, img image.Image) []byte {
	t.Helper()
	var buf bytes.Buffer
	var err error
	switch strings.ToLower(filepath.Ext(name)) {
	case ".jpg":
		err = jpeg.Encode(&buf, img, &jpeg.Options{Quality: 70})
	case ".bmp":
		err = bmp.Encode(&buf, img)
	case ".tif":
		err = tiff.Encode(&buf, img, &tiff.Options{Compression: tiff.Deflate})
	default:
		err = png.Encode(&buf, img)
	}
	if err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// TestMasksOfEveryKind: the values, channels, names and folders of masks as
// public data sets have them.
func TestMasksOfEveryKind(t *testing.T) {
	box := image.Rect(0, 0, maskWidth, maskHeight)
	grey := func(v uint8) image.Image { return drawn(image.NewGray(box), color.Gray{Y: v}, color.Gray{}) }
	smooth := image.NewGray(box)
	for y := range maskHeight {
		for x := range maskWidth {
			if inSpot(x, y) {
				smooth.SetGray(x, y, color.Gray{Y: uint8(230 + x)})
			} else {
				smooth.SetGray(x, y, color.Gray{Y: uint8(x + y)}) // soft edges far out
			}
		}
	}
	kinds := image.NewGray(box) // a number for each kind of defect
	for y := range maskHeight {
		for x := range maskWidth {
			if inSpot(x, y) {
				kinds.SetGray(x, y, color.Gray{Y: uint8(1 + x%3)})
			}
		}
	}
	offset := image.NewNRGBA(image.Rect(3, 5, 3+maskWidth, 5+maskHeight))
	for y := range maskHeight {
		for x := range maskWidth {
			a := uint8(0)
			if inSpot(x, y) {
				a = 255
			}
			offset.SetNRGBA(3+x, 5+y, color.NRGBA{A: a}) // black, but seen through
		}
	}
	for _, c := range []struct {
		name, file string
		img        image.Image
	}{
		{"MVTec", "ground_truth/spot/000_mask.png", grey(255)},
		{"0 and 1", "ground_truth/spot/000.png", grey(1)},
		{"grey", "ground_truth/spot/000_mask.png", grey(100)},
		{"a folder of masks for each image", "ground_truth/spot/000/000.png", grey(200)},
		{"BTAD", "ground_truth/spot/000.bm.png", grey(255)},
		{"palette", "ground_truth/spot/000_mask.png", drawn(image.NewPaletted(box, color.Palette{color.Black, color.RGBA{G: 255, A: 255}}), color.RGBA{G: 255, A: 255}, color.Black)},
		{"blue", "ground_truth/spot/000_mask.png", drawn(image.NewRGBA(box), color.RGBA{B: 255, A: 255}, color.RGBA{A: 255})},
		{"alpha", "ground_truth/spot/000_mask.png", drawn(image.NewNRGBA(box), color.NRGBA{255, 255, 255, 255}, color.NRGBA{255, 255, 255, 0})},
		{"black where it is opaque", "ground_truth/spot/000_mask.png", offset},
		{"opaque with colours", "ground_truth/spot/000_mask.png", drawn(image.NewNRGBA(box), color.NRGBA{R: 9, A: 255}, color.NRGBA{A: 255})},
		{"16 bits", "ground_truth/spot/000_mask.png", drawn(image.NewGray16(box), color.Gray16{Y: 255}, color.Gray16{})},
		{"16 bits, all of them", "ground_truth/spot/000_mask.png", drawn(image.NewGray16(box), color.Gray16{Y: 65535}, color.Gray16{})},
		{"capital letters", "ground_truth/spot/000_MASK.PNG", grey(255)},
		{"another word", "ground_truth/spot/000_gt.png", grey(255)},
		{"word before", "ground_truth/spot/mask-000.png", grey(255)},
		{"another folder", "Ground_truth/Spot/000_mask.png", grey(255)},
		{"masks", "masks/spot/000.png", grey(255)},
		{"TIFF", "ground_truth/spot/000_mask.tif", grey(1)},
		{"BMP", "ground_truth/spot/000_mask.bmp", grey(255)},
		{"soft edges", "ground_truth/spot/000_mask.png", smooth},
		{"numbered kinds", "ground_truth/spot/000_mask.png", kinds},
		{"beside the image", "test/spot/000_mask.png", grey(255)},
		{"MVTec 3D-AD", "test/spot/gt/000.png", grey(255)},
		{"JPEG", "ground_truth/spot/000_mask.jpg", grey(255)},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := tree(t, "train/good/0.png", "test/good/0.png", "test/spot/000.png")
			full := filepath.Join(dir, filepath.FromSlash(c.file))
			if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(full, encoded(t, c.file, c.img), 0o644); err != nil {
				t.Fatal(err)
			}
			s, err := Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			items := s.Select(Test, "spot")
			if len(items) != 1 || len(items[0].Masks) != 1 || len(s.Notes) > 0 {
				t.Fatalf("%d images, %+v, notes %q", len(items), items, s.Notes)
			}
			mask, w, h, err := items[0].ReadMask()
			if err != nil || w != maskWidth || h != maskHeight {
				t.Fatalf("%d×%d, %v", w, h, err)
			}
			wrong := 0
			for i, v := range mask {
				if (v == 255) != inSpot(i%w, i/w) || v != 0 && v != 255 {
					wrong++
				}
			}
			if lossy := strings.HasSuffix(c.file, ".jpg"); wrong > 0 && !lossy || wrong > 8 {
				t.Errorf("%d of %d pixels are wrong", wrong, len(mask))
			}
			if notes, err := s.CheckMasks(t.Context()); err != nil || len(notes) > 0 {
				t.Errorf("%q, %v", notes, err)
			}
		})
	}
}

func TestMasksThatDoNotFitAreTold(t *testing.T) {
	dir := tree(t, "train/good/0.png", "test/good/0.png", "test/spot/1.png", "test/spot/2.png", "test/spot/3.png", "test/rip/1.png", "test/rip/10.png")
	box := image.Rect(0, 0, maskWidth, maskHeight)
	full := drawn(image.NewGray(box), color.Gray{Y: 255}, color.Gray{})
	other := image.NewGray(box)
	other.SetGray(20, 12, color.Gray{Y: 255})
	for name, img := range map[string]image.Image{
		"ground_truth/spot/1_mask.png": full, "ground_truth/spot/1_mask_2.png": other, // two of one image
		"ground_truth/spot/2_mask.png": image.NewGray(box), "ground_truth/spot/0007_mask.png": full,
		"ground_truth/rip/10.png": full,
	} {
		p := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, encoded(t, name, img), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s, err := MVTec(dir)
	if err != nil {
		t.Fatal(err)
	}
	empty, err := s.CheckMasks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{
		"1 of 2 images of rip have no mask; their pixels are not measured",
		"1 mask of spot belongs by name to no image, first ground_truth/spot/0007_mask.png: a mask is called like its image, or like it with _mask after it",
		"1 of 3 images of spot have no mask; their pixels are not measured",
	}, s.Notes); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"1 of 2 masks of spot mark nothing, first that of test/spot/2.png; their pixels are not measured"}, empty); diff != "" {
		t.Error(diff)
	}
	first := s.Select(Test, "spot")[0]
	mask, w, _, err := first.ReadMask()
	if err != nil || len(first.Masks) != 2 || mask[12*w+20] != 255 || mask[5*w+6] != 255 || mask[0] != 0 {
		t.Errorf("two masks of one image: %v, %v", first.Masks, err)
	}
	if err := os.WriteFile(first.Masks[1], []byte("\x89PNG broken"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.CheckMasks(t.Context()); err == nil || !strings.Contains(err.Error(), "cannot be read") {
		t.Error(err)
	}
}

// TestImagesInSubFoldersKeepTheirOwnMasks: two images of one defect have one
// name, in different folders.
func TestImagesInSubFoldersKeepTheirOwnMasks(t *testing.T) {
	dir := tree(t, "train/good/0.png", "test/good/0.png", "test/rip/a/0.png", "test/rip/b/0.png", "test/rip/b/1.png",
		"ground_truth/rip/a/0_mask.png", "ground_truth/rip/b/0_mask.png", "ground_truth/rip/1_mask.png", "ground_truth/rip/0_mask.png")
	s, err := MVTec(dir)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]string{}
	for _, it := range s.Select(Test, "rip") {
		for _, m := range it.Masks {
			rel, _ := filepath.Rel(dir, m)
			got[it.Name] = append(got[it.Name], filepath.ToSlash(rel))
		}
	}
	want := map[string][]string{
		"test/rip/a/0.png": {"ground_truth/rip/a/0_mask.png"}, "test/rip/b/0.png": {"ground_truth/rip/b/0_mask.png"},
		"test/rip/b/1.png": {"ground_truth/rip/1_mask.png"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if len(s.Notes) != 1 || !strings.Contains(s.Notes[0], "ground_truth/rip/0_mask.png") { // whose?
		t.Errorf("%q", s.Notes)
	}
}

func TestGoodMayBeCalledOk(t *testing.T) {
	s, err := Open(tree(t, "train/ok/0.png", "test/ok/1.png", "test/ko/2.png", "ground_truth/ko/2.png"))
	if err != nil {
		t.Fatal(err)
	}
	if s.Layout != LayoutMVTec || len(s.Select(Test, Good)) != 1 || len(s.Select(Train, Good)) != 1 || len(s.Select(Test, "ko")[0].Masks) != 1 {
		t.Errorf("%+v", s)
	}
}
