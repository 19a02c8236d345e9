package metrics

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nearmiss/nearmiss/stream"
)

// connection are the rows of this process's connections to the broker.
type connection struct {
	up         *prometheus.Desc
	reconnects *prometheus.Desc
	denied     *prometheus.CounterVec

	mu  sync.Mutex
	all map[*nats.Conn]struct{}
}

func newConnection(m *Metrics) *connection {
	c := &connection{
		up:         m.row("gauge", "broker_connected", "Whether all connections of this process to the broker are up."),
		reconnects: m.row("counter", "broker_reconnects_total", "Connections to the broker that were made again."),
		denied:     m.counter("permission_denied_total", "Publishes and subscriptions that the broker has refused to this process.", "subject"),
		all:        map[*nats.Conn]struct{}{},
	}
	m.reg.MustRegister(c)
	return c
}

// Connection counts what becomes of a connection, until it is closed.
func (m *Metrics) Connection(nc *nats.Conn) {
	c := m.conn
	c.mu.Lock()
	c.all[nc] = struct{}{}
	c.mu.Unlock()
	previous := nc.ErrorHandler()
	nc.SetErrorHandler(func(nc *nats.Conn, sub *nats.Subscription, err error) {
		if errors.Is(err, nats.ErrPermissionViolation) {
			c.denied.WithLabelValues(subjectClass(err.Error())).Inc()
		}
		if previous != nil {
			previous(nc, sub, err)
		}
	})
}

// subjectClass is a word for the subject that a refusal names: there are few of
// them, whatever is refused.
func subjectClass(refusal string) string {
	_, subject, _ := strings.Cut(refusal, `"`)
	for begin, class := range map[string]string{"$JS.API.": "jetstream", "$JS.ACK.": "ack", "$KV.": "kv", "$O.": "objects", "$SRV.": "services", "_INBOX": "inbox"} {
		if strings.HasPrefix(subject, begin) {
			return class
		}
	}
	for _, class := range []string{"frames", "events", "scores", "normals", "anomalies", "feedback", "train", "progress", "dead", "incidents", "api", "audit"} {
		if strings.Contains(subject, "."+class+".") {
			return class
		}
	}
	return "other"
}

func (c *connection) Describe(to chan<- *prometheus.Desc) { to <- c.up; to <- c.reconnects }

func (c *connection) Collect(to chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.all) == 0 {
		return
	}
	up, again := 1.0, uint64(0)
	for nc := range c.all {
		if nc.IsClosed() {
			delete(c.all, nc)
			continue
		}
		if !nc.IsConnected() {
			up = 0
		}
		again += nc.Stats().Reconnects
	}
	to <- prometheus.MustNewConstMetric(c.up, prometheus.GaugeValue, up)
	to <- prometheus.MustNewConstMetric(c.reconnects, prometheus.CounterValue, float64(again))
}

// installation are the rows of what the broker knows. One process of an
// installation shows them.
type installation struct {
	levels   levels
	up       *prometheus.Desc
	dead     *prometheus.Desc
	lost     *prometheus.Desc
	queue    queueRows
	storage  storageRows
	training trainingRows
}

// queueRows are about frames that wait.
type queueRows struct{ waiting, unacked, oldest, unserved *prometheus.Desc }

// storageRows are about the broker's disk.
type storageRows struct{ bytes, maxBytes, messages, store, maxStore *prometheus.Desc }

// trainingRows are about what detectors learn from, and when they did.
type trainingRows struct{ normals, anomalies, jobs, age *prometheus.Desc }

// levels are what the installation's state was when it was last read.
type levels struct {
	mu   sync.Mutex
	read func(context.Context) (stream.Levels, error) // nil: nobody may
	last stream.Levels
	err  error
	at   time.Time
}

// get reads it again when it is old; false: nobody has said how.
func (l *levels) get() (stream.Levels, bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.read == nil {
		return stream.Levels{}, false, nil
	}
	if time.Since(l.at) > levelsAge {
		ctx, cancel := context.WithTimeout(context.Background(), levelsWait)
		l.last, l.err = l.read(ctx)
		cancel()
		l.at = time.Now()
	}
	return l.last, true, l.err
}

