package ort

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

// Info describes one input or output of a model.
type Info struct {
	Name string
	Type Type
	// Shape has -1 where the model leaves a dimension open. It is empty for a
	// scalar, and also when Ranked is false.
	Shape  []int
	Ranked bool // whether the model says how many dimensions there are
}

// Static says whether every dimension is fixed by the model.
func (i Info) Static() bool { return i.Ranked && !slices.Contains(i.Shape, -1) }

// The binding can only tell names and shapes by building a second session, so
// they are read from the model itself. Field numbers are those of onnx.proto:
// ModelProto.graph 7; GraphProto.initializer 5, input 11, output 12;
// TensorProto.name 8; ValueInfoProto.name 1, type 2; TypeProto.tensor_type 1;
// Tensor.elem_type 1, shape 2; TensorShapeProto.dim 1; Dimension.dim_value 1;
// ModelProto.metadata_props 14; StringStringEntryProto.key 1, value 2.
const (
	modelGraph       = 7
	modelMetadata    = 14
	graphInitializer = 5
	graphInput       = 11
	graphOutput      = 12
	tensorName       = 8
)

// maxInfo bounds a field that is read into memory: names and shapes are small.
const maxInfo = 1 << 20

var errNotModel = errors.New("not an ONNX model")

// header is what a model says about itself, without its nodes and weights.
type header struct {
	in, out  []Info
	metadata map[string]string
}

// readHeader reads the header of the model in r, which holds size bytes.
// Weights and nodes are skipped, not read.
func readHeader(r io.ReadSeeker, size int64) (header, error) {
	s := &scanner{src: r, buf: bufio.NewReaderSize(r, 64<<10)}
	initializers := map[string]bool{}
	found := false
	h := header{metadata: map[string]string{}}
	err := s.fields(size, func(num protowire.Number, n int64) error {
		switch num {
		case modelGraph:
			found = true
		case modelMetadata:
			b, err := s.bytes(n)
			if err != nil {
				return err
			}
			var key, value string
			err = eachField(b, func(num protowire.Number, _ uint64, v []byte) error {
				switch num {
				case 1:
					key = string(v)
				case 2:
					value = string(v)
				}
				return nil
			})
			h.metadata[key] = value
			return err
		default:
			return s.skip(n)
		}
		return s.fields(n, func(num protowire.Number, n int64) error {
			switch num {
			case graphInitializer:
				return s.fields(n, func(num protowire.Number, n int64) error {
					if num != tensorName {
						return s.skip(n)
					}
					b, err := s.bytes(n)
					initializers[string(b)] = true
					return err
				})
			case graphInput, graphOutput:
				b, err := s.bytes(n)
				if err != nil {
					return err
				}
				info, err := parseInfo(b)
				if err != nil {
					return err
				}
				if num == graphInput {
					h.in = append(h.in, info)
				} else {
					h.out = append(h.out, info)
				}
				return nil
			}
			return s.skip(n)
		})
	})
	if err == nil && (!found || len(h.out) == 0) {
		err = errNotModel
	}
	if err != nil {
		return header{}, err
	}
	// Before IR version 4 initialisers are listed among the inputs.
	h.in = slices.DeleteFunc(h.in, func(i Info) bool { return initializers[i.Name] })
	return h, nil
}

// scanner walks the fields of a protobuf message without holding it.
type scanner struct {
	src io.ReadSeeker
	buf *bufio.Reader
	pos int64
}

