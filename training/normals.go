package training

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
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
	Outputs() inference.Outputs
}

// seen is what embedNormals found.
type seen struct {
	all  []Normal  // every image
	of   []int     // places in all of the images that are of use
	rows []float32 // their embeddings, row-major
	// patches are some of theirs, where the model gives patches.
	patches sampled
}

// embedNormals reads and embeds the images, chunk by chunk. Of the patches of each
// image it keeps at most keep, drawn with seed.
func embedNormals(ctx context.Context, e embedder, images []Image, keep int, seed uint64, progress func(done, total int)) (*seen, error) {
	const chunk = 64 // images in memory at a time
	known := make(map[[32]byte]bool, len(images))
	s := &seen{all: make([]Normal, len(images))}
	for at := 0; at < len(images); at += chunk {
		var files [][]byte
		var places []int
		for i := at; i < min(at+chunk, len(images)); i++ {
			b, err := images[i].Read()
			if err != nil {
				return nil, fmt.Errorf("read normal image %s: %w", images[i].Name, err)
			}
			sum := sha256.Sum256(b)
			s.all[i] = Normal{ID: uint64(i), Name: images[i].Name, SHA256: hex.EncodeToString(sum[:]), Camera: images[i].Camera, CapturedAt: images[i].At}
			if known[sum] {
				s.all[i].Use = NotUsedTwice
				continue
			}
			known[sum] = true
			files, places = append(files, b), append(places, i)
		}
		embeddings, err := e.Embed(ctx, files)
		if err != nil {
			return nil, fmt.Errorf("embed the normal images: %w", err)
		}
		for j, v := range embeddings {
			i := places[j]
			if v.Err != nil {
				if imaging.Rejection(v.Err) == nil {
					return nil, fmt.Errorf("embed normal image %s: %w", s.all[i].Name, v.Err)
				}
				s.all[i].Use, s.all[i].Reason = NotUsedReject, v.Err.Error()
				continue
			}
			s.rows, s.of = append(s.rows, v.Vector...), append(s.of, i)
			if p := e.Outputs().Patches; len(p) > 0 {
				s.patches.keep(v.Patches[0], p[0].Dim, keep, seed)
			}
		}
		progress(min(at+chunk, len(images)), len(images))
	}
	return s, nil
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
