package pull

import (
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Heartbeat tells the broker that messages are being worked on, until each is answered.
type Heartbeat struct {
	mu     sync.Mutex
	open   map[jetstream.Msg]struct{}
	end    chan struct{}
	wg     sync.WaitGroup
	Closed func(jetstream.Msg) // called with each message that is answered; may be nil
}

// Beat beats for messages, every so often, until Stop.
func Beat(every time.Duration, msgs []jetstream.Msg) *Heartbeat {
	h := &Heartbeat{open: make(map[jetstream.Msg]struct{}, len(msgs)), end: make(chan struct{})}
	for _, m := range msgs {
		h.open[m] = struct{}{}
	}
	h.wg.Go(func() {
		t := time.Tick(every)
		for {
			select {
			case <-h.end:
				return
			case <-t:
				h.mu.Lock()
				for m := range h.open {
					_ = m.InProgress()
				}
				h.mu.Unlock()
			}
		}
	})
	return h
}

// Done says that a message has been answered.
func (h *Heartbeat) Done(m jetstream.Msg) {
	h.Pass(m)
	if h.Closed != nil {
		h.Closed(m)
	}
}

// Pass says that somebody else beats for a message now.
func (h *Heartbeat) Pass(m jetstream.Msg) {
	h.mu.Lock()
	delete(h.open, m)
	h.mu.Unlock()
}

// Stop ends it.
func (h *Heartbeat) Stop() {
	close(h.end)
	h.wg.Wait()
}
