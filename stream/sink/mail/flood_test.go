package mail_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/internal/mailtest"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/broker"
	"github.com/nearmiss/nearmiss/stream/incident"
	"github.com/nearmiss/nearmiss/stream/sink"
	"github.com/nearmiss/nearmiss/stream/sink/mail"
)

// A minute in which ten cameras see anomalies all the time is ten alarms: ten
// mails when they begin and ten when they are over. make sinks is the long form.
func TestAFloodIsAMailACameraAndItsEnd(t *testing.T) {
	events := 500
	if n, err := strconv.Atoi(os.Getenv("NEARMISS_TEST_SINK_FLOOD")); err == nil {
		events = n
	}
	const cameras = 10
	o := mailtest.Open(t)
	b, _ := brokertest.Start(t, broker.Config{Port: -1})
	nc := brokertest.Connect(t, b)
	js := brokertest.StreamsOn(t, nc)
	if err := stream.Ensure(t.Context(), js, stream.Topology{}); err != nil {
		t.Fatal(err)
	}
	word := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(word, []byte(mailtest.Password), 0o600); err != nil {
		t.Fatal(err)
	}
	config, err := json.Marshal(mail.Config{URL: o.URL, CAFile: o.CA, From: "alarm@example.org", To: []string{"shift@example.org"}, User: mailtest.User})
	if err != nil {
		t.Fatal(err)
	}
	value, err := json.Marshal(sink.Sink{Name: "shift", Kind: mail.Kind, Enabled: true, Config: config, Secret: "file:" + word})
	if err != nil {
		t.Fatal(err)
	}
	sinks, err := js.KeyValue(t.Context(), "NM_SINKS")
	if err == nil {
		_, err = sinks.Put(t.Context(), "shift", value)
	}
	if err != nil {
		t.Fatal(err)
	}
	var now atomic.Pointer[time.Time] // no time passes but what the test says
	began := time.Now().UTC()
	now.Store(&began)
	engine, err := sink.NewEngine(sink.EngineConfig{Kinds: sink.Kinds{mail.Kind: mail.Opener("test", nil, nil)}, Delays: []time.Duration{50 * time.Millisecond}}, nc, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	incidents, err := incident.NewEngine(incident.Config{Now: func() time.Time { return *now.Load() }}, nc, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	brokertest.Run(t, "sinks", engine.Run)
	brokertest.Run(t, "incidents", incidents.Run)
	// A server says that a message is stored before its consumers hear of it: that nothing
	// is pending is not yet the end.
	done := func(name, consumer string) bool {
		s, err := js.Stream(t.Context(), name)
		if err != nil {
			return false
		}
		c, err := js.Consumer(t.Context(), name, consumer)
		return err == nil && c.CachedInfo().AckFloor.Stream == s.CachedInfo().State.LastSeq
	}
	eventually.True(t, "both are at work", func() bool { return done("NM_EVENTS", "incidents") && done("NM_INCIDENTS", "sink-shift") })

	start := time.Now()
	for i := range events {
		score, threshold := 2.0, 1.0
		m, err := stream.Event{
			ID: fmt.Sprintf("event-%d", i), Kind: stream.KindAnomaly, Detector: "bolts", Camera: "line" + strconv.Itoa(i%cameras), FrameID: strconv.Itoa(i),
			ScoredAt: began.Add(time.Duration(i) * time.Minute / time.Duration(events)), Score: &score, Threshold: &threshold,
		}.Message(stream.Names{})
		if err == nil {
			_, err = js.PublishMsg(t.Context(), m)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	eventually.True(t, "all are counted", func() bool { return done("NM_EVENTS", "incidents") })
	took := time.Since(start)
	over := began.Add(time.Hour)
	now.Store(&over)
	phases := map[string]int{}
	eventually.True(t, "all incidents are over", func() bool {
		s, err := js.Stream(t.Context(), "NM_INCIDENTS")
		if err != nil {
			return false
		}
		info, err := s.Info(t.Context(), jetstream.WithSubjectFilter("nearmiss.incidents.>"))
		if err != nil {
			return false
		}
		clear(phases)
		for subject, n := range info.State.Subjects {
			phase, _ := stream.Names{}.ParseIncidents(subject)
			phases[phase] += int(n)
		}
		return phases[incident.End] >= cameras
	})
	eventually.True(t, "all mails are there", func() bool { return done("NM_INCIDENTS", "sink-shift") })
	mails := len(o.Mails())
	if phases[incident.New] != cameras || phases[incident.End] != cameras || mails != 2*cameras {
		t.Errorf("incidents %v, %d mails", phases, mails)
	}
	t.Logf("%d events of %d cameras in a minute: incidents %v, %d mails; counted %.0f events a second", events, cameras, phases, mails, float64(events)/took.Seconds())
}
