package backbone

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nlpodyssey/gopickle/pickle"
	"github.com/nlpodyssey/gopickle/types"
)

// PyTorch's files (.pth, .pt, .bin) are pickles: programs for a small machine
// that could call anything. Here they can call nothing: the machine is
// nlpodyssey/gopickle, every global that a file names is looked up in a short
// list, whose entries only build values in memory, and anything else refuses the
// file. Two layouts: since PyTorch 1.6 a zip archive with data.pkl and one member
// for each storage; before, a run of pickles with the storages behind. Source:
// torch/serialization.py.

// maxPickle bounds a pickle's program; the weights are not part of it.
const maxPickle = 8 << 20

// maxNesting bounds dictionaries within dictionaries.
const maxNesting = 8

// torchMagic opens a file of the older layout.
var torchMagic = []byte{0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19}

func isTorchPickle(b []byte) bool { return len(b) > 2 && b[0] == 0x80 && b[1] >= 2 && b[1] <= 5 }

// torchStorages are the storage classes by name.
var torchStorages = map[string]elementType{
	"FloatStorage": typeF32, "DoubleStorage": typeF64, "HalfStorage": typeF16, "BFloat16Storage": typeBF16,
	"LongStorage": typeI64, "IntStorage": typeI32, "ShortStorage": typeI16, "CharStorage": typeI8,
	"ByteStorage": typeU8, "BoolStorage": typeBool,
}

// torchIgnored are classes of values that checkpoints carry beside the weights
// and that are not used.
var torchIgnored = []string{
	"argparse.Namespace", "collections.defaultdict", "collections.Counter", "numpy.core.multiarray.scalar",
	"numpy._core.multiarray.scalar", "numpy.dtype", "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct",
	"numpy.ndarray", "_codecs.encode", "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath", "datetime.datetime",
	"torch.device", "torch.Size", "torch.float32", "torch.float16", "torch.bfloat16", "builtins.set", "__builtin__.set",
	"builtins.slice", "builtins.int", "builtins.float", "builtins.str", "builtins.bool", "builtins.object", "builtins.complex",
}

// torchStorage is a storage that a pickle refers to.
type torchStorage struct {
	typ      elementType
	key      string
	elements int
}

// torchTensor is a view of a storage.
type torchTensor struct {
	storage       torchStorage
	offset        int
	shape, stride []int
}

// torchClass is a storage class by itself.
type torchClass struct{ typ elementType }

// torchCall is a function that only builds a value.
type torchCall func(args []any) (any, error)

func (f torchCall) Call(args ...any) (any, error) { return f(args) }

// opaque is a value that is not used. It takes whatever the pickle does to it.
type opaque struct{}

func (opaque) Call(...any) (any, error)    { return opaque{}, nil }
func (opaque) PyNew(...any) (any, error)   { return opaque{}, nil }
func (opaque) PySetState(any) error        { return nil }
func (opaque) PyDictSet(_, _ any) error    { return nil }
func (opaque) Set(_, _ any)                {}
func (opaque) Append(any)                  {}
func (opaque) PyAttrSet(string, any) error { return nil }
func (opaque) Get(any) (any, bool)         { return nil, false }

// readTorch reads a PyTorch archive: z, or the older layout in b where z is nil.
func readTorch(b []byte, z *zip.Reader) (w *Weights, err error) {
	defer func() {
		if p := recover(); p != nil { // the machine's own checks are not complete
			w, err = nil, formatError("the pickle is malformed: %v", p)
		}
	}()
	if z != nil {
		return readTorchZip(b, z)
	}
	return readTorchLegacy(b)
}

func readTorchZip(b []byte, z *zip.Reader) (*Weights, error) {
	members := map[string]*zip.File{}
	var program *zip.File
	folder := ""
	for _, f := range z.File {
		members[f.Name] = f
		if dir, ok := strings.CutSuffix(f.Name, "data.pkl"); ok && (program == nil || len(dir) < len(folder)) {
			program, folder = f, dir
		}
	}
	if program == nil {
		return nil, formatError("a PyTorch archive without data.pkl")
	}
	if _, script := members[folder+"constants.pkl"]; script {
		return nil, formatError("this is a TorchScript model, a program: save its state_dict() instead, or export it to ONNX")
	}
	if f := members[folder+"byteorder"]; f != nil {
		order, err := zipBytes(b, f)
		if err != nil {
			return nil, err
		}
		if string(order) != "little" {
			return nil, formatError("the PyTorch archive's byte order is %.10q, want little", order)
		}
	}
	if program.UncompressedSize64 > maxPickle {
		return nil, formatError("the pickle in the PyTorch archive has %d bytes, want at most %d", program.UncompressedSize64, maxPickle)
	}
	text, err := zipBytes(b, program)
	if err != nil {
		return nil, err
	}
	root, _, err := unpickle(text)
	if err != nil {
		return nil, err
	}
	return torchWeights(root, func(s torchStorage) (func() ([]byte, error), int, error) {
		f := members[folder+"data/"+s.key]
		if f == nil {
			return nil, 0, formatError("the storage %q is missing in the PyTorch archive: truncated", s.key)
		}
		if f.Method != zip.Store {
			return nil, 0, formatError("the storage %q is compressed, which PyTorch never does", s.key)
		}
		return func() ([]byte, error) { return zipBytes(b, f) }, int(min(f.UncompressedSize64, math.MaxInt64)), nil
	})
}

