package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nearmiss/nearmiss/stream"
)

type trainCmd struct {
	Detector string `arg:"" help:"Detector to train."`
	Normals  string `type:"existingdir" placeholder:"DIR" help:"Add these images to its normals first."`
	Method   string `placeholder:"M" help:"Instead of the detector's: knn or fitymi."`
	Profile  string `placeholder:"P" help:"Instead of the detector's."`
	Seed     int64  `help:"Of everything random."`
	Promote  bool   `negatable:"" default:"true" help:"Make the release active when it passes its gate."`
	Force    bool   `help:"Also replace a release that promises fewer false alarms, or was learnt from far more normals."`
	Wait     bool   `help:"Wait for the end, and fail if the job does."`
	JSON     bool   `name:"json" help:"Print one JSON object a line: progress, then the job."`
	serverFlags
}

func (*trainCmd) Help() string {
	return "A trainer takes the job; frames are scored by the old release until the new one is ready.\n\n" +
		examples(
			"nearmiss train bolts --wait",
			"nearmiss train bolts --normals pictures/good --method fitymi",
		)
}

func (c *trainCmd) Run(ctx context.Context, o *output) error {
	return c.withInstallation("train", o, func(in *stream.Installation, control *stream.Client) error {
		return c.run(ctx, in, control, o)
	})
}

func (c *trainCmd) run(ctx context.Context, in *stream.Installation, control *stream.Client, o *output) error {
	if c.Normals != "" {
		p := o.progress("adding normals")
		_, _, err := addNormals(ctx, in.Normals(), c.Detector, []string{c.Normals}, false, o, p)
		p.close()
		if err != nil {
			return err
		}
	}
	// The job waits in the queue when no trainer runs.
	j, err := control.Train(ctx, stream.TrainRequest{
		Detector: c.Detector, Method: c.Method, Profile: c.Profile, Seed: c.Seed, Promote: c.Promote, Force: c.Force, Reason: "asked for",
	})
	if err != nil {
		return err
	}
	if !c.Wait {
		return o.result(c.JSON, j, fmt.Sprintf("job %s is in the queue; see nearmiss jobs %s", j.Job, c.Detector))
	}
	jobs, err := in.Jobs(ctx)
	if err != nil {
		return err
	}
	bar := o.progress("waiting for a trainer")
	j, err = jobs.Wait(ctx, j.Job, func(p stream.Progress) {
		if c.JSON {
			_ = o.JSON(p)
			return
		}
		bar.stage(stageText(p.Phase, p.Loss, p.Frechet, time.Duration(p.Left)), int64(p.Step), int64(p.Steps))
	})
	bar.close()
	if err != nil {
		return err
	}
	if err = o.result(c.JSON, j, jobText(j)); err == nil && j.State != stream.JobDone {
		err = fmt.Errorf("job %s: %s", j.Job, cmp.Or(j.Error, j.State))
	}
	return err
}

// stageText is what a training does, and what it has measured.
func stageText(step string, loss, frechet *float64, left time.Duration) string {
	text := step
	if loss != nil {
		text += fmt.Sprintf(", loss %.3g", *loss)
	}
	if frechet != nil {
		text += fmt.Sprintf(", Fréchet distance %.4g", *frechet)
	}
	if left >= time.Second {
		text += fmt.Sprintf(", %v left", left.Round(time.Second))
	}
	return text
}

// jobText is a job on one line.
func jobText(j stream.Job) string {
	text := fmt.Sprintf("%s  %-9s %s", j.At.Local().Format(time.DateTime), j.State, j.Job)
	switch {
	case j.State == stream.JobRunning && j.Progress != nil:
		p := j.Progress
		text += "  " + stageText(p.Phase, p.Loss, p.Frechet, time.Duration(p.Left))
		if p.Steps > 0 {
			text += fmt.Sprintf(", %d of %d", p.Step, p.Steps)
		}
		text += ", at " + j.Trainer
	case j.Release != "":
		text += fmt.Sprintf("  release %.12s, %s", j.Release, map[bool]string{true: "promoted", false: "not promoted"}[j.Promoted])
		if !j.Readjust && len(j.Retract) == 0 {
			text += "; " + counted(j.Normals, "normal")
		}
	}
	if j.Skipped > 0 {
		text += fmt.Sprintf("  %d normals could not be read and were left out", j.Skipped)
	}
	if j.Held != "" {
		text += "  held: " + j.Held
	}
	if j.Error != "" {
		text += "  " + j.Error
	}
	for _, n := range j.Notes {
		text += "\n    note: " + n
	}
	return text
}

type jobsCmd struct {
	Detector string `arg:"" optional:"" help:"Detector whose jobs are meant (default: all)."`
	Cancel   string `placeholder:"JOB" help:"Cancel this job."`
	JSON     bool   `name:"json" help:"Print one JSON object a line."`
	serverFlags
}

func (*jobsCmd) Help() string {
	return examples("nearmiss jobs", "nearmiss jobs bolts --json", "nearmiss jobs --cancel bolts-20260102-030405-AbCdEf")
}

func (c *jobsCmd) Run(ctx context.Context, o *output) error {
	return c.withInstallation("jobs", o, func(in *stream.Installation, control *stream.Client) error {
		if c.Cancel != "" {
			j, err := control.Cancel(ctx, c.Cancel)
			if err != nil {
				return err
			}
			if j.Finished() {
				return errors.New("job " + j.Job + " has ended already: " + j.State)
			}
			return list(o, c.JSON, []stream.Job{j}, jobText)
		}
		jobs, err := in.Jobs(ctx)
		if err != nil {
			return err
		}
		all, err := jobs.List(ctx, c.Detector)
		if err != nil {
			return err
		}
		return list(o, c.JSON, all, jobText)
	})
}
