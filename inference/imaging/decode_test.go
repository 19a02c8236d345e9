package imaging

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

type decodeGolden struct {
	Files map[string]struct {
		Width, Height int
		SHA256        string
	}
	Refused map[string]Code
}

func readGolden(t testing.TB) decodeGolden {
	t.Helper()
	raw, err := os.ReadFile("testdata/decode.json")
	if err != nil {
		t.Fatal(err)
	}
	var g decodeGolden
	if err := json.Unmarshal(raw, &g); err != nil {
		t.Fatal(err)
	}
	return g
}

func readCase(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "decode", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDecodeAgreesWithPillow(t *testing.T) {
	for name, want := range readGolden(t).Files {
		b := readCase(t, name)
		h, err := Inspect(b, Limits{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		m, err := Decode(b, Limits{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if m.Width != want.Width || m.Height != want.Height || h.Width != want.Width || h.Height != want.Height {
			t.Errorf("%s: %d×%d pixels, header %d×%d, Pillow %d×%d", name, m.Width, m.Height, h.Width, h.Height, want.Width, want.Height)
			continue
		}
		if digest(m.Pix) != want.SHA256 {
			t.Errorf("%s: pixels differ from Pillow's", name)
		}
	}
}

func TestUnreadableKindsSayWhatTheyAre(t *testing.T) {
	words := map[string]string{
		"float.tif": "floating-point", "signed32.tif": "signed",
		"picture.gif": "GIF", "animation.webp": "animation",
	}
	for name, code := range readGolden(t).Refused {
		_, err := Decode(readCase(t, name), Limits{})
		r := Rejection(err)
		if r == nil || r.Code != code || !strings.Contains(r.Reason, words[name]) {
			t.Errorf("%s: got %v, want %s with the word %q", name, err, code, words[name])
		}
	}
}

func TestTruncatedFilesAreRejected(t *testing.T) {
	for name := range readGolden(t).Files {
		if name == "pages.tif" {
			continue // its picture is whole without the others
		}
		b := readCase(t, name)
		for _, n := range []int{1, 3, 7, 11, 20, 40, len(b) / 3, len(b) / 2, len(b) * 3 / 4} {
			if n >= len(b) {
				continue
			}
			_, err := Decode(b[:n], Limits{})
			r := Rejection(err)
			if r == nil {
				t.Errorf("%s cut to %d of %d bytes: %v", name, n, len(b), err)
				continue
			}
			// BM and a few bytes is not yet known to be an image; a PNG's
			// palette or a TIFF's directory may be named missing.
			if n > 12 && !slices.Contains([]Code{CodeTruncated, CodeCorrupt}, r.Code) {
				t.Errorf("%s cut to %d of %d bytes: %v", name, n, len(b), r)
			}
		}
	}
}

func TestCodes(t *testing.T) {
	small, err := pattern(40, 30).PNG()
	if err != nil {
		t.Fatal(err)
	}
	long, err := pattern(300, 4).PNG()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		b    []byte
		l    Limits
		want Code
	}{
		{"no bytes", nil, Limits{}, CodeEmpty},
		{"text", []byte("this is a text, not a picture"), Limits{}, CodeUnsupported},
		{"zeros", make([]byte, 100), Limits{}, CodeUnsupported},
		{"too many bytes", small, Limits{MaxBytes: 50}, CodeTooLarge},
		{"too many pixels", small, Limits{MaxPixels: 1199}, CodeTooLarge},
		{"too much memory", small, Limits{MaxMemory: 1000}, CodeTooLarge},
		{"a strip", long, Limits{}, CodeBadAspect},
	} {
		_, err := Decode(c.b, c.l)
		if r := Rejection(err); r == nil || r.Code != c.want {
			t.Errorf("%s: got %v, want %s", c.name, err, c.want)
		}
	}
	if _, err := Decode(small, Limits{MaxPixels: 1200}); err != nil {
		t.Errorf("exactly as many pixels as allowed: %v", err)
	}
	if _, err := Decode(long, Limits{MaxAspect: -1}); err != nil {
		t.Errorf("without a limit of aspect: %v", err)
	}
}

// bombs are files whose headers promise far more than they hold.
func bombs(t testing.TB) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}

	// 106 KiB of deflated zeros that unpack to 15,000 × 15,000 pixels of RGBA.
	var data bytes.Buffer
	z, err := zlib.NewWriterLevel(&data, zlib.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	zeros := make([]byte, 1<<20)
	for range 100 {
		if _, err := z.Write(zeros); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	out["png 15000x15000"] = pngFile(15000, 15000, 8, 6, data.Bytes())
	out["png 2G x 2G"] = pngFile(1<<31-1, 1<<31-1, 16, 6, data.Bytes())
	out["png 9000x9000, nothing in it"] = pngFile(9000, 9000, 8, 2, []byte{1, 2, 3})

	tif := readCase(t, "deflate.tif")
	out["tiff 4G x 4G"] = patchTIFF(t, tif, map[uint16]uint32{256: 0xffff_fffe, 257: 0xffff_fffe})
	out["tiff 9000x9000"] = patchTIFF(t, tif, map[uint16]uint32{256: 9000, 257: 9000})

	b := bytes.Clone(readCase(t, "rgb.bmp"))
	binary.LittleEndian.PutUint32(b[18:], 9999)
	binary.LittleEndian.PutUint32(b[22:], 9999)
	out["bmp 9999x9999"] = b

	j := bytes.Clone(readCase(t, "progressive.jpg"))
	at := bytes.Index(j, []byte{0xff, 0xc2})
	binary.BigEndian.PutUint16(j[at+5:], 65535)
	binary.BigEndian.PutUint16(j[at+7:], 65535)
	out["jpeg 65535x65535"] = j
	j = bytes.Clone(j)
	binary.BigEndian.PutUint16(j[at+5:], 5000)
	binary.BigEndian.PutUint16(j[at+7:], 5000)
	out["jpeg 5000x5000"] = j

	j = bytes.Clone(readCase(t, "progressive.jpg"))
	scan := bytes.LastIndex(j, []byte{0xff, 0xda})
	again := bytes.Clone(j[scan : len(j)-2])
	j = j[:len(j)-2]
	for range 1000 {
		j = append(j, again...)
	}
	out["jpeg of a thousand scans"] = append(j, 0xff, 0xd9)

	w := bytes.Clone(readCase(t, "lossless.webp"))
	binary.LittleEndian.PutUint32(w[21:], 0x3fff|0x3fff<<14)
	out["webp 16384x16384"] = w
	return out
}

func deflated(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z := zlib.NewWriter(&out)
	if _, err := z.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func pngFile(w, h uint32, depth, kind byte, data []byte) []byte {
	chunk := func(id string, body []byte) []byte {
		out := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
		out = append(append(out, id...), body...)
		return binary.BigEndian.AppendUint32(out, crc32.ChecksumIEEE(out[4:]))
	}
	head := binary.BigEndian.AppendUint32(nil, w)
	head = binary.BigEndian.AppendUint32(head, h)
	head = append(head, depth, kind, 0, 0, 0)
	out := append([]byte(pngMagic), chunk("IHDR", head)...)
	out = append(out, chunk("IDAT", data)...)
	return append(out, chunk("IEND", nil)...)
}

func patchTIFF(t testing.TB, b []byte, values map[uint16]uint32) []byte {
	t.Helper()
	b = bytes.Clone(b)
	d, err := readIFD(b)
	if err != nil {
		t.Fatal(err)
	}
	for e := d.entries; len(e) >= 12; e = e[12:] {
		if v, ok := values[d.order.Uint16(e)]; ok {
			d.order.PutUint16(e[2:], 4)
			d.order.PutUint32(e[8:], v)
		}
	}
	return b
}

func TestBombsAreRefusedBeforeAnythingIsAllocated(t *testing.T) {
	for name, b := range bombs(t) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := Decode(b, Limits{})
		runtime.ReadMemStats(&after)
		if r := Rejection(err); r == nil || r.Code != CodeTooLarge && r.Code != CodeTruncated {
			t.Errorf("%s: got %v", name, err)
		} else {
			t.Logf("%s: %v", name, r)
		}
		if took := after.TotalAlloc - before.TotalAlloc; took > 1<<20 {
			t.Errorf("%s: %d bytes were allocated", name, took)
		}
	}
}

func TestDecodersKeepToTheMemoryTheHeaderForetells(t *testing.T) {
	for name := range readGolden(t).Files {
		b := readCase(t, name)
		h, err := Inspect(b, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(b, Limits{}); err != nil { // fills what is set up once
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err = Decode(b, Limits{})
		runtime.ReadMemStats(&after)
		if err != nil {
			t.Fatal(err)
		}
		// What is allocated in all bounds what is held at any one time.
		if took := int64(after.TotalAlloc - before.TotalAlloc); took > h.Memory {
			t.Errorf("%s: %d bytes were allocated, the header foretold %d", name, took, h.Memory)
		}
	}
}

// exifJPEG puts EXIF data in front of a JPEG's other segments.
func exifJPEG(t testing.TB, exif []byte) []byte {
	t.Helper()
	b, err := pattern(16, 8).JPEG(90)
	if err != nil {
		t.Fatal(err)
	}
	seg := append([]byte("Exif\x00\x00"), exif...)
	out := append([]byte{}, b[:2]...)
	out = append(out, 0xff, 0xe1)
	out = binary.BigEndian.AppendUint16(out, uint16(len(seg)+2))
	out = append(out, seg...)
	return append(out, b[2:]...)
}

func TestDamagedEXIFMeansUpright(t *testing.T) {
	for name, exif := range map[string][]byte{
		"empty":               nil,
		"no byte order":       []byte("XX*\x00\x08\x00\x00\x00"),
		"directory far away":  []byte("II*\x00\xff\xff\xff\xff"),
		"directory cut off":   []byte("II*\x00\x08\x00\x00\x00\x09\x00"),
		"orientation 9":       []byte("II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x01\x00\x00\x00\x09\x00\x00\x00"),
		"orientation as text": []byte("II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x02\x00\x01\x00\x00\x00\x06\x00\x00\x00"),
	} {
		m, err := Decode(exifJPEG(t, exif), Limits{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if m.Width != 16 || m.Height != 8 {
			t.Errorf("%s: turned to %d×%d", name, m.Width, m.Height)
		}
	}
	m, err := Decode(exifJPEG(t, []byte("MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00")), Limits{})
	if err != nil || m.Width != 8 || m.Height != 16 {
		t.Errorf("orientation 6 gave %v, %v", m, err)
	}
}

func TestTurningIsUndoneByItsInverse(t *testing.T) {
	m := pattern(7, 4)
	inverse := [9]int{0, 1, 2, 3, 4, 5, 8, 7, 6}
	for o := 1; o <= 8; o++ {
		if back := m.orient(o).orient(inverse[o]); !bytes.Equal(back.Pix, m.Pix) || back.Width != 7 {
			t.Errorf("orientation %d is not undone by %d", o, inverse[o])
		}
	}
	r := m.Rotate90(1)
	if r.Width != 4 || r.Height != 7 {
		t.Errorf("a quarter turn gave %d×%d", r.Width, r.Height)
	}
	r1, g1, b1 := m.RGB(0, 0)
	if r2, g2, b2 := r.RGB(3, 0); r1 != r2 || g1 != g2 || b1 != b2 {
		t.Error("a clockwise quarter turn must bring the upper left pixel to the upper right")
	}
}

func TestCropsBeyondTheEdgesAreBlack(t *testing.T) {
	m := pattern(5, 4)
	c := m.Crop(-2, -1, 9, 6)
	for y := range 6 {
		for x := range 9 {
			r, g, b := c.RGB(x, y)
			var wr, wg, wb uint8
			if x >= 2 && x < 7 && y >= 1 && y < 5 {
				wr, wg, wb = m.RGB(x-2, y-1)
			}
			if r != wr || g != wg || b != wb {
				t.Fatalf("pixel %d,%d is %d,%d,%d", x, y, r, g, b)
			}
		}
	}
	if far := m.Crop(50, 50, 3, 3); digest(far.Pix) != digest(make([]byte, 27)) {
		t.Error("a crop beside the image is not black")
	}
}

func TestEncodersAreReadBack(t *testing.T) {
	m := pattern(31, 17)
	b, err := m.PNG()
	if err != nil {
		t.Fatal(err)
	}
	back, err := Decode(b, Limits{})
	if err != nil || !bytes.Equal(back.Pix, m.Pix) {
		t.Errorf("png came back changed: %v", err)
	}
	if b, err = m.JPEG(95); err != nil {
		t.Fatal(err)
	}
	if h, err := Inspect(b, Limits{}); err != nil || h.Format != JPEG || h.Width != 31 {
		t.Errorf("jpeg came back as %+v, %v", h, err)
	}
	if _, err := (&Image{Width: 3, Height: 3}).PNG(); err == nil {
		t.Error("an image without pixels was encoded")
	}
	if _, err := (&Image{Width: 3, Height: 3}).JPEG(90); err == nil {
		t.Error("an image without pixels was encoded")
	}
}

// FuzzInspect: any bytes give a header within the limits, or a rejection.
func FuzzInspect(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		l := Limits{MaxPixels: 1 << 20}
		h, err := Inspect(b, l)
		if err != nil {
			if Rejection(err) == nil {
				t.Fatalf("not a RejectError: %v", err)
			}
			return
		}
		if h.Width <= 0 || h.Height <= 0 || int64(h.Width)*int64(h.Height) > l.MaxPixels || h.Memory <= 0 {
			t.Fatalf("accepted %+v", h)
		}
	})
}

// FuzzDecode covers every format's decoder; the seeds lead into each.
func FuzzDecode(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, b []byte) { fuzzDecode(t, b, "") })
}

func FuzzDecodeJPEG(f *testing.F) { fuzzFormat(f, JPEG) }
func FuzzDecodePNG(f *testing.F)  { fuzzFormat(f, PNG) }
func FuzzDecodeBMP(f *testing.F)  { fuzzFormat(f, BMP) }
func FuzzDecodeTIFF(f *testing.F) { fuzzFormat(f, TIFF) }
func FuzzDecodeWebP(f *testing.F) { fuzzFormat(f, WebP) }

func fuzzFormat(f *testing.F, format Format) {
	for name := range readGolden(f).Files {
		b := readCase(f, name)
		if h, err := Inspect(b, Limits{}); err == nil && h.Format == format {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) { fuzzDecode(t, b, format) })
}

func fuzzDecode(t *testing.T, b []byte, format Format) {
	l := Limits{MaxPixels: 1 << 18, MaxMemory: 32 << 20}
	h, err := Inspect(b, l)
	if err != nil || format != "" && h.Format != format {
		return
	}
	m, err := Decode(b, l)
	if err != nil {
		if Rejection(err) == nil {
			t.Fatalf("not a RejectError: %v", err)
		}
		return
	}
	if !m.Valid() || m.Width != h.Width || m.Height != h.Height {
		t.Fatalf("header %+v, image %d×%d with %d bytes", h, m.Width, m.Height, len(m.Pix))
	}
}

func seed(f *testing.F) {
	for name := range readGolden(f).Files {
		f.Add(readCase(f, name))
	}
	for name := range readGolden(f).Refused {
		f.Add(readCase(f, name))
	}
	for _, b := range bombs(f) {
		if len(b) < 50_000 {
			f.Add(b)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	m := pattern(1920, 1080)
	files := map[string][]byte{}
	var err error
	if files["jpeg 1080p"], err = m.JPEG(85); err != nil {
		b.Fatal(err)
	}
	if files["png 1080p"], err = m.PNG(); err != nil {
		b.Fatal(err)
	}
	for _, name := range []string{"jpeg 1080p", "png 1080p"} {
		b.Run(fmt.Sprintf("%s/%s", DecoderName(), name), func(b *testing.B) {
			for b.Loop() {
				if _, err := Decode(files[name], Limits{}); err != nil {
					b.Fatal(err)
				}
			}
		})
		p := Preprocess{Resize: 248, Crop: 224, Interpolation: Bicubic, Std: [3]float64{1, 1, 1}}
		dst := make([]uint8, p.Bytes())
		b.Run(fmt.Sprintf("%s/%s to 224", DecoderName(), name), func(b *testing.B) {
			for b.Loop() {
				if _, err := p.Apply(files[name], Limits{}, dst); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A PNG whose pixels cannot be told is refused, by what is wrong with it.
func TestDamagedPNGsAreRefused(t *testing.T) {
	rgb, palette := readCase(t, "rgb.png"), readCase(t, "palette.png")
	data := bytes.Index(rgb, []byte("IDAT"))
	patch := func(b []byte, at int, v byte) []byte {
		b = bytes.Clone(b)
		b[at] ^= v
		return b
	}
	insert := func(b []byte, id string) []byte { // before the data
		at := bytes.Index(b, []byte("IDAT")) - 4
		c := append(binary.BigEndian.AppendUint32(nil, 0), id...)
		c = binary.BigEndian.AppendUint32(c, crc32.ChecksumIEEE([]byte(id)))
		return slices.Concat(b[:at], c, b[at:])
	}
	plte := bytes.Index(palette, []byte("PLTE")) - 4
	for name, c := range map[string]struct {
		b    []byte
		code Code
	}{
		"check sum of the data":      {patch(rgb, data+20, 1), CodeCorrupt},
		"check sum of the header":    {patch(rgb, 19, 1), CodeCorrupt},
		"an odd bit depth":           {pngFile(4, 4, 3, 0, deflated(t, make([]byte, 100))), CodeCorrupt},
		"a filter that is none":      {pngFile(4, 4, 8, 0, deflated(t, bytes.Repeat([]byte{9, 0, 0, 0, 0}, 4))), CodeCorrupt},
		"too few pixels":             {pngFile(4, 4, 8, 0, deflated(t, make([]byte, 19))), CodeTruncated},
		"no deflated data":           {pngFile(4, 4, 8, 0, []byte("nothing")), CodeCorrupt},
		"no data":                    {slices.Concat(rgb[:data-4], rgb[len(rgb)-12:]), CodeCorrupt},
		"no palette":                 {slices.Concat(palette[:plte], palette[plte+12+int(binary.BigEndian.Uint32(palette[plte:])):]), CodeCorrupt},
		"a chunk that must be known": {insert(rgb, "NEEd"), CodeUnsupported},
		"a chunk that need not be":   {insert(rgb, "neEd"), ""},
	} {
		_, err := Decode(c.b, Limits{})
		if r := Rejection(err); c.code == "" && err != nil || c.code != "" && (r == nil || r.Code != c.code) {
			t.Errorf("%s: got %v, want %q", name, err, c.code)
		}
	}
}
