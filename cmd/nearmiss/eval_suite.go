package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/training"
	"github.com/nearmiss/nearmiss/training/evaluate"
)

// suite measures every variant on every set of a file.
func (c *evalCmd) suite(ctx context.Context, o *output, embed inference.EmbedOptions) error {
	if c.Out != "" && filepath.Ext(c.Out) != ".md" {
		return usageError{fmt.Errorf("--out %s: a suite's report is a table, name a file that ends in .md", c.Out)}
	}
	b, err := os.ReadFile(c.Suite)
	if err != nil {
		return err
	}
	s, err := evaluate.ParseSuite(b, filepath.Dir(c.Suite))
	if err != nil {
		return usageError{fmt.Errorf("%s: %w", c.Suite, err)}
	}
	bar := o.progress("")
	defer bar.close()
	var rows []evaluate.SuiteRow
	for _, set := range s.Sets {
		some, err := c.ofSet(set).suiteRows(ctx, o, embed, bar, set.Name)
		if err != nil {
			return fmt.Errorf("set %s: %w", set.Name, err)
		}
		bar.close()
		if err := c.printRows(o, some); err != nil {
			return err
		}
		rows = append(rows, some...)
	}
	all := evaluate.Summary(rows)
	if err := c.printRows(o, all); err != nil {
		return err
	}
	if c.Out == "" {
		return nil
	}
	return renameio.WriteFile(c.Out, []byte(evaluate.SuiteTable(append(rows, all...))), 0o644)
}

// ofSet is the command for one set of a suite.
func (c *evalCmd) ofSet(s evaluate.SuiteSet) *evalCmd {
	one := *c
	one.Data, one.Protocol, one.Repeats, one.Seed, one.Resplit = s.Data, s.Protocol, max(1, s.Repeats), s.Seed, s.Resplit
	one.Normal, one.Train, one.Test, one.Others = s.Normal, s.TrainLimit, s.TestLimit, ""
	return &one
}

// suiteRows measures each variant on one set.
func (c *evalCmd) suiteRows(ctx context.Context, o *output, embed inference.EmbedOptions, bar *progress, set string) ([]evaluate.SuiteRow, error) {
	variants, err := c.variants()
	if err != nil {
		return nil, err
	}
	var rows []evaluate.SuiteRow
	err = c.each(ctx, o, embed, bar, variants, func(res *evaluate.Result) error {
		rows = append(rows, res.Row(set))
		return nil
	})
	return rows, err
}

// each measures variants on the data, and hands out one result after the other.
func (c *evalCmd) each(ctx context.Context, o *output, embed inference.EmbedOptions, bar *progress, variants []variant, put func(*evaluate.Result) error) error {
	run, err := c.protocol(ctx, o)
	if err != nil {
		return err
	}
	all := &embedders{options: embed}
	defer all.Close()
	shared := &training.Shared{} // what other scores than class need
	defer shared.Close()
	for _, v := range variants {
		f, err := all.of(v)
		if err != nil {
			return err
		}
		res, err := v.measure(ctx, o, embed, bar, run, f, shared)
		if err != nil {
			return err
		}
		if err := put(res); err != nil {
			return err
		}
	}
	return nil
}

// printRows prints rows as they come, as lines of a table or as JSON.
func (c *evalCmd) printRows(o *output, rows []evaluate.SuiteRow) error {
	return list(o, c.JSON, rows, func(r evaluate.SuiteRow) string {
		line := fmt.Sprintf("%-16s %-24s AUROC %5.1f  AP %5.1f  to 5 %% false alarms %5.1f", r.Set, r.Method, 100*r.AUROC, 100*r.AveragePrecision, 100*r.Partial)
		if r.Nearest != nil {
			line += fmt.Sprintf("  nearest %5.1f", 100**r.Nearest)
		}
		if r.PixelAUROC != nil {
			line += fmt.Sprintf("  pixels %5.1f  PRO %5.1f", 100**r.PixelAUROC, 100**r.PRO)
		}
		if r.Cost != nil {
			line += fmt.Sprintf("  %.0f ms  %.0f MiB", r.Cost.Milliseconds, float64(r.Cost.Banks)/(1<<20))
		}
		if r.Light != nil {
			line += fmt.Sprintf("  other light: AUROC %.1f, %.1f %% false alarms become %.1f %%", 100*r.Light.AUROC, 100*r.Light.Usual, 100*r.Light.Alarms)
		}
		return line
	})
}

// embedders are models and what they said of images, by backbone, symmetry and precision.
type embedders struct {
	options  inference.EmbedOptions
	features map[[3]string]*evaluate.Features
	open     []io.Closer
}

// of is the memory over a variant's frozen backbone.
func (e *embedders) of(v variant) (*evaluate.Features, error) {
	at := [3]string{v.Backbone, v.Symmetry, v.Precision}
	if f := e.features[at]; f != nil {
		return f, nil
	}
	var err error
	o := e.options
	o.Precision = v.Precision
	if o.Symmetry, _, err = training.ParseSymmetry(v.Symmetry); err != nil {
		return nil, usageError{err}
	}
	m, err := inference.NewEmbedder(v.Backbone, o)
	if err != nil {
		return nil, err
	}
	if e.features == nil {
		e.features = map[[3]string]*evaluate.Features{}
	}
	e.open = append(e.open, m)
	e.features[at] = evaluate.NewFeatures(embedAll(m))
	return e.features[at], nil
}

func (e *embedders) Close() {
	for _, m := range e.open {
		_ = m.Close()
	}
}
