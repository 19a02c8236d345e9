// Package mqtt publishes on any MQTT broker: what happens, as CloudEvents; the
// state of each camera, retained; and devices that Home Assistant finds by
// itself. An event counts as delivered when the broker has acknowledged it.
//
//	<base>/availability        online, stopped (by an operator) or offline; retained
//	<base>/<d>/<c>/event       CloudEvent of an event
//	<base>/<d>/<c>/incident    CloudEvent of an incident; its phase is inside
//	<base>/<d>/<c>/state       [State]; retained
//	<base>/<d>/<c>/camera      live or silent; retained
//	<base>/<d>/<c>/picture     JPEG of the last alarm, with the place marked; retained
//
// d is the detector, c the camera; names have no characters that mean something
// in topics.
package mqtt

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"

	"github.com/nearmiss/nearmiss/internal/mqtt"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/incident"
	"github.com/nearmiss/nearmiss/stream/sink"
)

// Kind is the name of this kind of sink.
const Kind = "mqtt"

// Events are the kinds of events that such a sink gets unless it names some.
var Events = []string{
	sink.IncidentPrefix + incident.New, sink.IncidentPrefix + incident.Update, sink.IncidentPrefix + incident.End,
	stream.KindAnomaly, stream.KindRejected, stream.KindCamera, stream.KindDrift, stream.KindRelease,
}

// Config is the kind's configuration. The sink's secret is the user's password.
type Config struct {
	mqtt.Access
	// Base begins all topics. Default nearmiss.
	Base string `json:"base,omitempty"`
	// HomeAssistant is the prefix under which devices announce themselves to Home
	// Assistant, by default "homeassistant"; "-" announces none.
	HomeAssistant string `json:"home_assistant,omitempty"`
	// Pictures publishes the picture of each alarm.
	Pictures bool `json:"pictures,omitempty"`
}

// State is what is known of a camera, on its topic state.
type State struct {
	Alarm     string     `json:"alarm"` // ON while an incident is open, else OFF
	Incident  string     `json:"incident,omitempty"`
	Score     *float64   `json:"score,omitempty"` // of the last frame
	Threshold *float64   `json:"threshold,omitempty"`
	Ratio     *float64   `json:"ratio,omitempty"` // score as a multiple of the threshold
	PValue    *float64   `json:"p_value,omitempty"`
	At        *time.Time `json:"at,omitempty"` // when that frame was scored
}

// Words on the topics availability and camera.
const (
	Online  = "online"
	Stopped = "stopped"
	Offline = "offline"
	Live    = "live"
	Silent  = "silent"
)

// stateEvery is how often a state that changes is published.
const stateEvery = time.Second

// Opener makes the opener of MQTT sinks; pictures may be nil.
func Opener(names stream.Names, version string, pictures sink.Pictures) func(sink.Sink, string) (sink.Sender, error) {
	return func(s sink.Sink, secret string) (sink.Sender, error) {
		var c Config
		if err := s.Decode(&c); err != nil {
			return nil, fmt.Errorf("mqtt: %w", err)
		}
		c.Base = cmp.Or(c.Base, "nearmiss")
		c.HomeAssistant = cmp.Or(c.HomeAssistant, "homeassistant")
		for what, topic := range map[string]string{"base": c.Base, "home_assistant": c.HomeAssistant} {
			if strings.ContainsAny(topic, "+#\x00") || strings.HasPrefix(topic, "/") || strings.HasSuffix(topic, "/") || strings.HasPrefix(topic, "$") || len(topic) > 200 {
				return nil, fmt.Errorf("mqtt: %s %q cannot begin topics", what, topic)
			}
		}
		out := &sender{cfg: c, names: names, version: version, pictures: pictures, secret: secret, id: "nearmiss-" + s.Name + "-" + nuid.Next(), places: map[place]*cameraState{}, wants: sink.Live{Sink: s}.Wants}
		if _, err := out.options(); err != nil { // what cannot work says so now
			return nil, err
		}
		return out, nil
	}
}

type place struct{ detector, camera string }

// cameraState is what a sender knows of a camera.
type cameraState struct {
	State
	opened   time.Time // of the latest incident
	n        int       // its last message
	changed  bool      // since it was published
	announce bool      // to Home Assistant
}

