package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/access"
)

// ownServer runs a nats-server with what users render writes.
func ownServer(t *testing.T, data string) string {
	t.Helper()
	auth := filepath.Join(t.TempDir(), "auth.conf")
	program(t, 0, "users", "render", "--out", auth, "--data", data)
	b, err := os.ReadFile(auth)
	if err != nil {
		t.Fatal(err)
	}
	return natsServer(t, string(b))
}

// natsServer runs a nats-server with accounts or users.
func natsServer(t *testing.T, auth string) string {
	t.Helper()
	dir := t.TempDir()
	conf := filepath.Join(dir, "nats.conf")
	if err := os.WriteFile(conf, []byte("listen: \"127.0.0.1:-1\"\njetstream { store_dir: \""+dir+"/js\" }\n"+auth), 0o600); err != nil {
		t.Fatal(err)
	}
	opts, err := server.ProcessConfigFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	return brokertest.Server(t, opts)
}

// lines has each line of a log.
type lines func(line []byte)

func (l lines) Write(b []byte) (int, error) {
	l(b)
	return len(b), nil
}

// serve runs a service in this process until the test ends, and returns where its
// health checks are.
func serve(t *testing.T, run func(context.Context, *output) error) string {
	t.Helper()
	at := make(chan string, 1)
	log := zerolog.New(lines(func(line []byte) {
		var l struct{ Listen string }
		if json.Unmarshal(line, &l) == nil && l.Listen != "" {
			at <- l.Listen
		}
	}))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, &output{Out: io.Discard, Err: io.Discard, Log: log}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	select {
	case a := <-at:
		return a
	case <-time.After(patience):
		t.Fatal("it does not serve")
		return ""
	}
}

