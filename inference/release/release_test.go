package release

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/release/envelope"
)

func manifest() Manifest {
	threshold := 1.5
	return Manifest{
		Detector: "bolts", Method: "knn",
		Model: Model{File: BackboneName, Dim: 4, Preprocess: imaging.Preprocess{
			Resize: 8, Crop: 8, Interpolation: imaging.Bilinear,
			Mean: [3]float64{0.5, 0.5, 0.5}, Std: [3]float64{0.5, 0.5, 0.5},
		}},
		Bank:        Bank{File: BankName, Kind: "exact", Count: 3, K: 2},
		Calibration: Calibration{Alpha: 0.01, SmallestAlpha: 0.005, HeldOut: 199, Threshold: &threshold},
		Check:       []Check{{File: "check/a.png", Score: 0.25}},
		Training:    json.RawMessage(`{"seed":7}`),
	}
}

func write(t *testing.T, dir string) *Release {
	t.Helper()
	b, err := Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Abort()
	for name, s := range map[string]string{BackboneName: "model", BankName: "bank", "check/a.png": "image"} {
		if err := b.AddBytes(name, []byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	src := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(src, []byte("weights"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.AddFile(t.Context(), "backbone.onnx.data", src); err != nil {
		t.Fatal(err)
	}
	r, err := b.Commit(context.Background(), manifest())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestReleaseRoundTrip(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "bolts")
	w := write(t, dir)
	r, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(w, r); d != "" {
		t.Error(d)
	}
	if err := r.Verify(context.Background()); err != nil {
		t.Error(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, ManifestName))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b)
	if want := hex.EncodeToString(sum[:]); r.Digest != want {
		t.Errorf("digest %s, want %s", r.Digest, want)
	}
	model := sha256.Sum256([]byte("model"))
	if got := r.Manifest.ModelDigest(); got != hex.EncodeToString(model[:]) {
		t.Errorf("model digest %s", got)
	}
	if got := r.Manifest.Files["backbone.onnx.data"].Size; got != int64(len("weights")) {
		t.Errorf("external data of %d bytes", got)
	}
	left, err := os.ReadDir(filepath.Dir(dir))
	if err != nil || len(left) != 1 {
		t.Errorf("beside the release lies %v, %v", left, err)
	}
}

func TestReleasesDoNotChange(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "r")
	b, err := Create(dir) // both started before either was there
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir)
	if _, err := Create(dir); !errors.Is(err, ErrExists) {
		t.Errorf("got %v", err)
	}
	for _, name := range []string{BackboneName, BankName, "check/a.png"} {
		if err := b.AddBytes(name, []byte("other")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Commit(context.Background(), manifest()); !errors.Is(err, ErrExists) {
		t.Errorf("got %v", err)
	}
	r, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Verify(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestCorruptReleasesAreRefused(t *testing.T) {
	for name, damage := range map[string]func(dir string) error{
		"a missing file":    func(dir string) error { return os.Remove(filepath.Join(dir, BankName)) },
		"a shorter file":    func(dir string) error { return os.WriteFile(filepath.Join(dir, BankName), []byte("ban"), 0o600) },
		"a changed byte":    func(dir string) error { return os.WriteFile(filepath.Join(dir, BankName), []byte("bonk"), 0o600) },
		"a changed name":    func(dir string) error { return os.Rename(filepath.Join(dir, BankName), filepath.Join(dir, "bank2")) },
		"no manifest":       func(dir string) error { return os.Remove(filepath.Join(dir, ManifestName)) },
		"an empty manifest": func(dir string) error { return os.WriteFile(filepath.Join(dir, ManifestName), nil, 0o600) },
		"a folder as file": func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, BankName)), os.Mkdir(filepath.Join(dir, BankName), 0o700))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "r")
			write(t, dir)
			if err := damage(dir); err != nil {
				t.Fatal(err)
			}
			r, err := Open(dir)
			if err == nil {
				err = r.Verify(context.Background())
			}
			if err == nil {
				t.Error("it was accepted")
			}
		})
	}
}

