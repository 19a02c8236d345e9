package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/goccy/go-yaml"

	"github.com/nearmiss/nearmiss/inference/ort"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/access"
	"github.com/nearmiss/nearmiss/stream/broker"
	"github.com/nearmiss/nearmiss/stream/console"
	"github.com/nearmiss/nearmiss/stream/metrics"
)

// config is what the services (up, broker, worker) read: defaults, then the
// YAML file of --config, then environment variables NEARMISS_…, then flags. The
// commented sample in deployments/nearmiss.yaml is its documentation.
type config struct {
	Data    string        `yaml:"data" env:"DATA"`
	Server  string        `yaml:"server" env:"SERVER"`
	Prefix  string        `yaml:"prefix" env:"PREFIX"`
	Client  clientConfig  `yaml:"client"`
	Broker  brokerConfig  `yaml:"broker" envPrefix:"BROKER_"`
	Keep    keepConfig    `yaml:"keep" envPrefix:"KEEP_"`
	Worker  workerConfig  `yaml:"worker" envPrefix:"WORKER_"`
	Trainer trainerConfig `yaml:"trainer" envPrefix:"TRAINER_"`
	Images  imagesConfig  `yaml:"images" envPrefix:"IMAGES_"`
	HTTP    httpConfig    `yaml:"http" envPrefix:"HTTP_"`
	OTel    otelConfig    `yaml:"otel" envPrefix:"OTEL_"`
	Console consoleConfig `yaml:"console" envPrefix:"CONSOLE_"`

	JetStreamAPI string `yaml:"-"` // of a service that is not in the process of its broker, by its flags
}

// names are the names of what a service works with.
func (c config) names() stream.Names {
	return stream.Names{Prefix: c.Prefix, JetStreamAPI: c.JetStreamAPI}
}

// brokerConfig is the embedded NATS server.
type brokerConfig struct {
	Host          string `yaml:"host" env:"HOST"`
	Port          int    `yaml:"port" env:"PORT"`                     // of NATS clients
	MQTTPort      int    `yaml:"mqtt_port" env:"MQTT_PORT"`           // 0: off
	WebSocketPort int    `yaml:"websocket_port" env:"WEBSOCKET_PORT"` // 0: off
	MaxStore      int64  `yaml:"max_store" env:"MAX_STORE"`           // bytes on disk
	User          string `yaml:"user" env:"USER"`
	Password      string `yaml:"password" env:"PASSWORD"`
	Token         string `yaml:"token" env:"TOKEN"`
	Anonymous     bool   `yaml:"anonymous" env:"ANONYMOUS"`
	// Pages that may open a WebSocket, as https://host:port.
	WebSocketOrigins []string  `yaml:"websocket_origins" env:"WEBSOCKET_ORIGINS"`
	TLS              tlsConfig `yaml:"tls" envPrefix:"TLS_"`
}

// tlsConfig are the files of the broker's listeners; all of NATS, MQTT and
// WebSocket use them.
type tlsConfig struct {
	Cert   string `yaml:"cert" env:"CERT"`
	Key    string `yaml:"key" env:"KEY"`
	CA     string `yaml:"ca" env:"CA"`         // that signed the clients' certificates
	Verify string `yaml:"verify" env:"VERIFY"` // "", optional, required
}

// keepConfig bounds what the broker keeps.
type keepConfig struct {
	FramesBytes int64         `yaml:"frames_bytes" env:"FRAMES_BYTES"`
	FramesAge   time.Duration `yaml:"frames_age" env:"FRAMES_AGE"`
	EventsBytes int64         `yaml:"events_bytes" env:"EVENTS_BYTES"`
	EventsAge   time.Duration `yaml:"events_age" env:"EVENTS_AGE"`
	// In a cluster of servers: copies of everything, and where they lie.
	Replicas  int             `yaml:"replicas" env:"REPLICAS"`
	Placement placementConfig `yaml:"placement" envPrefix:"PLACEMENT_"`
}

// placementConfig says on which servers of a cluster everything lies.
type placementConfig struct {
	Cluster string   `yaml:"cluster" env:"CLUSTER"`
	Tags    []string `yaml:"tags" env:"TAGS"`
}

// workerConfig is how frames are scored; device and threads are the trainer's, too.
type workerConfig struct {
	Device  string `yaml:"device" env:"DEVICE"`   // cpu, cuda, cuda:1, cuda+graph, tensorrt
	Threads int    `yaml:"threads" env:"THREADS"` // CPU threads that the model computes on; 0: one a core
	Batch   int    `yaml:"batch" env:"BATCH"`     // most frames scored at once
}

// trainerConfig is how detectors learn.
type trainerConfig struct {
	Backbone string        `yaml:"backbone" env:"BACKBONE"` // ONNX file or name of the catalogue, for detectors that name none; empty: the starter backbone
	Models   string        `yaml:"models" env:"MODELS"`     // folder of models that detectors name; empty: models in the data folder
	Profiles string        `yaml:"profiles" env:"PROFILES"` // folder of further training profiles, NAME.json
	Takeover time.Duration `yaml:"takeover" env:"TAKEOVER"` // silence after which a trainer has lost its job to another
}

// imagesConfig bounds what is decoded.
type imagesConfig struct {
	MaxBytes  int64 `yaml:"max_bytes" env:"MAX_BYTES"`
	MaxPixels int64 `yaml:"max_pixels" env:"MAX_PIXELS"`
	Memory    int64 `yaml:"memory" env:"MEMORY"` // bytes that all images under way may take together
}

