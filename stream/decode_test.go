package stream

import (
	"encoding/json"
	"testing"
)

// FuzzJob: what is taken for a job's record is that key's, and is taken again
// when it is written again.
func FuzzJob(f *testing.F) {
	f.Add("j1", []byte(`{"job":"j1","detector":"bolts","state":"done"}`))
	f.Add("j1", []byte(`{"job":"j2","state":"running"}`))
	f.Add("j1", []byte(`{"job":"j1","detector":"bolts","state":"queued","attempts":-1}`))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		j, err := decodeJob(key, value)
		if err != nil {
			return
		}
		if j.Job != key {
			t.Fatalf("%q was taken for the record of %q", j.Job, key)
		}
		again, err := json.Marshal(j)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeJob(key, again); err != nil {
			t.Fatalf("%s is refused when it is written again as %s: %v", value, again, err)
		}
	})
}

// TestBackbonesAreNames: a path is refused, and one of an earlier version becomes
// the name of its file.
func TestBackbonesAreNames(t *testing.T) {
	for _, bad := range []string{"/etc/passwd", "../x.onnx", "a/b", `a\b`, ".hidden", "x.", "two words", "x\n"} {
		if err := (Detector{Name: "bolts", Backbone: bad}).Validate(); err == nil {
			t.Errorf("backbone %q is accepted", bad)
		}
		if err := (Detector{Name: "bolts", Profile: bad}).Validate(); err == nil {
			t.Errorf("profile %q is accepted", bad)
		}
	}
	for stored, want := range map[string]string{
		"": "", "vit-small": "vit-small", "vit_b.onnx": "vit_b.onnx", "/models/vit_b.onnx": "vit_b.onnx", "../my model.onnx": "my_model.onnx",
		`C:\models\vit.onnx`: "vit.onnx", "./.x.onnx": "x.onnx",
	} {
		value, err := json.Marshal(Detector{Name: "bolts", Backbone: stored})
		if err != nil {
			t.Fatal(err)
		}
		if d, err := decodeDetector("bolts", value); err != nil || d.Backbone != want {
			t.Errorf("%q became %q, %v", stored, d.Backbone, err)
		}
	}
}

func TestTilesOfADetector(t *testing.T) {
	for tiles, good := range map[string]bool{
		"": true, "none": true, "few": true, "auto": true, "2x3": true, "1x2": true, "2x1": true, "8x8": true,
		"1x1": false, "9x2": false, "2x9": false, "0x2": false, "2x": false, "fewer": false, "2x2\n": false,
	} {
		if err := (Detector{Name: "bolts", Tiles: tiles}).Validate(); (err == nil) != good {
			t.Errorf("tiles %q: %v", tiles, err)
		}
	}
}
