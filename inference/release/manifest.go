package release

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/nearmiss/nearmiss/inference/heatmap"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/release/envelope"
)

// SchemaVersion is the latest version of the manifest that this program reads. It
// writes the earliest one that says all, so that earlier programs, which pass over what
// they do not know, read a release that they can serve and refuse any other: version 2
// has tiles, a tone with levels, or maps of what is above a picture's median, version 3 a
// tone that evens out casts of colour, or has pictures read as grey, version 4 products in
// 32 bits among those in 8.
const SchemaVersion = 4

// version is the earliest that says all that the manifest does.
func (m Manifest) version() int {
	if slices.ContainsFunc(m.Parts, func(p Part) bool { return p.MapExcess }) {
		return max(2, m.scoring())
	}
	return m.scoring()
}

// scoring is the earliest that says all that scores depend on.
func (m Manifest) scoring() int {
	if len(m.Model.FloatProducts) > 0 {
		return 4
	}
	p := m.Model.Preprocess
	if t := p.Tone; t != nil && (t.Grey || len(t.Colours) > 0) {
		return 3
	}
	if p.Tiles != nil || p.Tone != nil && len(p.Tone.Levels) > 0 {
		return 2
	}
	return 1
}

// Usual names in a release.
const (
	ManifestName = envelope.ManifestName
	BackboneName = "backbone.onnx"
	BankName     = "bank.nmb"
)

// PartBankName is the file of the bank of a part that is not the main one.
func PartBankName(part string) string { return "bank-" + part + ".nmb" }

// Manifest describes a release. It is written once, by [Builder.Commit].
type Manifest struct {
	// SchemaVersion is set by Commit.
	SchemaVersion int `json:"schema_version"`
	// Detector names the inspection task: [A-Za-z0-9_-]+.
	Detector string `json:"detector"`
	// Method is how the release was learnt: "knn" or "fitymi".
	Method string `json:"method"`
	// CreatedAt is set by Commit where it is zero.
	CreatedAt time.Time `json:"created_at"`
	// Files has every other file of the folder by its slash-separated path. It
	// is filled by Commit.
	Files envelope.Files `json:"files"`

	Model Model `json:"model"`
	// Bank is the main bank, which holds the calibration of the score.
	Bank Bank `json:"bank"`
	// Parts of the score, each with a bank of its own; the main bank is one of
	// theirs. None: the score is that of the main bank on the whole embedding.
	Parts []Part `json:"parts,omitempty"`
	// Join says how groups of parts become one score. None: all parts are one group,
	// whose mean is the score.
	Join        *Join       `json:"join,omitempty"`
	Calibration Calibration `json:"calibration"`
	// Check foretells the scores of a few images, so that a program that loads
	// the release can see whether it scores as the one that made it.
	Check []Check `json:"check,omitempty"`
	// Training says where the release comes from; free form, for people.
	Training json.RawMessage `json:"training,omitempty"`
}

// Model says what the backbone is and how images are prepared for it.
type Model struct {
	File       string             `json:"file"`             // of Files
	Name       string             `json:"name,omitempty"`   // for people: "vit_tiny_patch16_224"
	Family     string             `json:"family,omitempty"` // "vit", "resnet", …
	Dim        int                `json:"dim"`              // length of an embedding
	Preprocess imaging.Preprocess `json:"preprocess"`
	// Precision is that of the backbone's products when the banks were filled, and
	// when images are scored: Float32, where it is empty, too, Int8 or Half. The file has
	// the weights as they were learnt.
	Precision string `json:"precision,omitempty"`
	// FloatProducts are the products, by the names of their results in the file, that
	// are computed in 32 bits all the same with Int8, since 8 would spoil them.
	FloatProducts []string `json:"float_products,omitempty"`
	// RandomWeights warns that the backbone was never trained.
	RandomWeights bool `json:"random_weights,omitempty"`
	// StarterWeights says that the backbone is the starter's, trained on drawn
	// pictures only, or was tuned from it.
	StarterWeights bool `json:"starter_weights,omitempty"`
}

// Precisions of a backbone's products.
const (
	Float32 = "fp32"
	Int8    = "int8"
	Half    = "fp16"
)

