package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/google/renameio/v2"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/heatmap"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/release"
	"github.com/nearmiss/nearmiss/training/evaluate/predictions"
)

type scoreCmd struct {
	Release string   `required:"" type:"existingdir" placeholder:"DIR" help:"Release folder, from nearmiss fit."`
	Images  []string `arg:"" name:"image" type:"existingpath" help:"Image files, or folders of them."`
	Heatmap string   `placeholder:"DIR" type:"path" help:"Also write where anomalous images are strange: IMAGE.overlay.png for people and IMAGE.heat.png with 16-bit values for programs, named like the images."`
	All     bool     `name:"heatmap-all" help:"With --heatmap, do so for normal images, too."`
	Out     string   `short:"o" type:"path" placeholder:"FILE" help:"Also write what was said of each image: .csv, .jsonl or .parquet, for notebooks."`
	JSON    bool     `name:"json" help:"Print one JSON object a line for each image."`
	deviceFlags
}

func (*scoreCmd) Help() string {
	return "Exits with 0 when every image has a score, whatever the scores are, and with 1 when some could not be read.\n\n" +
		"Heatmaps say how rare a place is among held-out normals: with p the share of normal patches that are at least as strange and L = -log10 p, " +
		"the intensity is I = L/(L+3), so that 0.5 is one patch in a thousand. In IMAGE.heat.png, which has the image's own size, " +
		"0 is a pixel that the model does not see, and v from 1 to 65535 is I = (v-1)/65534.\n\n" +
		examples(
			"nearmiss score --release releases/bolts part.jpg",
			"nearmiss score --release releases/bolts today/ --json",
			"nearmiss score --release releases/bolts today/ --out today.parquet",
			"nearmiss score --release releases/bolts today/ --heatmap heat/ --heatmap-all",
		)
}

// scoreLine is the JSON of one image.
type scoreLine struct {
	Image     string             `json:"image"`
	Score     *float64           `json:"score,omitempty"`
	Threshold *float64           `json:"threshold,omitempty"` // absent where nothing is called anomalous
	PValue    *float64           `json:"p_value,omitempty"`
	Parts     map[string]float64 `json:"parts,omitempty"` // of the score, each with its own
	Anomalous *bool              `json:"anomalous,omitempty"`
	K         int                `json:"k,omitempty"`
	Nearest   []namedNear        `json:"nearest,omitempty"`
	Width     int                `json:"width,omitempty"`
	Height    int                `json:"height,omitempty"`
	// Regions are where the image is strange, when the release can tell and the
	// image is anomalous or --heatmap-all asks.
	Regions  []heatmap.Region `json:"regions,omitempty"`
	Overlay  string           `json:"overlay,omitempty"` // file of --heatmap
	Heat     string           `json:"heat,omitempty"`    // file of --heatmap
	Release  string           `json:"release"`
	Rejected string           `json:"rejected,omitempty"` // code of why there is no score
	Reason   string           `json:"reason,omitempty"`
}

type namedNear struct {
	ID       uint64  `json:"id"`
	Distance float64 `json:"distance"`
	Name     string  `json:"name,omitempty"` // of the normal image
}

func (c *scoreCmd) Run(ctx context.Context, o *output) error {
	embed, err := c.options()
	if err != nil {
		return err
	}
	if c.All && c.Heatmap == "" {
		return usageError{errors.New("--heatmap-all needs --heatmap DIR")}
	}
	if c.Out != "" {
		if err := predictions.CheckName(c.Out); err != nil {
			return usageError{fmt.Errorf("--out %w", err)}
		}
		if err := writable("--out", c.Out); err != nil {
			return err
		}
	}
	if err := writableFolder("--heatmap", c.Heatmap); err != nil {
		return err
	}
	paths, err := o.listImages(c.Images)
	if err != nil {
		return err
	}
	targets, err := c.targets(paths)
	if err != nil {
		return err
	}
	maps := inference.MapAnomalies
	if c.All {
		maps = inference.MapAll
	}
	d, err := inference.Open(ctx, c.Release, inference.Options{Embed: embed, Maps: maps, Log: o.Log})
	if err != nil {
		return err
	}
	defer d.Close()
	if c.Heatmap != "" && !d.HasHeatmaps() {
		return fmt.Errorf("heatmaps with release %s: %w", c.Release, inference.ErrNoPlaces)
	}
	names, err := normalNames(c.Release)
	if err != nil {
		return err
	}
	var table *predictions.Table
	if c.Out != "" {
		if table, err = predictions.Create(c.Out); err != nil {
			return err
		}
		defer table.Abort()
	}
	bar := o.progress("scoring")
	defer bar.close()
	unread := 0
	const chunk = 64 // images in memory at a time
	for at := 0; at < len(paths); at += chunk {
		some := paths[at:min(at+chunk, len(paths))]
		files, lost := make([][]byte, len(some)), make([]error, len(some))
		for i, p := range some { // the others have their scores whatever became of one
			files[i], lost[i] = os.ReadFile(p)
		}
		scores, err := d.Score(ctx, files)
		if err != nil {
			return err
		}
		bar.close() // lines and bar do not mix on one terminal
		for i, s := range scores {
			if lost[i] != nil {
				s.Err = lost[i]
			}
			if s.Err != nil {
				unread++
			}
			h, err := c.heat(d, s, files[i], targets[some[i]])
			if err != nil {
				return fmt.Errorf("heatmap of %s: %w", some[i], err)
			}
			l := line(some[i], d.Info().Release, s, h, names)
			if err := o.result(c.JSON, l, l.text()); err != nil {
				return err
			}
			if table == nil {
				continue
			}
			if err := table.Write(l.row()); err != nil {
				return fmt.Errorf("write %s: %w", c.Out, err)
			}
		}
		bar.report(int64(at+len(some)), int64(len(paths)))
	}
	if table != nil {
		if err := table.Close(); err != nil {
			return fmt.Errorf("write %s: %w", c.Out, err)
		}
	}
	if unread > 0 {
		return fmt.Errorf("%d of %d images could not be read", unread, len(paths))
	}
	return nil
}

