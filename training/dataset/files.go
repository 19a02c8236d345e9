package dataset

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nearmiss/nearmiss/internal/imagefolder"
)

// isImageName reports whether a file's name ends like an image's.
func isImageName(name string) bool { return imagefolder.IsImage(name) }

// otherImages are the ends of pictures that are not read.
var otherImages = []string{
	".pgm", ".ppm", ".pbm", ".pnm", ".gif", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".jxr", ".svg", ".psd", ".xcf",
	".raw", ".dng", ".cr2", ".nef", ".arw", ".exr", ".hdr", ".tga", ".ico", ".dcm", ".fits", ".npy", ".mpo",
}

// described: files that usually accompany images and tell about them.
func described(name string) bool {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".md", ".txt", ".json", ".jsonl", ".csv", ".html", ".xml", ".yaml", ".yml", ".parquet":
		return true
	}
	switch strings.ToLower(name) {
	case "thumbs.db", "desktop.ini", "license", "readme":
		return true
	}
	return false
}

// Files are the images of files and folders that a user names.
type Files struct {
	Paths []string // in the order of their names
	Notes []string // sentences about what was left out
}

// List expands folders, their sub-folders included, to the images in them. A
// link is followed, and what it points at may be gone: that is noted.
func List(paths []string) (Files, error) {
	var out Files
	var lost, other []string
	for _, p := range paths {
		info, err := os.Stat(p)
		if errors.Is(err, os.ErrNotExist) {
			return out, fmt.Errorf("there is no file or folder %s: %w", p, os.ErrNotExist)
		}
		if err != nil {
			return out, err
		}
		if !info.IsDir() {
			out.Paths = append(out.Paths, p)
			continue
		}
		err = imagefolder.Walk(p, func(rel, full string) {
			switch {
			case isImageName(rel):
				out.Paths = append(out.Paths, full)
			case slices.Contains(otherImages, strings.ToLower(path.Ext(rel))):
				other = append(other, full)
			}
		}, func(rel string, err error) {
			lost = append(lost, fmt.Sprintf("%s (%v)", filepath.Join(p, rel), cause(err)))
		})
		if err != nil {
			return out, err
		}
	}
	if len(lost) > 0 {
		out.Notes = append(out.Notes, fmt.Sprintf("%s could not be looked at, first %s", count(len(lost), "file or folder", "files or folders"), lost[0]))
	}
	if len(other) > 0 {
		out.Notes = append(out.Notes, fmt.Sprintf("%s left out, first %s: JPEG, PNG, BMP, TIFF and WebP are read", count(len(other), "picture of another format is", "pictures of other formats are"), other[0]))
	}
	if len(out.Paths) == 0 {
		err := fmt.Errorf("%w in %s: JPEG, PNG, BMP, TIFF and WebP files are found by their names", ErrNoImages, strings.Join(paths, ", "))
		if len(out.Notes) > 0 {
			err = fmt.Errorf("%w; %s", err, strings.Join(out.Notes, "; "))
		}
		return out, err
	}
	return out, nil
}

