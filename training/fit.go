package training

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/heatmap"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/ort"
	"github.com/nearmiss/nearmiss/inference/release"
)

// Result says what Fit made.
type Result struct {
	Release   string  `json:"release"`        // the release folder
	Digest    string  `json:"digest"`         // its name: SHA-256 of its manifest
	Images    int     `json:"images"`         // that were given
	Bank      int     `json:"bank"`           // embeddings in the bank
	HeldOut   int     `json:"held_out"`       // normals that calibrate
	Duplicate int     `json:"duplicates"`     // images whose bytes were there already
	Rejected  int     `json:"rejected"`       // images that could not be read
	Alpha     float64 `json:"alpha"`          // false-alarm rate that the threshold promises
	Smallest  float64 `json:"smallest_alpha"` // smallest rate that could be promised
	// Worth is how many independent pictures the normals are worth, where they
	// resemble one another; 0: each counts.
	Worth     float64 `json:"worth,omitempty"`
	Threshold float64 `json:"threshold"` // score above which an image is anomalous
	Index     string  `json:"index"`     // kind of the bank's index
	Score     string  `json:"score"`     // parts of the score, joined by +
	Patches   int     `json:"patches"`   // patch vectors in their bank; 0: there is none
	Seconds   float64 `json:"seconds"`   // that it took
	// Published is "tuned" or "frozen" after FITYMI, and Reason says why.
	Published string `json:"published,omitempty"`
	Reason    string `json:"reason,omitempty"`
	// Advice says which score fits this detector, where it was asked for, and
	// Orientation whether it matters how the normals lie, where no symmetry was
	// given.
	Advice      *Advice          `json:"advice,omitempty"`
	Orientation *Orientation     `json:"orientation,omitempty"`
	Symmetry    imaging.Symmetry `json:"symmetry,omitempty"` // what embeddings are averaged over
	// Warnings are sentences for the user: what was left out, and what this
	// release cannot promise.
	Warnings []string `json:"warnings,omitempty"`
}

// Provenance is the manifest's free-form "training" member, for people.
type Provenance struct {
	Tool         string             `json:"tool,omitempty"`
	Backbone     string             `json:"backbone"`    // base name of the file
	DataSHA256   string             `json:"data_sha256"` // of the used images' digests, sorted
	Images       int                `json:"images"`
	Duplicates   int                `json:"duplicates"`
	Rejected     int                `json:"rejected"`
	HeldOutShare float64            `json:"held_out_share"`
	Seed         uint64             `json:"seed"`
	Index        bank.Report        `json:"index"`
	Seconds      map[string]float64 `json:"seconds"` // by step
	Warnings     []string           `json:"warnings,omitempty"`
	K            int                `json:"k"`
	Runtime      string             `json:"onnx_runtime"` // version
	Learning     *Learning          `json:"learning,omitempty"`
	Score        []Part             `json:"score"`
	Patches      *patchBank         `json:"patches,omitempty"`
	Advice       *Advice            `json:"advice,omitempty"`
	Orientation  *Orientation       `json:"orientation,omitempty"`
	Worth        *worth             `json:"worth,omitempty"`
}

// Fit carries the plan out and writes the release: embed every normal, hold a
// share of them out, learn from the others (FITYMI), fill and index the bank with
// them, calibrate it with the held-out ones. It stops soon after ctx ends, and
// then leaves nothing behind but the work folder, from which another run goes
// on.
func Fit(ctx context.Context, p Plan) (*Result, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	p = p.withDefaults()
	start := time.Now()

	dir, err := os.MkdirTemp(filepath.Dir(filepath.Clean(p.Out)), ".fit-")
	if errors.Is(err, os.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(filepath.Clean(p.Out)), 0o755); err == nil {
			dir, err = os.MkdirTemp(filepath.Dir(filepath.Clean(p.Out)), ".fit-")
		}
	}
	if err != nil {
		return nil, fmt.Errorf("make a folder beside the release: %w", err)
	}
	defer os.RemoveAll(dir)
	f := &fitting{Plan: p, network: p.Backbone, parts: p.Parts, dir: dir, seconds: map[string]float64{}}
	if p.Method == KNN {
		f.parts = withoutTuned(p.Parts)
	}
	defer f.close()
	if err := f.look(ctx); err != nil {
		return nil, err
	}
	res, err := f.finish(ctx)
	if err != nil {
		return nil, err
	}
	res.Seconds = time.Since(start).Seconds()
	return res, f.tidy()
}

