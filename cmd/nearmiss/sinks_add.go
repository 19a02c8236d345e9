package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/sink"
	"github.com/nearmiss/nearmiss/stream/sink/webhook"
)

type sinksAddCmd struct {
	Name      string        `arg:"" help:"Name of the sink."`
	Kind      string        `arg:"" enum:"webhook,mail,mqtt,archive,modbus,opcua" help:"${enum}."`
	URL       string        `required:"" placeholder:"URL" help:"Where the receiver is. In a webhook's path or query, {secret} is where the secret goes."`
	Set       []string      `sep:"none" placeholder:"KEY=VALUE" help:"A setting of the kind, such as coil=3; may be repeated. stream/sink/README.md has examples."`
	Preset    string        `placeholder:"NAME" help:"Receiver whose language to speak: slack, mattermost, discord, teams, ntfy, pagerduty or alertmanager (default: CloudEvents)."`
	Template  string        `type:"existingfile" placeholder:"FILE" help:"Template of the body (Go text/template)."`
	Bearer    bool          `help:"Send the secret as a token in the Authorization header instead of signing with it."`
	Secret    string        `placeholder:"REF" help:"Where the secret is on the machine that runs the sinks: file:PATH or env:NAME. Without it, one to sign with is made for a webhook and written into the data folder."`
	NoSecret  bool          `help:"Sign nothing."`
	Loopback  bool          `name:"allow-loopback" help:"The receiver is on the machine that runs the sinks."`
	Detectors []string      `name:"detector" placeholder:"NAME" help:"Only events of this detector; may be repeated."`
	Cameras   []string      `name:"camera" placeholder:"NAME" help:"Only events of this camera; may be repeated."`
	Kinds     []string      `name:"event" placeholder:"KIND" help:"Only events of this kind; may be repeated (default: incident.new, incident.end, drift, release, store, camera, lost; also anomaly for each frame, incident.update, rejected)."`
	MinRatio  float64       `placeholder:"X" help:"Only scores of at least X times the threshold."`
	Verdicts  []string      `name:"verdict" placeholder:"STATE" help:"Only incidents of this state: open (nobody has said anything), seen, confirmed or false_alarm; may be repeated."`
	Hours     string        `placeholder:"TEXT" help:"Only at these times, for instance \"Mon-Fri 06:00-22:00 Europe/Berlin\"."`
	CoolDown  time.Duration `placeholder:"TIME" help:"Nothing more of a camera for so long after something was sent."`
	Rate      string        `placeholder:"N/TIME" help:"At most N in TIME, for instance 30/1m; the rest is sent as one summary."`
	Data      string        `default:"nearmiss-data" env:"NEARMISS_DATA" type:"path" placeholder:"DIR" help:"Folder for a secret that is made."`
	serverFlags
}

func (*sinksAddCmd) Help() string {
	return "Requests are signed as Standard Webhooks has it; any of its libraries verifies them.\n\n" + examples(
		"nearmiss sinks add desk webhook --url https://desk.example.org/alarms --detector bolts",
		"nearmiss sinks add chat webhook --url 'https://chat.example.org/hook/{secret}' --preset slack --secret file:/run/secrets/chat --cool-down 1m",
		"nearmiss sinks add shift mail --url smtp://mail.example.org --set from=alarm@example.org --set 'to=[\"shift@example.org\"]' --set user=alarm --secret file:/run/secrets/mail",
		"nearmiss sinks add home mqtt --url mqtts://mosquitto.example.org --set user=nearmiss --secret file:/run/secrets/mqtt",
		"nearmiss sinks add keep archive --url /mnt/archive",
		"nearmiss sinks add gate modbus --url tcp://10.0.0.5:502 --set coil=3 --set registers=100 --detector bolts",
		"nearmiss sinks add night webhook --url https://ntfy.example.org --preset ntfy --secret env:NTFY_TOKEN --bearer --hours \"22:00-06:00\"",
	)
}

