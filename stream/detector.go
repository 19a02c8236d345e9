package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream/internal/kv"
	"github.com/nearmiss/nearmiss/stream/internal/text"
)

// Policies of a detector's frames when there are more than can be scored.
const (
	// PolicyLossless keeps every frame in the queue; a camera gets an error when it
	// is full.
	PolicyLossless = "lossless"
	// PolicyLive keeps only the newest frames.
	PolicyLive = "live"
)

// What an incident is of.
const (
	GroupCamera   = "camera"   // one camera
	GroupDetector = "detector" // all cameras of the detector, as of one machine
)

// Duration is a time.Duration that is written "90s" in JSON.
type Duration time.Duration

// MarshalText implements [encoding.TextMarshaler].
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// Region is a rectangle in fractions of the image's width and height, 0-1 from
// the top left corner.
type Region struct {
	X      float64 `json:"x"`
	Y      float64 `json:"y"`
	Width  float64 `json:"width"`
	Height float64 `json:"height"`
}

func (r Region) validate(what string) error {
	if !(r.X >= 0 && r.Y >= 0 && r.Width > 0 && r.Height > 0 && r.X+r.Width <= 1+1e-9 && r.Y+r.Height <= 1+1e-9) {
		return fmt.Errorf("%s %g,%g,%g,%g: give x, y, width and height as fractions within 0 and 1", what, r.X, r.Y, r.Width, r.Height)
	}
	return nil
}

// Detector is the configuration of one inspection task. What is learnt with
// (backbone, method, profile, score, symmetry, tiles, budget, region, mask, bits, held-out share) is used by the next
// training and travels in its release; k and the false-alarm rate, too, or in a release that
// [TrainRequest] calls readjusted. The rest acts at once.
type Detector struct {
	Name        string `json:"name"`
	Description string `json:"description,omitempty"`

	Backbone       string   `json:"backbone,omitempty"`         // name of the model that the trainer begins with, never a path; empty: the trainer's own
	Method         string   `json:"method,omitempty"`           // knn or fitymi; default knn
	Profile        string   `json:"profile,omitempty"`          // training profile; empty: the method's default
	Score          string   `json:"score,omitempty"`            // what scores are made of: full, class, or parts as fit --score takes them; default full
	Symmetry       string   `json:"symmetry,omitempty"`         // what embeddings are averaged over: none, flip, dihedral, or auto, which looks how normals lie; default none
	Tiles          string   `json:"tiles,omitempty"`            // of a frame, that patches come from: rows and columns as in 2x3, few, 2x2 where what is inspected has 400 pixels both ways, auto, as many as frames have pixels and the budget time for, or none; default few with the full score, with a budget auto
	Budget         Duration `json:"budget,omitempty"`           // the longest that judging a frame may take, of which inputs and tiles are chosen as fine; default 0, the backbone's own input and Tiles
	K              int      `json:"k,omitempty"`                // nearest normals that are summed; default 2
	FalseAlarmRate float64  `json:"false_alarm_rate,omitempty"` // share of normals above the threshold; default 0.01
	HeldOut        float64  `json:"held_out,omitempty"`         // share of the normals that stays out of the bank and alone sets the threshold; default 0, the trainer's
	Threshold      float64  `json:"threshold,omitempty"`        // score above which a frame is anomalous, set by hand; default 0, the release's
	Margin         float64  `json:"margin,omitempty"`           // factor on the release's threshold, set by hand; default 0, none
	Region         *Region  `json:"region,omitempty"`           // only this part of the image is inspected
	Ignore         []Region `json:"ignore,omitempty"`           // these parts are masked out
	Bits           int      `json:"bits,omitempty"`             // used of 16-bit samples, 8-32; default what the normals need

	Policy      string   `json:"policy,omitempty"`       // lossless or live; default lossless
	LiveBacklog int      `json:"live_backlog,omitempty"` // live: how many frames may wait; default 32
	Smoothing   int      `json:"smoothing,omitempty"`    // decide on the mean of a camera's last n scores; default 1
	CoolDown    Duration `json:"cool_down,omitempty"`    // at most one anomaly event per camera in this time; default 0, all. Incidents then count fewer than there were
	Quiet       Duration `json:"quiet,omitempty"`        // an incident is over when nothing has gone wrong for so long; default 30 s
	QuietFrames int      `json:"quiet_frames,omitempty"` // or, sooner, after so many good frames in a row; default 0, time alone
	Group       string   `json:"group,omitempty"`        // what an incident is of: camera, or detector, all its cameras together; default camera
	Silence     Duration `json:"silence,omitempty"`      // a camera without a frame for so long is an event; default 0, never
	DefectShare float64  `json:"defect_share,omitempty"` // share of defective frames that is nothing to worry about; more of them is drift; default 0.05
	NoEvidence  bool     `json:"no_evidence,omitempty"`  // keep no images: neither anomalies nor pictures of them, nor any of normals in releases
	Retention   Duration `json:"retention,omitempty"`    // how long evidence is kept; default 30 days
	EvidenceMiB int      `json:"evidence_mib,omitempty"` // how much the pictures of anomalies may take, the oldest go first; default 256

	LearnFrames  int      `json:"learn_frames,omitempty"`  // without a release: the first n frames become normals, then training is asked for; default 0, frames wait
	RetrainEvery Duration `json:"retrain_every,omitempty"` // ask for training this often; default never
	RetrainAfter int      `json:"retrain_after,omitempty"` // ask for training after this many new normals; default never

	CreatedAt time.Time `json:"created_at"`
	// Revision is the entry's revision in the bucket.
	Revision uint64 `json:"-"`
}

