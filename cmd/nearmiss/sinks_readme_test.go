package main

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/simonvetter/modbus"
	standard "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/internal/mailtest"
	"github.com/nearmiss/nearmiss/internal/modbustest"
	"github.com/nearmiss/nearmiss/internal/mqtt"
	"github.com/nearmiss/nearmiss/internal/mqtttest"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/incident"
)

// coil is a controller with one coil that remembers whether it was ever on.
type coil struct {
	at uint16
	mu sync.Mutex
	on bool
}

func (c *coil) HandleCoils(r *modbus.CoilsRequest) ([]bool, error) {
	if r.Addr != c.at || r.Quantity != 1 {
		return nil, modbus.ErrIllegalDataAddress
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.IsWrite {
		c.on = c.on || r.Args[0]
	}
	return []bool{c.on}, nil
}

func (*coil) HandleDiscreteInputs(*modbus.DiscreteInputsRequest) ([]bool, error) {
	return nil, modbus.ErrIllegalFunction
}

func (*coil) HandleHoldingRegisters(*modbus.HoldingRegistersRequest) ([]uint16, error) {
	return nil, modbus.ErrIllegalFunction
}

func (*coil) HandleInputRegisters(*modbus.InputRegistersRequest) ([]uint16, error) {
	return nil, modbus.ErrIllegalFunction
}

func (c *coil) wasOn() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.on
}

