package training

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/ort"
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
	Threshold float64 `json:"threshold"`      // score above which an image is anomalous
	Index     string  `json:"index"`          // kind of the bank's index
	Seconds   float64 `json:"seconds"`        // that it took
	// Published is "tuned" or "frozen" after FITYMI, and Reason says why.
	Published string `json:"published,omitempty"`
	Reason    string `json:"reason,omitempty"`
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
}

// checkImages is how many held-out images a release carries, so that whoever
// loads it can compare scores.
const checkImages = 4

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

	e, err := p.embedder(p.Backbone)
	if err != nil {
		return nil, err
	}
	defer func() { e.Close() }()
	all, rows, of, err := embedNormals(ctx, e, p.Normals, func(done, total int) { p.tell("embed", done, total) })
	if err != nil {
		return nil, err
	}
	seconds := map[string]float64{"embed": time.Since(start).Seconds()}

	train, held, err := Split(len(of), p.HeldOut, p.K, p.Seed)
	if err != nil {
		return nil, err
	}
	var about struct{ Format string }
	_ = json.Unmarshal(e.Backbone(), &about) // a foreign model says nothing of itself

	took := time.Now()
	model, learning, tidy, err := p.model(ctx, all, of, train)
	if err != nil {
		return nil, err
	}
	if model != p.Backbone {
		seconds["learn"] = time.Since(took).Seconds()
		took = time.Now()
		if err := e.Close(); err != nil {
			return nil, err
		}
		if e, err = p.embedder(model); err != nil {
			return nil, err
		}
		if rows, err = p.embedAgain(ctx, e, of); err != nil {
			return nil, err
		}
		seconds["embed again"] = time.Since(took).Seconds()
	}
	ids, trainRows := use(all, rows, of, train, UsedInBank)
	_, heldRows := use(all, rows, of, held, UsedToHold)
	res := &Result{Release: p.Out, Images: len(all), Bank: len(train), HeldOut: len(held)}
	switch about.Format {
	case backbone.FormatRandom:
		res.warn("the backbone has random weights and has learnt nothing; for real work import a pretrained one: nearmiss backbone import")
	case backbone.FormatStarter:
		res.warn("the starter backbone knows drawn pictures only; for real work import a pretrained one: nearmiss backbone import")
	}
	res.count(all)
	if learning != nil {
		res.Published, res.Reason = learning.Gate.Published, learning.Gate.Reason
		if res.Published == "frozen" {
			res.warn("the frozen backbone is published: %s", res.Reason)
		}
	}

	p.tell("bank", 0, 1)
	began := time.Now()
	b, report, err := p.fill(ctx, e.Dim(), ids, trainRows, heldRows)
	if err != nil {
		return nil, err
	}
	res.Index = string(report.Kind)
	if report.Fallback != "" {
		res.warn("the %s index was turned down, and the bank searches exactly: %s", report.Wanted, report.Fallback)
	}
	if err := p.calibrate(ctx, b, heldRows, res); err != nil {
		return nil, err
	}
	seconds["bank"] = time.Since(began).Seconds()
	p.tell("bank", 1, 1)

	lines, err := listing(all)
	if err != nil {
		return nil, err
	}
	spec := inference.ReleaseSpec{
		Detector: p.Detector, Method: string(p.Method), Model: model, Embedder: e, Bank: b,
		RandomWeights: about.Format == backbone.FormatRandom, StarterWeights: about.Format == backbone.FormatStarter,
		Files: map[string][]byte{NormalsName: lines},
		Training: Provenance{
			Tool: p.Tool, Backbone: filepath.Base(p.Backbone), DataSHA256: dataDigest(all),
			Images: len(all), Duplicates: res.Duplicate, Rejected: res.Rejected,
			HeldOutShare: p.HeldOut, Seed: p.Seed, Index: report, Seconds: seconds, Warnings: res.Warnings,
			K: p.K, Runtime: ort.Version, Learning: learning,
		},
	}
	if report.Wanted != bank.Exact {
		spec.Recall, spec.Excess = &report.Recall, &report.FirstExcess
	}
	for _, j := range held[:min(checkImages, len(held))] {
		file, err := p.Normals[of[j]].Read()
		if err != nil {
			return nil, fmt.Errorf("read normal image %s: %w", all[of[j]].Name, err)
		}
		spec.Check = append(spec.Check, file)
	}
	r, err := inference.WriteRelease(ctx, p.Out, spec)
	if err != nil {
		return nil, err
	}
	res.Digest, res.Seconds = r.Digest, time.Since(start).Seconds()
	return res, tidy()
}

