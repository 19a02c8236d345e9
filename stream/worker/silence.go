package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/kv"
	"github.com/nearmiss/nearmiss/stream/internal/wait"
)

// cameraActivities is when and how often cameras sent frames to this worker.
type cameraActivities struct {
	mu    sync.Mutex
	all   map[string]*cameraActivity // by key
	began time.Time                  // from which seconds are counted, whatever becomes of the clock
}

// ahead says whether a time of the broker's lies so far ahead that the clock was set back
// since, or that ours is behind.
func ahead(t time.Time) bool { return time.Until(t) > setBack }

// replaces says whether a frame of one time is news after one of another: it is younger, or
// the clock was set back in between.
func replaces(t, before time.Time) bool { return t.After(before) || ahead(before) && !ahead(t) }

// setBack is by how much clocks may differ.
const setBack = 5 * time.Minute

type cameraActivity struct {
	stream.CameraRate
	frozen         time.Time // since when its pictures are the same; zero: they are not
	recordedAt     time.Time // last frame that the record says
	recordedFrozen time.Time // frozen, as the record says it
	slots          [60]uint16
	seconds        int64 // of the newest slot
}

// count counts a frame, with the time at which the broker stored it and since when
// its camera has sent the same picture.
func (s *cameraActivities) count(detector, camera string, at, frozen time.Time) {
	if !stream.ValidToken(detector) || !stream.ValidToken(camera) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all, s.began = map[string]*cameraActivity{}, time.Now()
	}
	key := stream.CameraKey(detector, camera)
	c := s.all[key]
	if c == nil {
		if len(s.all) >= maxCameras {
			return
		}
		c = &cameraActivity{CameraRate: stream.CameraRate{Detector: detector, Camera: camera}}
		s.all[key] = c
	}
	if replaces(at, c.LastFrame) {
		c.LastFrame, c.frozen = at.UTC(), frozen
	}
	c.advance(s.seconds())
	if slot := &c.slots[c.seconds%60]; *slot < 1<<15 {
		*slot++
	}
}

// maxCameras bounds what a worker remembers: names come from whoever publishes.
const maxCameras = 10_000

func (s *cameraActivities) seconds() int64 { return int64(time.Since(s.began) / time.Second) }

// advance clears the slots of the seconds since the last frame.
func (c *cameraActivity) advance(now int64) {
	for n := min(now-c.seconds, 60); n > 0; n-- {
		c.slots[(now-n+1)%60] = 0
	}
	c.seconds = max(c.seconds, now)
}

// rates are the cameras that sent this worker a frame within the last minute.
func (s *cameraActivities) rates() []stream.CameraRate {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []stream.CameraRate
	for _, c := range s.all {
		c.advance(s.seconds())
		sum := 0
		for _, n := range c.slots {
			sum += int(n)
		}
		if sum > 0 {
			r := c.CameraRate
			r.PerSecond = float64(sum) / 60
			out = append(out, r)
		}
	}
	return out
}

// news are the cameras with frames that are not on record yet, and step younger
// than what is, or older by a clock that was set back.
func (s *cameraActivities) news(step time.Duration) []stream.CameraStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []stream.CameraStatus
	for _, c := range s.all {
		if c.recordedAt.IsZero() || c.LastFrame.Sub(c.recordedAt).Abs() >= step || !c.frozen.Equal(c.recordedFrozen) {
			out = append(out, stream.CameraStatus{Detector: c.Detector, Camera: c.Camera, LastFrame: c.LastFrame, UnchangedSince: c.frozen})
		}
	}
	return out
}

func (s *cameraActivities) recorded(c stream.CameraStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.all[stream.CameraKey(c.Detector, c.Camera)]; x != nil && (!c.LastFrame.Before(x.recordedAt) || replaces(c.LastFrame, x.recordedAt)) {
		x.recordedAt, x.recordedFrozen = c.LastFrame, c.UnchangedSince
	}
}

// watchCameras keeps the cameras' records, and says which camera has fallen silent and
// which is back. Any worker may notice; all of them make the same event of it.
func (w *Worker) watchCameras(ctx context.Context) {
	seen := map[string]sighting{}
	for ctx.Err() == nil {
		shortest := time.Duration(0)
		limits := map[string]time.Duration{}
		w.mu.Lock()
		for name, l := range w.runners {
			conf, _, _, _ := l.state()
			if d := time.Duration(conf.Silence); d > 0 {
				limits[name] = d
				if shortest == 0 || d < shortest {
					shortest = d
				}
			}
		}
		w.mu.Unlock()
		step := recordEvery
		if shortest > 0 {
			step = min(step, shortest/4)
		}
		if err := w.checkCameras(ctx, limits, step, seen); err != nil && ctx.Err() == nil {
			w.log.Debug().Err(err).Msg("cannot check the cameras")
		}
		until := max(step/2, 50*time.Millisecond)
		if len(limits) == 0 {
			until = time.Second // a detector may come, or get a limit
		}
		wait.Pause(ctx, until)
	}
}

