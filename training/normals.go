package training

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/release"
)

// The list of normals is package release's.
type Normal = release.Normal

// What became of a normal image.
const (
	UsedInBank    = release.UsedInBank
	UsedToHold    = release.UsedToHold
	NotUsedTwice  = release.NotUsedTwice
	NotUsedNear   = release.NotUsedNear
	NotUsedReject = release.NotUsedReject
)

// embedder turns image files into embeddings, all of one length.
type embedder interface {
	Embed(ctx context.Context, images [][]byte) ([]inference.Embedding, error)
}

// embedNormals reads and embeds the images, chunk by chunk, and gives those of use
// to take, with their places among the images. It returns what became of each
// image, and the places of those that are of use.
func embedNormals(ctx context.Context, e embedder, images []Image, take func(i int, e *inference.Embedding) error, progress func(done, total int)) (all []Normal, of []int, err error) {
	const chunk = 64 // images in memory at a time
	known := make(map[[32]byte]bool, len(images))
	all = make([]Normal, len(images))
	for at := 0; at < len(images); at += chunk {
		var files [][]byte
		var places []int
		for i := at; i < min(at+chunk, len(images)); i++ {
			b, err := images[i].Read()
			if gone := unreadable(err); gone != "" {
				all[i] = Normal{ID: uint64(i), Name: images[i].Name, Use: NotUsedReject, Reason: gone}
				continue
			}
			if err != nil {
				return nil, nil, fmt.Errorf("read normal image %s: %w", images[i].Name, err)
			}
			sum := sha256.Sum256(b)
			all[i] = Normal{ID: uint64(i), Name: images[i].Name, SHA256: hex.EncodeToString(sum[:]), Camera: images[i].Camera, CapturedAt: images[i].At}
			if known[sum] {
				all[i].Use = NotUsedTwice
				continue
			}
			known[sum] = true
			files, places = append(files, b), append(places, i)
		}
		embeddings, err := e.Embed(ctx, files)
		if err != nil {
			return nil, nil, fmt.Errorf("embed the normal images: %w", err)
		}
		for j := range embeddings {
			v, i := &embeddings[j], places[j]
			if v.Err != nil {
				if imaging.Rejection(v.Err) == nil {
					return nil, nil, fmt.Errorf("embed normal image %s: %w", all[i].Name, v.Err)
				}
				all[i].Use, all[i].Reason = NotUsedReject, v.Err.Error()
				continue
			}
			of = append(of, i)
			if err := take(i, v); err != nil {
				return nil, nil, fmt.Errorf("embed normal image %s: %w", all[i].Name, err)
			}
		}
		progress(min(at+chunk, len(images)), len(images))
	}
	return all, of, nil
}

// unreadable says why a file that was listed cannot be read, where that is the
// file's matter alone: it was removed or moved since, or may not be read.
func unreadable(err error) string {
	var at *fs.PathError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "it is gone"
	case errors.Is(err, fs.ErrPermission):
		return "it may not be read"
	case errors.As(err, &at) && at.Op == "read": // a folder with an image's name, a bad disk
		return at.Err.Error()
	}
	return ""
}

// dataDigest names a set of images, whatever their names and order: the SHA-256
// of the sorted digests of those that were used.
func dataDigest(all []Normal) string {
	var used []string
	for _, n := range all {
		if n.Use == UsedInBank || n.Use == UsedToHold {
			used = append(used, n.SHA256)
		}
	}
	slices.Sort(used)
	h := sha256.New()
	for _, s := range used {
		fmt.Fprintln(h, s)
	}
	return hex.EncodeToString(h.Sum(nil))
}
