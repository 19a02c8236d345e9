package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/nearmiss/nearmiss/training/dataset"
)

// listImages expands folders, their sub-folders included, to the images in
// them, in the order of their names.
func listImages(paths []string) ([]string, error) {
	var all []string
	for _, p := range paths {
		info, err := os.Stat(p)
		if err != nil {
			return nil, err
		}
		if !info.IsDir() {
			all = append(all, p)
			continue
		}
		err = filepath.WalkDir(p, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			hidden := strings.HasPrefix(d.Name(), ".") && path != p
			switch {
			case hidden && d.IsDir():
				return filepath.SkipDir
			case !hidden && !d.IsDir() && dataset.IsImageName(path):
				all = append(all, path)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no images in %s: JPEG, PNG, BMP, TIFF and WebP files are looked for by their names", strings.Join(paths, ", "))
	}
	return all, nil
}
