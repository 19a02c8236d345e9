package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/training"
	"github.com/nearmiss/nearmiss/training/dataset"
	"github.com/nearmiss/nearmiss/training/evaluate"
	"github.com/nearmiss/nearmiss/training/evaluate/report"
)

type evalCmd struct {
	Data     string   `required:"" type:"existingdir" placeholder:"DIR" help:"Data set: {train,test}/<class>/* (one-vs-rest) or the layout of MVTec AD (mvtec)."`
	Backbone string   `required:"" type:"existingfile" placeholder:"FILE.onnx" help:"Pretrained model, from nearmiss backbone import."`
	Protocol string   `required:"" enum:"one-vs-rest,mvtec" help:"What is normal and what is not: ${enum}."`
	Method   string   `enum:"knn,fitymi" default:"knn" help:"How to learn: ${enum}."`
	K        int      `default:"2" help:"Nearest normals whose squared distances make the score."`
	Repeats  int      `default:"1" placeholder:"N" help:"Repeat with the seeds S, S+1, …"`
	Seed     uint64   `default:"0" placeholder:"S" help:"Draws the random splits."`
	Resplit  float64  `placeholder:"SHARE" help:"Pool train and test and draw this share for training, anew in each repeat."`
	Normal   []string `placeholder:"CLASS" help:"Take only this class as normal; may be repeated (default: every class in turn)."`
	Out      string   `short:"o" type:"path" placeholder:"REPORT" help:"Also write a report: .html (one page with curves and the worst misses), .md or .jsonl."`
	JSON     bool     `name:"json" help:"Print one JSON object."`
	tuneFlags
	deviceFlags
}

func (*evalCmd) Help() string {
	return "The bank holds every normal training image, as in the paper; nothing is held out, because only ranks count here.\n\n" +
		examples(
			"nearmiss eval --data wbc --protocol one-vs-rest --backbone vit_ti.onnx --json",
			"nearmiss eval --data wbc --protocol one-vs-rest --backbone vit_ti.onnx --resplit 0.8 --repeats 10",
			"nearmiss eval --data wbc --protocol one-vs-rest --backbone vit_ti.onnx --method fitymi --fakes warp --work /tmp/wbc",
			"nearmiss eval --data magnetic-tile --protocol mvtec --backbone vit_ti.onnx --json",
		)
}

func (c *evalCmd) Run(ctx context.Context, o *output) error {
	switch filepath.Ext(c.Out) {
	case "", ".html", ".md", ".jsonl":
	default:
		return usageError{fmt.Errorf("--out %s: name a file that ends in .html, .md or .jsonl", c.Out)}
	}
	embed, err := c.options()
	if err != nil {
		return err
	}
	open, protocol := dataset.Classes, evaluate.OneVsRest
	if c.Protocol == evaluate.ProtocolMVTec {
		open, protocol = dataset.MVTec, evaluate.MVTec
	}
	set, err := open(c.Data)
	if err != nil {
		return err
	}
	bar := o.progress("")
	defer bar.close()
	method, end, err := c.method(o, embed, bar)
	if err != nil {
		return err
	}
	defer end()
	res, err := protocol(ctx, set, method, evaluate.Options{
		Repeats: c.Repeats, Seed: c.Seed, Resplit: c.Resplit, Normal: c.Normal,
		Progress: func(done, total int, what string) { bar.stage(what, int64(done), int64(total)) },
	})
	bar.close()
	if errors.Is(err, evaluate.ErrWrongLayout) {
		return usageError{err}
	}
	if err != nil {
		return err
	}
	if c.Out != "" {
		if err := c.report(ctx, res); err != nil {
			return fmt.Errorf("write the report %s: %w", c.Out, err)
		}
	}
	if c.JSON {
		return o.JSON(res)
	}
	return printResult(o, res)
}

// method is what is measured; end gives back what it holds.
func (c *evalCmd) method(o *output, embed inference.EmbedOptions, bar *progress) (m evaluate.Method, end func(), err error) {
	if c.Method == string(training.KNN) && c.Score == string(training.ClassPart) {
		e, err := inference.NewEmbedder(c.Backbone, embed)
		if err != nil {
			return nil, nil, err
		}
		return evaluate.KNN(evaluate.NewFeatures(embedAll(e)), c.K, nil), func() { e.Close() }, nil
	}
	plan, err := c.plan(c.Method)
	if err != nil {
		return nil, nil, err
	}
	end = func() {}
	if plan.Work == "" {
		if plan.Work, err = os.MkdirTemp("", "nearmiss-eval-"); err != nil {
			return nil, nil, err
		}
		end = func() { os.RemoveAll(plan.Work) }
	}
	plan.Backbone, plan.K, plan.Device, plan.Threads, plan.Log = c.Backbone, c.K, embed.Device, embed.Threads, o.Log
	plan.Progress = func(step string, done, total int) { bar.stage(step, int64(done), int64(total)) }
	m, err = training.ForEvaluation(plan, func(l training.Learning) {
		if plan.Method == training.FITYMI {
			o.printGate(l)
		}
	})
	if errors.Is(err, training.ErrPlan) {
		err = usageError{err}
	}
	if err != nil {
		end()
		return nil, nil, err
	}
	return m, end, nil
}

// report writes the result to the file --out, in the format that its name asks for.
func (c *evalCmd) report(ctx context.Context, res *evaluate.Result) error {
	f, err := renameio.NewPendingFile(c.Out, renameio.WithPermissions(0o644))
	if err != nil {
		return err
	}
	defer f.Cleanup()
	results := []evaluate.Result{*res}
	switch filepath.Ext(c.Out) {
	case ".html":
		err = report.HTML(ctx, f, report.Page{
			Title:   "Nearmiss: " + res.Protocol + " on " + res.Data,
			Notes:   []string{fmt.Sprintf("Method %s with %s, k = %d; nearmiss %s.", res.Method, filepath.Base(c.Backbone), c.K, version)},
			Results: results, Made: time.Now(),
		})
	case ".md":
		err = report.Markdown(f, results)
	default:
		err = report.JSONLines(f, results)
	}
	if err != nil {
		return err
	}
	return f.CloseAtomicallyReplace()
}

// embedAll is an embedder for which every image must be readable: a data set
// with a broken image gives no figures.
func embedAll(e *inference.Embedder) evaluate.EmbedFunc {
	return func(ctx context.Context, files [][]byte) ([][]float32, error) {
		all, err := e.Embed(ctx, files)
		if err != nil {
			return nil, err
		}
		vectors := make([][]float32, len(all))
		for i, v := range all {
			if v.Err != nil {
				return nil, fmt.Errorf("image %d: %w", i, v.Err)
			}
			vectors[i] = v.Vector
		}
		return vectors, nil
	}
}

func printResult(o *output, r *evaluate.Result) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s on %s, method %s: AUROC %.1f %%", r.Protocol, r.Data, r.Method, 100*r.AUROC)
	if r.Repeats > 1 {
		fmt.Fprintf(&b, " ± %.1f over %d repeats", 100*r.Std, r.Repeats)
	}
	b.WriteByte('\n')
	for _, parts := range []map[string]float64{r.PerClass, r.PerDefect} {
		for _, name := range slices.Sorted(maps.Keys(parts)) {
			fmt.Fprintf(&b, "  %-20s %.1f\n", name, 100*parts[name])
		}
	}
	fmt.Fprintf(&b, "%.1f s\n", r.Seconds)
	_, err := fmt.Fprint(o.Out, b.String())
	return err
}
