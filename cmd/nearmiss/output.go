package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/nearmiss/nearmiss/training"
)

// output is what subcommands write to: results on Out, progress and logs on Err.
type output struct {
	Out io.Writer
	Err io.Writer
	Log zerolog.Logger

	screen io.Writer // Err as it is, for progress bars; nil: there are none

	stdin io.Reader // for tests; nil: the process's

	mu sync.Mutex // one JSON line at a time
}

// JSON writes v as one line. Field names are part of the command's contract.
func (o *output) JSON(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	_, err = o.Out.Write(append(b, '\n'))
	return err
}

func (o *output) in() io.Reader {
	if o.stdin != nil {
		return o.stdin
	}
	return os.Stdin
}

// flush makes sure that what was written to a file is there.
func (o *output) flush() error {
	e, ok := o.Out.(*edge)
	if !ok {
		return nil
	}
	f, ok := e.w.(*os.File)
	if !ok {
		return nil
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil // a pipe has what was written
	}
	return f.Sync()
}

// print writes a line, or several, for people.
func (o *output) print(text string) error {
	_, err := fmt.Fprintln(o.Out, text)
	return err
}

// printf is print of what a format makes, which ends its last line itself.
func (o *output) printf(format string, a ...any) error {
	_, err := fmt.Fprintf(o.Out, format, a...)
	return err
}

// result prints one result: as JSON, or as the text for people.
func (o *output) result(asJSON bool, v any, text string) error {
	if asJSON {
		return o.JSON(v)
	}
	return o.print(text)
}

// list prints results, one a line: as JSON, or as the text for people.
func list[T any](o *output, asJSON bool, all []T, text func(T) string) error {
	for _, v := range all {
		line := ""
		if !asJSON {
			line = text(v)
		}
		if err := o.result(asJSON, v, line); err != nil {
			return err
		}
	}
	return nil
}

// newLogger writes to w: text on a terminal and JSON elsewhere, unless format
// says otherwise.
func newLogger(w io.Writer, level, format string) zerolog.Logger {
	l, err := zerolog.ParseLevel(level)
	if err != nil {
		l = zerolog.InfoLevel
	}
	tty := isTerminal(w)
	w = zerolog.SyncWriter(w)
	if format == "text" || format == "auto" && tty {
		// NO_COLOR: https://no-color.org
		w = zerolog.ConsoleWriter{Out: w, TimeFormat: time.TimeOnly, NoColor: !tty || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb"}
	}
	return zerolog.New(logEdge{w}).Level(l).With().Timestamp().Logger()
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// progress shows how far a long step is: a bar on a terminal, and elsewhere a log
// line in a while. Its methods may be called from several goroutines.
type progress struct {
	o     *output
	what  string
	bytes bool

	mu       sync.Mutex
	bar      *progressbar.ProgressBar
	loggedAt time.Time // when the last log line was due
}

// logInterval is how often a step that takes long is logged where there is no
// terminal; one that takes less is not.
var logInterval = 10 * time.Second

// progress starts a bar for counted things; the total comes with the first report.
func (o *output) progress(what string) *progress { return &progress{o: o, what: what} }

// download starts a bar for bytes.
func (o *output) download(what string) *progress { return &progress{o: o, what: what, bytes: true} }

// report sets the bar; a total of 0 or less means that it is not known.
func (p *progress) report(done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !isTerminal(p.o.screen) {
		p.log(done, total)
		return
	}
	if total <= 0 {
		total = -1
	}
	if p.bar == nil {
		p.bar = progressbar.NewOptions64(total,
			progressbar.OptionSetWriter(p.o.screen),
			progressbar.OptionSetDescription(p.what),
			progressbar.OptionSetWidth(24),
			progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionShowCount(),
			progressbar.OptionShowBytes(p.bytes),
			progressbar.OptionClearOnFinish(),
		)
	}
	if p.bar.GetMax64() != total {
		p.bar.ChangeMax64(total)
	}
	_ = p.bar.Set64(done)
}

// log writes a line if none was written for a while. The caller holds mu.
func (p *progress) log(done, total int64) {
	now := time.Now()
	if p.loggedAt.IsZero() {
		p.loggedAt = now
	}
	if now.Sub(p.loggedAt) < logInterval {
		return
	}
	p.loggedAt = now
	e := p.o.Log.Info().Str("step", p.what).Int64("done", done)
	if total > 0 {
		e = e.Int64("total", total)
	}
	e.Msg("progress")
}

// stage is report for steps that say what they are doing.
func (p *progress) stage(what string, done, total int64) {
	what = printable(what)
	p.mu.Lock()
	changed := p.what != what
	p.what = what
	if changed && p.bar != nil {
		p.bar.Describe(what)
	}
	p.mu.Unlock()
	p.report(done, total)
}

// learning is stage for a training.
func (p *progress) learning(t training.Progress) {
	p.stage(stageText(t.Step, t.Loss, t.Frechet, t.Left), int64(t.Done), int64(t.Total))
}

// close removes the bar from the screen.
func (p *progress) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		_ = p.bar.Clear()
		p.bar = nil
	}
}

// examples is the closing part of a command's --help.
func examples(lines ...string) string {
	return "Examples:\n\n  " + strings.Join(lines, "\n  ")
}

// ask puts a question; anything but yes means no.
func ask(in io.Reader, out io.Writer, question string) bool {
	fmt.Fprint(out, printable(question), " [y/N] ")
	answer, _ := bufio.NewReader(in).ReadString('\n')
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return true
	}
	return false
}
