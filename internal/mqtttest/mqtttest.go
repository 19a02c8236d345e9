// Package mqtttest has real MQTT brokers for tests.
package mqtttest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
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
		test(t, func(t testing.TB) string {
			at, _ := Mosquitto(t)
			return at
		})
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

// Broker starts Mosquitto where that is installed, and else Nearmiss's own broker, and
// returns host and port.
func Broker(t testing.TB) (at string) {
	t.Helper()
	if mosquitto() == "" {
		t.Log("mosquitto is not installed (Debian package mosquitto): Nearmiss's own broker takes its place")
		return Embedded(t)
	}
	at, _ = Mosquitto(t)
	return at
}

// Embedded starts Nearmiss's own broker and returns host and port of its MQTT
// listener.
func Embedded(t testing.TB) string {
	t.Helper()
	b, _ := brokertest.Start(t, broker.Config{Port: -1, MQTTPort: -1})
	return b.MQTTAddr()
}

// Mosquitto starts that broker, where it is installed, and returns host and port;
// kill (SIGKILL) ends it at once, and the test does.
func Mosquitto(t testing.TB) (at string, kill func()) {
	t.Helper()
	if mosquitto() == "" {
		t.Skip("mosquitto is not installed (Debian package mosquitto)")
	}
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
		kill := func() {
			_ = cmd.Process.Kill()
			<-ended
		}
		t.Cleanup(kill)
		at := fmt.Sprintf("127.0.0.1:%d", port)
		for {
			if c, err := net.Dial("tcp", at); err == nil {
				c.Close()
				return at, kill
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
	return "", nil
}
