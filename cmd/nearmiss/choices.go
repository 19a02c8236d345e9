package main

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/inference/backbone/catalogue"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/release"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/training"
)

// sequenceDigits is how many a normal's sequence has in the name of its file, where a
// trainer got it from the stream.
const sequenceDigits = 12

// outliersOf ranks the normals in the bank of the release in dir, strangest first.
func outliersOf(ctx context.Context, dir string) ([]stream.Outlier, error) {
	r, err := release.Open(dir)
	if err != nil {
		return nil, err
	}
	b, err := bank.ReadFile(filepath.Join(dir, r.Manifest.Bank.File), bank.ReadOptions{Verified: true}) // by the registry
	if err != nil {
		return nil, err
	}
	defer b.Close()
	scores, err := b.LeaveOneOut(ctx)
	if err != nil {
		return nil, err
	}
	normals, err := release.ReadNormals(dir)
	if err != nil {
		return nil, err
	}
	var out []stream.Outlier
	for _, n := range normals {
		if score, ok := scores[n.ID]; ok && n.Use == release.UsedInBank {
			o := stream.Outlier{BankID: n.ID, Name: filepath.Base(n.Name), Score: score}
			// Files that a trainer got from the stream have its sequence as their name.
			if stem := strings.TrimSuffix(n.Name, filepath.Ext(n.Name)); len(stem) == sequenceDigits {
				o.Sequence, _ = strconv.ParseUint(stem, 10, 64) // 0: it is another name
			}
			out = append(out, o)
		}
	}
	slices.SortFunc(out, func(a, b stream.Outlier) int {
		return cmp.Or(cmp.Compare(b.Score, a.Score), cmp.Compare(a.BankID, b.BankID))
	})
	return out, nil
}

// choices are what a detector of this trainer may be configured with. Models are
// names: those in its folder, those of the catalogue that are on this machine, and
// then what else the catalogue has.
func (c config) choices() (stream.Choices, error) {
	out := stream.Choices{
		Default: cmp.Or(modelName(c.Trainer.Backbone), "starter"), Methods: []string{string(training.KNN), string(training.FITYMI)}, Profiles: training.Profiles,
		Scores:     []string{training.FullScore, training.ClassScore, "patch", "pooled"},
		Symmetries: []string{"none", string(imaging.Flip), string(imaging.Dihedral), training.TurnedAuto},
	}
	files, err := filepath.Glob(filepath.Join(c.models(), "*.onnx"))
	if err != nil {
		return out, err
	}
	if c.Trainer.Backbone != "" {
		out.Backbones = append(out.Backbones, out.Default)
	}
	for _, f := range files {
		if info, err := os.Stat(f); err == nil && info.Mode().IsRegular() {
			out.Backbones = append(out.Backbones, modelName(f))
		}
	}
	s, err := store()
	if err != nil {
		return out, err
	}
	have, err := s.Known()
	if err != nil {
		return out, err
	}
	var far []string
	for _, e := range catalogue.Entries() {
		if _, ok := have[e.Name]; ok {
			out.Backbones = append(out.Backbones, e.Name)
		} else {
			far = append(far, e.Name)
		}
	}
	var once []string
	for _, b := range append(out.Backbones, far...) {
		if !slices.Contains(once, b) {
			once = append(once, b)
		}
	}
	out.Backbones = once
	return out, nil
}

// modelName is how a detector names the model in a file.
func modelName(file string) string {
	if file == "" {
		return ""
	}
	return strings.TrimSuffix(filepath.Base(file), ".onnx")
}
