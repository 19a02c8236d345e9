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

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/training/corrupt"
	"github.com/nearmiss/nearmiss/training/finetune"
	"github.com/nearmiss/nearmiss/training/frechet"
)

// Learning records how a model came about, for the manifest.
type Learning struct {
	Tuning Tuning `json:"tuning"`
	// Fitted normals were trained on; Unseen ones were kept for the curves and
	// the gate, and are in the bank.
	Fitted int `json:"fitted"`
	Unseen int `json:"unseen"`

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

// learned is what learn gives.
type learned struct {
	*lesson
	network string // the ONNX file of the network to serve
	parts   []Part // of the score
}

// lesson is one course of learning: from the frozen backbone and normals to a
// model. Its steps leave their results in folders of work, named by a digest of
// everything that they depend on, so that another run takes up where one ended.
type lesson struct {
	Plan
	normals     []Image // of use, without duplicates
	digests     []string
	fit, unseen []int // places in normals
	work        string
	base        string // digest of what every step depends on
	about       Learning
	fakes       fakeSets
	start       *finetune.Head // nil: the recipe's
	tuned       []string       // the members' files
}

// learn makes the model that a plan asks for from the usable normals.
func (p Plan) learn(ctx context.Context, normals []Image, digests []string) (_ *learned, err error) {
	l := &lesson{Plan: p, normals: normals, digests: digests, work: p.Work}
	l.about = Learning{Tuning: *p.Tuning, Seconds: map[string]float64{}}
	if err := os.MkdirAll(l.work, 0o755); err != nil {
		return nil, fmt.Errorf("make the work folder: %w", err)
	}
	if err := l.keepSeed(); err != nil {
		return nil, err
	}
	if l.fit, l.unseen, err = l.Tuning.split(len(normals), p.K, p.Seed); err != nil {
		return nil, err
	}
	l.about.Fitted, l.about.Unseen = len(l.fit), len(l.unseen)
	if err := l.identify(); err != nil {
		return nil, err
	}
	if len(p.Tuning.Sources) > 0 {
		if err := l.makeFakes(ctx); err != nil {
			return nil, err
		}
		if p.Tuning.Probe > 0 {
			if l.start, err = l.linearProbe(ctx); err != nil {
				return nil, err
			}
		}
		for i := range p.Tuning.Members {
			if err := l.finetune(ctx, i); err != nil {
				return nil, err
			}
		}
	}
	network, err := l.choose(ctx)
	if err != nil {
		return nil, err
	}
	out := &learned{lesson: l, network: network, parts: l.Parts}
	if network == l.Backbone {
		out.parts = withoutTuned(l.Parts)
	}
	return out, nil
}

const seedFile = "seed"

// keepSeed lets a later run with the same folder find the seed.
func (l *lesson) keepSeed() error {
	return renameio.WriteFile(filepath.Join(l.work, seedFile), fmt.Appendf(nil, "%d\n", l.Seed), 0o644)
}

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

// WorkFolder is the default of Plan.Work for a release folder.
func WorkFolder(out string) string { return filepath.Clean(out) + ".work" }

// split keeps some normals from the fine-tune, in ascending order.
func (t Tuning) split(n, k int, seed uint64) (fit, unseen []int, err error) {
	m := heldOutOf(n, t.Stopping)
	if m < t.Gate.Least {
		m = max(1, min(t.Gate.Least, n/3))
	}
	if n-m <= k {
		return nil, nil, fmt.Errorf("%w: of %d, %d are kept to judge the fine-tune by, and it needs more than %d; add images", ErrTooFew, n, m, k)
	}
	order := rand.New(rand.NewPCG(seed, 0x73746f70)).Perm(n)
	unseen, fit = order[:m:m], order[m:]
	slices.Sort(unseen)
	slices.Sort(fit)
	return fit, unseen, nil
}

// draw gives a seed for one purpose, small enough for a JSON number.
func (l *lesson) draw(purpose string, i int) uint64 {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %s %d", l.Seed, purpose, i))
	return uint64(sum[0])<<40 | uint64(sum[1])<<32 | uint64(sum[2])<<24 | uint64(sum[3])<<16 | uint64(sum[4])<<8 | uint64(sum[5])
}

// identify computes the digest of the backbone, the images and the split.
func (l *lesson) identify() error {
	f, err := os.Open(l.Backbone)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return fmt.Errorf("read backbone %s: %w", l.Backbone, err)
	}
	enc := json.NewEncoder(h)
	pick := func(which []int) []string {
		var out []string
		for _, i := range which {
			out = append(out, l.digests[i])
		}
		return out
	}
	folders, err := sourcesDigest(l.Tuning.Sources)
	if err != nil {
		return err
	}
	if err := enc.Encode([]any{pick(l.fit), pick(l.unseen), l.Seed, imaging.DecoderName(), folders, l.View}); err != nil {
		return err
	}
	l.base = hex.EncodeToString(h.Sum(nil))
	return nil
}