// fitting is one run of Fit.
type fitting struct {
	Plan
	dir     string
	network string // that is served
	parts   []Part // of the score
	layer   int    // blocks before the patches; 0: no patches
	k       *look
	*seen
	train, held []int  // places in of
	worth       *worth // nil: each normal counts
	learned     *learned
	orientation *Orientation // nil where a symmetry was given
	engine      *inference.BatchEngine
	seconds     map[string]float64
}

func (f *fitting) close() {
	if f.k != nil {
		_ = f.k.Close()
	}
	if f.engine != nil {
		_ = f.engine.Close()
	}
}

// tidy removes what is needed no more once the release is written.
func (f *fitting) tidy() error {
	if f.learned == nil || f.Work != "" {
		return nil
	}
	return os.RemoveAll(f.learned.work)
}

// look embeds the normals with the network that is served, which FITYMI learns
// first, and splits them.
func (f *fitting) look(ctx context.Context) error {
	spec, layer, ok, err := patchSpec(f.Backbone, f.Patches.Layer)
	if err != nil {
		return err
	}
	if ok && !f.Patches.Off {
		f.layer = layer
	}
	if slices.Contains(f.parts, PatchPart) && f.layer == 0 {
		return fmt.Errorf("%w: %s is a foreign model, which gives no patches: score on part %q", ErrPlan, f.Backbone, ClassPart)
	}
	if f.engine, err = f.Plan.engine(); err != nil {
		return err
	}
	first := sight{parts: []Part{ClassPart}} // for FITYMI: it only sees which images are of use
	if f.Method == KNN {
		first = f.sight(spec)
	}
	took := time.Now()
	if err := f.embed(ctx, "embed", f.Backbone, first, f.Normals); err != nil {
		return err
	}
	f.seconds["embed"] = time.Since(took).Seconds()
	if err := f.split(ctx); err != nil {
		return err
	}
	turned, err := f.turn(ctx)
	if err != nil {
		return err
	}
	if f.Method == KNN {
		if turned {
			return f.again(ctx, first)
		}
		return nil
	}
	took = time.Now()
	p := f.Plan
	if p.Work == "" {
		p.Work = WorkFolder(p.Out)
	}
	normals, digests := f.images(f.train), make([]string, len(f.train))
	for j, i := range f.train {
		digests[j] = f.all[f.of[i]].SHA256
	}
	if f.learned, err = p.learn(ctx, normals, digests); err != nil {
		return err
	}
	f.seconds["learn"] = time.Since(took).Seconds()
	f.network, f.parts = f.learned.network, f.learned.parts
	second := f.sight(spec)
	if f.network == f.Backbone && plain(second.parts) && second.layer == 0 && !turned {
		return nil
	}
	return f.again(ctx, second)
}

// turn looks at how the normals of the bank lie, and says whether embeddings are
// to be averaged over that from now on.
func (f *fitting) turn(ctx context.Context) (bool, error) {
	if f.Symmetry != imaging.NoSymmetry || !f.Advise && !f.AutoSymmetry {
		return false, nil
	}
	took := time.Now()
	var err error
	if f.orientation, err = f.orient(ctx, f.k, f.images(f.train), f.rowsAt(f.k.parts[0], f.train)); err != nil {
		return false, fmt.Errorf("look at how the normals lie: %w", err)
	}
	f.seconds["orientation"] = time.Since(took).Seconds()
	if f.AutoSymmetry {
		f.Symmetry = f.orientation.Choice
	}
	return f.Symmetry != imaging.NoSymmetry, nil
}