func (p Plan) embedder(model string) (*inference.Embedder, error) {
	return inference.NewEmbedder(model, inference.EmbedOptions{Device: p.Device, Threads: p.Threads, Limits: p.Limits, View: p.View, Symmetry: p.Symmetry})
}

// model makes the model to serve from the normals at the places train of of. It
// is the backbone itself where nothing is learnt but the bank. tidy removes what
// is needed no more once the release is written.
func (p Plan) model(ctx context.Context, all []Normal, of, train []int) (path string, about *Learning, tidy func() error, err error) {
	tidy = func() error { return nil }
	if p.Method == KNN && plain(p.Parts) {
		return p.Backbone, nil, tidy, nil
	}
	if p.Work == "" {
		p.Work = WorkFolder(p.Out)
		tidy = func() error { return os.RemoveAll(p.Work) }
	}
	if p.Method == KNN {
		p.Tuning = combineOnly()
	}
	normals, digests := make([]Image, len(train)), make([]string, len(train))
	for j, i := range train {
		normals[j], digests[j] = p.Normals[of[i]], all[of[i]].SHA256
	}
	l, err := p.learn(ctx, normals, digests)
	if err != nil {
		return "", nil, nil, err
	}
	return l.model, &l.about, tidy, nil
}

// combineOnly tunes nothing: the parts of the frozen embedding are joined, with
// the scales that normals which are not in the bank give them.
func combineOnly() *Tuning {
	return &Tuning{Stopping: DefaultHeldOut, Gate: Gate{Least: 1, Most: math.MaxInt}}
}

// embedAgain embeds the images at the places of with another model.
func (p Plan) embedAgain(ctx context.Context, e *inference.Embedder, of []int) ([]float32, error) {
	images := make([]Image, len(of))
	for j, i := range of {
		images[j] = p.Normals[i]
	}
	_, rows, use, err := embedNormals(ctx, e, images, func(done, total int) { p.tell("embed again", done, total) })
	if err == nil && len(use) != len(of) {
		err = fmt.Errorf("embed the normal images again: %d of %d changed on the way", len(of)-len(use), len(of))
	}
	return rows, err
}

// use marks the images of which, places in of, and collects their ids and rows.
func use(all []Normal, rows []float32, of, which []int, as string) (ids []uint64, picked []float32) {
	if len(of) == 0 {
		return nil, nil
	}
	dim := len(rows) / len(of)
	for _, j := range which {
		all[of[j]].Use = as
		ids = append(ids, all[of[j]].ID)
		picked = append(picked, rows[j*dim:(j+1)*dim]...)
	}
	return ids, picked
}

// fill makes the bank and its index.
func (p Plan) fill(ctx context.Context, dim int, ids []uint64, rows, heldRows []float32) (*bank.Bank, bank.Report, error) {
	b, err := bank.New(bank.Options{Dim: dim, K: p.K, Kind: p.Index, Log: p.Log})
	if err != nil {
		return nil, bank.Report{}, err
	}
	if err := b.AddBatch(ids, rows); err != nil {
		return nil, bank.Report{}, err
	}
	report, err := b.Build(ctx, heldRows)
	return b, report, err
}

// calibrate sets the bank's threshold and says in res what it promises.
func (p Plan) calibrate(ctx context.Context, b *bank.Bank, heldRows []float32, res *Result) error {
	n := res.HeldOut
	smallest := bank.SmallestAlpha(n)
	alpha := p.Alpha
	if alpha < smallest && !p.Settle {
		return fmt.Errorf("%d held-out normals cannot promise a false-alarm rate of %g, the smallest is %.3g: give %d different normal images, hold out more, or ask for less",
			n, alpha, smallest, NormalsFor(alpha, p.HeldOut))
	}
	if alpha < smallest {
		alpha = smallest
		res.warn("%d held-out normals can promise no false-alarm rate below %.3g %%, and that is what the threshold promises; %g %% needs %d different normal images",
			n, 100*smallest, 100*p.Alpha, NormalsFor(p.Alpha, p.HeldOut))
	}
	c, err := b.Calibrate(ctx, heldRows, alpha)
	if err != nil {
		return err
	}
	res.Alpha, res.Smallest, res.Threshold = alpha, smallest, c.Threshold()
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
