package main

import (
	"context"
	"fmt"
	"os/user"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/access"
	"github.com/nearmiss/nearmiss/stream/registry"
)

// userName is who gives orders from this terminal.
func userName() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return "nearmiss"
}

type markCmd struct {
	Detector string `arg:"" help:"Detector whose event is meant."`
	Verdict  string `arg:"" enum:"normal,anomalous,seen,withdrawn" help:"normal: a false alarm; anomalous: a true one; seen: checked, nothing to learn; withdrawn: the verdict before is taken back."`
	Event    string `arg:"" optional:"" help:"Id of the event, as watch --json shows it."`
	Camera   string `placeholder:"C" help:"Instead of the event: the camera …"`
	Frame    string `placeholder:"F" help:"… and its frame."`
	Note     string `placeholder:"TEXT" help:"Kept with the feedback."`
	serverFlags
}

func (*markCmd) Help() string {
	return "A frame marked normal joins the normals and enters the bank of the active release at once, without training: the same false alarm is not raised twice. " +
		"One marked anomalous becomes a labelled anomaly, for the gate that new releases must pass. " +
		"The last verdict on an event wins, and undoes what the ones before it did.\n\n" +
		examples(
			"nearmiss mark bolts normal 6f1c2a0e9b7d4c55a1b2c3d4e5f60718",
			"nearmiss mark bolts anomalous --camera line1 --frame mb3k9-1042",
			"nearmiss mark bolts withdrawn 6f1c2a0e9b7d4c55a1b2c3d4e5f60718",
		)
}

func (c *markCmd) Run(ctx context.Context, o *output) error {
	f := stream.Feedback{
		Detector: c.Detector, Verdict: c.Verdict, Event: c.Event, Camera: c.Camera, Frame: c.Frame, Note: c.Note,
	}
	if err := f.Validate(); err != nil {
		return usageError{oneLine(err)}
	}
	return c.withClient("mark", o, func(control *stream.Client) error {
		if err := control.Feedback(ctx, f); err != nil {
			return err
		}
		return o.printf("marked %s\n", c.Verdict)
	})
}

type statusCmd struct {
	Dead    int           `placeholder:"N" help:"Also show the newest N dead letters."`
	Workers time.Duration `default:"500ms" placeholder:"TIME" help:"How long to wait for the workers' answers."`
	JSON    bool          `name:"json" help:"Print one JSON object."`
	serverFlags
}

func (*statusCmd) Help() string {
	return examples("nearmiss status", "nearmiss status --dead 5")
}

func (c *statusCmd) Run(ctx context.Context, o *output) error {
	return c.withJetStream("status", o, func(js jetstream.JetStream) error {
		certs, err := c.expiries(js.Conn())
		if err != nil {
			return err
		}
		return c.run(ctx, stream.NewInstallation(js, c.names()), c.client(js.Conn()), certs, o)
	})
}

