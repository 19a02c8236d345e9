package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
)

func model(t *testing.T) *kong.Application {
	t.Helper()
	var c cli
	k, err := newParser(&c)
	if err != nil {
		t.Fatal(err)
	}
	return k.Model
}

func TestHelpOfEveryKind(t *testing.T) {
	all, _ := program(t, 0)
	if flag, _ := program(t, 0, "--help"); flag != all || !strings.Contains(all, "Usage: nearmiss <command>") {
		t.Errorf("nearmiss alone prints %s", all)
	}
	if help, _ := program(t, 0, "help"); help != all {
		t.Errorf("help prints %s", help)
	}
	for _, leaf := range model(t).Leaves(true) {
		var names []string
		for n := leaf; n.Parent != nil; n = n.Parent {
			names = append([]string{n.Name}, names...)
		}
		want, _ := program(t, 0, append(slices.Clone(names), "--help")...)
		if got, _ := program(t, 0, append([]string{"help"}, names...)...); got != want && names[0] != "help" {
			t.Errorf("help %v prints %s", names, got)
		}
	}
	if _, errs := program(t, exitUsage, "help", "nonsense"); !strings.Contains(errs, "nonsense") {
		t.Errorf("%s", errs)
	}
	version, _ := program(t, 0, "--version")
	if command, _ := program(t, 0, "version"); version != command || !strings.HasPrefix(version, "nearmiss ") {
		t.Errorf("--version prints %q, version %q", version, command)
	}
}

// TestEveryHelp: each command stands under a heading and has an example of its own, and
// the flags that all commands have come last.
func TestEveryHelp(t *testing.T) {
	headings := regexp.MustCompile(`(?m)^[A-Z].*:$`)
	for _, leaf := range model(t).Leaves(true) {
		path := leaf.FullPath()
		if leaf.ClosestGroup() == nil {
			t.Errorf("%s stands under no heading of --help", path)
		}
		help, _ := program(t, 0, append(strings.Fields(path)[1:], "--help")...)
		if _, own, _ := strings.Cut(help, "Examples:\n"); !strings.Contains(own, path) {
			t.Errorf("%s has no example of its own:\n%s", path, help)
		}
		if all := headings.FindAllString(help, -1); len(all) == 0 || all[len(all)-1] != "Every command:" {
			t.Errorf("%s: the flags of every command do not come last:\n%s", path, help)
		}
	}
	listed := map[string]bool{}
	for _, g := range commandGroups {
		for _, name := range g.commands {
			if listed[name] || childOf(model(t).Node, name) == nil {
				t.Errorf("%s under %s is no command, or is listed twice", name, g.title)
			}
			listed[name] = true
		}
	}
}

func TestErrorsNameTheCommandsOwnHelp(t *testing.T) {
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"nonsense"}, "(see nearmiss --help)"},
		{[]string{"fit", "--nope"}, "(see nearmiss fit --help)"},
		{[]string{"backbone", "import"}, "(see nearmiss backbone import --help)"},
		{[]string{"normals", "add", "bolts"}, "(see nearmiss normals add --help)"},
		{[]string{"releases", "bolts", "promote"}, "(see nearmiss releases --help)"},
		{[]string{"detector", "create", "bolts", "--false-alarm-rate", "many"}, "write 0.05 or 5%"},
		{[]string{"detector", "create", "bolts", "--retention", "soon"}, "write 90s, 15m, 12h, 30d or 2w"},
	} {
		if _, errs := program(t, exitUsage, c.args...); !strings.Contains(errs, c.says) || strings.Count(errs, "\n") != 1 {
			t.Errorf("%v: %s", c.args, errs)
		}
	}
}

