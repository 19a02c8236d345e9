package main

import (
	"bytes"
	"context"
	"encoding/json"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/parquet-go/parquet-go"

	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/training/evaluate"
)

// plates are normal ones, defective ones and a release that was learnt from the
// normal ones.
type plates struct{ model, normals, bad, release string }

func fitPlates(t *testing.T) plates {
	t.Helper()
	dir := t.TempDir()
	p := plates{patchModel(t), filepath.Join(dir, "normals"), filepath.Join(dir, "bad"), filepath.Join(dir, "plates")}
	drawPlates(t, p.normals, 40, 1, false)
	drawPlates(t, p.bad, 3, 2, true)
	program(t, 0, "fit", "--normals", p.normals, "--backbone", p.model, "--out", p.release, "--score", "patch", "--false-alarm-rate", "15%", "--seed", "1")
	return p
}

// nextEvent is the next event that a watcher prints.
func (p *process) nextEvent() (e eventLine) {
	p.t.Helper()
	l := p.line("an event", func(l string) bool { return strings.HasPrefix(l, "{") })
	if err := json.Unmarshal([]byte(l), &e); err != nil {
		p.t.Fatalf("%s: %v", l, err)
	}
	return e
}

// TestAJourneyFromPicturesToAnAlarm: good pictures and a camera, an alarm, what
// people say of it, a new training, a threshold by hand.
func TestAJourneyFromPicturesToAnAlarm(t *testing.T) {
	p := fitPlates(t)
	up := start(t, "up", "--data", t.TempDir(), "--port=-1", "--backbone", p.model, "--json")
	at := "--server=" + up.natsAddress()
	do := func(args ...string) string {
		t.Helper()
		out, _ := program(t, 0, append(args, at)...)
		return out
	}
	status := func() stream.DetectorStatus {
		t.Helper()
		all := readLines[struct{ Detectors []stream.DetectorStatus }](t, do("status", "--json", "--workers=10ms"))
		if len(all) != 1 || len(all[0].Detectors) != 1 {
			t.Fatalf("status: %+v", all)
		}
		return all[0].Detectors[0]
	}
	do("releases", "plates", "publish", p.release, "--promote")
	eventually.True(t, "it is healthy", func() bool {
		var out, errs bytes.Buffer
		return run(t.Context(), []string{"health", "plates", at}, &out, &errs) == 0 && strings.Contains(out.String(), "served by 1 worker")
	})
	first := status()
	if first.Normals != 40 || first.Release == "" {
		t.Errorf("%+v", first)
	}

	watch := start(t, "watch", "plates", "--kind", "anomaly", "--since", "1h", "--json", at)
	do("camera", p.bad, "--detector", "plates", "--camera", "line1")
	var alarms []eventLine
	for range 3 {
		e := watch.nextEvent()
		if e.Camera != "line1" || e.Release != first.Release || e.ThresholdBy != "" || len(e.Regions) == 0 || !atSpot(e.Regions[0].X, e.Regions[0].Y, e.Regions[0].Width, e.Regions[0].Height) {
			t.Errorf("%+v", e)
		}
		alarms = append(alarms, e)
	}

	do("mark", "plates", "anomalous", alarms[0].ID)
	do("mark", "plates", "normal", alarms[1].ID)
	eventually.True(t, "both verdicts are taken", func() bool { s := status(); return s.Normals == 41 && s.Anomalies == 1 })
	if _, errs := program(t, exitFailed, "mark", "plates", "normal", "no-such-event", at); !strings.Contains(errs, "no-such-event") || !strings.Contains(errs, "not found") {
		t.Errorf("an unknown event: %s", errs)
	}

	extended := ""
	eventually.True(t, "its bank has the marked one", func() bool { extended = status().Release; return extended != first.Release })
	do("train", "plates", "--wait", "--force")
	trained := status()
	if trained.Release == extended || trained.Release == "" || trained.LastJob == nil || trained.LastJob.Normals != 41 {
		t.Errorf("after the training: %+v", trained)
	}

	if out := do("detector", "set", "plates", "--threshold", "1e-9"); !strings.Contains(out, "set by hand") {
		t.Errorf("detector set: %s", out)
	}
	eventually.True(t, "the new release and the threshold are in force", func() bool {
		do("camera", p.normals, "--detector", "plates", "--camera", "line2", "--count", "1") // normal, until they are
		for {
			select {
			case l := <-watch.lines:
				var e eventLine
				if err := json.Unmarshal([]byte(l), &e); err != nil {
					t.Fatalf("%s: %v", l, err)
				}
				if e.Camera == "line2" && e.ThresholdBy == stream.ThresholdByHand && *e.Threshold == 1e-9 && e.Release == trained.Release {
					return true
				}
			default:
				return false
			}
		}
	})
	watch.stop()
	up.stop()
}

