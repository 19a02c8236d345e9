package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nearmiss/nearmiss/stream"
)

type watchCmd struct {
	Detector string        `arg:"" optional:"" help:"Detector to watch (default: all)."`
	Kind     string        `placeholder:"KIND" help:"Only events of this kind: anomaly, rejected, drift or release."`
	Since    time.Duration `placeholder:"AGO" help:"Begin with the events of this long ago, for instance 1h."`
	Durable  string        `placeholder:"NAME" help:"Remember the position under this name, and continue there the next time."`
	Ack      bool          `help:"With --durable, acknowledge an event when its reader writes a line to standard input, not when it is printed; the line nak brings it again."`
	Live     bool          `help:"Print events as they are published and nothing else: for identities that may only listen."`
	Scores   bool          `help:"Print the score of every frame instead of the events."`
	JSON     bool          `name:"json" help:"Print one JSON object a line."`
	serverFlags
}

func (*watchCmd) Help() string {
	return examples(
		"nearmiss watch",
		"nearmiss watch bolts --kind anomaly --since 24h --json",
		"nearmiss watch bolts --durable alarm-lamp --json",
		"coproc nearmiss watch bolts --durable lamp --ack --json; while read -r e <&${COPROC[0]}; do lamp \"$e\" && echo ok >&${COPROC[1]}; done",
		"nearmiss watch bolts --durable lamp --nkey lamp.nk --js-api-prefix NM.API   # a subscriber of nearmiss users",
	)
}

func (c *watchCmd) Run(ctx context.Context, o *output) error {
	nc, err := c.connect("watch", o)
	if err != nil {
		return err
	}
	defer nc.Close()
	if c.Scores {
		var failed error
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		err := stream.WatchScores(ctx, nc, c.names(), c.Detector, func(e stream.Event) {
			if failed = c.print(o, e); failed != nil {
				cancel()
			}
		})
		return cmp.Or(failed, err)
	}
	w := stream.WatchConfig{Names: c.names(), Detector: c.Detector, Kind: c.Kind, Durable: c.Durable, Live: c.Live}
	if c.Ack && c.Durable == "" {
		return usageError{errors.New("--ack needs --durable NAME: without it nothing is remembered")}
	}
	if c.Live && (c.Durable != "" || c.Since > 0) {
		return usageError{errors.New("--live prints what comes from now on: leave out --durable and --since")}
	}
	if c.Since > 0 {
		w.Since = time.Now().Add(-c.Since)
	}
	if c.Durable == "" {
		return stream.Watch(ctx, nc, w, o.Log, func(_ context.Context, e stream.Event) error { return c.print(o, e) })
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	err = stream.Watch(ctx, nc, w, o.Log, c.deliver(o, stop))
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

// errReaderGone: nobody reads the events any more. What was not seen comes again.
var errReaderGone = errors.New("the events' reader is gone; what it has not acknowledged comes again at the next watch")

var errRefused = errors.New("its reader gave it back")

// deliver writes an event of a durable subscription, which the broker takes for
// handled when it returns nil: once the line is on its way to whoever reads it, or
// with --ack when the reader says so.
func (c *watchCmd) deliver(o *output, stop context.CancelCauseFunc) func(context.Context, stream.Event) error {
	var answers chan string
	if c.Ack {
		answers = make(chan string)
		go func() {
			defer stop(errReaderGone) // also where no event is at hand
			defer close(answers)
			for in := bufio.NewScanner(o.in()); in.Scan(); {
				answers <- in.Text()
			}
		}()
	}
	return func(ctx context.Context, e stream.Event) error {
		err := c.print(o, e)
		if err == nil {
			err = o.flush()
		}
		if err != nil {
			stop(fmt.Errorf("%w: %w", errReaderGone, err))
			return err
		}
		if answers == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case answer, ok := <-answers:
			switch {
			case !ok:
				stop(errReaderGone)
				return errReaderGone
			case strings.EqualFold(strings.TrimSpace(answer), "nak"):
				return errRefused
			}
			return nil
		}
	}
}

func (c *watchCmd) print(o *output, e stream.Event) error {
	return o.result(c.JSON, newEventLine(e), eventText(e))
}

// eventLine is the JSON of an event on one line: its data, with its id, kind
// and ground truth, which travel in headers.
type eventLine struct {
	ID   string `json:"id,omitempty"`   // of the CloudEvent; a score has none
	Kind string `json:"kind,omitempty"` // anomaly, rejected, …; a score has none
	stream.Event
	Truth json.RawMessage `json:"truth,omitempty"` // of a synthetic frame
}

func newEventLine(e stream.Event) eventLine {
	l := eventLine{ID: e.ID, Kind: e.Kind, Event: e}
	if json.Valid([]byte(e.Truth)) {
		l.Truth = json.RawMessage(e.Truth)
	}
	return l
}

// eventText is an event, or a score, for people: one line.
func eventText(e stream.Event) string {
	var b strings.Builder
	at := e.CapturedAt
	if at.IsZero() {
		at = e.ScoredAt
	}
	fmt.Fprintf(&b, "%s  %s", at.Local().Format("15:04:05.0"), e.Detector)
	if e.FrameID == "" { // about the detector, not about a frame
		fmt.Fprintf(&b, "  %s", e.Kind)
		if e.Release != "" {
			fmt.Fprintf(&b, " %.12s", e.Release)
		}
		fmt.Fprintf(&b, ": %s", e.Reason)
		return b.String()
	}
	fmt.Fprintf(&b, "/%s  ", e.Camera)
	switch {
	case e.Code != "":
		fmt.Fprintf(&b, "rejected: %s: %s", e.Code, e.Reason)
	case e.Score != nil:
		anomalous := e.Anomalous != nil && *e.Anomalous
		sign := "≤"
		if e.Threshold != nil && *e.Score > *e.Threshold {
			sign = ">"
		}
		fmt.Fprintf(&b, "%-7s  score %.4g", word(anomalous), *e.Score)
		if e.Threshold != nil {
			fmt.Fprintf(&b, " %s threshold %.4g", sign, *e.Threshold)
		}
		if e.PValue != nil {
			fmt.Fprintf(&b, "  p %.3g", *e.PValue)
		}
	}
	b.WriteString(whereText(e.Regions))
	fmt.Fprintf(&b, "  frame %s", e.FrameID)
	if e.Source != "" {
		fmt.Fprintf(&b, " (%s)", e.Source)
	}
	if e.NoPictures != "" {
		fmt.Fprintf(&b, "  no pictures: %s", e.NoPictures)
	}
	if e.ID != "" { // what mark wants
		fmt.Fprintf(&b, "  id %s", e.ID)
	}
	return b.String()
}
