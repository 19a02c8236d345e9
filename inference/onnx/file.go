package onnx

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"unsafe"

	"github.com/google/renameio/v2"

	"github.com/nearmiss/nearmiss/internal/mapped"
)

// WriteOption changes how [Graph.WriteFile] writes.
type WriteOption func(*writeOptions)

type writeOptions struct{ above int }

// ExternalAbove puts the weights in the external data file when the model
// would have more than this many bytes. The default is what one protobuf
// message can hold.
func ExternalAbove(bytes int) WriteOption {
	return func(o *writeOptions) { o.above = bytes }
}

const (
	// Smaller tensors stay in the model file even when others leave it.
	externalMinimum = 1 << 10
	// Tensors start on pages, so that a runtime can map them.
	externalAlign = 1 << 12
)

// WriteFile writes the model to path. A model that would reach 2 GiB gets its
// weights in path + ".data", which must stay beside it. Files are replaced
// atomically, one by one, the data file first.
func (g *Graph) WriteFile(path string, options ...WriteOption) error {
	o := writeOptions{above: maxMessage - 1}
	for _, f := range options {
		f(&o)
	}
	m, err := g.message(nil)
	if err != nil {
		return err
	}
	if m.size > o.above {
		if m, err = g.writeExternal(path + ".data"); err != nil {
			return err
		}
		if m.size >= maxMessage {
			return fmt.Errorf("write %s: the graph without its weights still reaches 2 GiB", path)
		}
	}
	return writeAtomic(path, m.writeTo)
}

// writeExternal writes the large initialisers to a file and returns the
// message that refers to them.
func (g *Graph) writeExternal(path string) (*message, error) {
	live := g.liveValues()
	placed := map[*Value]placement{}
	end := 0
	var order []*Value
	for _, v := range g.initializers {
		n := len(v.constant.Data)
		if !live[v] || n < externalMinimum {
			continue
		}
		start := (end + externalAlign - 1) / externalAlign * externalAlign
		placed[v] = placement{filepath.Base(path), start, n}
		order = append(order, v)
		end = start + n
	}
	err := writeAtomic(path, func(w io.Writer) error {
		at := 0
		zeros := make([]byte, externalAlign)
		for _, v := range order {
			if _, err := w.Write(zeros[:placed[v].offset-at]); err != nil {
				return err
			}
			if _, err := w.Write(v.constant.Data); err != nil {
				return err
			}
			at = placed[v].offset + placed[v].length
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return g.message(placed)
}

func writeAtomic(path string, write func(io.Writer) error) error {
	f, err := renameio.NewPendingFile(path, renameio.WithPermissions(0o644))
	if err == nil {
		defer f.Cleanup()
		b := bufio.NewWriterSize(f, 1<<20)
		if err = write(b); err == nil {
			err = b.Flush()
		}
		if err == nil {
			err = f.CloseAtomicallyReplace()
		}
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// ReadFile reads a model and the external data beside it. Files are mapped,
// not read: they must not be changed in place while the graph is in use, and
// [Graph.Close] unmaps them.
func ReadFile(path string, options ...DecodeOption) (*Graph, error) {
	f, err := mapped.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read onnx model: %w", err)
	}
	g, err := Decode(f.Data, append([]DecodeOption{ExternalDir(filepath.Dir(path))}, options...)...)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	g.release = append(g.release, f.Close)
	g.mapped[filepath.Base(path)] = f.Data
	return g, nil
}

// BytesBeside returns what Encode writes, but for those initialisers of some that are
// large and lie in the file which ReadFile read, or in those beside it: of these it
// says where they lie, as of external data. So a runtime that is given the folder of
// that file maps them, and they are copied neither here nor there. referred is how
// many bytes that spares.
func (g *Graph) BytesBeside(some func(*Value) bool) (model []byte, referred int, err error) {
	placed := map[*Value]placement{}
	live := g.liveValues()
	for _, v := range g.initializers {
		data := v.constant.Data
		if !live[v] || len(data) < externalMinimum || !some(v) {
			continue
		}
		for name, file := range g.mapped {
			if at, ok := within(file, data); ok {
				placed[v] = placement{name, at, len(data)}
				referred += len(data)
			}
		}
	}
	m, err := g.message(placed)
	if err != nil {
		return nil, 0, err
	}
	if m.size >= maxMessage {
		return nil, 0, fmt.Errorf("encode %q: %w", g.name, ErrTooLarge)
	}
	var b bytes.Buffer
	b.Grow(m.size)
	err = m.writeTo(&b)
	return b.Bytes(), referred, err
}

// within is where in whole, of which it may be a piece, part begins.
func within(whole, part []byte) (at int, ok bool) {
	if len(whole) == 0 || len(part) == 0 {
		return 0, false
	}
	from, to := uintptr(unsafe.Pointer(&whole[0])), uintptr(unsafe.Pointer(&part[0]))
	if to < from || to-from > uintptr(len(whole)-min(len(part), len(whole))) {
		return 0, false
	}
	return int(to - from), len(part) <= len(whole)
}
