package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/training"
	"github.com/nearmiss/nearmiss/training/evaluate"
	"github.com/nearmiss/nearmiss/training/evaluate/predictions"
	"github.com/nearmiss/nearmiss/training/evaluate/report"
)

type evalCmd struct {
	Suite       string   `type:"existingfile" xor:"data" required:"" placeholder:"FILE.yaml" help:"Measure on all data sets of a file instead, and print one table with the mean and the worst: training/suite.yaml is an example."`
	Data        string   `xor:"data" required:"" type:"existingdir" placeholder:"DIR" help:"Data set: {train,test}/<class>/* (one-vs-rest) or the layout of MVTec AD (mvtec)."`
	Backbone    string   `required:"" type:"backbone" placeholder:"FILE|NAME" help:"Pretrained model: a name of nearmiss backbone list, or a file from nearmiss backbone import."`
	Protocol    string   `enum:",one-vs-rest,near,mvtec,alarms" default:"" help:"What is normal and what is not: ${enum}."`
	Method      string   `enum:"knn,fitymi" default:"knn" help:"How to learn: ${enum}."`
	K           int      `default:"2" help:"Nearest normals whose squared distances make the score."`
	Repeats     int      `default:"1" placeholder:"N" help:"Repeat with the seeds S, S+1, …"`
	Seed        uint64   `default:"0" placeholder:"S" help:"Draws the random splits."`
	Resplit     float64  `placeholder:"SHARE" help:"Pool train and test and draw this share for training, anew in each repeat."`
	Normal      []string `placeholder:"CLASS" help:"Take only this class as normal; may be repeated (default: every class in turn)."`
	Others      string   `type:"existingdir" placeholder:"DIR" help:"With near, the set whose classes are the anomalies (default: the same set)."`
	Train       int      `name:"train-limit" placeholder:"N" help:"Learn from at most this many images of a class."`
	Test        int      `name:"test-limit" placeholder:"N" help:"Test on at most this many images of a class."`
	Vary        []string `sep:"none" placeholder:"NAME=VALUE" help:"Measure with each value of an option in turn, which is named in the results; may be repeated. Numbers may be listed, as in k=1,2,5. The options are ${varied}."`
	Out         string   `short:"o" type:"path" placeholder:"REPORT" help:"Also write a report: .html (one page with curves and the worst misses), .md or .jsonl."`
	Predictions string   `type:"path" placeholder:"FILE" help:"Also write what was said of each test image: .csv, .jsonl or .parquet, for notebooks."`
	Pixels      bool     `negatable:"" default:"true" help:"With a score with patches, also say where: pixel AUROC and PRO with mvtec, and what --predictions tells of places."`
	Light       bool     `help:"Also say what other light does: normals with a gain of up to ±10 % and an offset of up to ±5 %. --vary light=cast, light=blur and light=lens try slight casts of colour, a slight blur, and one of another form."`
	change      evaluate.Change
	Sheet       string `type:"path" placeholder:"FILE.png" help:"With a score with patches, also draw a contact sheet of heatmaps: images spread evenly by rank of their scores."`
	Bare        bool   `name:"sheet-without-images" help:"Show heat and ground truth in --sheet, and nothing of the images."`
	JSON        bool   `name:"json" help:"Print one JSON object for each method."`
	tuneFlags
	deviceFlags
}

func (*evalCmd) Help() string {
	return "The bank holds every normal training image, as in the paper; nothing is held out, because only ranks count here. " +
		"Protocol alarms measures false-alarm rates instead: normal images are drawn into bank, held-out and test images, --repeats times.\n\n" +
		examples(
			"nearmiss eval --data wbc --protocol one-vs-rest --backbone vit_ti.onnx --json",
			"nearmiss eval --data wbc --protocol one-vs-rest --backbone vit_ti.onnx --resplit 0.8 --repeats 10",
			"nearmiss eval --data wbc --protocol one-vs-rest --backbone vit_ti.onnx --method fitymi --fakes warp --work /tmp/wbc",
			"nearmiss eval --data wbc --protocol one-vs-rest --backbone vit_ti.onnx --vary k=1,2,5,10,50",
			"nearmiss eval --data wbc --protocol one-vs-rest --backbone vit_ti.onnx --method fitymi --vary fakes=sdedit --vary fakes=warp --vary fakes=none",
			"nearmiss eval --data cifar10 --protocol near --backbone vit_ti.onnx --train-limit 500 --test-limit 200",
			"nearmiss eval --data magnetic-tile --protocol alarms --backbone vit_ti.onnx --repeats 1000",
			"nearmiss eval --data magnetic-tile --protocol mvtec --backbone vit_ti.onnx --json",
			"nearmiss eval --data magnetic-tile --protocol mvtec --backbone vit_ti.onnx --score patch --out tile.html --sheet tile.png",
			"nearmiss eval --data magnetic-tile --protocol mvtec --backbone vit_ti.onnx --predictions tile.parquet",
			"nearmiss eval --suite training/suite.yaml --backbone vit_ti.onnx --vary score=class --vary score=full --light --out table.md",
		)
}

