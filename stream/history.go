package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// What is kept of a job in the bucket of artifacts, beside its record and as long:
// JobObjects, its name, "/" and one of these.
const (
	JobObjects = "jobs/"
	// JobHistory is its progress, a JSON array of [Progress], oldest first.
	JobHistory = "history.json"
	// JobSheet is a picture of the trainer's choice, JPEG: what a generator draws.
	JobSheet = "sheet.jpg"
)

const (
	maxHistory   = 64 << 10 // bytes
	maxSheet     = 512 << 10
	historyEvery = 30 * time.Second // besides at every point of a generator's curve
)

// past is what is kept of a job.
type past struct {
	points []Progress
	sheet  []byte    // that has not been stored; nil: it has
	stored time.Time // when points were
}

// add takes in a point; where there are many, the old ones become fewer.
func (h *past) add(p Progress) {
	const most = 250
	if len(h.points) >= most {
		thin := h.points[:0]
		for i, q := range h.points {
			if i%2 == 0 || q.Frechet != nil {
				thin = append(thin, q)
			}
		}
		if len(thin) > most*3/4 { // nearly all of them are of the curve
			thin = thin[len(thin)-most/2:]
		}
		h.points = thin
	}
	h.points = append(h.points, p)
}

// encode is the points as they are stored.
func (h *past) encode() ([]byte, error) {
	for points := h.points; ; points = points[len(points)/2:] {
		b, err := json.Marshal(points)
		if err != nil || len(b) <= maxHistory || len(points) < 2 {
			return b, err
		}
	}
}

// Sheet has a picture of the job kept, a JPEG of up to 512 KiB, instead of the one
// before. It does not wait for the broker.
func (t *Task) Sheet(jpeg []byte) error {
	if len(jpeg) == 0 || len(jpeg) > maxSheet {
		return fmt.Errorf("keep the sheet of job %s: %d bytes: use 1 to %d", t.Request.Job, len(jpeg), maxSheet)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.past.sheet = jpeg
	return nil
}

// keep stores what has not been; a job that changes a release is over at once, and
// leaves nothing. What cannot be stored is tried again with what comes next.
func (t *Task) keep() {
	if t.Request.derived() {
		return
	}
	t.mu.Lock()
	history, err := t.past.encode()
	sheet := t.past.sheet
	t.past.stored = time.Now()
	t.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), PublishWait)
	defer cancel()
	put := func(name string, b []byte) error {
		_, err := t.w.artifacts.PutBytes(ctx, JobObjects+t.Request.Job+"/"+name, b)
		return err
	}
	if err == nil {
		err = put(JobHistory, history)
	}
	if err == nil && sheet != nil {
		if err = put(JobSheet, sheet); err == nil {
			t.mu.Lock()
			if len(t.past.sheet) > 0 && &t.past.sheet[0] == &sheet[0] {
				t.past.sheet = nil
			}
			t.mu.Unlock()
		}
	}
	if err != nil {
		t.w.log.Debug().Err(err).Str("job", t.Request.Job).Msg("its progress is not kept")
	}
}

// JobFile is what is kept of a job: [JobHistory] or [JobSheet].
func (in *Installation) JobFile(ctx context.Context, job, name string) ([]byte, error) {
	if err := CheckToken("job", job); err != nil {
		return nil, err
	}
	return fetchObject(ctx, in.js, in.names.ArtifactsBucket(), JobObjects+job+"/"+name, maxSheet)
}

// History is the progress of a job as far as it is kept, oldest first; nothing is
// kept of jobs that only change a release, nor of earlier versions.
func (in *Installation) History(ctx context.Context, job string) ([]Progress, error) {
	b, err := in.JobFile(ctx, job, JobHistory)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []Progress
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, fmt.Errorf("history of job %s: %v: %w", job, err, ErrBadMessage)
	}
	return all, nil
}
