package console

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/nearmiss/nearmiss/stream"
)

// wall shows the cameras, and the state of everything.
type wall struct {
	backend  *backend
	tasks    *tasks
	feed     *feed
	index    *index
	hub      *hub
	overview flight[overview]
}

// overview is the state of everything, as each page's head and the health page
// show it.
type overview struct {
	Broker  string `json:"broker"` // connected or away
	Problem string `json:"problem,omitempty"`
	Open    int    `json:"open"` // alarms of which nobody has said anything
	stream.Status
	Workers []stream.WorkerStatus `json:"workers"`
	Streams []streamState         `json:"streams"`
	Store   store                 `json:"store"`
	Cams    []cameraState         `json:"camera_states"`
	At      time.Time             `json:"at"`
}

// streamState is how full a stream is.
type streamState struct {
	Name     string    `json:"name"`
	Messages uint64    `json:"messages"`
	Bytes    uint64    `json:"bytes"`
	Limit    int64     `json:"limit,omitempty"` // bytes; 0: none of its own
	Oldest   time.Time `json:"oldest,omitzero"`
}

// store is the broker's disk.
type store struct {
	Bytes uint64 `json:"bytes"`
	Limit int64  `json:"limit,omitempty"`
}

const workersTimeout = 500 * time.Millisecond

// getOverview is at most two seconds old.
func (w *wall) getOverview() (overview, error) {
	o, err := w.overview.get(w.tasks.base, "", 2*time.Second, w.findOverview)
	if err != nil {
		return o, err
	}
	o.Open = w.index.open("")
	return o, nil
}

func (w *wall) findOverview(ctx context.Context) (o overview, err error) {
	if !w.backend.nc.IsConnected() {
		return o, problem{http.StatusServiceUnavailable, "broker_away", "the broker does not answer"}
	}
	o.Broker, o.At = "connected", time.Now().UTC()
	if o.Status, err = w.backend.in.Status(ctx); err != nil {
		return o, err
	}
	if o.Workers, err = w.backend.client.Workers(ctx, workersTimeout); err != nil {
		return o, err
	}
	for i := range o.Workers {
		slices.SortFunc(o.Workers[i].Drift, func(a, b stream.CameraDrift) int {
			return cmp.Or(cmp.Compare(a.Detector, b.Detector), cmp.Compare(a.Camera, b.Camera))
		})
	}
	for _, name := range []string{
		w.backend.FramesStream(), w.backend.EventsStream(), w.backend.NormalsStream(), w.backend.FeedbackStream(), w.backend.TrainingStream(), w.backend.DeadStream(),
		"OBJ_" + w.backend.ArtifactsBucket(), "OBJ_" + w.backend.ImagesBucket(), "OBJ_" + w.backend.LargeBucket(), "OBJ_" + w.backend.EvidenceBucket(),
	} {
		s, err := w.backend.js.Stream(ctx, name)
		if err != nil {
			continue // not all may be read with every identity
		}
		i := s.CachedInfo()
		o.Streams = append(o.Streams, streamState{Name: name, Messages: i.State.Msgs, Bytes: i.State.Bytes, Limit: max(0, i.Config.MaxBytes), Oldest: i.State.FirstTime})
	}
	if a, err := w.backend.js.AccountInfo(ctx); err == nil {
		o.Store = store{a.Store, max(0, a.Limits.MaxStore)}
	}
	o.Cams, err = w.cameraStates(ctx, o)
	return o, err
}

func (w *wall) status(*request) (any, error) {
	return w.getOverview()
}

// cameraState is what a tile of the wall says.
type cameraState struct {
	Detector  string    `json:"detector"`
	Camera    string    `json:"camera"`
	State     string    `json:"state"`  // live, slow, silent, waiting, learning, no_release, no_detector
	Reason    string    `json:"reason"` // a sentence
	LastFrame time.Time `json:"last_frame,omitzero"`
	LastScore time.Time `json:"last_score,omitzero"`
	LastAlarm time.Time `json:"last_alarm,omitzero"`
	PerSecond float64   `json:"frames_per_second"`
	Score     float64   `json:"score"`
	Threshold float64   `json:"threshold"`
	PValue    float64   `json:"p_value"`
}

