package main

import (
	"cmp"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/nearmiss/nearmiss/training"
	"github.com/nearmiss/nearmiss/training/frechet"
	"github.com/nearmiss/nearmiss/training/sde"
)

// tuneFlags say what is compared and how method fitymi learns, for fit and eval.
type tuneFlags struct {
	Work         string `type:"path" placeholder:"DIR" help:"Folder for the results of single steps, from which another run with the same images and seed goes on."`
	compareFlags `group:"What is compared:"`
	viewFlags    `group:"What is seen of a picture:"`
	fitymiFlags  `group:"With --method fitymi:"`
}

// compareFlags say what scores are made of.
type compareFlags struct {
	Score     string  `default:"full" placeholder:"PARTS" help:"What scores are made of: full (every layer of the whole picture, and single patches of several), class (the paper's), or parts of your own: class, pooled, spread or patch, after a layer as in pooled@6, with :unit or :white, patches with :top1 or another statistic; joined by + within a group and by | between groups, of which one that stands out suffices."`
	Coreset   float64 `placeholder:"N" help:"Patches that each bank keeps at most; up to 1, the share of them (default 3000)."`
	NoPatches bool    `name:"no-patches" help:"Make no bank of patches: there are no heatmaps, and a full score looks at the whole picture only."`
	Precision string  `enum:"auto,fp32,fp16,int8" default:"fp32" help:"Of the backbone's arithmetic: ${enum}; int8 is faster on the CPU for ViTs, fp16 on accelerators; auto takes the device's own where it is much faster and changes little: spoilt normals are found as well, scores of held-out normals move by at most 0.3 of their spread, and spoilt ones rank alike (correlation 0.95)."`
}

// viewFlags say what the model is shown.
type viewFlags struct {
	Symmetry  string        `enum:"none,flip,dihedral,auto" default:"none" help:"Changes of an image that mean nothing, which embeddings are averaged over: ${enum}; flip is the mirror image (twice the time), dihedral the eight turns and mirror images of a square (eight times), for parts in any orientation; auto decides by the normals."`
	See       string        `enum:",whole,middle" default:"" help:"What the model sees of a picture: whole, squeezed into its square, or middle, as the backbone was imported (default: whole for the full score, middle for others)."`
	Exposure  string        `enum:",auto,usual,even,colours,varied" default:"" help:"What to do about changing light. usual: take pictures as they are; even: bring each to the normals' usual brightness and contrast; colours: and to their colours; varied: put copies of normals in other light into the banks; auto: the first of usual, even and varied that avoids false alarms in other light. All but usual read pictures as grey where all normals are grey (default: auto for the full score, usual for others)."`
	Sharpness string        `enum:",auto,usual,whole,varied" default:"" help:"What to do about pictures that are slightly out of focus. usual: nothing; whole: put blurred copies of normals into the banks of whole pictures; varied: and into those of patches; auto: the first of these that helps where blurred normals would raise many false alarms (default: auto for the full score, usual for others)."`
	Turned    string        `enum:"none,flip,dihedral,auto" default:"none" help:"Copies of normals that join the banks, where these have room: ${enum}; flip is the mirror image, dihedral are turned and mirrored ones, for parts in any orientation; auto decides by the normals."`
	Size      int           `name:"input-size" placeholder:"PIXELS" help:"Side of the backbone's square input, 224 to 672 (default: as it was imported)."`
	Budget    time.Duration `placeholder:"DURATION" help:"Use larger inputs or tiles as far as the pictures have pixels and one can be judged in this time, as in 200ms: small defects need pixels."`
	Tiles     string        `default:"" placeholder:"RxC" help:"Take patches from rows and columns of overlapping tiles, as in 2x3; each tile takes as long as a picture. few: 2x2 where the inspected part has 400 pixels both ways; auto: as many as the normals' pixels and --budget allow; or none (default: few with the full score, none with --input-size, auto with --budget)."`
	Frame     string        `enum:",auto,all" default:"" help:"Which part of a frame is inspected. auto: where normals show anything, with opened shadows where it is dark; all: the whole frame as it is (default: auto for the full score, all for others)."`
}

// fitymiFlags say how method fitymi learns. What is not given is the profile's.
type fitymiFlags struct {
	Profile   string   `enum:"cpu,gpu,paper,paper-high" default:"cpu" help:"How much to spend: ${enum}; paper-high is the paper's for high resolution, with a generator of 256 pixels. The flags below change single numbers of it."`
	Fakes     string   `placeholder:"SOURCES" help:"Where fakes come from: sde (samples from noise), sdedit (partly diffused normals), folder:DIR (from nearmiss fakes), a local corruption (cutpaste, scar, mix, warp, swirl, bulge, blur, shade, spots, grain, erase; of the whole picture: tint, zoom, fade), several with their shares as in sdedit=2,warp=1, or none."`
	PerNormal float64  `name:"per-normal" placeholder:"N" help:"Fakes for each normal."`
	Match     *float64 `placeholder:"SHARE" help:"Share of the normals, 0..1, that is brought to the fakes' size where these are small."`
	Stop      string   `placeholder:"T" help:"When the generator stops: r=R, fid=F or steps=N; fid needs --inception."`
	Inception string   `type:"existingfile" placeholder:"FILE.onnx" help:"FID's Inception, from nearmiss backbone import: the generator is compared with the normals in its space, and stops at the paper's fid=40, from 256 pixels on at 200, unless --stop says otherwise."`
	FakeSize  int      `name:"fake-size" placeholder:"PIXELS" help:"Size of the generator's images."`
	FakeSteps int      `name:"fake-steps" placeholder:"N" help:"Most training steps of the generator."`
	Edit      float64  `placeholder:"T" help:"How far sdedit diffuses, 0..1."`
	EditFrom  float64  `name:"edit-from" placeholder:"T" help:"Lower end of the times that sdedit diffuses to."`

	Epochs     int       `placeholder:"N" help:"Epochs of a fine-tune."`
	Rate       float64   `placeholder:"R" help:"Learning rate of a fine-tune."`
	Freeze     *int      `placeholder:"N" help:"First blocks of the backbone that stay as they are."`
	Dropout    *float64  `placeholder:"P" help:"Dropout of a fine-tune."`
	LeastSteps *int      `name:"least-steps" placeholder:"N" help:"Steps that a fine-tune makes at least, however few the normals."`
	Probe      *float64  `placeholder:"P" help:"Start the fine-tune from a head that was fitted with this penalty on its weights; 0: from a random one."`
	Members    int       `placeholder:"N" help:"Fine-tunes with different seeds whose weights are averaged."`
	Unseen     float64   `placeholder:"SHARE" help:"Share of the normals that the fine-tune does not see, to judge it by."`
	Blends     []float64 `placeholder:"SHARE" help:"Shares of the tuned weights, the rest being frozen ones, that the gate chooses from."`
	NoGate     bool      `name:"no-gate" help:"Publish the fine-tuned backbone whatever the gate finds."`
}

