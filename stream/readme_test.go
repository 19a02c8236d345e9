package stream_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/stream"
)

// constants are the exported string constants of the Go files in a folder that
// begin with one of the prefixes, by their values.
func constants(t *testing.T, dir string, prefixes ...string) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok {
				return true
			}
			for i, id := range spec.Names {
				for _, p := range prefixes {
					if !strings.HasPrefix(id.Name, p) || i >= len(spec.Values) {
						continue
					}
					if lit, ok := spec.Values[i].(*ast.BasicLit); ok && lit.Kind == token.STRING {
						v, err := strconv.Unquote(lit.Value)
						if err != nil {
							t.Fatal(err)
						}
						all[v] = id.Name
					}
				}
			}
			return true
		})
	}
	return all
}

// TestTheContractIsWritten: README.md names every header, kind, code, stream,
// bucket and request, and no request that is not there.
func TestTheContractIsWritten(t *testing.T) {
	b, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	said := map[string]bool{}
	for _, m := range regexp.MustCompile("`([^`\n]+)`").FindAllStringSubmatch(page, -1) {
		said[m[1]] = true
	}
	words := constants(t, ".", "Code", "Header", "Kind", "Release", "Store")
	maps.Copy(words, constants(t, "../inference/imaging", "Code"))
	if len(words) < 30 {
		t.Fatalf("only %d words are found in the code", len(words))
	}
	for v, name := range words {
		if !said[v] {
			t.Errorf("README.md does not say `%s` (%s)", v, name)
		}
	}

	names := reflect.ValueOf(stream.Names{})
	for i := range names.NumMethod() {
		m := names.Type().Method(i)
		if strings.HasSuffix(m.Name, "Stream") || strings.HasSuffix(m.Name, "Bucket") {
			if v := names.Method(i).Call(nil)[0].String(); !said[v] {
				t.Errorf("README.md does not say `%s`", v)
			}
		}
	}

	offered := map[string]bool{}
	group := regexp.MustCompile(`API\(\) ?\+ ?"(\.\w+)"`)
	endpoint := regexp.MustCompile(`(?:Serve\(e, |serveChange\(c, e, |AddEndpoint\()"([\w-]+)"`)
	var files []string
	for _, of := range []string{"*.go", "control/*.go", "trainer/*.go", "worker/*.go", "sink/api.go"} {
		some, err := filepath.Glob(of)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, some...)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		at := ""
		for line := range strings.Lines(string(b)) {
			if m := group.FindStringSubmatch(line); m != nil {
				at = m[1]
			}
			if m := endpoint.FindStringSubmatch(line); m != nil {
				offered[stream.Names{}.API()+at+"."+m[1]] = true
			}
		}
	}
	if len(offered) < 10 {
		t.Fatalf("only %d requests are found in the code", len(offered))
	}
	for subject := range offered {
		if !said[subject] {
			t.Errorf("README.md does not say `%s`", subject)
		}
	}
	for s := range said {
		if strings.HasPrefix(s, stream.Names{}.API()+".") && !offered[s] {
			t.Errorf("README.md says `%s`, which no service offers", s)
		}
	}
}
