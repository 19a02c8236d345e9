package evaluate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/nearmiss/nearmiss/inference/heatmap"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/training/dataset"
)

// Method learns what is normal.
type Method interface {
	// Name is how results call it: "knn", "fitymi".
	Name() string
	// Fit learns from normal images. Equal images and seeds give equal scorers.
	Fit(ctx context.Context, normals []dataset.Item, seed uint64) (Scorer, error)
}

// Scorer gives each image its novelty score: higher is more anomalous. A Scorer
// that is also an io.Closer is closed when its protocol step ends.
type Scorer interface {
	Score(ctx context.Context, items []dataset.Item) ([]float64, error)
}

// Explainer is a Scorer that also says what its scores are made of: the score of
// each part by its name.
type Explainer interface {
	Explain(ctx context.Context, items []dataset.Item) (scores []float64, parts []map[string]float64, err error)
}

// Localizer is a Scorer that says where by patches: the grid of each item's
// squared patch distances, or no grids at all (nil) where it has no bank of
// patches. Preprocess says which part of an image a grid covers.
type Localizer interface {
	Maps(ctx context.Context, items []dataset.Item) ([]heatmap.Grid, error)
	Preprocess() imaging.Preprocess
}

// Coster is a Scorer that can tell what judging images takes, by judging some.
type Coster interface {
	Cost(ctx context.Context, items []dataset.Item) (*Cost, error)
}

// Protocol names.
const (
	ProtocolOneVsRest = "one-vs-rest"
	ProtocolMVTec     = "mvtec"
	ProtocolNear      = "near"
)

// Options of a protocol run. The zero value runs once, with seed 0, on the
// set's own split.
type Options struct {
	// Repeats is how often everything is learnt and measured, with the seeds
	// Seed, Seed+1, …; 0 means 1.
	Repeats int
	Seed    uint64
	// Resplit, between 0 and 1, pools train and test of each class and draws
	// that share for training, anew for each repeat. 0 keeps the set's split.
	Resplit float64
	// TrainLimit and TestLimit bound the images of each class; 0 sets no limit.
	TrainLimit, TestLimit int
	// Normal limits which classes are taken as normal; none means all.
	Normal []string
	// Pixels asks where the anomalies are, of a Localizer: for pixel AUROC and PRO
	// where there are masks, and for the pictures of reports.
	Pixels bool
	// Light asks what a change of light does to the normal test images; empty: nothing
	// is asked.
	Light Change
	// Cost asks what judging an image takes, of a Coster.
	Cost bool
	// Parts asks what scores are made of, of an Explainer.
	Parts bool
	// Progress is called with what is being done; it may be nil.
	Progress func(done, total int, what string)
}

func (o Options) repeats() int { return max(1, o.Repeats) }

func (o Options) progress(done, total int, what string) {
	if o.Progress != nil {
		o.Progress(done, total, what)
	}
}

// Result is what a protocol found. Rates are fractions of 1.
type Result struct {
	Protocol string  `json:"protocol"`
	Method   string  `json:"method"`
	Data     string  `json:"data"`
	AUROC    float64 `json:"auroc"`               // mean over repeats and, one-vs-rest and near, over classes
	Std      float64 `json:"auroc_std,omitempty"` // over repeats
	// PerClass is the mean AUROC for each normal class, PerDefect for each
	// defect against the good images.
	PerClass  map[string]float64 `json:"per_class,omitempty"`
	PerDefect map[string]float64 `json:"per_defect,omitempty"`
	// Bottom[i-1] is the mean over the normal classes of the mean AUROC against
	// the i hardest other classes, and Nearest[i-1] against the i closest ones.
	Bottom  []float64 `json:"bottom,omitempty"`
	Nearest []float64 `json:"nearest,omitempty"`
	// Pixel measures, where there are masks and maps; the means over the repeats.
	// Pixels has them for each defect against the good images, and for All.
	PixelAUROC *float64                `json:"pixel_auroc,omitempty"`
	PRO        *float64                `json:"pro,omitempty"`
	Pixels     map[string]PixelFigures `json:"pixels,omitempty"`

	Repeats int      `json:"repeats"`
	Seeds   []uint64 `json:"seeds"`
	Resplit float64  `json:"resplit,omitempty"` // share for training of random splits; 0: the set's own split
	Seconds float64  `json:"seconds"`           // of the wall clock, everything included

	Light *Light `json:"light,omitempty"` // the mean over the runs
	Cost  *Cost  `json:"cost,omitempty"`  // of the first run

	// Parts are the single figures, averaged over the repeats.
	Parts []Part `json:"parts"`
	// Runs are the scores that the figures come from, for reports.
	Runs []Run `json:"-"`
}

