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
	"github.com/nearmiss/nearmiss/training/evaluate"
)

// Result says what Fit made.
type Result struct {
	Release   string  `json:"release"`          // the release folder
	Digest    string  `json:"digest"`           // its name: SHA-256 of its manifest
	Images    int     `json:"images"`           // that were given
	Bank      int     `json:"bank"`             // embeddings in the bank
	HeldOut   int     `json:"held_out"`         // normals that calibrate
	Folded    int     `json:"folded,omitempty"` // of these that are in the bank, and calibrate by banks that they are not in
	Duplicate int     `json:"duplicates"`       // images whose bytes were there already
	Rejected  int     `json:"rejected"`         // images that could not be read
	Alpha     float64 `json:"promised_rate"`    // false-alarm rate that the threshold promises
	Smallest  float64 `json:"smallest_rate"`    // smallest rate that could be promised
	// Low and High bound the rate of 95 % of single thresholds by as many normals; the
	// promised rate is kept in the mean over them.
	Low  float64 `json:"rate_low,omitempty"`
	High float64 `json:"rate_high,omitempty"`
	// Worth is how many independent pictures the normals are worth, where they
	// resemble one another; 0: each counts.
	Worth     float64 `json:"worth,omitempty"`
	Threshold float64 `json:"threshold"`      // score above which an image is anomalous
	Index     string  `json:"index"`          // kind of the bank's index
	Score     string  `json:"score"`          // full, class, or its parts
	Patches   int     `json:"patches"`        // patch vectors in their banks; 0: there are none
	Cost      *Cost   `json:"cost,omitempty"` // of judging an image
	Seconds   float64 `json:"seconds"`        // that it took
	// Published is "tuned" or "frozen" after FITYMI, and Reason says why.
	Published string `json:"published,omitempty"`
	Reason    string `json:"reason,omitempty"`
	// Orientation says whether it matters how the normals lie, where that was
	// measured.
	Orientation *Orientation     `json:"orientation,omitempty"`
	Symmetry    imaging.Symmetry `json:"symmetry,omitempty"` // what embeddings are averaged over
	// Framing says where normals show anything, where that was measured.
	Framing *Framing `json:"framing,omitempty"`
	// Resolution says how finely the model samples frames.
	Resolution *Resolution `json:"resolution,omitempty"`
	// Light says what other light does to normals, where that was measured.
	Light *LightReport `json:"light,omitempty"`
	// Sharpness says what a slight blur does to normals, where that was measured.
	Sharpness *SharpnessReport `json:"sharpness,omitempty"`
	// Precision says what fewer bits would change, where that was measured.
	Precision *PrecisionReport `json:"precision,omitempty"`
	// Warnings are sentences for the user: what was left out, and what this
	// release cannot promise.
	Warnings []string `json:"warnings,omitempty"`
}

// Cost is what judging an image takes, where the release was made.
type Cost = evaluate.Cost

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
	Index        bank.Report        `json:"index"`   // of the main bank
	Seconds      map[string]float64 `json:"seconds"` // by step
	Warnings     []string           `json:"warnings,omitempty"`
	K            int                `json:"k"`
	Runtime      string             `json:"onnx_runtime"` // version
	Learning     *Learning          `json:"learning,omitempty"`
	Score        string             `json:"score"` // as ParseScore reads it
	Parts        []Part             `json:"parts"` // that it is made of
	Patches      []PatchReport      `json:"patches,omitempty"`
	Cost         *Cost              `json:"cost,omitempty"`
	Orientation  *Orientation       `json:"orientation,omitempty"`
	Worth        *worth             `json:"worth,omitempty"`
	Light        *LightReport       `json:"light,omitempty"`
	Sharpness    *SharpnessReport   `json:"sharpness,omitempty"`
	Framing      *Framing           `json:"framing,omitempty"`
	Resolution   *Resolution        `json:"resolution,omitempty"`
	Precision    *PrecisionReport   `json:"precision,omitempty"`
}

// PatchReport is how a bank of patches came about.
type PatchReport struct {
	Part    Part               `json:"part"`
	Coreset bank.CoresetReport `json:"coreset"`
	Index   bank.Report        `json:"index"`
}

