package training

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/training/corrupt"
	"github.com/nearmiss/nearmiss/training/finetune"
	"github.com/nearmiss/nearmiss/training/frechet"
)

// Learning records how a model came about, for the manifest.
type Learning struct {
	Tuning Tuning `json:"tuning"`
	// Fitted normals were trained on; Validation ones were kept for the curves and
	// the gate, and are in the bank.
	Fitted     int `json:"fitted"`
	Validation int `json:"unseen"`

	Fakes   []FakesReport `json:"fakes"`
	Members []Member      `json:"members"`
	Gate    Verdict       `json:"gate"`

	Seconds map[string]float64 `json:"seconds"` // by step, of the run that did it
	Resumed []string           `json:"resumed,omitempty"`
}

// FakesReport says what came from one source.
type FakesReport struct {
	Source  Source `json:"source"`
	Seed    uint64 `json:"seed"`
	Count   int    `json:"count"`    // trained on
	HeldOut int    `json:"held_out"` // kept for the curves and the gate
	Small   int    `json:"small,omitempty"`
	// Of a generator: why it stopped, where, and the curve.
	Stop    string          `json:"stop,omitempty"`
	Reached bool            `json:"reached,omitempty"`
	Mix     []frechet.Share `json:"mix,omitempty"`
	Curve   []frechet.Probe `json:"curve,omitempty"`
	Copied  int             `json:"copied,omitempty"`
}

// Member is one fine-tune.
type Member struct {
	Seed   uint64           `json:"seed"`
	Result *finetune.Result `json:"result"`
}

// tuned is what fine-tuning gives.
type tuned struct {
	network string // the ONNX file of the network to serve: the frozen one where that is better
	work    string // the folder of its steps
	about   Learning
}

// tuningRun is one course of fine-tuning: from the frozen backbone and normals to a
// model. Its steps leave their results in folders of work, named by a digest of
// everything that they depend on, so that another run takes up where one ended.
type tuningRun struct {
	plan            Plan
	normals         []Image // of use, without duplicates
	digests         []string
	fit, validation []int // places in normals
	work            string
	base            string // digest of what every step depends on
	about           Learning
	fakes           fakeSets
	start           *finetune.Head // nil: the recipe's
	members         []string       // the fine-tuned networks' files
}

// tune makes the network that a plan asks for from the usable normals.
func tune(ctx context.Context, p Plan, normals []Image, digests []string) (*tuned, error) {
	run := &tuningRun{plan: p, normals: normals, digests: digests, work: p.Host.Work}
	run.about = Learning{Tuning: *p.Tuning, Seconds: map[string]float64{}}
	if err := os.MkdirAll(run.work, 0o755); err != nil {
		return nil, fmt.Errorf("make the work folder: %w", err)
	}
	// A later run with the same folder finds the seed.
	if err := renameio.WriteFile(filepath.Join(run.work, seedFile), fmt.Appendf(nil, "%d\n", p.Seed), 0o644); err != nil {
		return nil, err
	}
	var err error
	if run.fit, run.validation, err = p.Tuning.split(len(normals), p.Score.K, p.Seed); err != nil {
		return nil, err
	}
	run.about.Fitted, run.about.Validation = len(run.fit), len(run.validation)
	if err := run.identify(); err != nil {
		return nil, err
	}
	if len(p.Tuning.Sources) > 0 {
		if err := run.makeFakes(ctx); err != nil {
			return nil, err
		}
		if p.Tuning.Probe > 0 {
			if run.start, err = run.linearProbe(ctx); err != nil {
				return nil, err
			}
		}
		for i := range p.Tuning.Members {
			if err := run.finetune(ctx, i); err != nil {
				return nil, err
			}
		}
	}
	network, err := run.choose(ctx)
	if err != nil {
		return nil, err
	}
	return &tuned{network: network, work: run.work, about: run.about}, nil
}

const seedFile = "seed"