// Part is one normal class against one kind of anomaly.
type Part struct {
	Normal  string  `json:"normal"`
	Anomaly string  `json:"anomaly"` // a class or defect; "rest" or "all" for several
	AUROC   float64 `json:"auroc"`
	Std     float64 `json:"auroc_std,omitempty"`
	// AUROCs are those of the repeats, in the order of Result.Seeds, so that two
	// methods can be compared split by split; nil where there is one.
	AUROCs           []float64 `json:"aurocs,omitempty"`
	AveragePrecision float64   `json:"average_precision"`
	FPR95            float64   `json:"fpr_at_tpr_95"`
	// F1 is the best that a threshold reaches that is chosen with the labels known,
	// the mean over the repeats, and Confusion what it makes of the first repeat.
	F1        float64    `json:"f1"`
	Confusion *Confusion `json:"confusion,omitempty"`
	Train     int        `json:"train"` // normal images learnt from, in the first repeat
	Normals   int        `json:"normals"`
	Anomalies int        `json:"anomalies"`
	Closeness *float64   `json:"closeness,omitempty"` // near: mean log probability of the normal class
}

// Together are the names that Part.Anomaly gives to several kinds at once.
const (
	Rest = "rest"
	All  = "all"
)

// Run is the scores of one fitted method.
type Run struct {
	Seed   uint64
	Normal string
	Train  int
	Scored []Scored
	Light  *Light
	Cost   *Cost
	// Places says how the grids of Scored are to be read; nil where there are none.
	Places *Places
}

// Scored is a test image and its score.
type Scored struct {
	Item      dataset.Item
	Score     float64
	Anomalous bool
	Grid      *heatmap.Grid // of squared patch distances; nil where there is none
	Parts     map[string]float64
}

// Places is what a Localizer says of its grids.
type Places struct {
	Preprocess imaging.Preprocess
	// Scale is of the tested normals: good enough for pictures, and for nothing
	// else.
	Scale *heatmap.Scale
}

// Map is where a scored image of width × height pixels is strange.
func (p *Places) Map(s Scored, width, height int) (*heatmap.Map, error) {
	if p == nil || s.Grid == nil {
		return nil, fmt.Errorf("map of %s: the method has none", s.Item.Name)
	}
	return heatmap.New(*s.Grid, p.Scale, heatmap.GeometryOf(p.Preprocess, width, height))
}

// Split separates the scores of normal images from those of anomalies, of one
// label or, with an empty one, of all.
func (r Run) Split(label string) (normal, anomalous []float64) {
	for _, s := range r.Scored {
		switch {
		case !s.Anomalous:
			normal = append(normal, s.Score)
		case label == "" || s.Item.Label == label:
			anomalous = append(anomalous, s.Score)
		}
	}
	return normal, anomalous
}

// ErrWrongLayout: a data set cannot serve a protocol.
var ErrWrongLayout = errors.New("the data set's layout does not fit the protocol")

// OneVsRest makes every class in turn the normal one: it learns from the
// class's training images and is tested on all classes' test images.
func OneVsRest(ctx context.Context, set *dataset.Set, m Method, o Options) (*Result, error) {
	if set.Layout != dataset.LayoutClasses {
		return nil, fmt.Errorf("one-vs-rest on %s: %w: it takes {train,test}/<class>/ folders", set.Root, ErrWrongLayout)
	}
	res, t := begin(ProtocolOneVsRest, set, m, o)
	normals, err := o.normals(set)
	if err == nil && len(set.Labels()) < 2 {
		err = fmt.Errorf("data set %s: %d classes are too few, one is normal and the others are not", set.Root, len(set.Labels()))
	}
	if err != nil {
		return nil, err
	}
	var means []float64
	for r := range o.repeats() {
		seed := o.Seed + uint64(r)
		s, err := o.prepare(set, seed)
		if err != nil {
			return nil, err
		}
		var sum float64
		for i, class := range normals {
			o.progress(r*len(normals)+i, o.repeats()*len(normals), class)
			run, err := fitAndScore(ctx, m, s.Select(dataset.Train, class), s.Select(dataset.Test, ""), class, seed, nil, o)
			if err != nil {
				return nil, err
			}
			sum += t.add(*run, class, Rest, "")
			res.Runs = append(res.Runs, *run)
		}
		means = append(means, sum/float64(len(normals)))
	}
	res.Parts = t.parts()
	res.PerClass = map[string]float64{}
	for _, p := range res.Parts {
		res.PerClass[p.Normal] = p.AUROC
	}
	return t.end(res, means)
}

