package imaging

import (
	"bytes"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
)

// Damage anywhere gives an image or a refusal, within the memory that the header
// foretells, and no decoder fails on it.
func TestDamagedFilesAreReadOrRefused(t *testing.T) {
	r := rand.New(rand.NewPCG(20261128, 7))
	l := Limits{MaxPixels: 1 << 20, MaxMemory: 16 << 20}
	for name := range readGolden(t).Files {
		whole := readCase(t, name)
		for range 10 {
			b := bytes.Clone(whole)
			for range 1 + r.IntN(4) {
				at := r.IntN(len(b))
				switch r.IntN(3) {
				case 0:
					at = r.IntN(min(len(b), 400)) // the headers
				case 1:
					at = len(b) - 1 - r.IntN(min(len(b), 300)) // a TIFF's directory
				}
				b[at] = byte(r.Uint32())
			}
			h, err := Inspect(b, l)
			if err != nil {
				continue
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err = Decode(b, l)
			runtime.ReadMemStats(&after)
			if err != nil && (Rejection(err) == nil || strings.Contains(err.Error(), "decoder failed")) {
				t.Errorf("%s, damaged: %v", name, err)
			}
			if took := int64(after.TotalAlloc - before.TotalAlloc); took > 2*h.Memory {
				t.Errorf("%s, damaged: %d bytes were allocated for %d×%d pixels, %d foretold", name, took, h.Width, h.Height, h.Memory)
			}
		}
	}
}
