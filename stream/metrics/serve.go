package metrics

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/stream"
)

// Server answers health checks and scrapes of one process.
type Server struct {
	// Listen is host:port. Port 0 takes a free one.
	Listen string
	// Pprof also serves /debug/pprof, on a loopback address only.
	Pprof bool
	// Ready are the checks that must all hold for /readyz. Nil: there is nothing to
	// wait for.
	Ready   func() []stream.Check
	Metrics *Metrics
	Log     zerolog.Logger

	mu   sync.Mutex
	last map[string]stream.Check // as they were at the last check
}

// Off as an address says that no server is wanted.
const Off = "off"

// Validate says whether the settings can work.
func Validate(listen string, pprof bool) error {
	if listen == "" || listen == Off {
		return nil
	}
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return fmt.Errorf("%q is no address such as 127.0.0.1:9420, nor off", listen)
	}
	if ip := net.ParseIP(host); pprof && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("pprof shows the memory of this process: it needs an address of this machine only, such as 127.0.0.1:9420, and not %q", listen)
	}
	return nil
}

// Run serves until ctx ends. Where another process has the address, it says so and
// serves nothing: several services share one machine with one configuration, and
// work goes on without metrics. bound, when given, is called with the address.
func (s *Server) Run(ctx context.Context, bound func(addr string)) error {
	if s.Listen == "" || s.Listen == Off {
		return nil
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.Listen)
	if errors.Is(err, syscall.EADDRINUSE) {
		s.Log.Warn().Str("listen", s.Listen).Msg("another process serves health checks and metrics at this address: this one has none; set http.listen (NEARMISS_HTTP_LISTEN) to another, or to off")
		return nil
	}
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("serve health checks and metrics: %w; set http.listen", err)
	}
	h := &http.Server{Handler: s.Handler(), ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10}
	stop := context.AfterFunc(ctx, func() {
		last, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if h.Shutdown(last) != nil {
			_ = h.Close()
		}
	})
	defer stop()
	if bound != nil {
		bound(l.Addr().String())
	}
	s.Log.Debug().Str("listen", l.Addr().String()).Msg("health checks and metrics over HTTP")
	if err := h.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve health checks and metrics: %w", err)
	}
	return nil
}

// Handler answers GET /livez, /readyz, /metrics, and /debug/pprof where it is
// wanted.
//
// A lost broker makes a process not ready, never dead: a restart would throw away
// loaded models and mend nothing.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { writeHealth(w, nil) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		var checks []stream.Check
		if s.Ready != nil {
			checks = s.since(s.Ready())
		}
		writeHealth(w, checks)
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.Metrics.reg, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4, EnableOpenMetrics: true,
	}))
	if s.Pprof {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return mux
}

// since says how long each check is as it is now, as far as anybody has looked.
func (s *Server) since(checks []stream.Check) []stream.Check {
	s.mu.Lock()
	defer s.mu.Unlock()
	fresh := make(map[string]stream.Check, len(checks))
	for i := range checks {
		c := &checks[i]
		if was, ok := s.last[c.Name]; ok && was.OK == c.OK {
			c.Since = was.Since
		} else if c.Since.IsZero() {
			c.Since = time.Now().UTC()
		}
		fresh[c.Name] = *c
	}
	s.last = fresh
	return checks
}

// Health is the answer of /livez and /readyz; its status is 200 or 503.
type Health struct {
	OK     bool           `json:"ok"`
	Checks []stream.Check `json:"checks"`
}

func writeHealth(w http.ResponseWriter, checks []stream.Check) {
	h := Health{OK: !slices.ContainsFunc(checks, func(c stream.Check) bool { return !c.OK }), Checks: checks}
	if h.Checks == nil {
		h.Checks = []stream.Check{}
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if !h.OK {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(h)
}