// Fit carries the plan out and writes the release, one step after the other: embed
// every normal, split them into those that are learnt from and those that
// calibrate, tune the backbone (FITYMI), build the score, calibrate it, write. It
// stops soon after ctx ends, and then leaves nothing behind but the work folder,
// from which another run goes on.
func Fit(ctx context.Context, p Plan) (*Result, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	p = p.withDefaults()
	if err := p.preflight(); err != nil {
		return nil, err
	}
	start := time.Now()
	deep, err := p.Data.depth(ctx)
	if err != nil {
		return nil, err
	}
	if err := p.readGrey(ctx); err != nil {
		return nil, err
	}
	dir, err := folderBeside(p.Out)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	took := stopwatch{last: start}
	res := &Result{Release: p.Out}
	if deep != "" {
		res.warn("%s", deep)
	}

	tried, err := p.sized(ctx, dir)
	if err != nil {
		return nil, err
	}
	nets := networks{served: p.Model.Backbone, frozen: p.Model.Backbone}
	first := p
	if p.Method == FITYMI { // which images are of use; what is served comes later
		first.Score = Score{Groups: Class(), NoPatches: true}.withDefaults()
	}
	x, err := embed(ctx, first, nets, filepath.Join(dir, "embed.onnx"), p.Data.Normals, "embed")
	if err != nil {
		return nil, err
	}
	defer func() { _ = x.Close() }() // whichever is there then
	took.lap("embed")

	halves, err := split(ctx, p, x)
	if left := len(x.all) - len(x.of); errors.Is(err, ErrTooFew) && left > 0 {
		err = fmt.Errorf("%w; %d of the %d images are copies of others, as of a frozen camera, or cannot be read", err, left, len(x.all))
	}
	if err != nil {
		return nil, err
	}
	train, held := halves.train, halves.held

	again := p.Method == FITYMI
	if p.frames() {
		f := frame(x.imagesAt(train), p.Data)
		f.apply(&p)
		res.Framing, again = &f, again || f.changes()
		took.lap("frame")
	}
	if p.Model.Advise || p.Model.AutoSymmetry || p.Model.Turned == TurnedAuto {
		if p.Model.Symmetry == imaging.NoSymmetry {
			if res.Orientation, err = orient(ctx, x.b, x.imagesAt(train), x.n.at(train), p); err != nil {
				return nil, fmt.Errorf("compare how the normals lie: %w", err)
			}
			took.lap("orientation")
		}
		if p.Model.AutoSymmetry {
			p.Model.Symmetry = res.Orientation.Choice
			again = again || p.Model.Symmetry != imaging.NoSymmetry
		} else if p.Model.Turned == TurnedAuto && res.Orientation != nil {
			p.Model.turned = res.Orientation.Choice
		}
	}

	var t *tuned
	if p.Method == FITYMI {
		own := p.Host.Work == ""
		if own {
			p.Host.Work = WorkFolder(p.Out)
		}
		if t, err = tune(ctx, p, x.imagesAt(train), x.digestsAt(train)); err != nil {
			return nil, err
		}
		if own {
			defer func() {
				if res.Digest != "" {
					_ = os.RemoveAll(t.work)
				}
			}()
		}
		nets.served = t.network
		took.lap("learn")
	}
	if again {
		if err := x.again(ctx, p, nets, filepath.Join(dir, "again.onnx")); err != nil {
			return nil, err
		}
		took.lap("embed again")
	}

	done, light, err := buildInLight(ctx, p, nets, dir, x, halves)
	if x = done.x; err != nil {
		return nil, err
	}
	lit := LightUsual
	if light != nil {
		lit = light.Choice
	}
	if done.s, res.Sharpness, err = done.s.sharpen(ctx, p.Model, lit); err != nil {
		return nil, err
	}
	if p.Model.Precision == PrecisionAuto {
		done, res.Precision, err = inPrecision(ctx, nets, dir, done, halves)
		if x = done.x; err != nil {
			return nil, errors.Join(fmt.Errorf("compare precisions: %w", err), done.s.Close())
		}
	}
	s := done.s
	p, res.Light = done.p, light
	defer func() { _ = s.Close() }()
	took.lap("bank")
	if err := s.draw(ctx); err != nil {
		return nil, err
	}
	took.lap("maps")
	parts, err := calibrate(ctx, p, x, s, halves, res)
	if err != nil {
		return nil, err
	}
	took.lap("calibrate")
	res.describe(x, s, train, t)
	res.Resolution = p.resolution(x.b.model, tried)
	var files [][]byte
	for _, m := range x.imagesAt(held[:min(len(held), timedImages)]) {
		b, err := m.Read()
		if err != nil {
			return nil, fmt.Errorf("read normal image %s: %w", m.Name, err)
		}
		files = append(files, b)
	}
	if res.Cost, err = x.b.cost(ctx, s, files); err != nil {
		return nil, err
	}
	x.use(train, UsedInBank)
	x.use(held, UsedToHold)
	if err := write(ctx, p, x, s, parts, halves, t, took.seconds, res); err != nil {
		return nil, err
	}
	res.Seconds = time.Since(start).Seconds()
	return res, nil
}

