// Command nearmiss is the one binary of the Nearmiss anomaly detector: each
// subcommand reads its options, wires the packages together and runs them.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// cli lists the subcommands, one file each.
type cli struct {
	Version versionCmd `cmd:"" help:"Print version, commit and platform."`
}

// output is what subcommands write to: results on Out, logs and progress on Err.
type output struct {
	Out io.Writer
	Err io.Writer
}

// run parses args, executes one subcommand and returns the process's exit
// code: 0 on success, 1 on failure, 2 on wrong usage.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var c cli
	code := -1
	parser, err := kong.New(&c,
		kong.Name("nearmiss"),
		kong.Description("Streaming detection of visual anomalies, most of all those that look almost normal."),
		kong.Writers(stdout, stderr),
		kong.Exit(func(n int) { code = n }),
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Bind(&output{Out: stdout, Err: stderr}),
		kong.UsageOnError(),
	)
	if err != nil {
		fmt.Fprintln(stderr, "nearmiss:", err)
		return 2
	}
	kctx, err := parser.Parse(args)
	if code >= 0 { // --help has been printed
		return code
	}
	if err != nil {
		fmt.Fprintln(stderr, "nearmiss:", err)
		return 2
	}
	if err := kctx.Run(); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(stderr, "nearmiss:", err)
		return 1
	}
	return 0
}