func newInstallation(m *Metrics) *installation {
	i := &installation{
		up:   m.row("gauge", "installation_readable", "Whether the broker's state could be read at this scrape."),
		dead: m.row("gauge", "dead_letters", "Dead letters, by the stream that they are from.", "stream"),
		lost: m.row("counter", "frames_lost_total", "Frames that clients published who are not told that they were not stored, since the broker started: not_stored where there was no room, bad_topic where no stream takes the subject.", "code"),
		queue: queueRows{
			waiting:  m.row("gauge", "frames_waiting", "Frames of a detector in the queue, those under way included.", "detector"),
			unacked:  m.row("gauge", "frames_unacked", "Frames of a detector that workers have in hand.", "detector"),
			oldest:   m.row("gauge", "frames_oldest_seconds", "Age of the oldest frame of a detector that no worker has finished; 0 where none waits.", "detector"),
			unserved: m.row("gauge", "unserved_frames", "Waiting frames of detectors that have neither a configuration nor a release."),
		},
		storage: storageRows{
			bytes:    m.row("gauge", "stream_bytes", "Size of a stream.", "stream"),
			maxBytes: m.row("gauge", "stream_max_bytes", "Largest size of a stream; absent where it has no limit of its own.", "stream"),
			messages: m.row("gauge", "stream_messages", "Messages of a stream.", "stream"),
			store:    m.row("gauge", "store_bytes", "What JetStream has stored for this installation's account."),
			maxStore: m.row("gauge", "store_max_bytes", "Most that JetStream may store for this account; absent where it has no limit."),
		},
		training: trainingRows{
			normals:   m.row("gauge", "normals", "Normal images of a detector's training set.", "detector"),
			anomalies: m.row("gauge", "labelled_anomalies", "Labelled anomalies of a detector.", "detector"),
			jobs:      m.row("gauge", "jobs_waiting", "Training jobs that wait for a trainer."),
			age:       m.row("gauge", "release_age_seconds", "Time since a detector's active release was promoted.", "detector"),
		},
	}
	m.reg.MustRegister(i)
	return i
}

// Installation shows what read returns: the state of the whole installation. It
// is read at most every five seconds, however many scrape.
func (m *Metrics) Installation(read func(context.Context) (stream.Levels, error)) {
	m.rows.levels.mu.Lock()
	m.rows.levels.read = read
	m.rows.levels.mu.Unlock()
}

func (i *installation) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		i.up, i.queue.waiting, i.queue.unacked, i.queue.oldest, i.queue.unserved, i.storage.bytes, i.storage.maxBytes, i.storage.messages, i.storage.store, i.storage.maxStore,
		i.dead, i.lost, i.training.normals, i.training.anomalies, i.training.jobs, i.training.age,
	} {
		to <- d
	}
}

const (
	levelsAge  = 5 * time.Second // of what is shown without another look
	levelsWait = 8 * time.Second // for a look; Prometheus gives up after ten
)

func (i *installation) Collect(to chan<- prometheus.Metric) {
	now, known, err := i.levels.get()
	if !known {
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	if err != nil {
		gauge(i.up, 0)
		return
	}
	gauge(i.up, 1)
	for _, d := range now.Detectors {
		gauge(i.queue.waiting, float64(d.Waiting), d.Detector)
		gauge(i.queue.unacked, float64(d.Unacked), d.Detector)
		oldest := 0.0
		if !d.Oldest.IsZero() {
			oldest = positive(time.Since(d.Oldest))
		}
		gauge(i.queue.oldest, oldest, d.Detector)
		gauge(i.training.normals, float64(d.Normals), d.Detector)
		gauge(i.training.anomalies, float64(d.Anomalies), d.Detector)
		if !d.PromotedAt.IsZero() {
			gauge(i.training.age, positive(time.Since(d.PromotedAt)), d.Detector)
		}
	}
	gauge(i.queue.unserved, float64(now.Unserved))
	for _, s := range now.Streams {
		gauge(i.storage.bytes, float64(s.Bytes), s.Stream)
		gauge(i.storage.messages, float64(s.Messages), s.Stream)
		if s.MaxBytes > 0 {
			gauge(i.storage.maxBytes, float64(s.MaxBytes), s.Stream)
		}
	}
	gauge(i.storage.store, float64(now.Store))
	if now.MaxStore > 0 {
		gauge(i.storage.maxStore, float64(now.MaxStore))
	}
	for of, n := range now.Dead {
		gauge(i.dead, float64(n), of)
	}
	for code, n := range now.Lost {
		to <- prometheus.MustNewConstMetric(i.lost, prometheus.CounterValue, float64(n), code)
	}
	gauge(i.training.jobs, float64(now.JobsWaiting))
}

// sinkRows are the rows of the sinks that this process runs.
type sinkRows struct {
	deliveries, pending, open, delay *prometheus.Desc

	mu   sync.Mutex
	read func() []SinkState
}

// SinkState is the state of one sink, as its engine counts it.
type SinkState struct {
	Name    string
	Results map[string]uint64 // sent, filtered, dead, lost and so on, since the start
	Pending uint64            // events that wait in the broker
	Open    bool              // the receiver takes nothing
	Delay   float64           // of the last delivery, seconds from stored to received
}

func newSinkRows(m *Metrics) *sinkRows {
	s := &sinkRows{
		deliveries: m.row("counter", "sink_deliveries_total", "Events by what became of them at a sink: sent, filtered, cooled, limited, dead, lost.", "sink", "result"),
		pending:    m.row("gauge", "sink_pending", "Events that wait for a sink.", "sink"),
		open:       m.row("gauge", "sink_breaker_open", "Whether a sink's receiver takes nothing.", "sink"),
		delay:      m.row("gauge", "sink_delay_seconds", "From stored to received, of the last delivery.", "sink"),
	}
	m.reg.MustRegister(s)
	return s
}

// Sinks shows what read returns.
func (m *Metrics) Sinks(read func() []SinkState) {
	m.sinks.mu.Lock()
	m.sinks.read = read
	m.sinks.mu.Unlock()
}

func (s *sinkRows) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{s.deliveries, s.pending, s.open, s.delay} {
		to <- d
	}
}