// WorkSeed is the seed of the last run that used a work folder; ok is false where
// there was none.
func WorkSeed(work string) (seed uint64, ok bool) {
	b, err := os.ReadFile(filepath.Join(work, seedFile))
	if err != nil {
		return 0, false
	}
	seed, err = strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	return seed, err == nil
}

// WorkFolder is the default of Host.Work for a release folder.
func WorkFolder(out string) string { return filepath.Clean(out) + ".work" }

// split keeps some normals from the fine-tune, in ascending order.
func (t Tuning) split(n, k int, seed uint64) (fit, validation []int, err error) {
	m := heldOutOf(n, t.Stopping)
	if m < t.Gate.Least {
		m = max(1, min(t.Gate.Least, n/3))
	}
	if n-m <= k {
		return nil, nil, fmt.Errorf("%w: of %d, %d are kept to judge the fine-tune by, and it needs more than %d; add images", ErrTooFew, n, m, k)
	}
	order := rand.New(rand.NewPCG(seed, 0x73746f70)).Perm(n)
	validation, fit = order[:m:m], order[m:]
	slices.Sort(validation)
	slices.Sort(fit)
	return fit, validation, nil
}

// draw gives a seed for one purpose, small enough for a JSON number.
func (run *tuningRun) draw(purpose string, i int) uint64 {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %s %d", run.plan.Seed, purpose, i))
	return uint64(sum[0])<<40 | uint64(sum[1])<<32 | uint64(sum[2])<<24 | uint64(sum[3])<<16 | uint64(sum[4])<<8 | uint64(sum[5])
}

// identify computes the digest of the backbone, the images and the split.
func (run *tuningRun) identify() error {
	f, err := os.Open(run.plan.Model.Backbone)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return fmt.Errorf("read backbone %s: %w", run.plan.Model.Backbone, err)
	}
	enc := json.NewEncoder(h)
	folders, err := sourcesDigest(run.plan.Tuning.Sources)
	if err != nil {
		return err
	}
	if err := enc.Encode([]any{picked(run.digests, run.fit), picked(run.digests, run.validation), run.plan.Seed, imaging.DecoderName(), folders, run.plan.Data.View}); err != nil {
		return err
	}
	run.base = hex.EncodeToString(h.Sum(nil))
	return nil
}

const doneFile = "done.json"

