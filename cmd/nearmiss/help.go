package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// helpCmd is answered before the command line is parsed, in run: it is here to be
// listed.
type helpCmd struct {
	Command []string `arg:"" optional:"" help:"Command that is to be explained (default: all of them, briefly)."`
}

func (*helpCmd) Help() string { return examples("nearmiss help detector create") }

// commandGroups are the headings of --help and the commands under each.
var commandGroups = []struct {
	title    string
	commands []string
}{
	{"Start here:", []string{"up", "fit", "score", "eval", "watch", "status"}},
	{"Services:", []string{"broker", "control", "worker", "trainer", "camera", "console", "exporter"}},
	{"Detectors, alarms and releases:", []string{"detector", "normals", "train", "jobs", "releases", "mark", "evidence"}},
	{"Tell somebody:", []string{"sinks"}},
	{"Running it:", []string{"health", "check", "backup", "restore", "collect", "hub"}},
	{"Who may do what:", []string{"lock", "users", "tls", "audit"}},
	{"Models and this machine:", []string{"backbone", "runtime", "fakes", "bench"}},
	{"This program:", []string{"help", "version", "completion", "man"}},
}

// groupCommands puts the commands under their headings, in that order, and the flags that
// every command has under one of their own. A command without examples has those of the
// command above.
func groupCommands(app *kong.Application) {
	var ordered []*kong.Node
	for _, g := range commandGroups {
		for _, name := range g.commands {
			if n := childOf(app.Node, name); n != nil {
				n.Group = &kong.Group{Key: g.title, Title: g.title}
				ordered = append(ordered, n)
			}
		}
	}
	for _, n := range app.Children {
		if n.Group == nil {
			ordered = append(ordered, n)
		}
	}
	app.Children = ordered
	for _, n := range app.Leaves(true) {
		if !strings.Contains(n.Detail, "Examples:") {
			n.Detail = strings.TrimSpace(n.Detail + "\n\n" + examplesOf(n))
		}
	}
	for _, f := range app.Flags {
		f.Group = &kong.Group{Key: "every", Title: "Every command:"}
	}
}

// examplesOf are those of the examples of the command above that are of n.
func examplesOf(n *kong.Node) string {
	var own []string
	for line := range strings.Lines(n.Parent.Detail) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line+" ", n.FullPath()+" ") {
			own = append(own, line)
		}
	}
	if own == nil {
		return ""
	}
	return examples(own...)
}

// printHelp prints a command's own flags before those that every command has.
func printHelp(options kong.HelpOptions, ctx *kong.Context) error {
	if n := ctx.Selected(); n != nil {
		n.Flags, ctx.Model.Flags = append(n.Flags, ctx.Model.Flags...), nil
	}
	return kong.DefaultHelpPrinter(options, ctx)
}

// wantsHelp turns "help COMMAND" into "COMMAND --help". What it names must exist.
func wantsHelp(app *kong.Application, args []string) ([]string, error) {
	if len(args) == 0 {
		return []string{"--help"}, nil
	}
	if args[0] != "help" || slices.Contains(args, "--help") || slices.Contains(args, "-h") {
		return args, nil
	}
	n := app.Node
	for _, name := range args[1:] {
		child := childOf(n, name)
		if child == nil {
			return nil, usageError{fmt.Errorf("there is no command %q", strings.Join(args[1:], " "))}
		}
		n = child
	}
	return append(slices.Clone(args[1:]), "--help"), nil
}

func childOf(n *kong.Node, name string) *kong.Node {
	for _, c := range n.Children {
		if c.Name == name || slices.Contains(c.Aliases, name) {
			return c
		}
	}
	return nil
}

// commandOf is the command that a parsed line means, as far as it goes: "nearmiss
// backbone import".
func commandOf(ctx *kong.Context) string {
	name := "nearmiss"
	if ctx == nil {
		return name
	}
	for _, p := range ctx.Path {
		if p.Command != nil {
			name += " " + p.Command.Name
		}
	}
	return name
}

// hint says where the help is for a line that made no sense.
func hint(err error) string {
	if parse, ok := errors.AsType[*kong.ParseError](err); ok {
		return commandOf(parse.Context)
	}
	return "nearmiss"
}

type manCmd struct{}

func (*manCmd) Help() string {
	return "It is made from the same source as --help, so that it fits this program.\n\n" +
		examples("nearmiss man | man -l -", "nearmiss man > /usr/local/share/man/man1/nearmiss.1")
}

