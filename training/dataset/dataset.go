// Package dataset lists images to learn from and to be judged by: plain
// folders, the layout of MVTec AD, folders of classes, and images in memory.
// Nothing is read until an [Item] is asked for its bytes.
//
// Three layouts are known, and [Open] recognises them:
//
//	folder   DIR/**/*.png                                   normal images
//	mvtec    DIR/train/good/*  DIR/test/good/*              normal images
//	         DIR/test/<defect>/*                            anomalies
//	         DIR/ground_truth/<defect>/<name>[_mask].png    masks, see [Item.ReadMask]
//	classes  DIR/{train,test}/<class>/*                     labelled images
//
// Items are sorted by name, so that everything that is drawn from a seed is the
// same on every machine.
package dataset

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nearmiss/nearmiss/internal/imagefolder"
)

// Good is the label of normal images in the MVTec layout.
const Good = "good"

// The two splits of a set.
const (
	Train = "train"
	Test  = "test"
)

// Layout is how a folder is arranged.
type Layout string

const (
	LayoutFolder  Layout = "folder"
	LayoutMVTec   Layout = "mvtec"
	LayoutClasses Layout = "classes"
)

// ErrNoImages: a folder holds nothing to learn from.
var ErrNoImages = errors.New("no images")

// Item is one image, not yet read.
type Item struct {
	Name   string   // unique in its set: the path below the set's folder, with slashes
	Path   string   // of the file; empty for images in memory
	Split  string   // Train, Test, or empty in a plain folder
	Label  string   // the class, or Good or the defect; empty in a plain folder
	Defect string   // the defect's name in the MVTec layout, empty for normal images
	Masks  []string // paths of the ground truth's masks, which count together

	bytes []byte
}

// FromBytes makes an item of an image file in memory.
func FromBytes(name, split, label string, b []byte) Item {
	return Item{Name: name, Split: split, Label: label, bytes: b}
}

// Read returns the image file's bytes.
func (it Item) Read() ([]byte, error) {
	if it.Path == "" {
		if it.bytes == nil {
			return nil, fmt.Errorf("image %s has neither a path nor bytes", it.Name)
		}
		return it.bytes, nil
	}
	return os.ReadFile(it.Path)
}

// Set is a data set.
type Set struct {
	Name   string // the folder's name
	Root   string
	Layout Layout
	Items  []Item
	// Ignored are the files that are no images by their names' ends, below Root.
	// Hidden files and text that describes the set are not listed.
	Ignored []string
	// Notes are sentences about what does not fit: masks without images, images
	// without masks, links that lead nowhere.
	Notes []string
}

// Open lists a folder in whatever layout it has.
func Open(dir string) (*Set, error) {
	switch {
	case isDir(dir, Test) && (isDir(dir, Train, Good) || goodIn(dir, Train) != "" && len(foldersIn(filepath.Join(dir, Train))) == 1):
		return MVTec(dir)
	case isDir(dir, "train") && isDir(dir, "test"):
		return Classes(dir)
	}
	return Folder(dir)
}

// goodIn is the name of the folder of normal images of a split.
func goodIn(dir, split string) string {
	return find(foldersIn(filepath.Join(dir, split)), goodNames...)
}

func isDir(parts ...string) bool {
	info, err := os.Stat(filepath.Join(parts...))
	return err == nil && info.IsDir()
}

// Folder lists all images below dir, with no labels.
func Folder(dir string) (*Set, error) {
	s, err := newSet(dir, LayoutFolder)
	if err != nil {
		return nil, err
	}
	if err := s.walk("", func(*Item) {}); err != nil {
		return nil, err
	}
	return s.done()
}

