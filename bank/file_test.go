package bank

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"hash/crc32"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// goldenBank uses small whole numbers, so that every distance is exact and the
// file is the same on all machines.
func goldenBank(t testing.TB) *Bank {
	t.Helper()
	const n, dim = 40, 3
	r := rand.New(rand.NewPCG(11, 1))
	whole := func(n int) []float32 {
		out := make([]float32, n)
		for i := range out {
			out[i] = float32(r.IntN(64) - 32)
		}
		return out
	}
	b := newFilled(t, Options{
		Dim: dim, Kind: HNSW, Graph: GraphOptions{M: 3, EfConstruction: 20, EfSearch: 20, Seed: 5},
		Transform: &Transform{Mean: []float32{1, -2, 3}, Matrix: []float32{1, 0, 1, 0, 2, 0}},
	}, whole(n*dim))
	if _, err := b.Build(context.Background(), whole(8*dim)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Calibrate(context.Background(), whole(19*dim), 0.1); err != nil {
		t.Fatal(err)
	}
	if b.Report().Kind != HNSW {
		t.Fatal(b.Report())
	}
	return b
}

func encoded(t testing.TB, b *Bank) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := b.Encode(&buf); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func decodeBytes(p []byte) (*Bank, error) {
	return decode(p, ReadOptions{})
}

func TestFileFormatGolden(t *testing.T) {
	path := filepath.Join("testdata", "golden.nmb")
	b := goldenBank(t)
	got := encoded(t, b)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("a new bank is written differently: raise fileVersion, keep reading the old one, and run with -update")
	}
	back, err := decodeBytes(want)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(encoded(t, back), want) {
		t.Error("reading and writing changes the file")
	}
	for i := range 50 {
		q := []float32{float32(i), float32(-i), float32(i % 7)}
		a, err := scoreOne(b, q)
		if err != nil {
			t.Fatal(err)
		}
		c, err := scoreOne(back, q)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(a, c); d != "" {
			t.Error(d)
		}
	}
}

// repair makes all checksums and the size right, so that what lies behind them
// gets tested.
func repair(p []byte) []byte {
	p = bytes.Clone(p)
	if len(p) < headerSize {
		return p
	}
	le := binary.LittleEndian
	copy(p, fileMagic)
	le.PutUint32(p[8:], 1+le.Uint32(p[8:])%fileVersion)
	le.PutUint64(p[16:], uint64(len(p)))
	n := int(le.Uint32(p[12:]) % (maxSections + 1))
	le.PutUint32(p[12:], uint32(n))
	end := headerSize + entrySize*n
	if end > len(p) {
		return p
	}
	for i := range n {
		e := p[headerSize+entrySize*i:]
		off, length := le.Uint64(e[8:]), le.Uint64(e[16:])
		if off <= uint64(len(p)) && length <= uint64(len(p))-off {
			le.PutUint32(e[4:], crc32.Checksum(p[off:off+length], castagnoli))
		}
	}
	le.PutUint32(p[24:], headerCRC(p[:end]))
	return p
}

func FuzzDecode(f *testing.F) {
	golden := encoded(f, goldenBank(f))
	plain := newFilled(f, Options{Dim: 2}, []float32{1, 2, 3, 4, 5, 6})
	f.Add(golden)
	f.Add(encoded(f, plain))
	sketch := newFilled(f, Options{Dim: 2, Kind: Sketch}, gauss(3, 9, 2))
	if _, err := sketch.Build(context.Background(), gauss(4, 4, 2)); err != nil {
		f.Fatal(err)
	}
	f.Add(encoded(f, sketch))
	f.Add(golden[:100])
	f.Fuzz(func(t *testing.T, p []byte) {
		for _, p := range [][]byte{p, repair(p)} {
			use(t, p)
			b, err := decodeBytes(p)
			if err != nil {
				continue
			}
			q := make([]float32, b.Dim())
			if _, err := scoreOne(b, q); err != nil && !errors.Is(err, ErrTooFew) && !errors.Is(err, ErrNotFinite) {
				t.Error(err)
			}
			if _, err := decodeBytes(encoded(t, b)); err != nil {
				t.Error(err)
			}
			if b.Index().Kind() == HNSW {
				for _, id := range b.IDs() {
					if err := b.Remove(id); err != nil {
						t.Error(err)
					}
				}
			}
		}
	})
}