// MVTec learns from good images and tests good against each defect and against
// all together; Result.AUROC is of all together.
func MVTec(ctx context.Context, set *dataset.Set, m Method, o Options) (*Result, error) {
	if set.Layout != dataset.LayoutMVTec {
		return nil, fmt.Errorf("mvtec on %s: %w: it takes train/good, test/good and test/<defect> folders", set.Root, ErrWrongLayout)
	}
	res, t := begin(ProtocolMVTec, set, m, o)
	defects := slices.DeleteFunc(set.Labels(), func(l string) bool { return l == dataset.Good })
	if len(defects) == 0 {
		return nil, fmt.Errorf("mvtec on %s: there are no defects below test", set.Root)
	}
	var means []float64
	var figures []map[string]PixelFigures
	for r := range o.repeats() {
		seed := o.Seed + uint64(r)
		s, err := o.prepare(set, seed)
		if err != nil {
			return nil, err
		}
		o.progress(r, o.repeats(), dataset.Good)
		px := pixelsOf{}
		run, err := fitAndScore(ctx, m, s.Select(dataset.Train, dataset.Good), s.Select(dataset.Test, ""), dataset.Good, seed, px, o)
		if err != nil {
			return nil, err
		}
		for _, d := range defects {
			t.add(*run, dataset.Good, d, d)
		}
		means = append(means, t.add(*run, dataset.Good, All, ""))
		res.Runs = append(res.Runs, *run)
		f, err := px.figures(dataset.Good)
		if err != nil {
			return nil, err
		}
		figures = append(figures, f)
	}
	res.Parts = t.parts()
	res.PerDefect = map[string]float64{}
	for _, p := range res.Parts {
		if p.Anomaly != All {
			res.PerDefect[p.Anomaly] = p.AUROC
		}
	}
	if res.Pixels = meanFigures(figures); res.Pixels != nil {
		all := res.Pixels[All]
		res.PixelAUROC, res.PRO = &all.AUROC, &all.PRO
	}
	return t.end(res, means)
}

func begin(protocol string, set *dataset.Set, m Method, o Options) (*Result, *table) {
	res := &Result{Protocol: protocol, Method: m.Name(), Data: set.Name, Repeats: o.repeats(), Resplit: o.Resplit}
	for r := range o.repeats() {
		res.Seeds = append(res.Seeds, o.Seed+uint64(r))
	}
	return res, &table{began: time.Now()}
}

// end fills in what is known last.
func (t *table) end(r *Result, means []float64) (*Result, error) {
	r.AUROC, r.Std = meanStd(means)
	r.Seconds = time.Since(t.began).Seconds()
	r.Light = meanLight(r.Runs)
	if len(r.Runs) > 0 {
		r.Cost = r.Runs[0].Cost
	}
	if math.IsNaN(r.AUROC) {
		return nil, fmt.Errorf("%s on %s: no AUROC can be computed", r.Protocol, r.Data)
	}
	return r, nil
}

// normals lists the classes that are to be normal.
func (o Options) normals(set *dataset.Set) ([]string, error) {
	all := set.Labels()
	for _, n := range o.Normal {
		if !slices.Contains(all, n) {
			return nil, fmt.Errorf("data set %s has no class %q, only %v", set.Root, n, all)
		}
	}
	if len(o.Normal) > 0 {
		return o.Normal, nil
	}
	return all, nil
}