// Bank sums up the bank file.
type Bank struct {
	File  string `json:"file"`  // of Files
	Kind  string `json:"kind"`  // of index: "exact", "hnsw", "coder"
	Count int    `json:"count"` // entries
	// Normals is how many of them are normals themselves, where copies of these, in
	// another light or turned, are entries, too.
	Normals int `json:"normals,omitempty"`
	K       int `json:"k"` // neighbours in a score
	// Recall is the measured recall@k of an approximate index, 0..1, and
	// Excess the mean relative excess of its first distance.
	Recall *float64 `json:"recall,omitempty"`
	Excess *float64 `json:"excess,omitempty"`
}

// Images is how many normals the entries of a bank of images are of.
func (b Bank) Images() int { return cmp.Or(b.Normals, b.Count) }

// Statistics of a part: how distances to the nearest entries become a number.
const (
	StatisticKNN  = "knn"  // sum over the k nearest of the part's one vector
	StatisticMean = "mean" // mean over the patches of the nearest's
	StatisticTop1 = "top1" // mean over the 1 % of the patches where it is largest
	StatisticTop5 = "top5" // mean over the 5 % of the patches where it is largest
	StatisticMax  = "max"  // the largest
	// StatisticContrast is StatisticTop1 less the median over the patches.
	StatisticContrast = "contrast"
)

// PatchStatistics are those that sum up the patches of an image.
var PatchStatistics = []string{StatisticMean, StatisticTop5, StatisticTop1, StatisticMax, StatisticContrast}

// Join says how the parts of a score, in groups, become one. The parts of a group
// have a weighted mean of their ratios' logarithms, m. Among normals it has the
// centre and the spread of the group, so that z = (m − Center)/Spread is how far an
// image stands out by it. With s the Sharpness, the joint value is
//
//	z = 1/s · log Σ w·exp(s·z)    over the groups, w their weights
//
// which is close to the largest z, and the score exp(Unit·z), a positive number.
// A score is calibrated as a whole: a normal that calibrates counts by numbers that
// others set.
type Join struct {
	Groups    []Group `json:"groups"`
	Sharpness float64 `json:"sharpness"` // above 0
	Unit      float64 `json:"unit"`      // above 0
}

// Group is some parts of a score.
type Group struct {
	Name   string  `json:"name"` // as Part.Group
	Center float64 `json:"center"`
	Spread float64 `json:"spread"` // above 0
	Weight float64 `json:"weight"` // above 0
}

// Groups of parts.
const (
	GroupWhole = "whole" // vectors of the whole picture
	GroupLocal = "local" // patches
)

func (j *Join) validate(parts []Part) (errs []error) {
	if j == nil {
		return nil
	}
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf("join: "+format, args...)) }
	positive := func(v float64) bool { return v > 0 && !math.IsInf(v, 0) }
	if len(j.Groups) == 0 || len(j.Groups) > 16 {
		fail("%d groups", len(j.Groups))
	}
	if !positive(j.Sharpness) || !positive(j.Unit) {
		fail("sharpness %v, unit %v", j.Sharpness, j.Unit)
	}
	for i, g := range j.Groups {
		if !positive(g.Spread) || !positive(g.Weight) || math.IsNaN(g.Center) || math.IsInf(g.Center, 0) {
			fail("group %q: centre %v, spread %v, weight %v", g.Name, g.Center, g.Spread, g.Weight)
		}
		if slices.ContainsFunc(j.Groups[:i], func(o Group) bool { return o.Name == g.Name }) {
			fail("two groups are called %q", g.Name)
		}
		if !slices.ContainsFunc(parts, func(p Part) bool { return p.Scored && p.Group == g.Name }) {
			fail("group %q has no part", g.Name)
		}
	}
	for _, p := range parts {
		if p.Scored && !slices.ContainsFunc(j.Groups, func(g Group) bool { return g.Name == p.Group }) {
			fail("part %q is of no group", p.Name)
		}
	}
	return errs
}