// plan is the part of a plan that the flags make.
func (f tuneFlags) plan(method string) (training.Plan, error) {
	p := training.Plan{
		Method: training.Method(method), Score: training.Score{Coreset: f.Coreset, NoPatches: f.NoPatches}, Host: training.Host{Work: f.Work},
	}
	p.Model.See, p.Model.Light, p.Model.Sharpness, p.Model.Turned, p.Data.Frame = f.See, f.Exposure, f.Sharpness, f.Turned, f.Frame
	p.Model.Size, p.Model.Budget, p.Model.Tiles, p.Model.Precision = f.Size, f.Budget, f.Tiles, f.Precision
	var err error
	if p.Score.Groups, err = training.ParseScore(f.Score); err != nil {
		return p, usageError{err}
	}
	if p.Model.Symmetry, p.Model.AutoSymmetry, err = training.ParseSymmetry(f.Symmetry); err != nil {
		return p, usageError{err}
	}
	if p.Method != training.FITYMI {
		return p, nil
	}
	t, err := training.Profile(f.Profile)
	if err == nil {
		err = f.change(&t)
	}
	if err != nil {
		return p, usageError{err}
	}
	p.Tuning = &t
	return p, nil
}

func (f tuneFlags) change(t *training.Tuning) (err error) {
	if f.Fakes != "" {
		if t.Sources, err = training.ParseSources(f.Fakes); err != nil {
			return err
		}
	}
	if f.FakeSize != 0 {
		o, err := sde.Profile(f.Profile, "", f.FakeSize, 3)
		if err != nil {
			return err
		}
		t.SDE.Network = o.Network
	}
	if f.Inception != "" {
		t.MeasureBy(f.Inception)
	}
	if f.Stop != "" {
		if t.SDE.Stop, err = frechet.ParseTarget(f.Stop); err != nil {
			return err
		}
		t.SDE.MaxSteps = max(t.SDE.MaxSteps, 1)
	}
	give(&t.Match, f.Match)
	give(&t.Recipe.FreezeBlocks, f.Freeze)
	give(&t.Recipe.Dropout, f.Dropout)
	give(&t.LeastSteps, f.LeastSteps)
	give(&t.Probe, f.Probe)
	if len(f.Blends) > 0 {
		t.Gate.Blends = f.Blends
	}
	t.Gate.Off = f.NoGate
	set(&t.SDE.MaxSteps, f.FakeSteps)
	set(&t.Recipe.Epochs, f.Epochs)
	set(&t.Members, f.Members)
	set(&t.PerNormal, f.PerNormal)
	set(&t.SDE.Edit, f.Edit)
	set(&t.SDE.EditFrom, f.EditFrom)
	set(&t.Recipe.Optimizer.LearningRate, f.Rate)
	set(&t.Stopping, f.Unseen)
	if f.Edit != 0 && f.EditFrom == 0 {
		t.SDE.EditFrom = min(t.SDE.EditFrom, f.Edit)
	}
	return nil
}

// printGate says what the gate found, for people.
func (o *output) printGate(l training.Learning) {
	v := l.Gate
	var b strings.Builder
	fmt.Fprintf(&b, "%s is published: %s\n", v.Published, v.Reason)
	for _, c := range v.Candidates {
		fmt.Fprintf(&b, "  %-28s mean AUROC %.1f %% on %d unseen normals, %+.1f (%+.1f to %+.1f) against frozen\n",
			c.Name, 100*c.Mean, v.Held, 100*c.Gain, 100*c.Low, 100*c.High)
	}
	fmt.Fprint(o.Err, b.String())
}

// printOrientation says whether the normals' orientation matters, for people.
func (o *output) printOrientation(r *training.Result) {
	a := r.Orientation
	if a == nil {
		return
	}
	advised := cmp.Or(a.Choice, "none")
	fmt.Fprintf(o.Err, "advised symmetry: %s: %s\n", advised, a)
	if a.Choice != r.Symmetry {
		fmt.Fprintf(o.Err, "  this release averages over %s; --symmetry %s or --symmetry auto takes the advice, for %d times the time of a frame\n",
			cmp.Or(string(r.Symmetry), "nothing"), advised, a.Choice.Count())
	}
}

// imagePaths makes images of files.
func imagePaths(paths []string) []training.Image {
	out := make([]training.Image, len(paths))
	for i, p := range paths {
		out[i] = training.Image{Name: p, Read: func() ([]byte, error) { return os.ReadFile(p) }}
	}
	return out
}
