package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/inference/heatmap"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/release"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/console"
	"github.com/nearmiss/nearmiss/stream/sink"
)

// consoleConfig is the page for operators.
type consoleConfig struct {
	Listen      string        `yaml:"listen" env:"LISTEN"` // host:port; off: no page
	TLSCert     string        `yaml:"tls_cert" env:"TLS_CERT"`
	TLSKey      string        `yaml:"tls_key" env:"TLS_KEY"`
	Hosts       []string      `yaml:"hosts" env:"HOSTS"`                     // names under which browsers reach it
	Proxies     []string      `yaml:"trusted_proxies" env:"TRUSTED_PROXIES"` // addresses or networks
	ProxySecret string        `yaml:"proxy_secret" env:"PROXY_SECRET"`
	LinksKey    string        `yaml:"links_key" env:"LINKS_KEY"` // file:PATH or env:NAME
	SessionIdle time.Duration `yaml:"session_idle" env:"SESSION_IDLE"`
	SessionMax  time.Duration `yaml:"session_max" env:"SESSION_MAX"`
}

// off says that there is no page.
func (c consoleConfig) off() bool { return c.Listen == "" || c.Listen == "off" }

// console is the console's configuration.
func (c config) console() (console.Config, error) {
	x := c.Console
	out := console.Config{
		Names: c.names(), Listen: x.Listen, Cert: x.TLSCert, Key: x.TLSKey, Hosts: x.Hosts, ProxySecret: x.ProxySecret,
		Idle: x.SessionIdle, Max: x.SessionMax, Version: version, Links: c.links(),
	}
	for _, s := range x.Proxies {
		p, err := netip.ParsePrefix(s)
		if a, aerr := netip.ParseAddr(s); aerr == nil {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			return out, fmt.Errorf("console.trusted_proxies: %q is no address or network", s)
		}
		out.Proxies = append(out.Proxies, p)
	}
	limits := imaging.Limits{MaxBytes: c.Images.MaxBytes, MaxPixels: c.Images.MaxPixels}
	out.Shrink = func(image []byte, side int) ([]byte, error) {
		img, err := imaging.Decode(image, limits)
		if err != nil {
			return nil, err
		}
		return heatmap.Thumbnail(img, side).JPEG(evidenceJPEG)
	}
	out.Check = func(image []byte) error {
		_, err := imaging.Decode(image, limits)
		return err
	}
	out.FalseAlarms = func(n int, rate float64) (low, high float64) { return bank.FalseAlarmRange(n, rate, 0.95) }
	out.Describe = describeRelease
	out.CheckSink = func(s sink.Sink) (sink.Sink, error) { return checkSink(c.names(), s) }
	return out, out.Validate()
}

// links are the addresses of pictures that sinks make and the console serves.
func (c config) links() *sink.Links {
	key := c.Console.LinksKey
	if path := sink.LinkKeyFile(c.Data); key == "" {
		if _, err := os.Stat(path); err == nil {
			key = "file:" + path
		}
	}
	return &sink.Links{Key: key}
}

// describeRelease says what people want to know of a manifest.
func describeRelease(manifest []byte) (console.Facts, error) {
	m, err := release.ParseManifest(manifest)
	if err != nil {
		return console.Facts{}, err
	}
	c := m.Calibration
	return console.Facts{
		Method: m.Method, CreatedAt: m.CreatedAt, Model: m.Model.Name, K: m.Bank.K, Normals: m.Bank.Images(),
		Alpha: c.Alpha, Promised: c.Rate(), SmallestRate: c.SmallestAlpha, HeldOut: c.HeldOut, Threshold: c.Threshold,
	}, nil
}

// calibrationOf reads what the threshold of the release in dir comes from.
func calibrationOf(dir string) (stream.Calibration, error) {
	r, err := release.Open(dir)
	if err != nil {
		return stream.Calibration{}, err
	}
	b, err := bank.ReadFile(filepath.Join(dir, r.Manifest.Bank.File), bank.ReadOptions{Verified: true}) // by the registry
	if err != nil {
		return stream.Calibration{}, err
	}
	defer b.Close()
	c := b.Calibration()
	if c == nil {
		return stream.Calibration{}, stream.Permanent(stream.CodeNotFound, errors.New("it has no held-out normals"))
	}
	m := r.Manifest.Calibration
	return stream.Calibration{Alpha: c.Alpha(), SmallestRate: c.SmallestAlpha(), K: b.K(), HeldOut: c.HeldOut(), Threshold: m.Threshold}, nil
}

// openConsole takes the page's address. An address that is in use costs up its page
// only: the same machine may run another.
func openConsole(conf config, o *output) (*console.Console, string, error) {
	if conf.Console.off() {
		return nil, "", nil
	}
	cc, err := conf.console()
	if err != nil {
		return nil, "", usageError{oneLine(err)}
	}
	c, err := console.New(cc, o.Log)
	if err != nil {
		return nil, "", err
	}
	url, err := c.Listen()
	if errors.Is(err, syscall.EADDRINUSE) {
		o.Log.Warn().Str("address", conf.Console.Listen).Msg("another process has the console's address: there is no page; set console.listen")
		return nil, "", nil
	}
	return c, url, err
}

type consoleCmd struct {
	Listen string `placeholder:"HOST:PORT" help:"Where the page is served (default 127.0.0.1:4280)."`
	Setup  bool   `help:"Print a link with which the first administrator is made, valid for half an hour."`
	Server string `placeholder:"URL" help:"NATS server (default nats://127.0.0.1:4222)."`
	credentialFlags
	configFlag
}

func (*consoleCmd) Help() string {
	return "The page on which operators see the cameras, judge alarms and tune detectors, until Ctrl-C; nearmiss up has it, too. " +
		"Until there are users it is open to everyone on this machine, and refuses to listen on other addresses.\n\n" +
		examples(
			"nearmiss console",
			"nearmiss console --server nats://broker.example.org:4222 --listen 0.0.0.0:4280 --setup",
		)
}

func (c *consoleCmd) Run(ctx context.Context, o *output) error {
	conf, err := c.load(func(conf *config) {
		set(&conf.Server, c.Server)
		conf.JetStreamAPI = c.jetStreamAPI()
		set(&conf.Console.Listen, c.Listen)
	})
	if err != nil {
		return err
	}
	if conf.Console.off() {
		return usageError{errors.New("console.listen is off: say where with --listen")}
	}
	cc, err := conf.console()
	if err != nil {
		return usageError{oneLine(err)}
	}
	var url string
	if c.Setup {
		cc.Setup = func(path string) {
			fmt.Fprintf(o.Out, "make the first administrator within half an hour: %s%s\n", url, path)
		}
	}
	page, err := console.New(cc, o.Log)
	if err != nil {
		return err
	}
	if url, err = page.Listen(); err != nil {
		return err
	}
	nc, err := serverFlags{Server: conf.Server, credentialFlags: c.credentialFlags}.await("console", o)
	if err != nil {
		return err
	}
	defer nc.Close()
	fmt.Fprintf(o.Out, "console on %s\n", url)
	return observe(ctx, conf.observed(), o, []string{"console"}, func(ctx context.Context, v *observer) error {
		v.Connection(nc)
		v.begun("console", linked(nc))
		page.Trace(v.tracer())
		return page.Run(ctx, nc)
	})
}
