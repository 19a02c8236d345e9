package release

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/nearmiss/nearmiss/inference/heatmap"
	"github.com/nearmiss/nearmiss/inference/imaging"
)

// ThumbnailsName is the file of a release that shows the normals in its bank, so
// that an alarm can be held against what is nearest to it: a ZIP archive of small
// JPEG files, named by their ids.
const ThumbnailsName = "thumbnails.zip"

// Thumbnails get smaller when there are many of them, and their file is bounded:
// beyond it the last ones are left out.
const (
	thumbnailQuality = 80
	maxThumbnails    = 32 << 20 // bytes of all of a release's
	maxThumbnail     = 1 << 20  // bytes that are read of one
)

// thumbnailSide is the longer side of each of n thumbnails, in pixels: at about
// 3 kB for 96 pixels some 10,000 of them fit.
func thumbnailSide(n int) int {
	switch {
	case n <= 8000:
		return 96
	case n <= 20000:
		return 64
	}
	return 40
}

// Thumbnails are JPEG files by the ids of the normals in a bank.
type Thumbnails map[uint64][]byte

// ReadThumbnails reads those of the release in dir. A release without any gives
// nil.
func ReadThumbnails(dir string) (Thumbnails, error) {
	b, err := os.ReadFile(filepath.Join(dir, ThumbnailsName))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		var t Thumbnails
		if t, err = parseThumbnails(b); err == nil {
			return t, nil
		}
	}
	return nil, fmt.Errorf("read the thumbnails of release %s: %w", dir, err)
}

func parseThumbnails(b []byte) (Thumbnails, error) {
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return nil, err
	}
	t, left := Thumbnails{}, 2*maxThumbnails
	for _, f := range z.File {
		id, err := strconv.ParseUint(strings.TrimSuffix(f.Name, ".jpg"), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("file %q is none", f.Name)
		}
		r, err := f.Open()
		if err != nil {
			return nil, err
		}
		data, err := io.ReadAll(io.LimitReader(r, maxThumbnail+1))
		if err := errors.Join(err, r.Close()); err != nil {
			return nil, err
		}
		if left -= len(data); len(data) > maxThumbnail || left < 0 {
			return nil, fmt.Errorf("file %q is too large", f.Name)
		}
		t[id] = data
	}
	return t, nil
}

// Add draws the normals that are in the bank; read gives the image of the one
// with an index. What the view hides is not shown.
func (t Thumbnails) Add(ctx context.Context, normals []Normal, read func(i int) ([]byte, error), view *imaging.View, l imaging.Limits) error {
	side := thumbnailSide(len(t) + len(normals))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	var mu sync.Mutex
	for i, n := range normals {
		if n.Use != UsedInBank {
			continue
		}
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			b, err := read(i)
			if err != nil {
				return fmt.Errorf("read normal image %s: %w", n.Name, err)
			}
			img, err := view.Decode(b, l)
			if err != nil {
				return fmt.Errorf("thumbnail of normal image %s: %w", n.Name, err)
			}
			small, err := heatmap.Thumbnail(img, side).JPEG(thumbnailQuality)
			if err != nil {
				return fmt.Errorf("thumbnail of normal image %s: %w", n.Name, err)
			}
			mu.Lock()
			defer mu.Unlock()
			t[n.ID] = small
			return nil
		})
	}
	return g.Wait()
}

// Archive packs them, in the order of their ids: equal thumbnails give equal
// bytes.
func (t Thumbnails) Archive() ([]byte, error) {
	var buf bytes.Buffer
	z := zip.NewWriter(&buf)
	for _, id := range slices.Sorted(maps.Keys(t)) {
		if buf.Len()+len(t[id]) > maxThumbnails {
			break
		}
		w, err := z.CreateHeader(&zip.FileHeader{Name: strconv.FormatUint(id, 10) + ".jpg", Method: zip.Store})
		if err == nil {
			_, err = w.Write(t[id])
		}
		if err != nil {
			return nil, fmt.Errorf("pack thumbnails: %w", err)
		}
	}
	if err := z.Close(); err != nil {
		return nil, fmt.Errorf("pack thumbnails: %w", err)
	}
	return buf.Bytes(), nil
}
