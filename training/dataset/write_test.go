package dataset

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/nearmiss/nearmiss/inference/imaging"
)

func flat(t *testing.T, n, side int) []Item {
	t.Helper()
	var out []Item
	for i := range n {
		m := imaging.New(side, side+3)
		for j := range m.Pix {
			m.Pix[j] = uint8(i*20 + j%11)
		}
		b, err := m.PNG()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, FromBytes(fmt.Sprintf("a/%d.png", i), "", "", b))
	}
	return out
}

func TestFakesBecomeADataSet(t *testing.T) {
	for name, c := range map[string]struct{ side, want int }{
		"normals of about the fakes' size stay": {20, 20},
		"large normals are brought to it":       {50, 16},
	} {
		dir := filepath.Join(t.TempDir(), "set")
		if err := WriteFakes(dir, flat(t, 4, c.side), flat(t, 2, c.side), flat(t, 3, 16)); err != nil {
			t.Fatal(err)
		}
		set, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if set.Layout != LayoutMVTec || len(set.Select(Train, Good)) != 4 || len(set.Select(Test, Good)) != 2 || len(set.Select(Test, Fake)) != 3 {
			t.Fatalf("%s: %+v", name, set)
		}
		m, err := decode(set.Select(Train, Good)[0])
		if err != nil || m.Width != c.want {
			t.Errorf("%s: normals are %d pixels wide, want %d (%v)", name, m.Width, c.want, err)
		}
		if err := WriteFakes(dir, flat(t, 1, 9), flat(t, 1, 9), flat(t, 1, 9)); err == nil {
			t.Errorf("%s: an existing folder is written over", name)
		}
	}
	dir := filepath.Join(t.TempDir(), "set")
	broken := []Item{FromBytes("x.png", "", "", []byte("none"))}
	if err := WriteFakes(dir, flat(t, 1, 9), broken, flat(t, 1, 9)); err == nil {
		t.Error("a broken image is accepted")
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("a failure leaves a folder")
	}
	if err := WriteFakes(dir, nil, flat(t, 1, 9), flat(t, 1, 9)); err == nil {
		t.Error("a set without normals is accepted")
	}
}
