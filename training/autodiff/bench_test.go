package autodiff_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/ort"
	"github.com/nearmiss/nearmiss/internal/cputime"
	"github.com/nearmiss/nearmiss/training/autodiff"
	"github.com/nearmiss/nearmiss/training/sde"
)

// BenchmarkStep measures a full training step (forward, gradients, plain SGD
// update) against the forward pass alone, with the trained weights as inputs in
// both, on one thread. What it reports is processor time, which other work on
// the machine disturbs least.
//
//	go test -run xxx -bench Step -benchtime 3x ./training/autodiff
//
// With AUTODIFF_PROFILE set to a path, ONNX Runtime writes a trace of the steps
// there.
func BenchmarkStep(b *testing.B) {
	blocks := autodiff.Recompute(func(node string) string {
		if i := strings.Index(node, "/"); i > 0 && strings.HasPrefix(node, "blocks.") {
			return node[:i]
		}
		return ""
	})
	vit := func(size string, freeze int, o ...autodiff.Option) func(b *testing.B) step {
		return func(b *testing.B) step {
			s := backbone.Spec{
				Family: backbone.ViT, Size: 224, Dim: 384, Depth: 12, Heads: 6, Hidden: 1536, Patch: 16,
				ClassPos: true, NormEps: 1e-6,
			}
			if size == "base" {
				s.Dim, s.Heads, s.Hidden = 768, 12, 3072
			}
			return classifier(b, s, 16, func(name string) bool {
				for i := range freeze {
					if strings.HasPrefix(name, "blocks."+string(rune('0'+i))+".") {
						return false
					}
				}
				return freeze == 0 || strings.HasPrefix(name, "blocks.") || strings.HasPrefix(name, "norm.")
			}, o...)
		}
	}
	family := func(s backbone.Spec, batch int) func(b *testing.B) step {
		return func(b *testing.B) step { return classifier(b, s, batch, func(string) bool { return true }) }
	}
	for _, c := range []struct {
		name  string
		build func(b *testing.B) step
	}{
		{"vit-small-16/half frozen", vit("small", 6)},
		{"vit-small-16/none frozen", vit("small", 0)},
		{"vit-small-16/none frozen, recomputed", vit("small", 0, blocks)},
		{"vit-base-16/half frozen", vit("base", 6)},
		{"unet-32", unet},
		{"convnext-atto-128", family(backbone.Spec{
			Family: backbone.ConvNeXt, Size: 128, Dim: 320, Blocks: []int{2, 2, 6, 2}, Widths: []int{40, 80, 160, 320}, NormEps: 1e-6,
		}, 8)},
		{"resnet-26-128", family(backbone.Spec{
			Family: backbone.ResNet, Size: 128, Dim: 2048, Blocks: []int{2, 2, 2, 2}, Widths: []int{256, 512, 1024, 2048}, NormEps: 1e-5,
		}, 8)},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := c.build(b)
			forward := s.session(b, s.loss)
			full := s.session(b, append([]*onnx.Value{s.loss}, s.updated...)...)
			b.ResetTimer()
			var fs, ss []float64
			for range b.N {
				fs = append(fs, forward())
				ss = append(ss, full())
			}
			f, t := slices.Min(fs), slices.Min(ss)
			b.ReportMetric(f, "forward-s")
			b.ReportMetric(t, "step-s")
			b.ReportMetric(t/f, "ratio")
		})
	}
}

// step is a graph with a loss and updated weights.
type step struct {
	g       *onnx.Graph
	loss    *onnx.Value
	updated []*onnx.Value
	data    map[*onnx.Value]onnx.Tensor
}

// inlined copies src into a new graph; the initialisers that train selects
// become inputs.
func inlined(b *testing.B, src *onnx.Graph, train func(name string) bool) (s step, params, out []*onnx.Value) {
	b.Helper()
	s = step{g: onnx.New("step"), data: map[*onnx.Value]onnx.Tensor{}}
	replace := map[*onnx.Value]*onnx.Value{}
	for _, v := range src.Inputs() {
		in := s.g.Input(v.Name(), v.Type(), v.Shape()...)
		s.data[in] = onnx.Tensor{Type: v.Type(), Shape: v.Shape(), Data: make([]byte, v.Elements()*v.Type().Size())}
		for i := range s.data[in].Data {
			if v.Type() == onnx.Uint8 {
				s.data[in].Data[i] = byte(i * 7919)
			}
		}
		replace[v] = in
	}
	for _, v := range src.Initializers() {
		if v.Type() != onnx.Float || v.Rank() == 0 || !strings.Contains(v.Name(), ".") || strings.Contains(v.Name(), "running") || !train(v.Name()) {
			continue
		}
		in := s.g.Input(v.Name(), v.Type(), v.Shape()...)
		s.data[in] = *v.Const()
		replace[v] = in
		params = append(params, in)
	}
	out, _, err := s.g.Inline(src, replace)
	if err != nil {
		b.Fatal(err)
	}
	return s, params, out
}

