package dataset

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image/png"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/internal/imagefolder"
)

// ReadMask returns the ground truth of an anomaly, one byte a pixel, row-major,
// 0 where the image is normal and 255 where it is not, and its size. Items
// without a mask give nil; several masks are put together.
//
// A pixel is marked where its brightest channel is above 0, in masks of a few
// values (0 and 255, 0 and 1, a number for each kind of defect), or above half of
// the mask's maximum in others, whose edges are smoothed or whose format loses
// values. Of a mask with transparency the opaque pixels are marked.
func (it Item) ReadMask() (mask []uint8, width, height int, err error) {
	for _, file := range it.Masks {
		m, w, h, err := readMask(file)
		if err != nil {
			return nil, 0, 0, fmt.Errorf("mask %s of %s: %w", file, it.Name, err)
		}
		if mask == nil {
			mask, width, height = m, w, h
			continue
		}
		if w != width || h != height {
			return nil, 0, 0, fmt.Errorf("mask %s of %s has %d×%d pixels, another %d×%d", file, it.Name, w, h, width, height)
		}
		for i, v := range m {
			mask[i] |= v
		}
	}
	return mask, width, height, nil
}

// fewValues are those of a mask in which every value above 0 marks.
const fewValues = 16

func readMask(file string) ([]uint8, int, int, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, 0, 0, cause(err)
	}
	m, err := imaging.Decode(b, imaging.Limits{})
	if err != nil {
		return nil, 0, 0, err
	}
	values := opaque(b, m.Width, m.Height)
	if values == nil {
		values = make([]uint8, m.Width*m.Height)
		for i := range values {
			values[i] = max(m.Pix[3*i], m.Pix[3*i+1], m.Pix[3*i+2])
		}
	}
	var there [256]bool
	for _, v := range values {
		there[v] = true
	}
	kinds, most := 0, 0
	for v, is := range there {
		if is {
			kinds++
			most = v
		}
	}
	level := 0
	if kinds > fewValues || bytes.HasPrefix(b, []byte("\xff\xd8")) { // JPEG rings around edges
		level = most / 2
	}
	for i, v := range values {
		values[i] = 0
		if int(v) > level {
			values[i] = 255
		}
	}
	return values, m.Width, m.Height, nil
}

// opaque is the alpha channel of a PNG file, if it tells pixels apart, or nil.
func opaque(b []byte, width, height int) []uint8 {
	const kindAt = 25 // of IHDR: 4 and 6 have alpha, 3 may
	if !bytes.HasPrefix(b, []byte("\x89PNG")) || len(b) <= kindAt || !slices.Contains([]byte{3, 4, 6}, b[kindAt]) {
		return nil
	}
	img, err := png.Decode(bytes.NewReader(b)) // imaging has checked its size
	if err != nil || img.Bounds().Dx() != width || img.Bounds().Dy() != height {
		return nil
	}
	out := make([]uint8, width*height)
	differ := false
	o := img.Bounds().Min
	for i := range out {
		_, _, _, a := img.At(o.X+i%width, o.Y+i/width).RGBA()
		out[i] = uint8(a >> 8)
		differ = differ || out[i] != out[0]
	}
	if !differ {
		return nil
	}
	return out
}

// marks are words that a mask's name has besides its image's.
var marks = []string{"mask", "masks", "gt", "groundtruth", "truth", "label", "labels", "seg", "segmentation", "bm", "anomaly", "defect", "annotation"}

// maskOf finds the image that a mask belongs to, by stems: its own, or one to
// which the mask's adds, after or before a separator, one of marks or a number
// after it (000_mask, 000.bm, 000_mask_2, mask-000). Case does not matter. Images
// are given in lower case; "" where there is none.
func maskOf(mask string, images map[string]bool) string {
	mask = strings.ToLower(mask)
	if images[mask] {
		return mask
	}
	for at := len(mask) - 1; at > 0; at-- {
		if !strings.ContainsRune("_-. ", rune(mask[at])) {
			continue
		}
		if front := mask[:at]; images[front] && isMark(mask[at+1:]) {
			return front
		}
	}
	for at := range mask {
		if strings.ContainsRune("_-. ", rune(mask[at])) && images[mask[at+1:]] && isMark(mask[:at]) {
			return mask[at+1:]
		}
	}
	return ""
}

// isMark: words of marks and numbers, at least one of the former.
func isMark(s string) bool {
	found := false
	for _, w := range strings.FieldsFunc(s, func(r rune) bool { return strings.ContainsRune("_-. ", r) }) {
		switch w = strings.TrimRight(w, "0123456789"); {
		case w == "":
		case slices.Contains(marks, w):
			found = true
		case w != "ground":
			return false
		}
	}
	return found
}

// places are a label's images by folder and by stem, in lower case; the empty
// folder has those of all.
type places map[string]map[string]bool

func (p places) add(folder, stem string) {
	for _, f := range []string{folder, ""} {
		if p[f] == nil {
			p[f] = map[string]bool{}
		}
		p[f][stem] = true
	}
}