const doneFile = "done.json"

// step does something once: do leaves files in dir and its result in out. Where
// a run with equal inputs did it before, out is read instead.
func (l *lesson) step(name string, inputs, out any, do func(dir string) error) (dir string, err error) {
	h := sha256.New()
	if err := json.NewEncoder(h).Encode([]any{l.base, name, inputs}); err != nil {
		return "", err
	}
	dir = filepath.Join(l.work, name+"-"+hex.EncodeToString(h.Sum(nil))[:16])
	var saved struct {
		Seconds float64         `json:"seconds"`
		Result  json.RawMessage `json:"result"`
	}
	if b, err := os.ReadFile(filepath.Join(dir, doneFile)); err == nil {
		if err := json.Unmarshal(b, &saved); err == nil && json.Unmarshal(saved.Result, out) == nil {
			l.about.Resumed = append(l.about.Resumed, name)
			l.about.Seconds[name] += saved.Seconds
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
	l.about.Seconds[name] += saved.Seconds
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
func (l *lesson) image(i int) (*imaging.Image, error) {
	b, err := l.normals[i].Read()
	if err != nil {
		return nil, fmt.Errorf("read normal image %s: %w", l.normals[i].Name, err)
	}
	return l.View.Decode(b, l.Limits)
}

// finetune runs member i.
func (l *lesson) finetune(ctx context.Context, i int) error {
	t := l.Tuning
	recipe := t.Recipe
	recipe.Seed = l.draw("member", i)
	perEpoch := (2*len(l.fit) + recipe.Batch - 1) / recipe.Batch
	recipe.Epochs = max(recipe.Epochs, (t.LeastSteps+perEpoch-1)/perEpoch)
	name := fmt.Sprintf("finetune-%d", i+1)
	m := Member{Seed: recipe.Seed}
	dir, err := l.step(name, []any{recipe, l.fakes.key, t.Match, t.Probe}, &m, func(dir string) error {
		l.tell(name, 0, 0) // the graph of its gradients takes a while
		res, err := finetune.Run(ctx, finetune.Config{
			Backbone: l.Backbone, Out: filepath.Join(dir, tunedFile),
			Normals: l.matched(l.fit), Fakes: l.fakes.fit,
			HeldNormals: l.matched(l.unseen), HeldFakes: l.fakes.held,
			Recipe: recipe, Start: l.start, Session: l.session(), Checkpoint: dir,
			Progress: func(p finetune.Progress) {
				l.Progress(Progress{Step: name, Done: p.Step, Total: p.Steps, Loss: &p.Loss})
			},
		})
		m.Result = res
		return err
	})
	if err != nil {
		return err
	}
	l.about.Members = append(l.about.Members, m)
	l.tuned = append(l.tuned, filepath.Join(dir, tunedFile))
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
func (l *lesson) choose(ctx context.Context) (string, error) {
	var c choice
	var real []string
	for _, a := range l.Anomalies {
		b, err := a.Read()
		if err != nil {
			return "", fmt.Errorf("read anomaly %s: %w", a.Name, err)
		}
		real = append(real, fmt.Sprintf("%x", sha256.Sum256(b)))
	}
	var members []string // the folders' names have digests of what is in them
	for _, path := range l.tuned {
		members = append(members, filepath.Base(filepath.Dir(path)))
	}
	const version = 6 // of how the gate judges
	inputs := []any{version, l.Tuning.Gate, l.Tuning.Gate.kinds(l.Tuning.Sources), l.Parts, l.Patches, l.Whiten, l.K, members, l.fakes.key, real}
	dir, err := l.step("gate", inputs, &c, func(dir string) (err error) {
		c, err = l.gate(ctx, dir)
		return err
	})
	if err != nil {
		return "", err
	}
	l.about.Gate = c.Verdict
	if c.Model == "" {
		return l.Backbone, nil
	}
	return filepath.Join(dir, c.Model), nil
}

func (l *lesson) gate(ctx context.Context, dir string) (choice, error) {
	none := func(err error) (choice, error) { return choice{}, fmt.Errorf("judge the fine-tune: %w", err) }
	g := l.Tuning.Gate
	blends := g.Blends
	if len(l.tuned) == 0 {
		blends = nil
	}
	l.tell("gate", 0, len(blends)+1)
	frozen, err := l.sit(ctx, dir, l.Backbone, withoutTuned(l.Parts))
	if err != nil {
		return none(err)
	}
	base := combined(frozen.ofParts(withoutTuned(l.Parts), nil))
	l.tell("gate", 1, len(blends)+1)
	var names []string
	var candidates []evidence
	for i, share := range blends {
		name := fmt.Sprintf("blend-%.2f.onnx", share)
		if err := blend(filepath.Join(dir, name), l.Backbone, l.tuned, share); err != nil {
			return none(err)
		}
		tuned := slices.DeleteFunc(slices.Clone(l.Parts), Part.ofFrozen)
		x, err := l.sit(ctx, dir, filepath.Join(dir, name), tuned)
		if err != nil {
			return none(err)
		}
		names, candidates = append(names, name), append(candidates, combined(x.ofParts(l.Parts, frozen)))
		l.tell("gate", i+2, len(blends)+1)
	}
	v, best := g.forSources(l.Tuning.Sources).judge(base, describe(blends, len(l.tuned)), blends, candidates, l.Seed)
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

// sit examines a network's parts on single images: averaged over symmetries, the
// many spoilt normals would take up to eight times as long.
func (l *lesson) sit(ctx context.Context, dir, network string, parts []Part) (_ exam, err error) {
	if len(parts) == 0 {
		return exam{}, nil
	}
	file := filepath.Join(dir, "exam.onnx")
	s := sight{parts: vectorParts(parts)}
	if slices.Contains(parts, PatchPart) {
		_, layer, ok, err := patchSpec(network, l.Patches.Layer)
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, fmt.Errorf("%s is a foreign model, which gives no patches: score on part %q", network, ClassPart)
		}
		s.layer = layer
	}
	single := l.Plan
	single.Symmetry = imaging.NoSymmetry
	k, err := single.open(file, network, s)
	if err != nil {
		return nil, err
	}
	defer func() {
		err = errors.Join(err, k.Close())
		if k.path == file {
			err = errors.Join(err, os.Remove(file))
		}
	}()
	return l.examine(ctx, k, parts, nil, len(l.tuned) > 0)
}

// group is a group's images.
func (l *lesson) group(name string) (setOf, error) {
	unseen := l.unseen[:min(len(l.unseen), l.Tuning.Gate.Most)]
	switch name {
	case groupFit:
		return setOf{len(l.fit), func(i int) (*imaging.Image, error) { return l.image(l.fit[i]) }}, nil
	case groupUnseen:
		return setOf{len(unseen), func(i int) (*imaging.Image, error) { return l.image(unseen[i]) }}, nil
	case EvidenceFakes:
		return setOf{l.fakes.held.Len(), l.fakes.held.Image}, nil
	case EvidenceReal:
		return setOf{len(l.Anomalies), func(i int) (*imaging.Image, error) {
			b, err := l.Anomalies[i].Read()
			if err != nil {
				return nil, err
			}
			m, err := l.View.Decode(b, l.Limits)
			if err != nil {
				return nil, fmt.Errorf("anomaly %s: %w", l.Anomalies[i].Name, err)
			}
			return m, nil
		}}, nil
	}
	g := l.Tuning.Gate
	kind, n := corrupt.Kind(name), len(unseen)
	k := slices.Index(g.kinds(l.Tuning.Sources), kind)
	if k < 0 {
		return setOf{}, fmt.Errorf("no group of images is called %q", name)
	}
	return setOf{n * len(g.Strengths), func(i int) (*imaging.Image, error) {
		m, err := l.image(unseen[i%n])
		if err != nil {
			return nil, err
		}
		donor, err := l.image(unseen[(i+1+i/n)%n])
		if err != nil {
			return nil, err
		}
		return corrupt.Apply(kind, m, donor, g.Strengths[i/n], l.draw("gate", k*1_000_000+i))
	}}, nil
}

// setOf is a finetune.Set of a function.
type setOf struct {
	n  int
	at func(i int) (*imaging.Image, error)
}

func (s setOf) Len() int                            { return s.n }
func (s setOf) Image(i int) (*imaging.Image, error) { return s.at(i) }

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