// again embeds the normals anew: by the network that is served, or otherwise
// turned.
func (f *fitting) again(ctx context.Context, s sight) error {
	took := time.Now()
	all, of := f.all, f.of
	usable := make([]Image, len(of))
	for j, i := range of {
		usable[j] = f.Normals[i]
	}
	if err := f.embed(ctx, "embed again", f.network, s, usable); err != nil {
		return err
	}
	if len(f.of) != len(of) {
		return fmt.Errorf("embed the normal images again: %d of %d changed on the way", len(of)-len(f.of), len(of))
	}
	f.all, f.of = all, of
	f.seconds["embed again"] = time.Since(took).Seconds()
	return nil
}

// sight is what the model has to give: the parts of the score, and what they are
// compared with where advice is asked for.
func (f *fitting) sight(spec backbone.Anatomy) sight {
	s := sight{parts: vectorParts(f.parts), layer: f.layer}
	if f.advises() {
		for _, p := range []Part{ClassPart, PooledPart} {
			if !slices.Contains(s.parts, p) && (p == ClassPart || spec.Class) {
				s.parts = append(s.parts, p)
			}
		}
	}
	return s
}

func (f *fitting) advises() bool { return f.Advise || f.Auto }

// embed loads a model and looks at images.
func (f *fitting) embed(ctx context.Context, step, network string, s sight, images []Image) (err error) {
	if f.k != nil {
		err = f.k.Close()
		f.k = nil
	}
	if err != nil {
		return err
	}
	if f.k, err = f.open(filepath.Join(f.dir, fmt.Sprintf("%s.onnx", step[:5])), network, s); err != nil {
		return err
	}
	keep := max(1, mostPatches/max(len(images), 1))
	f.seen, err = embedNormals(ctx, f.k.e, images, keep, f.Seed, func(done, total int) { f.tell(step, done, total) })
	return err
}

// images are the ones at places in of.
func (f *fitting) images(which []int) []Image {
	out := make([]Image, len(which))
	for j, i := range which {
		out[j] = f.Normals[f.of[i]]
	}
	return out
}

// rows are the embeddings of a part of the images at places in of.
func (f *fitting) rowsAt(p Part, which []int) []float32 {
	var out []float32
	d := len(f.k.parts) * f.k.dim
	for _, i := range which {
		out = append(out, f.k.of(p, f.rows[i*d:(i+1)*d])...)
	}
	return out
}

// use marks the images at places in of, and collects their ids.
func (f *fitting) use(which []int, as string) []uint64 {
	ids := make([]uint64, len(which))
	for j, i := range which {
		f.all[f.of[i]].Use = as
		ids[j] = f.all[f.of[i]].ID
	}
	return ids
}

// weigh finds the weights of the parts of the score, by normals of the bank that
// are compared with the others of it, and advises which parts to take.
func (f *fitting) weigh(ctx context.Context) (map[Part]mark, *Advice, error) {
	marks := map[Part]mark{}
	for _, p := range Parts {
		marks[p] = mark{scale: 1, weight: 1}
	}
	if len(f.parts) < 2 && !f.advises() {
		return marks, nil, nil
	}
	var l *lesson
	if f.learned != nil {
		l = f.learned.lesson
	} else {
		l = &lesson{Plan: f.Plan, normals: f.images(f.train)}
		l.Tuning = compareOnly()
		var err error
		if l.fit, l.unseen, err = l.Tuning.split(len(l.normals), f.K, f.Seed); err != nil {
			if errors.Is(err, ErrTooFew) { // equal weights, and nothing to advise by
				return marks, nil, nil
			}
			return nil, nil, err
		}
	}
	have := &known{rows: map[Part][]float32{}}
	places := make([]int, len(l.fit))
	var some [][]float32
	for j, i := range l.fit {
		places[j] = f.train[i]
		if f.layer > 0 {
			some = append(some, f.patches.rows[f.train[i]])
		}
	}
	have.patches = slices.Concat(some...)
	for _, p := range f.k.parts {
		have.rows[p] = f.rowsAt(p, places)
	}
	var advice *Advice
	if f.advises() {
		f.tell("advise", 0, 1)
		var err error
		if advice, err = l.advise(ctx, f.k, have); err != nil {
			return nil, nil, err
		}
		if f.Auto {
			if f.parts, err = ParseParts(advice.Choice); err != nil {
				return nil, nil, err
			}
		}
		f.tell("advise", 1, 1)
	}
	if len(f.parts) < 2 {
		return marks, advice, nil
	}
	x, err := l.examine(ctx, f.k, f.parts, have, false)
	if err != nil {
		return nil, nil, err
	}
	for _, p := range f.parts {
		marks[p] = markOf(x[p][groupUnseen])
	}
	return marks, advice, nil
}