// find is the folder and stem of the image that a mask with a path belongs to: in
// the same folder, or in the one above a folder that is called like the image, or
// in any if none has the stem twice.
func (p places) find(rel string, twice map[string]bool) (key [2]string, ok bool) {
	folder := path.Dir(rel)
	if of := maskOf(stem(rel), p[folder]); of != "" {
		return [2]string{folder, of}, true
	}
	if folder != "." {
		if of := maskOf(path.Base(folder), p[path.Dir(folder)]); of != "" {
			return [2]string{path.Dir(folder), of}, true
		}
	}
	of := maskOf(stem(rel), p[""])
	if of == "" && folder != "." {
		of = maskOf(path.Base(folder), p[""])
	}
	if of == "" || twice[of] {
		return key, false
	}
	for f, stems := range p {
		if f != "" && stems[of] {
			return [2]string{f, of}, true
		}
	}
	return key, false
}

// masked finds the masks of a label's images, and takes masks that lie among the
// images for what they are.
func (s *Set) masked(label string, items []Item) ([]Item, error) {
	rel := func(it Item) string {
		return strings.ToLower(strings.TrimPrefix(it.Name, path.Join(Test, label)+"/"))
	}
	at, twice := places{}, map[string]bool{}
	var images, inside []Item
	for _, it := range items {
		if slices.ContainsFunc(strings.Split(path.Dir(rel(it)), "/"), isTruth) { // as in MVTec 3D-AD
			inside = append(inside, it)
			continue
		}
		images = append(images, it)
		twice[stem(rel(it))] = at[""][stem(rel(it))]
		at.add(path.Dir(rel(it)), stem(rel(it)))
	}
	masks := map[[2]string][]string{}
	var lost []string
	belongs := func(name, full, shown string) {
		if key, ok := at.find(strings.ToLower(name), twice); ok {
			masks[key] = append(masks[key], full)
		} else {
			lost = append(lost, shown)
		}
	}
	images = slices.DeleteFunc(images, func(it Item) bool {
		folder, own := path.Dir(rel(it)), stem(rel(it))
		delete(at[folder], own)
		of := maskOf(own, at[folder])
		at[folder][own] = true
		if of == "" {
			return false
		}
		key := [2]string{folder, of}
		masks[key] = append(masks[key], it.Path)
		return true
	})
	for _, it := range inside {
		parts := slices.DeleteFunc(strings.Split(rel(it), "/"), isTruth)
		belongs(strings.Join(parts, "/"), it.Path, it.Name)
	}
	truth := find(foldersIn(s.Root), truthNames...)
	if name := find(foldersIn(filepath.Join(s.Root, truth)), strings.ToLower(label)); truth != "" && name != "" {
		err := imagefolder.Walk(filepath.Join(s.Root, truth, name), func(rel, full string) {
			if isImageName(rel) {
				belongs(rel, full, path.Join(truth, name, rel))
			}
		}, func(rel string, _ error) { lost = append(lost, path.Join(truth, name, rel)) })
		if err != nil {
			return nil, fmt.Errorf("list masks: %w", err)
		}
	}
	if len(lost) > 0 {
		s.Notes = append(s.Notes, fmt.Sprintf("%s of %s by name to no image, first %s: a mask is called like its image, or like it with _mask after it",
			count(len(lost), "mask", "masks"), label+map[bool]string{true: " belongs", false: " belong"}[len(lost) == 1], lost[0]))
	}
	without := 0
	for i := range images {
		if images[i].Masks = masks[[2]string{path.Dir(rel(images[i])), stem(rel(images[i]))}]; images[i].Masks == nil {
			without++
		}
	}
	if without > 0 && (without < len(images) || truth != "") {
		s.Notes = append(s.Notes, fmt.Sprintf("%d of %d images of %s have no mask; their pixels are not measured", without, len(images), label))
	}
	return images, nil
}

// CheckMasks reads every mask and notes those that mark nothing, whose images'
// pixels cannot be measured.
func (s *Set) CheckMasks(ctx context.Context) (notes []string, err error) {
	empty := map[string][]string{}
	total := map[string]int{}
	var errs []error
	for _, it := range s.Items {
		if len(it.Masks) == 0 {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		mask, _, _, err := it.ReadMask()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		total[it.Label]++
		if !slices.Contains(mask, 255) {
			empty[it.Label] = append(empty[it.Label], it.Name)
		}
	}
	if len(errs) > 0 {
		return nil, fmt.Errorf("%s of data set %s cannot be read, first: %w", count(len(errs), "mask", "masks"), s.Root, errors.Join(errs[0]))
	}
	for _, label := range s.Labels() {
		if names := empty[label]; len(names) > 0 {
			notes = append(notes, fmt.Sprintf("%d of %d masks of %s mark nothing, first that of %s; their pixels are not measured", len(names), total[label], label, names[0]))
		}
	}
	return notes, nil
}