// prepare draws the split and the limits of one repeat.
func (o Options) prepare(set *dataset.Set, seed uint64) (*dataset.Set, error) {
	if o.Resplit != 0 {
		var err error
		if set, err = set.Resplit(o.Resplit, seed); err != nil {
			return nil, err
		}
	}
	if o.TrainLimit > 0 || o.TestLimit > 0 {
		set = set.Limit(o.TrainLimit, o.TestLimit, seed)
	}
	return set, nil
}

// fitAndScore runs one method once. Items of the normal label are normal.
func fitAndScore(ctx context.Context, m Method, train, test []dataset.Item, normal string, seed uint64, px pixelsOf, o Options) (_ *Run, err error) {
	scorer, err := m.Fit(ctx, train, seed)
	if err != nil {
		return nil, fmt.Errorf("fit %s to %d images of %s: %w", m.Name(), len(train), normal, err)
	}
	if c, ok := scorer.(io.Closer); ok {
		defer func() { err = errors.Join(err, c.Close()) }()
	}
	var parts []map[string]float64
	var scores []float64
	if e, ok := scorer.(Explainer); ok && o.Parts {
		scores, parts, err = e.Explain(ctx, test)
	} else {
		scores, err = scorer.Score(ctx, test)
	}
	if err != nil {
		return nil, fmt.Errorf("score with %s fitted to %s: %w", m.Name(), normal, err)
	}
	if len(scores) != len(test) {
		return nil, fmt.Errorf("score with %s: %d scores for %d images", m.Name(), len(scores), len(test))
	}
	run := &Run{Seed: seed, Normal: normal, Train: len(train)}
	for i, it := range test {
		if math.IsNaN(scores[i]) {
			return nil, fmt.Errorf("score with %s: the score of %s is not a number", m.Name(), it.Name)
		}
		s := Scored{Item: it, Score: scores[i], Anomalous: it.Label != normal}
		if parts != nil {
			s.Parts = parts[i]
		}
		run.Scored = append(run.Scored, s)
	}
	if where, ok := scorer.(Localizer); ok && o.Pixels {
		if err := run.locate(ctx, where, px); err != nil {
			return nil, err
		}
	}
	if o.Light != "" {
		if run.Light, err = run.light(ctx, scorer, o.Light); err != nil {
			return nil, err
		}
	}
	if c, ok := scorer.(Coster); ok && o.Cost {
		if run.Cost, err = c.Cost(ctx, test[:min(len(test), 9)]); err != nil {
			return nil, err
		}
	}
	return run, nil
}

// table gathers the parts' figures over the repeats.
type table struct {
	began time.Time
	rows  map[[2]string]*row
}

type row struct {
	Part
	order          int
	aps, fprs, f1s []float64
}

// add measures the run's normals against the anomalies with the label and
// returns the AUROC.
func (t *table) add(run Run, normal, anomaly, label string) float64 {
	n, a := run.Split(label)
	if t.rows == nil {
		t.rows = map[[2]string]*row{}
	}
	key := [2]string{normal, anomaly}
	r := t.rows[key]
	if r == nil {
		r = &row{Part: Part{Normal: normal, Anomaly: anomaly, Train: run.Train, Normals: len(n), Anomalies: len(a)}, order: len(t.rows)}
		t.rows[key] = r
	}
	auroc := AUROC(n, a)
	r.AUROCs = append(r.AUROCs, auroc)
	r.aps = append(r.aps, AveragePrecision(n, a))
	r.fprs = append(r.fprs, fprAtTPR(n, a, 0.95))
	best := BestF1(n, a)
	if r.f1s = append(r.f1s, best.F1); r.Confusion == nil {
		r.Confusion = &best
	}
	return auroc
}

func (t *table) parts() []Part {
	rows := slices.SortedFunc(maps.Values(t.rows), func(a, b *row) int { return a.order - b.order })
	out := make([]Part, len(rows))
	for i, r := range rows {
		if r.AUROC, r.Std = meanStd(r.AUROCs); len(r.AUROCs) == 1 {
			r.AUROCs = nil
		}
		r.AveragePrecision, _ = meanStd(r.aps)
		r.FPR95, _ = meanStd(r.fprs)
		r.F1, _ = meanStd(r.f1s)
		out[i] = r.Part
	}
	return out
}
