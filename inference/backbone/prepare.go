package backbone

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nearmiss/nearmiss/inference/imaging"
)

// How images are prepared belongs to the weights, and the weights do not say it:
// ViTs of six publications have the same tensors and want four normalisations.
// It comes, the first that is known counting most, from the caller, from what the
// weights' own folder says (config.json of timm and Hugging Face,
// preprocessor_config.json), from the architecture's name that the caller or the
// file's name gives, and at last from the family, which is then noted.

// The normalisation constants in use: samples in 0..1.
var (
	halfMean     = [3]float64{0.5, 0.5, 0.5}
	imageNetMean = [3]float64{0.485, 0.456, 0.406}
	imageNetStd  = [3]float64{0.229, 0.224, 0.225}
	clipMean     = [3]float64{0.48145466, 0.4578275, 0.40821073}
	clipStd      = [3]float64{0.26862954, 0.26130258, 0.27577711}
	// liteMean and liteStd are (127, 128) of 255, of the original EfficientNet-Lite.
	liteMean = [3]float64{127.0 / 255, 127.0 / 255, 127.0 / 255}
	liteStd  = [3]float64{128.0 / 255, 128.0 / 255, 128.0 / 255}
	// hfNetStd is what Hugging Face's EfficientNets have in their configurations.
	hfNetStd = [3]float64{0.47853944, 0.4732864, 0.47434163}
)

// recipe is how a publication's checkpoints want images.
type recipe struct {
	word          string // in the architecture's or the file's name
	families      []Family
	mean, std     [3]float64
	fraction      float64 // of the resized image that is kept; 0: that of the family
	interpolation imaging.Interpolation
}

// recipes by words; the first that the name has counts. Sources: timm's default
// configurations for miil, dinov3, clip and tf_; the publications' own
// evaluation code for deit, dino and mae (256 → 224, bicubic).
var recipes = []recipe{
	{"dinov3", []Family{ViT}, imageNetMean, imageNetStd, 1, imaging.Bicubic},
	{"dinov2", []Family{ViT}, imageNetMean, imageNetStd, 1, imaging.Bicubic},
	{"dino", []Family{ViT, ResNet}, imageNetMean, imageNetStd, 0.875, imaging.Bicubic},
	{"deit", []Family{ViT}, imageNetMean, imageNetStd, 0.875, imaging.Bicubic},
	{"mae", []Family{ViT}, imageNetMean, imageNetStd, 0.875, imaging.Bicubic},
	{"miil", []Family{ViT, ResNet}, [3]float64{}, [3]float64{1, 1, 1}, 0.875, imaging.Bilinear},
	{"clip", []Family{ViT, ConvNeXt, ResNet}, clipMean, clipStd, 0, imaging.Bicubic},
	{"augreg", []Family{ViT, Hybrid}, halfMean, halfMean, 0, imaging.Bicubic},
	{"tf_efficientnet_lite", []Family{MobileNet}, halfMean, halfMean, 0.875, imaging.Bicubic},
	{"tf_mobilenet", []Family{MobileNet}, halfMean, halfMean, 0.875, imaging.Bilinear},
}

// archWords are the other words that an architecture's name may be known by.
var archWords = []string{"vit", "resnet", "convnext", "efficientnet", "mobilenet", "swsl", "ssl", "in21k", "tf_"}

// checkArch refuses a name that says nothing.
func checkArch(name string) error {
	if name == "" {
		return nil
	}
	low := strings.ToLower(name)
	var words []string
	for _, r := range recipes {
		if strings.Contains(low, r.word) {
			return nil
		}
		words = append(words, r.word)
	}
	if slices.ContainsFunc(archWords, func(w string) bool { return strings.Contains(low, w) }) {
		return nil
	}
	return fmt.Errorf("the architecture %q is not known: give timm's name, or one of %s", name, strings.Join(words, ", "))
}

// named finds the recipe that the name of an architecture or file stands for.
func named(name string, f Family) (recipe, bool) {
	low := strings.ToLower(name)
	for _, r := range recipes {
		if strings.Contains(low, r.word) && slices.Contains(r.families, f) {
			return r, true
		}
	}
	return recipe{}, false
}

// apply is how the recipe prepares images for a square input of size pixels.
func (r recipe) apply(p imaging.Preprocess) imaging.Preprocess {
	p.Mean, p.Std, p.Interpolation = r.mean, r.std, r.interpolation
	if r.fraction > 0 {
		p.Resize = int(float64(p.Crop)/r.fraction + 1e-9)
	}
	return p
}