// Part is a part of the score: vectors of the model, and the bank of those of
// normals. Distances are squared Euclidean ones.
type Part struct {
	Name string `json:"name"` // for people and programs: "class", "pooled", "patch", …
	// Output is the model's: "embedding", float [N, D], of which the part has the
	// numbers From to From+Dim−1, or one of patches, float [N, Width·Height, Dim].
	Output string `json:"output"`
	From   int    `json:"from,omitempty"`
	Dim    int    `json:"dim"`
	// Unit says whether vectors of the embedding are scaled to length 1. Those of
	// patches are so already, or means of such.
	Unit bool `json:"unit,omitempty"`
	Bank Bank `json:"bank"`
	// Statistic is one of those above; StatisticKNN for the embedding, another for
	// patches.
	Statistic string `json:"statistic"`
	// Scored says whether it counts in the image's score. A part that does not is
	// there for what else it tells: where, or which normals are nearest.
	Scored bool `json:"scored"`
	// Scale is what normals that are not in the bank score at the median: a part's
	// ratio is its score divided by that. Above 0.
	Scale float64 `json:"scale"`
	// Weight is that of the ratio's logarithm among the scored parts' of the group.
	// Above 0.
	Weight float64 `json:"weight"`
	// Group is one of the join's, where there is one.
	Group string `json:"group,omitempty"`

	// Of patches: the grid, and after how many of the backbone's blocks they are
	// taken.
	Width  int `json:"width,omitempty"`
	Height int `json:"height,omitempty"`
	Layer  int `json:"layer,omitempty"`
	// Radius is the largest distance, not squared, of any normal patch that was
	// given to one that was kept in the bank.
	Radius float64 `json:"radius,omitempty"`
	// Also are further statistics of the same patches' distances that count in the
	// score, each like a part of its own.
	Also []Measure `json:"also,omitempty"`
	// Places, rows first, divide the distances of the patches: what normals that are
	// not in the bank show at each place, so that places where they differ much count
	// less. None: distances count as they are.
	Places []float32 `json:"places,omitempty"`
	// Map is the weight of the part's distances in maps, to which those of all parts
	// of patches are added; 0 stands for 1.
	Map float64 `json:"map,omitempty"`
	// NoMap keeps the part's distances out of maps: it counts in the score alone.
	NoMap bool `json:"no_map,omitempty"`
	// MapExcess has only what a distance is above the median of the picture's count in
	// maps, and nothing where it is below: a picture that is odd all over is not hot
	// all over.
	MapExcess bool `json:"map_excess,omitempty"`
	// Heat says how large the values of maps are among held-out normals, which makes
	// intensities of them. The first part of patches that counts in maps has it. None:
	// the release draws no heatmaps.
	Heat *heatmap.Scale `json:"heat,omitempty"`
}

// Measure is a statistic of patches' distances, with the scale and the weight that
// a part has.
type Measure struct {
	Statistic string  `json:"statistic"`
	Scale     float64 `json:"scale"`
	Weight    float64 `json:"weight"`
}

// Measures are all statistics of the part: its own first.
func (p Part) Measures() []Measure {
	return append([]Measure{{p.Statistic, p.Scale, p.Weight}}, p.Also...)
}

// patchOutput are names of outputs, as in package backbone: patches after some
// layers, and of which network.
var patchOutput = regexp.MustCompile(`^(net[0-9]-)?patch@[0-9]{1,4}(x[0-9]{1,2})?$`)

// OutputEmbedding is the output that parts of one vector are taken from. Any other
// is one of patches; releases with one of these only have called it OutputPatches.
const (
	OutputEmbedding = "embedding"
	OutputPatches   = "patches"
)

// IsPatch says whether the part has a vector for each patch of the image.
func (p Part) IsPatch() bool { return p.Output != OutputEmbedding }

// Calibration sums up the calibration that the bank file holds.
type Calibration struct {
	Alpha         float64 `json:"alpha"`          // false-alarm rate asked for
	SmallestAlpha float64 `json:"smallest_alpha"` // that HeldOut can promise: 1/(n+1)
	HeldOut       int     `json:"held_out"`       // normals that the threshold comes from
	// Folded is how many of these are in the banks, too, and were scored by banks
	// without their fold of the normals; absent where all were held out.
	Folded int `json:"folded,omitempty"`
	// Worth is how many independent normals the held-out ones are worth, and
	// Promised the false-alarm rate that they can promise; absent where each counts
	// and Alpha is promised.
	Worth    float64 `json:"worth,omitempty"`
	Promised float64 `json:"promised,omitempty"`
	// Threshold is the score above which an image is anomalous; null where the
	// rate asked for is unreachable, so that nothing is called anomalous.
	Threshold *float64 `json:"threshold"`
}