// WithDefaults fills in what is not set.
func (d Detector) WithDefaults() Detector {
	d.Method = cmp.Or(d.Method, "knn")
	d.K = cmp.Or(d.K, 2)
	d.FalseAlarmRate = cmp.Or(d.FalseAlarmRate, 0.01)
	d.Policy = cmp.Or(d.Policy, PolicyLossless)
	d.LiveBacklog = cmp.Or(d.LiveBacklog, 32)
	d.Smoothing = cmp.Or(d.Smoothing, 1)
	d.Quiet = cmp.Or(d.Quiet, Duration(30*time.Second))
	d.Group = cmp.Or(d.Group, GroupCamera)
	d.DefectShare = cmp.Or(d.DefectShare, 0.05)
	d.EvidenceMiB = cmp.Or(d.EvidenceMiB, 256)
	d.Retention = cmp.Or(d.Retention, Duration(30*24*time.Hour))
	return d
}

// Decide has a threshold or margin that was set by hand decide on a frame. What it
// promises nobody knows, and the event says so.
func (d Detector) Decide(e *Event) {
	if e.Score == nil || e.Threshold == nil {
		return
	}
	if threshold, by := d.InForce(e.Threshold); by != "" {
		e.Threshold, e.ThresholdBy, e.Anomalous = threshold, by, new(*e.Score > *threshold)
	}
}

// InForce is the threshold that decides where the release's is another, nil: not known,
// and who says so: [ThresholdByHand], [ThresholdByMargin], or, empty, the release.
func (d Detector) InForce(release *float64) (threshold *float64, by string) {
	switch {
	case d.Threshold > 0:
		return &d.Threshold, ThresholdByHand
	case d.Margin > 0 && release != nil:
		return new(*release * d.Margin), ThresholdByMargin
	}
	return release, ""
}

// tiles are those of a Detector.
var tiles = regexp.MustCompile(`^(none|few|auto|[1-8]x[2-8]|[2-8]x1)?$`)

