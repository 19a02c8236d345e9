package main

import (
	"strings"
	"testing"
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
