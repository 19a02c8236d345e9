package stream_test

import (
	"context"
	"encoding/json"
	"fmt"
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
	"time"

	"github.com/nats-io/nats.go/micro"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/streamtest"
	"github.com/nearmiss/nearmiss/stream/sink"
	"github.com/nearmiss/nearmiss/stream/trainer"
	"github.com/nearmiss/nearmiss/stream/worker"
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

	offered := requests(t)
	for subject := range offered {
		// Control answers by the trainer's name, too, as before there was one: a sentence.
		if again := strings.Replace(subject, ".trainer.", ".control.", 1); again != subject && offered[again] {
			continue
		}
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

// requests are the subjects of all requests that the services of an installation
// answer, as they tell themselves.
func requests(t *testing.T) map[string]bool {
	t.Helper()
	r := streamtest.New(t, stream.Topology{})
	r.Worker(worker.Config{}, streamtest.LoadFake)
	r.Trainer(trainer.Config{}, streamtest.FakeTrainer{T: t})
	r.Client()
	sinks, err := sink.NewEngine(sink.EngineConfig{Names: r.Names, Kinds: sink.Kinds{}}, r.NC, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- sinks.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	offered := map[string]bool{}
	for name, n := range endpoints {
		eventually.True(t, fmt.Sprintf("%s has its %d endpoints", name, n), func() bool { // it gets one after the other
			m, err := r.NC.Request("$SRV.INFO."+name, nil, time.Second)
			var info micro.Info
			if err != nil || json.Unmarshal(m.Data, &info) != nil {
				return false
			}
			for _, e := range info.Endpoints {
				offered[strings.TrimRight(e.Subject, ".*")] = true // without its parameters
			}
			return len(info.Endpoints) == n
		})
	}
	return offered
}