// MVTec lists a folder in the layout of MVTec AD. Of train only good is used:
// learning is from normal images. The folders of normal images may be called ok or
// normal, too.
func MVTec(dir string) (*Set, error) {
	s, err := newSet(dir, LayoutMVTec)
	if err != nil {
		return nil, err
	}
	train, test := goodIn(dir, Train), goodIn(dir, Test)
	if train == "" {
		return nil, fmt.Errorf("data set %s: %s/%s is missing: normal images are needed to learn from", dir, Train, Good)
	}
	if test == "" {
		return nil, fmt.Errorf("data set %s: %s/%s is missing: normal test images are needed to measure anything", dir, Test, Good)
	}
	if err := s.walk(path.Join(Train, train), func(it *Item) { it.Split, it.Label = Train, Good }); err != nil {
		return nil, err
	}
	labels, err := s.folders(Test)
	if err != nil {
		return nil, err
	}
	for _, folder := range labels {
		before := len(s.Items)
		label := folder
		if folder == test {
			label = Good
		}
		err := s.walk(path.Join(Test, folder), func(it *Item) {
			if it.Split, it.Label = Test, label; label != Good {
				it.Defect = label
			}
		})
		if err != nil {
			return nil, err
		}
		if label == Good {
			continue
		}
		images, err := s.masked(folder, s.Items[before:])
		if err != nil {
			return nil, err
		}
		s.Items = append(s.Items[:before], images...)
	}
	return s.done()
}

func stem(name string) string {
	name = path.Base(name)
	return strings.TrimSuffix(name, path.Ext(name))
}

// Classes lists a folder of labelled images, {train,test}/<class>/*. Every
// class must have images of both splits.
func Classes(dir string) (*Set, error) {
	s, err := newSet(dir, LayoutClasses)
	if err != nil {
		return nil, err
	}
	for _, split := range []string{Train, Test} {
		labels, err := s.folders(split)
		if err != nil {
			return nil, err
		}
		for _, label := range labels {
			if err := s.walk(path.Join(split, label), func(it *Item) { it.Split, it.Label = split, label }); err != nil {
				return nil, err
			}
		}
	}
	for _, label := range s.Labels() {
		for _, split := range []string{Train, Test} {
			if len(s.Select(split, label)) == 0 {
				return nil, fmt.Errorf("data set %s: class %s has no images in %s", dir, label, split)
			}
		}
	}
	return s.done()
}

func newSet(dir string, layout Layout) (*Set, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("open data set: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("open data set: %s is a file, give the folder with the images", dir)
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open data set: %w", err)
	}
	return &Set{Name: filepath.Base(abs), Root: dir, Layout: layout}, nil
}

func (s *Set) done() (*Set, error) {
	if len(s.Items) == 0 {
		return nil, fmt.Errorf("data set %s: %w (of %s) among %d files", s.Root, ErrNoImages, imagefolder.Extensions(), len(s.Ignored))
	}
	slices.SortFunc(s.Items, func(a, b Item) int { return strings.Compare(a.Name, b.Name) })
	slices.Sort(s.Ignored)
	return s, nil
}

// folders lists the folders right below one of the set's.
func (s *Set) folders(below string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.Root, below))
	if err != nil {
		return nil, fmt.Errorf("list data set: %w", err)
	}
	var out []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") && isDir(s.Root, below, e.Name()) {
			out = append(out, e.Name())
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("data set %s: %s has no folders: one for each class is expected", s.Root, below)
	}
	return out, nil
}

// walk adds the images below a folder of the set.
func (s *Set) walk(below string, label func(*Item)) error {
	err := imagefolder.Walk(filepath.Join(s.Root, filepath.FromSlash(below)), func(rel, full string) {
		name := path.Join(below, rel)
		if !isImageName(name) {
			if !described(path.Base(name)) {
				s.Ignored = append(s.Ignored, name)
			}
			return
		}
		it := Item{Name: name, Path: full}
		label(&it)
		s.Items = append(s.Items, it)
	}, func(rel string, err error) {
		s.Notes = append(s.Notes, fmt.Sprintf("%s cannot be looked at: %v", path.Join(below, rel), cause(err)))
	})
	if err != nil {
		return fmt.Errorf("list data set: %w", err)
	}
	return nil
}

