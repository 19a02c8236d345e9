package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
	"github.com/nearmiss/nearmiss/stream"
)

type evidenceCmd struct {
	List evidenceListCmd `cmd:"" help:"List the events of which pictures are kept."`
	Get  evidenceGetCmd  `cmd:"" help:"Write the pictures of an event into a folder."`
}

func (*evidenceCmd) Help() string {
	return "Pictures are kept for as long, and as many, as nearmiss detector set --retention and --evidence-mib say; --no-evidence keeps none.\n\n" +
		examples(
			"nearmiss evidence list bolts",
			"nearmiss evidence get bolts 3f1c0c0f9f0a4b7e8d2a6b5c4d3e2f10 --out alarm/",
			"nearmiss evidence get bolts --last --out alarm/",
		)
}

type evidenceListCmd struct {
	Detector string `arg:"" optional:"" help:"Detector whose evidence is meant (default: all)."`
	JSON     bool   `name:"json" help:"Print one JSON object a line."`
	serverFlags
}

func (c *evidenceListCmd) Run(ctx context.Context, o *output) error {
	return c.withInstallation("evidence", o, func(in *stream.Installation, _ *stream.Client) error {
		all, err := in.ListEvidence(ctx, c.Detector)
		if err != nil {
			return err
		}
		return list(o, c.JSON, all, func(e stream.EvidenceInfo) string {
			return fmt.Sprintf("%s  %s  %s/%s  score %.4g  frame %s  %d bytes", e.Event, e.StoredAt.Local().Format(time.DateTime), e.Detector, e.Camera, e.Score, e.FrameID, e.Bytes)
		})
	})
}

type evidenceGetCmd struct {
	Detector string `arg:"" help:"Detector that raised the event."`
	Event    string `arg:"" optional:"" help:"Id of the event, as list and watch --json show it."`
	Last     bool   `help:"Take the newest."`
	Out      string `short:"o" required:"" type:"path" placeholder:"DIR" help:"Folder to write to."`
	JSON     bool   `name:"json" help:"Print one JSON object."`
	serverFlags
}

func (c *evidenceGetCmd) Run(ctx context.Context, o *output) error {
	if (c.Event == "") != c.Last {
		return usageError{errors.New("give the id of an event, or --last")}
	}
	return c.withInstallation("evidence", o, func(in *stream.Installation, _ *stream.Client) error {
		event := c.Event
		if c.Last {
			all, err := in.ListEvidence(ctx, c.Detector)
			if err != nil {
				return err
			}
			if len(all) == 0 {
				return fmt.Errorf("detector %s has no evidence", c.Detector)
			}
			event = all[len(all)-1].Event
		}
		e, err := in.GetEvidence(ctx, c.Detector, event)
		if errors.Is(err, stream.ErrNotFound) {
			return fmt.Errorf("%w: no pictures were made of it, or their time is over", err)
		}
		if err != nil {
			return err
		}
		if err := os.MkdirAll(c.Out, 0o755); err != nil {
			return err
		}
		files := []string{}
		for _, p := range e.Pictures {
			to := filepath.Join(c.Out, p.Name)
			if err := renameio.WriteFile(to, p.Data, 0o644); err != nil {
				return err
			}
			files = append(files, to)
			if !c.JSON {
				if _, err := fmt.Fprintf(o.Out, "%s: %s\n", to, p.About); err != nil {
					return err
				}
			}
		}
		return o.result(c.JSON, map[string]any{"event": newEventLine(e.Event), "files": files}, eventText(e.Event))
	})
}
