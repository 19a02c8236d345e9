package backbone

import (
	"fmt"
	"strings"
)

// Family is a kind of architecture that this package can build.
type Family string

// The families of the paper's Table 1, mobile networks, and foreign ONNX models.
const (
	ViT       Family = "vit"
	Hybrid    Family = "hybrid" // ResNet stem, ViT encoder
	ResNet    Family = "resnet"
	ConvNeXt  Family = "convnext"
	MobileNet Family = "mobilenet" // mobile inverted bottlenecks: MobileNet, EfficientNet
	Foreign   Family = "onnx"      // any other model: no code of ours
)

// Spec is an architecture: everything about a network but its weights. Which
// fields count depends on the family.
type Spec struct {
	Family Family `json:"family"`
	Size   int    `json:"size"` // pixels of the square input
	Dim    int    `json:"dim"`  // of the embedding

	// ViT and Hybrid.
	Depth      int  `json:"depth,omitempty"`       // encoder blocks
	Heads      int  `json:"heads,omitempty"`       // attention heads
	Hidden     int  `json:"hidden,omitempty"`      // width of the MLP's middle
	Patch      int  `json:"patch,omitempty"`       // pixels; Hybrid: cells of the ResNet's feature map
	Registers  int  `json:"registers,omitempty"`   // register tokens, after the class token
	ClassPos   bool `json:"class_pos,omitempty"`   // the class token has a position embedding
	LayerScale bool `json:"layer_scale,omitempty"` // ls1.gamma, ls2.gamma
	AllPos     bool `json:"all_pos,omitempty"`     // registers have position embeddings, too
	NoClass    bool `json:"no_class,omitempty"`    // there is no class token
	Distilled  bool `json:"distilled,omitempty"`   // a distillation token behind the class token (DeiT); the embedding is the mean of both
	Gated      bool `json:"gated,omitempty"`       // SwiGLU: fc1 gives the gate and the value, Hidden each
	PreNorm    bool `json:"pre_norm,omitempty"`    // a norm in front of the blocks (CLIP)
	// MeanPool takes the mean of the patch tokens as the embedding; with PoolNorm it
	// is normalised after that, not the tokens before.
	MeanPool bool `json:"mean_pool,omitempty"`
	PoolNorm bool `json:"pool_norm,omitempty"`
	// Rope is the period of rotary positions as in DINOv3; 0: there are none.
	Rope float64 `json:"rope,omitempty"`
	Act  string  `json:"act,omitempty"` // of the MLPs; "": erf-GELU

	// ResNet, ConvNeXt and Hybrid.
	Blocks []int `json:"blocks,omitempty"` // blocks of each stage
	Widths []int `json:"widths,omitempty"` // output channels of each stage
	Basic  bool  `json:"basic,omitempty"`  // ResNet-18/34 blocks instead of bottlenecks
	Wide   int   `json:"wide,omitempty"`   // bottlenecks are so many times as wide in the middle as a quarter of their output; 0: 1

	Mobile *Mobile `json:"mobile,omitempty"` // MobileNet

	NormEps  float64 `json:"norm_eps"`            // of LayerNorm, BatchNorm
	GroupEps float64 `json:"group_eps,omitempty"` // Hybrid: of GroupNorm
	StdEps   float64 `json:"std_eps,omitempty"`   // Hybrid: added to the variance of a standardised kernel
}

// grid is the number of tokens along one side of a ViT.
func (s Spec) grid() int {
	if s.Family == Hybrid {
		return s.Size / (s.reduction() * s.Patch)
	}
	return s.Size / s.Patch
}

// reduction is the stride of the Hybrid's ResNet: 4 in the stem, 2 in each
// stage but the first.
func (s Spec) reduction() int { return 4 << max(len(s.Blocks)-1, 0) }

// Lead is the number of tokens of a ViT or Hybrid in front of the patches: class,
// distillation, registers.
func (s Spec) Lead() int {
	n := s.Registers
	if !s.NoClass {
		n++
	}
	if s.Distilled {
		n++
	}
	return n
}

// posLead is the number of these that have position embeddings.
func (s Spec) posLead() int {
	switch {
	case s.AllPos:
		return s.Lead()
	case s.ClassPos:
		return s.Lead() - s.Registers
	}
	return 0
}

// Tokens is the number of tokens of a ViT or Hybrid: those of Lead and the patches.
// 0 for the other families.
func (s Spec) Tokens() int {
	if s.Family != ViT && s.Family != Hybrid {
		return 0
	}
	return s.Lead() + s.grid()*s.grid()
}

