package imaging

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
)

// accepted are files that show what the README's table says, by format, column
// and item.
var accepted = map[string]map[string]string{
	"JPEG/bits":    {"8": "sampling_444.jpg"},
	"JPEG/colours": {"grey": "grey.jpg", "YCbCr": "sampling_420.jpg", "RGB": "rgb.jpg", "CMYK": "cmyk_plain.jpg", "YCCK": "+ycck"},
	"JPEG/how": {
		"baseline": "sampling_422.jpg", "extended": "coarse.jpg", "progressive": "progressive.jpg", "restart intervals": "restarts.jpg",
		"one scan for each colour": "one_by_one.jpg", "sampling factors that divide one another": "factors_31_11_11.jpg",
		"no Huffman tables": "+no tables", "no end marker": "+no end",
	},
	"PNG/bits":    {"1": "bilevel.png", "2": "grey2.png", "4": "grey4.png", "8": "rgb.png", "16": "grey16.png"},
	"PNG/colours": {"grey": "grey.png", "grey and alpha": "grey_alpha.png", "RGB": "rgb.png", "RGBA": "rgba.png", "palette": "palette.png"},
	"PNG/how":     {"rows": "rgb.png", "interlaced": "interlaced.png", "damaged chunks that do not matter": "bad_profile.png"},
	"BMP/bits":    {"1": "bilevel.bmp", "4": "grey4.bmp", "8": "grey.bmp", "16": "plain555.bmp", "24": "rgb.bmp", "32": "rgba.bmp"},
	"BMP/colours": {"palette": "palette.bmp", "RGB": "rgb.bmp", "bit fields": "bitfields565.bmp"},
	"BMP/how":     {"rows from below": "rgb.bmp", "rows from the top": "top_down.bmp", "RLE4": "rle4.bmp", "RLE8": "rle8.bmp", "OS/2 header": "os2.bmp"},
	"TIFF/bits": {
		"1": "bilevel.tif", "2": "grey2_le.tif", "4": "grey4_be.tif", "6": "grey6_le.tif", "8": "grey.tif", "10": "grey10_be.tif", "12": "grey12_le.tif",
		"14": "grey14_le.tif", "16": "grey16_big.tif", "24": "grey24_le.tif", "32": "grey32_be.tif",
		"floating point of 16": "float16_le.tif", "floating point of 32": "float32_be.tif", "floating point of 64": "float64_le.tif",
	},
	"TIFF/colours": {
		"black is zero": "grey.tif", "white is zero": "white_is_zero.tif", "RGB": "rgb.tif", "palette of 16 bits": "palette_map16.tif",
		"palette of 8 bits": "palette_map8.tif", "CMYK": "cmyk.tif", "YCbCr": "ycbcr_22.tif", "alpha": "premultiplied.tif",
		"extra samples": "rgb_and_two.tif", "three greys": "three_greys.tif",
	},
	"TIFF/how": {
		"strips": "plain_strips.tif", "tiles": "plain_tiles.tif", "planes": "plain_le_planes.tif", "plain": "rgb.tif", "PackBits": "packbits.tif",
		"LZW": "lzw.tif", "Deflate": "deflate.tif", "ZSTD": "zstd_strips.tif", "JPEG": "jpeg_in_tiles.tif",
		"fax RLE": "rle_wide_11.tif", "fax Group 3": "g3_runs_115.tif", "fax Group 4": "g4_small_12.tif", "reversed bits": "fill_order_2.tif",
		"predictor 2": "lzw_predicted_be_rgb16.tif", "predictor 3": "float_rgb.tif", "either byte order": "rgb.tif", "BigTIFF": "plain_big.tif",
		"behind a thumbnail": "thumbnail_first.tif",
	},
	"WebP/bits":    {"8": "lossy.webp"},
	"WebP/colours": {"RGB": "lossless.webp", "RGBA": "lossless_alpha.webp"},
	"WebP/how":     {"lossy": "lossy.webp", "lossless": "lossless.webp"},
}

// made are the files that the tests' own code makes: by an item of accepted that
// begins with +, or one that is refused.
func made(t *testing.T, what string) []byte {
	t.Helper()
	jpeg, tif := readCase(t, "sampling_422.jpg"), readCase(t, "rgb.tif")
	frame := bytes.Index(jpeg, []byte{0xff, markSOF0})
	if frame < 0 {
		t.Fatal("the jpeg is not baseline")
	}
	patch := func(b []byte, at int, v ...byte) []byte {
		b = bytes.Clone(b)
		copy(b[at:], v)
		return b
	}
	bmp := func(compression byte) []byte { return patch(readCase(t, "bitfields565.bmp"), 30, compression) }
	switch what {
	case "+ycck":
		return adobe(readCase(t, "cmyk_plain.jpg"), 2)
	case "+no tables":
		return withoutSegments(jpeg, markDHT)
	case "+no end":
		return bytes.TrimSuffix(jpeg, []byte{0xff, markEOI})
	case "12 bits":
		return patch(jpeg, frame+4, 12)
	case "arithmetic coding":
		return patch(jpeg, frame+1, 0xc9)
	case "lossless":
		return patch(jpeg, frame+1, 0xc3)
	case "two components":
		return patch(jpeg, frame+9, 2)
	case "a height after the data":
		return patch(jpeg, frame+5, 0, 0)
	case "for iPhones only":
		b := readCase(t, "rgb.png")
		return append(append(bytes.Clone(b[:8]), 0, 0, 0, 4, 'C', 'g', 'B', 'I', 0x50, 0, 0x20, 2, 0x2b, 0xd5, 0xb3, 0x7f), b[8:]...)
	case "JPEG or PNG within":
		return bmp(4)
	case "signed samples":
		return readCase(t, "signed32.tif")
	case "old JPEG":
		return patchTIFF(t, tif, map[uint16]uint32{tagCompression: 6})
	case "LZMA":
		return patchTIFF(t, tif, map[uint16]uint32{tagCompression: 34925})
	case "JPEG 2000":
		return patchTIFF(t, tif, map[uint16]uint32{tagCompression: 34712})
	case "WebP":
		return patchTIFF(t, tif, map[uint16]uint32{tagCompression: 50001})
	case "CIE Lab":
		return patchTIFF(t, tif, map[uint16]uint32{tagPhotometric: 8})
	case "raw sensor data":
		return patchTIFF(t, tif, map[uint16]uint32{tagPhotometric: 32803})
	case "animation":
		return readCase(t, "animation.webp")
	}
	t.Fatalf("nothing shows %q", what)
	return nil
}