// compareOnly tunes nothing: normals are only compared with others.
func compareOnly() *Tuning {
	return &Tuning{Stopping: DefaultHeldOut, Gate: Gate{Strengths: []float64{adviceStrength}, Least: 1, Most: math.MaxInt}}
}

// finish makes the banks, calibrates them and writes the release.
func (f *fitting) finish(ctx context.Context) (*Result, error) {
	var about struct{ Format string }
	_ = json.Unmarshal(f.k.e.Backbone(), &about) // a foreign model says nothing of itself
	ids, _ := f.use(f.train, UsedInBank), f.use(f.held, UsedToHold)
	res := &Result{Release: f.Out, Images: len(f.all), Bank: len(f.train), HeldOut: len(f.held)}
	switch about.Format {
	case backbone.FormatRandom:
		res.warn("the backbone has random weights and has learnt nothing; for real work import a pretrained one: nearmiss backbone import")
	case backbone.FormatStarter:
		res.warn("the starter backbone knows drawn pictures only; for real work import a pretrained one: nearmiss backbone import")
	}
	res.count(f.all)
	var learning *Learning
	if f.learned != nil {
		learning = &f.learned.about
		res.Published, res.Reason = learning.Gate.Published, learning.Gate.Reason
		if res.Published == "frozen" {
			res.warn("the frozen backbone is published: %s", res.Reason)
		}
	}
	began := time.Now()
	marks, advice, err := f.weigh(ctx)
	if err != nil {
		return nil, err
	}
	res.Advice, res.Score = advice, partsName(f.parts)
	res.Orientation, res.Symmetry = f.orientation, f.Symmetry
	if f.advises() {
		f.seconds["advise"] = time.Since(began).Seconds()
	}

	f.tell("bank", 0, 1)
	began = time.Now()
	var parts []inference.Part
	var report bank.Report
	heldScores := map[Part][]float64{}
	for _, p := range vectorParts(f.parts) {
		heldRows := f.rowsAt(p, f.held)
		b, r, err := f.fill(ctx, p, ids, f.rowsAt(p, f.train), heldRows)
		if err != nil {
			return nil, err
		}
		if r.Fallback != "" {
			res.warn("the %s index of part %s was turned down, and its bank searches exactly: %s", r.Wanted, p, r.Fallback)
		}
		if len(parts) == 0 {
			report, res.Index = r, string(r.Kind)
		}
		if heldScores[p], err = b.Scores(ctx, heldRows); err != nil {
			return nil, err
		}
		a := release.Part{Name: string(p), Output: release.OutputEmbedding, From: len(parts) * f.k.dim, Dim: f.k.dim, Statistic: release.StatisticKNN}
		if r.Wanted != bank.Exact {
			a.Bank.Recall, a.Bank.Excess = &r.Recall, &r.FirstExcess
		}
		parts = append(parts, inference.Part{About: a, Bank: b})
	}
	f.tell("bank", 1, 1)
	f.seconds["bank"] = time.Since(began).Seconds()
	var patches *patchBank
	if f.layer > 0 {
		began = time.Now()
		part, made, grids, err := f.patchPart(ctx)
		if err != nil {
			return nil, err
		}
		patches, res.Patches = made, made.Len()
		for _, g := range grids {
			heldScores[PatchPart] = append(heldScores[PatchPart], inference.PatchStatistic(g.Values, f.Patches.Statistic))
		}
		if f := made.Index.Fallback; f != "" {
			res.warn("the %s index of the patches was turned down, and their bank searches exactly: %s", made.Index.Wanted, f)
		}
		parts = append(parts, part)
		f.seconds["patches"] = time.Since(began).Seconds()
	}
	for i := range parts {
		a := &parts[i].About
		p := Part(a.Name)
		a.Scored, a.Weight, a.Scale = slices.Contains(f.parts, p), marks[p].weight, 1
		if m := median(heldScores[p]); m > 0 && !math.IsInf(m, 0) {
			a.Scale = m
		}
	}
	if err := f.calibrate(ctx, parts, heldScores, res); err != nil {
		return nil, err
	}
	return f.write(ctx, res, parts, report, patches, learning, about.Format)
}

