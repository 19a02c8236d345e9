package incident

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/kv"
)

// settings are what detectors say about their incidents, and the good frames of
// those that want them counted.
type settings struct {
	base Rules // of detectors that say nothing

	// known is closed when they have been read, or could not be.
	ready chan struct{}
	once  sync.Once

	mu            sync.Mutex
	rules         map[string]Rules              // by detector
	subscriptions map[string]*nats.Subscription // scores, by detector
	runs          map[string]map[string]*run    // by detector and camera
}

func newSettings(base Rules) *settings {
	return &settings{base: base, ready: make(chan struct{}), rules: map[string]Rules{}, subscriptions: map[string]*nats.Subscription{}, runs: map[string]map[string]*run{}}
}

// tried says that the settings have been read, or could not be.
func (s *settings) tried() { s.once.Do(func() { close(s.ready) }) }

// of are a detector's rules.
func (s *settings) of(detector string) Rules {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r, ok := s.rules[detector]; ok {
		return r
	}
	return s.base
}

// key names the state that an event of a camera changes.
func (s *settings) key(detector, camera string) string {
	if s.of(detector).Group {
		camera = stream.NoCamera
	}
	return detector + "." + camera
}

// follow keeps the settings in step with the detectors until ctx ends.
func (s *settings) follow(ctx context.Context, cfg Config, js jetstream.JetStream) error {
	bucket, err := js.KeyValue(ctx, cfg.DetectorsBucket())
	if err != nil {
		return err
	}
	detectors, err := stream.NewInstallation(js, cfg.Names).Detectors(ctx)
	if err != nil {
		return err
	}
	defer s.silence()
	return kv.Follow(ctx, bucket, func() error {
		if err := s.read(ctx, cfg, js.Conn(), detectors); err != nil {
			return err
		}
		s.tried()
		return nil
	})
}

// read takes over what detectors say now.
func (s *settings) read(ctx context.Context, cfg Config, nc *nats.Conn, detectors *stream.Detectors) error {
	all, err := detectors.List(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rules = map[string]Rules{}
	for _, d := range all {
		s.rules[d.Name] = s.base.Of(d)
	}
	for d, sub := range s.subscriptions {
		if s.rules[d].QuietFrames == 0 {
			_ = sub.Unsubscribe()
			delete(s.subscriptions, d)
			delete(s.runs, d)
		}
	}
	for d, r := range s.rules {
		if r.QuietFrames == 0 || s.subscriptions[d] != nil {
			continue
		}
		sub, err := nc.Subscribe(cfg.Scores(d, "*"), s.score)
		if err != nil {
			return fmt.Errorf("follow the scores of %s: %w", d, err)
		}
		s.subscriptions[d], s.runs[d] = sub, map[string]*run{}
	}
	return nil
}

// silence ends all subscriptions.
func (s *settings) silence() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sub := range s.subscriptions {
		_ = sub.Unsubscribe()
	}
	s.subscriptions, s.runs = map[string]*nats.Subscription{}, map[string]map[string]*run{}
}

// maxPlaces bounds the cameras of a detector that are counted.
const maxPlaces = 10_000

// score counts a frame.
func (s *settings) score(m *nats.Msg) {
	e, err := stream.ParseScore(m.Data, m.Header)
	if err != nil || e.Anomalous == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	cameras := s.runs[e.Detector]
	if cameras == nil {
		return
	}
	r := cameras[e.Camera]
	if r == nil {
		if len(cameras) >= maxPlaces {
			return
		}
		r = &run{}
		cameras[e.Camera] = r
	}
	r.add(at(e), !*e.Anomalous, s.rules[e.Detector].QuietFrames)
}

// good says of a detector's cameras which have had enough good frames in a row, as
// [State.Good] asks.
func (s *settings) good(detector string) runs {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.rules[detector].QuietFrames
	full := map[string][2]time.Time{}
	for c, r := range s.runs[detector] {
		if n > 0 && len(r.times) >= n {
			full[c] = [2]time.Time{r.times[len(r.times)-n], r.times[len(r.times)-1]}
		}
	}
	return func(camera string) (from, to time.Time, ok bool) {
		v, ok := full[camera]
		return v[0], v[1], ok
	}
}

// run are the times of a camera's latest good frames, in order.
type run struct{ times []time.Time }

// add takes note of a frame; what is not good ends the run. No more than the last n
// are kept.
func (r *run) add(t time.Time, good bool, n int) {
	switch last := len(r.times) - 1; {
	case !good:
		r.times = r.times[:0]
		return
	case last >= 0 && t.Before(r.times[last]):
		t = r.times[last] // workers overtake each other
	}
	r.times = append(r.times, t)
	r.times = r.times[max(0, len(r.times)-max(n, 1)):]
}
