// Package imagefolder finds the images in a folder, by one set of rules for
// cameras, data sets and commands.
package imagefolder

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// extensions of the formats that the project decodes.
var extensions = []string{".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".png", ".bmp", ".dib", ".tif", ".tiff", ".webp"}

// Extensions are the ends of names by which images are known, for messages.
func Extensions() string { return strings.Join(extensions, " ") }

// IsImage reports whether a file's name ends like an image's that is decoded.
func IsImage(name string) bool {
	return slices.Contains(extensions, strings.ToLower(filepath.Ext(name)))
}

// Walk calls f for every file below root, hidden ones and those in hidden
// folders excepted, in the order of their names: rel is the path below root,
// with slashes, full the path to open. Links are followed, wherever they lead.
// What cannot be read costs only itself: lost is called for links that lead
// nowhere or back to a folder above them, and folders that may not be read. It
// fails where root itself cannot be read.
func Walk(root string, f func(rel, full string), lost func(rel string, err error)) error {
	info, err := os.Stat(root)
	if err != nil {
		return err
	}
	return walkIn(root, "", []fs.FileInfo{info}, f, lost)
}

func walkIn(root, below string, above []fs.FileInfo, f func(rel, full string), lost func(rel string, err error)) error {
	entries, err := os.ReadDir(filepath.Join(root, filepath.FromSlash(below)))
	if err != nil {
		if below == "" {
			return err
		}
		lost(below, err)
		return nil
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		rel := path.Join(below, e.Name())
		full := filepath.Join(root, filepath.FromSlash(rel))
		info, err := os.Stat(full)
		switch {
		case err != nil:
			lost(rel, err)
		case !info.IsDir():
			f(rel, full)
		case slices.ContainsFunc(above, func(a fs.FileInfo) bool { return os.SameFile(a, info) }):
			lost(rel, errors.New("the link leads back to a folder above it"))
		default:
			if err := walkIn(root, rel, append(slices.Clip(above), info), f, lost); err != nil {
				return err
			}
		}
	}
	return nil
}

// Listing is what lies in a folder.
type Listing struct {
	Files []string // paths of images by their names' ends
	Other []string // paths of files that are none
	Odd   []error  // what could not be read
}

// List looks through a folder. A file is its own listing, whatever it is called.
func List(root string) (Listing, error) {
	var l Listing
	info, err := os.Stat(root)
	if err != nil {
		return l, err
	}
	if !info.IsDir() {
		l.Files = []string{root}
		return l, nil
	}
	err = Walk(root, func(_, full string) {
		if IsImage(full) {
			l.Files = append(l.Files, full)
		} else {
			l.Other = append(l.Other, full)
		}
	}, func(rel string, err error) { l.Odd = append(l.Odd, fmt.Errorf("%s: %w", rel, err)) })
	return l, err
}

// Notes tells people what was left out: other files by the ends of their names,
// and what could not be read.
func (l Listing) Notes() []string {
	var out []string
	count := map[string]int{}
	for _, f := range l.Other {
		count[strings.ToLower(filepath.Ext(f))]++
	}
	var kinds []string
	for ext, n := range count {
		ext = cmp.Or(ext, "without an end")
		kinds = append(kinds, fmt.Sprintf("%d %s", n, ext))
	}
	if len(kinds) > 0 {
		slices.Sort(kinds)
		out = append(out, fmt.Sprintf("files were passed over: %s (%s are read)", strings.Join(kinds, ", "), Extensions()))
	}
	switch n := len(l.Odd); {
	case n == 1:
		out = append(out, fmt.Sprintf("passed over: %v", l.Odd[0]))
	case n > 1:
		out = append(out, fmt.Sprintf("%d files or folders were passed over, the first: %v", n, l.Odd[0]))
	}
	return out
}