// folderBeside makes a folder for what is needed until the release is written.
func folderBeside(out string) (string, error) {
	parent := filepath.Dir(filepath.Clean(out))
	dir, err := os.MkdirTemp(parent, ".fit-")
	if errors.Is(err, os.ErrNotExist) {
		if err = os.MkdirAll(parent, 0o755); err == nil {
			dir, err = os.MkdirTemp(parent, ".fit-")
		}
	}
	if err != nil {
		return "", fmt.Errorf("make a folder beside the release: %w", err)
	}
	return dir, nil
}

// stopwatch notes how long steps take.
type stopwatch struct {
	last    time.Time
	seconds map[string]float64
}

// lap ends a step.
func (s *stopwatch) lap(step string) {
	now := time.Now()
	if s.seconds == nil {
		s.seconds = map[string]float64{}
	}
	s.seconds[step] += now.Sub(s.last).Seconds()
	s.last = now
}

// embedded is what a model gave of the images of a plan.
type embedded struct {
	b      *scoreBuilder
	images []Image
	all    []Normal // every image
	of     []int    // places in all of the images that are of use
	n      *normals // of these
}

// embed loads what the plan's score needs and shows it images.
func embed(ctx context.Context, p Plan, nets networks, file string, images []Image, step string) (*embedded, error) {
	b, err := p.scoreBuilder(ctx, file, nets)
	if err != nil {
		return nil, err
	}
	x := &embedded{b: b, images: images, n: b.empty()}
	most := mostNumbers / max(len(images), 1)
	x.all, x.of, err = embedNormals(ctx, b.model.e, images, func(i int, e *inference.Embedding) error {
		return x.n.add(ctx, uint64(i), e, most, p.Seed)
	}, func(done, total int) { p.Host.report(step, done, total) })
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	x.n.replay = func(ctx context.Context, which []int, f func(e *inference.Embedding) error) error {
		return b.model.embedEach(ctx, x.usable(), which, f)
	}
	x.n.vary = func(ctx context.Context, which []int, c copying, f func(e *inference.Embedding) error) error {
		return b.model.vary(ctx, p.Data, x.imagesAt(which), c, f)
	}
	return x, nil
}

// again embeds the images of use by another network, or otherwise turned.
func (x *embedded) again(ctx context.Context, p Plan, nets networks, file string) error {
	if err := x.b.Close(); err != nil {
		return err
	}
	y, err := x.twin(ctx, p, nets, file)
	if err != nil {
		return err
	}
	x.b, x.n = y.b, y.n
	return nil
}

// twin is what another model gives of the images of use.
func (x *embedded) twin(ctx context.Context, p Plan, nets networks, file string) (*embedded, error) {
	y, err := embed(ctx, p, nets, file, x.usable(), "embed again")
	if err != nil {
		return nil, err
	}
	if len(y.of) != len(x.of) {
		return nil, errors.Join(fmt.Errorf("embed the normal images again: %d of %d changed on the way", len(x.of)-len(y.of), len(x.of)), y.Close())
	}
	for j, i := range x.of {
		y.n.ids[j] = x.all[i].ID
	}
	y.n.replay = func(ctx context.Context, which []int, f func(e *inference.Embedding) error) error {
		return y.b.model.embedEach(ctx, x.usable(), which, f)
	}
	y.n.vary = func(ctx context.Context, which []int, c copying, f func(e *inference.Embedding) error) error {
		return y.b.model.vary(ctx, p.Data, x.imagesAt(which), c, f)
	}
	y.images, y.all, y.of = x.images, x.all, x.of
	return y, nil
}

