package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/training"
)

type detectorCmd struct {
	Create detectorCreateCmd `cmd:"" help:"Create a detector."`
	List   detectorListCmd   `cmd:"" help:"List the detectors."`
	Show   detectorShowCmd   `cmd:"" help:"Show a detector's configuration."`
	Set    detectorSetCmd    `cmd:"" help:"Change a detector's configuration."`
	Delete detectorDeleteCmd `cmd:"" help:"Delete a detector and its waiting frames."`
}

func (*detectorCmd) Help() string {
	return examples(
		"nearmiss detector create bolts --learn-frames 200",
		"nearmiss detector create bolts --learn-frames 200 --backbone vit-small --false-alarm-rate 0.005",
		"nearmiss detector create cells --symmetry dihedral --region 0.1,0.1,0.8,0.8",
		"nearmiss detector set bolts --quiet 2m --quiet-frames 20 --group detector",
		"nearmiss detector set bolts --cool-down 30s --smoothing 3",
		"nearmiss detector list --json",
		"nearmiss detector show bolts",
		"nearmiss detector delete bolts --everything",
	)
}

// detectorFlags are the settings; what is not given stays as it is.
type detectorFlags struct {
	Description   *string `placeholder:"TEXT" help:"What is inspected."`
	learningFlags `group:"How it learns:"`
	judgingFlags  `group:"How it compares:"`
	alarmFlags    `group:"When it raises an alarm:"`
	keepingFlags  `group:"Frames and pictures:"`
}

type learningFlags struct {
	Backbone     *string        `placeholder:"NAME" help:"Model to begin with: a name of the catalogue, or of a file in the trainers' folder of models (default: the trainer's own)."`
	Method       *string        `placeholder:"M" help:"How it learns: knn or fitymi (default knn)."`
	Profile      *string        `placeholder:"P" help:"Training profile (default: the method's own)."`
	HeldOut      *float64       `placeholder:"SHARE" help:"Share of the normals that is kept out of the bank and alone sets the threshold (default 0.2; with a score of several parts, all normals set it by cross-validation)."`
	LearnFrames  *int           `placeholder:"N" help:"Without a release, take the first N frames as normal and learn from them (default 0: frames wait)."`
	RetrainEvery *time.Duration `placeholder:"TIME" help:"Train again this often (default 0s: never)."`
	RetrainAfter *int           `placeholder:"N" help:"Train again after N new normals (default 0: never)."`
}

type judgingFlags struct {
	Score    *string        `placeholder:"PARTS" help:"What scores are made of: full (every layer of the whole picture, and single patches), class (the paper's), or parts of your own, as in fit --score (default full)."`
	K        *int           `name:"k" placeholder:"N" help:"Nearest normals whose distances are summed (default 2)."`
	Symmetry *string        `placeholder:"S" help:"What embeddings are averaged over: none, flip (twice the time of a frame) or dihedral (eight times), for parts in any orientation; auto decides by the normals (default none)."`
	Tiles    *string        `placeholder:"RxC" help:"Cut frames into rows and columns of overlapping tiles, as in 2x3; each tile takes as long as a frame. few: 2x2 where the inspected part has 400 pixels both ways; auto: as many as the normals' pixels and the budget allow; or none (default: few with the full score, auto with a budget)."`
	Budget   *time.Duration `placeholder:"TIME" help:"Use larger inputs or tiles as far as one frame can be judged in this time on the trainer's machine, as in 200ms (default 0s: the backbone's own input, and --tiles)."`
	Region   *string        `placeholder:"X,Y,W,H" help:"Inspect only this part of the image, in fractions of its width and height; empty for all of it."`
	Ignore   []string       `placeholder:"X,Y,W,H" sep:"none" help:"Mask this part out; may be repeated, replaces those before."`
	Bits     *int           `placeholder:"N" help:"How many bits of 16-bit images are used, 8 to 32, as by a camera of 12 bits (default 0: what the normals need)."`
}

type alarmFlags struct {
	FalseAlarmRate *float64       `placeholder:"SHARE" help:"Share of normal images that may be called anomalous (default 0.01)."`
	Threshold      *float64       `placeholder:"SCORE" help:"Call a frame anomalous above this score, whatever the release promises (default 0: the release's threshold)."`
	Margin         *float64       `placeholder:"FACTOR" help:"Multiply the release's threshold by this (default 0: do not)."`
	Smoothing      *int           `placeholder:"N" help:"Decide on the mean of a camera's last N scores (default 1)."`
	CoolDown       *time.Duration `placeholder:"TIME" help:"At most one anomaly event a camera in this time (default 0s: all)."`
	Quiet          *time.Duration `placeholder:"TIME" help:"An incident is over when nothing has gone wrong for so long (default 30s)."`
	QuietFrames    *int           `placeholder:"N" help:"Or, sooner, after N good frames in a row (default 0: time alone)."`
	Group          *string        `placeholder:"G" help:"What an incident is of: camera, or detector, all its cameras together (default camera)."`
	Silence        *time.Duration `placeholder:"TIME" help:"A camera without a frame for so long is an event (default 0s: never)."`
	DefectShare    *float64       `placeholder:"SHARE" help:"Share of defective frames that is nothing to worry about (default 0.05)."`
}