// sink is what the flags say; what cannot work is refused here, and not found
// out by the process that runs the sinks.
func (c *sinksAddCmd) sink() (sink.Sink, error) {
	raw, err := c.config()
	if err != nil {
		return sink.Sink{}, err
	}
	s := sink.Sink{
		Name: c.Name, Kind: c.Kind, Enabled: true, Detectors: c.Detectors, Cameras: c.Cameras, Kinds: c.Kinds,
		MinRatio: c.MinRatio, Verdicts: c.Verdicts, Hours: c.Hours, CoolDown: sink.Duration(c.CoolDown), Config: raw, Secret: c.Secret,
	}
	if c.Rate != "" {
		var per string
		if n, _ := fmt.Sscanf(c.Rate, "%d/%s", &s.Rate.N, &per); n != 2 || s.Rate.Per.UnmarshalText([]byte(per)) != nil {
			return s, fmt.Errorf("--rate %q: write it as 30/1m", c.Rate)
		}
	}
	if c.Secret == "" && (c.Bearer || strings.Contains(c.URL, "{secret}")) {
		return s, errors.New("--bearer, and {secret} in --url, need --secret: where the token is")
	}
	return checkSink(c.names(), s)
}

func (c *sinksAddCmd) Run(ctx context.Context, o *output) error {
	s, err := c.sink()
	if err != nil {
		return usageError{err}
	}
	return c.withClient("sinks", o, func(control *stream.Client) error {
		made := ""
		if s.Secret == "" && !c.NoSecret && c.Kind == webhook.Kind && !strings.Contains(c.URL, "{secret}") {
			path := filepath.Join(c.Data, "auth", "sink-"+s.Name+".secret")
			if made, err = makeSecret(path); err != nil {
				return err
			}
			s.Secret = "file:" + path
		}
		value, err := json.Marshal(s)
		if err != nil {
			return err
		}
		if _, err := control.SetSink(ctx, s.Name, value, 0); err != nil {
			return err
		}
		if made != "" {
			if err := o.printf("secret for the receiver (shown once): %s\n%s keeps it: bring that file to the machine that runs the sinks, if it is another\n", made, strings.TrimPrefix(s.Secret, "file:")); err != nil {
				return err
			}
		}
		return o.print("sink " + s.Name + " is there; try it: nearmiss sinks test " + s.Name)
	})
}

// config is the kind's configuration: the flags, and over them what --set says.
func (c *sinksAddCmd) config() (json.RawMessage, error) {
	cfg := map[string]any{"url": c.URL}
	if c.Kind != webhook.Kind && (c.Preset != "" || c.Template != "" || c.Bearer || c.Loopback) {
		return nil, errors.New("--preset, --template, --bearer and --allow-loopback are for webhooks")
	}
	if c.Preset != "" {
		cfg["preset"] = c.Preset
	}
	if c.Loopback {
		cfg["allow_loopback"] = true
	}
	if c.Bearer {
		cfg["auth"] = "bearer"
	}
	if c.Template != "" {
		b, err := os.ReadFile(c.Template)
		if err != nil {
			return nil, fmt.Errorf("read the template: %w", err)
		}
		cfg["template"] = string(b)
	}
	for _, pair := range c.Set {
		key, text, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("--set %q: write it as coil=3", pair)
		}
		var value any = text
		if json.Valid([]byte(text)) { // a number, true, a list
			value = json.RawMessage(text)
		}
		in := cfg
		for {
			first, rest, nested := strings.Cut(key, ".")
			if !nested {
				break
			}
			below, ok := in[first].(map[string]any)
			if !ok {
				below = map[string]any{}
				in[first] = below
			}
			in, key = below, rest
		}
		in[key] = value
	}
	return json.Marshal(cfg)
}

// makeSecret writes a new secret, unless one is there.
func makeSecret(path string) (string, error) {
	if _, err := os.Stat(path); err == nil {
		return "", nil
	}
	secret, err := webhook.NewSecret()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", fmt.Errorf("write the secret: %w", err)
	}
	if err := renameio.WriteFile(path, []byte(secret+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("write the secret: %w", err)
	}
	return secret, nil
}
