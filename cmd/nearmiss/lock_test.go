package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/access"
	"github.com/nearmiss/nearmiss/stream/broker"
	"github.com/nearmiss/nearmiss/stream/metrics"
)

// TestMetricsSayWhenTheBrokersCertificatesEnd, by their files.
func TestMetricsSayWhenTheBrokersCertificatesEnd(t *testing.T) {
	data := filepath.Join(t.TempDir(), "nearmiss-data")
	program(t, 0, "lock", "127.0.0.1", "--listen=127.0.0.1", "--data="+data)
	file := func(name string) string { return filepath.Join(data, "tls", name) }
	b, err := broker.New(broker.Config{
		Port: -1, StoreDir: t.TempDir(), TLS: access.TLSFiles{Cert: file("server.crt"), Key: file("server.key"), CA: file("ca.crt")},
	}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	v := &observer{Metrics: metrics.New(metrics.Build{})}
	v.certificates(b)
	families, err := v.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	ends := map[string]float64{}
	for _, f := range families {
		if f.GetName() == "nearmiss_certificate_expiry_timestamp_seconds" {
			for _, m := range f.GetMetric() {
				ends[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
			}
		}
	}
	for _, name := range []string{"server.crt", "ca.crt"} {
		c, err := access.ReadCert(file(name))
		if err != nil {
			t.Fatal(err)
		}
		if got, want := ends[file(name)], float64(c.NotAfter.Unix()); got != want {
			t.Errorf("%s ends at %v, metrics say %v", name, want, got)
		}
	}
	if len(ends) != 2 {
		t.Errorf("%d certificates: %v", len(ends), ends)
	}
}

// TestABundleSaysWhereTheBrokerIs: by its first name, or its first address where it
// has none; where its certificate knows neither, somebody has to say it.
func TestABundleSaysWhereTheBrokerIs(t *testing.T) {
	dir := t.TempDir()
	for hosts, want := range map[string]string{
		"10.0.0.5 plant.example.org": "tls://plant.example.org:4333",
		"10.0.0.5 10.0.0.6":          "tls://10.0.0.5:4333",
	} {
		data := filepath.Join(dir, hosts)
		program(t, 0, append([]string{"lock", "--port=4333", "--data=" + data}, strings.Fields(hosts)...)...)
		program(t, 0, "users", "add", "worker", "w1", "--bundle", filepath.Join(data, "w1"), "--data="+data)
		conf, err := loadConfig(filepath.Join(data, "w1", "nearmiss.yaml"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if conf.Server != want {
			t.Errorf("a broker on %s is reached at %q, want %q", hosts, conf.Server, want)
		}
	}

	data := filepath.Join(dir, "by hand")
	tls := "--dir=" + filepath.Join(data, "tls")
	program(t, 0, "tls", "ca", tls)
	program(t, 0, "tls", "issue", "server", "server", "--san", "localhost", tls)
	_, errs := program(t, exitUsage, "users", "add", "worker", "w1", "--bundle", filepath.Join(data, "w1"), "--data="+data)
	if !strings.Contains(errs, "--address") {
		t.Errorf("of a certificate for localhost: %s", errs)
	}
	_, errs = program(t, exitUsage, "users", "add", "camera", "phone", "--detector", "parts", "--mqtt", "--bundle", filepath.Join(data, "phone"), "--data="+data)
	if !strings.Contains(errs, "password") {
		t.Errorf("for an MQTT client: %s", errs)
	}
}

// TestAnInstallationIsReadWhileUsersChange: nobody answers for a moment then, which
// whatever is asked waits for. The broker is a process of its own, since its reload races (nats-server
// 2.15.3).
func TestAnInstallationIsReadWhileUsersChange(t *testing.T) {
	dir := t.TempDir()
	data := filepath.Join(dir, "nearmiss-data")
	in := "--data=" + data
	program(t, 0, "lock", "127.0.0.1", "--listen=127.0.0.1", in)
	b, at := runBroker(t, "--config="+filepath.Join(data, "nearmiss.yaml"))
	conf, err := loadConfig(filepath.Join(data, "desk", "nearmiss.yaml"), nil)
	if err != nil {
		t.Fatal(err)
	}
	opts, err := conf.Client.flags().options(at)
	if err != nil {
		t.Fatal(err)
	}
	js, err := stream.Names{}.JetStreamOn(brokertest.Client(t, at, opts...))
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	reads := map[string]func(*stream.Installation) error{
		"status": func(in *stream.Installation) error { _, err := in.Status(ctx); return err },
		"levels": func(in *stream.Installation) error { _, err := in.Levels(ctx); return err },
		"detectors": func(in *stream.Installation) error {
			d, err := in.Detectors(ctx)
			if err == nil {
				_, err = d.List(ctx)
			}
			return err
		},
		"releases": func(in *stream.Installation) error {
			r, err := in.Registry(ctx)
			if err == nil {
				_, err = r.List(ctx, "")
			}
			return err
		},
		"normals":      func(in *stream.Installation) error { _, err := in.Normals().List(ctx, "parts", false); return err },
		"events":       func(in *stream.Installation) error { _, err := in.Events(ctx, stream.EventFilter{}, 0, 10); return err },
		"dead letters": func(in *stream.Installation) error { _, err := in.DeadLetters(ctx, 10); return err },
		"evidence":     func(in *stream.Installation) error { _, err := in.ListEvidence(ctx, "parts"); return err },
	}
	stop, read := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		defer func() { read <- n }()
		for {
			select {
			case <-stop:
				return
			default:
			}
			for what, ask := range reads {
				if err := ask(stream.NewInstallation(js, stream.Names{})); err != nil {
					t.Errorf("%s, round %d: %v", what, n, err)
				}
			}
			n++
		}
	}()
	changes := func() int { return strings.Count(b.stderr(), "users have changed") }
	for i := range 8 {
		before := changes()
		program(t, 0, "users", "add", "camera", fmt.Sprint("line", i), "--detector", "parts", "--bundle", filepath.Join(dir, fmt.Sprint(i)), in)
		eventually.True(t, "the broker has another user", func() bool { return changes() > before })
	}
	close(stop)
	t.Logf("everything was read %d times", <-read)
}

// TestLockedWhileFramesFlow goes through the runbook's start with TLS and users, two
// commands a machine, with every part in a process of its own. Then, while frames
// flow, keys are rotated, a camera is shut out, the certificate is renewed, the
// authority is exchanged and the broker is started again: no frame is lost.
func TestLockedWhileFramesFlow(t *testing.T) {
	needRuntime(t)
	dir := t.TempDir()
	data, folder := filepath.Join(dir, "nearmiss-data"), func(name string) string { return filepath.Join(dir, name) }
	in := "--data=" + data
	// The machine of the broker.
	program(t, 0, "lock", "127.0.0.1", "--listen=127.0.0.1", in)
	conf := "--config=" + filepath.Join(data, "nearmiss.yaml")
	up, at := runBroker(t, conf)
	way := lastingFor(t, at)
	at = "tls://" + way.Addr()
	as := func(bundle string, args ...string) []string { // the free port is not the one in the bundles
		return append(args, "--config", filepath.Join(bundle, "nearmiss.yaml"), "--server", at)
	}
	desk := func(args ...string) string {
		t.Helper()
		out, _ := program(t, 0, as(filepath.Join(data, "desk"), args...)...)
		return out
	}
	if _, errs := program(t, 1, "status", "--server", at); !strings.Contains(errs, "certificate") {
		t.Errorf("without the authority: %s", errs)
	}
	if out := desk("status"); !strings.Contains(out, "certificate server is good until") || strings.Contains(out, "renew it") {
		t.Errorf("status says of certificates:\n%s", out)
	}

	// The other machines: a folder of its own for each.
	program(t, 0, "users", "add", "worker", "w1", "--bundle", folder("w1"), in)
	program(t, 0, "users", "add", "subscriber", "lamp", "--detector", "pub", "--bundle", folder("lamp"), in)
	if lamp, err := loadConfig(filepath.Join(folder("lamp"), "nearmiss.yaml"), nil); err != nil || lamp.values()["js-api-prefix"] != access.SubscriberAPIPrefix {
		t.Errorf("a subscriber's folder does not say where JetStream answers: %+v, %v", lamp.Client, err)
	}
	for _, name := range []string{"line1", "line2"} {
		program(t, 0, "users", "add", "camera", name, "--detector", "pub", "--bundle", folder(name), in)
	}
	normals, release := folder("normals"), folder("release")
	if err := os.Mkdir(normals, 0o755); err != nil {
		t.Fatal(err)
	}
	drawImages(t, normals, 30, 0)
	program(t, 0, "fit", "--normals", normals, "--backbone", randomModel(t), "--out", release, "--alpha", "0.2", "--seed", "1")
	desk("releases", "pub", "publish", release, "--promote")
	worker := start(t, as(folder("w1"), "worker", "--data", folder("worker"), "--threads", "1")...)
	worker.logged("release is in service")
	camera := func(name string, more ...string) *process {
		return start(t, as(folder(name), append([]string{"camera", normals, "--detector", "pub", "--camera", name, "--json"}, more...)...)...)
	}
	line1, line2 := camera("line1", "--loop", "--fps", "10"), camera("line2", "--loop", "--fps", "10")
	scored := func() (n, rejected uint64) {
		t.Helper()
		var st struct {
			Workers []stream.WorkerStatus
		}
		eventually.True(t, "the worker says what it has scored", func() bool { // one that is busy does not answer at once
			var out, errs bytes.Buffer
			if run(t.Context(), as(filepath.Join(data, "desk"), "status", "--json", "--workers=500ms"), &out, &errs) != 0 {
				t.Logf("while users and certificates change: %s", errs.String())
				return false
			}
			if err := json.Unmarshal(out.Bytes(), &st); err != nil {
				t.Fatal(err)
			}
			return len(st.Workers) == 1
		})
		return st.Workers[0].Scored, st.Workers[0].Rejected
	}
	further := func(what string) {
		t.Helper()
		before, _ := scored()
		eventually.True(t, "frames are scored after "+what, func() bool { n, _ := scored(); return n > before+5 })
	}
	published := func(p *process) uint64 {
		t.Helper()
		if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		var s struct{ Published uint64 }
		if err := json.Unmarshal([]byte(p.line("the camera's counters", func(l string) bool { return strings.HasPrefix(l, "{") })), &s); err != nil {
			t.Fatal(err)
		}
		<-p.exited
		return s.Published
	}

	eventually.True(t, "both cameras are there", func() bool {
		out := desk("status", "--json", "--workers=10ms")
		return strings.Contains(out, `"camera":"line1"`) && strings.Contains(out, `"camera":"line2"`)
	})
	further("the start")
	program(t, 0, "users", "rotate", "line1", "--bundle", folder("line1"), in)
	program(t, 0, "users", "rotate", "w1", "--bundle", folder("w1"), in)
	further("a rotation")
	program(t, 0, "users", "disable", "line2", in)
	line2.logged("the broker does not let this client in any more")
	further("a camera was shut out")
	cert := filepath.Join(data, "tls", "server.crt")
	tls := "--dir=" + filepath.Join(data, "tls")
	program(t, 0, "tls", "renew", cert, tls)
	further("a renewal")
	program(t, 0, "tls", "ca", "--replace", tls)
	for _, name := range []string{"w1", "line1", "nearmiss-data/desk"} { // everybody gets the new ca.crt
		b, err := os.ReadFile(filepath.Join(data, "tls", "ca.crt"))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name, "ca.crt"), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	program(t, 0, "tls", "renew", cert, tls)
	further("another authority")
	way.away()
	up.stop()
	up, now := runBroker(t, conf)
	way.lead(now)
	further("the broker's restart")

	frames := published(line1)
	again := camera("line1", "--count", "20") // with the new key
	again.line("its counters", func(l string) bool { return strings.HasPrefix(l, `{"published":20,`) })
	<-again.exited
	frames += 20
	// A frame that the broker had stored when it shut the camera out was never
	// acknowledged, and of one that was interrupted the camera may not know.
	out := published(line2)
	eventually.True(t, "all frames are scored", func() bool { n, _ := scored(); return n >= frames+out })
	n, rejected := scored()
	if n > frames+out+2 || rejected > 0 {
		t.Errorf("%d frames of %d and %d are scored, %d rejected", n, frames, out, rejected)
	}
	t.Logf("%d and %d frames, %d scored", frames, out, n)
	worker.stop()
	up.stop()
}