func TestNumbersAsPeopleWriteThem(t *testing.T) {
	for s, want := range map[string]float64{"0.05": 0.05, "5%": 0.05, "5 %": 0.05, "0.1%": 0.001, "1e-3": 0.001, "100%": 1} {
		if v, err := parseNumber(s); err != nil || v != want {
			t.Errorf("%s: %v, %v", s, v, err)
		}
	}
	for s, want := range map[string]time.Duration{"30d": 720 * time.Hour, "2w": 336 * time.Hour, "1d12h": 36 * time.Hour, "90s": 90 * time.Second, "0.5d": 12 * time.Hour, "-1d": -24 * time.Hour} {
		if v, err := parseTime(s); err != nil || v != want {
			t.Errorf("%s: %v, %v", s, v, err)
		}
	}
	for _, s := range []string{"", "d", "5", "x%", "1y"} {
		if v, err := parseTime(s); err == nil {
			t.Errorf("%q is %v", s, v)
		}
	}
	var c cli
	k, err := newParser(&c)
	if err != nil {
		t.Fatal(err)
	}
	for _, flag := range []string{"--false-alarm-rate", "--alpha"} {
		if _, err := k.Parse([]string{"fit", "--normals", ".", "--backbone", "help_test.go", "--out", "r", flag, "2%", "--match", "50%", "--blends", "50%,1"}); err != nil {
			t.Fatal(err)
		}
		if c.Fit.Alpha != 0.02 || *c.Fit.Match != 0.5 || c.Fit.Blends[0] != 0.5 {
			t.Errorf("%s 2%%: %g, %g, %v", flag, c.Fit.Alpha, *c.Fit.Match, c.Fit.Blends)
		}
	}
	if _, err := k.Parse([]string{"detector", "create", "bolts", "--retention", "30d"}); err != nil || *c.Detector.Create.Retention != 720*time.Hour {
		t.Errorf("%v", err)
	}
}

func TestCompletion(t *testing.T) {
	app := model(t)
	words := func(line ...string) []string {
		var b bytes.Buffer
		complete(&b, app, line)
		var out []string
		for l := range strings.Lines(b.String()) {
			word, _, _ := strings.Cut(strings.TrimRight(l, "\n"), "\t")
			out = append(out, word)
		}
		return out
	}
	for _, c := range []struct {
		line []string
		want []string // some of them
		not  string
	}{
		{[]string{""}, []string{"fit", "watch", "completion"}, "--json"},
		{[]string{"de"}, []string{"detector"}, "fit"},
		{[]string{"backbone", ""}, []string{"import", "inspect"}, "fit"},
		{[]string{"fit", "--"}, []string{"--normals", "--no-advice", "--log-level", "--false-alarm-rate"}, "fit"},
		{[]string{"fit", "--method", ""}, []string{"knn", "fitymi"}, ""},
		{[]string{"fit", "--method=f"}, []string{"--method=fitymi"}, "--method=knn"},
		{[]string{"fit", "--method", "=", "f"}, []string{"fitymi"}, "knn"}, // bash
		{[]string{"fit", "--backbone", ""}, []string{completeFiles}, ""},
		{[]string{"eval", "--data", ""}, []string{completeFolders}, ""},
		{[]string{"score", "--release", "r", ""}, []string{completeFiles}, ""},
		{[]string{"completion", ""}, []string{"bash", "zsh", "fish"}, ""},
		{[]string{"nonsense", "--"}, []string{"--help"}, ""},
		{nil, []string{"fit"}, ""},
	} {
		got := words(c.line...)
		for _, w := range c.want {
			if !slices.Contains(got, w) {
				t.Errorf("%q: %s is not in %v", c.line, w, got)
			}
		}
		if c.not != "" && slices.Contains(got, c.not) {
			t.Errorf("%q: %s is in %v", c.line, c.not, got)
		}
	}
}