// patchPart makes the part of the patches. The grids are those of the held-out
// normals.
func (f *fitting) patchPart(ctx context.Context) (inference.Part, *patchBank, []heatmap.Grid, error) {
	fail := func(err error) (inference.Part, *patchBank, []heatmap.Grid, error) {
		return inference.Part{}, nil, nil, fmt.Errorf("make the bank of patches: %w", err)
	}
	ids := make([]uint64, len(f.of))
	for j, i := range f.of {
		ids[j] = f.all[i].ID
	}
	f.tell("patches", 0, len(f.held))
	b, err := f.fillPatches(ctx, &f.patches, ids, f.train, f.held, f.engine)
	if err != nil {
		return fail(err)
	}
	grids, err := f.k.grids(ctx, b.Bank, f.images(f.held), func(done, total int) { f.tell("patches", done, total) })
	if err != nil {
		return fail(err)
	}
	heat, err := heatmap.NewScale(grids)
	if err != nil {
		return fail(err)
	}
	a := release.Part{
		Name: string(PatchPart), Output: f.k.patches().String(), Dim: f.patches.dim, Statistic: f.Patches.Statistic,
		Width: f.k.grid[0], Height: f.k.grid[1], Layer: f.layer, Radius: b.Coreset.Radius, Heat: heat,
	}
	if f.Patches.Whiten > 0 {
		a.Radius = 0 // the coreset's is of plain distances
	}
	if b.Index.Wanted != bank.Exact {
		a.Bank.Recall, a.Bank.Excess = &b.Index.Recall, &b.Index.FirstExcess
	}
	return inference.Part{About: a, Bank: b.Bank}, b, grids, nil
}

func (f *fitting) write(ctx context.Context, res *Result, parts []inference.Part, report bank.Report, patches *patchBank, learning *Learning, format string) (*Result, error) {
	// What advice alone needed is not served.
	serve := sight{parts: vectorParts(f.parts), layer: f.layer}
	if !slices.Equal(serve.parts, f.k.parts) {
		k, err := f.open(filepath.Join(f.dir, "serve.onnx"), f.network, serve)
		if err != nil {
			return nil, err
		}
		if err := f.k.Close(); err != nil {
			_ = k.Close()
			return nil, err
		}
		f.k = k
	}
	lines, err := release.EncodeNormals(f.all)
	if err != nil {
		return nil, err
	}
	spec := inference.ReleaseSpec{
		Detector: f.Detector, Method: string(f.Method), Model: f.k.path, Embedder: f.k.e, Parts: parts,
		RandomWeights: format == backbone.FormatRandom, StarterWeights: format == backbone.FormatStarter,
		Files: map[string][]byte{release.NormalsName: lines},
		Training: Provenance{
			Tool: f.Tool, Backbone: filepath.Base(f.Backbone), DataSHA256: dataDigest(f.all),
			Images: len(f.all), Duplicates: res.Duplicate, Rejected: res.Rejected,
			HeldOutShare: f.HeldOut, Seed: f.Seed, Index: report, Seconds: f.seconds, Warnings: res.Warnings,
			K: f.K, Runtime: ort.Version, Learning: learning, Score: f.parts, Patches: patches, Advice: res.Advice, Orientation: res.Orientation, Worth: f.worth,
		},
	}
	if !f.NoImages {
		t := release.Thumbnails{}
		if err := t.Add(ctx, f.all, func(i int) ([]byte, error) { return f.Normals[i].Read() }, f.View, f.Limits); err != nil {
			return nil, err
		}
		if spec.Files[release.ThumbnailsName], err = t.Archive(); err != nil {
			return nil, err
		}
	}
	if spec.Check, err = f.checks(); err != nil {
		return nil, err
	}
	r, err := inference.WriteRelease(ctx, f.Out, spec)
	if err != nil {
		return nil, err
	}
	res.Digest = r.Digest
	return res, nil
}