// TestServicesBesideAServerOfOnesOwn: without control nobody can create a detector,
// and is told what to start; with it one can. The exporter shows the detector, and
// health asks each of the two.
func TestServicesBesideAServerOfOnesOwn(t *testing.T) {
	data := t.TempDir()
	in := "--data=" + data
	for _, u := range []string{"setup s1", "control c1", "operator desk", "operator exporter"} {
		program(t, 0, append(append([]string{"users", "add"}, strings.Fields(u)...), in)...)
	}
	url := ownServer(t, data)
	as := func(name string) serverFlags {
		return serverFlags{Server: url, Prefix: stream.DefaultPrefix, credentialFlags: credentialFlags{NKey: filepath.Join(data, "auth", name+".nk")}}
	}
	program(t, 0, "broker", "--setup", url, "--nkey", as("s1").NKey, in)
	create := []string{"detector", "create", "bolts", "--server", url, "--nkey", as("desk").NKey}
	if _, errs := program(t, exitFailed, create...); !strings.Contains(errs, "nearmiss control") {
		t.Errorf("without control: %s", errs)
	}
	if _, errs := program(t, exitFailed, "health", "--http", "127.0.0.1:1"); !strings.Contains(errs, "no service answers") {
		t.Errorf("of no service: %s", errs)
	}

	control := serve(t, (&controlCmd{serverFlags: as("c1"), httpFlag: httpFlag{HTTP: "127.0.0.1:0"}}).Run)
	exporter := serve(t, (&exporterCmd{serverFlags: as("exporter"), HTTP: "127.0.0.1:0"}).Run)
	for name, at := range map[string]string{"control": control, "exporter": exporter} {
		var out bytes.Buffer
		eventually.True(t, name+" is well", func() bool {
			out.Reset()
			return run(t.Context(), []string{"health", "--http", at, "--json"}, &out, io.Discard) == 0
		})
		if !strings.Contains(out.String(), name+": broker") {
			t.Errorf("health of %s: %s", name, out.String())
		}
	}
	eventually.True(t, "a detector is created", func() bool { return run(t.Context(), create, io.Discard, io.Discard) == 0 })
	eventually.True(t, "the exporter shows it", func() bool {
		resp, err := http.Get("http://" + exporter + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return err == nil && strings.Contains(string(b), `detector="bolts"`)
	})
}

// TestUsersOnAServerOfOnesOwn: check finds every right as it should be, and wrong
// where the server is not configured by this file; durable makes a subscriber's
// subscription, once.
func TestUsersOnAServerOfOnesOwn(t *testing.T) {
	data := t.TempDir()
	in := "--data=" + data
	for _, u := range []string{
		"setup s1", "operator desk", "camera line1 --detector parts --large", "worker w1", "trainer t1", "sinks k1",
		"subscriber lamp --detector parts --kind anomaly", "subscriber view --detector parts --live",
	} {
		program(t, 0, append(append([]string{"users", "add"}, strings.Fields(u)...), in)...)
	}
	at := "--server=" + ownServer(t, data)
	key := func(name string) string { return filepath.Join(data, "auth", name+".nk") }
	program(t, 0, "broker", "--setup", strings.TrimPrefix(at, "--server="), "--nkey", key("s1"), in)
	for _, name := range []string{"s1", "desk", "line1", "w1", "t1", "k1", "lamp", "view"} {
		out, _ := program(t, 0, "users", "check", name, at, in)
		if strings.Contains(out, "WRONG") || strings.Count(out, "refused") < 10 {
			t.Errorf("check %s:\n%s", name, out)
		}
	}
	file, err := access.Load(filepath.Join(data, "auth", "users.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	desk, err := file.Get("desk")
	if err != nil {
		t.Fatal(err)
	}
	all := natsServer(t, `authorization { users: [{ nkey: "`+desk.Key.Public+`" }] }`)
	if out, _ := program(t, 1, "users", "check", "desk", "--server="+all, in); strings.Count(out, "WRONG: allowed") < 10 {
		t.Errorf("check where everything is allowed:\n%s", out)
	}

	program(t, exitUsage, "users", "durable", "view", at, "--nkey", key("desk"), in)
	for range 2 {
		out, _ := program(t, 0, "users", "durable", "lamp", at, "--nkey", key("desk"), in)
		if !strings.Contains(out, "watch --durable lamp --js-api-prefix NM.API") {
			t.Errorf("durable says %q", out)
		}
	}
	opts, err := access.Credentials{NKey: key("lamp")}.Options("")
	if err != nil {
		t.Fatal(err)
	}
	nc := brokertest.Client(t, strings.TrimPrefix(at, "--server="), opts...)
	js, err := jetstream.NewWithAPIPrefix(nc, access.SubscriberAPIPrefix, jetstream.WithDefaultTimeout(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	c, err := js.Consumer(t.Context(), "NM_EVENTS", "watch-lamp")
	if err != nil {
		t.Fatal(err)
	}
	if got := c.CachedInfo().Config.FilterSubjects; len(got) != 1 || got[0] != "nearmiss.events.parts.*.anomaly" {
		if one := c.CachedInfo().Config.FilterSubject; one != "nearmiss.events.parts.*.anomaly" {
			t.Errorf("it filters %v %q", got, one)
		}
	}
}

// TestAFolderThatIsNotThere is refused by what does not set it up, and not made.
func TestAFolderThatIsNotThere(t *testing.T) {
	data := filepath.Join(t.TempDir(), "nearmis-data")
	if _, errs := program(t, exitFailed, "tls", "renew", "--dir", data); !strings.Contains(errs, "--dir") {
		t.Errorf("tls renew: %s", errs)
	}
	for _, what := range []string{"list", "rotate line1", "disable line1", "remove line1", "render", "check line1", "durable line1"} {
		_, errs := program(t, exitFailed, append(append([]string{"users"}, strings.Fields(what)...), "--data", data)...)
		if !strings.Contains(errs, "no such folder "+data) || !strings.Contains(errs, "--data") {
			t.Errorf("users %s: %s", what, errs)
		}
		if _, err := os.Stat(data); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("users %s has made the folder: %v", what, err)
		}
	}
}

// TestAnInterruptEndsTheWaitForOtherPrograms: somebody else has the file of users.
func TestAnInterruptEndsTheWaitForOtherPrograms(t *testing.T) {
	data := t.TempDir()
	program(t, 0, "users", "add", "operator", "desk", "--data", data)
	f, err := os.OpenFile(filepath.Join(data, "auth", "users.yaml.lock"), os.O_RDWR, 0)
	if err == nil {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx, interrupt := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	said := make(chan string, 1)
	go func() {
		ended <- run(ctx, []string{"users", "rotate", "desk", "--data", data}, io.Discard, lines(func(line []byte) {
			select {
			case said <- string(line):
			default:
			}
		}))
	}()
	select {
	case line := <-said: // after a second
		if !strings.Contains(line, "another program changes the same files") {
			t.Error(line)
		}
	case <-time.After(patience):
		t.Error("it does not say that it waits")
	}
	interrupt()
	select {
	case code := <-ended:
		if code != exitInterrupted {
			t.Errorf("exit code %d", code)
		}
	case <-time.After(patience):
		t.Fatal("it waits on")
	}
}
