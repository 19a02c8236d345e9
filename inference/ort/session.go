package ort

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/nearmiss/nearmiss/internal/mapped"
	onnxruntime "github.com/yalue/onnxruntime_go"
)

// Options of a session. The zero value is a session on the CPU with ONNX
// Runtime's own number of threads.
type Options struct {
	Device Device
	// IntraOpThreads is the number of threads that one operator uses; 0 leaves
	// it to ONNX Runtime (one per physical core). With 1, Run computes on the
	// thread of its caller, and concurrent Runs scale over cores.
	IntraOpThreads int
	// NoSpinning lets idle threads sleep at once instead of spinning for the
	// next operator: slower alone, kinder to neighbours.
	NoSpinning bool
	// Profile, when set, is the prefix of a trace file that ONNX Runtime
	// writes when the session is closed (Chrome trace format).
	Profile string
	// Folder is where OpenBytes looks for external data that the model refers to.
	Folder string
	// Half says that the model computes in 16 bits, which TensorRT needs as a setting.
	Half bool
	// KeepEngines keeps what TensorRT builds for the model, which takes minutes, in the
	// user's cache for the next time that it is opened.
	KeepEngines bool

	exact   bool // takes no more of an accelerator's memory than is asked for
	capture bool // records its first run where the device can: see Captured
}

// ErrClosed is returned by a Run on a closed session.
var ErrClosed = errors.New("session is closed")

// Session is one loaded model. Run and RunInto may be called concurrently.
type Session struct {
	header
	name string
	mu   sync.RWMutex // held for reading by every Run, for writing by Close
	s    *onnxruntime.DynamicAdvancedSession
	// engines is the folder of engines that the session found, until it has run once.
	engines atomic.Pointer[string]
}

// Open loads the model file at path, with its external data beside it.
func Open(path string, o Options) (*Session, error) {
	if err := Load(); err != nil {
		return nil, err
	}
	f, err := mapped.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open model: %w", err)
	}
	defer f.Close()
	return open(path, f.Data, filepath.Dir(path), o, func(in, out []string, so *onnxruntime.SessionOptions) (*onnxruntime.DynamicAdvancedSession, error) {
		return onnxruntime.NewDynamicAdvancedSession(path, in, out, so)
	})
}

// OpenBytes loads an encoded model of at most 2 GiB, with external data in
// Options.Folder or without.
// ONNX Runtime keeps a copy of its own.
func OpenBytes(model []byte, o Options) (*Session, error) {
	if err := Load(); err != nil {
		return nil, err
	}
	return open("model in memory", model, o.Folder, o,
		func(in, out []string, so *onnxruntime.SessionOptions) (*onnxruntime.DynamicAdvancedSession, error) {
			return onnxruntime.NewDynamicAdvancedSessionWithONNXData(model, in, out, so)
		})
}

func open(name string, model []byte, dir string, o Options,
	create func(in, out []string, so *onnxruntime.SessionOptions) (*onnxruntime.DynamicAdvancedSession, error),
) (*Session, error) {
	h, err := readHeader(model)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	if len(h.in) == 0 {
		return nil, fmt.Errorf("open %s: it has no input: nothing to run it on", name)
	}
	engines := ""
	if o.KeepEngines && o.Device.Kind == tensorrt {
		if engines, err = engineFolder(model, dir); err != nil {
			return nil, fmt.Errorf("open %s: %w", name, err)
		}
	}
	so, err := o.session(engines)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	defer so.Destroy()
	session := &Session{name: name, header: h}
	if hasEngines(engines) {
		session.engines.Store(&engines)
	}
	if session.s, err = create(names(h.in), names(h.out), so); err != nil {
		return nil, session.blame(fmt.Errorf("open %s on %s: %s", name, o.Device, oneLine(err)))
	}
	return session, nil
}

func names(infos []Info) []string {
	out := make([]string, len(infos))
	for i, info := range infos {
		out[i] = info.Name
	}
	return out
}

