// Package metrics counts what the services do and shows it over HTTP: /metrics
// for Prometheus, /livez and /readyz for whatever restarts services.
//
// A [Metrics] is one process's registry. Nothing is global: a service that gets
// none counts nothing. Names, labels and units are a contract (deployments/
// has a dashboard and alerts made of them); [Metrics.Definitions] lists them.
package metrics

import (
	"maps"
	"runtime"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Definition is a metric as its users know it.
type Definition struct {
	Name   string // with the prefix nearmiss_
	Kind   string // counter, gauge or histogram
	Help   string
	Labels []string
}

// Metrics is the registry of one process.
type Metrics struct {
	reg  *prometheus.Registry
	defs []Definition

	worker  *workerMeter
	trainer *trainerMeter
	conn    *connection
	rows    *installation
	certs   *certificates
	sinks   *sinkRows
	camera  *cameraRows
}

// Build says which program this is.
type Build struct{ Version, Commit string }

// New makes a registry with every metric of the product in it. What a process
// does not do stays absent.
func New(b Build) *Metrics {
	m := &Metrics{reg: prometheus.NewRegistry()}
	m.reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.gauge("build_info", "Which program this is; always 1.", "version", "commit", "goversion").WithLabelValues(b.Version, b.Commit, runtime.Version()).Set(1)
	m.worker = newWorker(m)
	m.trainer = newTrainer(m)
	m.conn = newConnection(m)
	m.rows = newInstallation(m)
	m.certs = newCertificates(m)
	m.sinks = newSinkRows(m)
	m.camera = newCameraRows(m)
	return m
}

// Definitions are all metrics that a process may have, besides those of the Go
// runtime and the process.
func (m *Metrics) Definitions() []Definition { return m.defs }

// Gatherer reads all values.
func (m *Metrics) Gatherer() prometheus.Gatherer { return m.reg }

const prefix = "nearmiss_"

func (m *Metrics) define(kind, name, help string, labels []string) {
	m.defs = append(m.defs, Definition{prefix + name, kind, help, labels})
}

func (m *Metrics) counter(name, help string, labels ...string) *prometheus.CounterVec {
	m.define("counter", name, help, labels)
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + name, Help: help}, labels)
	m.reg.MustRegister(v)
	return v
}

func (m *Metrics) gauge(name, help string, labels ...string) *prometheus.GaugeVec {
	m.define("gauge", name, help, labels)
	v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: prefix + name, Help: help}, labels)
	m.reg.MustRegister(v)
	return v
}

// histogram has classic buckets for all, and native ones for a Prometheus that
// reads them: ten or more a power of ten.
func (m *Metrics) histogram(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	m.define("histogram", name, help, labels)
	v := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: prefix + name, Help: help, Buckets: buckets,
		NativeHistogramBucketFactor: 1.2, NativeHistogramMaxBucketNumber: 100,
	}, labels)
	m.reg.MustRegister(v)
	return v
}

// row describes a metric that a collector makes anew at each scrape.
func (m *Metrics) row(kind, name, help string, labels ...string) *prometheus.Desc {
	m.define(kind, name, help, labels)
	return prometheus.NewDesc(prefix+name, help, labels, nil)
}

// maxCameras bounds how many cameras of all detectors have rows of their own in
// this process: whoever may publish frames chooses their names.
const maxCameras = 5000

// overflow is the label of the cameras beyond it.
const overflow = "(others)"

// cameras gives each camera its label.
type cameras struct {
	mu       sync.RWMutex
	labelled map[[2]string]struct{}
}

func (c *cameras) label(detector, camera string) string {
	k := [2]string{detector, camera}
	c.mu.RLock()
	_, ok := c.labelled[k]
	n := len(c.labelled)
	c.mu.RUnlock()
	switch {
	case ok:
		return camera
	case n >= maxCameras:
		return overflow
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.labelled) >= maxCameras {
		return overflow
	}
	if c.labelled == nil {
		c.labelled = map[[2]string]struct{}{}
	}
	c.labelled[k] = struct{}{}
	return camera
}

func (c *cameras) forget(detector string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.labelled, func(k [2]string, _ struct{}) bool { return k[0] == detector })
}