// fields calls f for each length-delimited field of the next size bytes; f
// consumes its n bytes. Other fields are skipped.
func (s *scanner) fields(size int64, f func(num protowire.Number, n int64) error) error {
	end := s.pos + size
	for s.pos < end {
		tag, err := s.varint()
		if err != nil {
			return err
		}
		num, typ := protowire.DecodeTag(tag)
		if num < 1 {
			return fmt.Errorf("%w: field %d at byte %d", errNotModel, num, s.pos)
		}
		switch typ {
		case protowire.VarintType:
			_, err = s.varint()
		case protowire.Fixed32Type:
			err = s.skip(4)
		case protowire.Fixed64Type:
			err = s.skip(8)
		case protowire.BytesType:
			var n uint64
			if n, err = s.varint(); err != nil {
				return err
			}
			if n > uint64(end-s.pos) {
				return fmt.Errorf("%w: field %d at byte %d runs past its message", errNotModel, num, s.pos)
			}
			stop := s.pos + int64(n)
			if err = f(num, int64(n)); err == nil && s.pos != stop {
				err = fmt.Errorf("%w: field %d ends at byte %d, not %d", errNotModel, num, s.pos, stop)
			}
		default:
			err = fmt.Errorf("%w: wire type %d at byte %d", errNotModel, typ, s.pos)
		}
		if err != nil {
			return err
		}
	}
	if s.pos != end {
		return fmt.Errorf("%w: a field runs past byte %d", errNotModel, end)
	}
	return nil
}

func (s *scanner) varint() (uint64, error) {
	var v uint64
	for shift := uint(0); shift < 64; shift += 7 {
		b, err := s.buf.ReadByte()
		if err != nil {
			return 0, truncated(err)
		}
		s.pos++
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v, nil
		}
	}
	return 0, fmt.Errorf("%w: bad number at byte %d", errNotModel, s.pos)
}

func (s *scanner) skip(n int64) error {
	if n > int64(s.buf.Buffered())+(128<<10) {
		ahead := n - int64(s.buf.Buffered())
		if _, err := s.src.Seek(ahead, io.SeekCurrent); err != nil {
			return err
		}
		s.buf.Reset(s.src)
	} else if _, err := io.CopyN(io.Discard, s.buf, n); err != nil {
		return truncated(err)
	}
	s.pos += n
	return nil
}

func (s *scanner) bytes(n int64) ([]byte, error) {
	if n > maxInfo {
		return nil, fmt.Errorf("%w: a name or shape of %d bytes", errNotModel, n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(s.buf, b); err != nil {
		return nil, truncated(err)
	}
	s.pos += n
	return b, nil
}

func truncated(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it ends in the middle", errNotModel)
	}
	return err
}

// parseInfo reads a ValueInfoProto.
func parseInfo(b []byte) (Info, error) {
	var info Info
	err := eachField(b, func(num protowire.Number, _ uint64, v []byte) error {
		switch num {
		case 1:
			info.Name = string(v)
		case 2: // TypeProto
			return eachField(v, func(num protowire.Number, _ uint64, v []byte) error {
				if num != 1 {
					return nil
				}
				return eachField(v, func(num protowire.Number, x uint64, v []byte) error {
					switch num {
					case 1:
						info.Type = Type(x)
					case 2:
						info.Ranked = true
						return eachField(v, func(num protowire.Number, _ uint64, v []byte) error {
							if num != 1 {
								return nil
							}
							dim := -1
							err := eachField(v, func(num protowire.Number, x uint64, _ []byte) error {
								if num == 1 && int64(x) >= 0 {
									dim = int(x)
								}
								return nil
							})
							info.Shape = append(info.Shape, dim)
							return err
						})
					}
					return nil
				})
			})
		}
		return nil
	})
	return info, err
}

// eachField calls f with the number and the varint or bytes of each field.
func eachField(b []byte, f func(num protowire.Number, x uint64, v []byte) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("%w: %v", errNotModel, protowire.ParseError(n))
		}
		b = b[n:]
		var x uint64
		var v []byte
		switch typ {
		case protowire.VarintType:
			x, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			v, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return fmt.Errorf("%w: %v", errNotModel, protowire.ParseError(n))
		}
		b = b[n:]
		if err := f(num, x, v); err != nil {
			return err
		}
	}
	return nil
}