type keepingFlags struct {
	Policy      *string        `placeholder:"P" help:"lossless: every frame is scored; live: only the newest (default lossless)."`
	LiveBacklog *int           `placeholder:"N" help:"live: frames that may wait (default 32)."`
	Evidence    *bool          `negatable:"" help:"Keep the images of anomalies, pictures of where they are strange, and, in the next release, thumbnails of normals (default yes)."`
	Retention   *time.Duration `placeholder:"TIME" help:"How long those images are kept (default 720h)."`
	EvidenceMiB *int           `name:"evidence-mib" placeholder:"N" help:"How much pictures of anomalies may take; the oldest go first (default 256)."`
}

// apply changes d by the flags that were given.
func (f detectorFlags) apply(d *stream.Detector) error {
	give(&d.Description, f.Description)
	give(&d.Backbone, f.Backbone)
	give(&d.Method, f.Method)
	give(&d.Profile, f.Profile)
	give(&d.Score, f.Score)
	give(&d.Symmetry, f.Symmetry)
	give(&d.Tiles, f.Tiles)
	give((*time.Duration)(&d.Budget), f.Budget)
	give(&d.K, f.K)
	give(&d.Bits, f.Bits)
	give(&d.FalseAlarmRate, f.FalseAlarmRate)
	give(&d.HeldOut, f.HeldOut)
	give(&d.Threshold, f.Threshold)
	give(&d.Margin, f.Margin)
	give(&d.Policy, f.Policy)
	give(&d.LiveBacklog, f.LiveBacklog)
	give(&d.Smoothing, f.Smoothing)
	give(&d.DefectShare, f.DefectShare)
	give(&d.LearnFrames, f.LearnFrames)
	give(&d.EvidenceMiB, f.EvidenceMiB)
	give(&d.RetrainAfter, f.RetrainAfter)
	give((*time.Duration)(&d.CoolDown), f.CoolDown)
	give((*time.Duration)(&d.Quiet), f.Quiet)
	give(&d.QuietFrames, f.QuietFrames)
	give(&d.Group, f.Group)
	give((*time.Duration)(&d.Silence), f.Silence)
	give((*time.Duration)(&d.Retention), f.Retention)
	give((*time.Duration)(&d.RetrainEvery), f.RetrainEvery)
	if f.Score != nil {
		if _, err := training.ParseScore(*f.Score); err != nil {
			return usageError{err}
		}
	}
	if f.Evidence != nil {
		d.NoEvidence = !*f.Evidence
	}
	if f.Region != nil {
		d.Region = nil
		if *f.Region != "" {
			r, err := parseRegion(*f.Region)
			if err != nil {
				return err
			}
			d.Region = &r
		}
	}
	if f.Ignore != nil {
		d.Ignore = nil
		for _, s := range f.Ignore {
			r, err := parseRegion(s)
			if err != nil {
				return err
			}
			d.Ignore = append(d.Ignore, r)
		}
	}
	return nil
}

// give sets to when value is there.
func give[T any](to, value *T) {
	if value != nil {
		*to = *value
	}
}

func parseRegion(s string) (stream.Region, error) {
	parts := strings.Split(s, ",")
	var v [4]float64
	for i := range v {
		var err error
		if len(parts) == 4 {
			v[i], err = strconv.ParseFloat(strings.TrimSpace(parts[i]), 64)
		}
		if len(parts) != 4 || err != nil {
			return stream.Region{}, usageError{fmt.Errorf("region %q: give x,y,width,height as fractions, for instance 0.1,0.1,0.8,0.8", s)}
		}
	}
	return stream.Region{X: v[0], Y: v[1], Width: v[2], Height: v[3]}, nil
}

type detectorCreateCmd struct {
	Name string `arg:"" help:"Name of the detector: letters, digits, - and _."`
	JSON bool   `name:"json" help:"Print one JSON object."`
	detectorFlags
	serverFlags
}

func (c *detectorCreateCmd) Run(ctx context.Context, o *output) error {
	d := stream.Detector{Name: c.Name}
	if err := c.apply(&d); err != nil {
		return err
	}
	if err := d.Validate(); err != nil {
		return usageError{err}
	}
	return c.withClient("detector", o, func(control *stream.Client) error {
		d, err := control.CreateDetector(ctx, d)
		if errors.Is(err, stream.ErrConflict) {
			return fmt.Errorf("%w: change it with nearmiss detector set %s", err, c.Name)
		}
		if err != nil {
			return err
		}
		text := fmt.Sprintf("created %s: give it normals with nearmiss normals add %s DIR, then nearmiss train %s", d.Name, d.Name, d.Name)
		if d.LearnFrames > 0 {
			text = fmt.Sprintf("created %s: it learns from its first %d frames", d.Name, d.LearnFrames)
		}
		return o.result(c.JSON, d.Detector, text)
	})
}