// defaultPreprocess is how the family's published checkpoints want images.
// format is the weight file's ("npz": the original ViT recipe). Sources: timm's
// default configurations; resize is ⌊size / crop fraction⌋.
//
//   - ViT, AugReg (timm): bicubic, crop fraction 0.9 up to 224 px (248 → 224) and
//     1.0 above, mean = std = 0.5
//   - ViT and hybrid, original .npz: bilinear, 0.875 (256 → 224), mean = std = 0.5
//   - ViT with LayerScale or without class token positions (DINOv2, DINOv3):
//     bicubic, 1.0, ImageNet statistics
//   - ResNet: bilinear, 0.875; ConvNeXt and mobile networks: bicubic, 0.875;
//     ImageNet statistics
func defaultPreprocess(s Spec, format string) imaging.Preprocess {
	p := imaging.Preprocess{Crop: s.Size, Interpolation: imaging.Bicubic, Mean: halfMean, Std: halfMean}
	fraction := 0.9
	switch {
	case s.Family == ResNet:
		p.Mean, p.Std, fraction, p.Interpolation = imageNetMean, imageNetStd, 0.875, imaging.Bilinear
	case s.Family == ConvNeXt, s.Family == MobileNet, s.Family == Foreign:
		p.Mean, p.Std, fraction = imageNetMean, imageNetStd, 0.875
	case format == "npz":
		fraction, p.Interpolation = 0.875, imaging.Bilinear
	case s.LayerScale:
		p.Mean, p.Std, fraction = imageNetMean, imageNetStd, 1
	case s.Distilled:
		p.Mean, p.Std, fraction = imageNetMean, imageNetStd, 0.875
	case s.PreNorm:
		p.Mean, p.Std = clipMean, clipStd
	case s.Size > 224:
		fraction = 1
	}
	p.Resize = int(float64(s.Size)/fraction + 1e-9)
	return p
}

// ambiguous says of which publications a family's tensors may be, where the
// default would be a guess.
func ambiguous(s Spec, format string) string {
	if s.Family == ViT && format != "npz" && !s.LayerScale && !s.Distilled && !s.PreNorm && s.Rope == 0 {
		return "AugReg; DeiT, DINO, MAE and MIIL have the same tensors and want others"
	}
	return ""
}

// prepare settles how images are prepared for m and says where that is from.
func (m *Model) prepare(w *Weights, side sidecar, o LoadOptions) {
	s := m.Spec
	p := defaultPreprocess(s, m.Format)
	m.PreprocessFrom = "the usual of " + string(s.Family)
	if a := ambiguous(s, m.Format); a != "" {
		m.PreprocessFrom = "assumed: that of " + a + "; say which with --arch deit, dino, mae, miil or augreg, or with --mean and --std"
	}
	switch m.dialect {
	case dialectLite:
		p.Mean, p.Std = imageNetMean, imageNetStd
		if s.Mobile.Act == actRelu6 {
			p.Mean, p.Std = liteMean, liteStd
		}
		m.PreprocessFrom = "that of the original weights"
	case dialectHFNet:
		p.Std = hfNetStd
	case dialectHFViT:
		if !s.Distilled {
			p.Interpolation = imaging.Bilinear
		}
	}
	if r, ok := named(o.Arch, s.Family); ok {
		p, m.PreprocessFrom = r.apply(p), "that of "+r.word+", as asked for"
	} else if r, ok := named(filepath.Base(w.path), s.Family); ok && o.Arch == "" {
		p, m.PreprocessFrom = r.apply(p), "that of "+r.word+", by the file's name"
	}
	if side.file != "" && o.Arch == "" {
		if q, ok := side.preprocess(p); ok {
			p, m.PreprocessFrom = q, side.file+" beside the weights"
		}
	}
	m.Preprocess = p
}

// checkNormalise refuses constants of another unit.
func checkNormalise(mean, std [3]float64) error {
	for c := range 3 {
		if math.Abs(mean[c]) > 1 || std[c] > 1 {
			return fmt.Errorf("mean %v and std %v are not of samples in 0..1: divide constants of 0..255 by 255 (123.675 is 0.485)", mean, std)
		}
		if !(std[c] > 0) || math.IsNaN(mean[c]) {
			return fmt.Errorf("mean %v and std %v do not normalise: a standard deviation is above 0 (and 1 where samples only are in 0..1)", mean, std)
		}
	}
	return nil
}

// sidecar is what files beside the weights say of them.
type sidecar struct {
	file   string // name of the one that was read
	arch   string
	config struct {
		Architecture  string          `json:"architecture"` // timm
		Architectures []string        `json:"architectures"`
		ModelType     string          `json:"model_type"`
		Hidden        int             `json:"hidden_size"`
		Features      int             `json:"num_features"`
		Heads         int             `json:"num_attention_heads"`
		Eps           float64         `json:"layer_norm_eps"`
		Act           json.RawMessage `json:"hidden_act"`
		Image         int             `json:"image_size"`
		Theta         float64         `json:"rope_theta"`
		Timm          *struct {
			Mean          [3]float64 `json:"mean"`
			Std           [3]float64 `json:"std"`
			Interpolation string     `json:"interpolation"`
			Fraction      float64    `json:"crop_pct"`
			Mode          string     `json:"crop_mode"`
			Input         []int      `json:"input_size"`
		} `json:"pretrained_cfg"`
	}
	pre *struct {
		Mean     []float64       `json:"image_mean"`
		Std      []float64       `json:"image_std"`
		Size     json.RawMessage `json:"size"`
		Crop     json.RawMessage `json:"crop_size"`
		DoCrop   *bool           `json:"do_center_crop"`
		DoNorm   *bool           `json:"do_normalize"`
		Resample *int            `json:"resample"`
	}
}