// silentAfter is when a camera without frames is called silent, where its detector
// says nothing else.
const silentAfter = 30 * time.Second

// cameraStates joins what scores, the broker and workers say of the cameras.
func (w *wall) cameraStates(ctx context.Context, o overview) ([]cameraState, error) {
	all, _, err := w.backend.detectors.Check(ctx)
	if err != nil {
		return nil, err
	}
	confs, stats := map[string]stream.Detector{}, map[string]stream.DetectorStatus{}
	for _, d := range all {
		confs[d.Name] = d
	}
	for _, d := range o.Detectors {
		stats[d.Detector] = d
	}
	frames := map[cameraName]stream.CameraStatus{}
	for _, s := range o.Cameras {
		n := cameraName{s.Detector, s.Camera}
		frames[n] = s
		w.feed.know(n)
	}
	now, out := time.Now(), []cameraState{}
	w.feed.mu.Lock()
	for _, cam := range w.feed.cameras {
		s := cameraState{
			Detector: cam.detector, Camera: cam.camera, LastScore: cam.lastAt, LastAlarm: cam.lastAlarm, PerSecond: cam.perSecond(now),
			Score: cam.last, Threshold: cam.threshold, PValue: cam.p,
		}
		s.LastFrame = frames[cam.cameraName].LastFrame
		if cam.lastAt.After(s.LastFrame) {
			s.LastFrame = cam.lastAt
		}
		s.LastFrame, s.LastScore, s.LastAlarm = s.LastFrame.UTC(), s.LastScore.UTC(), s.LastAlarm.UTC()
		conf, ok := confs[cam.detector]
		s.State, s.Reason = stateOfCamera(s, conf, ok, stats[cam.detector], frames[cam.cameraName].Silent, now)
		out = append(out, s)
	}
	w.feed.mu.Unlock()
	slices.SortFunc(out, func(a, b cameraState) int {
		return cmp.Or(strings.Compare(a.Detector, b.Detector), strings.Compare(a.Camera, b.Camera))
	})
	return out, nil
}

func stateOfCamera(s cameraState, conf stream.Detector, configured bool, stat stream.DetectorStatus, reported bool, now time.Time) (state, reason string) {
	limit := silentAfter
	if conf.Silence > 0 {
		limit = time.Duration(conf.Silence)
	}
	age := now.Sub(s.LastFrame)
	switch {
	case !configured && stat.Release == "":
		return "no_detector", "there is no such detector: create it, or correct the camera"
	case reported || age > limit:
		if s.LastFrame.IsZero() {
			return "silent", "no frame has come in the last week"
		}
		return "silent", "no frame has come for " + age.Round(time.Second).String()
	case stat.Release == "" && conf.LearnFrames > 0 && stat.Normals < conf.LearnFrames:
		return "learning", fmt.Sprintf("%d of %d frames", stat.Normals, conf.LearnFrames)
	case stat.Release == "":
		if j := stat.LastJob; j != nil && !j.Finished() {
			return "learning", "the first training is under way"
		}
		return "no_release", "frames wait: train the detector"
	case now.Sub(s.LastScore) > limit && stat.Waiting > 0:
		return "waiting", "frames wait and none is scored: is a worker running?"
	case s.PerSecond > 0 && age > 3*time.Duration(float64(time.Second)/s.PerSecond) && age > 5*time.Second:
		return "slow", "the last frame came " + age.Round(time.Second).String() + " ago"
	}
	return "live", ""
}

func (w *wall) listCameras(*request) (any, error) {
	o, err := w.getOverview()
	if err != nil {
		return nil, err
	}
	return listing[cameraState]{Items: o.Cams}, nil
}

func (w *wall) cameraScores(q *request) (any, error) {
	v := q.params("for")
	age := v.duration("for", 10*time.Minute)
	if v.err != nil {
		return nil, v.err
	}
	s, ok := w.feed.series(cameraName{q.PathValue("detector"), q.PathValue("camera")}, time.Now().Add(-age))
	if !ok {
		return nil, missing("nothing is known of that camera")
	}
	return s, nil
}

func (p *params) duration(name string, def time.Duration) time.Duration {
	s := p.Get(name)
	if s == "" {
		return def
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		p.fail("%q is no time such as 10m", s)
	}
	return d
}