// sender is a connection that is opened when it is needed.
type sender struct {
	wants    func(camera string) bool
	cfg      Config
	names    stream.Names
	version  string
	pictures sink.Pictures
	secret   string
	id       string

	connecting sync.Mutex

	mu     sync.Mutex
	client paho.Client
	places map[place]*cameraState
}

func (s *sender) options() (*paho.ClientOptions, error) {
	o, err := s.cfg.Options(s.secret)
	if err != nil {
		return nil, fmt.Errorf("mqtt: %w", err)
	}
	o.SetClientID(s.id).SetWill(s.topic("availability"), Offline, 1, true)
	return o, nil
}

func (s *sender) topic(parts ...string) string {
	return s.cfg.Base + "/" + strings.Join(parts, "/")
}

// connection returns the one that is open, or opens one.
func (s *sender) connection(ctx context.Context) (paho.Client, error) {
	s.connecting.Lock()
	defer s.connecting.Unlock()
	s.mu.Lock()
	c := s.client
	s.mu.Unlock()
	if c != nil && c.IsConnectionOpen() {
		return c, nil
	}
	o, err := s.options()
	if err != nil {
		return nil, err
	}
	c = paho.NewClient(o)
	step, cancel := context.WithTimeout(ctx, mqtt.Timeout)
	defer cancel()
	fail := func(err error) (paho.Client, error) {
		c.Disconnect(0)
		return nil, fmt.Errorf("mqtt: connect: %w", err)
	}
	if err := mqtt.Wait(step, c.Connect()); err != nil {
		return fail(err)
	}
	// Another process of this sink may have died meanwhile, and its will says
	// that nobody is here.
	for topic, handle := range map[string]func([]byte){
		s.topic("availability"): func(b []byte) {
			if string(b) != Online {
				c.Publish(s.topic("availability"), 1, true, Online)
			}
		},
		s.cfg.HomeAssistant + "/status": func(b []byte) {
			if string(b) == Online {
				s.again()
			}
		},
	} {
		if strings.HasPrefix(topic, "-/") {
			continue
		}
		if err := mqtt.Wait(step, c.Subscribe(topic, 1, func(_ paho.Client, m paho.Message) { handle(m.Payload()) })); err != nil {
			return fail(err)
		}
	}
	if err := mqtt.Wait(step, c.Publish(s.topic("availability"), 1, true, Online)); err != nil {
		return fail(err)
	}
	s.mu.Lock()
	s.client = c
	s.mu.Unlock()
	s.again()
	return c, nil
}

// again has everything that is retained published again.
func (s *sender) again() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.places {
		k.changed, k.announce = true, true
	}
}

// Close tells that it was meant.
func (s *sender) Close() error {
	s.mu.Lock()
	c := s.client
	s.client = nil
	s.mu.Unlock()
	if c == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if c.IsConnectionOpen() {
		_ = mqtt.Wait(ctx, c.Unsubscribe(s.topic("availability")))
		_ = mqtt.Wait(ctx, c.Publish(s.topic("availability"), 1, true, Stopped))
	}
	c.Disconnect(100)
	return nil
}

func publish(ctx context.Context, c paho.Client, topic string, qos byte, retain bool, payload any) error {
	b, ok := payload.([]byte)
	if !ok {
		var err error
		if b, err = json.Marshal(payload); err != nil {
			return &sink.Permanent{Err: fmt.Errorf("mqtt: %w", err)}
		}
	}
	if err := mqtt.Wait(ctx, c.Publish(topic, qos, retain, b)); err != nil {
		return fmt.Errorf("mqtt: publish on %s: %w", topic, err)
	}
	return nil
}

// Send publishes one notice, and returns when the broker has it.
func (s *sender) Send(ctx context.Context, n sink.Notice) error {
	ctx, cancel := context.WithTimeout(ctx, mqtt.Timeout)
	defer cancel()
	c, err := s.connection(ctx)
	if err != nil {
		return err
	}
	e := n.Event
	at := place{e.Detector, e.Camera}
	what := "event"
	if n.Incident != nil {
		what = "incident"
	}
	if err := publish(ctx, c, s.topic(at.detector, at.camera, what), 1, false, n.Cloud(s.names)); err != nil || n.Test || n.Summary > 0 {
		return err
	}
	switch {
	case e.Kind == stream.KindCamera:
		word := Live
		if e.Code == stream.CameraSilent {
			word = Silent
		}
		if err := publish(ctx, c, s.topic(at.detector, at.camera, "camera"), 1, true, []byte(word)); err != nil {
			return err
		}
	case n.Incident != nil:
		s.handle(*n.Incident)
	}
	if e.Camera == stream.NoCamera {
		return nil
	}
	if err := s.refresh(ctx, c, at); err != nil {
		return err
	}
	if !s.cfg.Pictures {
		return nil
	}
	if picture := s.pictures.Overlay(ctx, e, 0); picture != nil {
		return publish(ctx, c, s.topic(at.detector, at.camera, "picture"), 0, true, picture)
	}
	return nil
}