// zipBytes reads a member, without a copy where it is stored uncompressed.
func zipBytes(b []byte, f *zip.File) ([]byte, error) {
	if f.Method == zip.Store {
		at, err := f.DataOffset()
		if err != nil {
			return nil, formatError("zip member %q: %v", f.Name, err)
		}
		size := f.UncompressedSize64
		if at < 0 || at > int64(len(b)) || size != f.CompressedSize64 || size > uint64(int64(len(b))-at) {
			return nil, formatError("zip member %q of %d bytes at %d in a file of %d: truncated or corrupt", f.Name, size, at, len(b))
		}
		return b[at : at+int64(size) : at+int64(size)], nil
	}
	if f.UncompressedSize64 > maxPickle {
		return nil, formatError("zip member %q claims %d bytes", f.Name, f.UncompressedSize64)
	}
	r, err := f.Open()
	if err != nil {
		return nil, formatError("zip member %q: %v", f.Name, err)
	}
	defer r.Close()
	out, err := io.ReadAll(io.LimitReader(r, maxPickle))
	if err != nil {
		return nil, formatError("zip member %q: %v", f.Name, err)
	}
	return out, nil
}

// readTorchLegacy reads the layout of before PyTorch 1.6: pickles of a magic
// number, the protocol's version, the system, the object and the storages' keys,
// then each storage's number of elements and data.
func readTorchLegacy(b []byte) (*Weights, error) {
	if !bytes.Contains(b[:min(len(b), 64)], torchMagic) {
		return nil, formatError("a bare pickle, not a file of torch.save: save the state_dict() with torch.save, or as safetensors")
	}
	rest := b
	var root any
	var keys any
	for i := range 5 {
		v, n, err := unpickle(rest)
		if err != nil {
			return nil, err
		}
		rest = rest[n:]
		switch i {
		case 2:
			if d, ok := v.(*types.Dict); ok {
				if little, ok := d.Get("little_endian"); ok && little != true {
					return nil, formatError("the file's byte order is big-endian, want little")
				}
			}
		case 3:
			root = v
		case 4:
			keys = v
		}
	}
	order, ok := keys.(*types.List)
	if !ok {
		return nil, formatError("the list of storages is a %T", keys)
	}
	sizes := map[string]elementType{}
	_, err := torchWeights(root, func(s torchStorage) (func() ([]byte, error), int, error) {
		sizes[s.key] = s.typ
		return nil, math.MaxInt, nil
	})
	if err != nil {
		return nil, err
	}
	data := map[string][]byte{}
	for _, k := range *order {
		key, ok := k.(string)
		if !ok || len(rest) < 8 {
			return nil, formatError("the storages are truncated")
		}
		typ, used := sizes[key]
		n := binary.LittleEndian.Uint64(rest)
		rest = rest[8:]
		if !used { // of a value that is not used: its element's size is not known
			return nil, formatError("the storage %q belongs to no tensor", key)
		}
		if n > uint64(len(rest)/elementSizes[typ]) {
			return nil, formatError("the storage %q of %d elements in %d bytes: truncated", key, n, len(rest))
		}
		size := int(n) * elementSizes[typ]
		data[key], rest = rest[:size:size], rest[size:]
	}
	return torchWeights(root, func(s torchStorage) (func() ([]byte, error), int, error) {
		raw, ok := data[s.key]
		if !ok {
			return nil, 0, formatError("the storage %q is missing: truncated", s.key)
		}
		return func() ([]byte, error) { return raw, nil }, len(raw), nil
	})
}

// unpickle runs the pickle at the start of b and says where it ends.
func unpickle(b []byte) (any, int, error) {
	n, err := pickleLength(b)
	if err != nil {
		return nil, 0, err
	}
	u := pickle.NewUnpickler(bytes.NewReader(b[:n]))
	u.FindClass = findClass
	u.PersistentLoad = persistentLoad
	v, err := u.Load()
	if errors.Is(err, ErrFormat) {
		return nil, 0, err
	}
	if err != nil {
		return nil, 0, formatError("the pickle is malformed: %v", err)
	}
	return v, n, nil
}

