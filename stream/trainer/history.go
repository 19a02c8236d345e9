package trainer

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nearmiss/nearmiss/stream"
)

const (
	maxHistory   = 64 << 10         // bytes
	historyEvery = 30 * time.Second // besides at every point of a generator's curve
)

// past is what is kept of a job.
type past struct {
	points []stream.Progress
	sheet  []byte    // that has not been stored; nil: it has
	stored time.Time // when points were
}

// add takes in a point; where there are many, the old ones become fewer.
func (h *past) add(p stream.Progress) {
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
	if len(jpeg) == 0 || len(jpeg) > stream.MaxJobSheet {
		return fmt.Errorf("keep the sheet of job %s: %d bytes: use 1 to %d", t.Request.Job, len(jpeg), stream.MaxJobSheet)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.past.sheet = jpeg
	return nil
}

// keep stores what has not been; a job that changes a release is over at once, and
// leaves nothing. What cannot be stored is tried again with what comes next.
func (t *Task) keep() {
	if t.Request.Derived() {
		return
	}
	t.mu.Lock()
	history, err := t.past.encode()
	sheet := t.past.sheet
	t.past.stored = time.Now()
	t.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), stream.PublishWait)
	defer cancel()
	put := func(name string, b []byte) error {
		_, err := t.w.artifacts.PutBytes(ctx, stream.JobObjects+t.Request.Job+"/"+name, b)
		return err
	}
	if err == nil {
		err = put(stream.JobHistory, history)
	}
	if err == nil && sheet != nil {
		if err = put(stream.JobSheet, sheet); err == nil {
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
