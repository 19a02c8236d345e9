package autodiff

import (
	"slices"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

func init() {
	register(reshaped, "Reshape", "Flatten", "Squeeze", "Unsqueeze")
	register(transpose, "Transpose")
	register(func(b *backward) { b.give(0, b.dy()) }, "Expand")
	register(tile, "Tile")
	register(concat, "Concat")
	register(split, "Split")
	register(slice, "Slice")
	register(pad, "Pad")
	register(gather, "Gather")
	register(gatherElements, "GatherElements")
	register(gatherND, "GatherND")
	register(trilu, "Trilu")
	register(depthToSpace, "DepthToSpace")
	register(spaceToDepth, "SpaceToDepth")
}

// reshaped: the gradient takes the shape of the input.
func reshaped(b *backward) { b.give(0, b.reshape(b.dy(), b.x(0).Shape())) }

// transpose: by the inverse permutation.
func transpose(b *backward) {
	perm := onnx.Permutation(b.node)
	inverse := make([]int, len(perm))
	for i, p := range perm {
		if p < 0 {
			p += len(perm)
		}
		inverse[p] = i
	}
	b.give(0, b.g.Transpose(b.dy(), inverse...))
}

// tile: the sum over the copies.
func tile(b *backward) {
	x, y := b.x(0), b.y(0)
	var shape, axes []int
	for i, d := range x.Shape() {
		if d == 0 {
			return
		}
		axes = append(axes, len(shape))
		shape = append(shape, y.Dim(i)/d, d)
	}
	b.give(0, b.reshape(b.g.ReduceSum(b.reshape(b.dy(), shape), false, axes...), x.Shape()))
}

// concat: each input gets its stretch of dY.
func concat(b *backward) {
	axis := b.node.Attrs.Int("axis", 0)
	if axis < 0 {
		axis += b.y(0).Rank()
	}
	all := true
	var lengths []int
	for i, x := range b.node.Inputs {
		all = all && b.wants(i)
		lengths = append(lengths, x.Dim(axis))
	}
	if all {
		for i, d := range b.g.Split(b.dy(), axis, lengths...) {
			b.give(i, d)
		}
		return
	}
	start := 0
	for i, n := range lengths {
		if b.wants(i) {
			b.give(i, b.g.Slice(b.dy(), axis, start, start+n))
		}
		start += n
	}
}

// split: the parts' gradients one after another, zeros for parts without.
func split(b *backward) {
	axis := b.node.Attrs.Int("axis", 0)
	if axis < 0 {
		axis += b.x(0).Rank()
	}
	start := 0
	for i, y := range b.node.Outputs {
		if b.has(i) {
			b.givePart(0, axis, start, b.gradient(y))
		}
		start += y.Dim(axis)
	}
}

// slice: dY with zeros around it, and between its elements where the step is
// not 1.
func slice(b *backward) {
	x, d := b.x(0), b.dy()
	spans := onnx.SpansOf(b.node)
	var cut []int
	for i, s := range spans {
		if s.Count != x.Dim(i) || s.Step != 1 {
			cut = append(cut, i)
		}
	}
	for _, axis := range cut {
		if spans[axis].Count == 0 {
			return
		}
		d, spans[axis] = b.spread(d, axis, spans[axis])
	}
	if len(cut) == 1 {
		b.givePart(0, cut[0], spans[cut[0]].Start, d)
		return
	}
	rank := x.Rank()
	pads := make([]int, 2*rank)
	for _, axis := range cut {
		pads[axis] = spans[axis].Start
		pads[rank+axis] = x.Dim(axis) - spans[axis].Start - d.Dim(axis)
	}
	if len(cut) > 0 {
		d = b.g.Pad(d, pads...)
	}
	b.give(0, d)
}

// spread puts step−1 zeros between the elements along an axis, in the order of
// the input where the step is negative, and returns the stretch that results.
func (b *backward) spread(d *onnx.Value, axis int, s onnx.Span) (*onnx.Value, onnx.Span) {
	g := b.g
	if s.Step < 0 {
		d = g.SliceStep(d, []int{axis}, []int{-1}, []int{-onnx.End}, []int{-1})
		s = onnx.Span{Start: s.Start + (s.Count-1)*s.Step, Step: -s.Step, Count: s.Count}
	}
	if s.Step == 1 || s.Count == 1 {
		return d, onnx.Span{Start: s.Start, Step: 1, Count: s.Count}
	}
	shape := slices.Insert(slices.Clone(d.Shape()), axis+1, 1)
	pads := make([]int, 2*len(shape))
	pads[len(shape)+axis+1] = s.Step - 1
	d = g.Pad(b.reshape(d, shape), pads...)
	wide := slices.Delete(slices.Clone(shape), axis+1, axis+2)
	wide[axis] = s.Count * s.Step
	d = b.reshape(d, wide)
	length := (s.Count-1)*s.Step + 1
	return g.Slice(d, axis, 0, length), onnx.Span{Start: s.Start, Step: 1, Count: length}
}

// pad, constant: the stretch of dY that came from the input; where the pads are
// negative, zeros.
func pad(b *backward) {
	if mode := b.node.Attrs.String("mode", "constant"); mode != "constant" {
		b.failf("mode %q is not supported", mode)
		return
	}
	begin, end := onnx.PadsOf(b.node)
	pads := make([]int, 0, 2*len(begin))
	for _, p := range append(slices.Clone(begin), end...) {
		pads = append(pads, -p)
	}
	b.give(0, b.g.Pad(b.dy(), pads...))
}

// gather: dY is added to the rows that were taken. A constant index that is one
// element or a run of consecutive ones only needs zeros around it.
func gather(b *backward) {
	x, indices := b.x(0), b.x(1)
	axis := b.node.Attrs.Int("axis", 0)
	if axis < 0 {
		axis += x.Rank()
	}
	if start, ok := consecutive(indices, x.Dim(axis)); ok {
		shape := slices.Clone(x.Shape())
		shape[axis] = indices.Elements()
		b.givePart(0, axis, start, b.reshape(b.dy(), shape))
		return
	}
	if b.g.Opset() < 16 {
		b.failf("scattering with addition needs operator set 16, the graph has %d: export the model again", b.g.Opset())
		return
	}
	// Bring the gathered axis to the front of both, and scatter whole rows.
	g := b.g
	front := []int{axis}
	for i := range x.Rank() {
		if i != axis {
			front = append(front, i)
		}
	}
	zeros := make([]int, len(front))
	back := make([]int, len(front))
	for i, a := range front {
		zeros[i] = x.Dim(a)
		back[a] = i
	}
	q := indices.Rank()
	var updatesPerm []int
	for i := range q {
		updatesPerm = append(updatesPerm, axis+i)
	}
	for i := range b.y(0).Rank() {
		if i < axis || i >= axis+q {
			updatesPerm = append(updatesPerm, i)
		}
	}
	at := g.Cast(indices, onnx.Int64)
	at = g.Op("Where", nil, g.Op("Less", nil, at, g.Const(onnx.Int64, 0)), g.Add(at, g.Const(onnx.Int64, float64(x.Dim(axis)))), at)
	updates := b.dy()
	if axis > 0 {
		updates = g.Transpose(updates, updatesPerm...)
	}
	d := g.Op("ScatterND", onnx.Attrs{"reduction": "add"}, g.Filled(x.Type(), 0, zeros...),
		b.reshape(at, append(slices.Clone(indices.Shape()), 1)), updates)
	if axis > 0 {
		d = g.Transpose(d, back...)
	}
	b.give(0, d)
}

// consecutive reports whether known indices are start, start+1, and so on.
func consecutive(indices *onnx.Value, dim int) (start int, ok bool) {
	t := indices.Const()
	if t == nil || t.Elements() == 0 || t.Elements() > dim {
		return 0, false
	}
	list := t.Ints()
	for i, v := range list {
		if v < 0 {
			v += int64(dim)
		}
		if i == 0 {
			start = int(v)
		}
		if int(v) != start+i {
			return 0, false
		}
	}
	return start, true
}

// gatherElements: dY is added to the elements that were taken.
func gatherElements(b *backward) {
	x := b.x(0)
	zeros := b.g.Filled(x.Type(), 0, x.Shape()...)
	b.give(0, b.scatterAdd(zeros, b.x(1), b.dy(), b.node.Attrs.Int("axis", 0)))
}

// gatherND: dY is added to the slices that were taken.
func gatherND(b *backward) {
	if b.node.Attrs.Int("batch_dims", 0) != 0 || b.g.Opset() < 16 {
		b.failf("batch_dims, and operator sets below 16, are not supported")
		return
	}
	x := b.x(0)
	zeros := b.g.Filled(x.Type(), 0, x.Shape()...)
	b.give(0, b.g.Op("ScatterND", onnx.Attrs{"reduction": "add"}, zeros, b.x(1), b.dy()))
}

// trilu: the same triangle of dY.
func trilu(b *backward) {
	b.give(0, b.g.Op("Trilu", onnx.Attrs{"upper": b.node.Attrs.Int("upper", 1)}, b.dy(), b.x(1)))
}

// depthToSpace in DCR order is undone by SpaceToDepth; in CRD order by a
// transposition (DepthToSpace-13).
func depthToSpace(b *backward) {
	x := b.x(0)
	k := b.node.Attrs.Int("blocksize", 0)
	if b.node.Attrs.String("mode", "DCR") == "DCR" {
		b.give(0, b.g.Op("SpaceToDepth", onnx.Attrs{"blocksize": k}, b.dy()))
		return
	}
	d := b.reshape(b.dy(), []int{x.Dim(0), x.Dim(1) / (k * k), x.Dim(2), k, x.Dim(3), k})
	b.give(0, b.reshape(b.g.Transpose(d, 0, 1, 3, 5, 2, 4), x.Shape()))
}

// spaceToDepth is undone by DepthToSpace in DCR order.
func spaceToDepth(b *backward) {
	b.give(0, b.g.Op("DepthToSpace", onnx.Attrs{"blocksize": b.node.Attrs.Int("blocksize", 0), "mode": "DCR"}, b.dy()))
}
