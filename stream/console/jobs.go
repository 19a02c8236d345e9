package console

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/nearmiss/nearmiss/stream"
)

const (
	maxCurves = 50
	maxPoints = 2000
)

// jobs shows trainings, and their progress as far as this console has seen it.
type jobs struct {
	backend *backend
	hub     *hub

	mu     sync.Mutex
	curves map[string][]stream.Progress // by job
	order  []string                     // of the jobs' first messages
}

func (j *jobs) list(q *request) (any, error) {
	v := q.params("detector")
	if v.err != nil {
		return nil, v.err
	}
	stored, err := j.backend.in.Jobs(q.ctx)
	if err != nil {
		return nil, err
	}
	all, err := stored.List(q.ctx, v.Get("detector"))
	if err != nil {
		return nil, err
	}
	slices.Reverse(all)
	return listing[stream.Job]{Items: append([]stream.Job{}, all[:min(len(all), 500)]...)}, nil
}

// history is what the trainer has kept, and then what came since.
func (j *jobs) history(q *request) (any, error) {
	live := j.seen(q.PathValue("job"))
	kept, err := j.backend.in.History(q.ctx, q.PathValue("job"))
	if err != nil {
		return nil, err
	}
	if len(live) > 0 {
		i, _ := slices.BinarySearchFunc(kept, live[0].At, func(p stream.Progress, at time.Time) int { return p.At.Compare(at) })
		kept = kept[:i]
	}
	return listing[stream.Progress]{Items: append(append([]stream.Progress{}, kept...), live...)}, nil
}

// sheet is the picture that the trainer has kept of a job.
func (j *jobs) sheet(q *request) (any, error) {
	b, err := j.backend.in.JobFile(q.ctx, q.PathValue("job"), stream.JobSheet)
	if err != nil {
		return nil, err
	}
	return picture(b, forNow)
}

func (j *jobs) cancel(q *request) (any, error) {
	job, err := j.backend.control(q).Cancel(q.ctx, q.PathValue("job"))
	if err != nil {
		return nil, err
	}
	j.backend.logAction(q, "cancelled job", job.Job)
	return job, nil
}

// follow takes in the progress that trainers publish.
func (j *jobs) follow(ctx context.Context) {
	j.backend.repeat(ctx, "jobs", func(ctx context.Context) error {
		return stream.Subscribe(ctx, j.backend.nc, j.backend.Progress("*", "*"), func(m *nats.Msg) error {
			var p stream.Progress
			if json.Unmarshal(m.Data, &p) == nil && m.Subject == j.backend.Progress(p.Detector, p.Job) && !strings.ContainsAny(p.Job, " .") { // anybody may publish
				j.add(p)
				j.hub.send(message{event: "job", data: p})
			}
			return nil
		})
	})
}

func (j *jobs) add(p stream.Progress) {
	j.mu.Lock()
	defer j.mu.Unlock()
	points, ok := j.curves[p.Job]
	if !ok {
		j.order = append(j.order, p.Job)
		if len(j.order) > maxCurves {
			delete(j.curves, j.order[0])
			j.order = j.order[1:]
		}
	}
	if len(points) >= maxPoints { // half as many, twice as far apart
		thin := points[:0]
		for i, q := range points {
			if i%2 == 0 {
				thin = append(thin, q)
			}
		}
		points = thin
	}
	j.curves[p.Job] = append(points, p)
}

func (j *jobs) seen(job string) []stream.Progress {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]stream.Progress{}, j.curves[job]...)
}
