package console

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strings"
	"time"
)

//go:embed web
var web embed.FS

//go:embed openapi.yaml
var openapi []byte

// page is the embedded page. Its files have addresses that change with what is in
// them, so that browsers keep them for good.
type page struct {
	version string
	home    []byte
	files   map[string][]byte
	packed  map[string][]byte // by gzip, where that makes them smaller
}

func newPage() (*page, error) {
	p := &page{files: map[string][]byte{}, packed: map[string][]byte{}}
	sum := sha256.New()
	err := fs.WalkDir(web, "web", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := web.ReadFile(name)
		if err != nil {
			return err
		}
		if name = strings.TrimPrefix(name, "web/"); !strings.HasPrefix(name, "vendor/") {
			b = lean(name, b)
		}
		fmt.Fprintf(sum, "%s %d\n%s", name, len(b), b)
		p.files[name] = b
		if z, err := pack(b); err != nil {
			return err
		} else if len(z) < len(b) {
			p.packed[name] = z
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the embedded page: %w", err)
	}
	p.version = hex.EncodeToString(sum.Sum(nil)[:4])
	p.home = bytes.ReplaceAll(p.files["index.html"], []byte("{{assets}}"), []byte("assets/"+p.version))
	return p, nil
}

// lean is a script or style without what only its readers need: indents, and comments
// that have a line of their own. Lines keep their numbers, for who looks for a fault
// in a browser.
func lean(name string, b []byte) []byte {
	script := path.Ext(name) == ".js"
	if !script && path.Ext(name) != ".css" {
		return b
	}
	lines := bytes.Split(b, []byte("\n"))
	for i, l := range lines {
		l = bytes.TrimSpace(l)
		if script && (bytes.HasPrefix(l, []byte("//")) || bytes.HasPrefix(l, []byte("/**")) && bytes.HasSuffix(l, []byte("*/"))) {
			l = nil
		}
		lines[i] = l
	}
	return bytes.Join(lines, []byte("\n"))
}

func pack(b []byte) ([]byte, error) {
	var z bytes.Buffer
	w, err := gzip.NewWriterLevel(&z, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(b); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return z.Bytes(), nil
}

func (p *page) index(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write(p.home)
}

func (p *page) asset(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("file")
	b, ok := p.files[name]
	if !ok || name == "index.html" {
		http.NotFound(w, r)
		return
	}
	if r.PathValue("version") == p.version {
		w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	} else { // a page that was open while the program was exchanged
		w.Header().Set("Cache-Control", "no-store")
	}
	if t := mime.TypeByExtension(path.Ext(name)); t != "" {
		w.Header().Set("Content-Type", t)
	}
	if z := p.packed[name]; z != nil {
		w.Header().Set("Vary", "Accept-Encoding")
		if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
			w.Header().Set("Content-Encoding", "gzip")
			b = z
		}
	}
	http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(b))
}

// contract answers with the API's description.
func (*page) contract(*request) (any, error) {
	return respond(func(w http.ResponseWriter, _ *http.Request) error {
		w.Header().Set("Content-Type", "application/yaml")
		_, _ = w.Write(openapi)
		return nil
	}), nil
}
