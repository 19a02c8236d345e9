package backup

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzParse: whatever a manifest says, it names no file outside its folder and no
// stream that is not an installation's.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		`{"schema_version":1,"prefix":"nearmiss","streams":[{"stream":"NM_NORMALS","file":"NM_NORMALS.snapshot"}]}`,
		`{"schema_version":1,"prefix":"nearmiss","streams":[{"stream":"NM_NORMALS","file":"../../etc/passwd"}]}`,
		`{"schema_version":1,"prefix":"a.b","streams":[]}`,
		`{"schema_version":2}`, `{`, ``,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Parse(b)
		if err != nil {
			return
		}
		for _, e := range m.Streams {
			if filepath.Base(e.File) != e.File || !strings.HasSuffix(e.File, ".snapshot") || strings.ContainsAny(e.Stream, "*>. ") {
				t.Errorf("%+v", e)
			}
		}
	})
}

// TestUnpackTakesWhatTheManifestNames, and nothing else.
func TestUnpackTakesWhatTheManifestNames(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"empty.tar": "", "noise.tar": strings.Repeat("x", 2000)} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Unpack(file, t.TempDir()); err == nil || !strings.Contains(err.Error(), "is no backup") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
