package sink

import (
	"maps"
	"sync"
	"time"
)

// counters are what a sink has done since it started.
type counters struct {
	mu      sync.Mutex
	results map[string]uint64
	why     map[string]uint64 // "result: reason" of what was not sent
	last    string            // the last failure
	lastAt  time.Time         // of a delivery
	delay   time.Duration     // from stored to delivered, of that one
	pending map[string]uint64 // in the broker, by stream
}

func (c *counters) waiting(stream string, n uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pending == nil {
		c.pending = map[string]uint64{}
	}
	c.pending[stream] = n
}

func (c *counters) add(result, why string, n uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.results == nil {
		c.results, c.why = map[string]uint64{}, map[string]uint64{}
	}
	c.results[result] += n
	if why != "" && (len(c.why) < 100 || c.why[result+": "+why] > 0) {
		c.why[result+": "+why] += n
	}
}

func (c *counters) failed(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = clip(err.Error())
}

func (c *counters) delivered(at time.Time, delay time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastAt, c.delay = at, delay
}

// tell fills in what a status says of them.
func (c *counters) tell(s *Status) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.pending {
		s.Pending += n
	}
	s.Results, s.Reasons, s.LastSent, s.Delay = maps.Clone(c.results), maps.Clone(c.why), c.lastAt, c.delay.Seconds()
	if c.last != "" {
		s.Error = c.last
	}
}
