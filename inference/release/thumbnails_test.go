package release

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nearmiss/nearmiss/inference/imaging"
)

func TestThumbnailsShowTheNormalsInTheBank(t *testing.T) {
	m := imaging.New(300, 100)
	for i := range m.Pix {
		m.Pix[i] = 200
	}
	file, err := m.PNG()
	if err != nil {
		t.Fatal(err)
	}
	all := []Normal{{ID: 3, Use: UsedInBank}, {ID: 4, Use: UsedToHold}, {ID: 900, Use: UsedInBank}, {ID: 5, Use: NotUsedReject}}
	view := &imaging.View{Region: &imaging.Rect{X: 0, Y: 0, Width: 0.5, Height: 1}, Ignore: []imaging.Rect{{X: 0, Y: 0, Width: 0.1, Height: 1}}}
	made := Thumbnails{}
	if err := made.Add(t.Context(), all, func(int) ([]byte, error) { return file, nil }, view, imaging.Limits{}); err != nil {
		t.Fatal(err)
	}
	b, err := made.Archive()
	if err != nil {
		t.Fatal(err)
	}
	again, err := made.Archive()
	if err != nil || !bytes.Equal(b, again) {
		t.Errorf("the same thumbnails give other bytes: %v", err)
	}
	dir := t.TempDir()
	if none, err := ReadThumbnails(dir); none != nil || err != nil {
		t.Errorf("%v, %v", none, err)
	}
	if err := os.WriteFile(filepath.Join(dir, ThumbnailsName), b, 0o644); err != nil {
		t.Fatal(err)
	}
	back, err := ReadThumbnails(dir)
	if err != nil || len(back) != 2 {
		t.Fatalf("%d thumbnails, %v", len(back), err)
	}
	img, err := imaging.Decode(back[900], imaging.Limits{})
	if err != nil || img.Width != 96 || img.Height != 64 {
		t.Fatalf("%+v, %v", img, err)
	}
	if hidden, _, _ := img.RGB(5, 30); hidden < 120 || hidden > 136 {
		t.Errorf("an ignored part is %d, not grey", hidden)
	}
	if shown, _, _ := img.RGB(80, 30); shown < 190 {
		t.Errorf("the normal is %d", shown)
	}
}

func TestThumbnailsAreBounded(t *testing.T) {
	many := Thumbnails{}
	for i := range uint64(60) {
		many[i] = make([]byte, 1<<20)
	}
	b, err := many.Archive()
	if err != nil || len(b) > maxThumbnails+1<<16 {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	back, err := parseThumbnails(b)
	if err != nil || len(back) < 30 || back[0] == nil {
		t.Errorf("%d thumbnails, %v", len(back), err)
	}
}

func FuzzParseThumbnails(f *testing.F) {
	b, err := Thumbnails{7: []byte("x")}.Archive()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = parseThumbnails(b) })
}

func TestNormalsAreListed(t *testing.T) {
	all := []Normal{
		{ID: 3, Name: "a.png", SHA256: "aa", Use: UsedInBank},
		{ID: 4, Name: "b \" c", SHA256: "bb", Use: NotUsedReject, Reason: "it is empty"},
	}
	b, err := EncodeNormals(all)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if none, err := ReadNormals(dir); none != nil || err != nil {
		t.Errorf("without a list: %v, %v", none, err)
	}
	if err := os.WriteFile(filepath.Join(dir, NormalsName), b, 0o644); err != nil {
		t.Fatal(err)
	}
	back, err := ReadNormals(dir)
	if diff := cmp.Diff(all, back); diff != "" || err != nil {
		t.Errorf("%v %s", err, diff)
	}
	if err := os.WriteFile(filepath.Join(dir, NormalsName), append(b, "{"...), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadNormals(dir); err == nil {
		t.Error("a broken line is taken")
	}
}

func FuzzParseNormals(f *testing.F) {
	f.Add([]byte(`{"id":1,"name":"a","sha256":"aa","use":"bank"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := parseNormals(b)
		if err != nil {
			return
		}
		again, err := EncodeNormals(all)
		if err != nil {
			t.Fatal(err)
		}
		back, err := parseNormals(again)
		if err != nil || len(back) != len(all) {
			t.Fatalf("%d of %d lines come back: %v", len(back), len(all), err)
		}
	})
}
