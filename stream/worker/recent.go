package worker

import (
	"sync"
	"time"

	"github.com/nearmiss/nearmiss/stream"
)

// recentFrames remembers the frames that this worker has brought to their end a short time
// ago, so that one that its camera has sent twice is not scored twice. Frames
// without an id of their own are never the same.
type recentFrames struct {
	mu       sync.Mutex
	now, old map[string]struct{}
	rotated  time.Time
}

// recentTime is how long a frame is remembered, at least, unless there are more than
// recentMost of them.
const (
	recentTime = 2 * time.Minute
	recentMost = 50_000
)

func (s *recentFrames) has(f stream.Frame) bool {
	key := f.Key()
	s.mu.Lock()
	defer s.mu.Unlock()
	_, now := s.now[key]
	_, old := s.old[key]
	return now || old
}

func (s *recentFrames) add(f stream.Frame) {
	key := f.Key()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now == nil || len(s.now) >= recentMost || time.Since(s.rotated) > recentTime {
		s.now, s.old, s.rotated = map[string]struct{}{}, s.now, time.Now()
	}
	s.now[key] = struct{}{}
}
