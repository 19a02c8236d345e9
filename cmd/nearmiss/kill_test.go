package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/inference/release"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/registry"
)

// quickProfile goes through every step of fitymi in seconds: a generator that
// is looked at often, two fine-tunes, the gate.
const quickProfile = `{
	"profile": "cpu", "per_normal": 1, "members": 2, "least_steps": 0,
	"sources": [{"kind": "sdedit", "share": 1}],
	"sde": {
		"network": {"size": 8, "channels": 3, "width": 8, "multipliers": [1], "blocks": 1, "attention": []},
		"train": {"batch": 4}, "max_steps": 40, "probe_every": 4, "probes": 8, "mix": false,
		"stop": {"kind": "steps", "value": 40}, "sampler_steps": 3
	},
	"recipe": {"batch": 8, "epochs": 10},
	"gate": {"off": true, "resamples": 100, "strengths": [0.5], "kinds": ["swirl", "shade"]}
}`

// fakery is a broker and what detectors that learn by fitymi need.
type fakery struct {
	t        *testing.T
	url      string
	at       string // flag
	config   string // of trainers
	backbone string
	normals  string
	nc       *nats.Conn
	js       jetstream.JetStream
	jobs     *stream.Jobs
}

func newFakery(t *testing.T, url string) *fakery {
	t.Helper()
	needRuntime(t)
	dir := t.TempDir()
	f := &fakery{
		t: t, url: url, at: "--server=" + url, config: filepath.Join(dir, "trainer.yaml"),
		backbone: filepath.Join(dir, "model.onnx"), normals: filepath.Join(dir, "normals"),
	}
	if err := os.Mkdir(filepath.Join(dir, "profiles"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "profiles", "quick.json"), quickProfile)
	write(t, filepath.Join(dir, "profiles", "long.json"), strings.Replace(quickProfile, `"members": 2`, `"members": 6`, 1))
	write(t, f.config, fmt.Sprintf("trainer: {profiles: %q, models: %q, takeover: 2s}\n", filepath.Join(dir, "profiles"), dir))
	if _, err := writeRandomBackbone(tinySpec, 1, f.backbone); err != nil {
		t.Fatal(err)
	}
	drawImages(t, f.normals, 45, 0)
	l := listen(t, url)
	f.nc, f.js = l.nc, l.js
	var err error
	if f.jobs, err = stream.NewInstallation(l.js, stream.Names{}).Jobs(t.Context()); err != nil {
		t.Fatal(err)
	}
	return f
}

// detector creates a detector that has the normals.
func (f *fakery) detector(name, profile string) {
	f.t.Helper()
	program(f.t, 0, "detector", "create", name, "--method", "fitymi", "--profile", profile, "--backbone", "model",
		"--false-alarm-rate", "0.2", f.at)
	program(f.t, 0, "normals", "add", name, f.normals, f.at)
}

// trainer starts a trainer with a folder of its own, as on another machine.
func (f *fakery) trainer(data string) *process {
	f.t.Helper()
	return start(f.t, "trainer", "--server", f.url, "--data", data, "--config", f.config, "--threads", "1")
}

// request asks for a training whose every draw is the same.
func (f *fakery) request(detector, job string) {
	f.t.Helper()
	if _, err := f.jobs.Request(f.t.Context(), stream.TrainRequest{Job: job, Detector: detector, Seed: 7, Promote: true}); err != nil {
		f.t.Fatal(err)
	}
}

// point is a place in a job.
type point struct {
	phase   string
	step    int
	trained int // steps of the generator, for what is done between them
}

// placing names the places of a job from what one life of a trainer says, in
// turn. Some of it names none.
func placing() func(stream.Progress) (point, bool) {
	trained := -1
	return func(p stream.Progress) (point, bool) {
		at := point{p.Phase, p.Step, 0}
		switch p.Phase {
		case "fakes-1: train":
			trained = p.Step
		case "fakes-1: probe", "fakes-1: measure": // after every few steps, and in many small ones
			at.trained = trained
			return at, trained >= 0 && (p.Step%16 == 1 || p.Phase == "fakes-1: measure")
		case "fakes-1: sample", "fakes-1: write":
			return at, p.Step%16 == 0
		}
		return at, p.Steps > 0
	}
}

