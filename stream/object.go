package stream

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream/internal/object"
	"github.com/nearmiss/nearmiss/stream/internal/text"
)

// maxStoredImage bounds one stored image that is read into memory, in bytes.
const maxStoredImage = 256 << 20

// fetchObject reads a whole object of at most most bytes into memory. What
// another try cannot mend is a [PermanentError]; an object that is not there, or
// not whole, is [ErrNotFound] besides.
func fetchObject(ctx context.Context, js jetstream.JetStream, bucket, name string, most int64) ([]byte, error) {
	b, err := object.Read(ctx, js, bucket, name, most)
	switch {
	case errors.Is(err, object.ErrMissing):
		return nil, Permanent(CodeObjectMissing, fmt.Errorf("%w: %w", err, ErrNotFound))
	case errors.Is(err, object.ErrTooLarge):
		return nil, Permanent(CodeTooLarge, err)
	case errors.Is(err, object.ErrBad):
		return nil, Permanent(CodeObjectBad, err)
	}
	return b, err
}

// FrameImage returns the image of a frame: what came with it, or the object that it
// names.
func (in *Installation) FrameImage(ctx context.Context, f Frame) ([]byte, error) {
	if f.Object == "" {
		return f.Image, nil
	}
	b, err := in.LargeImage(ctx, f.Object, maxStoredImage)
	if err == nil && f.ObjectDigest != "" && DigestOf(b) != f.ObjectDigest {
		return nil, Permanent(CodeObjectBad, fmt.Errorf("object %s is another image than its frame says", text.Clip(f.Object)))
	}
	return b, err
}

// LargeImage returns an image of at most most bytes that was too large for a message,
// by the name of its object.
func (in *Installation) LargeImage(ctx context.Context, name string, most int64) ([]byte, error) {
	return fetchMoved(ctx, in.js, in.names, in.names.LargeBucket(), name, most)
}

// fetchMoved is [fetchObject] of an object that earlier versions kept among the
// artifacts: it is looked for there when its own bucket has none.
func fetchMoved(ctx context.Context, js jetstream.JetStream, n Names, bucket, name string, most int64) ([]byte, error) {
	b, err := fetchObject(ctx, js, bucket, name, most)
	if errors.Is(err, ErrNotFound) {
		if before, err2 := fetchObject(ctx, js, n.ArtifactsBucket(), name, most); !errors.Is(err2, ErrNotFound) {
			return before, err2
		}
	}
	return b, err
}