func (c *statusCmd) run(ctx context.Context, in *stream.Installation, client *stream.Client, certs []access.Expiry, o *output) error {
	st, err := in.Status(ctx)
	if err != nil {
		return err
	}
	workers, err := client.Workers(ctx, c.Workers)
	if err != nil {
		return err
	}
	var dead []stream.DeadLetter
	if c.Dead > 0 {
		if dead, err = in.DeadLetters(ctx, c.Dead); err != nil {
			return err
		}
	}
	if c.JSON {
		return o.JSON(struct {
			stream.Status
			Workers []stream.WorkerStatus `json:"workers"`
			Dead    []stream.DeadLetter   `json:"dead,omitempty"`
			TLS     []access.Expiry       `json:"tls,omitempty"`
		}{st, workers, dead, certs})
	}
	detectors, err := in.Detectors(ctx)
	if err != nil {
		return err
	}
	var b strings.Builder
	if st.Full != "" {
		fmt.Fprintf(&b, "no frames are taken: %s\n", st.Full)
	}
	for _, d := range st.Detectors {
		release := "no release"
		switch {
		case d.Learning != nil:
			release = fmt.Sprintf("learning %d/%d", d.Learning.Normals, d.Learning.Frames)
		case d.Release != "":
			release = fmt.Sprintf("release %.12s since %s", d.Release, d.PromotedAt.Local().Format(time.DateTime))
		}
		fmt.Fprintf(&b, "%-24s %s, %d frames wait, %d normals, %d labelled anomalies\n", d.Detector, release, d.Waiting, d.Normals, d.Anomalies)
		if d.Release != "" {
			conf, err := detectors.Get(ctx, d.Detector)
			if err != nil {
				conf = stream.Detector{Name: d.Detector}
			}
			if decides, err := inForce(ctx, in, client, conf, 0); err == nil {
				b.WriteString(decides.text("  "))
			}
		}
		if d.Candidate != "" {
			fmt.Fprintf(&b, "  candidate %.12s scores alongside\n", d.Candidate)
		}
		if d.LastJob != nil {
			fmt.Fprintf(&b, "  last job: %s\n", jobText(*d.LastJob))
		}
		if j := d.LastJob; d.Release == "" && j != nil && (j.State == stream.JobFailed || j.State == stream.JobCancelled) {
			fmt.Fprintf(&b, "  frames wait for a release: correct the cause, then nearmiss train %s\n", d.Detector)
		}
		for _, r := range d.Retrain {
			fmt.Fprintf(&b, "  %s\n", r)
		}
	}
	for name, n := range st.Unserved {
		fmt.Fprintf(&b, "%-24s does not exist, and %d frames wait for it: create it, or correct the camera\n", name, n)
	}
	for _, l := range st.Lost {
		why := "there was no room, and its client got no error"
		if l.Code == stream.LostBadTopic {
			why = "no stream takes this topic"
		}
		fmt.Fprintf(&b, "%d frames published on %q are lost: %s\n", l.Frames, l.Subject, why)
	}
	rates := map[string]float64{}
	for _, w := range workers {
		for _, r := range w.Cameras {
			rates[r.Detector+"/"+r.Camera] += r.PerSecond
		}
	}
	for _, cam := range st.Cameras {
		name := cam.Detector + "/" + cam.Camera
		fmt.Fprintf(&b, "  camera %s: last frame %s, %.3g frames a second", name, cam.LastFrame.Local().Format(time.DateTime), rates[name])
		if cam.Silent {
			b.WriteString(", silent")
		}
		if !cam.UnchangedSince.IsZero() {
			fmt.Fprintf(&b, ", the same picture since %s: is it frozen?", cam.UnchangedSince.Local().Format(time.DateTime))
		}
		b.WriteString("\n")
	}
	for _, u := range st.Unreadable {
		fmt.Fprintf(&b, "%s\n", u.Error())
	}
	for _, w := range workers {
		fmt.Fprintf(&b, "%-24s scored %d, anomalies %d, rejected %d, serves %d detectors\n", w.Name, w.Scored, w.Anomalies, w.Rejected, len(w.Serving))
		for _, s := range w.Shadows {
			fmt.Fprintf(&b, "  %s: candidate %.12s on %d frames: both call %d anomalous, only the active release %d, only the candidate %d\n",
				s.Detector, s.Candidate, s.Frames, s.Both, s.OnlyActive, s.OnlyShadow)
		}
		for name, digest := range w.Refused {
			fmt.Fprintf(&b, "  %s: release %.12s was refused\n", name, digest)
		}
	}
	if len(workers) == 0 {
		fmt.Fprintln(&b, "no worker answers")
	}
	fmt.Fprintf(&b, "%d events and %d dead letters are stored, %d jobs are queued or running\n", st.Events, st.DeadLetters, st.Jobs)
	for _, e := range certs {
		fmt.Fprintf(&b, "certificate %s is good until %s, %d days", e.Name, e.NotAfter.Local().Format(time.DateOnly), e.Days(time.Now()))
		if e.Soon(time.Now()) {
			b.WriteString(": renew it (nearmiss tls renew)")
		}
		b.WriteString("\n")
	}
	for _, d := range dead {
		fmt.Fprintf(&b, "  %s  %s  %s: %s\n", d.At.Local().Format(time.DateTime), d.Subject, d.Code, d.Reason)
	}
	return o.printf("%s", b.String())
}

type collectCmd struct {
	Keep   int           `default:"5" help:"Releases of a detector that stay for rollback, besides those in use."`
	Grace  time.Duration `default:"1h" help:"What is younger stays."`
	DryRun bool          `help:"Remove nothing, say what would go."`
	JSON   bool          `name:"json" help:"Print one JSON object."`
	serverFlags
}

func (*collectCmd) Help() string {
	return "Releases that are active, candidates or pinned are never removed. Trainers collect by themselves once an hour, what is older than a week.\n\n" +
		examples("nearmiss collect --dry-run", "nearmiss collect --keep 2 --grace 24h")
}

func (c *collectCmd) Run(ctx context.Context, o *output) error {
	opts := registry.CollectOptions{Keep: c.Keep, Grace: c.Grace, DryRun: c.DryRun}
	if c.Keep == 0 {
		opts.Keep = -1 // none
	}
	if c.Grace == 0 {
		opts.Grace = -1
	}
	return c.withClient("collect", o, func(control *stream.Client) error {
		got, err := control.Collect(ctx, opts)
		if err != nil {
			return err
		}
		verb := "removed"
		if c.DryRun {
			verb = "would remove"
		}
		return o.result(c.JSON, got, fmt.Sprintf("%s %d releases, %d files (%d bytes), %d images and %d sets of pictures of anomalies, %d checkpoints; %d releases stay",
			verb, len(got.Releases), got.Files, got.Bytes, got.Evidence, got.Pictures, got.Checkpoints, got.Kept))
	})
}
