package registry

import (
	"errors"

	"github.com/nearmiss/nearmiss/inference/release/envelope"
)

var (
	// ErrNoRelease is returned when a release, or a detector's active release,
	// is not there.
	ErrNoRelease = errors.New("no such release")
	// ErrNoPrevious is returned by Rollback when there is nothing to go back to.
	ErrNoPrevious = errors.New("no previous release")
	// ErrConflict is returned when a pointer was changed by somebody else
	// between the read and the write.
	ErrConflict = errors.New("the active release was changed meanwhile")
	// ErrCorrupt is returned for content that does not have the digest or size
	// that names it.
	ErrCorrupt = envelope.ErrCorrupt
	// ErrBadManifest is returned for a manifest that cannot be understood.
	ErrBadManifest = envelope.ErrManifest
)
