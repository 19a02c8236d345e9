package release

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// NormalsName is the file of a release that lists the images it was learnt
// from, one JSON object a line: see [Normal].
const NormalsName = "normals.jsonl"

// What became of a normal image.
const (
	UsedInBank    = "bank"      // its embedding is in the bank
	UsedToHold    = "held_out"  // it calibrates
	NotUsedTwice  = "duplicate" // it equals or shows the same as an earlier image
	NotUsedNear   = "near"      // taken just before or after a held-out one
	NotUsedReject = "rejected"  // it could not be read; Reason says why
)

// Normal is one line of [NormalsName].
type Normal struct {
	ID     uint64 `json:"id"` // in the bank, and in the nearest entries of scores
	Name   string `json:"name"`
	SHA256 string `json:"sha256"` // of the image file
	Use    string `json:"use"`    // bank, held_out, duplicate, near or rejected
	Reason string `json:"reason,omitempty"`
	// Where and when it was taken, as far as that is known.
	Camera     string    `json:"camera,omitempty"`
	CapturedAt time.Time `json:"captured_at,omitzero"`
}

// maxLine bounds a line of the list in bytes.
const maxLine = 1 << 20

// ReadNormals reads the list of images that the release in dir was learnt from.
// A release without one gives none.
func ReadNormals(dir string) ([]Normal, error) {
	b, err := os.ReadFile(filepath.Join(dir, NormalsName))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the list of normals: %w", err)
	}
	all, err := parseNormals(b)
	if err != nil {
		return nil, fmt.Errorf("read the list of normals in %s: %w", dir, err)
	}
	return all, nil
}

// parseNormals reads the lines of NormalsName.
func parseNormals(b []byte) (all []Normal, err error) {
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var n Normal
		if err := json.Unmarshal(lines.Bytes(), &n); err != nil {
			return nil, fmt.Errorf("line %d: %w", len(all)+1, err)
		}
		all = append(all, n)
	}
	return all, lines.Err()
}

// EncodeNormals writes the lines of NormalsName.
func EncodeNormals(all []Normal) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	for _, n := range all {
		if err := enc.Encode(n); err != nil {
			return nil, err
		}
	}
	return buf.Bytes(), nil
}

// copyBits is where the number of a copy begins in an id.
const copyBits = 40

// CopyID is the id, in the banks, of a copy of a normal, in another light or turned:
// copies count from 1, to 255, and 0 is the normal itself, whose id is below 2⁴⁰.
func CopyID(image uint64, copy int) uint64 { return uint64(copy)<<copyBits | image }

// OriginalOf is the id of the normal that an entry with an id is of, itself or a
// copy.
func OriginalOf(id uint64) uint64 { return id & (1<<copyBits - 1) }

// Originals counts the normals among the entries with these ids, without copies.
func Originals(ids []uint64) (n int) {
	for _, id := range ids {
		if id == OriginalOf(id) {
			n++
		}
	}
	return n
}

// MostPatches bounds the patches of an image whose ids differ.
const MostPatches = 1 << 16

// PatchID is the id, in the bank of patches, of the patch at a place of an image
// with an id in the other banks. Places count row by row, below MostPatches.
func PatchID(image uint64, place int) uint64 { return image<<16 | uint64(place) }

// ImageOf is the id of the image that a patch with an id is of.
func ImageOf(patch uint64) uint64 { return patch >> 16 }
