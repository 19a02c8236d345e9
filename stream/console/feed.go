package console

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/nearmiss/nearmiss/stream"
)

const (
	tickEvery  = 250 * time.Millisecond
	statusTick = 5 * time.Second
	ringFor    = 2 * time.Hour
	maxCameras = 1000 // that are followed; anybody may publish scores
	maxRecent  = 5000 // scores of a detector
	maxRanks   = 500  // p-values of a camera
)

// feed is what the cameras' scores say.
type feed struct {
	mu        sync.Mutex
	cameras   []*camera // never shrinks: rows of the live stream name them by place
	at        map[cameraName]int
	detectors map[string]*recent
}

type cameraName struct{ detector, camera string }

// camera is what is known of one by its scores.
type camera struct {
	cameraName
	// since the last tick
	frames, alarms int
	max            float64

	last, threshold, p float64
	lastAt             time.Time // when the last score came; zero: none has
	lastAlarm          time.Time
	ring               []point // oldest first, one a second that had frames
	ranks              []float64
}

// point is a second of a camera.
type point struct {
	at                 int64 // Unix seconds
	max, last          float64
	threshold          float64
	frames, alarmCount int
}

// recent are the last scores of a detector, oldest first from next on.
type recent struct {
	scores []float64
	next   int
}

func (r *recent) add(v float64) {
	if len(r.scores) < maxRecent {
		r.scores = append(r.scores, v)
		return
	}
	r.scores[r.next] = v
	r.next = (r.next + 1) % maxRecent
}

func newFeed() *feed {
	return &feed{at: map[cameraName]int{}, detectors: map[string]*recent{}}
}

// camera returns one by its name, a new one where there is room.
func (f *feed) camera(n cameraName) *camera {
	if i, ok := f.at[n]; ok {
		return f.cameras[i]
	}
	if len(f.cameras) >= maxCameras {
		return nil
	}
	c := &camera{cameraName: n}
	f.at[n] = len(f.cameras)
	f.cameras = append(f.cameras, c)
	return c
}

// know makes a place for a camera that has not sent anything yet.
func (f *feed) know(n cameraName) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.camera(n)
}

// score takes in a frame's score.
func (f *feed) score(e stream.Event, now time.Time) {
	if e.Score == nil || !stream.ValidToken(e.Detector) || !stream.ValidToken(e.Camera) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.camera(cameraName{e.Detector, e.Camera})
	if c == nil {
		return
	}
	s := *e.Score
	if c.frames == 0 || s > c.max {
		c.max = s
	}
	c.frames++
	c.last, c.lastAt = s, now
	if e.Threshold != nil {
		c.threshold = *e.Threshold
	}
	alarm := e.Anomalous != nil && *e.Anomalous
	if alarm {
		c.alarms++
		c.lastAlarm = now
	}
	if e.PValue != nil {
		c.p = *e.PValue
		if c.ranks = append(c.ranks, c.p); len(c.ranks) > maxRanks {
			c.ranks = slices.Delete(c.ranks, 0, len(c.ranks)-maxRanks)
		}
	}
	c.second(now, s, alarm)
	d := f.detectors[e.Detector]
	if d == nil {
		d = &recent{}
		f.detectors[e.Detector] = d
	}
	d.add(s)
}

// second adds a score to the second that it fell into.
func (c *camera) second(now time.Time, s float64, alarm bool) {
	at := now.Unix()
	if n := len(c.ring); n == 0 || c.ring[n-1].at != at {
		if old := at - int64(ringFor/time.Second); n > 0 && c.ring[0].at < old {
			i, _ := slices.BinarySearchFunc(c.ring, old, func(p point, t int64) int { return cmp.Compare(p.at, t) })
			c.ring = slices.Delete(c.ring, 0, i)
		}
		c.ring = append(c.ring, point{at: at, max: s})
	}
	p := &c.ring[len(c.ring)-1]
	p.max, p.last, p.threshold = max(p.max, s), s, c.threshold
	p.frames++
	if alarm {
		p.alarmCount++
	}
}