// Validate reports every field that cannot be.
func (d Detector) Validate() error {
	c := d.WithDefaults()
	errs := []error{CheckToken("detector", d.Name)}
	bad := func(wrong bool, format string, args ...any) {
		if wrong {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	bad(d.Backbone != "" && !validFile(d.Backbone), "backbone %q: use the name of a model that the trainers have, not a path on their disks", text.Clip(d.Backbone))
	bad(d.Profile != "" && !validFile(d.Profile), "profile %q: use the name of a training profile", text.Clip(d.Profile))
	bad(!ValidToken(c.Method), "method %q: use knn or fitymi", d.Method)
	bad(!slices.Contains([]string{"", "none", "flip", "dihedral", "auto"}, d.Symmetry), "symmetry %q: use none, flip, dihedral or auto", d.Symmetry)
	bad(!tiles.MatchString(d.Tiles), "tiles %q: use rows and columns as in 2x3, each at most 8, few, auto or none", text.Clip(d.Tiles))
	bad(d.Budget < 0 || d.Budget > Duration(time.Minute), "budget %v: use at most a minute for a frame", time.Duration(d.Budget))
	bad(strings.Trim(d.Score, "abcdefghijklmnopqrstuvwxyz0123456789-+|@:=.") != "" || len(d.Score) > 1000, "score %q: use full, class, or parts as in class:unit+pooled@6|patch@4:top1", text.Clip(d.Score))
	bad(c.K < 1 || c.K > 1000, "k %d: use 1 to 1000", d.K)
	bad(!(d.HeldOut >= 0 && d.HeldOut <= 0.9), "held-out share %g: use a share between 0 and 0.9", d.HeldOut)
	bad(!(c.FalseAlarmRate > 0 && c.FalseAlarmRate < 1), "false-alarm rate %g: use a share between 0 and 1", d.FalseAlarmRate)
	bad(!(c.Threshold >= 0 && c.Threshold <= math.MaxFloat64), "threshold %g: use a score above 0, or 0 for the release's", d.Threshold)
	bad(c.Margin != 0 && !(c.Margin >= 0.01 && c.Margin <= 100), "margin %g: use a factor of 0.01 to 100, or 0 for none", d.Margin)
	bad(c.Threshold > 0 && c.Margin > 0, "threshold %g and margin %g: set one of them by hand", d.Threshold, d.Margin)
	bad(c.Policy != PolicyLossless && c.Policy != PolicyLive, "policy %q: use %s or %s", d.Policy, PolicyLossless, PolicyLive)
	bad(c.LiveBacklog < 1, "live backlog %d: use 1 or more frames", d.LiveBacklog)
	bad(c.Smoothing < 1 || c.Smoothing > 1000, "smoothing over %d frames: use 1 to 1000", d.Smoothing)
	bad(c.CoolDown < 0, "cool-down %v: use 0 or more", time.Duration(d.CoolDown))
	bad(time.Duration(c.Quiet) < time.Second || time.Duration(c.Quiet) > 7*24*time.Hour, "quiet for %v: use 1s to 168h", time.Duration(d.Quiet))
	bad(c.QuietFrames < 0 || c.QuietFrames > 10_000, "quiet for %d frames: use 0 to 10000", d.QuietFrames)
	bad(c.Group != GroupCamera && c.Group != GroupDetector, "group %q: use %s or %s", d.Group, GroupCamera, GroupDetector)
	bad(c.Retention < 0, "retention %v: use 0 or more", time.Duration(d.Retention))
	bad(c.EvidenceMiB < 1 || c.EvidenceMiB > 1<<24, "%d MiB of pictures: use 1 to %d", d.EvidenceMiB, 1<<24)
	bad(!(c.DefectShare > 0 && c.DefectShare < 1), "defect share %g: use a share between 0 and 1", d.DefectShare)
	bad(c.LearnFrames < 0 || c.LearnFrames > 1_000_000, "learning from %d frames: use 0 to 1000000", d.LearnFrames)
	bad(c.Silence < 0 || c.Silence > 0 && time.Duration(c.Silence) < time.Second, "silence of %v: use a second or more", time.Duration(d.Silence))
	bad(c.RetrainAfter < 0, "retraining after %d normals: use 0 or more", d.RetrainAfter)
	bad(c.RetrainEvery < 0 || c.RetrainEvery > 0 && time.Duration(c.RetrainEvery) < time.Minute, "retraining every %v: use a minute or more", time.Duration(d.RetrainEvery))
	if d.Bits != 0 && (d.Bits < 8 || d.Bits > 32) {
		errs = append(errs, fmt.Errorf("bits %d: a sample has 8 to 32; 0 finds out", d.Bits))
	}
	if d.Region != nil {
		errs = append(errs, d.Region.validate("region"))
	}
	for _, r := range d.Ignore {
		errs = append(errs, r.validate("ignored region"))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("detector %s: %w", text.Clip(d.Name), err)
	}
	return nil
}

// Detectors is the store of configurations.
type Detectors struct{ kv kv.Store[Detector] }

// decodeDetector reads a configuration as anybody may have written it. One of
// which a part is not understood is refused as a whole: without its mask, rate or
// privacy it would be another one.
func decodeDetector(key string, value []byte) (Detector, error) {
	var d Detector
	if err := kv.Object(value, &d, true); err != nil {
		return d, err
	}
	if d.Name != key {
		return d, fmt.Errorf("it is the configuration of detector %q", text.Clip(d.Name))
	}
	d.Backbone = modelName(d.Backbone)
	return d, text.OneLine(d.Validate())
}

// modelName makes a name of the path of a backbone's file, as configurations of
// earlier versions have it.
func modelName(backbone string) string {
	if !strings.ContainsAny(backbone, `/\`) {
		return backbone
	}
	name := []byte(path.Base(strings.ReplaceAll(backbone, `\`, "/")))
	for i, c := range name {
		if c != '.' && !ValidToken(string(c)) {
			name[i] = '_'
		}
	}
	return strings.Trim(string(name[:min(len(name), maxToken)]), ".")
}

// Create stores a new detector, or returns [ErrDetectorExists].
func (s *Detectors) Create(ctx context.Context, d Detector) (Detector, error) {
	if err := d.Validate(); err != nil {
		return d, err
	}
	if d.CreatedAt.IsZero() {
		d.CreatedAt = time.Now().UTC()
	}
	var err error
	if d.Revision, err = s.kv.Put(ctx, d.Name, d, 0); kv.Conflict(err) {
		err = ErrDetectorExists
	}
	if err != nil {
		return d, fmt.Errorf("create detector %s: %w", d.Name, err)
	}
	return d, nil
}

// Get returns a detector, or [ErrNoDetector]. Where its newest configuration
// cannot be read, it is the one before; where none can, the error is
// [ErrBadMessage].
func (s *Detectors) Get(ctx context.Context, name string) (Detector, error) {
	d, _, err := s.get(ctx, name)
	return d, err
}

// get also returns the revision that the next change replaces.
func (s *Detectors) get(ctx context.Context, name string) (d Detector, head uint64, err error) {
	if err := CheckToken("detector", name); err != nil {
		return Detector{}, 0, err
	}
	e, err := s.kv.Get(ctx, name)
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		return Detector{}, 0, fmt.Errorf("detector %s: %w", name, ErrNoDetector)
	case errors.Is(err, kv.ErrUnreadable):
		return Detector{}, e.Head, fmt.Errorf("detector %s: %w: delete it and create it anew: %w", name, ErrBadMessage, err)
	case err != nil:
		return Detector{}, 0, fmt.Errorf("read detector %s: %w", name, err)
	}
	e.Value.Revision = e.Revision
	return e.Value, e.Head, nil
}

// Set changes a detector by change, by compare-and-set.
func (s *Detectors) Set(ctx context.Context, name string, change func(*Detector) error) (Detector, error) {
	for range 5 {
		d, head, err := s.get(ctx, name)
		if err != nil {
			return d, err
		}
		if err := change(&d); err != nil {
			return d, err
		}
		d.Name = name
		if err := d.Validate(); err != nil {
			return d, err
		}
		rev, err := s.kv.Put(ctx, name, d, head)
		if kv.Conflict(err) {
			continue
		}
		if err != nil {
			return d, fmt.Errorf("change detector %s: %w", name, err)
		}
		d.Revision = rev
		return d, nil
	}
	return Detector{}, fmt.Errorf("change detector %s: %w", name, ErrConflict)
}

// List returns all detectors in the order of their names, as far as they can be
// read; see [Detectors.Check].
func (s *Detectors) List(ctx context.Context) ([]Detector, error) {
	all, _, err := s.Check(ctx)
	return all, err
}

// Check returns all detectors in the order of their names, and the entries of the
// bucket that cannot be read.
func (s *Detectors) Check(ctx context.Context) ([]Detector, []Unreadable, error) {
	entries, bad, err := s.kv.List(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("list detectors: %w", err)
	}
	var all []Detector
	for _, e := range entries {
		e.Value.Revision = e.Revision
		all = append(all, e.Value)
	}
	return all, bad, nil
}

// Unreadable is an entry of a bucket that cannot be read, and what is used
// instead.
type Unreadable = kv.Bad

// Delete removes a detector's configuration. Its frames, normals and releases
// are other stores' matter; see [Installation.DeleteDetector].
func (s *Detectors) Delete(ctx context.Context, name string) error {
	if _, err := s.Get(ctx, name); err != nil && !errors.Is(err, ErrBadMessage) {
		return err
	}
	if err := s.kv.Bucket.Delete(ctx, name); err != nil {
		return fmt.Errorf("delete detector %s: %w", name, err)
	}
	return nil
}

// History returns the last configurations of a detector, newest first.
func (s *Detectors) History(ctx context.Context, name string) ([]kv.Entry[Detector], error) {
	return s.kv.History(ctx, name)
}

// Watch calls changed when it has begun to watch, and whenever a configuration
// may have changed since, until ctx ends.
func (s *Detectors) Watch(ctx context.Context, changed func()) error {
	return kv.Changes(ctx, s.kv.Bucket, changed)
}

// SameJudgement says whether two configurations have the same k and rate, which
// act through a release.
func SameJudgement(a, b Detector) bool {
	a, b = a.WithDefaults(), b.WithDefaults()
	return a.K == b.K && a.FalseAlarmRate == b.FalseAlarmRate
}
