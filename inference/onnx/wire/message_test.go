package wire

import (
	"encoding/binary"
	"math"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
)

// What is written is read again, an absent input among others included.
func TestNodesAndGraphsAreReadAsWritten(t *testing.T) {
	n := Node{Inputs: []string{"x", "", "w"}, Outputs: []string{"y"}, Name: "n", Op: "Add", Domain: "d", Attributes: [][]byte{[]byte("\x08\x01")}}
	got, err := ParseNode(n.Encode())
	if d := cmp.Diff(n, got); d != "" || err != nil {
		t.Error(d, err)
	}
	g := Graph{
		Name: "g", Nodes: [][]byte{n.Encode()}, Initializers: [][]byte{Tensor{Name: "w", Elem: Float, Dims: []int64{2}}.Encode()},
		Inputs: []ValueInfo{{Name: "x", Elem: Float, Known: true, Dims: []int64{-1, 2}, Params: []string{"batch", ""}}}, Outputs: []ValueInfo{{Name: "y", Elem: Float}},
	}
	back, err := ParseGraph(g.Encode())
	if d := cmp.Diff(g, back); d != "" || err != nil {
		t.Error(d, err)
	}
}

// Lists of numbers come packed or one by one.
func TestAttributesOfBothForms(t *testing.T) {
	ints, floats := []int64{3, -1, 1 << 40}, []float32{0.5, -2}
	one := AppendBytes(nil, AttrName, "a")
	for _, v := range ints {
		one = AppendInt(one, AttrInts, v)
	}
	for _, v := range floats {
		one = AppendFloat(one, AttrFloats, v)
	}
	packed := AppendFloats(AppendInts(AppendBytes(nil, AttrName, "a"), AttrInts, ints), AttrFloats, floats)
	for form, b := range map[string][]byte{"one by one": one, "packed": packed} {
		b = AppendFloat(AppendInt(AppendInt(b, AttrInt, -7), AttrType, TypeInts), AttrFloat, 1.5)
		b = AppendBytes(AppendBytes(AppendBytes(b, AttrStrings, "s"), AttrString, "t"), AttrRef, "of")
		want := Attribute{Name: "a", Type: TypeInts, Of: "of", Float: 1.5, Int: -7, String: []byte("t"), Floats: floats, Ints: ints, Strings: []string{"s"}}
		got, err := ParseAttribute(b)
		if d := cmp.Diff(want, got); d != "" || err != nil {
			t.Error(form, d, err)
		}
	}
	for what, b := range map[string][]byte{"cut short": packed[:len(packed)-1], "a number without an end": AppendBytes(nil, AttrInts, "\xff")} {
		if _, err := ParseAttribute(b); err == nil {
			t.Errorf("%s is read", what)
		}
	}
}

// Typed data have the bytes of raw data, whatever their form.
func TestTypedDataArePacked(t *testing.T) {
	le := binary.LittleEndian
	minus := int64(-2)
	for _, c := range []struct {
		what string
		num  Number
		size int
		b    []byte
		want []byte
	}{
		{"floats, packed", TensorFloats, 4, AppendFloats(nil, TensorFloats, []float32{1, 2}), le.AppendUint32(le.AppendUint32(nil, math.Float32bits(1)), math.Float32bits(2))},
		{"floats, one by one", TensorFloats, 4, AppendFloat(AppendFloat(nil, TensorFloats, 1), TensorFloats, 2), le.AppendUint32(le.AppendUint32(nil, math.Float32bits(1)), math.Float32bits(2))},
		{"a double", TensorDoubles, 8, protowire.AppendFixed64(protowire.AppendTag(nil, TensorDoubles, protowire.Fixed64Type), 7), le.AppendUint64(nil, 7)},
		{"bytes", TensorInt32s, 1, AppendInts(nil, TensorInt32s, []int64{minus, 5}), []byte{0xfe, 5}},
		{"halves", TensorInt32s, 2, AppendInt(nil, TensorInt32s, 0x3c00), []byte{0, 0x3c}},
		{"int32s", TensorInt32s, 4, AppendInt(AppendInts(nil, TensorInt32s, []int64{minus}), TensorInt32s, 1), []byte{0xfe, 0xff, 0xff, 0xff, 1, 0, 0, 0}},
		{"int64s", TensorInt64s, 8, AppendInts(nil, TensorInt64s, []int64{minus}), le.AppendUint64(nil, uint64(minus))},
		{"uint32s", TensorUint64s, 4, AppendInts(nil, TensorUint64s, []int64{9}), []byte{9, 0, 0, 0}},
	} {
		head, err := ParseTensor(append(AppendInts(nil, TensorDims, []int64{1}), c.b...))
		if err != nil {
			t.Fatal(err)
		}
		got, err := head.Typed(c.num, c.size)
		if err != nil || !slices.Equal(got, c.want) || head.Raw != nil {
			t.Errorf("%s: %x, %v, want %x", c.what, got, err, c.want)
		}
	}
	out := Tensor{Name: "w", Elem: Float, Dims: []int64{2, 3}, Outside: true, External: map[string]string{"location": "f", "offset": "4096", "length": "24"}}
	got, err := ParseTensor(out.Encode())
	got.message = nil
	if err != nil || !cmp.Equal(got, out, cmp.AllowUnexported(Tensor{})) {
		t.Errorf("%+v, %v", got, err)
	}
}
