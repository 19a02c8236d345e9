package training

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/imaging"
)

// NormalsName is the file of a release that lists the images it was learnt
// from, one JSON object a line: see [Normal].
const NormalsName = "normals.jsonl"

// What became of a normal image.
const (
	UsedInBank    = "bank"      // its embedding is in the bank
	UsedToHold    = "held_out"  // it calibrates
	NotUsedTwice  = "duplicate" // its bytes equal those of an earlier image
	NotUsedReject = "rejected"  // it could not be read; Reason says why
)

// Normal is one line of [NormalsName].
type Normal struct {
	ID     uint64 `json:"id"` // in the bank, and in the nearest entries of scores
	Name   string `json:"name"`
	SHA256 string `json:"sha256"` // of the image file
	Use    string `json:"use"`    // bank, held_out, duplicate or rejected
	Reason string `json:"reason,omitempty"`
}

// embedder turns image files into embeddings, all of one length.
type embedder interface {
	Embed(ctx context.Context, images [][]byte) ([]inference.Embedding, error)
}

// embedNormals reads and embeds the images, chunk by chunk. Rows are the
// embeddings of the images that are of use, row-major, in the order of of,
// which are their places in all.
func embedNormals(ctx context.Context, e embedder, images []Image, progress func(done, total int)) (all []Normal, rows []float32, of []int, err error) {
	const chunk = 64 // images in memory at a time
	seen := make(map[[32]byte]bool, len(images))
	all = make([]Normal, len(images))
	for at := 0; at < len(images); at += chunk {
		var files [][]byte
		var places []int
		for i := at; i < min(at+chunk, len(images)); i++ {
			b, err := images[i].Read()
			if err != nil {
				return nil, nil, nil, fmt.Errorf("read normal image %s: %w", images[i].Name, err)
			}
			sum := sha256.Sum256(b)
			all[i] = Normal{ID: uint64(i), Name: images[i].Name, SHA256: hex.EncodeToString(sum[:])}
			if seen[sum] {
				all[i].Use = NotUsedTwice
				continue
			}
			seen[sum] = true
			files, places = append(files, b), append(places, i)
		}
		embeddings, err := e.Embed(ctx, files)
		if err != nil {
			return nil, nil, nil, fmt.Errorf("embed the normal images: %w", err)
		}
		for j, v := range embeddings {
			i := places[j]
			if v.Err != nil {
				if imaging.Rejection(v.Err) == nil {
					return nil, nil, nil, fmt.Errorf("embed normal image %s: %w", all[i].Name, v.Err)
				}
				all[i].Use, all[i].Reason = NotUsedReject, v.Err.Error()
				continue
			}
			rows, of = append(rows, v.Vector...), append(of, i)
		}
		progress(min(at+chunk, len(images)), len(images))
	}
	return all, rows, of, nil
}

// listing encodes the lines of NormalsName.
func listing(all []Normal) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	for _, n := range all {
		if err := enc.Encode(n); err != nil {
			return nil, err
		}
	}
	return buf.Bytes(), nil
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