// TestAJourneyOfPythonPrograms: a camera, a subscriber and requests in Python, each
// a process with an identity of its own, by the commands of stream/README.md.
func TestAJourneyOfPythonPrograms(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("python3 is not installed: the example client is not tried")
	}
	p, data := fitPlates(t), t.TempDir()
	for _, u := range []string{"operator desk", "camera line1 --detector plates --large", "subscriber view --detector plates --live", "subscriber lamp --detector plates"} {
		program(t, 0, append(append([]string{"users", "add"}, strings.Fields(u)...), "--data="+data)...)
	}
	key := func(name string) string { return filepath.Join(data, "auth", name+".nk") }
	up := start(t, "up", "--data", data, "--port=-1", "--backbone", p.model, "--json")
	url := up.natsAddress()
	desk := []string{"--server=" + url, "--nkey=" + key("desk")}
	program(t, 0, append([]string{"releases", "plates", "publish", p.release, "--promote"}, desk...)...)
	eventually.True(t, "it is healthy", func() bool {
		return run(t.Context(), append([]string{"health", "plates"}, desk...), new(bytes.Buffer), new(bytes.Buffer)) == 0
	})

	// The page's commands, where the files lie that they name.
	dir := t.TempDir()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(root, "stream"), filepath.Join(dir, "stream")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(p.bad, filepath.Join(dir, "new")); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(root, "stream/README.md"))
	if err != nil {
		t.Fatal(err)
	}
	commands := map[string][]string{}
	for line := range strings.Lines(string(page)) {
		line, _, _ := strings.Cut(strings.TrimSpace(line), " #")
		if args := strings.Fields(line); len(args) > 3 && args[0] == "python3" {
			commands[args[2]] = args[1:]
		}
	}
	if len(commands) != 4 {
		t.Fatalf("the page has %v", commands)
	}
	client := func(who, verb string, more ...string) *exec.Cmd {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		t.Cleanup(cancel)
		cmd := exec.CommandContext(ctx, python, append(append([]string{}, commands[verb]...), more...)...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "NEARMISS_SERVER="+url, "NEARMISS_NKEY="+key(who))
		return cmd
	}
	output := func(cmd *exec.Cmd) string {
		t.Helper()
		var errs bytes.Buffer
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %v: %s%s", cmd.Args, err, out, errs.String())
		}
		return string(out)
	}
	fits := fitsEventSchema(t)
	valid := func(text string) (e eventLine) {
		t.Helper()
		err := fits([]byte(text))
		if err == nil {
			err = json.Unmarshal([]byte(text), &e)
		}
		if err != nil {
			t.Errorf("%s: %v", text, err)
		}
		return e
	}

	view := launch(t, client("view", "watch"))
	view.logged("listening")
	output(client("line1", "camera"))
	output(client("line1", "camera", "--limit", "1000")) // the same pictures as objects
	ids, id := map[string]bool{}, ""
	for range 6 {
		e := valid(view.line("an event", func(l string) bool { return strings.HasPrefix(l, "{") }))
		if e.Kind != stream.KindAnomaly || e.Camera != "line1" || e.Score == nil || e.Width != plateW || !strings.HasPrefix(e.Source, "new/plate0") {
			t.Errorf("%+v", e)
		}
		ids[e.ID], id = true, e.ID
	}
	if len(ids) != 6 {
		t.Errorf("%d events", len(ids))
	}
	// A subscriber that remembers what it has seen goes on where it was.
	durable := []string{"--durable", "watch-lamp"}
	for _, n := range []string{"4", "2"} {
		for line := range strings.Lines(output(client("lamp", "watch", append(durable, "--count", n)...))) {
			if e := valid(line); e.Kind == stream.KindAnomaly {
				delete(ids, e.ID)
			}
		}
	}
	for len(ids) > 0 { // it also hears of the release
		for line := range strings.Lines(output(client("lamp", "watch", append(durable, "--count", "1")...))) {
			delete(ids, valid(line).ID)
		}
	}

	if e := valid(output(client("desk", "score"))); e.Anomalous == nil || !*e.Anomalous || e.Camera != "-" {
		t.Errorf("score-now says %+v", e)
	}
	commands["mark"] = replaced(commands["mark"], "EVENT", id)
	if out := output(client("desk", "mark")); out != "marked normal\n" {
		t.Errorf("mark says %s", out)
	}
	commands["mark"] = replaced(commands["mark"], id, "no-such-event")
	if out, err := client("desk", "mark").CombinedOutput(); err == nil || !strings.Contains(string(out), "(not_found)") || strings.Count(string(out), "\n") != 1 {
		t.Errorf("mark of an unknown event: %v: %s", err, out)
	}
	// Nobody is somebody else.
	if out, err := client("view", "camera").CombinedOutput(); err == nil || !strings.Contains(string(out), "Permissions Violation") {
		t.Errorf("a subscriber publishes frames: %v: %s", err, out)
	}
	up.stop()
}