// perSecond is the rate over the last half minute.
func (c *camera) perSecond(now time.Time) float64 {
	const over = 30
	from, frames := now.Unix()-over, 0
	first := now.Unix()
	for _, p := range slices.Backward(c.ring) {
		if p.at < from {
			first = from
			break
		}
		frames, first = frames+p.frames, p.at
	}
	if frames == 0 {
		return 0
	}
	return float64(frames) / float64(max(1, now.Unix()-first))
}

// row is a camera's part of a tick: place, frames, last score, highest score,
// threshold, last p-value, alarms.
type row [7]float64

// take returns the rows of the cameras that had frames since the last call, and
// all names when there are more than known.
func (f *feed) take(known int) (rows []row, names [][2]string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, c := range f.cameras {
		if c.frames == 0 {
			continue
		}
		rows = append(rows, row{float64(i), float64(c.frames), c.last, c.max, c.threshold, c.p, float64(c.alarms)})
		c.frames, c.alarms, c.max = 0, 0, 0
	}
	if len(f.cameras) > known {
		names = f.namesLocked()
	}
	return rows, names
}

func (f *feed) namesLocked() [][2]string {
	names := make([][2]string, len(f.cameras))
	for i, c := range f.cameras {
		names[i] = [2]string{c.detector, c.camera}
	}
	return names
}

func (f *feed) names() [][2]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.namesLocked()
}

// series are columns for a chart.
type series struct {
	T         []int64   `json:"t"` // Unix seconds
	Max       []float64 `json:"max"`
	Last      []float64 `json:"last"`
	Threshold []float64 `json:"threshold"`
	Alarms    []int     `json:"alarms"`
	Ranks     []float64 `json:"p_values"` // of the last frames, oldest first
}

// series returns what a camera scored since from.
func (f *feed) series(n cameraName, from time.Time) (s series, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, ok := f.at[n]
	if !ok {
		return s, false
	}
	c := f.cameras[i]
	s = series{T: []int64{}, Max: []float64{}, Last: []float64{}, Threshold: []float64{}, Alarms: []int{}, Ranks: append([]float64{}, c.ranks...)}
	for _, p := range c.ring {
		if p.at >= from.Unix() {
			s.T, s.Max, s.Last = append(s.T, p.at), append(s.Max, p.max), append(s.Last, p.last)
			s.Threshold, s.Alarms = append(s.Threshold, p.threshold), append(s.Alarms, p.alarmCount)
		}
	}
	return s, true
}

// recentScores are the last scores of a detector since the console started, in no
// order.
func (f *feed) recentScores(detector string) []float64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if d := f.detectors[detector]; d != nil {
		return slices.Clone(d.scores)
	}
	return []float64{}
}

func (w *wall) followScores(ctx context.Context) {
	w.backend.repeat(ctx, "scores", func(ctx context.Context) error {
		return stream.WatchScores(ctx, w.backend.nc, w.backend.Names, "", func(e stream.Event) { w.feed.score(e, time.Now()) })
	})
}

// tick sends what the cameras scored, four times a second, and from time to time
// the state of everything.
func (w *wall) tick(ctx context.Context) {
	ticks, slow := time.Tick(tickEvery), time.Tick(statusTick)
	known := 0
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticks:
			rows, names := w.feed.take(known)
			if names != nil {
				known = len(names)
				w.hub.send(message{event: "cams", data: names})
			}
			if len(rows) > 0 {
				w.hub.send(message{event: "scores", data: scoresTick{now.UnixMilli(), rows}, tick: true})
			}
		case <-slow:
			if !w.hub.hasListeners() {
				continue
			}
			if o, err := w.getOverview(); err == nil {
				w.hub.send(message{event: "status", data: o})
			} else {
				w.hub.send(message{event: "status", data: overview{Broker: "away", Problem: err.Error()}})
			}
		}
	}
}

type scoresTick struct {
	T    int64 `json:"t"` // Unix milliseconds
	Rows []row `json:"v"`
}
