package backbone

import (
	"errors"
	"fmt"

	"github.com/nearmiss/nearmiss/inference/onnx/wire"
)

// ErrFormat is wrapped by every error that says a weight file is malformed,
// truncated or of a kind this package does not read. Retrying cannot help.
var ErrFormat = wire.ErrFormat

// ErrArchitecture is wrapped by every error that says the tensors of a
// well-formed file do not make a backbone this package can build.
var ErrArchitecture = errors.New("unknown backbone architecture")

func formatError(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
}

func architectureError(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrArchitecture, fmt.Sprintf(format, args...))
}
