package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/nearmiss/nearmiss/stream"
)

type hubCmd struct {
	AddEdge    hubAddCmd    `cmd:"" name:"add-edge" help:"Take an edge's events from now on, and what it has already."`
	RemoveEdge hubRemoveCmd `cmd:"" name:"remove-edge" help:"Take nothing more of an edge; what was taken stays."`
	Status     hubStatusCmd `cmd:"" help:"List the edges: which answer, and what waits."`
}

type hubAddCmd struct {
	Edge       string `arg:"" help:"JetStream domain of the edge's NATS server, as deployments/nats/leaf-edge.conf names it."`
	NoPictures bool   `help:"Do not take the pictures that are drawn of anomalies."`
	Images     bool   `help:"Take the whole images of anomalies, too."`
	serverFlags
}

func (*hubAddCmd) Help() string {
	return "The hub is a NATS server with streams of its own, to which the edge's server has a leaf node link. What happens at the edge while the link is down comes when it is back. " +
		"A locked hub asks for an identity with role setup.\n\n" +
		examples("nearmiss hub add-edge edge1 --server nats://hub.example.org:4222")
}

func (c *hubAddCmd) Run(ctx context.Context, o *output) error {
	return c.withInstallation("hub", o, func(in *stream.Installation, _ *stream.Client) error {
		if err := in.AddEdge(ctx, c.Edge, stream.EdgeParts{Pictures: !c.NoPictures, Images: c.Images}); err != nil {
			return err
		}
		return o.printf("events of %s are taken; nearmiss hub status shows when it answers\n", c.Edge)
	})
}

type hubRemoveCmd struct {
	Edge string `arg:"" help:"The edge's JetStream domain."`
	serverFlags
}

func (*hubRemoveCmd) Help() string { return examples("nearmiss hub remove-edge edge1") }

func (c *hubRemoveCmd) Run(ctx context.Context, o *output) error {
	return c.withInstallation("hub", o, func(in *stream.Installation, _ *stream.Client) error {
		if err := in.RemoveEdge(ctx, c.Edge); err != nil {
			return err
		}
		return o.printf("nothing more of %s is taken\n", c.Edge)
	})
}

type hubStatusCmd struct {
	JSON bool `name:"json" help:"Print one JSON object a line."`
	serverFlags
}

func (*hubStatusCmd) Help() string {
	return examples("nearmiss hub status --server nats://hub.example.org:4222")
}

func (c *hubStatusCmd) Run(ctx context.Context, o *output) error {
	return c.withInstallation("hub", o, func(in *stream.Installation, _ *stream.Client) error {
		edges, err := in.Edges(ctx)
		if err != nil {
			return err
		}
		return list(o, c.JSON, edges, edgeLine)
	})
}

// edgeLine is what people read of an edge.
func edgeLine(e stream.Edge) string {
	line := fmt.Sprintf("%-16s ", e.Name)
	quiet := time.Duration(-1)
	for _, s := range e.Streams {
		quiet = max(quiet, s.Quiet)
	}
	switch {
	case e.Here && e.Waiting == 0:
		line += "here, nothing waits"
	case e.Here:
		line += fmt.Sprintf("here, %d messages wait", e.Waiting)
	case quiet < 0:
		line += "has not answered yet: is there a leaf node link, and does the edge have this JetStream domain?"
	default:
		line += fmt.Sprintf("away for %v", quiet.Round(time.Second))
	}
	for _, s := range e.Streams {
		if s.Error != "" {
			line += fmt.Sprintf("; %s: %s", s.Stream, strings.TrimSpace(s.Error))
		}
	}
	return line
}