// follow returns the points of a job as they are told on a connection.
func (f *fakery) follow(nc *nats.Conn, detector, job string) <-chan stream.Progress {
	f.t.Helper()
	told := make(chan stream.Progress, 100_000)
	sub, err := nc.Subscribe(stream.Names{}.Progress(detector, job), func(m *nats.Msg) {
		var p stream.Progress
		if json.Unmarshal(m.Data, &p) == nil {
			told <- p
		}
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = sub.Unsubscribe() })
	if err := nc.Flush(); err != nil {
		f.t.Fatal(err)
	}
	return told
}

// end returns the record of a job that has ended.
func (f *fakery) end(job string) stream.Job {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), patience)
	defer cancel()
	j, err := f.jobs.Wait(ctx, job, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	if j.State != stream.JobDone || !j.Promoted {
		f.t.Fatalf("job %s: %s", job, jobText(j))
	}
	return j
}

// manifest is that of a release in the registry.
func (f *fakery) manifest(r *registry.Registry, digest string) (m release.Manifest) {
	f.t.Helper()
	rel, err := r.Show(f.t.Context(), digest)
	if err == nil {
		err = json.Unmarshal(rel.Manifest, &m)
	}
	if err != nil {
		f.t.Fatal(err)
	}
	return m
}

// TestATrainerKilledTenTimesEndsItsJob kills the trainer that has a fitymi job,
// at ten places drawn from all of the job's. Each time another trainer, with a
// folder of its own, takes it up from the last checkpoint. The model and the bank
// are those of a job that nobody disturbed.
func TestATrainerKilledTenTimesEndsItsJob(t *testing.T) {
	t.Parallel()               // most of its time it waits for dead trainers to be missed
	const kills, tries = 10, 5 // of a job since its last checkpoint
	f := newFakery(t, startBroker(t))
	reg := openRegistry(t, f.js)
	trainers := map[int]*process{} // by process id
	data := map[int]string{}
	begin := func(dir string) {
		p := f.trainer(dir)
		p.logged("trainer is up")
		trainers[p.cmd.Process.Pid], data[p.cmd.Process.Pid] = p, dir
	}
	begin(t.TempDir())
	begin(t.TempDir())

	// An undisturbed job says which places there are, and what must come out.
	f.detector("calm", "quick")
	told := f.follow(f.nc, "calm", "calm")
	began := time.Now()
	f.request("calm", "calm")
	want := f.manifest(reg, f.end("calm").Release)
	calm := time.Since(began)
	var places []point
	phases, place := map[string]int{}, placing()
	losses, distances := 0, 0
	for p := range told {
		if p.Phase == "end" {
			break
		}
		if at, ok := place(p); ok {
			places = append(places, at)
			phases[p.Phase]++
		}
		if p.Loss != nil {
			losses++
		}
		if p.Frechet != nil {
			distances++
		}
	}
	if losses == 0 || distances == 0 {
		t.Errorf("of %d messages %d tell a loss and %d a Fréchet distance", len(places), losses, distances)
	}

	t.Log(phases)
	rng := rand.New(rand.NewPCG(1, 6))
	// Three of the places come after the last checkpoint, from which a job has five tries.
	// None is among the last, or the job ends before its last trainer is killed.
	last := 0
	for i, p := range places {
		if strings.HasPrefix(p.phase, "finetune") {
			last = i
		}
	}
	at := rng.Perm(last)[:kills-3]
	for _, n := range rng.Perm(len(places)*9/10 - last)[:3] {
		at = append(at, last+n)
	}
	slices.Sort(at)
	var jobs []string
	another := func() {
		name := fmt.Sprint("killed-", len(jobs))
		jobs = append(jobs, name)
		told = f.follow(f.nc, "killed", name)
		f.request("killed", name)
	}
	f.detector("killed", "quick")
	began = time.Now()
	another()
	resumed := 0
	for len(at) > 0 {
		n := at[0]
		var j stream.Job
		var pid int
		place, over := placing(), false
		for seen := -1; !over && (seen < n || trainers[pid] == nil); {
			select {
			case p := <-told:
				if over = p.State != stream.JobRunning; over {
					continue
				}
				if at, ok := place(p); ok {
					seen = max(seen, slices.Index(places, at))
				}
			case <-time.After(patience):
				t.Fatalf("the job does not come to place %d of %d", n, len(places))
			}
			if seen < n {
				continue
			}
			var err error
			if j, err = f.jobs.Get(t.Context(), jobs[len(jobs)-1]); err != nil {
				t.Fatal(err)
			}
			if over = j.Finished() || j.Attempts >= tries; over {
				continue
			}
			if _, err := fmt.Sscanf(j.Trainer[strings.LastIndex(j.Trainer, "-")+1:], "%d", &pid); err != nil {
				t.Fatalf("the job is at trainer %q", j.Trainer)
			}
			if trainers[pid] == nil {
				seen, place = -1, placing() // that was one of the last words of a dead one
			}
		}
		if over { // this machine was too slow for that place, and another job comes to it
			t.Logf("job %s went on past %v", jobs[len(jobs)-1], places[n])
			another()
			continue
		}
		at = at[1:]
		if err := trainers[pid].cmd.Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-trainers[pid].exited
		t.Logf("killed at %v, after %d checkpoints, attempt %d since the last", places[n], j.CheckpointN, j.Attempts)
		if j.Checkpoint != "" {
			resumed++
		}
		delete(trainers, pid)
		begin(data[pid])
	}
	var ended []stream.Job
	for _, name := range jobs {
		ended = append(ended, f.end(name))
	}
	t.Logf("%d kills of %d jobs, each of which takes %.1f s undisturbed: done after %.1f s, %d lives began from a checkpoint",
		kills, len(jobs), calm.Seconds(), time.Since(began).Seconds(), resumed)
	all, err := reg.List(t.Context(), "killed")
	if err != nil || len(all) != len(jobs) {
		t.Errorf("releases %+v of jobs %v, %v", all, jobs, err)
	}
	for _, j := range ended {
		got := f.manifest(reg, j.Release)
		if got.ModelDigest() != want.ModelDigest() || got.BankDigest() != want.BankDigest() {
			t.Errorf("%s: model %.12s and bank %.12s, undisturbed %.12s and %.12s", j.Job, got.ModelDigest(), got.BankDigest(), want.ModelDigest(), want.BankDigest())
		}
		if !slices.ContainsFunc(all, func(r registry.Release) bool { return r.Digest == j.Release && (r.Active || len(jobs) > 1) }) {
			t.Errorf("%s: releases %+v", j.Job, all)
		}
	}
	for _, p := range trainers {
		p.stop()
	}
	for _, dir := range data {
		if left, _ := filepath.Glob(filepath.Join(dir, "jobs", "*")); len(left) > 0 {
			t.Errorf("the jobs' folder has %v", left)
		}
	}
	if _, err := stream.NewInstallation(f.js, stream.Names{}).Collect(t.Context(), registry.CollectOptions{Grace: -1}); err != nil {
		t.Fatal(err)
	}
	f.noOrphans(reg)
}

