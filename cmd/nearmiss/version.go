package main

import (
	"fmt"
	"runtime"
)

// version and commit are set by the Makefile through -ldflags.
var (
	version = "dev"
	commit  = "unknown"
)

type versionCmd struct {
	JSON bool `name:"json" help:"Print one JSON object."`
}

func (*versionCmd) Help() string { return examples("nearmiss version --json") }

func (c *versionCmd) Run(o *output) error {
	return o.result(c.JSON, map[string]string{
		"version": version, "commit": commit,
		"go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH,
	}, versionText())
}

func versionText() string {
	return fmt.Sprintf("nearmiss %s (commit %s, %s, %s/%s)", version, commit, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
