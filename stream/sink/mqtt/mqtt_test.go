package mqtt_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/nats-io/nuid"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/eventually"
	inner "github.com/nearmiss/nearmiss/internal/mqtt"
	"github.com/nearmiss/nearmiss/internal/mqtttest"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/broker"
	"github.com/nearmiss/nearmiss/stream/incident"
	"github.com/nearmiss/nearmiss/stream/sink"
	"github.com/nearmiss/nearmiss/stream/sink/mqtt"
)

// ear hears everything on a broker.
type ear struct {
	t  *testing.T
	c  paho.Client
	mu sync.Mutex
	by map[string][]string // payloads by topic
}

func listen(t *testing.T, at string) *ear {
	t.Helper()
	e := &ear{t: t, by: map[string][]string{}}
	e.c = paho.NewClient(paho.NewClientOptions().AddBroker("tcp://" + at).SetClientID("ear-" + nuid.Next()).
		SetAutoReconnect(false).SetConnectRetry(true).SetConnectRetryInterval(20 * time.Millisecond)) // a server that is slow to answer itself ends the connection
	for _, token := range []func() paho.Token{e.c.Connect, func() paho.Token {
		return e.c.Subscribe("#", 1, func(_ paho.Client, m paho.Message) {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.by[m.Topic()] = append(e.by[m.Topic()], string(m.Payload()))
		})
	}} {
		if tk := token(); !tk.WaitTimeout(time.Minute) || tk.Error() != nil {
			t.Fatal(tk.Error())
		}
	}
	t.Cleanup(func() { e.c.Disconnect(0) })
	return e
}

func (e *ear) heard(topic string) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.by[topic])
}

// last waits until the latest message on a topic is as wanted.
func (e *ear) last(topic string, want func(string) bool) {
	e.t.Helper()
	eventually.True(e.t, "on "+topic, func() bool {
		all := e.heard(topic)
		return len(all) > 0 && want(all[len(all)-1])
	})
}

func is(s string) func(string) bool { return func(got string) bool { return got == s } }
func has(s string) func(string) bool {
	return func(got string) bool { return strings.Contains(got, s) }
}

func access(url string) (a inner.Access) {
	a.URL = url
	return a
}

