package backbone

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// safetensors assembles a file from a literal header.
func safetensors(header string, data []byte) []byte {
	return append(append(binary.LittleEndian.AppendUint64(nil, uint64(len(header))), header...), data...)
}

func TestSafetensors(t *testing.T) {
	t.Run("floats of every width are read", func(t *testing.T) {
		var data []byte
		data = binary.LittleEndian.AppendUint32(data, math.Float32bits(-1.5))
		data = binary.LittleEndian.AppendUint64(data, math.Float64bits(0.25))
		data = binary.LittleEndian.AppendUint16(data, 0x3e00) // float16 1.5
		data = binary.LittleEndian.AppendUint16(data, 0x0001) // float16 2⁻²⁴
		data = binary.LittleEndian.AppendUint16(data, 0xfc00) // float16 −∞
		data = binary.LittleEndian.AppendUint16(data, 0x4040) // bfloat16 3
		w, err := ReadWeights(safetensors(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
			"b":{"dtype":"F64","shape":[1,1],"data_offsets":[4,12]},"c":{"dtype":"F16","shape":[3],"data_offsets":[12,18]},
			"d":{"dtype":"BF16","shape":[],"data_offsets":[18,20]},"__metadata__":{"k":"v"}}`, data))
		if err != nil {
			t.Fatal(err)
		}
		want := map[string][]float32{"a": {-1.5}, "b": {0.25}, "c": {1.5, 1.0 / (1 << 24), float32(math.Inf(-1))}, "d": {3}}
		for name, v := range want {
			x, err := w.Float32(name)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(v, x.Float32s()); d != "" {
				t.Errorf("%s: %s", name, d)
			}
		}
		if w.Metadata["k"] != "v" || !slices.Equal(w.names, []string{"a", "b", "c", "d"}) {
			t.Errorf("metadata %v, names %v", w.Metadata, w.names)
		}
		if _, err := w.Float32("a", 2); !errors.Is(err, ErrArchitecture) {
			t.Errorf("a wrong shape gives %v", err)
		}
		if _, err := w.Float32("nope"); !errors.Is(err, ErrFormat) {
			t.Errorf("a missing tensor gives %v", err)
		}
	})
	for name, file := range map[string][]byte{
		"empty":                   {},
		"no header":               safetensors("", nil),
		"header longer than file": append(binary.LittleEndian.AppendUint64(nil, 1000), "{}"...),
		"huge header":             append(binary.LittleEndian.AppendUint64(nil, math.MaxUint64), "{}"...),
		"not JSON":                safetensors(`{"a":`, nil),
		"unclosed":                safetensors(`{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}`, nil),
		"unknown type":            safetensors(`{"a":{"dtype":"Q4","shape":[1],"data_offsets":[0,1]}}`, []byte{0}),
		"past the end":            safetensors(`{"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}`, []byte{0}),
		"negative offset":         safetensors(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[-1,0]}}`, []byte{0}),
		"backwards":               safetensors(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}}`, []byte{0}),
		"size mismatch":           safetensors(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,2]}}`, []byte{0, 0}),
		"overflowing shape":       safetensors(`{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}`, nil),
		"negative dimension":      safetensors(`{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,0]}}`, nil),
		"deep rank":               safetensors(`{"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}}`, []byte{0}),
		"twice":                   safetensors(`{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}`, nil),
		"overlap":                 safetensors(`{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}`, []byte{0, 0}),
		"pickle":                  {0x80, 2, 'c', 0, 0, 0, 0, 0, 0, 0, 0},
	} {
		t.Run("refused: "+name, func(t *testing.T) {
			if _, err := ReadWeights(file); !errors.Is(err, ErrFormat) {
				t.Errorf("got %v, want ErrFormat", err)
			}
		})
	}
	t.Run("refused: a folder", func(t *testing.T) {
		if _, err := Inspect(t.TempDir(), ImportOptions{}); !errors.Is(err, ErrFormat) {
			t.Errorf("got %v, want ErrFormat", err)
		}
	})
	t.Run("every truncation of a good file is refused or lacks a tensor", func(t *testing.T) {
		whole := encodeSafetensors([]drawn{{"a", []int{2, 3}, 1, 0}, {"b", []int{4}, 1, 0}})
		for n := range whole {
			if _, err := ReadWeights(whole[:n]); err == nil {
				t.Fatalf("%d of %d bytes are accepted", n, len(whole))
			}
		}
	})
}

