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
package ort