func defaultConfig() config {
	return config{
		Data: "nearmiss-data", Server: "nats://127.0.0.1:4222", Prefix: stream.DefaultPrefix,
		Broker: brokerConfig{Host: "127.0.0.1", Port: 4222, MaxStore: 16 << 30, WebSocketOrigins: []string{}},
		Keep:   keepConfig{FramesBytes: 2 << 30, FramesAge: 7 * 24 * time.Hour, EventsBytes: 1 << 30, EventsAge: 90 * 24 * time.Hour, Replicas: 1, Placement: placementConfig{Tags: []string{}}},
		Worker: workerConfig{Device: "cpu", Batch: 16}, Trainer: trainerConfig{Takeover: 30 * time.Second},
		Images:  imagesConfig{MaxBytes: 64 << 20, MaxPixels: 100_000_000, Memory: 1 << 30},
		HTTP:    httpConfig{Listen: "127.0.0.1:9420"},
		OTel:    otelConfig{Share: 0.01},
		Console: consoleConfig{Listen: console.DefaultListen, Hosts: []string{}, Proxies: []string{}, SessionIdle: 12 * time.Hour, SessionMax: stream.SessionAge},
	}
}

// loadConfig reads the file (none when path is empty) and the environment.
func loadConfig(path string, environment map[string]string) (config, error) {
	c := defaultConfig()
	if path != "" {
		b, err := os.ReadFile(path)
		if err != nil {
			return c, fmt.Errorf("read the configuration: %w", err)
		}
		read := c // a file with nothing in it would empty what it is decoded into
		switch err = yaml.NewDecoder(bytes.NewReader(b), yaml.Strict()).Decode(&read); {
		case errors.Is(err, io.EOF) || err == nil && reflect.ValueOf(read).IsZero(): // nothing, or nothing but comments
		case err != nil:
			return c, fmt.Errorf("configuration %s: %s", path, yaml.FormatError(err, false, false))
		default:
			c = read
		}
	}
	c.Client = c.Client.beside(path)
	o := env.Options{Prefix: "NEARMISS_", Environment: environment}
	if err := env.ParseWithOptions(&c, o); err != nil {
		return c, fmt.Errorf("configuration from the environment: %w", err)
	}
	return c, nil
}

// Validate names everything that is wrong, not only the first.
func (c config) Validate() error {
	var errs []error
	wrong := func(key string, v any, want string) {
		errs = append(errs, fmt.Errorf("%s: %q is not %s", key, fmt.Sprint(v), want))
	}
	if c.Data == "" {
		wrong("data", c.Data, "a folder")
	}
	if u, err := url.Parse(c.Server); err != nil || u.Host == "" {
		wrong("server", c.Server, "an address such as nats://127.0.0.1:4222")
	}
	if err := (stream.Names{Prefix: c.Prefix}).Validate(); err != nil {
		errs = append(errs, fmt.Errorf("prefix: %w", err))
	}
	if c.Client.NKey != "" && c.Client.Creds != "" {
		errs = append(errs, errors.New("client: give an nkey or creds, not both"))
	}
	if err := c.Client.files().Validate(); err != nil {
		errs = append(errs, fmt.Errorf("client: %w", err))
	}
	if err := c.broker().Validate(); err != nil {
		errs = append(errs, err)
	}
	if err := c.topology().Validate(); err != nil {
		errs = append(errs, fmt.Errorf("keep: %w", err))
	}
	if _, err := ort.ParseDevice(c.Worker.Device); err != nil {
		errs = append(errs, fmt.Errorf("worker.device: %w", err))
	}
	if c.Worker.Threads < 0 {
		wrong("worker.threads", c.Worker.Threads, "0 (one a core) or more")
	}
	if c.Worker.Batch < 1 || c.Worker.Batch > 1024 {
		wrong("worker.batch", c.Worker.Batch, "between 1 and 1024")
	}
	if c.Trainer.Takeover < time.Second {
		wrong("trainer.takeover", c.Trainer.Takeover, "1s or more")
	}
	if err := metrics.Validate(c.HTTP.Listen, c.HTTP.Pprof); err != nil {
		errs = append(errs, fmt.Errorf("http.listen: %w", err))
	}
	if c.Images.MaxBytes < 1 {
		wrong("images.max_bytes", c.Images.MaxBytes, "at least 1")
	}
	if c.Images.MaxPixels < 1 {
		wrong("images.max_pixels", c.Images.MaxPixels, "at least 1")
	}
	if c.Images.Memory < 64<<20 {
		wrong("images.memory", c.Images.Memory, "at least 67108864 (64 MiB)")
	}
	if !c.Console.off() {
		if _, err := c.console(); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// usersFile has the identities of those who may connect.
func (c config) usersFile() string { return filepath.Join(c.Data, "auth", "users.yaml") }

func (c config) broker() broker.Config {
	b := c.Broker
	return broker.Config{
		Host: b.Host, Port: b.Port, MQTTPort: b.MQTTPort, WebSocketPort: b.WebSocketPort,
		StoreDir: filepath.Join(c.Data, "broker"), MaxStore: b.MaxStore,
		User: b.User, Password: b.Password, Token: b.Token, Anonymous: b.Anonymous,
		Users: c.usersFile(), Prefix: c.Prefix, Origins: b.WebSocketOrigins,
		TLS: access.TLSFiles{Cert: b.TLS.Cert, Key: b.TLS.Key, CA: b.TLS.CA, Verify: access.ClientCerts(b.TLS.Verify)},
	}
}

func (c config) topology() stream.Topology {
	return stream.Topology{
		Names:          stream.Names{Prefix: c.Prefix},
		FramesMaxBytes: c.Keep.FramesBytes, FramesMaxAge: c.Keep.FramesAge,
		EventsMaxBytes: c.Keep.EventsBytes, EventsMaxAge: c.Keep.EventsAge,
		Replicas: c.Keep.Replicas, Cluster: c.Keep.Placement.Cluster, Tags: c.Keep.Placement.Tags,
	}
}
