package backbone

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"

	"github.com/nearmiss/nearmiss/inference/onnx/wire"
	"github.com/nearmiss/nearmiss/internal/mapped"
)

// inliner brings weights from external files into the model.
type inliner struct {
	dir   string
	keep  bool // leave them where they are
	files map[string][]byte
	ends  []func() error
}

func (l *inliner) close() {
	for _, end := range l.ends {
		_ = end()
	}
}

// inline returns an initialiser with its data in it.
func (l *inliner) inline(t []byte) ([]byte, error) {
	name, _, location, err := wire.Initializer(t)
	if err != nil || location == "" || l.keep {
		return t, err
	}
	var out []byte
	offset, length := int64(0), int64(-1)
	err = wire.Each(t, func(f wire.Field) error {
		if f.Num == wire.TensorExternal {
			key, value, err := wire.Entry(f.Val)
			if err != nil {
				return err
			}
			to := map[string]*int64{"offset": &offset, "length": &length}[key]
			if to == nil {
				return nil
			}
			if _, err := fmt.Sscan(value, to); err != nil || *to < 0 {
				return formatError("the external data of %q have the %s %q", name, key, value)
			}
			return nil
		}
		if f.Num != wire.TensorLocation {
			out = append(out, f.Raw...)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	data, err := l.file(location)
	if err != nil {
		return nil, err
	}
	if length < 0 {
		length = int64(len(data)) - offset
	}
	if offset > int64(len(data)) || length > int64(len(data))-offset || length < 0 {
		return nil, formatError("the weight %q is %d bytes at %d of %q, which has %d: truncated", name, length, offset, location, len(data))
	}
	if length > math.MaxInt32 {
		return nil, architectureError("the weight %q alone has %d bytes: export the model in half precision", name, length)
	}
	return wire.AppendBytes(out, wire.TensorRaw, data[offset:offset+length]), nil
}

func (l *inliner) file(location string) ([]byte, error) {
	if b, ok := l.files[location]; ok {
		return b, nil
	}
	if !filepath.IsLocal(location) {
		return nil, formatError("external data %q lies outside the model's folder", location)
	}
	m, err := mapped.Within(l.dir, location)
	if errors.Is(err, mapped.ErrNotFile) || err == nil && len(m.Data) == 0 {
		return nil, formatError("external data %q is no file with content", location)
	}
	if err != nil {
		return nil, fmt.Errorf("the model's weights are in another file, which has to lie beside it: %w", err)
	}
	if l.files == nil {
		l.files = map[string][]byte{}
	}
	l.files[location] = m.Data
	l.ends = append(l.ends, m.Close)
	return m.Data, nil
}
