package mqtt_test

import (
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/internal/mqtt"
)

func TestAddressesOfBrokers(t *testing.T) {
	for address, want := range map[string]struct {
		at  string
		tls bool
	}{
		"mqtt://h":      {"tcp://h:1883", false},
		"mqtt://[::1]":  {"tcp://[::1]:1883", false},
		"mqtts://h":     {"ssl://h:8883", true},
		"ssl://h:1":     {"ssl://h:1", true},
		"ws://h/mqtt":   {"ws://h/mqtt", false},
		"wss://h:8/a":   {"wss://h:8/a", true},
		"mqtts://h:443": {"ssl://h:443", true},
	} {
		o, err := mqtt.Access{URL: address}.Options("")
		if err != nil {
			t.Errorf("%s: %v", address, err)
			continue
		}
		if at := o.Servers[0].String(); at != want.at {
			t.Errorf("%s leads to %s", address, at)
		}
		if c := o.TLSConfig; (c != nil) != want.tls || c != nil && c.ServerName != "h" {
			t.Errorf("%s: %+v", address, c)
		}
	}
	for what, a := range map[string]mqtt.Access{
		"no address":                    {},
		"another scheme":                {URL: "http://h"},
		"a password":                    {URL: "mqtt://u:hunter2@h"},
		"certificates and nothing to":   {URL: "mqtt://h", CAFile: "ca.pem"},
		"a key for nothing":             {URL: "mqtt://h", KeyFile: "key.pem"},
		"a certificate without its key": {URL: "mqtts://h", CertFile: "cert.pem"},
	} {
		if _, err := a.Options("hunter3"); err == nil || strings.Contains(err.Error(), "hunter") {
			t.Errorf("%s: %v", what, err)
		}
	}
}