func TestNPZ(t *testing.T) {
	want := make([]float32, 24)
	for i := range want {
		want[i] = float32(i)/8 - 1
	}
	for _, file := range []string{"stored.npz", "deflated.npz"} {
		t.Run(file+" as numpy writes it", func(t *testing.T) {
			w, err := ReadWeights(readTestdata(t, file))
			if err != nil {
				t.Fatal(err)
			}
			for name, v := range map[string][]float32{
				"plain": want, "deep/name": want[:12], "double": want, "half": want, "fortran": want, "scalar": {2.5}, "empty": {},
			} {
				x, err := w.Float32(name)
				if err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(v, x.Float32s()); d != "" {
					t.Errorf("%s: %s", name, d)
				}
			}
			if _, err := w.Float32("ints"); !errors.Is(err, ErrFormat) {
				t.Errorf("integers as floats give %v", err)
			}
		})
		t.Run(file+" with any byte changed is refused or reads the same", func(t *testing.T) {
			whole, err := os.ReadFile(filepath.Join("testdata", file))
			if err != nil {
				t.Fatal(err)
			}
			rapid.Check(t, func(t *rapid.T) {
				b := bytes.Clone(whole)
				b[rapid.IntRange(0, len(b)-1).Draw(t, "at")] ^= byte(rapid.IntRange(1, 255).Draw(t, "flip"))
				w, err := ReadWeights(b)
				if err != nil {
					return
				}
				x, err := w.Float32("plain")
				if err != nil {
					return
				}
				// The checksum covers header and elements together.
				if !slices.Equal(x.Float32s(), want) && slices.Equal(x.Shape, []int{2, 3, 4}) {
					t.Errorf("reads %v", x.Float32s())
				}
			})
		})
	}
	t.Run("a claim of petabytes is refused before anything is allocated", func(t *testing.T) {
		b := encodeNPZ(t, []drawn{{"a", []int{2}, 1, 0}})
		copy(b[bytes.Index(b, []byte("(2,)")):], "(1000000000000000,), }")
		if _, err := ReadWeights(b); !errors.Is(err, ErrFormat) {
			t.Errorf("got %v", err)
		}
	})
}

func TestLoadRefuses(t *testing.T) {
	vit := readGolden(t, "vit").Weights
	change := func(f func([]drawn) []drawn) []byte {
		return encodeSafetensors(f(slices.Clone(vit)))
	}
	rename := func(from, to string) func([]drawn) []drawn {
		return func(ws []drawn) []drawn {
			for i := range ws {
				ws[i].Name = strings.Replace(ws[i].Name, from, to, 1)
			}
			return ws
		}
	}
	reshape := func(name string, shape ...int) func([]drawn) []drawn {
		return func(ws []drawn) []drawn {
			for i := range ws {
				if ws[i].Name == name {
					ws[i].Shape = shape
				}
			}
			return ws
		}
	}
	for name, file := range map[string][]byte{
		"other names":               change(rename("pos_embed", "positions")),
		"a missing block weight":    change(rename("blocks.1.mlp.fc2.bias", "lost")),
		"a width that does not fit": change(reshape("blocks.2.attn.proj.weight", 64, 256)),
		"rows of no square grid":    change(reshape("pos_embed", 1, 35, 128)),
		"an oblong patch":           change(reshape("patch_embed.proj.weight", 128, 3, 4, 16)),
		"grey input":                change(reshape("patch_embed.proj.weight", 128, 1, 8, 8)),
		"no tensors":                safetensors("{}", nil),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := fromFile("w.safetensors", file, LoadOptions{})
			if !errors.Is(err, ErrArchitecture) && !errors.Is(err, ErrFormat) {
				t.Fatalf("got %v", err)
			}
			t.Log(err)
		})
	}
	t.Run("a size that is no multiple of the patch", func(t *testing.T) {
		_, err := fromFile("w.safetensors", change(func(ws []drawn) []drawn { return ws }), LoadOptions{Size: 50})
		if !errors.Is(err, ErrArchitecture) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a prefix before every name is stripped", func(t *testing.T) {
		b := change(func(ws []drawn) []drawn {
			for i := range ws {
				ws[i].Name = "module." + ws[i].Name
			}
			return ws
		})
		r, err := Inspect(writeTemp(t, "w.safetensors", b), ImportOptions{})
		if err != nil || r.Name != "vit_128x3_patch8_48" {
			t.Errorf("%s, error %v", r.Name, err)
		}
		if d := cmp.Diff([]string{"module.head.weight"}, r.Ignored); d != "" {
			t.Error(d)
		}
	})
}

func FuzzReadWeights(f *testing.F) {
	f.Add(encodeSafetensors([]drawn{{"a", []int{2, 3}, 1, 0}}))
	for _, file := range []string{"stored.npz", "deflated.npz"} {
		b, err := os.ReadFile(filepath.Join("testdata", file))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		w, err := ReadWeights(b)
		if err != nil {
			return
		}
		for _, name := range w.names {
			x, err := w.Float32(name)
			if err == nil && len(x.Data) != 4*x.Elements() {
				t.Errorf("%s %v has %d bytes", name, x.Shape, len(x.Data))
			}
		}
		if m, err := FromWeights(w, LoadOptions{}); err == nil {
			if _, err := m.Build(Options{}); err != nil {
				t.Errorf("loaded, but cannot be built: %v", err)
			}
		}
	})
}
