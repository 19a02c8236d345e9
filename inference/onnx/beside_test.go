package onnx_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/onnx/wire"
	"github.com/nearmiss/nearmiss/inference/ort"
)

func all(*onnx.Value) bool { return true }

func TestWeightsStayInTheirFile(t *testing.T) {
	for name, option := range map[string]onnx.WriteOption{"in the model": onnx.ExternalAbove(1 << 20), "beside it": onnx.ExternalAbove(0)} {
		t.Run(name, func(t *testing.T) {
			const n = 40
			data := make([]float32, n*n)
			for i := range data {
				data[i] = float32(i%7) - 3
			}
			g := onnx.New("heavy")
			w := g.Initializer(onnx.FromFloat32("w", data, n, n))
			g.Output("y", g.Add(g.MatMul(g.Input("x", onnx.Float, 2, n), w), g.Floats(1)))
			dir := t.TempDir()
			path := filepath.Join(dir, "a model.onnx")
			if err := g.WriteFile(path, option); err != nil {
				t.Fatal(err)
			}

			read, err := onnx.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			defer read.Close()
			read.Output("z", read.Neg(read.Outputs()[0]))
			model, referred, err := read.BytesBeside(all)
			if err != nil || referred != 4*n*n || len(model) > 1<<10 {
				t.Fatalf("%d bytes are referred to, the model has %d: %v", referred, len(model), err)
			}
			if _, none, err := read.BytesBeside(func(v *onnx.Value) bool { return v.Name() != "w" }); err != nil || none != 0 {
				t.Errorf("%d bytes that nobody chose are referred to: %v", none, err)
			}
			whole, err := read.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			again, err := onnx.Decode(model, onnx.ExternalDir(dir))
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			if b, err := again.Bytes(); err != nil || !bytes.Equal(b, whole) {
				t.Errorf("read again it differs: %v", err)
			}
			s, err := ort.OpenBytes(model, ort.Options{Folder: dir})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			x := make([]float32, 2*n)
			for i := range x {
				x[i] = float32(i % 5)
			}
			in, err := ort.NewTensor([]int{2, n}, x)
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			out, err := s.Run(context.Background(), []*ort.Tensor{in})
			if err != nil {
				t.Fatal(err)
			}
			defer ort.CloseAll(out...)
			want := float32(1)
			for i := range n {
				want += x[i] * data[i*n]
			}
			if y, z := out[0].Float32s()[0], out[1].Float32s()[0]; y != want || z != -want {
				t.Errorf("it gives %v and %v, want %v", y, z, want)
			}
		})
	}

	// A graph that was built here, or another's weights, has nothing in files.
	g := onnx.New("here")
	g.Output("y", g.Add(g.Input("x", onnx.Float, 500), g.Initializer(onnx.FromFloat32("w", make([]float32, 500), 500))))
	model, referred, err := g.BytesBeside(all)
	whole, err2 := g.Bytes()
	if err != nil || err2 != nil || referred != 0 || !bytes.Equal(model, whole) {
		t.Errorf("%d bytes are referred to: %v, %v", referred, err, err2)
	}
}

func TestABackboneWhoseFolderCannotBeFoundIsTold(t *testing.T) {
	g := onnx.New("heavy")
	g.Output("y", g.Add(g.Input("x", onnx.Float, 500), g.Initializer(onnx.FromFloat32("w", make([]float32, 500), 500))))
	path := filepath.Join(t.TempDir(), "m.onnx")
	if err := g.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	read, err := onnx.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	model, _, err := read.BytesBeside(all)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if s, err := ort.OpenBytes(model, ort.Options{Folder: filepath.Dir(path)}); err == nil {
		_ = s.Close()
		t.Error("a model without its weights was loaded")
	}
}

// A release takes the files that a model names: none of another folder.
func TestExternalStaysInTheFolder(t *testing.T) {
	for name, good := range map[string]bool{"w.bin": true, "weights/w.bin": true, "../w.bin": false, "weights/../../w.bin": false, "/etc/hostname": false} {
		entry := wire.AppendBytes(wire.AppendBytes(nil, 1, "location"), 2, name)
		tensor := wire.AppendBytes(nil, wire.TensorExternal, entry)
		model := wire.AppendBytes(nil, wire.ModelGraph, wire.AppendBytes(nil, wire.GraphInitializer, tensor))
		path := filepath.Join(t.TempDir(), "model.onnx")
		if err := os.WriteFile(path, model, 0o644); err != nil {
			t.Fatal(err)
		}
		switch names, err := onnx.External(path); {
		case good && (err != nil || !slices.Equal(names, []string{name})):
			t.Errorf("%s: %q, error %v", name, names, err)
		case !good && err == nil:
			t.Errorf("%s is taken: %q", name, names)
		}
	}
}
