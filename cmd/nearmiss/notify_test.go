package main

import (
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
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
	hears := func(want string) {
		t.Helper()
		if err := starter.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		for {
			n, err := starter.Read(b)
			if err != nil {
				t.Fatalf("%s is not heard: %v", want, err)
			}
			if string(b[:n]) == want {
				return
			}
		}
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
