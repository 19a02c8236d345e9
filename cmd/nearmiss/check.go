package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/nats-io/nats.go"

	"github.com/nearmiss/nearmiss/internal/redact"
	"github.com/nearmiss/nearmiss/stream/access"
	"github.com/nearmiss/nearmiss/stream/broker"
	"github.com/nearmiss/nearmiss/stream/check"
)

type checkCmd struct {
	As       string        `enum:",worker,trainer,sinks,control,operator,console,setup" default:"" placeholder:"ROLE" help:"Also check that this machine and its identity fit a role: worker, trainer, sinks, control, operator, console or setup."`
	Detector string        `placeholder:"NAME" help:"Detector that the worker is confined to."`
	Data     string        `type:"path" placeholder:"DIR" help:"Folder for releases and jobs (default nearmiss-data)."`
	Wait     time.Duration `default:"1s" placeholder:"TIME" help:"How long services may take to answer."`
	JSON     bool          `name:"json" help:"Print one JSON object a line."`
	serverFlags
}

func (*checkCmd) Help() string {
	return "It checks connection, server version, rights, payload limit, JetStream, streams against the configuration, copies, room, clocks, certificates, " +
		"services, ONNX Runtime and this machine's folder. It advises what to do, and changes nothing. It exits with 0 unless a check fails, whatever it warns of. " +
		"nearmiss health shows whether frames are scored.\n\n" +
		examples(
			"nearmiss check",
			"nearmiss check --server tls://nats.example.org --nkey worker.nk --as worker",
			"nearmiss check --config /etc/nearmiss/nearmiss.yaml --json",
		)
}

func (c *checkCmd) Run(ctx context.Context, o *output) error {
	conf, err := c.load(func(*config) {})
	if err != nil {
		return err
	}
	var failed []string
	total := 0
	var broken error // standard output is
	report := func(f check.Finding) {
		total++
		if f.Level == check.Failed {
			failed = append(failed, f.Check)
		}
		broken = errors.Join(broken, o.result(c.JSON, f, findingText(f)))
	}
	report(check.Finding{Check: "program", Level: check.OK, Detail: versionText()})
	if c.needs("worker", "trainer") {
		report(checkRuntime())
		report(checkFolder(cmp.Or(c.Data, conf.Data)))
	}
	if err := c.ask(ctx, o, conf, report); err != nil {
		return err
	}
	if broken != nil {
		return broken
	}
	if len(failed) > 0 {
		return fmt.Errorf("%d of %d checks failed: %s", len(failed), total, strings.Join(failed, ", "))
	}
	return nil
}

// needs says whether the machine is to be fit for one of the roles.
func (c *checkCmd) needs(roles ...string) bool { return c.As == "" || slices.Contains(roles, c.As) }

// ask checks what lies behind the connection.
func (c *checkCmd) ask(ctx context.Context, o *output, conf config, report func(check.Finding)) error {
	nc, err := c.connect("check", o)
	if usage := (usageError{}); errors.As(err, &usage) {
		return err
	}
	if err != nil {
		report(check.Finding{Check: "server", Level: check.Failed, Detail: redact.Error(err).Error()})
		return nil
	}
	defer nc.Close()
	if f, ok := c.checkCertificates(nc); ok {
		report(f)
	}
	topology := conf.topology()
	topology.Names = c.names()
	return check.Broker(ctx, nc, check.Config{
		Topology: topology, Role: access.Role(c.As), Detector: c.Detector, Wait: c.Wait,
		Setup: "nearmiss broker --setup " + nc.ConnectedUrlRedacted(),
	}, report)
}

func findingText(f check.Finding) string {
	text := fmt.Sprintf("%-8s %-13s %s", f.Level, f.Check, f.Detail)
	if f.Advice != "" {
		text += "\n" + strings.Repeat(" ", 23) + "→ " + f.Advice
	}
	return text
}

// checkRuntime checks that ONNX Runtime can be loaded.
func checkRuntime() check.Finding {
	f := check.Finding{Check: "runtime", Level: check.OK}
	version, path, providers, err := loadedRuntime()
	if err != nil {
		f.Level, f.Detail, f.Advice = check.Failed, err.Error(), "nearmiss runtime install gets it"
		return f
	}
	f.Detail = fmt.Sprintf("ONNX Runtime %s (%s)", version, path)
	for _, p := range providers {
		if p.Usable {
			f.Detail += ", " + p.Device
		}
	}
	return f
}

// roomForReleases is what the folder of a worker or trainer should have free, bytes.
const roomForReleases = 1 << 30

func checkFolder(dir string) check.Finding {
	f := check.Finding{Check: "folder", Level: check.OK, Detail: dir}
	if err := writableFolder("--data", dir); err != nil {
		f.Level, f.Detail, f.Advice = check.Failed, err.Error(), "name a folder for releases and jobs that this user may write to, with --data"
		return f
	}
	free, err := broker.FreeBytes(existing(dir))
	if err != nil {
		f.Level, f.Detail = check.Skipped, err.Error()
		return f
	}
	f.Detail = fmt.Sprintf("%s can be written, with %s free", dir, humanize.IBytes(uint64(free)))
	if free < roomForReleases {
		f.Level, f.Advice = check.Warning, "releases and training jobs need more: make room, or name a folder on a larger disk with --data"
	}
	return f
}

// checkCertificates checks the certificates that the connection stands on.
func (c *checkCmd) checkCertificates(nc *nats.Conn) (check.Finding, bool) {
	all, err := c.expiries(nc)
	if err == nil && len(all) == 0 {
		return check.Finding{}, false
	}
	f := check.Finding{Check: "certificates", Level: check.OK}
	if err != nil {
		f.Level, f.Detail = check.Warning, redact.Error(err).Error()
		return f, true
	}
	var soon []string
	first := all[0]
	for _, e := range all {
		if e.NotAfter.Before(first.NotAfter) {
			first = e
		}
		if e.Soon(time.Now()) {
			soon = append(soon, fmt.Sprintf("%s ends in %d days", e.Name, e.Days(time.Now())))
		}
	}
	f.Detail = fmt.Sprintf("%s ends first, in %d days", first.Name, first.Days(time.Now()))
	if len(soon) > 0 {
		f.Level, f.Detail, f.Advice = check.Warning, strings.Join(soon, ", "), "nearmiss tls renew"
	}
	return f, true
}
