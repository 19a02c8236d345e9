package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/nearmiss/nearmiss/inference/heatmap"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/stream"
)

type normalsCmd struct {
	Add    normalsAddCmd    `cmd:"" help:"Add images to a detector's normals, or to its labelled anomalies."`
	List   normalsListCmd   `cmd:"" help:"List them."`
	Export normalsExportCmd `cmd:"" help:"Write them, or their thumbnails, into a folder."`
	Remove normalsRemoveCmd `cmd:"" help:"Remove single images by their numbers."`
}

func (*normalsCmd) Help() string {
	return examples(
		"nearmiss normals add bolts pictures/good",
		"nearmiss normals add bolts --from-frames 500",
		"nearmiss normals add bolts --anomaly pictures/scratched",
		"nearmiss normals list bolts",
		"nearmiss normals export bolts look --thumbnail 160",
		"nearmiss normals remove bolts 17 18",
	)
}

type normalsAddCmd struct {
	Detector   string   `arg:"" help:"Detector that learns from them."`
	Paths      []string `arg:"" optional:"" type:"path" help:"Image files, and folders of them."`
	FromFrames int      `placeholder:"N" help:"Take the next N frames, besides their being scored."`
	Anomaly    bool     `help:"They show defects: keep them apart, for the gate that a new release must pass."`
	JSON       bool     `name:"json" help:"Print one JSON object."`
	serverFlags
}

func (c *normalsAddCmd) Run(ctx context.Context, o *output) error {
	if (len(c.Paths) == 0) == (c.FromFrames == 0) {
		return usageError{errors.New("give images or --from-frames")}
	}
	if c.FromFrames > 0 && c.Anomaly {
		return usageError{errors.New("--anomaly and --from-frames do not go together")}
	}
	return c.withInstallation("normals", o, func(in *stream.Installation, _ *stream.Client) error {
		s := in.Normals()
		p := o.progress("adding")
		defer p.close()
		var added, skipped int
		var err error
		if c.FromFrames > 0 {
			err = s.FromFrames(ctx, c.Detector, c.FromFrames, func(n int) {
				added = n
				p.report(int64(n), int64(c.FromFrames))
			})
		} else {
			added, skipped, err = addNormals(ctx, s, c.Detector, c.Paths, c.Anomaly, o, p)
		}
		if err != nil {
			return err
		}
		return c.report(o, added, skipped)
	})
}

func (c *normalsAddCmd) report(o *output, added, skipped int) error {
	what := "normals"
	if c.Anomaly {
		what = "labelled anomalies"
	}
	return o.result(c.JSON, map[string]any{"detector": c.Detector, "added": added, "skipped": skipped, "anomalies": c.Anomaly},
		fmt.Sprintf("added %s to the %s of %s, skipped %d", counted(added, "image"), what, c.Detector, skipped))
}

// addNormals adds files; what is no image is skipped and named. Adding a file
// again within an hour adds nothing.
func addNormals(ctx context.Context, s *stream.Normals, detector string, paths []string, anomaly bool, o *output, p *progress) (added, skipped int, err error) {
	list := o.listNormals
	if anomaly {
		list = o.listAnomalies
	}
	files, err := list(paths)
	if err != nil {
		return 0, 0, err
	}
	for i, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return added, skipped, err
		}
		if _, err := imaging.Decode(data, imaging.Limits{}); err != nil {
			o.Log.Warn().Err(err).Str("file", file).Msg("skipped")
			skipped++
			continue
		}
		if _, err := s.Add(ctx, stream.Normal{Detector: detector, Origin: "added from a file", Source: file, Anomaly: anomaly, Image: data}); err != nil {
			return added, skipped, err
		}
		added++
		p.report(int64(i+1), int64(len(files)))
	}
	return added, skipped, nil
}

type normalsListCmd struct {
	Detector  string `arg:"" help:"Detector whose normals are meant."`
	Anomalies bool   `help:"List the labelled anomalies instead."`
	JSON      bool   `name:"json" help:"Print one JSON object a line."`
	serverFlags
}

func (c *normalsListCmd) Run(ctx context.Context, o *output) error {
	return c.withInstallation("normals", o, func(in *stream.Installation, _ *stream.Client) error {
		s := in.Normals()
		all, err := s.List(ctx, c.Detector, c.Anomalies)
		if err != nil {
			return err
		}
		return list(o, c.JSON, all, func(n stream.Normal) string {
			line := fmt.Sprintf("%8d  %s  %9d bytes  %s  %s", n.Sequence, n.StoredAt.Local().Format(time.DateTime), n.Bytes, n.Origin, n.Source)
			if n.Problem != "" {
				line += "  left out: " + n.Problem
			}
			return line
		})
	})
}

type normalsExportCmd struct {
	Detector  string   `arg:"" help:"Detector whose normals are meant."`
	Dir       string   `arg:"" type:"path" help:"Folder to write to."`
	Numbers   []uint64 `arg:"" optional:"" help:"Numbers of the images, as list shows them (default: all)."`
	Anomalies bool     `help:"Export the labelled anomalies instead."`
	Thumbnail int      `placeholder:"PIXELS" help:"Write JPEG thumbnails with this longer side instead of the images themselves."`
	serverFlags
}

func (c *normalsExportCmd) Run(ctx context.Context, o *output) error {
	if c.Thumbnail < 0 || c.Thumbnail > 4096 {
		return usageError{fmt.Errorf("thumbnails of %d pixels: use 1 to 4096", c.Thumbnail)}
	}
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return err
	}
	return c.withInstallation("normals", o, func(in *stream.Installation, _ *stream.Client) error {
		s := in.Normals()
		count := 0
		write := func(n stream.Normal) error {
			data, ext := n.Image, cmp.Or(stream.ImageExtension(n.Image), ".img")
			if c.Thumbnail > 0 {
				img, err := imaging.Decode(n.Image, imaging.Limits{})
				if err != nil {
					o.Log.Warn().Err(err).Uint64("number", n.Sequence).Msg("skipped")
					return nil
				}
				if data, err = heatmap.Thumbnail(img, c.Thumbnail).JPEG(85); err != nil {
					return err
				}
				ext = ".jpg"
			}
			count++
			return os.WriteFile(filepath.Join(c.Dir, fmt.Sprintf("%08d%s", n.Sequence, ext)), data, 0o644)
		}
		if len(c.Numbers) == 0 {
			seen, err := s.Replay(ctx, c.Detector, c.Anomalies, true, write)
			if err != nil {
				return err
			}
			for _, n := range seen.Skipped {
				o.Log.Warn().Uint64("number", n.Sequence).Str("problem", n.Problem).Msg("skipped")
			}
		}
		for _, number := range c.Numbers {
			n, err := s.Get(ctx, c.Detector, number)
			if err == nil {
				err = write(n)
			}
			if err != nil {
				return err
			}
		}
		return o.printf("wrote %s to %s, named by their numbers\n", counted(count, "image"), c.Dir)
	})
}

type normalsRemoveCmd struct {
	Detector string   `arg:"" help:"Detector whose normals are meant."`
	Numbers  []uint64 `arg:"" help:"Numbers of the images, as list shows them."`
	serverFlags
}

func (c *normalsRemoveCmd) Run(ctx context.Context, o *output) error {
	return c.withClient("normals", o, func(control *stream.Client) error {
		if err := control.RemoveNormals(ctx, c.Detector, c.Numbers); err != nil {
			return err
		}
		return o.printf("removed %s; the next training does without them\n", counted(len(c.Numbers), "image"))
	})
}
