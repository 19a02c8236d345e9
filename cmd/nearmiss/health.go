package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/metrics"
)

type healthCmd struct {
	Detectors []string      `arg:"" optional:"" help:"Detectors that must serve (default: all that have a release, and one at least)."`
	Workers   time.Duration `default:"2s" placeholder:"TIME" help:"How long to wait for the workers' answers."`
	JSON      bool          `name:"json" help:"Print one JSON object."`
	HTTP      string        `name:"http" placeholder:"ADDR" help:"Ask the service whose health checks are at this address, such as 127.0.0.1:9420, and nobody else."`
	serverFlags
}

func (*healthCmd) Help() string {
	return "Exits with 0 where a broker and workers answer, frames are taken and every detector that has a release is served, and with 1 and the reasons where not: " +
		"for scripts and for whatever restarts services.\n\n" +
		examples("nearmiss health", "nearmiss health bolts || page-somebody", "nearmiss health --http 127.0.0.1:9420")
}

func (c *healthCmd) Run(ctx context.Context, o *output) error {
	if c.HTTP != "" {
		return c.readyz(ctx, o)
	}
	bad, notes, workers, err := c.ask(ctx, o)
	if err != nil {
		if c.JSON {
			bad = []string{err.Error()}
		} else {
			return err
		}
	}
	if c.JSON {
		if err := o.JSON(struct {
			Healthy bool     `json:"healthy"`
			Workers int      `json:"workers"`
			Reasons []string `json:"reasons,omitempty"`
			Notes   []string `json:"notes,omitempty"` // on what is served all the same
		}{len(bad) == 0, workers, bad, notes}); err != nil {
			return err
		}
	}
	if len(bad) > 0 {
		return errors.New("not healthy: " + strings.Join(bad, "; "))
	}
	if c.JSON {
		return nil
	}
	what := "all that has a release"
	if len(c.Detectors) > 0 {
		what = strings.Join(c.Detectors, ", ")
	}
	lines := append([]string{fmt.Sprintf("healthy: %s served by %s", what, counted(workers, "worker"))}, notes...)
	return o.print(strings.Join(lines, "\n"))
}

// ask returns what is wrong, what is not as it should be, and how many workers answer.
func (c *healthCmd) ask(ctx context.Context, o *output) (bad, notes []string, answered int, err error) {
	err = c.withInstallation("health", o, func(in *stream.Installation, client *stream.Client) error {
		st, err := in.Status(ctx)
		if err != nil {
			return err
		}
		workers, err := client.Workers(ctx, c.Workers)
		if err != nil {
			return err
		}
		bad, notes, answered = stream.Ailments(st, workers, c.Detectors...), stream.Reservations(workers), len(workers)
		return nil
	})
	return bad, notes, answered, err
}

// readyz asks one service over HTTP, as what restarts it does.
func (c *healthCmd) readyz(ctx context.Context, o *output) error {
	ctx, cancel := context.WithTimeout(ctx, c.Workers+3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.HTTP+"/readyz", nil)
	if err != nil {
		return usageError{fmt.Errorf("--http: %q is no address such as 127.0.0.1:9420", c.HTTP)}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("not healthy: no service answers at %s: %w", c.HTTP, err)
	}
	defer resp.Body.Close()
	var h metrics.Health
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&h); err != nil {
		return fmt.Errorf("not healthy: %s answers %s and nothing that can be understood", c.HTTP, resp.Status)
	}
	if c.JSON {
		if err := o.JSON(h); err != nil {
			return err
		}
	}
	var bad []string
	for _, k := range h.Checks {
		if !k.OK {
			bad = append(bad, strings.TrimSuffix(k.Name+": "+k.Detail, ": "))
		}
	}
	switch {
	case !h.OK || resp.StatusCode != http.StatusOK:
		return errors.New("not healthy: " + strings.Join(bad, "; "))
	case c.JSON:
		return nil
	}
	return o.printf("healthy: %s\n", counted(len(h.Checks), "check"))
}
