package broker_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream/access"
	"github.com/nearmiss/nearmiss/stream/broker"
)

func TestMain(m *testing.M) { brokertest.Main(m) }

// start runs a broker at any free port until the test ends or stop is called.
func start(t *testing.T, cfg broker.Config) (b *broker.Broker, stop func()) {
	t.Helper()
	cfg.Port = -1
	return brokertest.Start(t, cfg)
}

func TestWhatIsStoredSurvivesARestart(t *testing.T) {
	cfg := broker.Config{StoreDir: filepath.Join(t.TempDir(), "data")}
	b, stop := start(t, cfg)
	js := brokertest.StreamsOn(t, brokertest.Connect(t, b))
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "s", []byte("kept")); err != nil {
		t.Fatal(err)
	}
	stop()
	b, _ = start(t, cfg)
	js = brokertest.StreamsOn(t, brokertest.Connect(t, b))
	s, err := js.Stream(t.Context(), "S")
	if err != nil {
		t.Fatal(err)
	}
	if m, err := s.GetMsg(t.Context(), 1); err != nil || string(m.Data) != "kept" {
		t.Errorf("%v, %v", m, err)
	}
}

func TestItListensOnLoopbackOnly(t *testing.T) {
	b, _ := start(t, broker.Config{StoreDir: t.TempDir()})
	if !strings.HasPrefix(b.ClientURL(), "nats://127.0.0.1:") {
		t.Errorf("listens on %s", b.ClientURL())
	}
}

func TestCredentialsAreAsked(t *testing.T) {
	for name, cfg := range map[string]broker.Config{
		"user and password": {User: "u", Password: "p"},
		"token":             {Token: "secret"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg.StoreDir = t.TempDir()
			b, _ := start(t, cfg)
			if nc, err := nats.Connect(b.ClientURL()); err == nil {
				nc.Close()
				t.Error("a client without credentials is let in")
			}
			brokertest.Connect(t, b, b.Credentials()...)
		})
	}
}

// TestAnMQTTCamera publishes as an MQTT 3.1.1 client does, packet by packet.
func TestAnMQTTCamera(t *testing.T) {
	b, _ := start(t, broker.Config{StoreDir: t.TempDir(), MQTTPort: -1})
	js := brokertest.StreamsOn(t, brokertest.Connect(t, b))
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "F", Subjects: []string{"nearmiss.frames.*.*"}}); err != nil {
		t.Fatal(err)
	}
	publishesInTime(t, func() error {
		c, err := net.Dial("tcp", b.MQTTAddr())
		if err != nil {
			return err
		}
		defer c.Close()
		return mqttPublish(c, "", "", "nearmiss/frames/bolts/phone", "an image")
	})
	s, err := js.Stream(t.Context(), "F")
	if err != nil {
		t.Fatal(err)
	}
	if m, err := s.GetLastMsgForSubject(t.Context(), "nearmiss.frames.bolts.phone"); err != nil || string(m.Data) != "an image" {
		t.Errorf("%v, %v", m, err)
	}
}

// publishesInTime waits until a camera has published by MQTT. A server whose store is slow
// to answer itself ends the connection: cameras try again, and what they had sent may be
// stored all the same.
func publishesInTime(t *testing.T, publish func() error) {
	t.Helper()
	eventually.True(t, "an MQTT client has published", func() bool {
		err := publish()
		if err != nil {
			t.Log(err)
		}
		return err == nil
	})
}

// mqttPublish logs in on c, publishes with QoS 1, and waits for the answer.
func mqttPublish(c net.Conn, user, password, topic, payload string) error {
	m := mqttClient{c, bufio.NewReader(c)}
	if err := m.login("MQTT", 4, user, password); err != nil {
		return err
	}
	return m.publish(1, topic, []byte(payload))
}

// mqttClient speaks MQTT 3.1.1 and no more of it than a camera needs.
type mqttClient struct {
	c net.Conn
	r *bufio.Reader
}

// ask sends a packet and demands the answer, which has its length after its first byte.
func (m mqttClient) ask(what string, packet byte, body []byte, answer ...byte) error {
	if _, err := m.c.Write(append(binary.AppendUvarint([]byte{packet}, uint64(len(body))), body...)); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	got := make([]byte, len(answer))
	if _, err := io.ReadFull(m.r, got); err != nil {
		return fmt.Errorf("answer to %s: %w", what, err)
	}
	if !bytes.Equal(got, answer) {
		return fmt.Errorf("answer to %s: %x", what, got)
	}
	return nil
}

func mqttText(s string) []byte { return append([]byte{byte(len(s) >> 8), byte(len(s))}, s...) }

