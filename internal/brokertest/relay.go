package brokertest

import (
	"io"
	"net"
	"sync"
	"testing"
)

// Relay is a way to a server that can be cut, and on which the server's answers
// can be kept back.
type Relay struct {
	l    net.Listener
	to   string
	mu   sync.Mutex
	open []net.Conn
	mute bool
	wg   sync.WaitGroup
}

// NewRelay leads to the server at host and port until the test ends.
func NewRelay(t testing.TB, to string) *Relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &Relay{l: l, to: to}
	r.wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			r.mu.Lock()
			to := r.to
			r.mu.Unlock()
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			r.mu.Lock()
			r.open = append(r.open, in, out)
			r.mu.Unlock()
			r.wg.Go(func() { _, _ = io.Copy(out, in); out.Close(); in.Close() })
			r.wg.Go(func() { _, _ = io.Copy(answers{in, r}, out); out.Close(); in.Close() })
		}
	})
	t.Cleanup(func() {
		l.Close()
		r.Cut()
		r.wg.Wait()
	})
	return r
}

// answers loses what a server says while the relay is mute.
type answers struct {
	net.Conn
	r *Relay
}

func (a answers) Write(b []byte) (int, error) {
	a.r.mu.Lock()
	mute := a.r.mute
	a.r.mu.Unlock()
	if mute {
		return len(b), nil
	}
	return a.Conn.Write(b)
}

// Cut ends all connections, and lets new ones receive from the server again.
func (r *Relay) Cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.open {
		c.Close()
	}
	r.open, r.mute = nil, false
}

// Lead has new connections lead to another server.
func (r *Relay) Lead(to string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.to = to
}

// Silence keeps back what the server says.
func (r *Relay) Silence() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mute = true
}

// Addr is the relay's own host and port.
func (r *Relay) Addr() string { return r.l.Addr().String() }
