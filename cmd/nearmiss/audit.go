package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nearmiss/nearmiss/stream"
)

type auditCmd struct {
	Since  time.Duration `placeholder:"TIME" help:"Only of the last 24h, 30d, … (default: all that is kept, a year)."`
	By     string        `placeholder:"WHO" help:"Only what this person, identity or key has done."`
	Action string        `placeholder:"NAME" help:"Only this action: create, set, promote, …"`
	Object string        `placeholder:"NAME" help:"Only on this object (detector/bolts), or this kind of objects (detector)."`
	Failed bool          `help:"Only what was refused."`
	Last   int           `short:"n" default:"100" placeholder:"N" help:"The newest N, 1 to 1000."`
	JSON   bool          `name:"json" help:"Print one JSON object a line, with what was before and after."`
	serverFlags
}

func (*auditCmd) Help() string {
	return "Every change that somebody asked for: when, who, what, on what, and what came of it. Where the broker has users, " +
		"the identity is the one whose key was proven; the person is what its command said. Nobody can take an entry out; they go after a year.\n\n" +
		examples(
			"nearmiss audit --since 24h",
			"nearmiss audit --object detector/bolts --action promote",
			"nearmiss audit --failed --json",
		)
}

func (c *auditCmd) Run(ctx context.Context, o *output) error {
	if c.Last < 1 || c.Last > 1000 {
		return usageError{fmt.Errorf("--last %d: use 1 to 1000", c.Last)}
	}
	if c.Since < 0 {
		return usageError{errors.New("--since is a time that has passed, such as 24h")}
	}
	f := stream.AuditFilter{By: c.By, Action: c.Action, Object: c.Object, Failed: c.Failed}
	if c.Since > 0 {
		f.Since = time.Now().Add(-c.Since)
	}
	var all []stream.AuditEntry
	err := c.withInstallation("audit", o, func(in *stream.Installation, _ *stream.Client) (err error) {
		all, err = in.Audit(ctx, f, 0, c.Last)
		return err
	})
	if err != nil {
		return err
	}
	slices.Reverse(all) // the newest last, as in a log
	return list(o, c.JSON, all, func(e stream.AuditEntry) string {
		who := cmp.Or(e.By, "-")
		if of := cmp.Or(e.User, e.Identity); of != "" {
			who += " (" + of + ")"
		}
		line := fmt.Sprintf("%s  %-24s %-12s %-28s %s", e.At.Local().Format(time.DateTime), who, e.Action, e.Object, e.Result)
		if e.Error != "" {
			line += ": " + e.Error
		}
		return line
	})
}