func (p Plan) embedder(model string) (*inference.Embedder, error) {
	return inference.NewEmbedder(model, inference.EmbedOptions{Device: p.Device, Threads: p.Threads, Limits: p.Limits, View: p.View, Symmetry: p.Symmetry})
}

// fill makes a part's bank and its index.
func (f *fitting) fill(ctx context.Context, p Part, ids []uint64, rows, heldRows []float32) (*bank.Bank, bank.Report, error) {
	whiten, err := whitening(rows, f.k.dim, f.Whiten)
	if err != nil {
		return nil, bank.Report{}, fmt.Errorf("part %s: %w", p, err)
	}
	b, err := bank.New(bank.Options{Dim: f.k.dim, K: f.K, Kind: f.Index, Transform: whiten, Log: f.Log})
	if err != nil {
		return nil, bank.Report{}, err
	}
	if err := b.AddBatch(ids, rows); err != nil {
		return nil, bank.Report{}, fmt.Errorf("part %s: %w", p, err)
	}
	report, err := b.Build(ctx, heldRows)
	return b, report, err
}

// calibrate sets the main bank's threshold and says in res what it promises.
func (f *fitting) calibrate(ctx context.Context, parts []inference.Part, held map[Part][]float64, res *Result) error {
	n := res.HeldOut
	smallest := bank.SmallestAlpha(n)
	alpha := f.Alpha
	if alpha < smallest && !f.Settle {
		return fmt.Errorf("%d held-out normals cannot promise a false-alarm rate of %g, the smallest is %.3g: give %d different normal images, hold out more, or ask for less",
			n, alpha, smallest, NormalsFor(alpha, f.HeldOut))
	}
	if alpha < smallest {
		alpha = smallest
		res.warn("%d held-out normals can promise no false-alarm rate below %.3g %%, and that is what the threshold promises; %g %% needs %d different normal images",
			n, 100*smallest, 100*f.Alpha, NormalsFor(f.Alpha, f.HeldOut))
	}
	main := parts[0].Bank // of a part of the embedding, scored where any is
	var c *bank.Calibration
	var err error
	if len(f.parts) == 1 && f.parts[0] != PatchPart {
		// The bank keeps the embeddings, too, to calibrate again after removals.
		c, err = main.Calibrate(ctx, f.rowsAt(f.parts[0], f.held), alpha)
	} else {
		scores := make([]float64, n)
		for j := range scores {
			var one []inference.PartScore
			for _, p := range parts {
				if a := p.About; a.Scored {
					s := held[Part(a.Name)][j]
					one = append(one, inference.PartScore{Score: s, Ratio: s / a.Scale, Weight: a.Weight})
				}
			}
			scores[j] = inference.CombineScores(one, nil)
		}
		if c, err = bank.NewCalibration(scores, alpha); err == nil {
			main.SetCalibration(c)
		}
	}
	if err != nil {
		return err
	}
	res.Alpha, res.Smallest, res.Threshold = alpha, smallest, c.Threshold()
	f.rest(main, res)
	return nil
}

func (r *Result) warn(format string, a ...any) {
	r.Warnings = append(r.Warnings, fmt.Sprintf(format, a...))
}

// count sums up what was not used.
func (r *Result) count(all []Normal) {
	for _, n := range all {
		switch n.Use {
		case NotUsedTwice:
			r.Duplicate++
		case NotUsedReject:
			r.Rejected++
		}
	}
	if r.Duplicate > 0 {
		r.warn("%d of %d images are copies of others and count once", r.Duplicate, len(all))
	}
	if i := slices.IndexFunc(all, func(n Normal) bool { return n.Use == NotUsedReject }); i >= 0 {
		r.warn("%d of %d images could not be used, first %s: %s", r.Rejected, len(all), all[i].Name, all[i].Reason)
	}
}