// session translates the options; the caller destroys the result. TensorRT keeps
// engines in a folder, if any.
func (o Options) session(engines string) (*onnxruntime.SessionOptions, error) {
	so, err := onnxruntime.NewSessionOptions()
	if err != nil {
		return nil, errors.New(oneLine(err))
	}
	steps := []func() error{
		func() error {
			return so.SetGraphOptimizationLevel(onnxruntime.GraphOptimizationLevelEnableAll)
		},
		func() error { return so.SetIntraOpNumThreads(o.IntraOpThreads) },
	}
	if o.NoSpinning {
		steps = append(steps, func() error {
			return so.AddSessionConfigEntry("session.intra_op.allow_spinning", "0")
		})
	}
	if o.Profile != "" {
		steps = append(steps, func() error { return so.EnableProfiling(o.Profile) })
	}
	if o.Folder != "" {
		steps = append(steps, func() error {
			return so.AddSessionConfigEntry("session.model_external_initializers_file_folder_path", o.Folder)
		})
	}
	for _, step := range steps {
		if err := step(); err != nil {
			_ = so.Destroy()
			return nil, errors.New(oneLine(err))
		}
	}
	if err := o.append(so, engines); err != nil {
		_ = so.Destroy()
		return nil, err
	}
	return so, nil
}

// Inputs describes the model's inputs, in the order of Run's first argument.
func (s *Session) Inputs() []Info { return slices.Clone(s.in) }

// Outputs describes the model's outputs, in the order of Run's result.
func (s *Session) Outputs() []Info { return slices.Clone(s.out) }

// Metadata returns the model's own properties (metadata_props).
func (s *Session) Metadata() map[string]string { return maps.Clone(s.metadata) }

// Run computes the outputs for the inputs, which are in the order of Inputs.
// The caller closes the returned tensors. When ctx ends the run stops between
// two operators, and the error wraps ctx's.
func (s *Session) Run(ctx context.Context, in []*Tensor) ([]*Tensor, error) {
	out := make([]*Tensor, len(s.out))
	if err := s.run(ctx, in, out); err != nil {
		return nil, err
	}
	return out, nil
}

// RunInto computes the outputs into the given tensors. A nil entry of out is
// allocated and filled in; the caller closes it. An input must not share
// memory with an output.
func (s *Session) RunInto(ctx context.Context, in, out []*Tensor) error {
	return s.run(ctx, in, out)
}

// believed is how many bytes of an output are allocated because the model says so. What
// is larger waits for the computation: a file of some bytes may say anything.
const believed = 64 << 20

func (s *Session) run(ctx context.Context, in, out []*Tensor) (err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.s == nil {
		return fmt.Errorf("run %s: %w", s.name, ErrClosed)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("run %s: %w", s.name, err)
	}
	if len(in) != len(s.in) || len(out) != len(s.out) {
		return fmt.Errorf("run %s: got %d inputs and %d outputs, want %d and %d",
			s.name, len(in), len(out), len(s.in), len(s.out))
	}
	var c call
	defer c.free()

	inputs := make([]onnxruntime.Value, len(in))
	for i, t := range in {
		if err := s.in[i].accepts(t); err != nil {
			return fmt.Errorf("run %s: input %q: %w", s.name, s.in[i].Name, err)
		}
		if inputs[i], err = c.value(t, false); err != nil {
			return fmt.Errorf("run %s: input %q: %s", s.name, s.in[i].Name, oneLine(err))
		}
	}
	var fresh []int // outputs that this call allocates, ahead of the run or in it
	defer func() {
		if err != nil {
			for _, i := range fresh {
				out[i].Close()
				out[i] = nil
			}
		}
	}()
	outputs := make([]onnxruntime.Value, len(out))
	for i, t := range out {
		if t == nil {
			fresh = append(fresh, i)
			if size, err := byteSize(s.out[i].Type, s.out[i].Shape); !s.out[i].Static() || err != nil || size > believed {
				if typ := s.out[i].Type; typ == Float16 || typ == BFloat16 {
					// The binding counts a byte for each element, fails, and keeps what it has made.
					return fmt.Errorf("run %s: output %q: give a %s tensor: its shape is not known before, or is very large", s.name, s.out[i].Name, typ)
				}
				continue // ONNX Runtime allocates it
			}
			if t, err = Zeros(s.out[i].Type, s.out[i].Shape...); err != nil {
				return fmt.Errorf("run %s: output %q: %w", s.name, s.out[i].Name, err)
			}
			out[i] = t
		} else if err := s.out[i].accepts(t); err != nil {
			return fmt.Errorf("run %s: output %q: %w", s.name, s.out[i].Name, err)
		}
		if outputs[i], err = c.value(t, true); err != nil {
			return fmt.Errorf("run %s: output %q: %s", s.name, s.out[i].Name, oneLine(err))
		}
	}

	stopped, err := s.execute(ctx, inputs, outputs)
	runtime.KeepAlive(in)
	runtime.KeepAlive(out)
	if err != nil {
		if stopped && ctx.Err() != nil {
			return fmt.Errorf("run %s: %w", s.name, ctx.Err())
		}
		return s.blame(fmt.Errorf("run %s: %s", s.name, oneLine(err)))
	}
	s.engines.Store(nil)
	for _, copyBack := range c.results {
		copyBack()
	}
	for i, v := range outputs {
		if out[i] != nil {
			continue
		}
		x, e := adopt(v)
		if e != nil { // the others are adopted, and closed, all the same
			err = errors.Join(err, fmt.Errorf("run %s: output %q: %s", s.name, s.out[i].Name, oneLine(e)))
		}
		out[i] = x
	}
	return err
}