func (c *evalCmd) Run(ctx context.Context, o *output) error {
	switch filepath.Ext(c.Out) {
	case "", ".html", ".md", ".jsonl":
	default:
		return usageError{fmt.Errorf("--out %s: name a file that ends in .html, .md or .jsonl", c.Out)}
	}
	for flag, file := range map[string]string{"--out": c.Out, "--sheet": c.Sheet, "--predictions": c.Predictions} {
		if err := writable(flag, file); err != nil {
			return err
		}
	}
	if c.Predictions != "" {
		if err := predictions.CheckName(c.Predictions); err != nil {
			return usageError{fmt.Errorf("--predictions %w", err)}
		}
		if c.Suite != "" || c.Protocol == protocolAlarms {
			return usageError{errors.New("--predictions is about single images: it goes with one-vs-rest, near and mvtec")}
		}
	}
	embed, err := c.options()
	if err != nil {
		return err
	}
	if embed.Symmetry, _, err = training.ParseSymmetry(c.Symmetry); err != nil {
		return usageError{err}
	}
	embed.Precision = c.Precision
	variants, err := c.variants()
	if err != nil {
		return err
	}
	for _, v := range variants {
		if v.Precision == training.PrecisionAuto {
			return usageError{errors.New("--precision auto is chosen by held-out normals, of which eval has none: take fp32, fp16, int8, or several with --vary")}
		}
	}
	if c.Suite != "" {
		return c.suite(ctx, o, embed)
	}
	if c.Protocol == "" {
		return usageError{errors.New("--protocol is missing: take one-vs-rest, near, mvtec or alarms")}
	}
	if c.Protocol == protocolAlarms && c.Sheet != "" {
		return usageError{errors.New("--sheet shows heatmaps, and protocol alarms makes none")}
	}
	if c.Protocol == protocolAlarms {
		return c.alarms(ctx, o, embed)
	}
	bar := o.progress("")
	defer bar.close()
	var results []evaluate.Result
	err = c.each(ctx, o, embed, bar, variants, func(res *evaluate.Result) error {
		results = append(results, *res)
		bar.close()
		if c.JSON {
			return o.JSON(res)
		}
		return printResult(o, res)
	})
	if err != nil {
		return err
	}
	if c.Out != "" {
		if err := c.report(ctx, results); err != nil {
			return fmt.Errorf("write the report %s: %w", c.Out, err)
		}
	}
	if c.Predictions != "" {
		if err := writePredictions(ctx, c.Predictions, results); err != nil {
			return fmt.Errorf("write %s: %w", c.Predictions, err)
		}
	}
	if c.Sheet != "" {
		if err := c.sheet(ctx, results); err != nil {
			return fmt.Errorf("draw %s: %w", c.Sheet, err)
		}
	}
	return nil
}

// sheet draws the first run that has maps.
func (c *evalCmd) sheet(ctx context.Context, results []evaluate.Result) error {
	run := results[0].Runs[0]
	for _, r := range slices.Backward(results) {
		for _, q := range slices.Backward(r.Runs) {
			if q.Places != nil {
				run = q
			}
		}
	}
	sheet, err := report.ContactSheet(ctx, run, report.HeatmapOptions{WithoutImages: c.Bare})
	if err != nil {
		return err
	}
	b, err := sheet.PNG()
	if err != nil {
		return err
	}
	return renameio.WriteFile(c.Sheet, b, 0o644)
}

// heatmaps are the sheets of an HTML report: of the first repeat of each result.
func heatmaps(ctx context.Context, results []evaluate.Result) (sheets []report.Sheet, err error) {
	for _, r := range results {
		for _, run := range r.Runs {
			if run.Seed != r.Runs[0].Seed || run.Places == nil {
				continue
			}
			s, err := report.HeatmapSheet(ctx, run, report.HeatmapOptions{})
			if err != nil {
				return nil, err
			}
			s.Title += " (" + r.Method + ")"
			sheets = append(sheets, s)
		}
	}
	return sheets, nil
}

// measure runs the protocol with one method.
func (v *variant) measure(ctx context.Context, o *output, embed inference.EmbedOptions, bar *progress, run runProtocol, f *evaluate.Features, shared *training.Shared) (*evaluate.Result, error) {
	method, end, err := v.method(o, embed, bar, f, shared)
	if err != nil {
		return nil, err
	}
	defer end()
	if v.label != "" {
		method = named{method, method.Name() + " " + v.label}
	}
	res, err := run(ctx, method, f, evaluate.Options{
		Repeats: v.Repeats, Seed: v.Seed, Resplit: v.Resplit, Normal: v.Normal, TrainLimit: v.Train, TestLimit: v.Test,
		Pixels: v.maps(),
		Parts:  v.Predictions != "",
		Light:  v.changed(), Cost: v.Suite != "" || v.Light,
		Progress: func(done, total int, what string) { bar.stage(what, int64(done), int64(total)) },
	})
	if errors.Is(err, evaluate.ErrWrongLayout) {
		err = usageError{err}
	}
	return res, err
}