// maxSidecar bounds a configuration file.
const maxSidecar = 1 << 20

// readSidecar reads config.json and preprocessor_config.json beside the weights,
// where there are any that fit: dim is the embedding's length.
func readSidecar(path string, dim int) sidecar {
	var s sidecar
	if path == "" {
		return s
	}
	read := func(name string, v any) bool {
		full := filepath.Join(filepath.Dir(path), name)
		info, err := os.Stat(full)
		if err != nil || !info.Mode().IsRegular() || info.Size() > maxSidecar {
			return false
		}
		b, err := os.ReadFile(full)
		return err == nil && json.Unmarshal(b, v) == nil
	}
	if !read("config.json", &s.config) {
		return sidecar{}
	}
	c := s.config
	if dim != 0 && (c.Hidden != 0 && c.Hidden != dim || c.Features != 0 && c.Features != dim) || c.Hidden == 0 && c.Architecture == "" && c.ModelType == "" {
		return sidecar{} // of another network
	}
	s.file, s.arch = "config.json", strings.ToLower(c.Architecture)
	s.arch = cmp.Or(s.arch, strings.ToLower(c.ModelType))
	if read("preprocessor_config.json", &s.pre) {
		s.file = "preprocessor_config.json"
	}
	return s
}

// act is the activation of the MLPs.
func (s sidecar) act() (name string, err error) {
	var text string
	if len(s.config.Act) == 0 || json.Unmarshal(s.config.Act, &text) != nil {
		return actGelu, nil
	}
	switch text {
	case "gelu":
		return actGelu, nil
	case "gelu_new", "gelu_pytorch_tanh":
		return actGeluTanh, nil
	case "quick_gelu":
		return actQuickGelu, nil
	case "silu", "swish":
		return actSilu, nil
	}
	return "", architectureError("config.json asks for the activation %q, which is not built", text)
}

// preprocess is how the files say that images are prepared, p where they are silent.
func (s sidecar) preprocess(p imaging.Preprocess) (imaging.Preprocess, bool) {
	if t := s.config.Timm; t != nil && checkNormalise(t.Mean, t.Std) == nil {
		p.Mean, p.Std = t.Mean, t.Std
		if t.Fraction > 0 && t.Fraction <= 1 {
			p.Resize = int(float64(p.Crop)/t.Fraction + 1e-9)
		}
		if i := imaging.Interpolation(t.Interpolation); i.Valid() {
			p.Interpolation = i
		}
		if t.Mode == "squash" {
			p.Squash, p.Resize = true, 0
		}
		return p, true
	}
	c := s.pre
	if c == nil {
		return p, false
	}
	switch {
	case c.DoNorm != nil && !*c.DoNorm:
		p.Mean, p.Std = [3]float64{}, [3]float64{1, 1, 1}
	case len(c.Mean) == 3 && len(c.Std) == 3 && checkNormalise([3]float64(c.Mean), [3]float64(c.Std)) == nil:
		p.Mean, p.Std = [3]float64(c.Mean), [3]float64(c.Std)
	default:
		return p, false
	}
	shortest, square := sides(c.Size)
	crop, _ := sides(c.Crop)
	switch {
	case square > 0 && (c.DoCrop == nil || !*c.DoCrop): // both sides resized
		p.Squash, p.Resize = true, 0
	case shortest > 0 && crop > 0 && shortest >= crop:
		p.Resize = p.Crop * shortest / crop
	case shortest > 0:
		p.Resize = p.Crop
	}
	if c.Resample != nil {
		p.Interpolation = map[int]imaging.Interpolation{2: imaging.Bilinear, 3: imaging.Bicubic}[*c.Resample]
		if !p.Interpolation.Valid() {
			p.Interpolation = imaging.Bicubic
		}
	}
	return p, true
}

// sides reads 224, {"shortest_edge": 256} and {"height": 224, "width": 224}.
func sides(raw json.RawMessage) (shortest, square int) {
	var n int
	if json.Unmarshal(raw, &n) == nil {
		return n, n
	}
	var m struct {
		Shortest int `json:"shortest_edge"`
		Height   int `json:"height"`
		Width    int `json:"width"`
	}
	if json.Unmarshal(raw, &m) != nil {
		return 0, 0
	}
	if m.Height > 0 && m.Height == m.Width {
		return max(m.Shortest, m.Height), m.Height
	}
	return m.Shortest, 0
}
