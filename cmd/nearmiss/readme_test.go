package main

import (
	"bytes"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"github.com/nearmiss/nearmiss/inference/backbone/catalogue"
	"github.com/nearmiss/nearmiss/stream"
)

var (
	pageCommand = regexp.MustCompile("bin/nearmiss ([^`\n]*)")
	makeTarget  = regexp.MustCompile("(?m)(?:^|`)make ([a-z-]+)")
	pageLink    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	goTest      = regexp.MustCompile("go test ([^`\n]*)")
	comment     = regexp.MustCompile(`(?m)^\s*//.*$`)
	testFunc    = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark|Example)\w*)\(`)
)

// pages are the repository's Markdown files by their paths in it.
func pages(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	root := os.DirFS("../..")
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "node_modules"):
			return fs.SkipDir
		case path.Ext(name) != ".md":
			return nil
		}
		b, err := fs.ReadFile(root, name)
		all[name] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"README.md", "stream/README.md", "stream/console/README.md", "inference/README.md", "internal/README.md", "internal/bench/README.md", "deployments/RUNBOOK.md", "deployments/SIZING.md", "training/RESULTS.md",
	} {
		if all[name] == "" {
			t.Errorf("%s is missing", name)
		}
	}
	return all
}

// TestReadmeIsShort: it is to be read aloud in five minutes or so.
func TestReadmeIsShort(t *testing.T) {
	if n := len(strings.Fields(pages(t)["README.md"])); n > 1300 {
		t.Errorf("README.md has %d words, at most 1,300 are wanted: move details to another page", n)
	}
}

// TestPagesCommandsAreAccepted parses every command of every page, in a folder
// that has the files they name.
func TestPagesCommandsAreAccepted(t *testing.T) {
	all := pages(t)
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	yaml, err := filepath.Abs("../../deployments/nearmiss.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, sub := range []string{
		"work/good", "work/new", "work/wbc", "work/tiles", "work/releases/bolts", "work/cifar10", "work/deployments", "work/nearmiss-data/desk", "work/line1", "work/lamp",
		"shared/data/wbc", "shared/data/magnetic-tile",
	} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{
		"work/model.safetensors", "work/model.onnx", "work/vit_ti.onnx", "work/libonnxruntime.so", "work/line1.nk", "work/lamp.nk", "work/ca.crt",
		"work/nearmiss-data/nearmiss.yaml", "work/nearmiss-data/desk/nearmiss.yaml", "work/line1/nearmiss.yaml", "work/lamp/nearmiss.yaml", "shared/data/vit_tiny_patch16_224.safetensors",
	} {
		write(t, filepath.Join(dir, file), "")
	}
	if err := os.Symlink(yaml, filepath.Join(dir, "work/deployments/nearmiss.yaml")); err != nil {
		t.Fatal(err)
	}
	t.Chdir(filepath.Join(dir, "work"))
	commands := 0
	for name, text := range all {
		for _, m := range makeTarget.FindAllStringSubmatch(text, -1) {
			if !bytes.Contains(makefile, []byte("\n"+m[1]+":")) {
				t.Errorf("%s: make %s: the Makefile has no such target", name, m[1])
			}
		}
		for _, m := range pageCommand.FindAllStringSubmatch(text, -1) {
			commands++
			line, _, _ := strings.Cut(m[1], "#")
			args := words(strings.TrimSuffix(strings.TrimSpace(line), "&"))
			parser, err := newParser(new(cli), kong.Exit(func(int) {}))
			if err != nil {
				t.Fatal(err)
			}
			if slices.Contains(args, "--help") {
				continue // which ends the program
			}
			for i := range args {
				if i > 0 && args[i-1] == "--backbone" && catalogue.IsName(args[i]) {
					args[i] = "model.onnx" // which it stands for once it was pulled
				}
			}
			if _, err := parser.Parse(args); err != nil {
				t.Errorf("%s: nearmiss %s: %v", name, strings.Join(args, " "), err)
			}
		}
	}
	if commands < 60 {
		t.Errorf("only %d commands found", commands)
	}
}

// TestSinksOfThePagesCanWork: what the pages say of sinks is what their kinds
// take, not only the command line.
func TestSinksOfThePagesCanWork(t *testing.T) {
	kinds := map[string]int{}
	for name, text := range pages(t) {
		for _, m := range pageCommand.FindAllStringSubmatch(text, -1) {
			args := words(strings.TrimSpace(m[1]))
			if len(args) < 2 || args[0] != "sinks" || args[1] != "add" {
				continue
			}
			c := new(cli)
			parser, err := newParser(c, kong.Exit(func(int) {}))
			if err == nil {
				_, err = parser.Parse(args)
			}
			if err == nil {
				_, err = c.Sinks.Add.sink()
			}
			if err != nil {
				t.Errorf("%s: %s: %v", name, m[1], err)
			}
			kinds[c.Sinks.Add.Kind]++
		}
	}
	for kind := range sinkKinds(stream.Names{}, nil, nil) {
		if kinds[kind] == 0 {
			t.Errorf("no page has an example of %s", kind)
		}
	}
}

// words splits a command line as a shell does, as far as the pages need it.
func words(line string) []string {
	var all []string
	for i, quoted := range strings.Split(line, "'") {
		if i%2 == 1 {
			all = append(all, quoted)
			continue
		}
		all = append(all, strings.Fields(quoted)...)
	}
	return all
}

// TestPagesLinksLeadSomewhere follows the links inside the repository.
func TestPagesLinksLeadSomewhere(t *testing.T) {
	for name, text := range pages(t) {
		for _, m := range pageLink.FindAllStringSubmatch(text, -1) {
			target, _, _ := strings.Cut(m[1], "#")
			if target == "" || strings.Contains(target, "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join("../..", filepath.FromSlash(path.Join(path.Dir(name), target)))); err != nil {
				t.Errorf("%s: the link to %s leads nowhere", name, m[1])
			}
		}
	}
}

// commands are the pages, and what else names tests: the Makefile, scripts, and
// comments of the code.
func commands(t *testing.T) map[string]string {
	t.Helper()
	out := pages(t)
	err := filepath.WalkDir("../..", func(path string, e fs.DirEntry, err error) error {
		name := strings.TrimPrefix(filepath.ToSlash(path), "../../")
		switch {
		case err != nil:
			return err
		case e.IsDir() && strings.HasPrefix(e.Name(), ".") && e.Name() != ".." && e.Name() != ".ci":
			return filepath.SkipDir
		case e.IsDir() || e.Name() != "Makefile" && !strings.HasPrefix(name, ".ci/") && !slices.Contains([]string{".go", ".sh"}, filepath.Ext(name)):
			return nil
		}
		b, err := os.ReadFile(path)
		text := strings.ReplaceAll(string(b), "\\\n", "")
		if strings.HasSuffix(name, ".go") {
			text = strings.Join(comment.FindAllString(text, -1), "\n")
		}
		out[name] = strings.ReplaceAll(text, "$$", "$") // of make
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestPagesNameTestsThatExist: a page that says how something was checked names a
// test of that package, and so do the Makefile, scripts and comments.
func TestPagesNameTestsThatExist(t *testing.T) {
	found := map[string]int{}
	for name, text := range commands(t) {
		for _, m := range goTest.FindAllStringSubmatch(text, -1) {
			args := words(m[1])
			var patterns, dirs []string
			for i, a := range args {
				switch {
				case strings.HasPrefix(a, "./"):
					dirs = append(dirs, strings.TrimRight(a, ",;)"))
				case i > 0 && slices.Contains([]string{"-run", "-bench", "-fuzz"}, args[i-1]) && strings.Trim(a, "x") != "" && a != "." && !strings.Contains(a, "$") || i > 0 && args[i-1] == "-run" && strings.HasPrefix(a, "^"):
					patterns = append(patterns, a)
				}
			}
			if len(dirs) == 0 && strings.HasSuffix(name, ".go") {
				dirs = []string{"./" + path.Dir(name)}
			}
			var names []string
			for _, d := range dirs {
				for _, f := range sources(t, d) {
					b, err := os.ReadFile(f)
					if err != nil {
						t.Fatal(err)
					}
					for _, fn := range testFunc.FindAllSubmatch(b, -1) {
						names = append(names, string(fn[1]))
					}
				}
			}
			for _, p := range patterns {
				p, _, _ = strings.Cut(p, "/") // what follows are parts of a test
				for one := range strings.SplitSeq(strings.TrimSuffix(strings.TrimPrefix(strings.TrimSuffix(strings.TrimPrefix(p, "^"), "$"), "("), ")"), "|") {
					if one == "" {
						continue
					}
					re, err := regexp.Compile(one)
					if err != nil {
						t.Errorf("%s: go test %s: %v", name, m[1], err)
						continue
					}
					found[filepath.Ext(name)]++
					if !slices.ContainsFunc(names, re.MatchString) {
						t.Errorf("%s: go test … %s: no test is called %s", name, strings.Join(dirs, " "), one)
					}
				}
			}
		}
	}
	for kind, least := range map[string]int{".md": 10, "": 20, ".go": 1, ".sh": 1} {
		if found[kind] < least {
			t.Errorf("only %d tests are named in files %q", found[kind], kind)
		}
	}
}

// sources are the files of a package, or of those below ./DIR/...
func sources(t *testing.T, dir string) (files []string) {
	t.Helper()
	dir, below := strings.CutSuffix(dir, "/...")
	err := filepath.WalkDir(filepath.Join("../..", dir), func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && (strings.HasPrefix(e.Name(), ".") && e.Name() != ".." || !below && path != filepath.Join("../..", dir)):
			return filepath.SkipDir
		case filepath.Ext(path) == ".go":
			files = append(files, path)
		}
		return nil
	})
	if err != nil || len(files) == 0 {
		t.Errorf("there is no package %s: %v", dir, err)
	}
	return files
}
