package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/registry"
)

type releasesCmd struct {
	Detector string `arg:"" help:"Detector whose releases are meant."`
	Action   string `arg:"" optional:"" enum:"list,show,publish,copy,promote,rollback,shadow,unshadow,pin,unpin" default:"list" help:"list (default), show, publish, copy (to another installation), promote, rollback, shadow (have a candidate score alongside), unshadow, pin (never collect) or unpin."`
	Release  string `arg:"" optional:"" help:"publish: the release folder. show, copy, promote: digest of the release, or its first characters (show, copy without one: the active release)."`
	Promote  bool   `help:"publish, copy: also make the release the active one."`
	To       string `placeholder:"URL" help:"copy: NATS server of the other installation."`
	ToConfig string `name:"to-config" type:"existingfile" placeholder:"FILE" help:"copy: configuration that says who this machine is there."`
	Normals  string `type:"existingdir" placeholder:"DIR" help:"publish: folder of the images that it was learnt from (default: where they were then). They become the normals of a detector that has none."`
	Reason   string `placeholder:"TEXT" help:"promote, rollback: why; kept in the history."`
	JSON     bool   `name:"json" help:"Print one JSON object a line."`
	serverFlags
}

func (*releasesCmd) Help() string {
	return "Workers take the active release into service between two batches of frames. A release that fails its own check " +
		"images is refused, and the one before goes on serving. Publishing creates the detector where there is none, and gives one without normals those that the release was learnt from.\n\n" +
		examples(
			"nearmiss releases bolts",
			"nearmiss releases bolts publish releases/bolts --promote",
			"nearmiss releases bolts promote 3f9a41",
			"nearmiss releases bolts copy 3f9a41 --to nats://edge1.example.org:4222 --promote",
			"nearmiss releases bolts rollback --reason 'too many false alarms'",
		)
}

func (c *releasesCmd) Run(ctx context.Context, o *output) error {
	if err := stream.CheckToken("detector", c.Detector); err != nil {
		return usageError{err}
	}
	switch {
	case c.Action == "publish" && c.Release == "":
		return usageError{errors.New("publish: name the release folder")}
	case (c.Action == "copy") != (c.To != ""):
		return usageError{errors.New("--to names the installation that copy brings a release to, and nothing else does")}
	case c.Action == "promote" && c.Release == "":
		return usageError{errors.New("promote: name the release by its digest, or the first characters of it")}
	case (c.Action == "shadow" || c.Action == "pin" || c.Action == "unpin") && c.Release == "":
		return usageError{errors.New(c.Action + ": name the release by its digest, or the first characters of it")}
	}
	return c.withInstallation("releases", o, func(in *stream.Installation, control *stream.Client) error {
		r, err := in.Registry(ctx)
		if err != nil {
			return err
		}
		switch c.Action {
		case "list":
			return c.list(ctx, o, r)
		case "show":
			return c.show(ctx, o, r)
		case "publish":
			return c.publish(ctx, o, in, control)
		case "copy":
			return c.copy(ctx, o, in)
		default:
			return c.change(ctx, o, in, control)
		}
	})
}

// change asks the control for what the action is.
func (c *releasesCmd) change(ctx context.Context, o *output, in *stream.Installation, control *stream.Client) error {
	q := stream.PromoteRequest{Detector: c.Detector, Reason: c.Reason}
	switch c.Action {
	case "rollback":
		p, err := control.Rollback(ctx, q)
		if err != nil {
			return err
		}
		return c.printPointer(o, p)
	case "unshadow":
		return control.Shadow(ctx, q)
	}
	r, err := in.Registry(ctx)
	if err != nil {
		return err
	}
	if q.Release, err = r.Resolve(ctx, c.Detector, c.Release); err != nil {
		return err
	}
	switch c.Action {
	case "promote":
		rel, err := r.Show(ctx, q.Release)
		if err != nil {
			return err
		}
		if err := c.ensureDetector(ctx, o, in, control, rel.Manifest); err != nil {
			return err
		}
		return c.promote(ctx, o, control, q)
	case "shadow":
		err = control.Shadow(ctx, q)
	default: // pin and unpin
		err = control.Pin(ctx, stream.PinRequest{Detector: c.Detector, Release: q.Release, Unpin: c.Action == "unpin"})
	}
	if err != nil {
		return err
	}
	return o.printf("%s %s\n", c.Action, q.Release)
}

