package main

import (
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/nearmiss/nearmiss/internal/eventually"
)

// The starter of a service hears that it is ready, that it lives, and that it is
// about to end.
func TestTheStarterHearsHowAServiceIs(t *testing.T) {
	dir, err := os.MkdirTemp("", "nm") // a socket's name is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	at := filepath.Join(dir, "notify")
	starter, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: at, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer starter.Close()
	var mu sync.Mutex
	said := map[string]bool{}
	go func() { // to the end: a socket takes a few words, and who says one more waits until they are read
		for b := make([]byte, 100); ; {
			n, err := starter.Read(b)
			if err != nil {
				return
			}
			mu.Lock()
			said[string(b[:n])] = true
			mu.Unlock()
		}
	}()
	hears := func(want string) {
		t.Helper()
		eventually.True(t, want+" is heard", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return said[want]
		})
	}
	t.Setenv("NOTIFY_SOCKET", at)
	t.Setenv("WATCHDOG_USEC", "20000")
	broker := start(t, "broker", "--data", t.TempDir(), "--port=-1")
	hears("READY=1")
	hears("WATCHDOG=1")
	if err := broker.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	hears("STOPPING=1")
	<-broker.exited
}