// targets are the paths, without their ends, of what --heatmap writes for each
// image: below its folder they are named as below the folders that were given.
func (c *scoreCmd) targets(paths []string) (map[string]string, error) {
	if c.Heatmap == "" {
		return nil, nil
	}
	of, taken := map[string]string{}, map[string]string{}
	for _, p := range paths {
		name := filepath.Base(p)
		for _, given := range c.Images {
			if rel, err := filepath.Rel(given, p); err == nil && rel != "." && filepath.IsLocal(rel) {
				name = rel
				break
			}
		}
		if other, ok := taken[name]; ok && other != p {
			return nil, usageError{fmt.Errorf("the heatmaps of %s and %s would have one name: score them one after the other, with other folders", other, p)}
		}
		of[p], taken[name] = filepath.Join(c.Heatmap, name), p
	}
	return of, nil
}

// heated is what a heatmap says of an image.
type heated struct {
	regions       []heatmap.Region
	overlay, heat string // files that were written
}

// heat finds the regions of a score that has a map, and writes the pictures to
// target with their ends, when there is one.
func (c *scoreCmd) heat(d *inference.Detector, s inference.Score, file []byte, target string) (h heated, err error) {
	if s.Err != nil || s.Map == nil || !d.HasHeatmaps() || !s.Anomalous && !c.All {
		return h, nil
	}
	m, err := d.Heatmap(s)
	if err != nil {
		return h, err
	}
	h.regions = m.Find(maxRegions)
	if !s.Anomalous { // its hottest place means nothing
		h.regions = slices.DeleteFunc(h.regions, func(r heatmap.Region) bool { return r.Faint })
	}
	if target == "" {
		return h, nil
	}
	frame, err := imaging.Decode(file, imaging.Limits{})
	if err != nil {
		return h, err
	}
	overlay, err := m.Overlay(frame, h.regions, 0)
	if err != nil {
		return h, err
	}
	over, err := overlay.PNG()
	if err != nil {
		return h, err
	}
	raw, err := m.PNG16()
	if err != nil {
		return h, err
	}
	h.overlay, h.heat = target+".overlay.png", target+".heat.png"
	return h, errors.Join(
		os.MkdirAll(filepath.Dir(target), 0o755),
		renameio.WriteFile(h.overlay, over, 0o644),
		renameio.WriteFile(h.heat, raw, 0o644),
	)
}

// line is what is said of an image.
func line(path, digest string, s inference.Score, h heated, names map[uint64]string) scoreLine {
	v := verdict(s)
	if gone, ok := errors.AsType[*fs.PathError](s.Err); ok {
		v.Reject, v.Reason = "unreadable", gone.Err.Error()
	}
	l := scoreLine{Image: path, Release: digest, Width: s.Width, Height: s.Height}
	if v.Reject != "" {
		l.Rejected, l.Reason = v.Reject, v.Reason
		return l
	}
	l.Parts = map[string]float64{}
	for _, p := range s.Parts {
		l.Parts[p.Name] = p.Score
	}
	l.Regions, l.Overlay, l.Heat = h.regions, h.overlay, h.heat
	l.Score, l.PValue, l.Anomalous, l.K = &s.Score, &s.PValue, &s.Anomalous, s.K
	if v.Threshold == s.Threshold {
		l.Threshold = &s.Threshold
	}
	for _, n := range s.Nearest {
		l.Nearest = append(l.Nearest, namedNear{ID: n.ID, Distance: float64(n.Distance), Name: names[n.ID]})
	}
	return l
}

// text is the line for people.
func (l scoreLine) text() string {
	if l.Rejected != "" {
		return fmt.Sprintf("%-9s %s: %s: %s", "rejected", quoted(l.Image), l.Rejected, l.Reason)
	}
	threshold := math.Inf(1)
	give(&threshold, l.Threshold)
	return fmt.Sprintf("%-9s score %-10.4g threshold %-10.4g p %-8.3g %s%s",
		word(*l.Anomalous), *l.Score, threshold, *l.PValue, quoted(l.Image), whereText(spots(l.Regions)))
}

// row is the line in a table.
func (l scoreLine) row() predictions.Row {
	r := predictions.Row{
		Path: l.Image, Score: l.Score, P: l.PValue, Parts: l.Parts, Regions: l.Regions, Anomalous: l.Anomalous, Threshold: l.Threshold,
	}
	if l.Rejected != "" {
		r.Reason = l.Rejected + ": " + l.Reason
	}
	return r
}

// quoted is a path as text lines show it: one that would end the line, or be cut
// in two by a reader, is quoted.
func quoted(path string) string {
	if strings.ContainsFunc(path, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(path)
	}
	return path
}

func word(anomalous bool) string {
	if anomalous {
		return "ANOMALY"
	}
	return "normal"
}

// normalNames are the names of the images behind a bank's entries. A release
// that does not list them gives none.
func normalNames(dir string) (map[uint64]string, error) {
	all, err := release.ReadNormals(dir)
	if err != nil {
		return nil, err
	}
	names := make(map[uint64]string, len(all))
	for _, n := range all {
		names[n.ID] = n.Name
	}
	return names, nil
}