func TestDamagedFilesAreRefused(t *testing.T) {
	good := encoded(t, goldenBank(t))
	if _, err := decodeBytes(good); err != nil {
		t.Fatal(err)
	}
	t.Run("each cut", func(t *testing.T) {
		for i := range good {
			if _, err := decodeBytes(good[:i]); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("cut to %d bytes: %v", i, err)
			}
		}
	})
	t.Run("each flipped byte", func(t *testing.T) {
		padding := 0
		for i := range good {
			bad := bytes.Clone(good)
			bad[i] ^= 0x10
			b, err := decodeBytes(bad)
			if err == nil {
				if !bytes.Equal(encoded(t, b), good) {
					t.Fatalf("byte %d: a changed bank was read", i)
				}
				padding++ // between sections, nothing is stored
			} else if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
				t.Fatalf("byte %d: %v", i, err)
			}
		}
		if padding > 8*fileAlign {
			t.Errorf("%d bytes could be changed unseen", padding)
		}
	})
	t.Run("a newer version", func(t *testing.T) {
		bad := bytes.Clone(good)
		bad[8] = fileVersion + 1
		if _, err := decodeBytes(bad); !errors.Is(err, ErrVersion) {
			t.Error(err)
		}
	})
	t.Run("claims of huge sizes", func(t *testing.T) {
		for _, claim := range []string{`"count":1000000000`, `"dim":65536`, `"in":65536`, `"k":9223372036854775807`} {
			bad := replaceMeta(t, good, claim)
			b, err := decodeBytes(bad)
			if err == nil { // only k may be any number
				if _, err := scoreOne(b, make([]float32, 3)); !errors.Is(err, ErrTooFew) {
					t.Errorf("%s: %v", claim, err)
				}
			} else if !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s: %v", claim, err)
			}
		}
	})
	t.Run("NaN among the entries", func(t *testing.T) {
		bad := bytes.Clone(good)
		at := sectionOffset(t, bad, "rows")
		binary.LittleEndian.PutUint32(bad[at:], math.Float32bits(float32(math.NaN())))
		if _, err := decodeBytes(repair(bad)); !errors.Is(err, ErrNotFinite) || !errors.Is(err, ErrCorrupt) {
			t.Error(err)
		}
	})
	t.Run("a link out of the graph", func(t *testing.T) {
		bad := bytes.Clone(good)
		at := sectionOffset(t, bad, "hnsw") + 4*(graphHeader+40+1)
		binary.LittleEndian.PutUint32(bad[at:], 40)
		if _, err := decodeBytes(repair(bad)); !errors.Is(err, ErrCorrupt) {
			t.Error(err)
		}
	})
}

func sectionOffset(t *testing.T, p []byte, tag string) int {
	t.Helper()
	for i := range int(binary.LittleEndian.Uint32(p[12:])) {
		if e := p[headerSize+entrySize*i:]; string(e[:4]) == tag {
			return int(binary.LittleEndian.Uint64(e[8:]))
		}
	}
	t.Fatalf("no section %q", tag)
	return 0
}

// replaceMeta puts a claim, which is "key":value, in place of the true one,
// and keeps the section's length by cutting the report at the end.
func replaceMeta(t *testing.T, p []byte, claim string) []byte {
	t.Helper()
	p = bytes.Clone(p)
	at := sectionOffset(t, p, "meta")
	length := int(binary.LittleEndian.Uint64(p[headerSize+16:]))
	json := p[at : at+length]
	key, _, _ := bytes.Cut([]byte(claim), []byte(":"))
	from := bytes.Index(json, key)
	to := from + bytes.IndexByte(json[from:], ',')
	report := bytes.Index(json, []byte(`,"report"`))
	changed := append(append(bytes.Clone(json[:from]), claim...), json[to:report]...)
	changed = append(changed, '}')
	if len(changed) > length {
		t.Fatal("the claim is too long")
	}
	copy(json, append(changed, bytes.Repeat([]byte(" "), length-len(changed))...))
	return repair(p)
}

func TestWriteFileIsAtomic(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "bank.nmb")
	b := newFilled(t, Options{Dim: 2}, []float32{1, 2, 3, 4, 5, 6})
	for range 2 { // anew, and over an old one
		if err := b.WriteFile(path); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
	if err := b.WriteFile(filepath.Join(dir, "missing", "bank.nmb")); err == nil {
		t.Error("writing into a missing folder succeeded")
	}
	if _, err := ReadFile(filepath.Join(dir, "missing.nmb"), ReadOptions{}); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
