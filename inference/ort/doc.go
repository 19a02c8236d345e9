// Package ort is the only door to ONNX Runtime: it installs, finds and loads
// the library, and wraps devices, sessions and tensors.
//
// The library is loaded once per process, by the first session or tensor, from
// $NEARMISS_ONNXRUNTIME, the cache that [Install] fills or the program's folder. That
// process-wide environment is the C library's own demand, and the only global
// state of Nearmiss.
//
// A [Session] runs one model. Its Run may be called from many goroutines: with
// IntraOpThreads = 1 each call computes on its caller's thread, so that N
// callers share one copy of the weights and use N cores.
//
// A [Tensor] aliases Go memory, which stays pinned until Close. The outputs of
// one Run can be handed to the next as they are: nothing is copied in between.
//
// On an accelerator they would cross the bus at every Run. A [Memory] has tensors that
// stay there. onnxruntime_go 1.27 makes values in the host's memory only, and its I/O
// binding has neither BindOutputToDevice nor a device's OrtMemoryInfo nor a session's
// allocator, so api.go calls eight functions of the C interface itself. Values that they
// make go through the binding's Run like any others: ONNX Runtime copies only what is
// elsewhere. So nothing is bound, and a Run can be stopped, which RunWithBinding cannot.
// All of this runs on the CPU, too, where the tests prove it; on an accelerator,
// internal/bench/gpu.sh does.
package ort
