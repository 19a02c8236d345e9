package finetune

import (
	"math"
	"math/rand/v2"

	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/training/optim"
)

// Names of the head's weights, and of the parts of a batch.
const (
	HeadWeight = "nearmiss.head.weight" // [2, D]
	HeadBias   = "nearmiss.head.bias"   // [2]

	inputImage  = "image"  // uint8 [N, S, S, 3]
	inputTarget = "target" // float [N, 2]: see lossOf
	inputNoise  = "noise"  // int64 [N, width of dropout]

	metricAccuracy = "accuracy"
)

// head draws the first weights of the linear head as torch's Linear does:
// uniform in ±1/√D.
func head(dim int, seed uint64) []onnx.Tensor {
	r := rand.New(rand.NewPCG(seed, 0x68656164))
	bound := 1 / math.Sqrt(float64(dim))
	draw := func(n int) []float32 {
		out := make([]float32, n)
		for i := range out {
			out[i] = float32((2*r.Float64() - 1) * bound)
		}
		return out
	}
	return []onnx.Tensor{
		onnx.FromFloat32(HeadWeight, draw(2*dim), 2, dim),
		onnx.FromFloat32(HeadBias, draw(2), 2),
	}
}

// lossOf appends the cross entropy of the head's two outputs. target has, in
// the column of an image's class, N divided by the number of real images of the
// batch, and 0 elsewhere: so the images that fill up the last batch of an epoch
// count for nothing, and the loss is the mean over the real ones.
func lossOf(net *network, d dropout) optim.LossFunc {
	return func(g *onnx.Graph, batch []*onnx.Value, w optim.Weights) (optim.Loss, error) {
		image, target := batch[0], batch[1]
		var drop func(*onnx.Value, string) *onnx.Value
		if len(batch) > 2 {
			drop = d.in(g, batch[2])
		}
		f, err := net.forward(g, image, w, drop)
		if err != nil {
			return optim.Loss{}, err
		}
		n := float64(image.Dim(0))
		logits := g.Op("Gemm", onnx.Attrs{"transB": 1}, f, w(HeadWeight), w(HeadBias))
		loss := g.Scale(g.ReduceSum(g.Mul(target, g.LogSoftmax(logits, -1)), false, 0, 1), -1/n)
		best := g.Op("GreaterOrEqual", nil, logits, g.Reduce("ReduceMax", logits, true, 1))
		accuracy := g.Scale(g.ReduceSum(g.Mul(target, g.Cast(best, onnx.Float)), false, 0, 1), 1/n)
		return optim.Loss{Value: loss, Metrics: []optim.Metric{{Name: metricAccuracy, Value: accuracy}}}, nil
	}
}
