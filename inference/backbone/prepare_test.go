package backbone

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/onnx"
)

// plainViT is a file of a ViT whose tensors say nothing of its publication, in a
// folder of its own.
func plainViT(t *testing.T, name string) string {
	t.Helper()
	return writeTemp(t, name, encodeSafetensors(readGolden(t, "vit").Weights))
}

func TestNormalisationIsGivenOrTold(t *testing.T) {
	zero, one := [3]float64{}, [3]float64{1, 1, 1}
	t.Run("a mean of zero is a mean", func(t *testing.T) {
		for _, name := range []string{"vit.safetensors", "net.onnx"} {
			src := plainViT(t, name)
			if name == "net.onnx" {
				writeFile(t, src, foreignNet(t, "x", false, func(g *onnx.Graph, y *onnx.Value) { g.Output("map", y) }))
			}
			dst := filepath.Join(t.TempDir(), "b.onnx")
			if _, err := Import(src, dst, ImportOptions{LoadOptions: LoadOptions{Mean: &zero, Std: &one}}); err != nil {
				t.Fatal(err)
			}
			_, pre, err := ReadMetadata(dst)
			if err != nil || pre.Mean != zero || pre.Std != one {
				t.Errorf("%s: mean %v and std %v (error %v)", name, pre.Mean, pre.Std, err)
			}
		}
		// And it is what the graph computes.
		src := writeTemp(t, "net.onnx", foreignNet(t, "x", false, func(g *onnx.Graph, y *onnx.Value) { g.Output("map", y) }))
		dst := filepath.Join(t.TempDir(), "b.onnx")
		if _, err := Import(src, dst, ImportOptions{LoadOptions: LoadOptions{Mean: &zero, Std: &one}}); err != nil {
			t.Fatal(err)
		}
		im := testImages(2, 16)
		near(t, "embedding", run(t, dst, im, 2, 16)[OutputEmbedding].Float32s(), foreignReference(im, 2, zero, one), 1e-5)
	})
	for name, c := range map[string]struct{ mean, std [3]float64 }{
		"constants of 0..255":   {[3]float64{123.675, 116.28, 103.53}, [3]float64{58.395, 57.12, 57.375}},
		"a std of 0..255 alone": {[3]float64{0.5, 0.5, 0.5}, [3]float64{127.5, 127.5, 127.5}},
		"a mean of 0..255":      {[3]float64{127, 127, 127}, one},
		"no deviation":          {zero, zero},
		"a mean that is none":   {[3]float64{math.NaN(), 0, 0}, one},
	} {
		t.Run(name+" is refused", func(t *testing.T) {
			_, err := Import(plainViT(t, "vit.safetensors"), filepath.Join(t.TempDir(), "b.onnx"), ImportOptions{LoadOptions: LoadOptions{Mean: &c.mean, Std: &c.std}})
			if err == nil || !strings.Contains(err.Error(), "mean") {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("a foreign model without it is refused", func(t *testing.T) {
		src := writeTemp(t, "net.onnx", foreignNet(t, "x", false, func(g *onnx.Graph, y *onnx.Value) { g.Output("map", y) }))
		_, err := Import(src, filepath.Join(t.TempDir(), "b.onnx"), ImportOptions{})
		if err == nil || !strings.Contains(err.Error(), "--mean") {
			t.Errorf("got %v", err)
		}
	})
}

// TestPublications: tensors of one shape and of several publications.
func TestPublications(t *testing.T) {
	inspect := func(src, arch string) Report {
		t.Helper()
		r, err := Inspect(src, ImportOptions{LoadOptions: LoadOptions{Arch: arch}})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	assumed := inspect(plainViT(t, "weights.safetensors"), "")
	if assumed.Preprocess.Mean != halfMean || !strings.Contains(assumed.PreprocessFrom, "assumed") || !strings.Contains(assumed.PreprocessFrom, "DINO") {
		t.Errorf("mean %v, from %q", assumed.Preprocess.Mean, assumed.PreprocessFrom)
	}
	for _, c := range []struct {
		file, arch string
		mean       [3]float64
		resize     int
	}{
		{"w.safetensors", "deit", imageNetMean, 54},
		{"deit_tiny_patch16_224.safetensors", "", imageNetMean, 54},
		{"dino_vitbase16_pretrain.safetensors", "", imageNetMean, 54},
		{"mae_pretrain_vit_base.safetensors", "", imageNetMean, 54},
		{"vit_base_patch16_224_miil.safetensors", "", [3]float64{}, 54},
		{"w.safetensors", "vit_base_patch16_224.augreg_in21k", halfMean, 53},
	} {
		r := inspect(plainViT(t, c.file), c.arch)
		if r.Preprocess.Mean != c.mean || r.Preprocess.Resize != c.resize || strings.Contains(r.PreprocessFrom, "assumed") {
			t.Errorf("%s %s: mean %v, resize %d, from %q", c.file, c.arch, r.Preprocess.Mean, r.Preprocess.Resize, r.PreprocessFrom)
		}
	}
	if _, err := Inspect(plainViT(t, "w.safetensors"), ImportOptions{LoadOptions: LoadOptions{Arch: "bananas"}}); err == nil {
		t.Error("an architecture that nobody knows is taken")
	}
	t.Run("timm's config.json beside the file", func(t *testing.T) {
		src := plainViT(t, "model.safetensors")
		writeFile(t, filepath.Join(filepath.Dir(src), "config.json"), []byte(`{"architecture":"vit_tiny_patch16_224","num_features":128,
			"pretrained_cfg":{"mean":[0.1,0.2,0.3],"std":[0.4,0.5,0.6],"interpolation":"bilinear","crop_pct":0.96,"input_size":[3,48,48]}}`))
		want := imaging.Preprocess{Crop: 48, Resize: 50, Interpolation: imaging.Bilinear, Mean: [3]float64{0.1, 0.2, 0.3}, Std: [3]float64{0.4, 0.5, 0.6}}
		if d := cmp.Diff(want, inspect(src, "").Preprocess); d != "" {
			t.Error(d)
		}
		// Of another network it says nothing.
		writeFile(t, filepath.Join(filepath.Dir(src), "config.json"), []byte(`{"architecture":"x","num_features":64,"pretrained_cfg":{"mean":[0.1,0.2,0.3],"std":[0.4,0.5,0.6]}}`))
		if r := inspect(src, ""); r.Preprocess.Mean != halfMean {
			t.Errorf("mean %v", r.Preprocess.Mean)
		}
	})
	t.Run("Hugging Face's configuration beside the file", func(t *testing.T) {
		f := readFamilies(t)["hf_vit"]
		src := f.file(t)
		dir := filepath.Dir(src)
		writeFile(t, filepath.Join(dir, "config.json"), []byte(`{"model_type":"vit","hidden_size":128,"num_attention_heads":4,"layer_norm_eps":1e-5,"hidden_act":"gelu"}`))
		writeFile(t, filepath.Join(dir, "preprocessor_config.json"), []byte(`{"image_mean":[0.1,0.2,0.3],"image_std":[0.4,0.5,0.6],"size":{"height":48,"width":48},"resample":3}`))
		r := inspect(src, "")
		if r.Spec.Heads != 4 || r.Spec.NormEps != 1e-5 || !r.Preprocess.Squash || r.Preprocess.Mean != [3]float64{0.1, 0.2, 0.3} || r.Preprocess.Interpolation != imaging.Bicubic {
			t.Errorf("%d heads, eps %g, %+v", r.Spec.Heads, r.Spec.NormEps, r.Preprocess)
		}
		writeFile(t, filepath.Join(dir, "config.json"), []byte(`{"model_type":"vit","hidden_size":128,"hidden_act":"mish"}`))
		if _, err := Inspect(src, ImportOptions{}); err == nil || !strings.Contains(err.Error(), "mish") {
			t.Errorf("an unknown activation: %v", err)
		}
	})
}

func TestHeads(t *testing.T) {
	vit := func(dim int) []drawn {
		w := []drawn{
			{"cls_token", []int{1, 1, dim}, 0.1, 0},
			{"pos_embed", []int{1, 2, dim}, 0.1, 0},
			{"patch_embed.proj.weight", []int{dim, 3, 8, 8}, 0.1, 0},
			{"patch_embed.proj.bias", []int{dim}, 0.1, 0},
			{"norm.weight", []int{dim}, 0.1, 1},
			{"norm.bias", []int{dim}, 0.1, 0},
		}
		for name, shape := range map[string][]int{
			"norm1.weight": {dim}, "norm1.bias": {dim}, "norm2.weight": {dim}, "norm2.bias": {dim}, "attn.qkv.weight": {3 * dim, dim}, "attn.qkv.bias": {3 * dim},
			"attn.proj.weight": {dim, dim}, "attn.proj.bias": {dim}, "mlp.fc1.weight": {8, dim}, "mlp.fc1.bias": {8}, "mlp.fc2.weight": {dim, 8}, "mlp.fc2.bias": {dim},
		} {
			w = append(w, drawn{"blocks.0." + name, shape, 0.1, 0})
		}
		return w
	}
	for _, c := range []struct{ dim, flag, want int }{
		{192, 0, 3},
		{384, 0, 6},
		{768, 0, 12},
		{1024, 0, 16},
		{1280, 0, 16},
		{1408, 0, 16},
		{1536, 0, 24},
		{1664, 0, 16},
		{1152, 0, 16},
		{320, 4, 4},
		{100, 0, 0},
		{1088, 0, 0},
		{2048, 0, 0},
		{100, 3, 0},
		{100, 5, 5},
	} {
		w, err := ReadWeights(encodeSafetensors(vit(c.dim)))
		if err != nil {
			t.Fatal(err)
		}
		m, err := FromWeights(w, LoadOptions{Heads: c.flag})
		switch {
		case c.want == 0 && (err == nil || !strings.Contains(err.Error(), "head")):
			t.Errorf("%d dimensions, --heads %d: %v", c.dim, c.flag, err)
		case c.want > 0 && err != nil:
			t.Errorf("%d dimensions, --heads %d: %v", c.dim, c.flag, err)
		case c.want > 0 && (m.Spec.Heads != c.want || m.HeadsFrom == ""):
			t.Errorf("%d dimensions, --heads %d: %d heads (%s), want %d", c.dim, c.flag, m.Spec.Heads, m.HeadsFrom, c.want)
		}
	}
}

// TestSeveralNetworks: which of the networks in a file is meant is asked.
func TestSeveralNetworks(t *testing.T) {
	plain := readGolden(t, "vit").Weights
	behind := func(prefixes ...string) string {
		var all []drawn
		for _, p := range prefixes {
			for _, w := range plain {
				w.Name = p + w.Name
				all = append(all, w)
			}
		}
		return writeTemp(t, "w.safetensors", encodeSafetensors(all))
	}
	for _, p := range []string{"_orig_mod.", "teacher.backbone.", "module.", "visual.", "state_dict.model."} {
		if _, err := Inspect(behind(p), ImportOptions{}); err != nil {
			t.Errorf("behind %q: %v", p, err)
		}
	}
	two := behind("student.backbone.", "teacher.backbone.")
	if _, err := Inspect(two, ImportOptions{}); err == nil || !strings.Contains(err.Error(), `"teacher.backbone"`) || !strings.Contains(err.Error(), "--prefix") {
		t.Errorf("two networks: %v", err)
	}
	if r, err := Inspect(two, ImportOptions{LoadOptions: LoadOptions{Prefix: "teacher.backbone"}}); err != nil || len(r.Ignored) == 0 {
		t.Errorf("the teacher: %v, left out %v", err, r.Ignored)
	}
	if _, err := Inspect(two, ImportOptions{LoadOptions: LoadOptions{Prefix: "aunt"}}); err == nil {
		t.Error("a network that is not there")
	}
}

// TestWhatIsNoWeights: an error says what a file is and what to do.
func TestWhatIsNoWeights(t *testing.T) {
	whole := foreignNet(t, "x", false, func(g *onnx.Graph, y *onnx.Value) { g.Output("map", y) })
	for name, c := range map[string]struct{ content, want string }{
		"a Git LFS pointer":           {"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"},
		"a web page":                  {"\n<!DOCTYPE html>\n<html><head>", "web page"},
		"a web page in small letters": {"<html lang=\"en\">", "web page"},
		"a message of a server":       {`{"error":"Repository not found"}`, "text file"},
		"half an ONNX model":          {string(whole[:len(whole)/2]), "cut off"},
		"the start of an ONNX model":  {string(whole[:40]), "cut off"},
		"an HDF5 file":                {"\x89HDF\r\n\x1a\n0000", "Keras"},
		"a gzip file":                 {"\x1f\x8b\x08\x00aaaaaaaaaaaa", "unpack"},
		"noise":                       {"\xde\xad\xbe\xef\x00\x01\x02\x03\x04\x05", "neither"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Inspect(writeTemp(t, "f", []byte(c.content)), ImportOptions{})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v", err)
			}
		})
	}
	if _, err := Inspect(filepath.Join(os.TempDir(), "is", "not", "there"), ImportOptions{}); err == nil {
		t.Error("a file that is not there")
	}
}