// Name says what the architecture is called in timm, as near as shapes tell.
func (s Spec) Name() string {
	switch s.Family {
	case ViT:
		return fmt.Sprintf("vit_%s_patch%d_%d", s.vitSize(), s.Patch, s.Size)
	case Hybrid:
		n := 2
		for _, b := range s.Blocks {
			n += 3 * b
		}
		if fmt.Sprint(s.Blocks) == "[3 4 9]" { // the paper moves stage 4 into stage 3
			n = 50
		}
		return fmt.Sprintf("vit_%s_r%d_s%d_%d", s.vitSize(), n, s.reduction()*s.Patch, s.Size)
	case ResNet:
		n, per := 2, 3
		if s.Basic {
			per = 2
		}
		for _, b := range s.Blocks {
			n += per * b
		}
		if s.Wide > 1 {
			return fmt.Sprintf("wide_resnet%d_%d", n, s.Wide)
		}
		return fmt.Sprintf("resnet%d", n)
	case MobileNet:
		return s.mobileName()
	case ConvNeXt:
		key := fmt.Sprint(s.Blocks, s.Widths[0])
		for name, k := range map[string]string{
			"atto": "[2 2 6 2] 40", "tiny": "[3 3 9 3] 96", "small": "[3 3 27 3] 96",
			"base": "[3 3 27 3] 128", "large": "[3 3 27 3] 192", "xlarge": "[3 3 27 3] 256",
		} {
			if k == key {
				return "convnext_" + name
			}
		}
		return fmt.Sprintf("convnext_%d", s.Widths[0])
	}
	return string(s.Family)
}

func (s Spec) vitSize() string {
	switch [2]int{s.Dim, s.Depth} {
	case [2]int{192, 12}:
		return "tiny"
	case [2]int{384, 12}:
		return "small"
	case [2]int{768, 12}:
		return "base"
	case [2]int{1024, 24}:
		return "large"
	case [2]int{1280, 32}:
		return "huge"
	case [2]int{1408, 40}, [2]int{1536, 40}:
		return "giant"
	case [2]int{1664, 48}:
		return "gigantic"
	}
	return fmt.Sprintf("%dx%d", s.Dim, s.Depth)
}

// Stages lists the prefixes of parameter names in the order of the forward
// pass, one for each encoder block, residual block or stage: what a fine-tune
// can freeze from the front.
func (s Spec) Stages() []string {
	var out []string
	switch s.Family {
	case ViT, Hybrid:
		for i := range s.Depth {
			out = append(out, fmt.Sprintf("blocks.%d.", i))
		}
	case ResNet:
		for i := range s.Blocks {
			out = append(out, fmt.Sprintf("layer%d.", i+1))
		}
	case ConvNeXt:
		for i := range s.Blocks {
			out = append(out, fmt.Sprintf("stages.%d.", i))
		}
	case MobileNet:
		for i := range s.Blocks {
			out = append(out, fmt.Sprintf("blocks.%d.", i))
		}
	}
	return out
}

// Validate reports a specification that no network can have.
func (s Spec) Validate() error {
	bad := func(format string, args ...any) error {
		return architectureError("%s: %s", s.Family, fmt.Sprintf(format, args...))
	}
	if s.Size < 8 || s.Size > 4096 {
		return bad("input size %d is not between 8 and 4096", s.Size)
	}
	if s.Dim < 1 {
		return bad("embedding of %d dimensions", s.Dim)
	}
	for _, b := range s.Blocks {
		if b < 1 {
			return bad("blocks %v", s.Blocks)
		}
	}
	switch s.Family {
	case ViT, Hybrid:
		if s.Depth < 1 || s.Hidden < 1 || s.Patch < 1 {
			return bad("depth %d, MLP width %d and patch %d must be positive", s.Depth, s.Hidden, s.Patch)
		}
		if s.Heads < 1 || s.Dim%s.Heads != 0 {
			return bad("%d heads do not divide %d dimensions", s.Heads, s.Dim)
		}
		if s.NoClass && (!s.MeanPool || s.Distilled || s.ClassPos) {
			return bad("without a class token the embedding is the mean of the patches")
		}
		if s.Rope < 0 || s.Rope > 0 && s.Dim/s.Heads%4 != 0 {
			return bad("rotary positions of period %g in heads of %d", s.Rope, s.Dim/s.Heads)
		}
		unit := s.Patch
		if s.Family == Hybrid {
			unit *= s.reduction()
		}
		if s.Size%unit != 0 {
			return bad("input size %d is not a multiple of %d", s.Size, unit)
		}
	case ResNet, ConvNeXt:
		if len(s.Blocks) != 4 || len(s.Widths) != 4 {
			return bad("%d stages, want 4", len(s.Blocks))
		}
	case MobileNet:
		if s.Mobile == nil || len(s.Mobile.Blocks) == 0 || s.Mobile.Stem < 1 || s.Mobile.Head < 1 {
			return bad("no blocks")
		}
		stage := 0
		for _, b := range s.Mobile.Blocks {
			if b.Stage < stage || b.Stage > stage+1 || b.Stage >= len(s.Blocks) || b.Hidden < 0 || b.Width < 1 || b.Squeeze < 0 || b.Kernel < 1 || b.Stride < 1 {
				return bad("block %+v", b)
			}
			stage = b.Stage
		}
	default:
		return architectureError("family %q", s.Family)
	}
	return nil
}

// trainable reports whether a tensor is a parameter that gradients reach, not a
// statistic.
func trainable(name string) bool {
	return !strings.HasSuffix(name, ".running_mean") && !strings.HasSuffix(name, ".running_var")
}