func (x *embedded) Close() error { return x.b.Close() }

// usable are the images of use.
func (x *embedded) usable() []Image {
	return picked(x.images, x.of)
}

// picked are those of some things that are at some places; nil of no places.
func picked[T any](all []T, which []int) (out []T) {
	for _, i := range which {
		out = append(out, all[i])
	}
	return out
}

// imagesAt are those at places in of, digestsAt the SHA-256 of their files.
func (x *embedded) imagesAt(which []int) []Image { return picked(x.images, picked(x.of, which)) }

func (x *embedded) digestsAt(which []int) []string {
	out := make([]string, len(which))
	for j, i := range which {
		out[j] = x.all[x.of[i]].SHA256
	}
	return out
}

// use marks the images at places in of.
func (x *embedded) use(which []int, as string) {
	for _, i := range which {
		x.all[x.of[i]].Use = as
	}
}

// calibrate sets the main bank's threshold, by the normals that were held out, and
// says in res what it promises. It returns the parts with what these normals say
// of them.
func calibrate(ctx context.Context, p Plan, x *embedded, s *builtScore, halves halves, res *Result) ([]inference.Part, error) {
	held, share := halves.held, p.Calibration.HeldOut
	scores, maps := s.folded, s.foldedMaps
	if len(scores) > 0 {
		held, share = nil, 1
	}
	res.HeldOut, res.Folded = len(scores)+len(held), len(scores)-s.heldOut
	alpha, err := p.Calibration.rate(res.HeldOut, share, res)
	if err != nil {
		return nil, err
	}
	p.Host.report("calibrate", len(scores), len(scores)+len(held))
	err = x.n.replay(ctx, held, func(e *inference.Embedding) error {
		var v inference.Score
		if err := s.Judge(ctx, []*inference.Embedding{e}, []*inference.Score{&v}); err != nil {
			return err
		}
		scores = append(scores, v.Score)
		if v.Map != nil {
			maps = append(maps, *v.Map)
		}
		p.Host.report("calibrate", len(scores), len(held))
		return nil
	})
	if err != nil {
		return nil, err
	}
	parts := s.Parts()
	scored := x.b.scored()
	var c *bank.Calibration
	if main := parts[slices.IndexFunc(parts, func(p inference.Part) bool { return p.Bank == s.Bank() })]; len(scored) == 1 && main.About.Scored {
		// The bank keeps the embeddings, too, to calibrate again after removals.
		c, err = main.Bank.Calibrate(ctx, x.n.at(held).part(main.About), alpha)
	} else if c, err = bank.NewCalibration(scores, alpha); err == nil {
		s.Bank().SetCalibration(c)
	}
	if err != nil {
		return nil, err
	}
	res.Alpha, res.Smallest, res.Threshold = alpha, bank.SmallestAlpha(len(scores)), c.Threshold()
	halves.rest(s.Bank(), p.Calibration, res)
	res.Low, res.High = bank.FalseAlarmRange(int(math.Ceil(s.Bank().Calibration().Worth())), res.Alpha, 0.95)
	for i := range parts {
		a := &parts[i].About
		if m := median(scores); a.Scored && len(scored) == 1 && m > 0 && !math.IsInf(m, 0) {
			a.Scale = m
		}
		if a.IsPatch() && !a.NoMap && maps != nil {
			if a.Heat, err = heatmap.NewScale(maps); err != nil {
				return nil, err
			}
			maps = nil // the first of them has it
		}
	}
	return parts, nil
}

// rate is the false-alarm rate that n normals can promise, which are a share of all.
func (c Calibration) rate(n int, share float64, res *Result) (float64, error) {
	smallest := bank.SmallestAlpha(n)
	if c.Alpha >= smallest {
		return c.Alpha, nil
	}
	if !c.Settle {
		return 0, c.outOfReach(n, share)
	}
	res.warn("%d normals that calibrate can promise no false-alarm rate below %.3g %%, and that is what the threshold promises; %g %% needs %d different normal images",
		n, 100*smallest, 100*c.Alpha, normalsFor(c.Alpha, share))
	return smallest, nil
}