func TestManifestValidate(t *testing.T) {
	good := manifest()
	sum := strings.Repeat("ab", 32)
	good.SchemaVersion = 1
	good.Files = envelope.Files{BackboneName: file(sum, 1), BankName: file(sum, 1), "check/a.png": file(sum, 1)}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(m *Manifest){
		"a path that leaves the folder": func(m *Manifest) { m.Files["../x"] = file(sum, 1) },
		"an absolute path":              func(m *Manifest) { m.Files["/etc/x"] = file(sum, 1) },
		"a backslash":                   func(m *Manifest) { m.Files[`a\b`] = file(sum, 1) },
		"the manifest itself":           func(m *Manifest) { m.Files[ManifestName] = file(sum, 1) },
		"a digest of another length":    func(m *Manifest) { m.Files["x"] = file("abcd", 1) },
		"an upper-case digest":          func(m *Manifest) { m.Files["x"] = file(strings.ToUpper(sum), 1) },
		"a negative size":               func(m *Manifest) { m.Files["x"] = file(sum, -1) },
		"an unlisted model":             func(m *Manifest) { m.Model.File = "other.onnx" },
		"an unlisted check":             func(m *Manifest) { m.Check = []Check{{File: "none.png"}} },
		"no dimensions":                 func(m *Manifest) { m.Model.Dim = 0 },
		"too small a bank":              func(m *Manifest) { m.Bank.Count = 1 },
		"a detector with a dot":         func(m *Manifest) { m.Detector = "a.b" },
		"no crop":                       func(m *Manifest) { m.Model.Preprocess.Crop = 0 },
	} {
		m := good
		m.Files = envelope.Files{}
		maps.Copy(m.Files, good.Files)
		change(&m)
		if err := m.Validate(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// withParts is a manifest of two scored parts, and its files.
func withParts() Manifest {
	m := manifest()
	sum := strings.Repeat("ab", 32)
	m.SchemaVersion = 1
	patches := Bank{File: PartBankName("patch"), Kind: "sketch", Count: 40, K: 1}
	m.Files = envelope.Files{BackboneName: file(sum, 1), BankName: file(sum, 1), patches.File: file(sum, 1), "check/a.png": file(sum, 1)}
	m.Parts = []Part{
		{Name: "class", Output: OutputEmbedding, Dim: 4, Bank: m.Bank, Statistic: StatisticKNN, Scored: true, Scale: 2, Weight: 1, Group: GroupWhole},
		{Name: "patch", Output: OutputPatches, Dim: 3, Bank: patches, Statistic: StatisticTop5, Scored: true, Scale: 0.1, Weight: 5, Width: 2, Height: 3, Layer: 6, Radius: 0.5, Group: GroupLocal},
	}
	return m
}

// joined is for withParts.
func joined() *Join {
	return &Join{Sharpness: 1, Unit: 0.1, Groups: []Group{{GroupWhole, 0.1, 0.2, 0.5}, {GroupLocal, -0.1, 0.3, 0.5}}}
}

func TestManifestOfPartsValidate(t *testing.T) {
	whole := withParts()
	whole.Join = joined()
	whole.Parts[1].Output = "patch@4x3"
	whole.Parts[1].Also = []Measure{{StatisticTop1, 0.3, 2}, {StatisticMean, 0.1, 3}}
	whole.Parts[1].Places = []float32{1, 2, 1, 2, 1, 2}
	for _, m := range []Manifest{withParts(), whole} {
		if err := m.Validate(); err != nil {
			t.Fatal(err)
		}
	}
	for name, change := range map[string]func(m *Manifest){
		"an unlisted bank":                func(m *Manifest) { m.Parts[1].Bank.File = "none.nmb" },
		"no name":                         func(m *Manifest) { m.Parts[0].Name = "" },
		"a name of another kind":          func(m *Manifest) { m.Parts[0].Name = "a/b" },
		"one name twice":                  func(m *Manifest) { m.Parts[1].Name = "class" },
		"one bank twice":                  func(m *Manifest) { m.Parts[1].Bank.File = BankName },
		"an unknown output":               func(m *Manifest) { m.Parts[0].Output = "logits" },
		"an unknown statistic":            func(m *Manifest) { m.Parts[1].Statistic = "median" },
		"a statistic of patches":          func(m *Manifest) { m.Parts[0].Statistic = StatisticMean },
		"numbers beyond the embedding":    func(m *Manifest) { m.Parts[0].From = 1 },
		"an overflow beyond it":           func(m *Manifest) { m.Parts[0].From = 1<<63 - 2 },
		"numbers before the embedding":    func(m *Manifest) { m.Parts[0].From = -1 },
		"no dimensions":                   func(m *Manifest) { m.Parts[0].Dim = 0 },
		"no grid":                         func(m *Manifest) { m.Parts[1].Width = 0 },
		"two neighbours of a patch":       func(m *Manifest) { m.Parts[1].Bank.K = 2 },
		"an empty bank":                   func(m *Manifest) { m.Parts[1].Bank.Count = 0 },
		"no scale":                        func(m *Manifest) { m.Parts[0].Scale = 0 },
		"a negative weight":               func(m *Manifest) { m.Parts[0].Weight = -1 },
		"a negative radius":               func(m *Manifest) { m.Parts[1].Radius = -1 },
		"nothing scored":                  func(m *Manifest) { m.Parts[0].Scored, m.Parts[1].Scored = false, false },
		"a main bank that is of no part":  func(m *Manifest) { m.Parts = m.Parts[1:] },
		"a join of nothing":               func(m *Manifest) { m.Join = &Join{Sharpness: 1, Unit: 1} },
		"a group without parts":           func(m *Manifest) { m.Join = joined(); m.Join.Groups[0].Name = "other" },
		"a part of no group":              func(m *Manifest) { m.Join = joined(); m.Join.Groups = m.Join.Groups[:1] },
		"one group twice":                 func(m *Manifest) { m.Join = joined(); m.Join.Groups[1].Name = GroupWhole },
		"no spread":                       func(m *Manifest) { m.Join = joined(); m.Join.Groups[1].Spread = 0 },
		"a centre that is no number":      func(m *Manifest) { m.Join = joined(); m.Join.Groups[1].Center = math.NaN() },
		"no sharpness":                    func(m *Manifest) { m.Join = joined(); m.Join.Sharpness = 0 },
		"another statistic twice":         func(m *Manifest) { m.Parts[1].Also = []Measure{{StatisticTop5, 1, 1}} },
		"another statistic unknown":       func(m *Manifest) { m.Parts[1].Also = []Measure{{"median", 1, 1}} },
		"another statistic without scale": func(m *Manifest) { m.Parts[1].Also = []Measure{{StatisticMax, 0, 1}} },
		"statistics of one vector":        func(m *Manifest) { m.Parts[0].Also = []Measure{{StatisticMax, 1, 1}} },
		"too few places":                  func(m *Manifest) { m.Parts[1].Places = []float32{1} },
		"a place of nothing":              func(m *Manifest) { m.Parts[1].Places = []float32{1, 1, 1, 0, 1, 1} },
		"a negative weight in maps":       func(m *Manifest) { m.Parts[1].Map = -1 },
		"a main bank that is the patches": func(m *Manifest) { m.Bank.File = PartBankName("patch") },
	} {
		m := withParts()
		change(&m)
		if err := m.Validate(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestParseManifestRefusesOtherVersions(t *testing.T) {
	_, err := ParseManifest([]byte(`{"schema_version": 5}`))
	if err == nil || !strings.Contains(err.Error(), "schema version 5") {
		t.Errorf("got %v", err)
	}
}

func FuzzParseManifest(f *testing.F) {
	m := manifest()
	sum := strings.Repeat("ab", 32)
	m.SchemaVersion = 1
	m.Files = envelope.Files{BackboneName: file(sum, 1), BankName: file(sum, 1), "check/a.png": file(sum, 1)}
	b, err := json.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("{}"))
	if b, err = json.Marshal(withParts()); err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseManifest(b)
		if err != nil {
			return
		}
		for name := range m.Files {
			if !filepath.IsLocal(filepath.FromSlash(name)) {
				t.Errorf("accepted the name %q", name)
			}
		}
	})
}

func file(sum string, size int64) envelope.File { return envelope.File{SHA256: sum, Size: size} }

// A program that does not know tiles, the levels or colours of a tone or what counts in maps would
// pass over them and score or draw otherwise, so the version tells it; releases without
// stay what they were.
func TestWhatIsNewHasAVersionOfItsOwn(t *testing.T) {
	commit := func(change func(m *Manifest)) *Release {
		t.Helper()
		b, err := Create(filepath.Join(t.TempDir(), "release"))
		if err != nil {
			t.Fatal(err)
		}
		defer b.Abort()
		for _, name := range []string{BackboneName, BankName, PartBankName("patch"), "check/a.png"} {
			if err := b.AddBytes(name, []byte(name)); err != nil {
				t.Fatal(err)
			}
		}
		m := withParts()
		m.Files = nil
		change(&m)
		r, err := b.Commit(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	text := func(r *Release) string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(r.Dir, ManifestName))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	tiles := func(m *Manifest) {
		m.Model.Preprocess.Squash, m.Model.Preprocess.Tiles = true, &imaging.Tiles{Rows: 2, Columns: 3, Overlap: 2}
	}
	excess := func(m *Manifest) { m.Parts[1].MapExcess = true }
	for what, c := range map[string]struct {
		change  func(m *Manifest)
		version int
	}{
		"plain":        {func(*Manifest) {}, 1},
		"a brightness": {func(m *Manifest) { m.Model.Preprocess.Tone = &imaging.Tone{Brightness: 0.5, Gamma: 0.5} }, 1},
		"a map less":   {func(m *Manifest) { m.Parts[1].NoMap = true }, 1},
		"tiles":        {tiles, 2},
		"levels":       {func(m *Manifest) { m.Model.Preprocess.Tone = &imaging.Tone{Levels: []float64{0.1, 0.5}, Floor: 0.05} }, 2},
		"excess":       {excess, 2},
		"grey":         {func(m *Manifest) { m.Model.Preprocess.Tone = &imaging.Tone{Grey: true} }, 3},
		"colours and excess": {func(m *Manifest) {
			m.Model.Preprocess.Tone = &imaging.Tone{Levels: []float64{0.5}, Colours: [][]float64{{0.5}, {0.4}, {0.6}}}
			excess(m)
		}, 3},
		"products in 32 bits": {func(m *Manifest) { m.Model.Precision, m.Model.FloatProducts = Int8, []string{"a", "b"} }, 4},
	} {
		want := withParts()
		c.change(&want)
		got := commit(c.change).Manifest
		if got.SchemaVersion != c.version || !cmp.Equal(got.Model, want.Model) || !cmp.Equal(got.Parts, want.Parts) {
			t.Errorf("%s: version %d, want %d, with %+v and %+v", what, got.SchemaVersion, c.version, got.Model, got.Parts)
		}
	}
	old := [2]string{`"schema_version": 2`, `"schema_version": 1`}
	whole := text(commit(tiles))
	for _, change := range [][2]string{old, {`"rows": 2`, `"rows": 2000000`}, {`"overlap": 2`, `"overlap": 7`}} {
		other := strings.Replace(whole, change[0], change[1], 1)
		if _, err := ParseManifest([]byte(other)); err == nil || other == whole {
			t.Errorf("%s is accepted", change[1])
		}
	}
	whole = text(commit(func(m *Manifest) { m.Model.Precision, m.Model.FloatProducts = Int8, []string{"a"} }))
	other := strings.Replace(whole, `"precision": "int8"`, `"precision": "fp16"`, 1)
	if _, err := ParseManifest([]byte(other)); err == nil || other == whole {
		t.Error("products in 32 bits beside those in 16 are accepted")
	}
	// Written before such maps had a version: it scores alike.
	whole = text(commit(excess))
	early := strings.Replace(whole, old[0], old[1], 1)
	if m, err := ParseManifest([]byte(early)); err != nil || early == whole || !m.Parts[1].MapExcess {
		t.Errorf("a release of version 1 with such maps: %v", err)
	}
}