// noOrphans demands that the artifacts hold the releases' files and nothing else.
func (f *fakery) noOrphans(reg *registry.Registry) {
	f.t.Helper()
	n := stream.Names{}
	all, err := reg.List(f.t.Context(), "")
	if err != nil {
		f.t.Fatal(err)
	}
	named := map[string]bool{}
	for _, r := range all {
		named[r.Digest] = true
		for _, file := range f.manifest(reg, r.Digest).Files {
			named[file.SHA256] = true
		}
	}
	store, err := f.js.ObjectStore(f.t.Context(), n.ArtifactsBucket())
	if err != nil {
		f.t.Fatal(err)
	}
	objects, err := store.List(f.t.Context())
	if err != nil && !errors.Is(err, jetstream.ErrNoObjectsFound) {
		f.t.Fatal(err)
	}
	chunks := map[string]bool{}
	for _, o := range objects {
		if !named[o.Name] && !strings.HasPrefix(o.Name, stream.JobObjects) { // those go with the job's record
			f.t.Errorf("object %s belongs to no release", o.Name)
		}
		chunks["$O."+n.ArtifactsBucket()+".C."+o.NUID] = true
	}
	s, err := f.js.Stream(f.t.Context(), "OBJ_"+n.ArtifactsBucket())
	if err != nil {
		f.t.Fatal(err)
	}
	info, err := s.Info(f.t.Context(), jetstream.WithSubjectFilter("$O."+n.ArtifactsBucket()+".C.>"))
	if err != nil {
		f.t.Fatal(err)
	}
	for subject := range info.State.Subjects {
		if !chunks[subject] {
			f.t.Errorf("chunks of %s belong to no object", subject)
		}
	}
}