func open(t *testing.T, cfg mqtt.Config, pictures sink.Pictures) sink.Sender {
	t.Helper()
	raw, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s, err := mqtt.Opener(stream.Names{}, "test", pictures)(sink.Sink{Name: "hall", Config: raw}, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

var noon = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)

func anomaly(id string) sink.Notice {
	score, threshold := 2.0, 1.0
	return sink.Notice{ID: id, At: noon, Event: stream.Event{
		ID: id, Kind: stream.KindAnomaly, Detector: "bolts", Camera: "line1", FrameID: "f-1", ScoredAt: noon, Score: &score, Threshold: &threshold, Pictures: "NM_EVIDENCE/bolts/" + id,
	}}
}

func phase(id, phase string, n int) sink.Notice {
	out := anomaly(id)
	out.ID, out.Event.Kind = fmt.Sprintf("%s/%d", id, n), sink.IncidentPrefix+phase
	out.Incident = &incident.Incident{ID: id, Phase: phase, N: n, Detector: "bolts", Camera: "line1", OpenedAt: noon, LastAt: noon, Anomalies: 1 + n}
	return out
}

// An event is delivered when the broker has acknowledged it, not before: when
// the connection ends between PUBLISH and PUBACK it is sent again under its id.
// Who is connected, and who was cut off, is on the topic availability.
func TestOnlyWhatIsAcknowledgedIsDelivered(t *testing.T) {
	mqtttest.Brokers(t, func(t *testing.T, start func(testing.TB) string) {
		at := start(t)
		r, e := brokertest.NewRelay(t, at), listen(t, at)
		s := open(t, mqtt.Config{Access: access("mqtt://" + r.Addr())}, nil)
		if err := s.Send(t.Context(), anomaly("e1")); err != nil {
			t.Fatal(err)
		}
		e.last("nearmiss/availability", is(mqtt.Online))
		e.last("nearmiss/bolts/line1/event", has(`"id":"e1"`))

		r.Silence()
		done := make(chan error, 1)
		go func() { done <- s.Send(t.Context(), anomaly("e2")) }()
		e.last("nearmiss/bolts/line1/event", has(`"id":"e2"`)) // the broker has it, and nobody knows
		r.Cut()
		if err := <-done; err == nil {
			t.Fatal("it is called delivered")
		}
		e.last("nearmiss/availability", is(mqtt.Offline)) // the last will
		if err := s.Send(t.Context(), anomaly("e2")); err != nil {
			t.Fatal(err)
		}
		e.last("nearmiss/availability", is(mqtt.Online))
		eventually.True(t, "it comes twice, under one id", func() bool {
			n := 0
			for _, m := range e.heard("nearmiss/bolts/line1/event") {
				if strings.Contains(m, `"id":"e2"`) {
					n++
				}
			}
			return n == 2
		})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		e.last("nearmiss/availability", is(mqtt.Stopped))
	})
}

// Mosquitto is killed, three times, when it has an event and before the sink knows:
// the event comes again, to the one that is started then, under its id.
func TestMosquittoIsKilledBetweenPublishAndAcknowledgement(t *testing.T) {
	at, kill := mqtttest.Mosquitto(t)
	b, _ := brokertest.Start(t, broker.Config{Port: -1})
	nc := brokertest.Connect(t, b)
	js := brokertest.StreamsOn(t, nc)
	if err := stream.Ensure(t.Context(), js, stream.Topology{}); err != nil {
		t.Fatal(err)
	}
	r := brokertest.NewRelay(t, at)
	value, err := json.Marshal(sink.Sink{
		Name: "hall", Kind: mqtt.Kind, Enabled: true, Kinds: []string{stream.KindAnomaly}, Config: []byte(`{"url":"mqtt://` + r.Addr() + `","home_assistant":"-"}`),
	})
	if err != nil {
		t.Fatal(err)
	}
	sinks, err := js.KeyValue(t.Context(), "NM_SINKS")
	if err == nil {
		_, err = sinks.Put(t.Context(), "hall", value)
	}
	if err != nil {
		t.Fatal(err)
	}
	e, err := sink.NewEngine(sink.EngineConfig{
		Kinds:  sink.Kinds{mqtt.Kind: mqtt.Opener(stream.Names{}, "test", nil)},
		Delays: []time.Duration{50 * time.Millisecond},
	}, nc, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	brokertest.Run(t, "sinks", e.Run)
	const topic = "nearmiss/bolts/line1/event"
	waiting := func() (n int) {
		c, err := js.Consumer(t.Context(), "NM_EVENTS", "sink-hall")
		if err != nil {
			return -1
		}
		return int(c.CachedInfo().NumPending) + c.CachedInfo().NumAckPending
	}
	eventually.True(t, "the sink has its consumer", func() bool { return waiting() == 0 })
	publish := func(id string) {
		t.Helper()
		m, err := anomaly(id).Event.Message(stream.Names{})
		if err == nil {
			_, err = js.PublishMsg(t.Context(), m)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	ear := listen(t, at)
	for round := range 3 {
		before, during := fmt.Sprintf("before-%d", round), fmt.Sprintf("during-%d", round)
		publish(before)
		ear.last(topic, has(before))
		eventually.True(t, "it is acknowledged", func() bool { return waiting() == 0 })
		r.Silence()
		publish(during)
		ear.last(topic, has(during)) // Mosquitto has it, and the sink does not know
		if waiting() != 1 {
			t.Fatal("it counts as delivered")
		}
		kill()
		at, kill = mqtttest.Mosquitto(t)
		ear = listen(t, at)
		r.Lead(at)
		r.Cut()
		ear.last(topic, has(`"id":"`+during+`"`))
		eventually.True(t, "all is acknowledged", func() bool { return waiting() == 0 })
		ear.last("nearmiss/availability", is(mqtt.Online))
	}
	t.Log("killed 3 times with an event in hand, 0 lost")
}

// A camera's state is retained: the alarm is on from an incident's beginning to
// its end, in whatever order its messages come.
func TestStatesAndPictures(t *testing.T) {
	mqtttest.Brokers(t, func(t *testing.T, start func(testing.TB) string) {
		at := start(t)
		s := open(t, mqtt.Config{Access: access("mqtt://" + at), Pictures: true}, func(_ context.Context, e stream.Event) ([]stream.Picture, error) {
			return []stream.Picture{{Name: "heat.png"}, {Name: sink.Overlay, Data: []byte("picture of " + e.ID)}}, nil
		})
		alarm := func(want string, n sink.Notice) {
			t.Helper()
			if err := s.Send(t.Context(), n); err != nil {
				t.Fatal(err)
			}
			e := listen(t, at) // who comes later
			e.last("nearmiss/bolts/line1/state", has(`"alarm":"`+want+`"`))
		}
		alarm("ON", phase("i1", incident.New, 0))
		alarm("OFF", phase("i1", incident.End, 2))
		alarm("OFF", phase("i1", incident.Update, 1)) // late
		silent := anomaly("c")
		silent.Event.Kind, silent.Event.Code = stream.KindCamera, stream.CameraSilent
		alarm("OFF", silent)
		e := listen(t, at)
		e.last("nearmiss/bolts/line1/camera", is(mqtt.Silent))
		e.last("nearmiss/bolts/line1/picture", is("picture of c"))

		// A test is seen, and changes nothing.
		n := phase("example", incident.New, 0)
		n.Test, n.Event.Camera, n.Incident.Camera = true, "other", "other"
		if err := s.Send(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		e.last("nearmiss/bolts/other/incident", has(`"test":true`))
		if got := e.heard("nearmiss/bolts/other/state"); got != nil {
			t.Errorf("a test left %q", got)
		}
	})
}

// Home Assistant is told of each camera, and again when it has started anew; the
// score follows the frames.
func TestHomeAssistantFindsCameras(t *testing.T) {
	at := mqtttest.Embedded(t)
	e := listen(t, at)
	b, _ := brokertest.Start(t, broker.Config{Port: -1})
	nc := brokertest.Connect(t, b)
	cfg := mqtt.Config{Access: access("mqtt://" + at)}
	s := open(t, cfg, nil)
	brokertest.Run(t, "mqtt", func(ctx context.Context) error {
		return s.(sink.Follower).Follow(ctx, sink.Live{NC: nc, Failed: func(err error) { t.Log(err) }})
	})
	score, threshold := 0.5, 2.0
	m, err := json.Marshal(stream.Event{Detector: "bolts", Camera: "line_1", FrameID: "1", ScoredAt: noon, Score: &score, Threshold: &threshold})
	if err != nil {
		t.Fatal(err)
	}
	var device string
	eventually.True(t, "the camera is announced", func() bool {
		if err := nc.Publish(stream.Names{}.Scores("bolts", "line_1"), m); err != nil {
			t.Fatal(err)
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		for topic := range e.by {
			if strings.HasPrefix(topic, "homeassistant/device/nearmiss_bolts_line_1_") {
				device = topic
			}
		}
		return device != ""
	})
	e.last("nearmiss/bolts/line_1/state", has(`"ratio":0.25`))
	var d struct {
		Cmps map[string]map[string]any
		O    map[string]any
		Dev  map[string]any
	}
	if err := json.Unmarshal([]byte(e.heard(device)[0]), &d); err != nil {
		t.Fatal(err)
	}
	seen := map[any]bool{}
	for name, c := range d.Cmps {
		id := c["unique_id"]
		topic, _ := c["state_topic"].(string)
		if id == nil || seen[id] || c["p"] == nil || !strings.HasPrefix(topic, "nearmiss/bolts/line_1/") {
			t.Errorf("%s: %v", name, c)
		}
		seen[id] = true
	}
	if len(d.Cmps) != 4 || d.O["name"] != "nearmiss" || d.Dev["ids"] == nil {
		t.Errorf("%+v", d)
	}
	before := len(e.heard(device))
	e.c.Publish("homeassistant/status", 1, false, "online")
	eventually.True(t, "it is announced again", func() bool { return len(e.heard(device)) > before })
}

func TestConfigurationsThatCannotWorkAreRefused(t *testing.T) {
	for _, cfg := range []string{
		`{}`, `{"url":"http://h"}`, `{"url":"mqtt://u:hunter2@h"}`, `{"url":"mqtt://h","base":"a/#"}`, `{"url":"mqtt://h","base":"$SYS"}`,
		`{"url":"mqtt://h","ca_file":"x"}`, `{"url":"mqtts://h","cert_file":"x"}`, `{"url":"mqtt://h","more":1}`,
	} {
		_, err := mqtt.Opener(stream.Names{}, "", nil)(sink.Sink{Name: "s", Config: []byte(cfg)}, "")
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", cfg, err)
		}
	}
}
