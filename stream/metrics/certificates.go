package metrics

import (
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// certificates are the rows of the TLS certificates that this process serves with.
type certificates struct {
	expiry *prometheus.Desc

	mu   sync.Mutex
	read func() map[string]time.Time
}

func newCertificates(m *Metrics) *certificates {
	c := &certificates{expiry: m.row("gauge", "certificate_expiry_timestamp_seconds", "When a certificate of the broker's listeners, or its authority's, ends; absent while its file cannot be read.", "certificate")}
	m.reg.MustRegister(c)
	return c
}

// Certificates shows what read returns at each scrape: when each certificate ends, by
// its file.
func (m *Metrics) Certificates(read func() map[string]time.Time) {
	m.certs.mu.Lock()
	m.certs.read = read
	m.certs.mu.Unlock()
}

func (c *certificates) Describe(to chan<- *prometheus.Desc) { to <- c.expiry }

func (c *certificates) Collect(to chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.read == nil {
		return
	}
	ends := map[string]time.Time{} // by label: two names may differ only in bytes that no label can have
	for file, end := range c.read() {
		label := strings.ToValidUTF8(file, "\uFFFD")
		if was, ok := ends[label]; !ok || end.Before(was) {
			ends[label] = end
		}
	}
	for label, end := range ends {
		to <- prometheus.MustNewConstMetric(c.expiry, prometheus.GaugeValue, float64(end.Unix()), label)
	}
}
