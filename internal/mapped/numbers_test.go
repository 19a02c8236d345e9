package mapped

import (
	"encoding/binary"
	"slices"
	"testing"
)

func TestBytesAndNumbersAreTheSameMemory(t *testing.T) {
	v := []float32{1, -2.5, 0}
	b := Bytes(v)
	if len(b) != 12 || binary.LittleEndian.Uint32(b[4:]) != 0xc0200000 {
		t.Fatalf("the bytes are % x", b)
	}
	back := Numbers[float32](b)
	if back[2] = 7; !slices.Equal(back, v) {
		t.Errorf("%v is not a view of %v", back, v)
	}
	if cap(b) != len(b) || cap(back) != len(back) {
		t.Error("appending to a view would write behind it")
	}
}

// Files give bytes at any place, and damaged ones any number of them.
func TestNumbersOfAnyBytes(t *testing.T) {
	words := make([]uint64, 5)
	all := Bytes(words)
	for i := range all {
		all[i] = byte(i)
	}
	for from := range 9 {
		for n := range 18 {
			got := Numbers[uint64](all[from:][:n])
			if len(got) != n/8 || got == nil {
				t.Fatalf("%d numbers of %d bytes from %d: %v", len(got), n, from, got)
			}
			for i, v := range got {
				if want := binary.LittleEndian.Uint64(all[from+8*i:]); v != want {
					t.Errorf("number %d of %d bytes from %d is %x, want %x", i, n, from, v, want)
				}
			}
		}
	}
	if got := Numbers[float64](nil); len(got) != 0 {
		t.Errorf("numbers of nothing: %v", got)
	}
	if Bytes[int16](nil) != nil || len(Bytes([]bool{})) != 0 {
		t.Error("bytes of nothing")
	}
}