func (s *sinkRows) Collect(to chan<- prometheus.Metric) {
	s.mu.Lock()
	read := s.read
	s.mu.Unlock()
	if read == nil {
		return
	}
	for _, k := range read() {
		for result, n := range k.Results {
			to <- prometheus.MustNewConstMetric(s.deliveries, prometheus.CounterValue, float64(n), k.Name, result)
		}
		open := 0.0
		if k.Open {
			open = 1
		}
		to <- prometheus.MustNewConstMetric(s.pending, prometheus.GaugeValue, float64(k.Pending), k.Name)
		to <- prometheus.MustNewConstMetric(s.open, prometheus.GaugeValue, open, k.Name)
		to <- prometheus.MustNewConstMetric(s.delay, prometheus.GaugeValue, k.Delay, k.Name)
	}
}

// cameraRows are the rows of the camera that this process publishes.
type cameraRows struct {
	frames, bytes, waited, up *prometheus.Desc

	mu               sync.Mutex
	detector, camera string
	read             func() CameraState
}

// CameraState is what a camera's publisher has done since its start.
type CameraState struct {
	Frames uint64        // that the broker has
	Bytes  uint64        // of their images
	Waited time.Duration // for room in the queue
	Up     bool          // it is connected to the broker
}

func newCameraRows(m *Metrics) *cameraRows {
	c := &cameraRows{
		frames: m.row("counter", "camera_frames_published_total", "Frames that this camera's publisher has brought to the broker.", "detector", "camera"),
		bytes:  m.row("counter", "camera_published_bytes_total", "Bytes of their images.", "detector", "camera"),
		waited: m.row("counter", "camera_wait_seconds_total", "Time that it waited for room in the queue.", "detector", "camera"),
		up:     m.row("gauge", "camera_up", "Whether it is connected to the broker.", "detector", "camera"),
	}
	m.reg.MustRegister(c)
	return c
}

// Camera shows what read returns of a camera.
func (m *Metrics) Camera(detector, camera string, read func() CameraState) {
	m.camera.mu.Lock()
	defer m.camera.mu.Unlock()
	m.camera.detector, m.camera.camera, m.camera.read = detector, camera, read
}

func (c *cameraRows) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.frames, c.bytes, c.waited, c.up} {
		to <- d
	}
}

func (c *cameraRows) Collect(to chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.read == nil {
		return
	}
	s := c.read()
	up := 0.0
	if s.Up {
		up = 1
	}
	to <- prometheus.MustNewConstMetric(c.frames, prometheus.CounterValue, float64(s.Frames), c.detector, c.camera)
	to <- prometheus.MustNewConstMetric(c.bytes, prometheus.CounterValue, float64(s.Bytes), c.detector, c.camera)
	to <- prometheus.MustNewConstMetric(c.waited, prometheus.CounterValue, s.Waited.Seconds(), c.detector, c.camera)
	to <- prometheus.MustNewConstMetric(c.up, prometheus.GaugeValue, up, c.detector, c.camera)
}
