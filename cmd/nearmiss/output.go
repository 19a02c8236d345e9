package main

import (
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
)

// output is what subcommands write to: results on Out, progress and logs on Err.
type output struct {
	Out io.Writer
	Err io.Writer
	Log zerolog.Logger

	screen io.Writer // Err as it is, for progress bars; nil: there are none

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

// say prints one result: as JSON, or as the text for people.
func (o *output) say(asJSON bool, v any, text string) error {
	if asJSON {
		return o.JSON(v)
	}
	_, err := fmt.Fprintln(o.Out, text)
	return err
}

// list prints results, one a line: as JSON, or as the text for people.
func list[T any](o *output, asJSON bool, all []T, text func(T) string) error {
	for _, v := range all {
		line := ""
		if !asJSON {
			line = text(v)
		}
		if err := o.say(asJSON, v, line); err != nil {
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
		w = zerolog.ConsoleWriter{Out: w, TimeFormat: time.TimeOnly}
	}
	return zerolog.New(logEdge{w}).Level(l).With().Timestamp().Logger()
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// progress shows how far a long step is. On anything but a terminal it shows
// nothing. Its methods may be called from several goroutines.
type progress struct {
	o     *output
	what  string
	bytes bool

	mu  sync.Mutex
	bar *progressbar.ProgressBar
}

// progress starts a bar for counted things; the total comes with the first report.
func (o *output) progress(what string) *progress { return &progress{o: o, what: what} }

// download starts a bar for bytes.
func (o *output) download(what string) *progress { return &progress{o: o, what: what, bytes: true} }

// report sets the bar; a total of 0 or less means that it is not known.
func (p *progress) report(done, total int64) {
	if !isTerminal(p.o.screen) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
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
