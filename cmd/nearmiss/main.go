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
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// Exit codes of the process.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitInterrupted = 130 // as shells report a command that SIGINT ended
)

// cli lists the subcommands, one file each.
type cli struct {
	LogLevel    string           `name:"log-level" enum:"debug,info,warn,error" default:"info" env:"NEARMISS_LOG_LEVEL" help:"Least severe log line to print on standard error: ${enum}."`
	ShowVersion kong.VersionFlag `name:"version" help:"Print version, commit and platform, and nothing else."`
	LogFormat   string           `name:"log-format" enum:"auto,text,json" default:"auto" env:"NEARMISS_LOG_FORMAT" help:"How log lines look: ${enum}; auto is text on a terminal and JSON elsewhere."`

	Up upCmd `cmd:"" help:"Run broker, worker, trainer and the operators' page on this machine; --demo shows them at work."`

	Fit   fitCmd   `cmd:"" help:"Learn what is normal from images and write a release."`
	Score scoreCmd `cmd:"" help:"Score images with a release."`
	Fakes fakesCmd `cmd:"" help:"Learn to make near-normal images from normal ones."`
	Eval  evalCmd  `cmd:"" help:"Measure a method on a labelled data set with the paper's protocols."`

	Broker   brokerCmd   `cmd:"" help:"Run a NATS broker for this machine, with everything that must survive in one folder."`
	Control  controlCmd  `cmd:"" help:"Handle people's changes for a NATS server of your own."`
	Worker   workerCmd   `cmd:"" help:"Score frames and raise events."`
	Trainer  trainerCmd  `cmd:"" help:"Learn detectors from their normals when asked."`
	Camera   cameraCmd   `cmd:"" help:"Publish images as frames."`
	Console  consoleCmd  `cmd:"" help:"Serve the page for operators."`
	Watch    watchCmd    `cmd:"" help:"Print events as they come."`
	Evidence evidenceCmd `cmd:"" help:"Pictures of what raised an alarm."`
	Releases releasesCmd `cmd:"" help:"List, publish, promote and roll back a detector's releases."`

	Detector detectorCmd `cmd:"" help:"Create, list, show, change and delete detectors."`
	Normals  normalsCmd  `cmd:"" help:"The images that detectors learn from."`
	Train    trainCmd    `cmd:"" help:"Ask for a detector's training."`
	Jobs     jobsCmd     `cmd:"" help:"List training jobs, or cancel one."`
	Mark     markCmd     `cmd:"" help:"Tell a detector that an alarm was false, or true."`
	Status   statusCmd   `cmd:"" help:"Show detectors, workers, jobs and what needs attention."`
	Health   healthCmd   `cmd:"" help:"Exit with 0 where all that has a release is served, and with 1 and the reason where not."`
	Check    checkCmd    `cmd:"" help:"Check server, rights, clocks and this machine, and advise what to do."`
	Exporter exporterCmd `cmd:"" help:"Show the state of an installation in a NATS server of your own as metrics."`
	Backup   backupCmd   `cmd:"" help:"Copy detectors, releases and training sets out of the broker."`
	Restore  restoreCmd  `cmd:"" help:"Bring a backup into an empty broker."`
	Hub      hubCmd      `cmd:"" help:"Collect the events of edges that work on their own."`
	Collect  collectCmd  `cmd:"" help:"Remove releases and files that nobody needs."`

	Sinks sinksCmd `cmd:"" help:"Alarms to people and machines outside: webhooks, chats."`
	Audit auditCmd `cmd:"" help:"Who changed what, when, and what came of it."`
	Lock  lockCmd  `cmd:"" help:"Set up TLS and a first identity, before other machines reach the broker."`
	Users usersCmd `cmd:"" help:"Identities of machines: who may connect, and do what."`
	TLS   tlsCmd   `cmd:"" name:"tls" help:"Certificates for the broker and its clients."`

	Backbone backboneCmd `cmd:"" help:"Pretrained models: download, import, inspect."`
	Bench    benchCmd    `cmd:"" help:"Measure speed on this machine."`
	Runtime  runtimeCmd  `cmd:"" help:"The ONNX Runtime library: install it, or see which one is in use."`
	Version  versionCmd  `cmd:"" help:"Print version, commit and platform."`

	Help       helpCmd       `cmd:"" help:"Explain a command, as its --help does."`
	Completion completionCmd `cmd:"" help:"Print a script that completes commands and flags in a shell."`
	Man        manCmd        `cmd:"" help:"Print the manual page."`
}

// usageError marks a mistake in the arguments that only the command itself
// can see; the process exits with code 2 as for any wrong usage.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// newParser is a parser of the command line.
func newParser(c *cli, options ...kong.Option) (*kong.Kong, error) {
	k, err := kong.New(c, append(append(options, mappers()...),
		kong.Name("nearmiss"),
		kong.Description("Watches streams of images and raises an event when one is not normal, most of all when it is almost normal."),
		kong.Vars{"varied": variedNames(), "version": versionText()},
		kong.Resolvers(configured{map[string]config{}}),
		kong.NamedMapper("backbone", kong.MapperFunc(mapBackbone)),
		kong.Help(printHelp),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
	)...)
	if err == nil {
		groupCommands(k.Model)
	}
	return k, err
}

// run parses args, executes one subcommand and returns the process's exit
// code: 0 on success, 1 on failure, 2 on wrong usage, 130 when ctx ended
// before the command had done its work. Services (up, worker, broker, camera,
// watch) treat the end of ctx as their normal end.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var c cli
	code := -1
	screen := stderr
	stdout, stderr = &edge{w: stdout}, &edge{w: stderr, redact: true}
	o := &output{Out: stdout, Err: stderr, screen: screen}
	parser, err := newParser(&c,
		kong.Writers(stdout, stderr),
		kong.Exit(func(n int) { code = n }),
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Bind(o),
	)
	if err != nil {
		fmt.Fprintln(stderr, "nearmiss:", err)
		return exitUsage
	}
	if len(args) > 0 && args[0] == completeWord {
		complete(stdout, parser.Model, args[1:])
		return exitOK
	}
	var kctx *kong.Context
	if args, err = wantsHelp(parser.Model, args); err == nil {
		kctx, err = parser.Parse(args)
	}
	if code >= 0 { // --help has been printed
		return code
	}
	if err != nil {
		fmt.Fprintf(stderr, "nearmiss: %v (see %s --help)\n", err, hint(err))
		return exitUsage
	}
	o.Log = newLogger(screen, c.LogLevel, c.LogFormat)
	kctx.BindTo(o.Log.WithContext(ctx), (*context.Context)(nil)) // for who waits and has no logger of its own

	err = kctx.Run()
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "nearmiss: %v (see %s --help)\n", err, commandOf(kctx))
		return exitUsage
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		fmt.Fprintln(stderr, "nearmiss: interrupted")
		return exitInterrupted
	default:
		fmt.Fprintln(stderr, "nearmiss:", err)
		return exitFailed
	}
}