// TestCompletionScripts runs them in the shells that there are.
func TestCompletionScripts(t *testing.T) {
	dir := t.TempDir()
	fake := filepath.Join(dir, "nearmiss") // the program itself would have to be built
	write(t, fake, "#!/bin/sh\n[ \"$1\" = __complete ] && shift\nfor w; do last=$w; done\ncase $last in fi*) printf 'fit\\tLearn: from images\\nfind\\tNothing\\n';; *) echo :files;; esac\n")
	if err := os.Chmod(fake, 0o755); err != nil {
		t.Fatal(err)
	}
	ran := 0
	for shell, then := range map[string]string{
		"bash": `COMP_WORDS=(nearmiss fi); COMP_CWORD=1; _nearmiss; printf '%s\n' "${COMPREPLY[@]}"`,
		"zsh":  `words=(nearmiss fi); CURRENT=2; _describe() { print -l -- $found }; _nearmiss`,
		"fish": `complete -C 'nearmiss fi'`,
	} {
		path, err := exec.LookPath(shell)
		if err != nil {
			t.Logf("%s is not here", shell)
			continue
		}
		ran++
		script, _ := program(t, 0, "completion", shell)
		if shell == "zsh" {
			script = "compdef() { : }\n" + script
		}
		cmd := exec.CommandContext(t.Context(), path, "-c", script+"\n"+then)
		if shell == "zsh" {
			cmd = exec.CommandContext(t.Context(), path, "-fc", script+"\n"+then)
		}
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "HOME="+dir)
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "fit") || !strings.Contains(string(out), "find") {
			t.Errorf("%s: %v: %s", shell, err, out)
		}
	}
	if ran == 0 {
		t.Skip("there is no shell to try")
	}
}

func TestManualPage(t *testing.T) {
	page, _ := program(t, 0, "man")
	for _, want := range []string{
		`.TH NEARMISS 1`, ".SH EXIT STATUS", ".SS fit\n", `.SS backbone import <file>`, `\fB\-\-false\-alarm\-rate\fR`, "NEARMISS_LOG_LEVEL", `nearmiss fit \-\-normals good/`,
	} {
		if !strings.Contains(page, want) {
			t.Errorf("%q is not in the manual page", want)
		}
	}
	for l := range strings.Lines(page) {
		if strings.HasPrefix(l, ".") && !slices.Contains([]string{".TH", ".SH", ".SS", ".TP", ".PP", ".B", ".I", ".nf", ".fi", ".RS", ".RE"}, strings.Fields(l)[0]) {
			t.Errorf("an unknown order: %s", l)
		}
	}
	man, err := exec.LookPath("man")
	if err != nil {
		t.Skip("man is not here")
	}
	file := filepath.Join(t.TempDir(), "nearmiss.1")
	write(t, file, page)
	cmd := exec.CommandContext(t.Context(), man, "--warnings", "-l", file)
	cmd.Env = append(os.Environ(), "MANWIDTH=80", "LC_ALL=C.UTF-8")
	if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "warning") {
		t.Errorf("%v: %.500s", err, out)
	}
}

func TestLongStepsAreLoggedWithoutATerminal(t *testing.T) {
	was := logInterval
	t.Cleanup(func() { logInterval = was })
	logInterval = time.Hour
	var b bytes.Buffer
	o := &output{Err: &b, Log: newLogger(&b, "info", "json")}
	p := o.progress("embedding")
	p.report(1, 10)
	p.report(5, 10)
	if b.Len() > 0 {
		t.Errorf("a short step is logged: %s", b.String())
	}
	logInterval = 0
	p.stage("bank", 7, 10)
	p.close()
	if s := b.String(); strings.Count(s, "\n") != 1 || !strings.Contains(s, `"step":"bank","done":7,"total":10`) {
		t.Errorf("%s", s)
	}
}

func TestAsk(t *testing.T) {
	for answer, want := range map[string]bool{"y\n": true, "YES\n": true, "n\n": false, "\n": false, "": false, "yesterday\n": false} {
		var b bytes.Buffer
		if got := ask(strings.NewReader(answer), &b, "delete it?"); got != want || b.String() != "delete it? [y/N] " {
			t.Errorf("%q: %v, %q", answer, got, b.String())
		}
	}
}

func TestCounted(t *testing.T) {
	if s := fmt.Sprint(counted(0, "image"), ", ", counted(1, "image"), ", ", counted(2, "entry", "entries")); s != "0 images, 1 image, 2 entries" {
		t.Error(s)
	}
}
