package console

import (
	"bytes"
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
}

func newPage() (*page, error) {
	p := &page{files: map[string][]byte{}}
	sum := sha256.New()
	err := fs.WalkDir(web, "web", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := web.ReadFile(name)
		if err != nil {
			return err
		}
		name = strings.TrimPrefix(name, "web/")
		fmt.Fprintf(sum, "%s %d\n%s", name, len(b), b)
		p.files[name] = b
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the embedded page: %w", err)
	}
	p.version = hex.EncodeToString(sum.Sum(nil)[:4])
	p.home = bytes.ReplaceAll(p.files["index.html"], []byte("{{assets}}"), []byte("assets/"+p.version))
	return p, nil
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
	http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(b))
}

// contract answers with the API's description.
func (c *Console) contract(*request) (any, error) {
	return respond(func(w http.ResponseWriter, _ *http.Request) error {
		w.Header().Set("Content-Type", "application/yaml")
		_, _ = w.Write(openapi)
		return nil
	}), nil
}