// login names the protocol and its level, 4 for MQTT 3.1.1.
func (m mqttClient) login(protocol string, level byte, user, password string) error {
	flags, secrets := byte(2), []byte(nil)
	if user != "" {
		flags, secrets = flags|0xc0, append(mqttText(user), mqttText(password)...)
	}
	body := append(mqttText(protocol), level, flags, 0, 60)
	if level == 5 {
		body = append(body, 0) // no properties
	}
	return m.ask("CONNECT", 0x10, slices.Concat(body, mqttText("cam-"+user), secrets), 0x20, 2, 0, 0)
}

// publish returns when the server has the message: with QoS 0 it is pinged after it.
func (m mqttClient) publish(qos byte, topic string, payload []byte) error {
	body := mqttText(topic)
	if qos > 0 {
		body = append(body, 0, 1)
	}
	body = append(body, payload...)
	switch qos {
	case 0:
		if err := m.ask("PUBLISH", 0x30, body); err != nil {
			return err
		}
		return m.ask("PINGREQ", 0xc0, nil, 0xd0, 0)
	case 1:
		return m.ask("PUBLISH", 0x32, body, 0x40, 2, 0, 1)
	default:
		if err := m.ask("PUBLISH", 0x34, body, 0x50, 2, 0, 1); err != nil {
			return err
		}
		return m.ask("PUBREL", 0x62, []byte{0, 1}, 0x70, 2, 0, 1)
	}
}

// A page that was not named is refused, and so is a client that is no page.
func TestAWebSocketClient(t *testing.T) {
	b, _ := start(t, broker.Config{
		StoreDir: t.TempDir(), WebSocketPort: -1,
		User: "u", Password: "p", Origins: []string{"https://desk.example"},
	})
	for origin, want := range map[string]int{
		"https://desk.example": http.StatusSwitchingProtocols,
		"https://evil.example": http.StatusForbidden,
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, strings.Replace(b.WebSocketURL(), "ws://", "http://", 1), nil)
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range map[string]string{
			"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
			"Origin": origin,
		} {
			req.Header.Set(k, v)
		}
		tr := &http.Transport{}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		tr.CloseIdleConnections()
		if resp.StatusCode != want {
			t.Errorf("a page of %s: status %s", origin, resp.Status)
		}
	}
}

func TestAFullStoreRefusesAtOnceAndRecovers(t *testing.T) {
	b, _ := start(t, broker.Config{StoreDir: t.TempDir(), MaxStore: 64 << 20})
	js := brokertest.StreamsOn(t, brokertest.Connect(t, b))
	s, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}})
	if err != nil {
		t.Fatal(err)
	}
	full := false
	for range 100 {
		if _, err := js.Publish(t.Context(), "s", make([]byte, 1<<20)); err != nil {
			full = true
			break
		}
	}
	if !full {
		t.Fatal("more is stored than allowed")
	}
	if err := s.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "s", []byte("again")); err != nil {
		t.Error(err)
	}
}

func TestAPortThatIsTakenIsAnError(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b, err := broker.New(broker.Config{Port: l.Addr().(*net.TCPAddr).Port, StoreDir: t.TempDir()}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "address already in use") || !strings.Contains(err.Error(), "choose another port") {
		t.Errorf("error %v", err)
	}
}

func TestTwoBrokersCannotShareAStore(t *testing.T) {
	if runtime.GOOS != "linux" && runtime.GOOS != "darwin" {
		t.Skip("there is no flock on this system")
	}
	dir := t.TempDir()
	_, stop := start(t, broker.Config{StoreDir: dir})
	second, err := broker.New(broker.Config{StoreDir: dir, Port: -1}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(t.Context()); !errors.Is(err, broker.ErrInUse) {
		t.Fatalf("a second broker on the store: %v", err)
	}
	stop()
	start(t, broker.Config{StoreDir: dir}) // the store is free again
}

func TestValidate(t *testing.T) {
	for name, cfg := range map[string]broker.Config{
		"no store":                 {},
		"open to all":              {StoreDir: "x", Host: "0.0.0.0"},
		"half credentials":         {StoreDir: "x", User: "u"},
		"two kinds of credentials": {StoreDir: "x", User: "u", Password: "p", Token: "t"},
		"bad port":                 {StoreDir: "x", Port: 70000},
		"tiny store":               {StoreDir: "x", MaxStore: 1},
		"huge payload":             {StoreDir: "x", MaxPayload: 1 << 30},
		"a WebSocket for any page": {StoreDir: "x", WebSocketPort: 8080, User: "u", Password: "p"},
		"an open WebSocket":        {StoreDir: "x", WebSocketPort: 8080, Origins: []string{"https://a.example"}},
		"a wildcard origin":        {StoreDir: "x", WebSocketPort: 8080, User: "u", Password: "p", Origins: []string{"*"}},
		"half a certificate":       {StoreDir: "x", TLS: access.TLSFiles{Cert: "c"}},
	} {
		if err := cfg.Validate(); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	if err := (broker.Config{StoreDir: "x", Host: "0.0.0.0", Anonymous: true}).Validate(); err != nil {
		t.Error(err)
	}
}
