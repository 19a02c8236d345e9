package ort

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
)

// Model is what Capture opens: a [Session], or something that stands for one.
type Model interface {
	RunInto(ctx context.Context, in, out []*Tensor) error
	Close() error
}

// Captured is a model that takes inputs of one shape each. They and the outputs have
// places of their own in the device's memory, which stay the same, so that CUDA can
// record what a run launches, as a CUDA graph, and launch all of it at once ever after.
// On other devices nothing is recorded, and all else is the same. Its methods may be
// called concurrently; one run is computed at a time.
type Captured struct {
	model   Model
	memory  *Memory
	in, out []*Tensor // on the device

	mu   sync.RWMutex // held for reading by every Run, for writing by Close
	work chan func()  // nil: closed
	done chan struct{}
}

// Capture opens a model by calling open with o, changed so that it is recorded, and runs
// it on in. The inputs and outputs are those of a run of the same model, which say what
// shapes there are: every output is there.
func Capture(ctx context.Context, o Options, open func(o Options) (Model, error), in, out []*Tensor) (*Captured, error) {
	c := &Captured{work: make(chan func()), done: make(chan struct{})}
	// ONNX Runtime keeps a recording for the thread that made it.
	go func() {
		defer close(c.done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for f := range c.work {
			f()
		}
	}()
	o.capture = true
	err := c.do(func() (err error) {
		if c.memory, err = OpenMemory(o); err != nil {
			return err
		}
		if c.in, err = c.memory.like(in); err != nil {
			return err
		}
		if c.out, err = c.memory.like(out); err != nil {
			return err
		}
		model, err := open(o)
		if err != nil {
			return err
		}
		c.model = model
		return c.run(ctx, in, make([]*Tensor, len(out)))
	})
	if err != nil {
		return nil, fmt.Errorf("capture a model on %s: %w", o.Device, errors.Join(err, c.Close()))
	}
	return c, nil
}

// like makes tensors of the types and shapes of others.
func (m *Memory) like(others []*Tensor) (out []*Tensor, err error) {
	for _, x := range others {
		y, err := m.Tensor(x.typ, x.shape...)
		if err != nil {
			CloseAll(out...)
			return nil, err
		}
		out = append(out, y)
	}
	return out, nil
}

// do calls f on the thread of the model.
func (c *Captured) do(f func() error) error {
	done := make(chan error, 1)
	c.work <- func() { done <- f() }
	return <-done
}

// Run computes the outputs for inputs of the shapes that were captured. Those that are
// nil in out are left where they are. When ctx ends the computation stops, not a copy.
func (c *Captured) Run(ctx context.Context, in, out []*Tensor) error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.work == nil {
		return fmt.Errorf("run a captured model: %w", ErrClosed)
	}
	if len(in) != len(c.in) || len(out) != len(c.out) {
		return fmt.Errorf("run a captured model: got %d inputs and %d outputs, want %d and %d", len(in), len(out), len(c.in), len(c.out))
	}
	return c.do(func() error { return c.run(ctx, in, out) })
}

func (c *Captured) run(ctx context.Context, in, out []*Tensor) error {
	for i, x := range in {
		if err := c.memory.Copy(c.in[i], x); err != nil {
			return err
		}
	}
	if err := c.model.RunInto(ctx, c.in, c.out); err != nil {
		return err
	}
	for i, x := range out {
		if x == nil {
			continue
		}
		if err := c.memory.Copy(x, c.out[i]); err != nil {
			return err
		}
	}
	return nil
}

// Close unloads the model, after the Runs that are under way.
func (c *Captured) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.work == nil {
		return nil
	}
	err := c.do(func() error {
		var errs []error
		if c.model != nil {
			errs = append(errs, c.model.Close())
		}
		CloseAll(c.in...)
		CloseAll(c.out...)
		if c.memory != nil {
			errs = append(errs, c.memory.Close())
		}
		return errors.Join(errs...)
	})
	close(c.work)
	<-c.done
	c.work = nil
	return err
}