func findClass(module, name string) (any, error) {
	full := module + "." + name
	if typ, ok := torchStorages[name]; ok && (module == "torch" || module == "torch.storage" || module == "torch.cuda") {
		return torchClass{typ}, nil
	}
	switch full {
	case "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2":
		return torchCall(rebuildTensor), nil
	case "torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state":
		return torchCall(func(args []any) (any, error) {
			if len(args) == 0 {
				return nil, formatError("a parameter without a tensor")
			}
			return args[0], nil
		}), nil
	}
	if slices.Contains(torchIgnored, full) {
		return opaque{}, nil
	}
	return nil, formatError("the pickle asks for %q, which weights do not need; nothing was executed. If you trust the file, load it in PyTorch and save its state_dict() as safetensors", full)
}

// persistentLoad reads ("storage", class, key, location, elements[, view]).
func persistentLoad(id any) (any, error) {
	t, ok := id.(*types.Tuple)
	if !ok || t.Len() < 5 || t.Get(0) != "storage" {
		return nil, formatError("a reference to something that is no storage")
	}
	class, ok := t.Get(1).(torchClass)
	key, ok2 := t.Get(2).(string)
	n, ok3 := t.Get(4).(int)
	if !ok || !ok2 || !ok3 || n < 0 {
		return nil, formatError("a storage of type %T with the key %v and %v elements", t.Get(1), t.Get(2), t.Get(4))
	}
	if t.Len() > 5 && t.Get(5) != nil {
		return nil, formatError("the storage %q is a view of another, as PyTorch 0.3 had them: save the file anew", key)
	}
	return torchStorage{class.typ, key, n}, nil
}

// rebuildTensor takes (storage, offset, shape, stride, …).
func rebuildTensor(args []any) (any, error) {
	if len(args) < 4 {
		return nil, formatError("a tensor of %d arguments", len(args))
	}
	s, ok := args[0].(torchStorage)
	offset, ok2 := args[1].(int)
	shape, ok3 := intTuple(args[2])
	stride, ok4 := intTuple(args[3])
	if !ok || !ok2 || !ok3 || !ok4 || offset < 0 || len(shape) != len(stride) {
		return nil, formatError("a tensor of storage %T, offset %v, shape %v and stride %v", args[0], args[1], args[2], args[3])
	}
	return &torchTensor{s, offset, shape, stride}, nil
}

func intTuple(v any) ([]int, bool) {
	t, ok := v.(*types.Tuple)
	if !ok || t.Len() > maxRank {
		return nil, false
	}
	out := make([]int, t.Len())
	for i := range out {
		if out[i], ok = t.Get(i).(int); !ok || out[i] < 0 {
			return nil, false
		}
	}
	return out, true
}

