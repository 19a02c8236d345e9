package ort

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"unsafe"

	"github.com/nearmiss/nearmiss/inference/onnx/wire"
)

// Memory is the memory of a device, with tensors that stay there between Runs: nothing
// of them crosses the bus. Only sessions on the same device may use them. On the CPU it
// is ONNX Runtime's own memory. Its methods may be called concurrently.
type Memory struct {
	o   Options
	api api

	mu        sync.Mutex
	copies    map[Type]*Session // a model of one Identity each
	allocator unsafe.Pointer
	tensors   int // that are not closed
	closed    bool
}

// OpenMemory returns the memory of the device that o names. It fails where the device
// does not give back what was written to it.
func OpenMemory(o Options) (*Memory, error) {
	device := o.Device
	if device.Kind == tensorrt {
		device.Kind = cuda // the same memory
	}
	m := &Memory{
		o:      Options{Device: device, IntraOpThreads: 1, NoSpinning: true, exact: true},
		copies: map[Type]*Session{},
	}
	err := m.open()
	if err == nil {
		err = m.try()
	}
	if err != nil {
		return nil, fmt.Errorf("memory of device %s: %w", o.Device, errors.Join(err, m.Close()))
	}
	return m, nil
}

func (m *Memory) open() (err error) {
	if m.api, err = newAPI(); err != nil {
		return err
	}
	s, err := m.copier(Float)
	if err != nil {
		return err
	}
	m.allocator, err = m.api.allocator(s.s, m.o.Device)
	return err
}

// try writes to the memory, has it copied there, and reads it.
func (m *Memory) try() error {
	want := []float32{1, -2, 3.5, 1e-20, -1e20, 0.1}
	from, err := NewTensor([]int{2, 3}, slices.Clone(want))
	if err != nil {
		return err
	}
	defer from.Close()
	back, err := Zeros(Float, 2, 3)
	if err != nil {
		return err
	}
	defer back.Close()
	last := from
	for range 2 {
		x, err := m.Tensor(Float, 2, 3)
		if err != nil {
			return err
		}
		defer x.Close()
		if err := m.Copy(x, last); err != nil {
			return err
		}
		last = x
	}
	if err := m.Copy(back, last); err != nil {
		return err
	}
	if got := back.Float32s(); !slices.Equal(got, want) {
		return fmt.Errorf("%v was written and %v read", want, got)
	}
	return nil
}

// Tensor returns a tensor in this memory, whose elements are not set. Its Bytes are out
// of reach: see Copy. It must be closed; the memory outlives it.
func (m *Memory) Tensor(t Type, shape ...int) (*Tensor, error) {
	n, err := byteSize(t, shape)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, fmt.Errorf("create %s tensor of shape %v: nothing of it can be kept on a device", t, shape)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, fmt.Errorf("create %s tensor: %w", t, ErrClosed)
	}
	value, err := m.api.tensor(m.allocator, t, shape)
	if err != nil {
		return nil, fmt.Errorf("create %s tensor of shape %v on device %s: %s", t, shape, m.o.Device, oneLine(err))
	}
	v, err := newForeignValue(value, func() { m.release(value) })
	if err != nil {
		m.api.release(releaseValue, value)
		return nil, err
	}
	m.tensors++
	return newTensor(t, shape, nil, &handle{value: v}), nil
}

func (m *Memory) release(value unsafe.Pointer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.api.release(releaseValue, value)
	m.tensors--
	_ = m.end()
}

// Copy sets the elements of a tensor to those of another of the same type and shape;
// each is in this memory or in Go's. No Run may use them meanwhile.
func (m *Memory) Copy(to, from *Tensor) error {
	if to.typ != from.typ || !slices.Equal(to.shape, from.shape) {
		return fmt.Errorf("copy a tensor: %s%v to %s%v", from.typ, from.shape, to.typ, to.shape)
	}
	s, err := m.copier(from.typ)
	if err != nil {
		return fmt.Errorf("copy a tensor: %w", err)
	}
	return s.RunInto(context.Background(), []*Tensor{from}, []*Tensor{to})
}

// copier returns the session that copies tensors of a type of any shape. The C interface
// has a function for that (CopyTensors), which knows only devices whose providers were
// loaded as plug-ins.
func (m *Memory) copier(t Type) (*Session, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, ErrClosed
	}
	if s := m.copies[t]; s != nil {
		return s, nil
	}
	g := wire.Graph{
		Name:    "copy",
		Nodes:   [][]byte{wire.Node{Op: "Identity", Inputs: []string{"x"}, Outputs: []string{"y"}}.Encode()},
		Inputs:  []wire.ValueInfo{{Name: "x", Elem: int(t)}},
		Outputs: []wire.ValueInfo{{Name: "y", Elem: int(t)}},
	}
	model := wire.AppendBytes(wire.AppendInt(nil, wire.ModelVersion, 8), wire.ModelGraph, g.Encode())
	s, err := OpenBytes(wire.AppendBytes(model, wire.ModelOpset, wire.AppendInt(nil, 2, 17)), m.o)
	if err == nil {
		m.copies[t] = s
	}
	return s, err
}

// Close gives the memory back, once its last tensor is closed.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return m.end()
}

// end closes what is left when nothing needs it any more.
func (m *Memory) end() error {
	if !m.closed || m.tensors > 0 {
		return nil
	}
	if m.allocator != nil {
		m.api.release(releaseAllocator, m.allocator)
		m.allocator = nil
	}
	var errs []error
	for _, s := range m.copies {
		errs = append(errs, s.Close())
	}
	clear(m.copies)
	return errors.Join(errs...)
}
