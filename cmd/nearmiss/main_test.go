package main

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"
)

func TestVersion(t *testing.T) {
	var out, errs bytes.Buffer
	if code := run(context.Background(), []string{"version", "--json"}, &out, &errs); code != 0 {
		t.Fatalf("exit code %d: %s", code, errs.String())
	}
	var v map[string]string
	if err := json.Unmarshal(out.Bytes(), &v); err != nil {
		t.Fatal(err)
	}
	if v["version"] == "" || v["commit"] == "" {
		t.Fatalf("version and commit are missing: %v", v)
	}
}

func TestUnknownCommandFailsWithUsage(t *testing.T) {
	var out, errs bytes.Buffer
	if code := run(context.Background(), []string{"nonsense"}, &out, &errs); code != 2 {
		t.Fatalf("exit code %d, want 2", code)
	}
	if !strings.Contains(errs.String(), "nonsense") {
		t.Fatalf("the error does not name the command: %s", errs.String())
	}
}
