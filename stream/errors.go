package stream

import (
	"context"
	"errors"
	"strings"

	"github.com/cenkalti/backoff/v4"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

var (
	// ErrBadName is returned for detector, camera and prefix names that cannot
	// be subject tokens.
	ErrBadName = errors.New("bad name")
	// ErrBadMessage is returned for messages whose subject or headers cannot be
	// understood.
	ErrBadMessage = errors.New("bad message")
	// ErrQueueFull is returned to a camera when the work queue takes no more
	// frames.
	ErrQueueFull = errors.New("frame queue is full")
	// ErrNoDetector is returned for a detector that has no configuration.
	ErrNoDetector = errors.New("no such detector")
	// ErrDetectorExists is returned by Create for a detector that is there.
	ErrDetectorExists = errors.New("detector exists")
	// ErrNotFound is returned for what is not, or no longer, there.
	ErrNotFound = errors.New("not found")
	// ErrConflict is returned when somebody else changed a record first.
	ErrConflict = errors.New("changed meanwhile")
)

// Codes say in one stable word why something was rejected, refused or given up.
// They travel in events, dead letters and the services' error responses.
// Images can be rejected with further codes, those of the decoder.
const (
	CodeBadHeader     = "bad_header"     // the message's headers could not be understood
	CodeObjectMissing = "object_missing" // the named object is not in the store
	CodeEmpty         = "empty"          // the image has no bytes
	CodeObjectBad     = "object_bad"     // the named object is not what its metadata say
	CodeTooLarge      = "too_large"      // more bytes than the worker reads
	CodeNotFinite     = "not_finite"     // the score was NaN or infinite
	CodeMaxDeliveries = "max_deliveries" // every delivery ended without an acknowledgement
	CodeScoring       = "scoring_failed" // the scorer failed on every delivery
	CodeBadRequest    = "bad_request"    // a request that cannot be understood
	CodeTraining      = "training_failed"
	CodeNotFound      = "not_found"
	CodeConflict      = "conflict"
	CodeInternal      = "internal"
)

// PermanentError marks an error that another try cannot mend: the message goes
// to the dead letters at once, with the code.
type PermanentError struct {
	Code string // one of the codes above, or the decoder's
	Err  error
}

func (e *PermanentError) Error() string { return e.Err.Error() }
func (e *PermanentError) Unwrap() error { return e.Err }

// Permanent wraps err so that it is not retried.
func Permanent(code string, err error) error { return &PermanentError{Code: code, Err: err} }

// Retryable says whether a failed request to the broker is worth another try:
// lost connections, time-outs and a broker that is busy or out of space are,
// refusals of the request itself are not. That the caller's context has not
// ended is the caller's to check.
func Retryable(err error) bool {
	if _, permanent := errors.AsType[*PermanentError](err); permanent || err == nil {
		return false
	}
	if errors.Is(err, nats.ErrMaxPayload) || errors.Is(err, nats.ErrConnectionClosed) ||
		errors.Is(err, nats.ErrBadSubject) || errors.Is(err, ErrBadName) || errors.Is(err, ErrBadMessage) {
		return false
	}
	if api, ok := errors.AsType[*jetstream.APIError](err); ok {
		// 4xx: the request is wrong, except "not found" right after a broker
		// came back and has not recovered its streams yet, and "resource limits
		// exceeded for account" (10002), which is a full store.
		return api.Code >= 500 || api.ErrorCode == jetstream.JSErrCodeStreamNotFound || api.ErrorCode == 10002
	}
	return true
}

// Retry calls f until it succeeds, fails for good or ctx ends.
func Retry(ctx context.Context, b backoff.BackOff, f func() error) error {
	return backoff.Retry(func() error {
		err := f()
		if err != nil && (!Retryable(err) || ctx.Err() != nil) {
			return backoff.Permanent(err)
		}
		return err
	}, backoff.WithContext(b, ctx))
}

// IsQueueFull says whether a publish was refused because the frame queue is
// full.
func IsQueueFull(err error) bool {
	if errors.Is(err, ErrQueueFull) {
		return true
	}
	// The server answers "maximum bytes exceeded", "maximum messages exceeded"
	// or "maximum messages per subject exceeded" with the one code for a store
	// that failed (nats-server, JSStreamStoreFailedF).
	api, ok := errors.AsType[*jetstream.APIError](err)
	return ok && api.ErrorCode == 10077 && strings.Contains(api.Description, "maximum")
}