func (s *sender) know(at place) *cameraState {
	k := s.places[at]
	if k == nil {
		k = &cameraState{State: State{Alarm: "OFF"}, changed: true, announce: true}
		s.places[at] = k
	}
	return k
}

// handle takes note of an incident. Messages may come in any order and twice.
func (s *sender) handle(i incident.Incident) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range i.Places() {
		if s.wants(c) {
			s.know(place{i.Detector, c}).handle(i)
		}
	}
}

func (k *cameraState) handle(i incident.Incident) {
	if i.OpenedAt.Before(k.opened) || i.OpenedAt.Equal(k.opened) && i.N < k.n {
		return
	}
	k.opened, k.n, k.changed = i.OpenedAt, i.N, true
	k.Alarm, k.Incident = "ON", i.ID
	if i.Phase == incident.End {
		k.Alarm, k.Incident = "OFF", ""
	}
}

func (s *sender) score(e stream.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.know(place{e.Detector, e.Camera})
	k.Score, k.Threshold, k.PValue, k.Ratio, k.changed = e.Score, e.Threshold, e.PValue, nil, true
	if r, ok := e.Ratio(); ok {
		k.Ratio = &r
	}
	at := e.ScoredAt.UTC()
	k.At = &at
}

// refresh publishes a camera's retained topics as far as they have changed.
func (s *sender) refresh(ctx context.Context, c paho.Client, at place) error {
	s.mu.Lock()
	k := s.know(at)
	changed, announce, state := k.changed, k.announce && s.cfg.HomeAssistant != "-", k.State
	k.changed, k.announce = false, false
	s.mu.Unlock()
	fail := func(err error) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		k.changed, k.announce = k.changed || changed, k.announce || announce
		return err
	}
	if announce {
		if err := publish(ctx, c, s.cfg.HomeAssistant+"/device/"+at.deviceID()+"/config", 1, true, s.device(at)); err != nil {
			return fail(err)
		}
	}
	if changed {
		if err := publish(ctx, c, s.topic(at.detector, at.camera, "state"), 1, true, state); err != nil {
			return fail(err)
		}
	}
	return nil
}

// Follow keeps the states up to date, and the connection open.
func (s *sender) Follow(ctx context.Context, live sink.Live) error {
	msgs := make(chan *nats.Msg, 1024)
	subjects := live.Scores()
	for _, d := range live.Detectors() {
		subjects = append(subjects, live.Incidents(d, "*", "*"))
	}
	for _, subject := range subjects {
		sub, err := live.NC.ChanSubscribe(subject, msgs)
		if err != nil {
			return fmt.Errorf("mqtt: follow %s: %w", subject, err)
		}
		defer func() { _ = sub.Unsubscribe() }()
	}
	tick := time.Tick(stateEvery)
	for {
		select {
		case <-ctx.Done():
			return nil
		case m := <-msgs:
			if _, ok := live.ParseIncidents(m.Subject); ok {
				if i, err := incident.Parse(m.Data); err == nil {
					s.handle(i)
				}
			} else if e, err := stream.ParseScore(m.Data, m.Header); err == nil && s.wants(e.Camera) {
				s.score(e)
			}
			continue
		case <-tick:
		}
		if err := s.refreshAll(ctx); err != nil && !errors.Is(err, context.Canceled) {
			live.Failed(err)
		}
	}
}

func (s *sender) refreshAll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, mqtt.Timeout)
	defer cancel()
	c, err := s.connection(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	var due []place
	for at, k := range s.places {
		if k.changed || k.announce {
			due = append(due, at)
		}
	}
	s.mu.Unlock()
	for _, at := range due {
		if err := s.refresh(ctx, c, at); err != nil {
			return err
		}
	}
	return nil
}