// Labels lists the set's labels in alphabetical order.
func (s *Set) Labels() []string {
	var out []string
	for _, it := range s.Items {
		if it.Label != "" && !slices.Contains(out, it.Label) {
			out = append(out, it.Label)
		}
	}
	slices.Sort(out)
	return out
}

// Select returns the items of a split and a label; an empty argument admits
// all.
func (s *Set) Select(split, label string) []Item {
	var out []Item
	for _, it := range s.Items {
		if (split == "" || it.Split == split) && (label == "" || it.Label == label) {
			out = append(out, it)
		}
	}
	return out
}

// Resplit pools both splits of every label and draws them anew: round(share·n)
// of a label's n items, at least one, become Train and the others Test. What a
// label draws depends only on the seed, its name and its items. Anomalies of
// the MVTec layout stay in Test.
func (s *Set) Resplit(share float64, seed uint64) (*Set, error) {
	if !(share > 0 && share < 1) {
		return nil, fmt.Errorf("split of data set %s: share %v is not between 0 and 1", s.Root, share)
	}
	if s.Layout == LayoutFolder {
		return nil, fmt.Errorf("split of data set %s: its images have no labels", s.Root)
	}
	out := *s
	out.Items = slices.Clone(s.Items)
	for label, at := range s.byLabel() {
		if s.Layout == LayoutMVTec && label != Good {
			continue
		}
		n := max(1, int(math.Round(share*float64(len(at)))))
		if n == len(at) {
			return nil, fmt.Errorf("split of data set %s: %d images of %s leave none to test", s.Root, len(at), label)
		}
		for i, k := range draw(len(at), seed, label) {
			out.Items[at[k]].Split = Test
			if i < n {
				out.Items[at[k]].Split = Train
			}
		}
	}
	return &out, nil
}

// Limit keeps at most train and test items of each label, drawn from the seed;
// 0 sets no limit.
func (s *Set) Limit(train, test int, seed uint64) *Set {
	out := *s
	keep := make([]bool, len(s.Items))
	groups := map[[2]string][]int{}
	for i, it := range s.Items {
		g := [2]string{it.Split, it.Label}
		groups[g] = append(groups[g], i)
	}
	for g, at := range groups {
		n := len(at)
		if g[0] == Test && test > 0 {
			n = min(n, test)
		} else if g[0] != Test && train > 0 {
			n = min(n, train)
		}
		for _, k := range draw(len(at), seed, g[0]+"/"+g[1])[:n] {
			keep[at[k]] = true
		}
	}
	out.Items = nil
	for i, it := range s.Items {
		if keep[i] {
			out.Items = append(out.Items, it)
		}
	}
	return &out
}

func (s *Set) byLabel() map[string][]int {
	out := map[string][]int{}
	for i, it := range s.Items {
		out[it.Label] = append(out[it.Label], i)
	}
	return out
}

// draw is a permutation of n that depends on the seed and a name.
func draw(n int, seed uint64, name string) []int {
	h := fnv.New64a()
	io.WriteString(h, name) // a hash never fails to write
	return rand.New(rand.NewPCG(seed, h.Sum64())).Perm(n)
}

// Digest names what is in the items: the SHA-256 over split, label and the
// SHA-256 of the bytes of every item, sorted. Names and order do not matter.
func Digest(items []Item) (string, error) {
	lines := make([]string, len(items))
	for i, it := range items {
		b, err := it.Read()
		if err != nil {
			return "", fmt.Errorf("digest of image %s: %w", it.Name, err)
		}
		lines[i] = fmt.Sprintf("%s %s %x\n", it.Split, it.Label, sha256.Sum256(b))
	}
	slices.Sort(lines)
	h := sha256.New()
	for _, l := range lines {
		io.WriteString(h, l)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
