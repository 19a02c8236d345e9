package backbone

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/onnx/wire"
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
	// Note is called, with a sentence each, with what was taken from elsewhere than the
	// weights: the normalisation, the number of attention heads, what was left out.
	// Nil: it is not reported.
	Note func(sentence string)
	// Layers names, in a foreign model, values whose vectors the score may use, in
	// order of depth. Nil: the blocks that are found by their structure.
	Layers []string

	// Run runs a model once on so many test images, for what the file does not tell
	// and to see that it works; package inference has one. Nil: the model is not
	// tried.
	Run func(path string, images int) (map[string]Output, error)

	path    string // of the file
	work    string // folder for models that are tried
	inspect bool   // nothing is written
}

func (o ImportOptions) note(format string, a ...any) {
	if o.Note != nil {
		o.Note(fmt.Sprintf(format, a...))
	}
}

// Import turns the weights or model in the file src into a serving model at
// dst, which is written atomically, and returns what it is. The kind of src is
// detected from its content:
//
//   - safetensors with timm names and original ViT .npz files are built anew
//   - an ONNX file made by this package is built again with the new options
//   - any other ONNX file keeps its graph: normalisation is put in front of its
//     image input, pooling behind the chosen output
func Import(src, dst string, o ImportOptions) (info Info, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("import backbone %s: %w", src, err)
		}
	}()
	data, unmap, err := mapFile(src)
	if err != nil {
		return info, err
	}
	defer func() { err = errors.Join(err, unmap()) }()

	if isZip(data) || isSafetensors(data) || !isONNX(data) {
		m, err := fromFile(src, data, o.LoadOptions)
		if err != nil {
			return info, err
		}
		for _, s := range m.assumptions() {
			o.note("%s", s)
		}
		return m.Write(dst, Options{Tokens: o.Tokens})
	}

	f, err := wire.Parse(data)
	if err != nil {
		return info, err
	}
	own, pre, err := readMetadata(f.Metadata)
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
			if err := m.Resize(o.Size); err != nil {
				return info, err
			}
		}
		if m.Preprocess, err = o.apply(m.Preprocess, m.Spec.Size); err != nil {
			return info, err
		}
		return m.Write(dst, Options{Tokens: o.Tokens})
	case own.Family != "":
		// Imported before: only the preprocessing can change.
		if o.Size != 0 && o.Size != own.Size {
			return info, architectureError("the model takes %d px, not the %d px asked for", own.Size, o.Size)
		}
		if o.Preprocess == nil && o.Mean == nil && o.Std == nil {
			if err := copyExternal(src, dst, f.External); err != nil {
				return info, err
			}
			return own, renameio.WriteFile(dst, data, 0o644)
		}
		return info, architectureError("the model was imported before, with normalisation %v / %v in its graph; import the original", pre.Mean, pre.Std)
	}
	o.Name = cmp.Or(o.Name, stripExtension(src))
	o.path = src
	o.work = filepath.Dir(dst)
	r, err := importForeign(data, o)
	if err != nil {
		return info, err
	}
	return r.info, renameio.WriteFile(dst, r.model, 0o644)
}

// Write builds the serving graph and writes it to dst atomically.
func (m *Model) Write(dst string, o Options) (Info, error) {
	info := m.Info()
	g, err := m.Build(o)
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
	// PreprocessFrom and HeadsFrom say where that, and the number of attention
	// heads, was taken from, of a file of weights.
	PreprocessFrom string `json:"preprocess_from,omitempty"`
	HeadsFrom      string `json:"heads_from,omitempty"`
	// Layers are the places in a foreign model that the score may use.
	Layers []Layer `json:"layers,omitempty"`
	// Imported is true for an ONNX file that is ready to serve.
	Imported bool `json:"imported"`
	// Ignored lists tensors that the backbone does not use, such as a classifier.
	Ignored []string `json:"ignored,omitempty"`
}

// Inspect says what a weight file or ONNX model is, and how it would be
// imported, without writing anything.
func Inspect(path string, o ImportOptions) (r Report, err error) {
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
		m, err := fromFile(path, data, o.LoadOptions)
		if err != nil {
			return r, err
		}
		r.Info, r.Preprocess = m.Info(), m.Preprocess
		r.PreprocessFrom, r.HeadsFrom, r.Ignored = m.PreprocessFrom, m.HeadsFrom, m.Left
		return r, nil
	}
	f, err := wire.Parse(data)
	if err != nil {
		return r, err
	}
	if r.Info, r.Preprocess, err = readMetadata(f.Metadata); err != nil {
		return r, err
	}
	if r.Family != "" {
		r.Imported = true
		r.Layers, err = readLayers(f.Metadata)
		return r, err
	}
	o.Name = cmp.Or(o.Name, stripExtension(path))
	o.path = path
	o.inspect = true
	made, err := importForeign(data, o)
	if err != nil {
		return r, err
	}
	r.Info, r.Preprocess, r.PreprocessFrom = made.info, made.pre, made.from
	r.Layers = made.layers
	return r, nil
}

// assumptions are sentences about what the weights do not say themselves.
func (m *Model) assumptions() []string {
	p := m.Preprocess
	how := fmt.Sprintf("images are resized to %d px (%s)", p.Resize, p.Interpolation)
	if p.Squash {
		how = fmt.Sprintf("images are squeezed to %d px (%s)", p.Crop, p.Interpolation)
	} else if p.Resize != p.Crop {
		how += fmt.Sprintf(", cropped to %d px", p.Crop)
	}
	out := []string{fmt.Sprintf("%s and normalised with mean %.4g,%.4g,%.4g and std %.4g,%.4g,%.4g (%s)",
		how, p.Mean[0], p.Mean[1], p.Mean[2], p.Std[0], p.Std[1], p.Std[2], m.PreprocessFrom)}
	if m.HeadsFrom != "" {
		out = append(out, fmt.Sprintf("%d attention heads (%s)", m.Spec.Heads, m.HeadsFrom))
	}
	if len(m.Left) > 0 {
		out = append(out, "not used: "+sortedNames(m.Left, 8))
	}
	return out
}

// ReadMetadata returns what an imported model's file says of itself without
// loading its weights. Family is "" for an ONNX file that was not imported.
func ReadMetadata(path string) (info Info, pre imaging.Preprocess, err error) {
	props, err := readProperties(path)
	if err != nil {
		return info, pre, err
	}
	if info, pre, err = readMetadata(props); err != nil {
		return info, pre, fmt.Errorf("read metadata of %s: %w", path, err)
	}
	return info, pre, nil
}

// readProperties are the metadata properties of a model's file.
func readProperties(path string) (props map[string]string, err error) {
	data, unmap, err := mapFile(path)
	if err != nil {
		return nil, fmt.Errorf("read metadata of %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, unmap()) }()
	m, err := wire.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("read metadata of %s: %w", path, err)
	}
	return m.Metadata, nil
}
