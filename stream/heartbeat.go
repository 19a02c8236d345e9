package stream

import (
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// heartbeat tells the broker that messages are being worked on.
type heartbeat struct {
	mu     sync.Mutex
	open   map[jetstream.Msg]struct{}
	end    chan struct{}
	wg     sync.WaitGroup
	closed func(jetstream.Msg) // told of each message that is answered; nil: nobody
}

func newHeartbeat(every time.Duration, msgs []jetstream.Msg) *heartbeat {
	h := &heartbeat{open: make(map[jetstream.Msg]struct{}, len(msgs)), end: make(chan struct{})}
	for _, m := range msgs {
		h.open[m] = struct{}{}
	}
	h.wg.Go(func() {
		t := time.NewTicker(every)
		defer t.Stop()
		for {
			select {
			case <-h.end:
				return
			case <-t.C:
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

// done says that a message has been answered.
func (h *heartbeat) done(m jetstream.Msg) {
	h.pass(m)
	if h.closed != nil {
		h.closed(m)
	}
}

// pass says that somebody else beats for a message now.
func (h *heartbeat) pass(m jetstream.Msg) {
	h.mu.Lock()
	delete(h.open, m)
	h.mu.Unlock()
}

func (h *heartbeat) stop() {
	close(h.end)
	h.wg.Wait()
}
