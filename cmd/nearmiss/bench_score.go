package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/internal/bench"
)

type benchScoreCmd struct {
	Release []string      `required:"" type:"existingdir" placeholder:"DIR" help:"Release folder; may be repeated, and the first is what others are compared with."`
	Images  []string      `type:"existingpath" placeholder:"DIR" help:"Images (default: 64 synthetic JPEG files of 256 × 256)."`
	Maps    string        `enum:"anomalies,all,none" default:"none" help:"Whose patch distances are computed where the score does not need them: ${enum}."`
	Time    time.Duration `default:"20s" help:"How long each release is measured."`
	JSON    bool          `name:"json" help:"Print one JSON object a line."`
	deviceFlags
}

func (*benchScoreCmd) Help() string {
	return examples("nearmiss bench score --release releases/class --release releases/both --images good/ --json")
}

func (c *benchScoreCmd) Run(ctx context.Context, o *output) error {
	embed, err := c.options()
	if err != nil {
		return err
	}
	files, err := benchEmbedCmd{Images: c.Images}.files(o)
	if err != nil {
		return err
	}
	maps := map[string]inference.Maps{"anomalies": inference.MapAnomalies, "all": inference.MapAll, "none": inference.MapNone}[c.Maps]
	const rounds = 10
	all, err := bench.Score(ctx, c.Release, files, inference.Options{Embed: embed, Maps: maps, Log: o.Log}, c.Time, rounds)
	if err != nil {
		return err
	}
	for _, r := range all {
		if c.JSON {
			if err := o.JSON(r); err != nil {
				return err
			}
			continue
		}
		recall := ""
		if r.Recall != nil {
			recall = fmt.Sprintf(", recall %.4f", *r.Recall)
		}
		fmt.Fprintf(o.Out, "%s (%s, banks of %v%s): %.1f images a second; time × %.2f, processor time × %.2f\n",
			r.Release, strings.Join(r.Parts, "+"), r.Banks, recall, r.Median, r.Time, r.CPU)
	}
	return nil
}
