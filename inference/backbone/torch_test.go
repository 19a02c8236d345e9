package backbone

import (
	"archive/zip"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func readTestdata(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestTorch(t *testing.T) {
	want := map[string][]float32{
		"a": {1.5, -2, 0.25, 8}, "half": {1.5, -0.25}, "brain": {3, -1}, "double": {0.1}, "scalar": {7}, "parameter": {4, 5},
		"turned": {0, 6, 12, 18, 1, 7, 13, 19, 2, 8, 14, 20, 3, 9, 15, 21, 4, 10, 16, 22, 5, 11, 17, 23}, "part": {8, 9, 10, 14, 15, 16},
	}
	for _, file := range []string{"torch_zip.pth", "torch_legacy.pth"} {
		t.Run(file, func(t *testing.T) {
			w, err := ReadWeights(readTestdata(t, file))
			if err != nil {
				t.Fatal(err)
			}
			if w.Format != "pth" || len(w.names) != 9 {
				t.Errorf("format %s, names %v", w.Format, w.names)
			}
			for name, v := range want {
				x, err := w.Float32(name)
				if err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(v, x.Float32s()); d != "" {
					t.Errorf("%s: %s", name, d)
				}
			}
			if d := cmp.Diff([]int{6, 4}, w.Shape("turned")); d != "" {
				t.Error(d)
			}
		})
	}
	t.Run("what training leaves beside the weights is passed over", func(t *testing.T) {
		w, err := ReadWeights(readTestdata(t, "torch_checkpoint.pth"))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff([]string{"model.w"}, w.names); d != "" {
			t.Error(d)
		}
	})
}

// torchFile is a PyTorch archive around a pickle.
func torchFile(t testing.TB, program string, members map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	put := func(name, content string) {
		f, err := z.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Store})
		if err == nil {
			_, err = f.Write([]byte(content))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	put("archive/data.pkl", program)
	for name, content := range members {
		put("archive/"+name, content)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestTorchRefuses: a pickle is refused by name when it asks for anything that
// weights do not need, and when it claims what is not there.
func TestTorchRefuses(t *testing.T) {
	storage := func(n, key string) string { // a persistent id and what loads it
		return "(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x00" + key + "X\x03\x00\x00\x00cpu" + n + "tQ"
	}
	tensor := func(n, offset, shape, stride string) string {
		return "\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n(" + storage(n, "0") + offset + shape + stride + "\x89}tRs."
	}
	data := map[string]string{"data/0": "\x00\x00\x80\x3f\x00\x00\x00\x40"}
	if w, err := ReadWeights(torchFile(t, tensor("K\x02", "K\x00", "K\x02\x85", "K\x01\x85"), data)); err != nil || w.Shape("w")[0] != 2 {
		t.Fatalf("a plain file: %v", err)
	}
	for name, c := range map[string]struct {
		program, want string
		members       map[string]string
	}{
		"a call of the system":            {"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00id\x85R.", `"posix.system"`, nil},
		"eval":                            {"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.", `"builtins.eval"`, nil},
		"a class by its stack":            {"\x80\x04X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93X\x02\x00\x00\x00id\x85R.", `"os.system"`, nil},
		"an instance":                     {"(isubprocess\nPopen\n.", `"subprocess.Popen"`, nil},
		"a view beyond its storage":       {tensor("K\x02", "K\x00", "K\x03\x85", "K\x01\x85"), "truncated or corrupt", data},
		"a stride beyond its storage":     {tensor("K\x02", "K\x00", "K\x02\x85", "K\x02\x85"), "truncated or corrupt", data},
		"a storage larger than its bytes": {tensor("J\xff\xff\xff\x7f", "K\x00", "J\xff\xff\xff\x7f\x85", "K\x01\x85"), "truncated or corrupt", data},
		"one number seen a billion times": {tensor("K\x02", "K\x00", "J\xff\xff\xff\x7f\x85", "K\x00\x85"), "truncated or corrupt", data},
		"a storage that is missing":       {tensor("K\x02", "K\x00", "K\x02\x85", "K\x01\x85"), "is missing", nil},
		"a negative offset":               {tensor("K\x02", "J\xff\xff\xff\xff", "K\x02\x85", "K\x01\x85"), "offset", data},
		"a string of four gigabytes":      {"\x80\x02X\xff\xff\xff\xffabc.", "truncated or corrupt", nil},
		"a string of exabytes":            {"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x3fabc.", "truncated or corrupt", nil},
		"a frame of exabytes":             {"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x3f.", "truncated or corrupt", nil},
		"no end":                          {"\x80\x02}", "no end", nil},
		"an unknown opcode":               {"\x80\x02\xfe.", "opcode", nil},
		"a set of what has no hash":       {"\x80\x04\x8f(ctorch._utils\n_rebuild_tensor\n\x90.", "malformed", nil},
		"no tensors":                      {"\x80\x02}.", "no tensors", nil},
		"a program of TorchScript":        {"\x80\x02}.", "TorchScript", map[string]string{"constants.pkl": "\x80\x02)."}},
		"the other byte order":            {"\x80\x02}.", "byte order", map[string]string{"byteorder": "big"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ReadWeights(torchFile(t, c.program, c.members))
			if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
	t.Run("a bare pickle of something else", func(t *testing.T) {
		_, err := ReadWeights([]byte("\x80\x02}q\x00."))
		if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "torch.save") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a file that is cut off", func(t *testing.T) {
		for _, file := range []string{"torch_zip.pth", "torch_legacy.pth"} {
			b := readTestdata(t, file)
			for _, n := range []int{len(b) / 4, len(b) / 2, len(b) - 5} {
				if _, err := ReadWeights(b[:n]); !errors.Is(err, ErrFormat) {
					t.Errorf("%s cut to %d of %d bytes: %v", file, n, len(b), err)
				}
			}
		}
	})
}

// FuzzTorch: no pickle panics or asks for more memory than there are bytes.
func FuzzTorch(f *testing.F) {
	for _, name := range []string{"torch_zip.pth", "torch_legacy.pth", "torch_checkpoint.pth"} {
		b := readTestdata(f, name)
		f.Add(b)
		if z, err := zip.NewReader(bytes.NewReader(b), int64(len(b))); err == nil {
			for _, m := range z.File {
				if strings.HasSuffix(m.Name, "data.pkl") {
					if p, err := zipBytes(b, m); err == nil {
						f.Add(p)
					}
				}
			}
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, file := range [][]byte{b, torchFile(t, string(b), map[string]string{"data/0": "12345678"})} {
			w, err := ReadWeights(file)
			if err != nil {
				if !errors.Is(err, ErrFormat) {
					t.Errorf("%v is no ErrFormat", err)
				}
				continue
			}
			for _, name := range w.names {
				x, err := w.Float32(name)
				if err == nil && len(x.Data) > 8*len(b)+64 {
					t.Errorf("%q has %d bytes of a file of %d", name, len(x.Data), len(b))
				}
			}
		}
	})
}
