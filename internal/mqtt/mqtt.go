// Package mqtt has what the clients of MQTT brokers share: addresses,
// certificates, and waiting for what the broker acknowledges.
//
// MQTT 3.1.1 is spoken: every broker understands it, also those that know
// version 5.
package mqtt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/nearmiss/nearmiss/internal/certs"
)

// Access says where a broker is and how to come in.
type Access struct {
	// URL is mqtt://HOST[:1883], mqtts://HOST[:8883], ws:// or wss://.
	URL string `json:"url"`
	// User signs in, with the password that is kept elsewhere.
	User string `json:"user,omitempty"`
	// CAFile has the certificates that may have signed the broker's.
	CAFile string `json:"ca_file,omitempty"`
	// CertFile and KeyFile are the client's certificate.
	CertFile string `json:"cert_file,omitempty"`
	KeyFile  string `json:"key_file,omitempty"`
}

// Timeout of connecting, and of what the broker must acknowledge.
const Timeout = 10 * time.Second

// Options are those of a client. Errors show no password.
func (a Access) Options(password string) (*paho.ClientOptions, error) {
	u, err := url.Parse(a.URL)
	if err != nil || u.Hostname() == "" {
		return nil, errors.New("the broker's address is not mqtt://HOST, mqtts://HOST, ws://HOST or wss://HOST")
	}
	if u.User != nil {
		return nil, errors.New("the broker's address holds a password: name the user, and where the secret is")
	}
	port, secure := "1883", false
	switch u.Scheme {
	case "mqtt", "tcp":
		u.Scheme = "tcp"
	case "mqtts", "ssl", "tls":
		u.Scheme, port, secure = "ssl", "8883", true
	case "ws":
		port = ""
	case "wss":
		port, secure = "", true
	default:
		return nil, fmt.Errorf("the broker's address begins with %q: use mqtt, mqtts, ws or wss", u.Scheme)
	}
	if u.Port() == "" && port != "" {
		u.Host = net.JoinHostPort(u.Hostname(), port)
	}
	if !secure && (a.CAFile != "" || a.CertFile != "" || a.KeyFile != "") {
		return nil, errors.New("certificates are for mqtts:// and wss://")
	}
	t, err := certs.Client(a.CAFile, a.CertFile, a.KeyFile)
	if err != nil {
		return nil, err
	}
	o := paho.NewClientOptions().AddBroker(u.String()).
		SetProtocolVersion(4). // 3.1.1
		SetConnectTimeout(Timeout).SetWriteTimeout(Timeout).SetPingTimeout(Timeout).SetKeepAlive(20 * time.Second).
		SetAutoReconnect(false).SetConnectRetry(false).SetCleanSession(true).SetOrderMatters(true)
	if a.User != "" {
		o.SetUsername(a.User).SetPassword(password)
	}
	if secure {
		t.ServerName = u.Hostname()
		o.SetTLSConfig(t)
	}
	return o, nil
}

// Wait returns when the broker has acknowledged, or ctx ends.
func Wait(ctx context.Context, t paho.Token) error {
	select {
	case <-t.Done():
		return t.Error()
	case <-ctx.Done():
		return ctx.Err()
	}
}