// replaced is args with one of them for another.
func replaced(args []string, old, with string) []string {
	out := slices.Clone(args)
	for i := range out {
		if out[i] == old {
			out[i] = with
		}
	}
	return out
}

// TestAJourneyIntoANotebook: the figures of an evaluation come out of its file of
// predictions again.
func TestAJourneyIntoANotebook(t *testing.T) {
	needRuntime(t)
	dir := t.TempDir()
	drawImages(t, filepath.Join(dir, "train/good"), 12, 0)
	drawImages(t, filepath.Join(dir, "test/good"), 8, 0)
	drawImages(t, filepath.Join(dir, "test/dent"), 8, 1)
	table := filepath.Join(t.TempDir(), "images.parquet")
	text, _ := program(t, 0, "eval", "--data", dir, "--protocol", "mvtec", "--backbone", randomModel(t), "--predictions", table, "--json")
	results := readLines[evaluate.Result](t, text)
	type row struct {
		Path  string   `parquet:"path"`
		Label string   `parquet:"label"`
		Score *float64 `parquet:"score,optional"`
		Truth *bool    `parquet:"truth,optional"`
	}
	rows, err := parquet.ReadFile[row](table)
	if err != nil {
		t.Fatal(err)
	}
	var normal, anomalous []float64
	for _, r := range rows {
		switch {
		case r.Score == nil || r.Truth == nil || *r.Truth != (r.Label == "dent"):
			t.Fatalf("%+v", r)
		case *r.Truth:
			anomalous = append(anomalous, *r.Score)
		default:
			normal = append(normal, *r.Score)
		}
	}
	if len(results) != 1 || len(normal) != 8 || len(anomalous) != 8 {
		t.Fatalf("%d results, %d and %d rows", len(results), len(normal), len(anomalous))
	}
	if got, want := evaluate.AUROC(normal, anomalous), results[0].AUROC; math.Abs(got-want) > 1e-9 {
		t.Errorf("AUROC %v from the file, eval says %v", got, want)
	}
}
