package starter

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/nearmiss/nearmiss/inference/backbone"
)

func TestFileIsSmallAndSaysWhatItIs(t *testing.T) {
	const most = 4_000_000 // bytes in the repository
	if n := len(Bytes()); n > most {
		t.Errorf("the file has %d bytes, more than %d", n, most)
	}
	m, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	info := m.Info()
	if info.Format != backbone.FormatStarter || info.Family != backbone.ViT || info.Seed == 0 {
		t.Errorf("info %+v", info)
	}
	if p := m.Preprocess; p.Crop != m.Spec.Size || p.Validate() != nil {
		t.Errorf("preprocess %+v for %d pixels", p, m.Spec.Size)
	}
	for _, w := range m.Tensors() {
		var squares float64
		for _, v := range w.Float32s() {
			squares += float64(v) * float64(v)
		}
		if !(squares > 0) || squares > 1e6 {
			t.Errorf("%s: the sum of squares is %v", w.Name, squares)
		}
	}
	w, err := backbone.ReadWeights(Bytes())
	if err != nil {
		t.Fatal(err)
	}
	var how struct {
		Seed  uint64        `json:"seed"`
		Steps int           `json:"steps"`
		Spec  backbone.Spec `json:"spec"`
	}
	if err := json.Unmarshal([]byte(w.Metadata["nearmiss.training"]), &how); err != nil || how.Seed != info.Seed || how.Steps == 0 {
		t.Errorf("the file does not say how it was trained (%v): %s", err, w.Metadata["nearmiss.training"])
	}
}

func TestOnnxFileIsMadeOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "models")
	path, err := File(dir)
	if err != nil {
		t.Fatal(err)
	}
	info, pre, err := backbone.ReadMetadata(path)
	if err != nil || info.Format != backbone.FormatStarter || pre.Crop != info.Size {
		t.Errorf("%v: %+v, %+v", err, info, pre)
	}
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	again, err := File(dir)
	if err != nil || again != path {
		t.Fatalf("%v: %s, then %s", err, path, again)
	}
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("the file was made again (%v)", err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("the folder has %v", entries)
	}
	if _, err := File(path); err == nil {
		t.Error("a file was taken for a folder")
	}
}