func (c *releasesCmd) list(ctx context.Context, o *output, r *registry.Registry) error {
	all, err := r.List(ctx, c.Detector)
	if err != nil {
		return err
	}
	if err := list(o, c.JSON, all, func(rel registry.Release) string {
		mark := " "
		if rel.Active {
			mark = "*"
		}
		return fmt.Sprintf("%s %.12s  stored %s", mark, rel.Digest, rel.StoredAt.Local().Format(time.DateTime))
	}); err != nil {
		return err
	}
	if len(all) == 0 && !c.JSON {
		fmt.Fprintf(o.Err, "detector %s has no releases: publish one with nearmiss releases %s publish DIR\n", c.Detector, c.Detector)
	}
	return nil
}

// named is the digest of the release that the command names, or of the active one.
func (c *releasesCmd) named(ctx context.Context, r *registry.Registry) (string, error) {
	if c.Release != "" {
		return r.Resolve(ctx, c.Detector, c.Release)
	}
	p, err := r.Active(ctx, c.Detector)
	return p.Release, err
}

// copy brings a release from one installation to another, which takes the files that
// it does not have.
func (c *releasesCmd) copy(ctx context.Context, o *output, in *stream.Installation) error {
	there := serverFlags{Server: c.To, Prefix: c.Prefix}
	if c.ToConfig != "" {
		conf, err := loadConfig(c.ToConfig, nil)
		if err != nil {
			return usageError{err}
		}
		there.credentialFlags = conf.Client.flags()
	}
	r, err := in.Registry(ctx)
	if err != nil {
		return err
	}
	digest, err := c.named(ctx, r)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "nearmiss-copy-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	into := *c
	if into.Release, err = in.Fetch(ctx, digest, tmp); err != nil {
		return err
	}
	return there.withInstallation("releases", o, func(in *stream.Installation, control *stream.Client) error {
		return into.publish(ctx, o, in, control)
	})
}

func (c *releasesCmd) show(ctx context.Context, o *output, r *registry.Registry) error {
	digest, err := c.named(ctx, r)
	if err != nil {
		return err
	}
	rel, err := r.Show(ctx, digest)
	if err != nil {
		return err
	}
	return o.result(c.JSON, struct {
		registry.Release
		Manifest json.RawMessage `json:"manifest"`
	}{rel, rel.Manifest}, fmt.Sprintf("%s\n%s", rel.Digest, rel.Manifest))
}

func (c *releasesCmd) publish(ctx context.Context, o *output, in *stream.Installation, control *stream.Client) error {
	r, err := in.Registry(ctx)
	if err != nil {
		return err
	}
	digest, err := r.Put(ctx, c.Detector, c.Release)
	if err != nil {
		return err
	}
	rel, err := r.Show(ctx, digest)
	if err != nil {
		return err
	}
	if err := c.ensureDetector(ctx, o, in, control, rel.Manifest); err != nil {
		return err
	}
	if err := c.bringNormals(ctx, o, in.Normals()); err != nil {
		return err
	}
	if c.Promote {
		return c.promote(ctx, o, control, stream.PromoteRequest{Detector: c.Detector, Release: digest, Reason: c.Reason})
	}
	return o.result(c.JSON, map[string]any{"detector": c.Detector, "release": digest, "active": false},
		fmt.Sprintf("stored %s; make it the active one with: nearmiss releases %s promote %.12s", digest, c.Detector, digest))
}

func (c *releasesCmd) promote(ctx context.Context, o *output, control *stream.Client, q stream.PromoteRequest) error {
	p, err := control.Promote(ctx, q)
	if err != nil {
		return err
	}
	return c.printPointer(o, p)
}

func (c *releasesCmd) printPointer(o *output, p registry.Pointer) error {
	return o.result(c.JSON, p, fmt.Sprintf("%s now uses release %s", p.Detector, p.Release))
}
