package imaging

import (
	"encoding/binary"
	"strings"
	"testing"
)

// deepPNG is a 16-bit grey PNG of three samples.
func deepPNG(t testing.TB, samples ...uint16) []byte {
	t.Helper()
	raw := []byte{0}
	for _, v := range samples {
		raw = binary.BigEndian.AppendUint16(raw, v)
	}
	return pngFile(uint32(len(samples)), 1, 16, 0, deflated(t, raw))
}

func TestSixteenBitsOfWhichFewAreUsed(t *testing.T) {
	strict := func(b []byte, bits int) (*Image, error) { return (&View{Bits: bits}).Decode(b, Limits{}) }
	for _, c := range []struct {
		name    string
		samples []uint16
		bits    int
		looked  uint8 // of the last sample, by Decode
		judged  uint8 // by View.Decode
		refused bool
	}{
		{"all bits", []uint16{0, 300, 65535}, 0, 255, 255, false},
		{"a dim picture of 16 bits", []uint16{0, 300, 5000}, 0, 19, 19, false},
		{"12 bits, nobody says so", []uint16{0, 300, 4000}, 0, 249, 0, true},
		{"12 bits, the detector says so", []uint16{0, 300, 4000}, 12, 249, 249, false},
		{"12 bits, a dim picture of a known camera", []uint16{0, 100, 400}, 12, 100, 25, false},
		{"12 bits said, more there: white", []uint16{0, 300, 5000}, 12, 19, 255, false},
		{"8 bits in 16", []uint16{0, 3, 255}, 0, 255, 0, true},
		{"16 bits said, a black picture", []uint16{0, 3, 255}, 16, 255, 1, false},
		{"nothing but black", []uint16{0, 0, 0}, 0, 0, 0, false},
	} {
		b := deepPNG(t, c.samples...)
		m, err := Decode(b, Limits{})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		} else if _, g, _ := m.RGB(2, 0); g != c.looked {
			t.Errorf("%s: Decode gives %d, want %d", c.name, g, c.looked)
		}
		m, err = strict(b, c.bits)
		switch r := Rejection(err); {
		case c.refused:
			if r == nil || r.Code != CodeUnsupported || !strings.Contains(r.Reason, "bits") {
				t.Errorf("%s: got %v, want a refusal that names the setting", c.name, err)
			}
		case err != nil:
			t.Errorf("%s: %v", c.name, err)
		default:
			if _, g, _ := m.RGB(2, 0); g != c.judged {
				t.Errorf("%s: View.Decode gives %d, want %d", c.name, g, c.judged)
			}
		}
	}
}

// Files of every depth scale as division and rounding say.
func TestDepthRoundsToTheNearest(t *testing.T) {
	for _, bits := range []int{2, 4, 8, 9, 10, 12, 14, 16, 24, 32} {
		white := whiteOf(bits)
		d := newDepth(white)
		step := max(white/5000, 1)
		for v := uint64(0); v <= uint64(white); v += uint64(step) {
			want := uint8((v*510 + uint64(white)) / (2 * uint64(white)))
			if got := d.to8(uint32(v)); got != want {
				t.Fatalf("%d of %d bits: %d, want %d", v, bits, got, want)
			}
		}
	}
}

func TestNeededBits(t *testing.T) {
	for want, largest := range map[int]uint16{8: 255, 10: 256, 12: 4095, 14: 4096, 16: 40000} {
		if got, err := NeededBits(deepPNG(t, 0, largest, 3), Limits{}); err != nil || got != want {
			t.Errorf("%d needs %d bits, %v, want %d", largest, got, err, want)
		}
	}
	for name, want := range map[string]int{"rgb.png": 0, "sbit12.png": 12, "grey32_le.tif": 32, "grey12_le.tif": 0, "float32_le.tif": 0, "factors_22_11_11.jpg": 0} {
		if got, err := NeededBits(readCase(t, name), Limits{}); err != nil || got != want {
			t.Errorf("%s needs %d bits, %v, want %d", name, got, err, want)
		}
	}
	if _, err := NeededBits(readCase(t, "grey16.png")[:200], Limits{}); Rejection(err) == nil {
		t.Errorf("a cut file: %v", err)
	}
}