// torchWeights lists the tensors in nested dictionaries under names joined by
// dots. storage gives a storage's loader and its bytes.
func torchWeights(root any, storage func(torchStorage) (load func() ([]byte, error), bytes int, err error)) (*Weights, error) {
	w := newWeights("pth")
	var walk func(prefix string, v any, depth int) error
	walk = func(prefix string, v any, depth int) error {
		switch v := v.(type) {
		case *torchTensor:
			e, err := v.entry(storage)
			if err != nil {
				return fmt.Errorf("tensor %q: %w", prefix, err)
			}
			return w.add(prefix, e)
		case *types.Dict:
			for _, e := range *v {
				if err := walkKey(prefix, e.Key, e.Value, depth, walk); err != nil {
					return err
				}
			}
		case *types.OrderedDict:
			for e := v.List.Front(); e != nil; e = e.Next() {
				entry := e.Value.(*types.OrderedDictEntry)
				if err := walkKey(prefix, entry.Key, entry.Value, depth, walk); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if err := walk("", root, 0); err != nil {
		return nil, err
	}
	if len(w.names) == 0 {
		return nil, formatError("the PyTorch file holds no tensors in dictionaries: save the model's state_dict()")
	}
	return w, nil
}

func walkKey(prefix string, key, value any, depth int, walk func(string, any, int) error) error {
	name, ok := key.(string)
	if !ok || depth >= maxNesting { // such as an optimiser's state, by number
		return nil
	}
	if prefix != "" {
		name = prefix + "." + name
	}
	return walk(name, value, depth+1)
}

// entry checks that the view lies in its storage.
func (t *torchTensor) entry(storage func(torchStorage) (func() ([]byte, error), int, error)) (entry, error) {
	unit := elementSizes[t.storage.typ]
	size, err := byteSize(t.shape, t.storage.typ)
	if err != nil {
		return entry{}, err
	}
	load, have, err := storage(t.storage)
	if err != nil {
		return entry{}, err
	}
	elements := size / unit
	last := t.offset // place of the last element
	dense := true
	want := 1
	for i := len(t.shape) - 1; i >= 0; i-- {
		d, s := t.shape[i], t.stride[i]
		if d > 1 {
			if s > (math.MaxInt64/2-last)/(d-1) {
				return entry{}, formatError("strides %v reach beyond any storage", t.stride)
			}
			last += (d - 1) * s
			dense = dense && s == want
		}
		want *= d
	}
	limit := min(t.storage.elements, have/unit)
	if elements > 0 && (last >= limit || elements > limit) || t.offset > limit {
		return entry{}, formatError("a view of shape %v, strides %v from %d in a storage of %d elements: truncated or corrupt", t.shape, t.stride, t.offset, limit)
	}
	return entry{t.storage.typ, t.shape, func() ([]byte, error) {
		raw, err := load()
		if err != nil || elements == 0 {
			return nil, err
		}
		if dense {
			return raw[t.offset*unit : t.offset*unit+size : t.offset*unit+size], nil
		}
		return gather(raw, t.offset, t.shape, t.stride, unit), nil
	}}, nil
}

// gather copies the elements, of unit bytes each, of a view with at least one into
// one piece, row-major.
func gather(raw []byte, offset int, shape, stride []int, unit int) []byte {
	out := make([]byte, 0, onnx.Elements(shape)*unit)
	index := make([]int, len(shape))
	for at := offset; ; {
		out = append(out, raw[at*unit:(at+1)*unit]...)
		i := len(index) - 1
		for ; i >= 0; i-- {
			if index[i]++; index[i] < shape[i] {
				at += stride[i]
				break
			}
			at -= (shape[i] - 1) * stride[i]
			index[i] = 0
		}
		if i < 0 {
			return out
		}
	}
}

// pickleLength walks a pickle's opcodes without running them and returns its
// length. It keeps the machine behind it from allocating what the file only
// claims. Opcodes and their arguments: Python's pickletools.
func pickleLength(b []byte) (int, error) {
	at := 0
	line := func() bool {
		i := bytes.IndexByte(b[at:], '\n')
		at += i + 1
		return i >= 0
	}
	skip := func(n uint64) bool {
		if n > uint64(len(b)-at) {
			return false
		}
		at += int(n)
		return true
	}
	number := func(bytes int) (uint64, bool) {
		if len(b)-at < bytes {
			return 0, false
		}
		var v [8]byte
		copy(v[:], b[at:at+bytes])
		at += bytes
		return binary.LittleEndian.Uint64(v[:]), true
	}
	counted := func(width int) bool {
		n, ok := number(width)
		return ok && skip(n)
	}
	for at < len(b) {
		if at > maxPickle {
			return 0, formatError("the pickle has more than %d bytes", maxPickle)
		}
		op := b[at]
		at++
		ok := true
		switch op {
		case '.': // STOP
			return at, nil
		case '(', '0', '1', '2', 'N', 'R', 'a', 'b', 'd', '}', 'e', 'l', ']', 'o', 's', 't', ')', 'u', 'Q',
			0x81, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8f, 0x90, 0x91, 0x92, 0x93, 0x94:
		case 'F', 'I', 'L', 'P', 'S', 'V', 'g', 'p':
			ok = line()
		case 'c', 'i':
			ok = line()
			ok = ok && line()
		case 'K', 'h', 'q', 0x80, 0x82:
			ok = skip(1)
		case 'M', 0x83:
			ok = skip(2)
		case 'J', 'j', 'r', 0x84:
			ok = skip(4)
		case 'G':
			ok = skip(8)
		case 0x95: // FRAME: its bytes are opcodes
			var n uint64
			n, ok = number(8)
			ok = ok && n <= uint64(len(b)-at)
		case 'U', 'C', 0x8a, 0x8c:
			ok = counted(1)
		case 'T', 'B', 'X', 0x8b:
			ok = counted(4)
		case 0x8d, 0x8e, 0x96:
			ok = counted(8)
		default:
			return 0, formatError("the pickle has the opcode %#x at byte %d, which is not read", op, at-1)
		}
		if !ok {
			return 0, formatError("the pickle ends in the middle of the opcode %#x: truncated or corrupt", op)
		}
	}
	return 0, formatError("the pickle has no end: truncated")
}
