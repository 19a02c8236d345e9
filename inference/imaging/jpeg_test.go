package imaging

import (
	"bytes"
	"math"
	"strings"
	"testing"
)

// What cameras leave out or put before an image does not change it.
func TestJPEGsOfCameras(t *testing.T) {
	for _, name := range []string{"sampling_420.jpg", "sampling_444.jpg", "grey.jpg", "restarts.jpg", "factors_22_11_11.jpg"} {
		b := readCase(t, name)
		want, err := Decode(b, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		scan := bytes.Index(b, []byte{0xff, markSOS})
		with := func(at int, more string) []byte { return append(append(bytes.Clone(b[:at]), more...), b[at:]...) }
		end := []byte{0xff, markEOI}
		for what, changed := range map[string][]byte{
			"no Huffman tables":             withoutSegments(b, markDHT),
			"neither tables nor end":        bytes.TrimSuffix(withoutSegments(b, markDHT), end),
			"no end marker":                 bytes.TrimSuffix(b, end),
			"half an end marker":            b[:len(b)-1],
			"a line end before it":          append([]byte("\r\n"), b...),
			"zeros before it":               append(make([]byte, 100), b...),
			"fill bytes before it":          append([]byte{0xff, 0xff}, b...),
			"the head of a part before it":  append([]byte("--frame\r\nContent-Type: image/jpeg\r\nContent-Length: 77\r\n\r\n"), b...),
			"headers before it":             append([]byte("Content-type: image/jpeg\r\n\r\n"), b...),
			"a boundary after it":           append(bytes.Clone(b), "\r\n--frame\r\n"...),
			"another image after it":        append(bytes.Clone(b), readCase(t, "grey_large.jpg")...),
			"zeros between segments":        with(scan, "\x00\x00\x00"),
			"fill bytes before the scan":    with(scan, "\xff\xff"),
			"zeros before the end":          with(len(b)-2, "\x00\x00\x00"),
			"an unknown segment":            with(2, "\xff\xe9\x00\x06abcd"),
			"a comment with an image in it": with(2, "\xff\xfe\x00\x07\xff\xd8\xff\xe0!"),
		} {
			got, err := Decode(changed, Limits{})
			if err != nil || !bytes.Equal(got.Pix, want.Pix) {
				t.Errorf("%s, %s: the image changes, %v", name, what, err)
			}
		}
	}
}

// An image of which anything is missing is refused, also with an end marker
// after the cut.
func TestCutJPEGsAreTruncated(t *testing.T) {
	for _, name := range []string{"sampling_420.jpg", "restarts.jpg", "progressive.jpg", "factors_22_11_12_progressive.jpg", "one_by_one.jpg", "restarts_progressive.jpg"} {
		b := readCase(t, name)
		scan := bytes.Index(b, []byte{0xff, markSOS}) + 14
		for n := scan; n < len(b)-2-len(b)/50; n += 1 + (len(b)-scan)/150 {
			for _, cut := range [][]byte{b[:n], append(bytes.Clone(b[:n]), 0xff, markEOI)} {
				_, err := Decode(cut, Limits{})
				if r := Rejection(err); r == nil || r.Code != CodeTruncated && r.Code != CodeCorrupt {
					t.Errorf("%s cut to %d of %d bytes: %v", name, n, len(b), err)
				}
			}
		}
	}
}

// The tables of T.81 K.3 are those that libjpeg writes.
func TestUsualHuffmanTablesAreLibjpegs(t *testing.T) {
	b := readCase(t, "sampling_420.jpg")
	d := &jpegReader{}
	for walk := (jpegSegments{b, 2}); ; {
		marker, seg, err := walk.next()
		if err != nil {
			t.Fatal(err)
		}
		if marker == markSOS {
			break
		}
		if marker == markDHT {
			if err := d.readHuffman(seg); err != nil {
				t.Fatal(err)
			}
		}
	}
	for class := range 2 {
		for id := range 2 {
			if got, want := usualHuffman()[class][id], d.huffman[class][id]; want == nil || got.quick != want.quick || !bytes.Equal(got.symbols, want.symbols) {
				t.Errorf("table %d of class %d is another one", id, class)
			}
		}
	}
}

// The transform is close to the formula (T.81 A.3.3) for any coefficients.
func TestInverseTransform(t *testing.T) {
	var cosine [8][8]float64 // of sample x, frequency u
	for x := range 8 {
		for u := range 8 {
			cosine[x][u] = math.Cos(float64((2*x+1)*u)*math.Pi/16) / 2
			if u == 0 {
				cosine[x][u] /= math.Sqrt2
			}
		}
	}
	seed := uint32(1)
	for round := range 200 {
		var b [64]int16
		var q [64]int32
		for i := range b {
			seed = seed*1664525 + 1013904223
			q[i] = 1 + int32(seed>>28)
			if i == 0 || int(seed>>20&63) < round%64 {
				b[i] = int16(int32(seed>>8&63)-32) / int16(1+i/8)
			}
		}
		var got [64]uint8
		inverse(&b, &q, got[:], 8)
		for y := range 8 {
			for x := range 8 {
				sum := 128.0
				for v := range 8 {
					for u := range 8 {
						sum += float64(int32(b[8*v+u])*q[8*v+u]) * cosine[x][u] * cosine[y][v]
					}
				}
				if want := math.Min(math.Max(sum, 0), 255); math.Abs(want-float64(got[8*y+x])) > 1 {
					t.Fatalf("round %d, sample %d,%d: %d, the formula gives %.2f", round, x, y, got[8*y+x], want)
				}
			}
		}
	}
}

// Files that a person mistakes for images are named, with what to do.
func TestWhatIsNoImageIsNamed(t *testing.T) {
	for begin, want := range map[string]string{
		"version https://git-lfs.github.com/spec/v1\noid sha256:12\n": "git lfs pull",
		"<!DOCTYPE html>\n<html><body>login":                          "HTML page",
		"\xef\xbb\xbf  <HTML>":                                        "HTML page",
		"P5\n4 4\n255\n0123456789abcdef":                              "PGM",
		"P6 1 1 255 abc":                                              "convert it to PNG",
		"GIF89a":                                                      "GIF",
		"%PDF-1.7\n\xff\xd8\xff":                                      "PDF",
		"8BPS\x00\x01":                                                "Photoshop",
		"\x00\x00\x00\x18ftypheic":                                    "HEIF",
		"PK\x03\x04":                                                  "ZIP",
		"{\"error\":1}":                                               "JSON",
		"RIFF\x10\x00\x00\x00AVI LIST":                                "RIFF",
	} {
		_, err := Decode([]byte(begin+strings.Repeat(" ", 100)), Limits{})
		if r := Rejection(err); r == nil || r.Code != CodeUnsupported || !strings.Contains(r.Reason, want) {
			t.Errorf("%q: got %v, want the word %q", begin, err, want)
		}
	}
}

// Where libjpeg-turbo is installed it gives the same pixels, for every file that
// it is given; others, and damaged ones, are left to our own decoder.
func TestTheLibraryDecodesToTheSamePixels(t *testing.T) {
	if turboMemory(8, 8) == 0 {
		t.Skip("libjpeg-turbo is not installed, or gives other pixels")
	}
	files := map[string][]byte{}
	for name := range readGolden(t).Files {
		if strings.HasSuffix(name, ".jpg") {
			files[name] = readCase(t, name)
		}
	}
	for _, side := range []int{1, 7, 8, 9, 16, 17, 33, 500} {
		b, err := pattern(side, side+side/3).JPEG(75)
		if err != nil {
			t.Fatal(err)
		}
		files[strings.Repeat("x", side%50)] = b
	}
	taken := 0
	for name, b := range files {
		h, err := Inspect(b, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		w, height := h.Width, h.Height
		if h.Orientation >= 5 {
			w, height = height, w
		}
		its, own := New(w, height), New(w, height)
		if !turboDecode(b, w, height, canvas{its}) {
			continue
		}
		taken++
		if err := decodeJPEGInto(b, jpegWant{w: w, h: height}, canvas{own}); err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !bytes.Equal(its.Pix, own.Pix) {
			t.Errorf("%s: the library's pixels are others", name)
		}
		if turboDecode(b[:len(b)*3/4], w, height, canvas{its}) {
			t.Errorf("%s: the library takes it, cut off", name)
		}
	}
	if taken < 15 {
		t.Errorf("the library was given %d files", taken)
	}
}

func BenchmarkJPEG(b *testing.B) {
	file, err := pattern(1920, 1080).JPEG(85)
	if err != nil {
		b.Fatal(err)
	}
	img := New(1920, 1080)
	b.Run("own", func(b *testing.B) {
		for b.Loop() {
			if err := decodeJPEGInto(file, jpegWant{w: 1920, h: 1080}, canvas{img}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("library", func(b *testing.B) {
		for b.Loop() {
			if !turboDecode(file, 1920, 1080, canvas{img}) {
				b.Skip("libjpeg-turbo is not installed")
			}
		}
	})
}
