package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/nearmiss/nearmiss/inference/release"
	"github.com/nearmiss/nearmiss/stream"
)

// A release that was made elsewhere makes its detector whole: with the
// configuration that it was learnt with, and the images that it was learnt from,
// without which the next training would know less than what serves.

// ensureDetector creates a release's detector where there is none.
func (c *releasesCmd) ensureDetector(ctx context.Context, o *output, in *stream.Installation, control *stream.Client, manifest []byte) error {
	all, err := in.Detectors(ctx)
	if err != nil {
		return err
	}
	if _, err := all.Get(ctx, c.Detector); !errors.Is(err, stream.ErrNoDetector) {
		return err
	}
	m, err := release.ParseManifest(manifest)
	if err != nil {
		// The registry stores what it does not understand; so does this.
		o.Log.Warn().Err(err).Msg("the release's manifest does not say how it was learnt: the detector gets the defaults")
	}
	d := stream.Detector{Name: c.Detector, Description: "created for a release that was made elsewhere", Method: m.Method, K: m.Bank.K, FalseAlarmRate: m.Calibration.Alpha}
	if v := m.Model.Preprocess.View; v != nil {
		if v.Region != nil {
			r := stream.Region(*v.Region)
			d.Region = &r
		}
		for _, r := range v.Ignore {
			d.Ignore = append(d.Ignore, stream.Region(r))
		}
	}
	if err := d.Validate(); err != nil {
		o.Log.Warn().Err(err).Msg("what the release was learnt with is no configuration: the detector gets the defaults")
		d = stream.Detector{Name: c.Detector}
	}
	if _, err := control.CreateDetector(ctx, d); err != nil && !errors.Is(err, stream.ErrConflict) {
		return err
	}
	fmt.Fprintf(o.Err, "note: created detector %s; nearmiss detector show %s says how it is configured\n", c.Detector, c.Detector)
	return nil
}

// bringNormals adds the images that a release was learnt from to a detector that
// has none, as far as they still lie where they lay, or in the folder c.Normals.
func (c *releasesCmd) bringNormals(ctx context.Context, o *output, s *stream.Normals) error {
	if have, err := s.Count(ctx, c.Detector); err != nil || have > 0 {
		return err
	}
	known, err := release.ReadNormals(c.Release)
	if err != nil {
		return err
	}
	p := o.progress("adding its normals")
	defer p.close()
	added, wanted := 0, 0
	for i, n := range known {
		if n.Use != release.UsedInBank && n.Use != release.UsedToHold {
			continue
		}
		wanted++
		data := c.find(n)
		if data == nil {
			continue
		}
		if _, err := s.Add(ctx, stream.Normal{
			Detector: c.Detector, Origin: "came with a release", Source: n.Name, Camera: n.Camera, CapturedAt: n.CapturedAt, Image: data,
		}); err != nil {
			return err
		}
		added++
		p.report(int64(i+1), int64(len(known)))
	}
	switch {
	case wanted == 0 || added == wanted:
		fmt.Fprintf(o.Err, "note: %d normals came with the release\n", added)
	default:
		fmt.Fprintf(o.Err, "note: %d of its %d normals came with the release: the others are not where they were when it was learnt; "+
			"name their folder with --normals, or add them with nearmiss normals add %s DIR before the next training\n", added, wanted, c.Detector)
	}
	return nil
}

// maxBrought bounds an image that is read, in bytes.
const maxBrought = 256 << 20

// find returns the bytes of an image that a release was learnt from, or nil.
func (c *releasesCmd) find(n release.Normal) []byte {
	paths := []string{n.Name}
	if c.Normals != "" {
		paths = []string{filepath.Join(c.Normals, n.Name), filepath.Join(c.Normals, filepath.Base(n.Name)), n.Name}
	}
	for _, path := range paths {
		if fi, err := os.Stat(path); err != nil || !fi.Mode().IsRegular() || fi.Size() > maxBrought {
			continue
		}
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) == n.SHA256 {
			return b
		}
	}
	return nil
}
