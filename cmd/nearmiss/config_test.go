package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestSampleConfigurationIsTheDefaults(t *testing.T) {
	got, err := loadConfig("../../deployments/nearmiss.yaml", map[string]string{})
	if err != nil {
		t.Fatal(err)
	}
	if err := got.Validate(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(defaultConfig(), got); diff != "" {
		t.Fatalf("the sample says otherwise than the defaults (-default +sample):\n%s", diff)
	}
}

func TestEnvironmentOverridesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.yaml")
	write(t, path, "data: from-file\nworker: {batch: 3}\nkeep: {frames_age: 1h}\n")
	c, err := loadConfig(path, map[string]string{"NEARMISS_WORKER_BATCH": "5", "NEARMISS_BROKER_PORT": "5000"})
	if err != nil {
		t.Fatal(err)
	}
	if c.Data != "from-file" || c.Worker.Batch != 5 || c.Keep.FramesAge != time.Hour || c.Broker.Port != 5000 {
		t.Fatalf("%+v", c)
	}
	if c.Worker.Device != "cpu" {
		t.Fatalf("what the file leaves out is not the default: %+v", c.Worker)
	}
}

// TestTheDemoHasItsOwnFolder, unless it is told another.
func TestTheDemoHasItsOwnFolder(t *testing.T) {
	t.Setenv("NEARMISS_DATA", "")
	path := filepath.Join(t.TempDir(), "c.yaml")
	write(t, path, "data: from-file\n")
	for want, args := range map[string][]string{
		"nearmiss-data": {"up"}, "nearmiss-demo": {"up", "--demo"}, "from-file": {"up", "--demo", "--config", path},
		"/elsewhere": {"up", "--demo", "--data", "/elsewhere"},
	} {
		var c cli
		k, err := newParser(&c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := k.Parse(args); err != nil {
			t.Fatal(err)
		}
		if conf, err := c.Up.settings(); err != nil || conf.Data != want {
			t.Errorf("%v: the data go to %q, %v", args, conf.Data, err)
		}
	}
}

func TestConfigurationMistakesAreNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.yaml")
	write(t, path, "data: x\nworker:\n  batches: 3\n")
	_, err := loadConfig(path, nil)
	if err == nil || !strings.Contains(err.Error(), "batches") || !strings.Contains(err.Error(), "3:") {
		t.Errorf("an unknown key gave: %v", err)
	}

	c := defaultConfig()
	c.Data, c.Server, c.Broker.Port, c.Worker.Device, c.Worker.Batch = "", "nowhere", 70000, "gpu9", 0
	err = c.Validate()
	for _, key := range []string{"data:", "server:", "port 70000", "worker.device:", "worker.batch:"} {
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%s is not named in: %v", key, err)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestClientCommandsReadTheirBrokerFromTheFile: server, identity and certificates,
// where neither a flag nor the environment says otherwise; a broker's own flags of
// the same names are left alone.
func TestClientCommandsReadTheirBrokerFromTheFile(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"me.nk", "other.nk", "ca.crt", "me.crt", "me.key"} {
		write(t, file(name), "x")
	}
	write(t, file("c.yaml"), "server: tls://broker.example.org:4222\nprefix: plant\nclient:\n  nkey: "+file("me.nk")+"\n  tls: {ca: "+file("ca.crt")+", cert: "+file("me.crt")+", key: "+file("me.key")+"}\n")
	parse := func(args ...string) cli {
		t.Helper()
		var c cli
		k, err := newParser(&c)
		if err == nil {
			_, err = k.Parse(args)
		}
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	at := "--config=" + file("c.yaml")
	got := parse("status", at).Status.serverFlags
	want := serverFlags{
		Server: "tls://broker.example.org:4222", Prefix: "plant", configFlag: configFlag{file("c.yaml")},
		credentialFlags: credentialFlags{NKey: file("me.nk"), TLSCA: file("ca.crt"), TLSCert: file("me.crt"), TLSKey: file("me.key")},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(serverFlags{})); diff != "" {
		t.Error(diff)
	}
	t.Run("flags and the environment go before it", func(t *testing.T) {
		t.Setenv("NEARMISS_SERVER", "nats://127.0.0.1:1")
		c := parse("users", "check", "me", "--nkey="+file("other.nk"), at).Users.Check
		if c.Server != "nats://127.0.0.1:1" || c.NKey != file("other.nk") || c.TLSCA != file("ca.crt") {
			t.Errorf("%+v", c.serverFlags)
		}
	})
	w := parse("worker", at).Worker
	if w.NKey != file("me.nk") || w.Server != "tls://broker.example.org:4222" {
		t.Errorf("a worker: %+v", w)
	}
	b := parse("broker", at).Broker
	if b.TLSCert != "" || b.TLSCA != "" || b.NKey != "" {
		t.Errorf("a broker took a client's files: %+v", b)
	}
	t.Setenv("NEARMISS_CONFIG", file("c.yaml"))
	if c := parse("status").Status; c.NKey != file("me.nk") {
		t.Errorf("NEARMISS_CONFIG: %+v", c)
	}
}

// TestAnEmptyConfigurationIsTheDefaults, and so is one of comments.
func TestAnEmptyConfigurationIsTheDefaults(t *testing.T) {
	for _, text := range []string{"", "\n", "# nothing\n"} {
		path := filepath.Join(t.TempDir(), "c.yaml")
		write(t, path, text)
		if got, err := loadConfig(path, map[string]string{}); err != nil || !cmp.Equal(got, defaultConfig()) {
			t.Errorf("%q: %v, %+v", text, err, got)
		}
	}
}