// TestReadmesSinksDeliver adds the sinks of README.md by its own lines, in which only
// hosts are those of receivers here, and has a worker judge a part with a defect, and
// good ones: the alarm is at the webhook, where the library of Standard Webhooks
// verifies it, at the MQTT broker, and in the mailbox with its picture, and the PLC's
// coil goes on.
func TestReadmesSinksDeliver(t *testing.T) {
	model, dir := patchModel(t), t.TempDir()
	normals, bad, fitted := filepath.Join(dir, "normals"), filepath.Join(dir, "bad"), filepath.Join(dir, "release")
	drawPlates(t, normals, 40, 1, false)
	drawPlates(t, bad, 1, 2, true)
	program(t, 0, "fit", "--normals", normals, "--backbone", model, "--out", fitted, "--detector", "bolts", "--score", "patch", "--alpha", "0.15")
	at := startBroker(t)
	program(t, 0, "releases", "bolts", "publish", fitted, "--promote", "--server", at)

	type request struct {
		path   string
		header http.Header
		body   []byte
	}
	posted := make(chan request, 1000)
	desk := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		posted <- request{r.URL.Path, r.Header, body}
	}))
	t.Cleanup(desk.Close)
	office := mailtest.Open(t)
	office.Anybody()
	gate := &coil{at: 3}
	mosquitto := mqtttest.Broker(t)
	heard := make(chan paho.Message, 1000)
	if err := mqtt.Wait(t.Context(), mqttClient(t, mosquitto).Subscribe("nearmiss/bolts/one/incident", 1, func(_ paho.Client, m paho.Message) { heard <- m })); err != nil {
		t.Fatal(err)
	}
	hosts := map[string]string{
		"webhook": desk.Listener.Addr().String(), "mail": strings.TrimPrefix(office.URL, "smtp://"), "mqtt": mosquitto, "modbus": modbustest.Serve(t, gate),
	}

	// The program trusts both servers as it does those of a company's own authority.
	trusted, err := os.ReadFile(office.CA)
	if err != nil {
		t.Fatal(err)
	}
	trusted = append(trusted, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: desk.Certificate().Raw})...)
	authorities := filepath.Join(dir, "authorities.pem")
	write(t, authorities, string(trusted))
	t.Setenv("SSL_CERT_FILE", authorities)
	sinks := start(t, "sinks", "--server", at)
	sinks.logged("sinks are up")
	worker := start(t, "worker", "--server", at, "--data", t.TempDir())
	worker.logged("release is in service")
	l := listen(t, at)

	var verifier *standard.Webhook
	for _, m := range pageCommand.FindAllStringSubmatch(pages(t)["README.md"], -1) {
		args := words(m[1])
		if len(args) < 4 || args[0] != "sinks" || args[1] != "add" {
			continue
		}
		name, kind, place := args[2], args[3], slices.Index(args, "--url")+1
		u, err := url.Parse(args[place])
		if err != nil || hosts[kind] == "" {
			t.Fatalf("%s: there is no receiver for it here, or it comes twice; %v", m[1], err)
		}
		u.Host = hosts[kind]
		args[place] = u.String()
		delete(hosts, kind)
		if kind == "webhook" {
			args = append(args, "--allow-loopback")
		}
		said, _ := program(t, 0, append(args, "--server", at, "--data", dir)...)
		if kind == "webhook" {
			_, secret, _ := strings.Cut(said, "shown once): ")
			secret, _, _ = strings.Cut(secret, "\n")
			if verifier, err = standard.NewWebhook(secret); err != nil {
				t.Fatalf("%s: %v", said, err)
			}
		}
		if kind == "modbus" {
			continue // it follows scores, and has no consumer
		}
		for _, s := range []string{"NM_EVENTS", "NM_INCIDENTS"} {
			eventually.True(t, name+" has its consumers", func() bool {
				_, err := l.js.Consumer(t.Context(), s, "sink-"+name)
				return err == nil
			})
		}
	}
	if len(hosts) > 0 {
		t.Fatalf("README.md has no line for %v", hosts)
	}

	show := func(dir, camera string, n int) {
		t.Helper()
		image, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("plate%02d.png", n)))
		if err != nil {
			t.Fatal(err)
		}
		m, err := stream.Frame{Detector: "bolts", Camera: camera, ID: fmt.Sprint(n), Image: image}.Message(stream.Names{})
		if err == nil {
			_, err = l.js.PublishMsg(t.Context(), m)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	show(bad, "one", 0)
	phase := func(i incident.Incident) bool { return i.Camera == "one" && i.Phase == incident.New }
	eventually.True(t, "the alarm is at the webhook", func() bool {
		select {
		case r := <-posted:
			if err := verifier.Verify(r.body, r.header); err != nil || r.path != "/alarms" {
				t.Fatalf("%s: %v", r.path, err)
			}
			var cloud struct{ Data incident.Incident }
			err := json.Unmarshal(r.body, &cloud)
			if verifier.Verify(append(r.body, ' '), r.header) == nil {
				t.Error("a changed body is verified")
			}
			return err == nil && phase(cloud.Data)
		default:
			return false
		}
	})
	eventually.True(t, "the alarm is at the MQTT broker", func() bool {
		select {
		case m := <-heard:
			var cloud struct{ Data incident.Incident }
			return json.Unmarshal(m.Payload(), &cloud) == nil && phase(cloud.Data)
		default:
			return false
		}
	})
	eventually.True(t, "the alarm is in the mailbox", func() bool {
		return slices.ContainsFunc(office.Mails(), func(m mailtest.Mail) bool {
			msg := m.Read(t)
			if msg.Header.Get("Subject") != "Anomaly on bolts/one" {
				return false
			}
			picture := mailtest.Parts(t, msg)["image/jpeg"]
			if !m.Encrypted || fmt.Sprint(m.To) != "[shift@example.org]" || !strings.HasPrefix(picture, "\xff\xd8") {
				t.Errorf("to %q, encrypted %v, with a picture of %d bytes", m.To, m.Encrypted, len(picture))
			}
			return true
		})
	})
	// A verdict that comes too late is never written: good parts pass until one was in time.
	shown := 0
	eventually.True(t, "the coil was on", func() bool {
		if scores, _ := l.seen(); shown == 0 || len(scores) > shown {
			show(normals, "two", shown%40)
			shown++
		}
		return gate.wasOn()
	})
	for _, p := range []*process{worker, sinks} {
		p.stop()
	}
}