// cause is an error of the file system without the path.
func cause(err error) error {
	if at, ok := errors.AsType[*fs.PathError](err); ok {
		return at.Err
	}
	return err
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// Normals lists what is normal in the folders that a user names to learn from,
// as [List] does. A data set in the layout of MVTec AD has its training images
// taken and nothing else; folders that plainly hold defects or masks beside
// normal images are refused.
func Normals(paths []string) (Files, error) {
	return listOf(paths, func(s labelled) ([]string, error) { return s.normal(false) })
}

// Anomalies does the same for labelled anomalies: of a data set, those to test
// with are taken.
func Anomalies(paths []string) (Files, error) {
	return listOf(paths, func(s labelled) ([]string, error) { return s.normal(true) })
}

func listOf(paths []string, take func(labelled) ([]string, error)) (Files, error) {
	var taken, notes []string
	for _, p := range paths {
		s, ok := labelledIn(p)
		if !ok {
			taken = append(taken, p)
			continue
		}
		folders, err := take(s)
		if err != nil {
			return Files{}, err
		}
		taken = append(taken, folders...)
		var short []string
		for _, f := range folders {
			if rel, err := filepath.Rel(p, f); err == nil {
				f = rel
			}
			short = append(short, f)
		}
		notes = append(notes, fmt.Sprintf("%s is a data set: %s taken of it", p, joinAnd(short, "is", "are")))
	}
	out, err := List(taken)
	out.Notes = append(notes, out.Notes...)
	return out, err
}

func joinAnd(what []string, one, many string) string {
	if len(what) == 1 {
		return what[0] + " " + one
	}
	if len(what) > 4 {
		what = append(slices.Clone(what[:3]), fmt.Sprintf("%d more", len(what)-3))
	}
	return strings.Join(what[:len(what)-1], ", ") + " and " + what[len(what)-1] + " " + many
}

// labelled is a folder whose sub-folders say what is normal and what is not.
type labelled struct {
	dir         string
	train, test []string // folders of normals to learn from; all folders of test
	mixed       []string // folders right below, good ones and others
}

// labelledIn examines a folder. Of a plain one ok is false.
func labelledIn(dir string) (s labelled, ok bool) {
	s.dir = dir
	sub := foldersIn(dir)
	train, test := find(sub, "train", "training"), find(sub, "test", "testing")
	if train != "" {
		for _, name := range foldersIn(filepath.Join(dir, train)) {
			if isGood(name) {
				s.train = append(s.train, filepath.Join(dir, train, name))
			}
		}
	}
	if test != "" {
		for _, name := range foldersIn(filepath.Join(dir, test)) {
			s.test = append(s.test, filepath.Join(dir, test, name))
		}
	}
	if slices.ContainsFunc(sub, isGood) && len(sub) > 1 || slices.ContainsFunc(sub, isTruth) {
		s.mixed = sub
	}
	return s, len(s.train) > 0 && test != "" || len(s.mixed) > 0 || train != "" && test != "" && len(s.test) > 0
}

// normal are the folders to learn from, or those of anomalies.
func (s labelled) normal(anomalies bool) ([]string, error) {
	switch {
	case anomalies && len(s.train) > 0:
		bad := slices.DeleteFunc(slices.Clone(s.test), func(f string) bool { return isGood(filepath.Base(f)) })
		if len(bad) > 0 {
			return bad, nil
		}
	case len(s.train) > 0:
		return s.train, nil
	}
	what := s.mixed
	if len(what) == 0 {
		what = foldersIn(s.dir)
	}
	want := "normal images"
	if anomalies {
		want = "anomalies"
	}
	return nil, fmt.Errorf("%s holds several kinds of images (%s): name the folders of %s only", s.dir, strings.Join(what, ", "), want)
}

// goodNames are what folders of normal images are called.
var goodNames = []string{Good, "ok", "normal", "normals"}

func isGood(name string) bool { return slices.Contains(goodNames, strings.ToLower(name)) }

// truthNames are what folders of masks are called.
var truthNames = []string{"ground_truth", "groundtruth", "ground-truth", "ground truth", "gt", "masks", "mask"}

func isTruth(name string) bool { return slices.Contains(truthNames, strings.ToLower(name)) }

// foldersIn are the folders right below dir that are not hidden, by name; none
// where it cannot be read.
func foldersIn(dir string) []string {
	entries, _ := os.ReadDir(dir)
	var out []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") && isDir(dir, e.Name()) {
			out = append(out, e.Name())
		}
	}
	return out
}

// find gives the name that is one of some, whatever its case.
func find(names []string, some ...string) string {
	for _, n := range names {
		if slices.Contains(some, strings.ToLower(n)) {
			return n
		}
	}
	return ""
}
