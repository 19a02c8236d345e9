package backbone

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/onnx"
)

// ImportOptions adjust [Import].
type ImportOptions struct {
	LoadOptions
	// Tokens adds the output "tokens" (ViT and Hybrid).
	Tokens bool
	// Name is the name in the metadata of a foreign model; "": its file's.
	Name string
	// Input, Output and Pool choose, in a foreign model, the image input, the
	// value that becomes the embedding (an output or any inner value) and how it
	// is pooled to [N, D]. Empty: the only input; the only output, or one with a
	// usual name; class token for rank 3, mean for rank 4.
	Input, Output string
	Pool          Pooling
}

// Import turns the weights or model in the file src into a serving model at
// dst, which is written atomically, and returns what it is. The kind of src is
// detected from its content:
//
//   - safetensors with timm names and original ViT .npz files are built anew
//   - an ONNX file made by this package is built again with the new options
//   - any other ONNX file keeps its graph: normalisation is put in front of its
//     image input, pooling behind the chosen output
func Import(src, dst string, o ImportOptions) (Info, error) {
	info, err := importFile(src, dst, o)
	if err != nil {
		return info, fmt.Errorf("import backbone %s: %w", src, err)
	}
	return info, nil
}

func importFile(src, dst string, o ImportOptions) (info Info, err error) {
	data, unmap, err := mapFile(src)
	if err != nil {
		return info, err
	}
	defer func() { err = errors.Join(err, unmap()) }()

	if isZip(data) || isSafetensors(data) || !isONNX(data) {
		w, err := ReadWeights(data)
		if err != nil {
			return info, err
		}
		m, err := FromWeights(w, o.LoadOptions)
		if err != nil {
			return info, err
		}
		m.Source = filepath.Base(src)
		return m.write(dst, o)
	}

	f, err := parseForeign(data)
	if err != nil {
		return info, err
	}
	own, pre, err := readMetadata(f.metadata)
	if err != nil {
		return info, err
	}
	switch {
	case own.Spec != nil:
		g, err := onnx.ReadFile(src, onnx.BindBatch(1))
		if err != nil {
			return info, err
		}
		defer g.Close()
		m, _, err := FromONNX(g)
		if err != nil {
			return info, err
		}
		if o.Size != 0 && o.Size != m.Spec.Size {
			if err := m.Resize(o.Size, o.Positions); err != nil {
				return info, err
			}
		}
		if m.Preprocess, err = o.apply(m.Preprocess, m.Spec.Size); err != nil {
			return info, err
		}
		return m.write(dst, o)
	case own.Family != "":
		// Imported before: only the preprocessing can change.
		if o.Size != 0 && o.Size != own.Size {
			return info, architectureError("the model takes %d px, not the %d px asked for", own.Size, o.Size)
		}
		if o.Preprocess == nil && o.Mean == [3]float64{} && o.Std == [3]float64{} {
			if err := copyExternal(src, dst, f.external); err != nil {
				return info, err
			}
			return own, renameio.WriteFile(dst, data, 0o644)
		}
		return info, architectureError("the model was imported before, with normalisation %v / %v in its graph; import the original", pre.Mean, pre.Std)
	}
	if o.Name == "" {
		o.Name = stripExtension(src)
	}
	out, info, _, external, err := spliceForeign(data, o)
	if err != nil {
		return info, err
	}
	if err := copyExternal(src, dst, external); err != nil {
		return info, err
	}
	return info, renameio.WriteFile(dst, out, 0o644)
}

// Write builds the serving graph and writes it to dst atomically.
func (m *Model) Write(dst string, o Options) (Info, error) {
	return m.write(dst, ImportOptions{Tokens: o.Tokens})
}

func (m *Model) write(dst string, o ImportOptions) (Info, error) {
	info := m.Info()
	g, err := m.Build(Options{Tokens: o.Tokens})
	if err != nil {
		return info, err
	}
	if err := json.Unmarshal([]byte(g.Metadata()[MetadataBackbone]), &info); err != nil {
		return info, err
	}
	return info, g.WriteFile(dst)
}

