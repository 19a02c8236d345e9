package walls

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/nearmiss/nearmiss/"

// pkg is what go list says of a package.
type pkg struct {
	ImportPath string
	Imports    []string // without those of its tests
	Deps       []string // all that it imports, however indirectly
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,Deps", "./...")
	cmd.Dir = "../.."
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, errs.String())
	}
	var all []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		p.ImportPath = strings.TrimPrefix(p.ImportPath, module)
		all = append(all, p)
	}
}

// match says whether a package is what a pattern means: itself, or, where the
// pattern ends in /…, also whatever lies below.
func match(pattern, name string) bool {
	if root, ok := strings.CutSuffix(pattern, "/…"); ok {
		return name == root || strings.HasPrefix(name, root+"/")
	}
	return name == pattern
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"bank", "bank", true},
		{"bank", "bank/drift", false},
		{"bank/…", "bank/drift", true},
		{"bank/…", "bank", true},
		{"bank/…", "banker", false},
	} {
		if got := match(c.pattern, c.name); got != c.want {
			t.Errorf("%s, %s: %v", c.pattern, c.name, got)
		}
	}
}

// rule is a line of the page.
type rule struct {
	pattern string
	may     []string
	used    map[string]bool
}

func rules(t *testing.T) []rule {
	t.Helper()
	page, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, block, ok := strings.Cut(string(page), "\n```\n")
	block, _, ok2 := strings.Cut(block, "\n```\n")
	if !ok || !ok2 {
		t.Fatal("internal/README.md has no import graph")
	}
	var all []rule
	for line := range strings.Lines(block) {
		left, right, ok := strings.Cut(line, "→")
		if left = strings.TrimSpace(left); !ok && left != "" {
			t.Fatalf("internal/README.md: what is meant by %q?", line)
		}
		if left != "" {
			all = append(all, rule{left, strings.Fields(right), map[string]bool{}})
		}
	}
	return all
}

func TestImportsAreThoseOfThePage(t *testing.T) {
	all := rules(t)
	named := map[string]bool{}
	for _, p := range packages(t) {
		at := slices.IndexFunc(all, func(r rule) bool { return r.pattern == p.ImportPath })
		if at < 0 {
			at = slices.IndexFunc(all, func(r rule) bool { return match(r.pattern, p.ImportPath) })
		}
		if at < 0 {
			t.Errorf("internal/README.md does not name %s", p.ImportPath)
			continue
		}
		named[all[at].pattern] = true
		for _, i := range p.Imports {
			name, ours := strings.CutPrefix(i, module)
			if !ours {
				continue
			}
			k := slices.IndexFunc(all[at].may, func(pattern string) bool { return match(pattern, name) })
			if k < 0 {
				t.Errorf("%s imports %s, which internal/README.md does not say", p.ImportPath, name)
				continue
			}
			all[at].used[all[at].may[k]] = true
		}
	}
	for _, r := range all {
		if !named[r.pattern] {
			t.Errorf("internal/README.md names %s, which is not there", r.pattern)
			continue
		}
		for _, m := range r.may {
			if !r.used[m] {
				t.Errorf("internal/README.md says that %s imports %s, which it does not", r.pattern, m)
			}
		}
	}
}

func TestWhatMayNotBeKnown(t *testing.T) {
	const (
		nats    = "github.com/nats-io/…"
		runtime = "github.com/yalue/onnxruntime_go"
	)
	var (
		learned = []string{"bank/…", "inference", "inference/onnx/…", "inference/ort", "inference/backbone/…", "training/…", runtime}
		walls   = []struct {
			pattern string
			not     []string // however indirectly
		}{
			{"bank/…", []string{"inference/…", "stream/…", "training/…", "image/…", nats, runtime}},
			{"inference/…", []string{"stream/…", "training/…", nats}},
			{"inference/imaging", []string{runtime, "inference/onnx/…"}},
			{"inference/heatmap", []string{runtime, "inference/onnx/…", "bank/…"}},
			{"inference/onnx/…", []string{runtime}},
			{"inference/backbone/…", []string{runtime}},
			{"inference/release/…", []string{runtime, "bank/…"}},
			{"stream/…", learned},
			{"training/…", []string{"stream/…", nats}},
			{"training/autodiff", []string{"inference/backbone/…", "training/dataset", runtime}},
			{"cmd/nearmiss", []string{"testing", "internal/brokertest", "internal/evaldata"}},
		}
	)
	all := packages(t)
	for _, w := range walls {
		found := false
		for _, p := range all {
			if !match(w.pattern, p.ImportPath) {
				continue
			}
			found = true
			for _, d := range p.Deps {
				name := strings.TrimPrefix(d, module)
				for _, not := range w.not {
					if match(not, name) {
						t.Errorf("%s must not know %s", p.ImportPath, name)
					}
				}
			}
		}
		if !found {
			t.Errorf("no package is %s", w.pattern)
		}
	}
}

