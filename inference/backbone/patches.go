package backbone

import (
	"fmt"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

// OutputPatches is the name of a release's model's output of patch vectors.
const OutputPatches = "patches"

// Layers is the number of places where patch vectors can be taken: after the
// first, second, … of the encoder's blocks, or of a convolutional network's
// stages. The last one of a transformer comes after its last norm.
func (s Spec) Layers() int { return len(s.Stages()) }

// PatchLayer is the usual place for patch vectors, 1 to Layers: after the first
// half of a transformer's blocks, which the fine-tune leaves as they are, or
// after the third of a convolutional network's four stages, where the grid is as
// fine as that of a transformer with patches of 16 pixels.
func (s Spec) PatchLayer() int {
	if s.Family == ResNet || s.Family == ConvNeXt {
		return 3
	}
	return max(s.Depth/2, 1)
}

// neighbourhood is the side of the square of patches whose mean makes a patch
// vector (PatchCore, arXiv 2106.08265, section 3.1).
const neighbourhood = 3

// local makes patch vectors of a plane [N, C, H, W]: the mean of each patch and
// its neighbours that are in the image, scaled to length 1, as [N, H·W, C].
func (b *builder) local(x *onnx.Value) *onnx.Value {
	g := b.g
	defer g.Scope("patches")()
	c, h, w := x.Dim(1), x.Dim(2), x.Dim(3)
	const pad = neighbourhood / 2
	x = g.Op("AveragePool", onnx.Attrs{
		"kernel_shape": []int{neighbourhood, neighbourhood}, "strides": []int{1, 1},
		"pads": []int{pad, pad, pad, pad}, "count_include_pad": 0,
	}, x)
	x = b.transpose(b.reshape(x, -1, int64(c), int64(h*w)), 0, 2, 1)
	length := g.Op("Max", nil, g.Reduce("ReduceL2", x, true, 2), b.floats([]float32{1e-12}))
	b.grid = [2]int{w, h}
	return g.Op("Div", nil, x, length)
}

// localTokens makes patch vectors of a transformer's tokens [N·T, D].
func (b *builder) localTokens(x *onnx.Value) *onnx.Value {
	s := b.m.Spec
	x = b.reshape(x, -1, int64(s.Tokens()), int64(s.Dim))
	x = b.g.Slice(x, 1, 1+s.Registers, s.Tokens())
	x = b.reshape(b.transpose(x, 0, 2, 1), -1, int64(s.Dim), int64(s.grid()), int64(s.grid()))
	return b.local(x)
}

func (b *builder) checkPatches() error {
	if n := b.o.Patches; n < 0 || n > b.m.Spec.Layers() {
		return fmt.Errorf("build %s: patch vectors after block %d: it has %d", b.m.Spec.Name(), n, b.m.Spec.Layers())
	}
	return nil
}