func (s *step) differentiate(b *testing.B, params []*onnx.Value, o ...autodiff.Option) {
	b.Helper()
	grads, err := autodiff.Gradient(s.g, s.loss, params, o...)
	if err != nil {
		b.Fatal(err)
	}
	for i, p := range params {
		s.updated = append(s.updated, s.g.Sub(p, s.g.Scale(grads[i], 1e-3)))
	}
}

func classifier(b *testing.B, spec backbone.Spec, batch int, train func(name string) bool, o ...autodiff.Option) step {
	b.Helper()
	m, err := backbone.Random(spec, 1)
	if err != nil {
		b.Fatal(err)
	}
	src, err := m.Build(backbone.Options{Batch: batch})
	if err != nil {
		b.Fatal(err)
	}
	s, params, out := inlined(b, src, train)
	g := s.g
	head := g.Input("head", onnx.Float, spec.Dim, 2)
	s.data[head] = onnx.FromFloat32("", make([]float32, 2*spec.Dim), spec.Dim, 2)
	logs := g.LogSoftmax(g.MatMul(out[0], head), -1)
	s.loss = g.Neg(g.ReduceMean(g.Slice(logs, 1, 0, 1), false))
	s.differentiate(b, append(params, head), o...)
	return s
}

// unet is the score network of the issue: width 32, (1,2,2,2), 32 px, batch 32.
func unet(b *testing.B) step {
	n, err := sde.Preset("tiny", 32, 3)
	if err != nil {
		b.Fatal(err)
	}
	weights, err := n.Init(1)
	if err != nil {
		b.Fatal(err)
	}
	src, err := n.Graph(32, weights)
	if err != nil {
		b.Fatal(err)
	}
	s, params, out := inlined(b, src, func(string) bool { return true })
	d := s.g.Sub(out[0], s.g.ConstLike(out[0], 0.5))
	s.loss = s.g.ReduceMean(s.g.Mul(d, d), false)
	s.differentiate(b, params)
	return s
}

// session returns a function that runs the graph up to some values once and
// returns the processor time that it took.
func (s step) session(b *testing.B, values ...*onnx.Value) func() float64 {
	b.Helper()
	// Encode writes what outputs need, so a copy with these outputs is enough.
	g := onnx.New("run")
	replace := map[*onnx.Value]*onnx.Value{}
	var in []*ort.Tensor
	for _, v := range s.g.Inputs() {
		replace[v] = g.Input(v.Name(), v.Type(), v.Shape()...)
		t, err := ort.NewRaw(v.Type(), v.Shape(), s.data[v].Data)
		if err != nil {
			b.Fatal(err)
		}
		in = append(in, t)
	}
	for _, v := range values {
		s.g.Output(fmt.Sprintf("output%d", len(s.g.Outputs())), v)
	}
	_, all, err := g.Inline(s.g, replace)
	if err != nil {
		b.Fatal(err)
	}
	for _, v := range values {
		g.Output("result/"+v.Name(), all[v])
	}
	model, err := g.Bytes()
	if err != nil {
		b.Fatal(err)
	}
	profile := ""
	if len(values) > 1 {
		profile = os.Getenv("AUTODIFF_PROFILE")
	}
	o := ort.Options{IntraOpThreads: 1, NoSpinning: true, Profile: profile}
	session, err := ort.OpenBytes(model, o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := session.Close(); err != nil {
			b.Error(err)
		}
	})
	run := func() float64 {
		before := cputime.Seconds()
		out, err := session.Run(context.Background(), in)
		if err != nil {
			b.Fatal(err)
		}
		ort.CloseAll(out...)
		return cputime.Seconds() - before
	}
	run()
	return run
}
