package imaging

import (
	"errors"
	"fmt"
	"io"
)

// Code names why an image was refused. Codes travel in events and dead letters
// and never change their meaning.
type Code string

const (
	// CodeEmpty: there are no bytes.
	CodeEmpty Code = "empty"
	// CodeUnsupported: not an image, or a format or feature that is not read.
	CodeUnsupported Code = "unsupported"
	// CodeTruncated: the file ends before the image does.
	CodeTruncated Code = "truncated"
	// CodeCorrupt: the file contradicts its own format.
	CodeCorrupt Code = "corrupt"
	// CodeTooLarge: more bytes, pixels or memory than the limits allow.
	CodeTooLarge Code = "too_large"
	// CodeBadAspect: one side is too many times longer than the other.
	CodeBadAspect Code = "bad_aspect"
)

// RejectError reports an image that cannot be used, now or later: do not retry.
type RejectError struct {
	Code   Code
	Reason string // lower case, says what was found and what is allowed
}

func (e *RejectError) Error() string {
	return fmt.Sprintf("image rejected (%s): %s", e.Code, e.Reason)
}

// Rejection returns the RejectError in err's chain, or nil.
func Rejection(err error) *RejectError {
	if r, ok := errors.AsType[*RejectError](err); ok {
		return r
	}
	return nil
}

func reject(c Code, format string, args ...any) *RejectError {
	return &RejectError{Code: c, Reason: fmt.Sprintf(format, args...)}
}

// rejectDecoder gives a decoder's error its code. The decoders tell "ends too
// early" by io.EOF or io.ErrUnexpectedEOF.
func rejectDecoder(f Format, err error) *RejectError {
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return reject(CodeTruncated, "%s data ends before the image does", f)
	}
	return reject(CodeCorrupt, "%s cannot be decoded: %v", f, err)
}