// TestLibrariesHaveOneUser: what could spread through the program is named by the
// packages that it was chosen for, so that it can be exchanged.
func TestLibrariesHaveOneUser(t *testing.T) {
	for library, users := range map[string][]string{
		"github.com/yalue/onnxruntime_go":               {"inference/ort"},
		"google.golang.org/protobuf/encoding/protowire": {"inference/onnx/wire"},
		"github.com/coder/hnsw":                         {"bank"},
		"github.com/viterin/vek/…":                      {"bank", "training/holdout"},
		"github.com/alecthomas/kong":                    {"cmd/nearmiss"},
		"github.com/caarlos0/env/v11":                   {"cmd/nearmiss"},
		"github.com/schollz/progressbar/v3":             {"cmd/nearmiss"},
		"github.com/nats-io/nats-server/v2/…":           {"stream/broker", "internal/brokertest"},
		"gonum.org/v1/…":                                {"training/…"},
		"github.com/prometheus/…":                       {"stream/metrics"},
		"go.opentelemetry.io/…":                         {"stream/traces"},
	} {
		used := false
		for _, p := range packages(t) {
			if !slices.ContainsFunc(p.Imports, func(i string) bool { return match(library, i) }) {
				continue
			}
			used = true
			if !slices.ContainsFunc(users, func(u string) bool { return match(u, p.ImportPath) }) {
				t.Errorf("%s imports %s, which is for %v", p.ImportPath, library, users)
			}
		}
		if !used {
			t.Errorf("nobody imports %s", library)
		}
	}
}

// TestServingDoesNotLearn: the command's files that serve import nothing of what
// learns.
func TestServingDoesNotLearn(t *testing.T) {
	for _, name := range []string{"worker.go", "loader.go", "place.go", "camera.go", "watch.go", "broker.go", "evidence.go"} {
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join("../../cmd/nearmiss", name), nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range f.Imports {
			path, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if match("training/…", strings.TrimPrefix(path, module)) {
				t.Errorf("cmd/nearmiss/%s imports %s", name, path)
			}
		}
	}
}

// sources calls read with each file of Go that is written by hand, but tests, by
// its path in the repository.
func sources(t *testing.T, read func(path string, b []byte)) {
	t.Helper()
	root := os.DirFS("../..")
	err := fs.WalkDir(root, ".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != "." && strings.HasPrefix(d.Name(), "."):
			return fs.SkipDir
		case filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		b, err := fs.ReadFile(root, path)
		if err == nil {
			read(path, b)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestFilesAreShort: what is written by hand is read by the file. Generated code
// and tests may be longer.
func TestFilesAreShort(t *testing.T) {
	const most = 600
	sources(t, func(path string, b []byte) {
		if n := bytes.Count(b, []byte("\n")); n > most {
			t.Errorf("%s has %d lines, at most %d are wanted: divide it", path, n, most)
		}
	})
}

// TestStructsAreSmall: no struct has more than fifteen fields, but configurations,
// by their names, and what is written out as it is: each field has a tag, or two at
// most have not.
func TestStructsAreSmall(t *testing.T) {
	const most = 15
	sources(t, func(file string, b []byte) {
		f, err := parser.ParseFile(token.NewFileSet(), file, b, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			named, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			s, ok := named.Type.(*ast.StructType)
			if !ok {
				return true
			}
			fields, tags := 0, 0
			for _, field := range s.Fields.List {
				n := max(1, len(field.Names))
				fields += n
				if field.Tag != nil || field.Names == nil { // or a group of such fields
					tags += n
				}
			}
			plain := tags >= fields-2 || strings.HasSuffix(named.Name.Name, "Config") || strings.HasSuffix(named.Name.Name, "Options")
			if fields > most && !plain {
				t.Errorf("%s.%s has %d fields, at most %d are wanted: divide it", path.Dir(file), named.Name.Name, fields, most)
			}
			return true
		})
	})
}