// execute runs the session under ctx; stopped says whether ctx ended it.
func (s *Session) execute(ctx context.Context, in, out []onnxruntime.Value) (stopped bool, err error) {
	if ctx.Done() == nil {
		return false, s.s.Run(in, out)
	}
	o, err := onnxruntime.NewRunOptions()
	if err != nil {
		return false, err
	}
	defer o.Destroy()
	terminated := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = o.Terminate()
		close(terminated)
	})
	err = s.s.RunWithOptions(in, out, o)
	if !stop() {
		<-terminated // before o is destroyed
		stopped = true
	}
	return stopped, err
}

// accepts says why a tensor cannot be this input or output.
func (i Info) accepts(t *Tensor) error {
	if t == nil {
		return errors.New("no tensor is given")
	}
	if i.Type != 0 && t.typ != i.Type {
		return fmt.Errorf("got %s, want %s", t.typ, i.Type)
	}
	if !i.Ranked {
		return nil
	}
	ok := len(t.shape) == len(i.Shape)
	for d := 0; ok && d < len(t.shape); d++ {
		ok = i.Shape[d] == -1 || i.Shape[d] == t.shape[d]
	}
	if !ok {
		return fmt.Errorf("got shape %v, want %v", t.shape, i.Shape)
	}
	return nil
}

// call holds what one Run borrows from the binding.
type call struct {
	scalars []onnxruntime.Value
	results []func()
}

func (c *call) value(t *Tensor, output bool) (onnxruntime.Value, error) {
	if t.h.value != nil {
		return t.h.value, nil
	}
	v, copyBack, err := scalarValue(t)
	if err != nil {
		return nil, err
	}
	c.scalars = append(c.scalars, v)
	if output {
		c.results = append(c.results, copyBack)
	}
	return v, nil
}

func (c *call) free() {
	for _, v := range c.scalars {
		_ = v.Destroy()
	}
}

// adopt turns an output that ONNX Runtime allocated, and the binding copied to
// Go memory, into a tensor.
func adopt(v onnxruntime.Value) (*Tensor, error) {
	if v == nil {
		return nil, errors.New("it was not computed")
	}
	defer v.Destroy()
	dims := v.GetShape()
	shape := make([]int, len(dims))
	for i, d := range dims {
		shape[i] = int(d)
	}
	switch t := v.(type) {
	case *onnxruntime.Tensor[float32]:
		return NewTensor(shape, t.GetData())
	case *onnxruntime.Tensor[float64]:
		return NewTensor(shape, t.GetData())
	case *onnxruntime.Tensor[int64]:
		return NewTensor(shape, t.GetData())
	case *onnxruntime.Tensor[int32]:
		return NewTensor(shape, t.GetData())
	case *onnxruntime.Tensor[int16]:
		return NewTensor(shape, t.GetData())
	case *onnxruntime.Tensor[int8]:
		return NewTensor(shape, t.GetData())
	case *onnxruntime.Tensor[uint64]:
		return NewTensor(shape, t.GetData())
	case *onnxruntime.Tensor[uint32]:
		return NewTensor(shape, t.GetData())
	case *onnxruntime.Tensor[uint16]:
		return NewTensor(shape, t.GetData())
	case *onnxruntime.Tensor[uint8]:
		return NewTensor(shape, t.GetData())
	case *onnxruntime.Tensor[bool]:
		return NewTensor(shape, t.GetData())
	}
	return nil, fmt.Errorf("a %T without a fixed shape is not supported: give it a static shape", v)
}

// Close unloads the model, after the Runs that are under way.
func (s *Session) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.s == nil {
		return nil
	}
	err := s.s.Destroy()
	s.s = nil
	return err
}