// withoutSegments leaves out a JPEG's segments of one kind, before its data.
func withoutSegments(b []byte, marker byte) []byte {
	out := bytes.Clone(b[:2])
	for at := 2; ; {
		n := 2 + int(binary.BigEndian.Uint16(b[at+2:]))
		if b[at+1] == markSOS {
			return append(out, b[at:]...)
		}
		if b[at+1] != marker {
			out = append(out, b[at:at+n]...)
		}
		at += n
	}
}

// adobe puts Adobe's segment with a colour transform before a JPEG's others.
func adobe(b []byte, transform byte) []byte {
	out := append([]byte{0xff, markSOI, 0xff, markAPP14, 0, 14}, "Adobe\x00\x64\x00\x00\x00\x00"...)
	return append(append(out, transform), b[2:]...)
}

func TestTheTableOfWhatIsAcceptedIsTrue(t *testing.T) {
	raw, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	var columns []string
	shown := map[string]map[string]bool{}
	for line := range strings.Lines(text) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) < 5 || strings.HasPrefix(cells[0], "---") {
			continue
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if columns == nil {
			columns = cells
			continue
		}
		switch cells[0] {
		case "each of them":
			limitsAreTrue(t, cells[3], cells[4])
			continue
		case "over MQTT": // stream/broker tries it
			continue
		}
		format := Format(strings.ToLower(cells[0]))
		for i, cell := range cells[1:] {
			column := columns[i+1]
			key := cells[0] + "/" + column
			shown[key] = map[string]bool{}
			for item := range strings.SplitSeq(cell, ", ") {
				shown[key][item] = true
				if column == "refused" {
					_, err := Decode(made(t, item), Limits{})
					if r := Rejection(err); r == nil || r.Code != CodeUnsupported {
						t.Errorf("%s, %s is not refused as unsupported: %v", cells[0], item, err)
					}
					continue
				}
				name, ok := accepted[key][item]
				if !ok {
					t.Errorf("nothing shows that %s has the %s %q", cells[0], column, item)
					continue
				}
				b := []byte(nil)
				if strings.HasPrefix(name, "+") {
					b = made(t, name)
				} else {
					b = readCase(t, name)
				}
				h, err := Inspect(b, Limits{})
				if err == nil {
					_, err = Decode(b, Limits{})
				}
				if err != nil || h.Format != format {
					t.Errorf("%s, %s %q: %s is %s, %v", cells[0], column, item, name, h.Format, err)
				}
				if n, err := strconv.Atoi(item); err == nil && column == "bits" && format != BMP && h.Bits != n {
					t.Errorf("%s: %s has %d bits, not %d", cells[0], name, h.Bits, n)
				}
			}
		}
	}
	for key, items := range accepted {
		for item := range items {
			if !shown[key][item] {
				t.Errorf("the table does not say that %s has %q", key, item)
			}
		}
	}
}

// limitsAreTrue compares what the table says of limits with the default ones, and has
// each refuse a picture that is just above it.
func limitsAreTrue(t *testing.T, most, above string) {
	t.Helper()
	l := DefaultLimits()
	if want := fmt.Sprintf("%d MiB a file, %d million pixels, one side %g times the other, %d MiB for decoding",
		l.MaxBytes>>20, l.MaxPixels/1e6, l.MaxAspect, l.MaxMemory>>20); most != want {
		t.Errorf("the table's limits are %s, the decoders' %s", most, want)
	}
	drawn := func(w, h int) []byte {
		t.Helper()
		b, err := New(w, h).PNG()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	b := drawn(50, 1)
	h, err := Inspect(b, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	for item := range strings.SplitSeq(above, ", ") {
		image, at, beneath, code := b, Limits{}, Limits{}, CodeTooLarge
		switch item {
		case "a byte more":
			at.MaxBytes, beneath.MaxBytes = int64(len(b)), int64(len(b))-1
		case "a pixel more":
			at.MaxPixels, beneath.MaxPixels = 50, 49
		case "a longer side":
			image, code = drawn(51, 1), CodeBadAspect
		case "more memory":
			at.MaxMemory, beneath.MaxMemory = h.Memory, h.Memory-1
		default:
			t.Errorf("nothing shows that %q is refused", item)
			continue
		}
		if _, err := Decode(b, at); err != nil {
			t.Errorf("what is at the limit is refused, not %s: %v", item, err)
		}
		_, err := Decode(image, beneath)
		if r := Rejection(err); r == nil || r.Code != code {
			t.Errorf("%s is not refused as %s: %v", item, code, err)
		}
	}
}
