package console

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

const (
	maxTicks    = 64   // that wait for one listener; older ones are left out
	maxWaiting  = 1024 // other messages that wait for one listener; then it starts anew
	maxClients  = 200
	pingEvery   = 15 * time.Second
	writeWithin = 10 * time.Second
	maxResumed  = 500 // events that are sent again after a break
)

// message is an event of the live stream.
type message struct {
	event string
	id    uint64 // place in the events stream; 0: none
	data  any
	tick  bool // may be left out

	text []byte
}

func (m message) encode() []byte {
	b, err := json.Marshal(m.data)
	if err != nil { // a NaN of somebody's
		return nil
	}
	out := fmt.Appendf(nil, "event: %s\ndata: %s\n", m.event, b)
	if m.id > 0 {
		out = fmt.Appendf(out, "id: %d\n", m.id)
	}
	return append(out, '\n')
}

// hub sends the live stream to whoever listens.
type hub struct {
	mu      sync.Mutex
	clients map[*client]bool
}

func newHub() *hub { return &hub{clients: map[*client]bool{}} }

// join adds a listener, or returns nil where there are too many.
func (h *hub) join() *client {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.clients) >= maxClients {
		return nil
	}
	c := &client{wake: make(chan struct{}, 1)}
	h.clients[c] = true
	return c
}

func (h *hub) leave(c *client) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.clients, c)
}

// hasListeners says whether anybody listens.
func (h *hub) hasListeners() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.clients) > 0
}

// send queues a message for everybody. It never waits.
func (h *hub) send(m message) {
	h.mu.Lock()
	if len(h.clients) == 0 {
		h.mu.Unlock()
		return
	}
	all := slices.Collect(maps.Keys(h.clients))
	h.mu.Unlock()
	if m.text = m.encode(); m.text == nil {
		return
	}
	for _, c := range all {
		c.queue(m)
	}
}

// client is one listener.
type client struct {
	wake chan struct{} // has room for one

	mu      sync.Mutex
	waiting []message
	ticks   int // of those
}

var resync = message{event: "resync", text: []byte("event: resync\ndata: {}\n\n")}

// queue adds a message. Of ticks the oldest gives way; anything else is kept, and
// when that is too much the listener has to read everything anew.
func (c *client) queue(m message) {
	c.mu.Lock()
	if m.tick && c.ticks >= maxTicks {
		for i, w := range c.waiting {
			if w.tick {
				c.waiting = append(c.waiting[:i], c.waiting[i+1:]...)
				c.ticks--
				break
			}
		}
	}
	if !m.tick && len(c.waiting)-c.ticks >= maxWaiting {
		c.waiting, c.ticks, m = nil, 0, resync
	}
	c.waiting = append(c.waiting, m)
	if m.tick {
		c.ticks++
	}
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// take returns what waits.
func (c *client) take() []message {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.waiting
	c.waiting, c.ticks = nil, 0
	return all
}

// live sends what happens to whoever listens.
type live struct {
	door  *door
	feed  *feed
	index *index
	hub   *hub
}

// serve is the stream of Server-Sent Events (HTML Living Standard, 9.2).
func (s *live) serve(q *request) (any, error) {
	return respond(func(w http.ResponseWriter, r *http.Request) error {
		me := s.hub.join()
		if me == nil {
			return problem{http.StatusServiceUnavailable, "busy", "too many pages listen already: close some"}
		}
		defer s.hub.leave(me)
		out := http.NewResponseController(w)
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("X-Accel-Buffering", "no")
		write := func(text []byte) error {
			if err := out.SetWriteDeadline(time.Now().Add(writeWithin)); err != nil {
				return err
			}
			if _, err := w.Write(text); err != nil {
				return err
			}
			return out.Flush()
		}
		first := message{event: "hello", data: s.door.hello(q)}.encode()
		first = append(first, message{event: "cams", data: s.feed.names()}.encode()...)
		if last, err := strconv.ParseUint(r.Header.Get("Last-Event-ID"), 10, 64); err == nil {
			missed, ok := s.index.after(last, maxResumed)
			if !ok {
				first = append(first, resync.text...)
			}
			for _, a := range missed {
				first = append(first, message{event: "event", id: a.Sequence, data: a}.encode()...)
			}
		}
		if err := write(first); err != nil {
			return nil // it has gone
		}
		ping := time.Tick(pingEvery)
		for {
			var text []byte
			select {
			case <-r.Context().Done():
				return nil
			case <-ping:
				if !s.door.people.valid(q.who) {
					return nil // it has to sign in again
				}
				text = []byte(": ping\n\n")
			case <-me.wake:
				for _, m := range me.take() {
					text = append(text, m.text...)
				}
			}
			if len(text) > 0 && write(text) != nil {
				return nil
			}
		}
	}), nil
}
