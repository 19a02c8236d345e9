package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/broker"
	"github.com/nearmiss/nearmiss/stream/check"
)

// TestHealthOfAnInstallationThatServesNothing; one that serves is healthy in
// TestAJourneyFromPicturesToAnAlarm.
func TestHealthOfAnInstallationThatServesNothing(t *testing.T) {
	if _, errs := program(t, exitFailed, "health", "--server", "nats://127.0.0.1:1"); !strings.Contains(errs, "no broker answers") || strings.Count(errs, "\n") != 1 {
		t.Errorf("without a broker: %s", errs)
	}
	if out, _ := program(t, exitFailed, "health", "--json", "--server", "nats://127.0.0.1:1"); !strings.Contains(out, `"healthy":false`) || !strings.Contains(out, "no broker answers") {
		t.Errorf("without a broker: %s", out)
	}
	at := "--server=" + startBroker(t)
	if out, errs := program(t, exitFailed, "health", "--json", at, "--workers=100ms"); !strings.Contains(out, `{"healthy":false,"workers":0,"reasons":["no worker answers"]}`) || !strings.Contains(errs, "not healthy: no worker answers") {
		t.Errorf("without a worker: %s%s", out, errs)
	}
}

// TestCheckSaysWhatToDo: what the checks find is in stream/check's tests.
func TestCheckSaysWhatToDo(t *testing.T) {
	out, errs := program(t, exitFailed, "check", "--server", "nats://127.0.0.1:1", "--as", "console")
	if !strings.Contains(out, "failed   server        no broker answers") || !strings.Contains(errs, "1 of 2 checks failed: server") {
		t.Errorf("without a broker: %s%s", out, errs)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b, _ := brokertest.Start(t, broker.Config{Port: -1}) // a small disk has smaller streams, of which check warns
	if err := stream.Ensure(t.Context(), brokertest.Streams(t, b.ClientURL()), defaultConfig().topology()); err != nil {
		t.Fatal(err)
	}
	at := "--server=" + b.ClientURL()
	var levels map[string]string
	eventually.True(t, "the server is near enough", func() bool { // of a machine that is busy it is not always
		out, errs = program(t, exitFailed, "check", "--json", "--data", file, "--wait=1ms", at)
		levels = map[string]string{}
		for _, f := range readLines[check.Finding](t, out) {
			levels[f.Check] = f.Level
		}
		return levels["server"] == check.OK
	})
	for name, want := range map[string]string{
		"program": check.OK, "runtime": check.OK, "folder": check.Failed, "server": check.OK, "rights": check.OK, "payload": check.OK,
		"jetstream": check.OK, "streams": check.OK, "space": check.OK, "clock": check.OK, "services": check.Warning,
	} {
		if levels[name] != want {
			t.Errorf("%s: %s, want %s", name, levels[name], want)
		}
	}
	if !strings.Contains(errs, "1 of 11 checks failed: folder") {
		t.Errorf("it says %s", errs)
	}
	if _, errs := program(t, exitUsage, "check", "--as", "nobody"); !strings.Contains(errs, "--as") {
		t.Errorf("an unknown role: %s", errs)
	}
}

func TestACameraOfAnUnknownDetectorIsWarned(t *testing.T) {
	at := "--server=" + startBroker(t)
	publish := func(detector string) string {
		_, errs := program(t, 0, "camera", "synthetic:parts", "--count", "1", "--detector", detector, "--camera", "line1", at)
		return errs
	}
	if errs := publish("parst"); !strings.Contains(errs, "no such detector") || !strings.Contains(errs, "parst") {
		t.Errorf("it says: %s", errs)
	}
	program(t, 0, "detector", "create", "parts", at)
	if errs := publish("parts"); strings.Contains(errs, "no such detector") {
		t.Errorf("of a detector that is there: %s", errs)
	}
}