// step does something once: do leaves files in dir and its result in out. Where
// a run with equal inputs did it before, out is read instead.
func (run *tuningRun) step(name string, inputs, out any, do func(dir string) error) (dir string, err error) {
	h := sha256.New()
	if err := json.NewEncoder(h).Encode([]any{run.base, name, inputs}); err != nil {
		return "", err
	}
	dir = filepath.Join(run.work, name+"-"+hex.EncodeToString(h.Sum(nil))[:16])
	var saved struct {
		Seconds float64         `json:"seconds"`
		Result  json.RawMessage `json:"result"`
	}
	if b, err := os.ReadFile(filepath.Join(dir, doneFile)); err == nil {
		if err := json.Unmarshal(b, &saved); err == nil && json.Unmarshal(saved.Result, out) == nil {
			run.about.Resumed = append(run.about.Resumed, name)
			run.about.Seconds[name] += saved.Seconds
			return dir, nil
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	began := time.Now()
	if err := do(dir); err != nil {
		return "", err
	}
	saved.Seconds = time.Since(began).Seconds()
	run.about.Seconds[name] += saved.Seconds
	if saved.Result, err = json.Marshal(out); err != nil {
		return "", err
	}
	b, err := json.MarshalIndent(saved, "", "  ")
	if err != nil {
		return "", err
	}
	return dir, renameio.WriteFile(filepath.Join(dir, doneFile), b, 0o644)
}

// image decodes a normal.
func (run *tuningRun) image(i int) (*imaging.Image, error) {
	b, err := run.normals[i].Read()
	if err != nil {
		return nil, fmt.Errorf("read normal image %s: %w", run.normals[i].Name, err)
	}
	return run.plan.Data.View.Decode(b, run.plan.Data.Limits)
}

// finetune runs member i.
func (run *tuningRun) finetune(ctx context.Context, i int) error {
	t := run.plan.Tuning
	recipe := t.Recipe
	recipe.Seed = run.draw("member", i)
	perEpoch := (2*len(run.fit) + recipe.Batch - 1) / recipe.Batch
	recipe.Epochs = max(recipe.Epochs, (t.LeastSteps+perEpoch-1)/perEpoch)
	name := fmt.Sprintf("finetune-%d", i+1)
	m := Member{Seed: recipe.Seed}
	dir, err := run.step(name, []any{recipe, run.fakes.key, t.Match, t.Probe}, &m, func(dir string) error {
		run.plan.Host.report(name, 0, 0) // the graph of its gradients takes a while
		res, err := finetune.Run(ctx, finetune.Config{
			Backbone: run.plan.Model.Backbone, Out: filepath.Join(dir, tunedFile),
			Normals: run.matched(run.fit), Fakes: run.fakes.fit,
			HeldNormals: run.matched(run.validation), HeldFakes: run.fakes.held,
			Recipe: recipe, Start: run.start, Session: run.session(), Checkpoint: dir,
			Progress: func(p finetune.Progress) {
				run.plan.Host.Progress(Progress{Step: name, Done: p.Step, Total: p.Steps, Loss: &p.Loss})
			},
		})
		m.Result = res
		return err
	})
	if err != nil {
		return err
	}
	run.about.Members = append(run.about.Members, m)
	run.members = append(run.members, filepath.Join(dir, tunedFile))
	return nil
}

const tunedFile = "tuned.onnx"

// choice is what the gate's step leaves.
type choice struct {
	Verdict Verdict `json:"verdict"`
	Model   string  `json:"model"` // in the step's folder; "": the frozen backbone as it is
}

// choose compares the candidates with the frozen backbone and makes the model to
// serve.
func (run *tuningRun) choose(ctx context.Context) (string, error) {
	var c choice
	var real []string
	for _, a := range run.plan.Data.Anomalies {
		b, err := a.Read()
		if err != nil {
			return "", fmt.Errorf("read anomaly %s: %w", a.Name, err)
		}
		real = append(real, fmt.Sprintf("%x", sha256.Sum256(b)))
	}
	var members []string // the folders' names have digests of what is in them
	for _, path := range run.members {
		members = append(members, filepath.Base(filepath.Dir(path)))
	}
	const version = 7 // of how the gate judges
	inputs := []any{version, run.plan.Tuning.Gate, run.plan.Tuning.Gate.kinds(run.plan.Tuning.Sources), run.plan.Score, members, run.fakes.key, real}
	dir, err := run.step("gate", inputs, &c, func(dir string) (err error) {
		c, err = run.gate(ctx, dir)
		return err
	})
	if err != nil {
		return "", err
	}
	run.about.Gate = c.Verdict
	if c.Model == "" {
		return run.plan.Model.Backbone, nil
	}
	return filepath.Join(dir, c.Model), nil
}

// gate compares the candidates, which are scored as they would be served, with the
// frozen backbone by the same score without the tuned parts.
func (run *tuningRun) gate(ctx context.Context, dir string) (choice, error) {
	none := func(err error) (choice, error) { return choice{}, fmt.Errorf("judge the fine-tune: %w", err) }
	g := run.plan.Tuning.Gate
	blends := g.Blends
	if len(run.members) == 0 {
		blends = nil
	}
	run.plan.Host.report("gate", 0, len(blends)+1)
	base, err := run.judge(ctx, dir, run.plan.Model.Backbone)
	if err != nil {
		return none(err)
	}
	run.plan.Host.report("gate", 1, len(blends)+1)
	var names []string
	var candidates []evidence
	for i, share := range blends {
		name := fmt.Sprintf("blend-%.2f.onnx", share)
		if err := blend(filepath.Join(dir, name), run.plan.Model.Backbone, run.members, share); err != nil {
			return none(err)
		}
		e, err := run.judge(ctx, dir, filepath.Join(dir, name))
		if err != nil {
			return none(err)
		}
		names, candidates = append(names, name), append(candidates, e)
		run.plan.Host.report("gate", i+2, len(blends)+1)
	}
	v, best := g.forSources(run.plan.Tuning.Sources).judge(base, describe(blends, len(run.members)), blends, candidates, run.plan.Seed)
	c := choice{Verdict: v}
	if best >= 0 {
		c.Model = names[best]
	}
	for _, name := range names {
		if name != c.Model {
			err = errors.Join(err, os.Remove(filepath.Join(dir, name)))
		}
	}
	return c, err
}

func describe(blends []float64, members int) []string {
	out := make([]string, len(blends))
	for i, b := range blends {
		out[i] = fmt.Sprintf("%.0f %% tuned weights", 100*b)
		if members > 1 {
			out[i] += fmt.Sprintf(", mean of %d", members)
		}
	}
	return out
}

// gateCoreset bounds the banks of patches of the gate, which compares scores and
// serves nobody.
const gateCoreset = 2_000

// judge scores validation normals and anomalies with a network, as it would be served,
// and banks of the normals that were fitted. Images are taken as they are: averaged
// over symmetries or in tiles, the many spoilt normals would take many times as long.
func (run *tuningRun) judge(ctx context.Context, dir, network string) (_ evidence, err error) {
	p := run.plan
	p.Model.Symmetry, p.Model.tiles = imaging.NoSymmetry, imaging.Tiles{}
	p.Score.Coreset = min(p.Score.Coreset, gateCoreset)
	p.Score.NoPatches = p.Score.NoPatches || len(p.Score.Groups) > 0 && !slices.ContainsFunc(slices.Concat(p.Score.Groups...), Part.isPatch)
	file := filepath.Join(dir, "judge.onnx")
	b, err := p.scoreBuilder(ctx, file, networks{served: network, frozen: p.Model.Backbone})
	if err != nil {
		return evidence{}, err
	}
	defer func() {
		err = errors.Join(err, b.Close())
		if b.model.path == file {
			err = errors.Join(err, os.Remove(file))
		}
	}()
	b.progress = nil
	fitted, err := run.fitted(ctx, b)
	if err != nil {
		return evidence{}, err
	}
	s, err := b.build(ctx, fitted, nil)
	if err != nil {
		return evidence{}, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	e := evidence{anomalies: map[string][]float64{}}
	groups := []string{groupValidation}
	if len(run.members) > 0 {
		groups = run.groups()
	}
	return e, run.eachImages(groups, func(group string, images []*imaging.Image) error {
		all, err := b.model.e.EmbedImages(ctx, images)
		if err != nil {
			return err
		}
		scores := make([]inference.Score, len(all))
		some, to := make([]*inference.Embedding, len(all)), make([]*inference.Score, len(all))
		for i := range all {
			if all[i].Err != nil {
				return all[i].Err
			}
			some[i], to[i] = &all[i], &scores[i]
		}
		if err := s.Judge(ctx, some, to); err != nil {
			return err
		}
		for _, v := range scores {
			if group == groupValidation {
				e.normals = append(e.normals, v.Score)
			} else {
				e.anomalies[group] = append(e.anomalies[group], v.Score)
			}
		}
		return nil
	})
}

// fitted are the normals that were fine-tuned on, as a model embeds them.
func (run *tuningRun) fitted(ctx context.Context, b *scoreBuilder) (*normals, error) {
	n := b.empty()
	n.replay = func(ctx context.Context, which []int, f func(e *inference.Embedding) error) error {
		for _, i := range which {
			m, err := run.image(run.fit[i])
			if err != nil {
				return err
			}
			all, err := b.model.e.EmbedImages(ctx, []*imaging.Image{m})
			if err != nil {
				return err
			}
			if all[0].Err != nil {
				return all[0].Err
			}
			if err := f(&all[0]); err != nil {
				return err
			}
		}
		return nil
	}
	// As many numbers as eight times the coreset has in a ViT-Ti.
	most := 8 * gateCoreset * 192 / max(len(run.fit), 1)
	return n, run.eachImages([]string{groupFit}, func(_ string, images []*imaging.Image) error {
		all, err := b.model.e.EmbedImages(ctx, images)
		if err != nil {
			return err
		}
		for i := range all {
			if all[i].Err != nil {
				return all[i].Err
			}
			if err := n.add(ctx, uint64(n.size()), &all[i], most, run.plan.Seed); err != nil {
				return err
			}
		}
		return nil
	})
}

// Groups of images that the gate scores, beside the evidence's kinds.
const (
	groupFit        = "\x00fit"
	groupValidation = "\x00unseen"
)

// groups lists all groups but groupFit.
func (run *tuningRun) groups() []string {
	out := []string{groupValidation}
	for _, k := range run.plan.Tuning.Gate.kinds(run.plan.Tuning.Sources) {
		out = append(out, string(k))
	}
	return append(out, EvidenceFakes, EvidenceReal)
}

var errNoImages = errors.New("no images to score")

// eachImages goes through the images of groups, some at a time.
func (run *tuningRun) eachImages(groups []string, use func(group string, images []*imaging.Image) error) error {
	const chunk = 32
	for _, group := range groups {
		set, err := run.group(group)
		if err != nil {
			return err
		}
		if set.Len() == 0 && (group == groupFit || group == groupValidation) {
			return fmt.Errorf("judge by normals: %w", errNoImages)
		}
		for lo := 0; lo < set.Len(); lo += chunk {
			images, err := picturesOf(set, lo, min(lo+chunk, set.Len()))
			if err != nil {
				return err
			}
			if err := use(group, images); err != nil {
				return err
			}
		}
	}
	return nil
}

// group is a group's images.
func (run *tuningRun) group(name string) (makers, error) {
	validation := run.validation[:min(len(run.validation), run.plan.Tuning.Gate.Most)]
	switch name {
	case groupFit:
		return run.images(run.fit), nil
	case groupValidation:
		return run.images(validation), nil
	case EvidenceFakes:
		return run.fakes.held, nil
	case EvidenceReal:
		return makersOf(len(run.plan.Data.Anomalies), func(i int) (*imaging.Image, error) {
			b, err := run.plan.Data.Anomalies[i].Read()
			if err != nil {
				return nil, err
			}
			m, err := run.plan.Data.View.Decode(b, run.plan.Data.Limits)
			if err != nil {
				return nil, fmt.Errorf("anomaly %s: %w", run.plan.Data.Anomalies[i].Name, err)
			}
			return m, nil
		}), nil
	}
	g := run.plan.Tuning.Gate
	kind, n := corrupt.Kind(name), len(validation)
	k := slices.Index(g.kinds(run.plan.Tuning.Sources), kind)
	if k < 0 {
		return nil, fmt.Errorf("no group of images is called %q", name)
	}
	return makersOf(n*len(g.Strengths), func(i int) (*imaging.Image, error) {
		m, err := run.image(validation[i%n])
		if err != nil {
			return nil, err
		}
		donor, err := run.image(validation[(i+1+i/n)%n])
		if err != nil {
			return nil, err
		}
		return corrupt.Apply(kind, m, donor, g.Strengths[i/n], run.draw("gate", k*1_000_000+i))
	}), nil
}

func picturesOf(set finetune.Set, from, to int) ([]*imaging.Image, error) {
	out := make([]*imaging.Image, to-from)
	for i := range out {
		var err error
		if out[i], err = set.Image(from + i); err != nil {
			return nil, err
		}
	}
	return out, nil
}
