package imaging

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"
)

// faxBits packs codes, which blanks part; | aligns to a byte and _ to two.
func faxBits(codes string) []byte {
	var out []byte
	n := 0
	for _, c := range codes {
		switch c {
		case '0', '1':
			if n%8 == 0 {
				out = append(out, 0)
			}
			if c == '1' {
				out[n/8] |= 0x80 >> (n % 8)
			}
			n++
		case '|':
			n = len(out) * 8
		case '_': // to two bytes
			for n = len(out) * 8; n%16 != 0; n += 8 {
				out = append(out, 0)
			}
		}
	}
	return out
}

// faxTIFF is a TIFF of 16 pixels a row, one strip, black is one.
func faxTIFF(rows int, compression, options uint32, data []byte) []byte {
	le := binary.LittleEndian
	out := le.AppendUint32([]byte("II*\x00"), uint32(8+len(data)))
	out = append(out, data...)
	tags := []struct{ id, value uint32 }{
		{tagWidth, 16},
		{tagHeight, uint32(rows)},
		{tagBits, 1},
		{tagCompression, compression},
		{tagPhotometric, tiffWhiteIsZero},
		{tagStripOffsets, 8},
		{tagSamples, 1},
		{tagRowsPerStrip, uint32(rows)},
		{tagStripBytes, uint32(len(data))},
		{tagT4Options, options},
		{tagT6Options, options},
	}
	out = le.AppendUint16(out, uint16(len(tags)))
	for _, t := range tags {
		out = le.AppendUint16(out, uint16(t.id))
		out = le.AppendUint16(out, 4)
		out = le.AppendUint32(out, 1)
		out = le.AppendUint32(out, t.value)
	}
	return le.AppendUint32(out, 0)
}

// Two rows: 8 white and 8 black pixels, then 16 white ones.
func TestFaxCodesAsWritersPutThem(t *testing.T) {
	const (
		half, white = "10011 000101 ", "101010 " // T.4: 8 white, 8 black; 16 white
		eol         = "000000000001 "
	)
	rtc := strings.Repeat(eol, 6)
	for name, c := range map[string]struct {
		compression, options uint32
		codes                string
		code                 Code // "": it is read
	}{
		"run lengths":                    {tiffRLE, 0, half + "|" + white, ""},
		"run lengths in words":           {tiffRLEWords, 0, half + "_" + white, ""},
		"group 3":                        {tiffGroup3, 0, eol + half + eol + white + rtc, ""},
		"group 3 without ends of lines":  {tiffGroup3, 0, half + white, ""},
		"group 3 with fill":              {tiffGroup3, 4, "0000" + eol + half + "00000" + eol + white + rtc, ""},
		"group 3 in two dimensions":      {tiffGroup3, 1, eol + "1" + half + eol + "0 0001 1 " + rtc, ""}, // pass, V0
		"group 4":                        {tiffGroup4, 0, "001 " + half + "0001 1 " + eol + eol, ""},
		"group 4 without an end":         {tiffGroup4, 0, "001 " + half + "0001 1", ""},
		"group 3, the page ends early":   {tiffGroup3, 0, eol + half + rtc, CodeTruncated},
		"group 4, the page ends early":   {tiffGroup4, 0, "001 " + half + eol + eol, CodeTruncated},
		"group 4, cut off":               {tiffGroup4, 0, "001 10011", CodeTruncated},
		"a run beyond the row":           {tiffRLE, 0, "10011 000011001010 " + strings.Repeat("0", 80), CodeCorrupt},
		"no code":                        {tiffGroup3, 0, "00000000 1111111111111111111111111111", CodeCorrupt},
		"uncompressed mode":              {tiffGroup3, 2, eol + half + eol + white, CodeUnsupported},
		"uncompressed mode, group 4":     {tiffGroup4, 2, "001 " + half, CodeUnsupported},
		"an extension in the data":       {tiffGroup4, 0, "0000001111 " + strings.Repeat("01", 40), CodeCorrupt},
		"a change before the row begins": {tiffGroup4, 0, "001 000111 000011000 0000010 " + strings.Repeat("01", 40), CodeCorrupt},
	} {
		m, err := Decode(faxTIFF(2, c.compression, c.options, faxBits(c.codes)), Limits{})
		if r := Rejection(err); c.code != "" {
			if r == nil || r.Code != c.code {
				t.Errorf("%s: got %v, want %s", name, err, c.code)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var got []uint8
		for y := range 2 {
			for x := range 16 {
				v, _, _ := m.RGB(x, y)
				got = append(got, v)
			}
		}
		want := slices.Repeat([]uint8{255}, 32)
		clear(want[8:16])
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v", name, got)
		}
	}
}
