// Package modbustest serves Modbus TCP for tests.
package modbustest

import (
	"io"
	"log"
	"net"
	"testing"

	"github.com/simonvetter/modbus"
)

// Serve answers clients by a handler until the test ends, and returns host and port.
func Serve(t testing.TB, h modbus.RequestHandler) (at string) {
	t.Helper()
	for range 20 { // the library cannot say which port it has found
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		at := l.Addr().String()
		l.Close()
		s, err := modbus.NewServer(&modbus.ServerConfiguration{URL: "tcp://" + at, MaxClients: 100, Logger: log.New(io.Discard, "", 0)}, h)
		if err != nil {
			t.Fatal(err)
		}
		if s.Start() != nil {
			continue // somebody else has taken it
		}
		t.Cleanup(func() { _ = s.Stop() })
		return at
	}
	t.Fatal("no port is free")
	return ""
}