// copyExternal puts the external data files of src beside dst.
func copyExternal(src, dst string, files []string) error {
	from, to := filepath.Dir(src), filepath.Dir(dst)
	if same, err := sameDir(from, to); err != nil || same {
		return err
	}
	for _, name := range files {
		if !filepath.IsLocal(name) {
			return formatError("external data %q lies outside the model's folder", name)
		}
		if err := copyFile(filepath.Join(from, name), filepath.Join(to, name)); err != nil {
			return fmt.Errorf("copy external data: %w", err)
		}
	}
	return nil
}

func sameDir(a, b string) (bool, error) {
	x, err := os.Stat(a)
	if err != nil {
		return false, err
	}
	y, err := os.Stat(b)
	if err != nil {
		return false, err
	}
	return os.SameFile(x, y), nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := renameio.NewPendingFile(to)
	if err != nil {
		return err
	}
	defer func() { _ = out.Cleanup() }()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.CloseAtomicallyReplace()
}

// Report is what [Inspect] finds in a file.
type Report struct {
	Info
	Preprocess imaging.Preprocess `json:"preprocess"`
	// Imported is true for an ONNX file that is ready to serve.
	Imported bool `json:"imported"`
	// Ignored lists tensors that the backbone does not use, such as a classifier.
	Ignored []string `json:"ignored,omitempty"`
}

// Inspect says what a weight file or ONNX model is, and how it would be
// imported with default options, without writing anything.
func Inspect(path string) (r Report, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("inspect %s: %w", path, err)
		}
	}()
	data, unmap, err := mapFile(path)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, unmap()) }()
	if isZip(data) || isSafetensors(data) || !isONNX(data) {
		w, err := ReadWeights(data)
		if err != nil {
			return r, err
		}
		m, err := FromWeights(w, LoadOptions{})
		if err != nil {
			return r, err
		}
		m.Source = filepath.Base(path)
		r.Info, r.Preprocess = m.Info(), m.Preprocess
		r.Ignored = ignored(m, w)
		return r, nil
	}
	f, err := parseForeign(data)
	if err != nil {
		return r, err
	}
	if r.Info, r.Preprocess, err = readMetadata(f.metadata); err != nil {
		return r, err
	}
	if r.Family != "" {
		r.Imported = true
		return r, nil
	}
	_, r.Info, r.Preprocess, _, err = spliceForeign(data, ImportOptions{Name: stripExtension(path)})
	return r, err
}

// ignored lists the tensors of w that m was not made of.
func ignored(m *Model, w *Weights) []string {
	used := map[string]bool{}
	src, err := recognise(&Model{}, w)
	if err != nil {
		return nil
	}
	for _, name := range m.order {
		switch s := src.(type) {
		case timmSource:
			used[s.prefix+name] = true
		case googleSource:
			files, _ := s.origin(name)
			for _, f := range files {
				used[f] = true
			}
		}
	}
	var out []string
	for _, name := range w.names {
		if !used[name] {
			out = append(out, name)
		}
	}
	return out
}

// ReadMetadata returns what an imported model's file says of itself without
// loading its weights. Family is "" for an ONNX file that was not imported.
func ReadMetadata(path string) (info Info, pre imaging.Preprocess, err error) {
	data, unmap, err := mapFile(path)
	if err != nil {
		return info, pre, fmt.Errorf("read metadata of %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, unmap()) }()
	props := map[string]string{}
	err = eachField(data, func(f field) error {
		if f.tag != modelMetadata {
			return nil
		}
		key, value, err := stringEntry(f.val)
		props[key] = value
		return err
	})
	if err == nil {
		info, pre, err = readMetadata(props)
	}
	if err != nil {
		return info, pre, fmt.Errorf("read metadata of %s: %w", path, err)
	}
	return info, pre, nil
}
