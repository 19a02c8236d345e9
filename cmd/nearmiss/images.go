package main

import (
	"fmt"

	"github.com/nearmiss/nearmiss/training/dataset"
)

// listImages expands folders, their sub-folders included, to the images in
// them, in the order of their names.
func (o *output) listImages(paths []string) ([]string, error) { return o.listed(dataset.List(paths)) }

// listNormals does so for images to learn from, of which some folders hold more
// than that.
func (o *output) listNormals(paths []string) ([]string, error) {
	return o.listed(dataset.Normals(paths))
}

// listAnomalies does so for labelled anomalies.
func (o *output) listAnomalies(paths []string) ([]string, error) {
	return o.listed(dataset.Anomalies(paths))
}

func (o *output) listed(f dataset.Files, err error) ([]string, error) {
	if err != nil {
		return nil, err
	}
	o.notes(f.Notes)
	return f.Paths, nil
}

// notes prints sentences for people, apart from the results.
func (o *output) notes(all []string) {
	for _, n := range all {
		fmt.Fprintln(o.Err, "note:", n)
	}
}