// Rate is the false-alarm rate that the release promises, 0..1.
func (c Calibration) Rate() float64 { return max(c.Alpha, c.SmallestAlpha, c.Promised) }

// Check is an image of the release and the score it had where it was made.
type Check struct {
	File  string  `json:"file"` // of Files
	Score float64 `json:"score"`
	// Tolerance is the relative difference that another processor, device or
	// library may show; 0 means 1e-3.
	Tolerance float64 `json:"tolerance,omitempty"`
}

// ParseManifest reads and checks a manifest. Fields it does not know are
// passed over; another schema version is refused.
func ParseManifest(b []byte) (Manifest, error) {
	var m Manifest
	if len(b) > envelope.MaxManifest {
		return Manifest{}, fmt.Errorf("read manifest: %d bytes, at most %d are read", len(b), envelope.MaxManifest)
	}
	var version struct {
		SchemaVersion int `json:"schema_version"`
	}
	if err := json.Unmarshal(b, &version); err != nil {
		return Manifest{}, fmt.Errorf("read manifest: %w", err)
	}
	if v := version.SchemaVersion; v < 1 || v > SchemaVersion {
		return Manifest{}, fmt.Errorf("read manifest: schema version %d, this program reads 1 to %d: use a matching version of nearmiss", v, SchemaVersion)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(&m); err != nil {
		return Manifest{}, fmt.Errorf("read manifest: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Manifest{}, errors.New("read manifest: there is something behind it")
	}
	if err := m.Validate(); err != nil {
		return Manifest{}, fmt.Errorf("read manifest: %w", err)
	}
	// Some manifests of version 1 have maps of version 2: those of 29 November 2026.
	if v := m.scoring(); v > m.SchemaVersion {
		return Manifest{}, fmt.Errorf("read manifest: schema version %d has something of version %d", m.SchemaVersion, v)
	}
	return m, nil
}

// Validate reports everything in the manifest that contradicts itself.
func (m Manifest) Validate() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if m.Detector == "" || strings.Trim(m.Detector, tokenCharacters) != "" {
		fail("detector %q: use letters, digits, - and _", m.Detector)
	}
	if m.Method == "" {
		fail("no method is named")
	}
	if err := m.Files.Validate(); err != nil {
		fail("%w", err)
	}
	uses := func(what, name string) {
		if _, ok := m.Files[name]; !ok {
			fail("%s file %q is not among the files", what, name)
		}
	}
	uses("model", m.Model.File)
	uses("bank", m.Bank.File)
	for _, c := range m.Check {
		uses("check", c.File)
		if !(c.Tolerance >= 0) {
			fail("check %q: tolerance %v", c.File, c.Tolerance)
		}
	}
	if m.Model.Dim < 1 {
		fail("model: embeddings of %d dimensions", m.Model.Dim)
	}
	if err := m.Model.Preprocess.Validate(); err != nil {
		fail("model: %w", err)
	}
	if p := m.Model.Precision; !slices.Contains([]string{"", Float32, Int8, Half}, p) {
		fail("model: precision %q: this program computes %s, %s and %s", p, Float32, Half, Int8)
	}
	if len(m.Model.FloatProducts) > 0 && m.Model.Precision != Int8 {
		fail("model: products stay in 32 bits with precision %q: that is for %s", m.Model.Precision, Int8)
	}
	if m.Bank.K < 1 || m.Bank.Count < m.Bank.K {
		fail("bank: %d entries do not give %d neighbours", m.Bank.Count, m.Bank.K)
	}
	for i, p := range m.Parts {
		uses("bank", p.Bank.File)
		for _, err := range p.validate(m.Model.Dim) {
			fail("part %q: %w", p.Name, err)
		}
		if slices.ContainsFunc(m.Parts[:i], func(q Part) bool { return q.Name == p.Name || q.Bank.File == p.Bank.File }) {
			fail("part %q: another has its name or its bank", p.Name)
		}
	}
	if len(m.Parts) > maxParts {
		fail("%d parts of the score, at most %d are read", len(m.Parts), maxParts)
	}
	errs = append(errs, m.Join.validate(m.Parts)...)
	if len(m.Parts) > 0 {
		if !slices.ContainsFunc(m.Parts, func(p Part) bool { return p.Scored }) {
			fail("no part counts in the score")
		}
		if !slices.ContainsFunc(m.Parts, func(p Part) bool { return p.Bank.File == m.Bank.File && !p.IsPatch() }) {
			fail("the main bank %q is no part's of the embedding", m.Bank.File)
		}
	}
	return errors.Join(errs...)
}

// maxLength bounds lengths and sizes in a part, maxParts the parts.
const (
	maxLength = 1 << 16
	maxParts  = 1 << 10
)

func (p Part) validate(dim int) (errs []error) {
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if p.Name == "" || strings.Trim(p.Name, tokenCharacters) != "" {
		fail("use letters, digits, - and _")
	}
	if p.Dim < 1 || p.Dim > maxLength || p.From < 0 || p.Layer < 0 {
		fail("%d numbers from %d after %d blocks", p.Dim, p.From, p.Layer)
	}
	if p.Bank.K < 1 || p.Bank.Count < p.Bank.K {
		fail("%d entries do not give %d neighbours", p.Bank.Count, p.Bank.K)
	}
	positive := func(v float64) bool { return v > 0 && !math.IsInf(v, 0) }
	for _, m := range p.Measures() {
		if !positive(m.Scale) || !positive(m.Weight) {
			fail("scale %v, weight %v", m.Scale, m.Weight)
		}
	}
	if !(p.Radius >= 0) || math.IsInf(p.Radius, 0) {
		fail("radius %v", p.Radius)
	}
	if len(p.Places) > 0 && len(p.Places) != p.Width*p.Height {
		fail("%d places in a grid of %d×%d", len(p.Places), p.Width, p.Height)
	}
	for _, v := range p.Places {
		if !positive(float64(v)) {
			fail("a place has %v", v)
			break
		}
	}
	if err := p.Heat.Validate(); err != nil {
		fail("%w", err)
	}
	switch p.Output {
	case OutputEmbedding:
		if p.From > dim-p.Dim {
			fail("%d numbers from %d are not in an embedding of %d", p.Dim, p.From, dim)
		}
		if p.Statistic != StatisticKNN {
			fail("statistic %q, one vector has %q", p.Statistic, StatisticKNN)
		}
		if len(p.Also) > 0 || len(p.Places) > 0 {
			fail("one vector has neither further statistics nor places")
		}
	default:
		if p.Output != OutputPatches && !patchOutput.MatchString(p.Output) {
			fail("output %q is unknown", p.Output)
		}
		if p.Width < 1 || p.Height < 1 || p.Width > maxLength || p.Height > maxLength || p.From != 0 || p.Bank.K != 1 {
			fail("a grid of %d×%d, from %d, k = %d: patches have a grid, all their numbers and k = 1", p.Width, p.Height, p.From, p.Bank.K)
		}
		for i, m := range p.Measures() {
			if !slices.Contains(PatchStatistics, m.Statistic) {
				fail("statistic %q is unknown", m.Statistic)
			}
			if slices.ContainsFunc(p.Measures()[:i], func(o Measure) bool { return o.Statistic == m.Statistic }) {
				fail("statistic %q is there twice", m.Statistic)
			}
		}
		if !(p.Map >= 0) || math.IsInf(p.Map, 0) {
			fail("weight %v in maps", p.Map)
		}
	}
	return errs
}

const tokenCharacters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

// ModelDigest is the SHA-256 of the backbone file.
func (m Manifest) ModelDigest() string { return m.Files[m.Model.File].SHA256 }

// BankDigest is the SHA-256 of the bank file.
func (m Manifest) BankDigest() string { return m.Files[m.Bank.File].SHA256 }
