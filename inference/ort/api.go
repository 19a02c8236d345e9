package ort

/*
#cgo linux LDFLAGS: -ldl
#include <dlfcn.h>
#include <stdint.h>

// What the binding does not have of ONNX Runtime's C API (onnxruntime_c_api.h): memory
// of a device, and tensors in it. Functions are given as they stand in struct OrtApi.

static void *ort_api(const char *library, uint32_t version) {
	void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD); // the binding loaded it, and never unloads it
	if (!handle) return 0;
	void *base = dlsym(handle, "OrtGetApiBase");
	if (!base) return 0;
	struct { void *(*get)(uint32_t); } const *found = ((void *(*)(void))base)();
	return found ? found->get(version) : 0;
}

static void *ort_create_memory_info(void *f, const char *name, int kind, int id, int type, void **out) {
	return ((void *(*)(const char *, int, int, int, void **))f)(name, kind, id, type, out);
}

static void *ort_create_allocator(void *f, void *session, void *info, void **out) {
	return ((void *(*)(void *, void *, void **))f)(session, info, out);
}

static void *ort_create_tensor(void *f, void *allocator, const int64_t *shape, size_t rank, int type, void **out) {
	return ((void *(*)(void *, const int64_t *, size_t, int, void **))f)(allocator, shape, rank, type, out);
}

static const char *ort_message(void *f, void *status) { return ((const char *(*)(void *))f)(status); }
static void ort_release(void *f, void *x) { ((void (*)(void *))f)(x); }
*/
import "C"

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"unsafe"

	onnxruntime "github.com/yalue/onnxruntime_go"
)

// The places of functions in struct OrtApi, which grows at its end only, and the version
// that had them all: ONNX Runtime 1.16.
const (
	apiVersion = 16

	getErrorMessage        = 2
	createTensorAsOrtValue = 48
	createMemoryInfo       = 68
	releaseStatus          = 93
	releaseMemoryInfo      = 94
	releaseValue           = 96
	createAllocator        = 131
	releaseAllocator       = 132
)

// api is struct OrtApi of the loaded library.
type api struct{ table unsafe.Pointer }

// newAPI finds it in the library that the binding has loaded.
func newAPI() (api, error) {
	_, path, err := Loaded()
	if err != nil {
		return api{}, err
	}
	name := slices.Concat([]byte(path), []byte{0})
	table := C.ort_api((*C.char)(unsafe.Pointer(&name[0])), apiVersion)
	if table == nil {
		return api{}, fmt.Errorf("%s has no C interface of version %d", path, apiVersion)
	}
	return api{table}, nil
}

func (a api) at(place int) unsafe.Pointer {
	return *(*unsafe.Pointer)(unsafe.Add(a.table, uintptr(place)*unsafe.Sizeof(a.table)))
}

// release gives back what the function at a place releases.
func (a api) release(place int, x unsafe.Pointer) {
	if x != nil {
		C.ort_release(a.at(place), x)
	}
}

// fail makes an error of a status, which it releases.
func (a api) fail(status unsafe.Pointer) error {
	if status == nil {
		return nil
	}
	defer a.release(releaseStatus, status)
	return errors.New(C.GoString(C.ort_message(a.at(getErrorMessage), status)))
}

// allocator returns what allocates the memory of a session's device, to be given back
// by releaseAllocator when nothing is left of it, before the session.
func (a api) allocator(s *onnxruntime.DynamicAdvancedSession, d Device) (unsafe.Pointer, error) {
	inner := reflect.ValueOf(s).Elem().FieldByName("s")
	if !inner.IsValid() || inner.Kind() != reflect.Pointer {
		return nil, errBinding
	}
	session := inner.Elem().FieldByName("ortSession")
	if !session.IsValid() || session.Kind() != reflect.Pointer {
		return nil, errBinding
	}
	name := []byte("Cuda\x00")
	if d.IsCPU() {
		name = []byte("Cpu\x00")
	}
	const deviceAllocator, defaultMemory = 0, 0
	var info, out unsafe.Pointer
	if err := a.fail(C.ort_create_memory_info(a.at(createMemoryInfo), (*C.char)(unsafe.Pointer(&name[0])),
		deviceAllocator, C.int(d.ID), defaultMemory, &info)); err != nil {
		return nil, err
	}
	defer a.release(releaseMemoryInfo, info)
	err := a.fail(C.ort_create_allocator(a.at(createAllocator), session.UnsafePointer(), info, &out))
	return out, err
}

// tensor allocates a tensor.
func (a api) tensor(allocator unsafe.Pointer, t Type, shape []int) (unsafe.Pointer, error) {
	dims := make([]int64, len(shape)+1) // one more, so that there is an address
	for i, d := range shape {
		dims[i] = int64(d)
	}
	var out unsafe.Pointer
	err := a.fail(C.ort_create_tensor(a.at(createTensorAsOrtValue), allocator,
		(*C.int64_t)(unsafe.Pointer(&dims[0])), C.size_t(len(shape)), C.int(t), &out))
	return out, err
}

var errBinding = errors.New("this version of onnxruntime_go is not known inside")

// foreignValue is a value that the binding did not make, for its Run, which asks for
// nothing but the internals.
type foreignValue struct {
	onnxruntime.Value
	internals *onnxruntime.ValueInternalData
	destroy   func()
}

// newForeignValue wraps a C value, of which destroy disposes.
func newForeignValue(value unsafe.Pointer, destroy func()) (*foreignValue, error) {
	field, ok := reflect.TypeFor[onnxruntime.ValueInternalData]().FieldByName("ortValue")
	if !ok || field.Type.Kind() != reflect.Pointer {
		return nil, errBinding
	}
	v := &foreignValue{internals: new(onnxruntime.ValueInternalData), destroy: destroy}
	*(*unsafe.Pointer)(unsafe.Add(unsafe.Pointer(v.internals), field.Offset)) = value
	return v, nil
}

func (v *foreignValue) GetInternals() *onnxruntime.ValueInternalData { return v.internals }

func (v *foreignValue) Destroy() error {
	v.destroy()
	return nil
}
