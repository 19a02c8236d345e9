// Package mqtttest has real MQTT brokers for tests.
package mqtttest

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/stream/broker"
)

// Brokers runs a test with Nearmiss's own broker, and with Mosquitto where that is
// installed.
func Brokers(t *testing.T, test func(t *testing.T, start func(testing.TB) string)) {
	t.Run("embedded", func(t *testing.T) { test(t, Embedded) })
	t.Run("Mosquitto", func(t *testing.T) {
		path := mosquitto()
		if path == "" {
			t.Skip("mosquitto is not installed (Debian package mosquitto)")
		}
		test(t, startMosquitto)
	})
}

func mosquitto() string {
	for _, name := range []string{"mosquitto", "/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

// Embedded starts Nearmiss's own broker and returns host and port of its MQTT
// listener.
func Embedded(t testing.TB) string {
	t.Helper()
	b, _ := brokertest.Start(t, broker.Config{Port: -1, MQTTPort: -1})
	return b.MQTTAddr()
}

func startMosquitto(t testing.TB) string {
	t.Helper()
	for range 20 { // it cannot say which port it has found
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		l.Close()
		conf := filepath.Join(t.TempDir(), "mosquitto.conf")
		if err := os.WriteFile(conf, fmt.Appendf(nil, "listener %d 127.0.0.1\nallow_anonymous true\npersistence false\nuser root\n", port), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(mosquitto(), "-c", conf)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			_ = cmd.Wait()
			close(ended)
		}()
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			<-ended
		})
		at := fmt.Sprintf("127.0.0.1:%d", port)
		for {
			if c, err := net.Dial("tcp", at); err == nil {
				c.Close()
				return at
			}
			select {
			case <-ended: // somebody else has the port
			case <-time.After(10 * time.Millisecond):
				continue
			}
			break
		}
	}
	t.Fatal("no port is free")
	return ""
}

// Relay is a way to a broker that can be cut, and on which the broker's answers
// can be kept back.
type Relay struct {
	l    net.Listener
	to   string
	mu   sync.Mutex
	open []net.Conn
	mute bool
	wg   sync.WaitGroup
}

// NewRelay leads to the broker at host and port.
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

// answers loses what a broker says while the relay is mute.
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

// Cut ends all connections, and lets new ones hear the broker again.
func (r *Relay) Cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.open {
		c.Close()
	}
	r.open, r.mute = nil, false
}

// Silence keeps back what the broker says.
func (r *Relay) Silence() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mute = true
}

// URL is the relay's address.
func (r *Relay) URL() string { return "mqtt://" + r.l.Addr().String() }