// describe fills in what was done, and what is to be known about it.
func (r *Result) describe(x *embedded, s *builtScore, train []int, t *tuned) {
	r.Images, r.Bank = len(x.all), len(train)
	r.Score, r.Symmetry = x.b.composition.name, x.b.model.e.Preprocess().Symmetry
	switch format(x.b.model) {
	case backbone.FormatRandom:
		r.warn("the backbone has random weights and has learnt nothing; for real work take a pretrained one: nearmiss backbone pull vit-small")
	case backbone.FormatStarter:
		r.warn("the starter backbone knows drawn pictures only; for real work take a pretrained one: nearmiss backbone pull vit-small")
	}
	if x.b.composition.name == FullScore && len(x.b.scored()) == 1 {
		r.warn("the backbone is a foreign model that gives one vector only, so the score is %s: one that gives its layers finds more", ClassScore)
	}
	r.count(x.all)
	if t != nil {
		r.Published, r.Reason = t.about.Gate.Published, t.about.Gate.Reason
		if r.Published == "frozen" {
			r.warn("the frozen backbone is published: %s", r.Reason)
		}
	}
	for i, p := range s.Parts() {
		if p.About.IsPatch() {
			r.Patches += p.Bank.Len()
		}
		if p.Bank == s.Bank() {
			r.Index = string(s.reports[i].Kind)
		}
		if f := s.reports[i].Fallback; f != "" {
			r.warn("the %s index of part %s was turned down, and its bank searches exactly: %s", s.reports[i].Wanted, p.About.Name, f)
		}
	}
}

// format is where a model's weights come from; a foreign one says nothing.
func format(m *model) string {
	var about struct{ Format string }
	_ = json.Unmarshal(m.e.Backbone(), &about)
	return about.Format
}

// write puts the release in place and names it in res.
func write(ctx context.Context, p Plan, x *embedded, s *builtScore, parts []inference.Part, halves halves, t *tuned, seconds map[string]float64, res *Result) error {
	lines, err := release.EncodeNormals(x.all)
	if err != nil {
		return err
	}
	about := Provenance{
		Tool: p.Host.Tool, Backbone: p.Model.source, DataSHA256: dataDigest(x.all),
		Images: len(x.all), Duplicates: res.Duplicate, Rejected: res.Rejected,
		HeldOutShare: p.Calibration.HeldOut, Seed: p.Seed, Seconds: seconds, Warnings: res.Warnings,
		K: p.Score.K, Runtime: ort.Version, Score: res.Score, Cost: res.Cost, Orientation: res.Orientation, Worth: halves.worth, Light: res.Light, Sharpness: res.Sharpness, Framing: res.Framing, Resolution: res.Resolution, Precision: res.Precision,
	}
	if t != nil {
		about.Learning = &t.about
	}
	for i, q := range x.b.parts {
		if q.scored {
			about.Parts = append(about.Parts, q.Part)
		}
		if q.isPatch() {
			about.Patches = append(about.Patches, PatchReport{Part: q.Part, Coreset: s.patches[i], Index: s.reports[i]})
		}
		if parts[i].Bank == s.Bank() {
			about.Index = s.reports[i]
		}
	}
	kind := format(x.b.model)
	spec := inference.ReleaseSpec{
		Detector: p.Detector, Method: string(p.Method), Model: x.b.model.path, Embedder: x.b.model.e, Parts: parts, Join: s.Join(),
		RandomWeights: kind == backbone.FormatRandom, StarterWeights: kind == backbone.FormatStarter, Folded: res.Folded,
		Files: map[string][]byte{release.NormalsName: lines}, Training: about,
	}
	if !p.Data.NoImages {
		thumbs := release.Thumbnails{}
		if err := thumbs.Add(ctx, x.all, func(i int) ([]byte, error) { return x.images[i].Read() }, p.Data.View, p.Data.Limits); err != nil {
			return err
		}
		if spec.Files[release.ThumbnailsName], err = thumbs.Archive(); err != nil {
			return err
		}
	}
	if spec.Check, err = checks(x.imagesAt(halves.held), p.Data.NoImages); err != nil {
		return err
	}
	r, err := inference.WriteRelease(ctx, p.Out, spec)
	if err != nil {
		return err
	}
	res.Digest = r.Digest
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