type detectorListCmd struct {
	JSON bool `name:"json" help:"Print one JSON object a line."`
	serverFlags
}

func (c *detectorListCmd) Run(ctx context.Context, o *output) error {
	return c.withInstallation("detector", o, func(in *stream.Installation, _ *stream.Client) error {
		s, err := in.Detectors(ctx)
		if err != nil {
			return err
		}
		all, err := s.List(ctx)
		if err != nil {
			return err
		}
		return list(o, c.JSON, all, func(d stream.Detector) string {
			d = d.WithDefaults()
			return fmt.Sprintf("%-24s %-8s %-9s %s", d.Name, d.Method, d.Policy, d.Description)
		})
	})
}

type detectorShowCmd struct {
	Name string `arg:"" help:"Name of the detector."`
	JSON bool   `name:"json" help:"Print one JSON object."`
	serverFlags
}

func (c *detectorShowCmd) Run(ctx context.Context, o *output) error {
	return c.withInstallation("detector", o, func(in *stream.Installation, client *stream.Client) error {
		s, err := in.Detectors(ctx)
		if err != nil {
			return err
		}
		d, err := s.Get(ctx, c.Name)
		if err != nil {
			return err
		}
		decides, err := inForce(ctx, in, client, d, workersTimeout)
		if err != nil {
			return err
		}
		return printDetector(o, decides, c.JSON)
	})
}

// printDetector shows what is in force, defaults included.
func printDetector(o *output, in force, asJSON bool) error {
	d := in.Detector
	backbone := cmp.Or(d.Backbone, "the trainer's own")
	goodFrames := ""
	if d.QuietFrames > 0 {
		goodFrames = fmt.Sprintf(" or %d good frames", d.QuietFrames)
	}
	return o.result(asJSON, in, fmt.Sprintf("%s\n  learns     %s, k %d, false-alarm rate %g, backbone: %s\n  frames     %s, smoothing over %d, cool-down %v\n%s  incidents  of a %s, over after %v%s\n  evidence   kept: %v, for %v, pictures up to %d MiB\n  retrains   every %v, after %d normals (0: never)",
		d.Name, d.Method, d.K, d.FalseAlarmRate, backbone, d.Policy, d.Smoothing, time.Duration(d.CoolDown), in.text("  "), d.Group, time.Duration(d.Quiet), goodFrames, !d.NoEvidence,
		time.Duration(d.Retention), d.EvidenceMiB, time.Duration(d.RetrainEvery), d.RetrainAfter))
}

type detectorSetCmd struct {
	Name string `arg:"" help:"Name of the detector."`
	JSON bool   `name:"json" help:"Print one JSON object."`
	detectorFlags
	serverFlags
}

func (*detectorSetCmd) Help() string {
	return "What is learnt with (backbone, method, profile, score, symmetry, tiles, budget, region, mask) is used by the next training. The rest acts at once; k and the false-alarm rate do so in a new release of the same model, which a trainer makes without training."
}

func (c *detectorSetCmd) Run(ctx context.Context, o *output) error {
	return c.withInstallation("detector", o, func(in *stream.Installation, control *stream.Client) error {
		a, err := control.SetDetector(ctx, c.Name, c.apply)
		if err != nil {
			return err
		}
		decides, err := inForce(ctx, in, control, a.Detector, workersTimeout)
		if err != nil {
			return err
		}
		if err := printDetector(o, decides, c.JSON); err != nil {
			return err
		}
		d := a.WithDefaults()
		if a.Job != "" {
			fmt.Fprintf(o.Err, "note: k %d and false-alarm rate %g act with a release of the same model, which job %s makes now\n", d.K, d.FalseAlarmRate, a.Job)
		}
		if len(a.Learnt) > 0 {
			fmt.Fprintf(o.Err, "note: %s: the active release stays as it was learnt, until nearmiss train %s\n", strings.Join(a.Learnt, ", "), c.Name)
		}
		return nil
	})
}

type detectorDeleteCmd struct {
	Name       string `arg:"" help:"Name of the detector."`
	Everything bool   `help:"Delete its normals and labelled anomalies, too."`
	Yes        bool   `short:"y" help:"Do not ask. Without a terminal nobody is asked."`
	serverFlags
}

func (*detectorDeleteCmd) Help() string {
	return "Its jobs are cancelled. Its releases go with the next collection, its events with their age."
}

func (c *detectorDeleteCmd) Run(ctx context.Context, o *output) error {
	what := "detector " + c.Name
	if c.Everything {
		what += " with all its normals and labelled anomalies"
	}
	if !c.Yes && isTerminal(o.screen) && term.IsTerminal(int(os.Stdin.Fd())) && !ask(os.Stdin, o.screen, "delete "+what+"?") {
		return errors.New("nothing was deleted")
	}
	return c.withClient("detector", o, func(control *stream.Client) error {
		if err := control.DeleteDetector(ctx, c.Name, c.Everything); err != nil {
			return err
		}
		return o.printf("deleted %s\n", c.Name)
	})
}