func (*manCmd) Run(o *output) error {
	var c cli
	k, err := newParser(&c)
	if err != nil {
		return err
	}
	return writeMan(o.Out, k.Model)
}

// writeMan writes a manual page in the man macros (man-pages(7)).
func writeMan(w io.Writer, app *kong.Application) error {
	b := bufio.NewWriter(w)
	line := func(format string, a ...any) { fmt.Fprintf(b, format+"\n", a...) }
	text := func(s string) {
		for l := range strings.SplitSeq(strings.TrimSpace(s), "\n") {
			if l = roff(strings.TrimRight(l, " ")); l == "" {
				line(".PP")
			} else {
				line("%s", l)
			}
		}
	}
	line(`.TH NEARMISS 1 "" "nearmiss %s" "Nearmiss"`, roff(version))
	line(".SH NAME")
	line(`nearmiss \- %s`, roff(strings.ToLower(app.Help[:1])+strings.TrimSuffix(app.Help[1:], ".")))
	line(".SH SYNOPSIS")
	line(`.B nearmiss`)
	line(`.I command`)
	line(`[\fIflags\fR]`)
	line(".SH FLAGS OF ALL COMMANDS")
	for _, f := range app.Flags {
		manFlag(line, f)
	}
	line(".SH COMMANDS")
	for _, leaf := range app.Leaves(true) {
		line(".SS %s", roff(usageOf(leaf)))
		text(leaf.Help)
		if leaf.Detail != "" {
			before, lines, found := strings.Cut(leaf.Detail, "Examples:")
			if before = strings.TrimSpace(before); before != "" {
				line(".PP")
				text(before)
			}
			if found {
				line(".PP\nExamples:\n.PP\n.nf\n.RS")
				for l := range strings.SplitSeq(strings.TrimSpace(lines), "\n") {
					line("%s", roff(strings.TrimSpace(l)))
				}
				line(".RE\n.fi")
			}
		}
		for _, a := range leaf.Positional {
			line(".TP\n.I %s", roff(a.Summary()))
			text(a.Help)
		}
		for n := leaf; n.Parent != nil; n = n.Parent {
			for _, f := range n.Flags {
				if !f.Hidden {
					manFlag(line, f)
				}
			}
		}
	}
	line(".SH EXIT STATUS")
	for _, c := range [][2]string{
		{"0", "The command did what was asked."},
		{"1", "It failed; standard error says why."},
		{"2", "The command line makes no sense."},
		{"130", "It was interrupted before it was done."},
	} {
		line(".TP\n.B %s\n%s", c[0], c[1])
	}
	line(".SH ENVIRONMENT")
	for _, e := range environment(app) {
		line(".TP\n.B %s\n%s", roff(e[0]), roff(e[1]))
	}
	return b.Flush()
}

func manFlag(line func(string, ...any), f *kong.Flag) {
	name := "--" + f.Name
	if f.Tag.Negatable != "" {
		name = "--[no-]" + f.Name
	}
	if f.Short != 0 {
		name = fmt.Sprintf("-%c, %s", f.Short, name)
	}
	head := `\fB` + roff(name) + `\fR`
	if !f.IsBool() && !f.IsCounter() {
		head += ` \fI` + roff(f.FormatPlaceHolder()) + `\fR`
	}
	line(".TP\n%s\n%s", head, roff(f.Help))
}

// environment lists the variables that flags read, and the program's own.
func environment(app *kong.Application) [][2]string {
	out := [][2]string{
		{"NEARMISS_ONNXRUNTIME", "The ONNX Runtime library to load."},
		{"NEARMISS_CACHE", "Folder for what Nearmiss downloads."},
		{"NO_COLOR", "If it is not empty, log lines on a terminal have no colours."},
	}
	var visit func(n *kong.Node)
	visit = func(n *kong.Node) {
		for _, f := range n.Flags {
			for _, e := range f.Envs {
				if !slices.ContainsFunc(out, func(v [2]string) bool { return v[0] == e }) {
					out = append(out, [2]string{e, "As --" + f.Name + ": " + f.Help})
				}
			}
		}
		for _, c := range n.Children {
			visit(c)
		}
	}
	visit(app.Node)
	slices.SortFunc(out, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
	return out
}

func usageOf(leaf *kong.Node) string {
	var names []string
	for n := leaf; n.Parent != nil; n = n.Parent {
		names = append([]string{n.Name}, names...)
	}
	out := strings.Join(names, " ")
	for _, a := range leaf.Positional {
		out += " " + a.Summary()
	}
	return out
}

// roff escapes what the man macros would take for an order.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}