// recordEvery is how often a camera's last frame is recorded.
const recordEvery = 10 * time.Second

// sighting is which revision of a record was seen, and since when, by our clock.
type sighting struct {
	head  uint64
	since time.Time
}

// checkCameras does that once. seen are the records that were seen before of cameras whose last
// frame is ahead of the clock.
func (w *Worker) checkCameras(ctx context.Context, limits map[string]time.Duration, step time.Duration, seen map[string]sighting) error {
	ctx, cancel := w.epoch.Within(ctx)
	defer cancel()
	store := stream.OpenCameras(w.js, w.work)
	for _, c := range w.cameras.news(step) {
		if err := w.recordCamera(ctx, store, c); err != nil {
			return err
		}
	}
	if len(limits) == 0 {
		return nil
	}
	all, _, err := store.List(ctx)
	if err != nil {
		return err
	}
	for _, e := range all {
		c := e.Value
		if c.Unreported { // its worker may have died between the record and the event
			if err := w.reportSilence(ctx, store, c, e.Head); err != nil {
				return err
			}
			continue
		}
		limit, quiet := limits[c.Detector], time.Since(c.LastFrame)
		if ahead(c.LastFrame) {
			if seen[e.Key].head != e.Head {
				seen[e.Key] = sighting{e.Head, time.Now()}
			}
			quiet = time.Since(seen[e.Key].since)
		} else {
			delete(seen, e.Key)
		}
		if limit == 0 || c.Silent || quiet <= limit {
			continue
		}
		// Frames that wait are not the camera's silence.
		waiting, err := w.in.WaitingFrames(ctx, c.Detector, c.Camera)
		if err != nil {
			return err
		}
		if waiting > 0 {
			continue
		}
		// The record first: where another worker knows of a younger frame, it is no
		// silence. Then the event, which is the same whoever stores it.
		c.Silent, c.Unreported = true, true
		head, err := putCamera(ctx, store, c, e.Head)
		if err != nil {
			return err
		}
		if head == 0 {
			continue
		}
		if err := w.reportSilence(ctx, store, c, head); err != nil {
			return err
		}
	}
	return nil
}

// reportSilence stores the event of a silence that is on record, and records that.
func (w *Worker) reportSilence(ctx context.Context, store kv.Store[stream.CameraStatus], c stream.CameraStatus, head uint64) error {
	why := fmt.Sprintf("camera %s of %s has sent no frame since %s", c.Camera, c.Detector, c.LastFrame.Format(time.RFC3339))
	if err := w.reportCamera(ctx, c, stream.CameraSilent, why); err != nil {
		return err
	}
	w.log.Warn().Str("detector", c.Detector).Str("camera", c.Camera).Time("last_frame", c.LastFrame).Msg("camera has fallen silent")
	c.Unreported = false
	_, err := putCamera(ctx, store, c, head)
	return err
}

// recordCamera brings a camera's record to a frame of this worker's.
func (w *Worker) recordCamera(ctx context.Context, store kv.Store[stream.CameraStatus], c stream.CameraStatus) error {
	e, err := store.Get(ctx, stream.CameraKey(c.Detector, c.Camera))
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound), errors.Is(err, kv.ErrUnreadable):
	case err != nil:
		return err
	case !replaces(c.LastFrame, e.Value.LastFrame): // another worker's is younger
		w.cameras.recorded(c)
		return nil
	case e.Value.Silent:
		if e.Value.Unreported {
			return w.reportSilence(ctx, store, e.Value, e.Head) // first things first
		}
		why := fmt.Sprintf("camera %s of %s sends frames again", c.Camera, c.Detector)
		if away := c.LastFrame.Sub(e.Value.LastFrame).Round(time.Second); away > 0 {
			why += fmt.Sprintf(", after %v", away)
		}
		if err := w.reportCamera(ctx, e.Value, stream.CameraBack, why); err != nil {
			return err
		}
		w.log.Info().Str("detector", c.Detector).Str("camera", c.Camera).Msg("camera is back")
	}
	head, err := putCamera(ctx, store, c, e.Head)
	if err == nil && head > 0 {
		w.cameras.recorded(c)
	}
	return err
}

// putCamera writes a record and returns its revision, or 0 where another worker
// was faster: it is checked again soon.
func putCamera(ctx context.Context, store kv.Store[stream.CameraStatus], c stream.CameraStatus, head uint64) (uint64, error) {
	head, err := store.Put(ctx, stream.CameraKey(c.Detector, c.Camera), c, head)
	if kv.Conflict(err) {
		return 0, nil
	}
	return head, err
}

// reportCamera stores a camera event; its id is made of the last frame before the
// silence, the same in all workers.
func (w *Worker) reportCamera(ctx context.Context, c stream.CameraStatus, code, why string) error {
	return w.in.StoreEvent(ctx, stream.Notice(stream.KindCamera, c.Detector, c.Camera, "", code, why, c.LastFrame.Format(time.RFC3339Nano)))
}