// changed is what is done to the normal test images once more.
func (c *evalCmd) changed() evaluate.Change {
	if c.Light && c.change == "" {
		return evaluate.LightOther
	}
	return c.change
}

// maps says whether it is asked where images are strange.
func (c *evalCmd) maps() bool {
	return c.Pixels && (c.Protocol == evaluate.ProtocolMVTec || c.Predictions != "") || c.Sheet != "" || filepath.Ext(c.Out) == ".html"
}

// paper says whether the method is the paper's baseline, which needs no model but
// the frozen one.
func (c *evalCmd) paper() bool {
	_, auto, _ := training.ParseSymmetry(c.Symmetry)
	return c.Suite == "" && c.Method == string(training.KNN) && c.Score == training.ClassScore && c.See != training.SeeWhole && !auto
}

// method is what is measured; end gives back what it holds.
func (c *evalCmd) method(o *output, embed inference.EmbedOptions, bar *progress, f *evaluate.Features, shared *training.Shared) (m evaluate.Method, end func(), err error) {
	end = func() {}
	if c.paper() {
		return evaluate.KNN(f, c.K), end, nil
	}
	plan, err := c.plan(c.Method)
	if err != nil {
		return nil, nil, err
	}
	if plan.Host.Work == "" {
		if plan.Host.Work, err = os.MkdirTemp("", "nearmiss-eval-"); err != nil {
			return nil, nil, err
		}
		end = func() { os.RemoveAll(plan.Host.Work) }
	}
	plan.Score.NoMaps = !c.maps() && !c.Light && c.Suite == "" // a suite says what judging costs
	plan.Model.Backbone, plan.Score.K, plan.Host.Device, plan.Host.Threads, plan.Host.Batch, plan.Host.Log = c.Backbone, c.K, embed.Device, embed.Threads, embed.Batch, o.Log
	plan.Host.Progress = bar.learning
	m, err = training.ForEvaluation(plan, shared, func(l training.Learning) {
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
	tidy := end
	return m, func() {
		if c, ok := m.(io.Closer); ok {
			_ = c.Close()
		}
		tidy()
	}, nil
}

// report writes the results to the file --out, in the format that its name asks for.
func (c *evalCmd) report(ctx context.Context, results []evaluate.Result) error {
	f, err := renameio.NewPendingFile(c.Out, renameio.WithPermissions(0o644))
	if err != nil {
		return err
	}
	defer f.Cleanup()
	switch filepath.Ext(c.Out) {
	case ".html":
		sheets, err := heatmaps(ctx, results)
		if err != nil {
			return err
		}
		err = report.HTML(ctx, f, report.Page{
			Title:   "Nearmiss: " + c.Protocol + " on " + results[0].Data,
			Notes:   []string{fmt.Sprintf("Method %s with %s, k = %d, where nothing else is said; nearmiss %s.", c.Method, filepath.Base(c.Backbone), c.K, version)},
			Results: results, Sheets: sheets, Made: time.Now(),
		})
		if err != nil {
			return err
		}
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
	for _, p := range r.Parts {
		if c := p.Confusion; c != nil && len(r.Parts) == 1 || p.Anomaly == evaluate.All {
			fmt.Fprintf(&b, "  average precision %.1f, best F1 %.1f: above %.4g %d of %d anomalies are found, and %d of %d normal images raise alarms\n",
				100*p.AveragePrecision, 100*p.F1, c.Threshold, c.TruePositives, p.Anomalies, c.FalsePositives, p.Normals)
		}
	}
	for _, name := range report.PixelLabels(*r) {
		p := r.Pixels[name]
		fmt.Fprintf(&b, "  pixels of %-10s AUROC %.1f PRO %.1f; %.0f %% of them are seen, of these AUROC %.1f PRO %.1f\n",
			name, 100*p.AUROC, 100*p.PRO, 100*p.Covered, 100*p.CoveredAUROC, 100*p.CoveredPRO)
	}
	if l := r.Light; l != nil {
		fmt.Fprintf(&b, "  other light: AUROC %.1f, %.1f %% false alarms become %.1f %%\n", 100*l.AUROC, 100*l.Usual, 100*l.Alarms)
	}
	fmt.Fprintf(&b, "%.1f s\n", r.Seconds)
	return o.printf("%s", b.String())
}
