package backup

import (
	"archive/tar"
	"bytes"
	"errors"
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
	const manifest, name = `{"schema_version":1,"prefix":"nearmiss","streams":[{"stream":"NM_NORMALS","file":"NM_NORMALS.snapshot","bytes":3}]}`, "NM_NORMALS.snapshot"
	type entry struct {
		name, content, link string
	}
	first, link := entry{name: manifestFile, content: manifest}, entry{name: name, link: "/etc/passwd"}
	for what, c := range map[string]struct {
		entries []entry
		want    string // "": it is unpacked
	}{
		"as it was packed":      {[]entry{first, {name: name, content: "abc"}}, ""},
		"nothing":               {nil, "is no backup"},
		"no manifest":           {[]entry{{name: name, content: "abc"}}, "is no backup"},
		"a file too few":        {[]entry{first}, "EOF"},
		"a file of another day": {[]entry{first, {name: name, content: "abcd"}}, "of 4 bytes where its manifest says"},
		"a file above it all":   {[]entry{first, {name: "../" + name, content: "abc"}}, "where its manifest says"},
		"a link":                {[]entry{first, link}, "where its manifest says"},
		"a manifest that leads elsewhere": {
			[]entry{{name: manifestFile, content: strings.Replace(manifest, `"file":"`, `"file":"../`, 1)}, {name: "../" + name, content: "abc"}}, "names",
		},
	} {
		t.Run(what, func(t *testing.T) {
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			for _, e := range c.entries {
				h := tar.Header{Name: e.name, Size: int64(len(e.content)), Mode: 0o600, Typeflag: tar.TypeReg}
				if e.link != "" {
					h.Typeflag, h.Linkname = tar.TypeSymlink, e.link
				}
				if err := w.WriteHeader(&h); err != nil {
					t.Fatal(err)
				}
				if _, err := w.Write([]byte(e.content)); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			above := t.TempDir()
			packed, dir := filepath.Join(above, "b.tar"), filepath.Join(above, "to")
			if err := errors.Join(os.WriteFile(packed, b.Bytes(), 0o600), os.Mkdir(dir, 0o700)); err != nil {
				t.Fatal(err)
			}
			err := Unpack(packed, dir)
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%v, want %q", err, c.want)
				}
			} else if got, err2 := os.ReadFile(filepath.Join(dir, name)); err != nil || err2 != nil || string(got) != "abc" {
				t.Errorf("%q, %v, %v", got, err, err2)
			}
			if _, err := os.Lstat(filepath.Join(above, name)); err == nil {
				t.Error("a file lies beside the folder")
			}
		})
	}
	noise := filepath.Join(t.TempDir(), "noise.tar")
	if err := os.WriteFile(noise, []byte(strings.Repeat("x", 2000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Unpack(noise, t.TempDir()); err == nil || !strings.Contains(err.Error(), "is no backup") {
		t.Errorf("noise: %v", err)
	}
}
