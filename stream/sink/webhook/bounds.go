package webhook

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/template"
	"text/template/parse"
	"time"
)

// A template is written by who may configure sinks, and runs in the process that
// serves all of them. It could loop without writing anything
// ({{range 1000000000}}{{end}}), call itself twice at each of a hundred levels, or
// double a text forty times. What it executes, reads and makes is counted: no clock
// is asked, so that what works works on a machine with much else to do, too.
const (
	maxExecuted = 2 << 20 // bytes of the template, each time that it is executed
	maxRead     = 8 << 20 // bytes of texts that are handed to functions
	maxArgs     = 100     // of one call
)

var (
	errExecuted = fmt.Errorf("the template loops: more than %d bytes of it are executed", maxExecuted)
	errRead     = fmt.Errorf("the template's functions read more than %d bytes", maxRead)
	errMade     = fmt.Errorf("the template's functions make more than %d bytes", maxBody)
	errFormat   = errors.New("printf in a template takes no widths (*) and no numbers ([1]) of arguments")
)

// stepName is the function that counts what is executed.
const stepName = "nearmiss_step"

// countSteps has every list of nodes (a range's body, a branch, a template) begin
// with a count of its length.
func countSteps(t *template.Template) error {
	for _, d := range t.Templates() {
		if d.Tree != nil {
			if err := countIn(d.Root); err != nil {
				return err
			}
		}
	}
	return nil
}

func countIn(l *parse.ListNode) error {
	if l == nil {
		return nil
	}
	length := 16 // an empty list takes time, too
	for _, n := range l.Nodes {
		var b *parse.BranchNode
		switch n := n.(type) {
		case *parse.IfNode:
			b = &n.BranchNode
		case *parse.RangeNode:
			b = &n.BranchNode
		case *parse.WithNode:
			b = &n.BranchNode
		default:
			length += len(n.String())
			continue
		}
		length += len(b.Pipe.String())
		if err := errors.Join(countIn(b.List), countIn(b.ElseList)); err != nil {
			return err
		}
	}
	made, err := parse.Parse("step", fmt.Sprintf("{{%s %d}}", stepName, length), "", "", map[string]any{stepName: true})
	if err != nil {
		return err
	}
	l.Nodes = append(made["step"].Root.Nodes, l.Nodes...)
	return nil
}

// meter counts one execution.
type meter struct{ executed, read, made int }

func (m *meter) step(n int) (string, error) {
	if m.executed += n; m.executed > maxExecuted {
		return "", errExecuted
	}
	return "", nil
}

// reads counts what a function is called with.
func (m *meter) reads(args ...any) error {
	if len(args) > maxArgs {
		return fmt.Errorf("a call in the template has more than %d arguments", maxArgs)
	}
	for _, a := range args {
		switch a := a.(type) {
		case string:
			m.read += len(a)
		case []byte:
			m.read += len(a)
		}
	}
	if m.read > maxRead {
		return errRead
	}
	return nil
}

func (m *meter) makes(s string) (string, error) {
	if m.made += len(s); m.made > maxBody {
		return "", errMade
	}
	return s, nil
}

// sprints is f, counted.
func (m *meter) sprints(f func(...any) string) func(...any) (string, error) {
	return func(args ...any) (string, error) {
		if err := m.reads(args...); err != nil {
			return "", err
		}
		return m.makes(f(args...))
	}
}

// functions of templates, counted: our own, and Go's that make texts.
func (m *meter) functions() template.FuncMap {
	return template.FuncMap{
		stepName: m.step,
		"json": func(v any) (string, error) {
			if err := m.reads(v); err != nil {
				return "", err
			}
			b, err := json.Marshal(v)
			if err != nil {
				return "", err
			}
			return m.makes(string(b))
		},
		"date": func(layout string, t time.Time) (string, error) {
			return m.sprints(func(...any) string { return t.Format(layout) })(layout)
		},
		"ratio": func(v float64) string { return fmt.Sprintf("%.1f×", v) },
		"short": func(n int, s string) (string, error) {
			return s[:cut(n, s)], m.reads(s)
		},
		"print": m.sprints(fmt.Sprint), "println": m.sprints(fmt.Sprintln), "html": m.sprints(template.HTMLEscaper),
		"js": m.sprints(template.JSEscaper), "urlquery": m.sprints(template.URLQueryEscaper),
		"printf": func(format string, args ...any) (string, error) {
			if err := errors.Join(m.reads(format), m.reads(args...), checkFormat(format)); err != nil {
				return "", err
			}
			return m.makes(fmt.Sprintf(format, args...))
		},
	}
}

// cut is how many bytes the first n characters of s have.
func cut(n int, s string) int {
	if n < 0 {
		return len(s)
	}
	for i := range s {
		if n == 0 {
			return i
		}
		n--
	}
	return len(s)
}

// checkFormat refuses formats whose result is long though they are short.
func checkFormat(format string) error {
	total := 0
	for _, verb := range strings.Split(format, "%")[1:] {
		n := 0
	flags:
		for _, c := range verb {
			switch {
			case c >= '0' && c <= '9':
				n = min(n*10+int(c-'0'), maxBody+1)
			case c == '*' || c == '[':
				return errFormat
			case strings.ContainsRune("+-# .", c):
				total, n = min(total+n, maxBody+1), 0
			default:
				break flags
			}
		}
		if total += n; total > maxBody {
			return errMade
		}
	}
	return nil
}
