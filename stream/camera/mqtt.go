package camera

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/mqtt"
	"github.com/nearmiss/nearmiss/stream/internal/wait"
)

// MQTT is a source of the images that come on a topic of an MQTT broker, with
// QoS 1: the broker keeps each until it is stored as a frame, also while nobody
// is here. Who publishes with QoS 1 and a broker that keeps its queues loses
// none.
type MQTT struct {
	mqtt.Access
	Password string
	Topic    string // may have wildcards: + and #
	// Session is the name under which the broker keeps what has not been taken.
	// One source at a time may have it.
	Session string
	Log     zerolog.Logger

	once  sync.Once
	stop  context.CancelFunc
	ended chan struct{}

	mu      sync.Mutex
	waiting []paho.Message
	bytes   int
	refused bool          // a message was not taken: there were too many
	come    chan struct{} // something waits, or the end has come
	err     error
	stored  [][sha256.Size]byte // the images that were stored last
}

// Limits of what waits in memory; the broker has the rest.
const (
	maxWaiting  = 64 << 20
	lastDigests = 64
)

// IsMQTT says whether a source is a topic of an MQTT broker.
func IsMQTT(source string) bool {
	s := scheme(source)
	return IsAddress(source) && (s == "mqtt" || s == "mqtts")
}

// NewMQTT makes a source of mqtt://[USER:PASSWORD@]HOST[:PORT]/TOPIC. Errors
// show no password.
func NewMQTT(address, session string, log zerolog.Logger) (*MQTT, error) {
	u, err := url.Parse(strings.ReplaceAll(address, "#", "%23")) // the wildcard, not a fragment
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("address %s: write it as mqtt://HOST/TOPIC", redacted(address))
	}
	s := &MQTT{Topic: strings.TrimPrefix(u.Path, "/"), Session: session, Log: log, come: make(chan struct{}, 1), ended: make(chan struct{})}
	if s.Topic == "" {
		return nil, fmt.Errorf("address %s names no topic: write it as mqtt://HOST/TOPIC", redacted(address))
	}
	s.User = u.User.Username()
	s.Password, _ = u.User.Password()
	s.URL = u.Scheme + "://" + u.Host
	if _, err := s.Options(s.Password); err != nil {
		return nil, fmt.Errorf("address %s: %w", redacted(address), err)
	}
	return s, nil
}

// Next implements [Source].
func (s *MQTT) Next(ctx context.Context) (Image, error) {
	s.once.Do(func() {
		var own context.Context
		own, s.stop = context.WithCancel(ctx)
		go s.run(own)
	})
	for {
		s.mu.Lock()
		var m paho.Message
		if len(s.waiting) > 0 {
			m, s.waiting = s.waiting[0], s.waiting[1:]
			s.bytes -= len(m.Payload())
		}
		err := s.err
		s.mu.Unlock()
		switch {
		case m != nil && s.has(m):
			m.Ack()
			continue
		case m != nil:
			return Image{Data: m.Payload(), CapturedAt: time.Now(), Name: m.Topic(), Done: func() {
				s.keep(m)
				m.Ack()
			}}, nil
		case err != nil:
			return Image{}, err
		}
		select {
		case <-s.come:
		case <-ctx.Done():
			return Image{}, ctx.Err()
		}
	}
}

// Close ends the connection, when what was taken is acknowledged.
func (s *MQTT) Close() error {
	s.once.Do(func() { // it was never begun
		s.stop = func() {}
		close(s.ended)
	})
	s.stop()
	<-s.ended
	return nil
}

// has says whether a message that comes again is of an image that is stored: only
// its acknowledgement was lost.
func (s *MQTT) has(m paho.Message) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return m.Duplicate() && slices.Contains(s.stored, sha256.Sum256(m.Payload()))
}

func (s *MQTT) keep(m paho.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stored = append(s.stored, sha256.Sum256(m.Payload()))
	s.stored = s.stored[max(0, len(s.stored)-lastDigests):]
}

func (s *MQTT) signal() {
	select {
	case s.come <- struct{}{}:
	default:
	}
}

// run keeps a connection until ctx ends or the broker will not have us.
func (s *MQTT) run(ctx context.Context) {
	defer close(s.ended)
	again := wait.Endless(firstWait, longestWait)
	for logged := false; ctx.Err() == nil; {
		err := s.connected(ctx, func() {
			again.Reset()
			logged = false
		})
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, packets.ErrorRefusedBadUsernameOrPassword) || errors.Is(err, packets.ErrorRefusedNotAuthorised) {
			s.mu.Lock()
			s.err = fmt.Errorf("the MQTT broker at %s refuses this user and password: %w", s.URL, err)
			s.mu.Unlock()
			s.signal()
			return
		}
		if err != nil && !logged {
			logged = true
			s.Log.Warn().Err(err).Str("broker", s.URL).Msg("the MQTT broker is away: trying on")
		}
		wait.Pause(ctx, again.NextBackOff())
	}
}

// connected lives as long as one connection.
func (s *MQTT) connected(ctx context.Context, up func()) error {
	o, err := s.Options(s.Password)
	if err != nil {
		return err
	}
	lost := make(chan error, 1)
	o.SetClientID(s.Session).SetCleanSession(false).SetAutoAckDisabled(true)
	o.SetConnectionLostHandler(func(_ paho.Client, err error) { lost <- err })
	o.SetDefaultPublishHandler(func(_ paho.Client, m paho.Message) { s.take(m) }) // what comes before the subscription is confirmed
	c := paho.NewClient(o)
	defer c.Disconnect(250)
	step, cancel := context.WithTimeout(ctx, mqtt.Timeout)
	defer cancel()
	// What waits is of the connection before: the broker sends it again.
	s.mu.Lock()
	s.waiting, s.bytes, s.refused = nil, 0, false
	s.mu.Unlock()
	if err := mqtt.Wait(step, c.Connect()); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	if err := mqtt.Wait(step, c.Subscribe(s.Topic, 1, nil)); err != nil {
		return fmt.Errorf("subscribe to %s: %w", s.Topic, err)
	}
	up()
	s.Log.Info().Str("broker", s.URL).Str("topic", s.Topic).Msg("images are taken from the MQTT broker")
	tick := time.Tick(100 * time.Millisecond)
	for {
		select {
		case <-ctx.Done():
			// The answer comes when the broker has read all acknowledgements before.
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), mqtt.Timeout/5)
			defer cancel()
			return mqtt.Wait(end, c.Unsubscribe("nearmiss/the-end"))
		case err := <-lost:
			return err
		case <-tick:
			s.mu.Lock()
			again := s.refused && len(s.waiting) == 0
			s.mu.Unlock()
			if again {
				return nil
			}
		}
	}
}

// take puts a message into the queue, or leaves it to the broker.
func (s *MQTT) take(m paho.Message) {
	s.mu.Lock()
	if s.refused || s.bytes+len(m.Payload()) > maxWaiting && len(s.waiting) > 0 {
		s.refused = true // and so are those behind it: their order is kept
	} else {
		s.waiting = append(s.waiting, m)
		s.bytes += len(m.Payload())
	}
	s.mu.Unlock()
	s.signal()
}
