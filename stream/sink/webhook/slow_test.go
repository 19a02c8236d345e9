package webhook

import (
	"bufio"
	"compress/gzip"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"
	"time"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/sink"
)

// opened is a webhook to a receiver on this machine.
func opened(t *testing.T, address string) *sender {
	t.Helper()
	s, err := open(sink.Sink{Name: "w", Config: []byte(`{"url":"` + address + `","allow_loopback":true}`)}, "", stream.Names{}, "test", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func notice() sink.Notice {
	return sink.Notice{ID: "e", Event: stream.Event{ID: "e", Kind: stream.KindAnomaly, Detector: "bolts", Camera: "line1"}}
}

// plain is a receiver that has read a request and then does what f does, until
// the other side hangs up.
func plain(t *testing.T, f func(net.Conn, <-chan struct{})) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			in := bufio.NewReader(c)
			r, err := http.ReadRequest(in)
			if err == nil {
				_, err = io.Copy(io.Discard, r.Body)
			}
			if err == nil {
				gone := make(chan struct{})
				go func() {
					_, _ = in.ReadByte()
					close(gone)
				}()
				f(c, gone)
				<-gone
			}
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-ended
	})
	return "http://" + l.Addr().String()
}

// drip writes text again and again, a byte at a time, until gone.
func drip(c net.Conn, gone <-chan struct{}, text string) {
	for i := 0; ; i++ {
		select {
		case <-gone:
			return
		case <-time.After(time.Millisecond):
		}
		if _, err := c.Write([]byte{text[i%len(text)]}); err != nil {
			return
		}
	}
}

// A receiver that is silent, or answers without end, keeps a try for so long and
// not longer; the event comes again.
func TestReceiversThatTakeForever(t *testing.T) {
	var permanent *sink.Permanent
	var gone *sink.Gone
	for name, c := range map[string]struct {
		does func(net.Conn, <-chan struct{})
		ok   bool // may be called delivered
	}{
		"says nothing": {func(_ net.Conn, gone <-chan struct{}) { <-gone }, false},
		"a slow header": {func(c net.Conn, gone <-chan struct{}) {
			drip(c, gone, "HTTP/1.1 200 OK\r\nX-A: aaaaaaaaaaaaaaaaaaaaaaaa\r\n")
		}, false},
		"an endless line": {func(c net.Conn, gone <-chan struct{}) { drip(c, gone, "a") }, false},
		"a slow failure": {func(c net.Conn, gone <-chan struct{}) {
			_, _ = io.WriteString(c, "HTTP/1.1 503 no\r\nContent-Length: 1000000\r\n\r\n")
			drip(c, gone, "wait ")
		}, false},
		"a slow success": {func(c net.Conn, gone <-chan struct{}) {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
			drip(c, gone, "thanks ")
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := opened(t, plain(t, c.does))
			s.client.Timeout = 200 * time.Millisecond
			err := s.Send(t.Context(), notice())
			if err == nil && !c.ok || errors.As(err, &permanent) || errors.As(err, &gone) {
				t.Errorf("%T %v", err, err)
			}
		})
	}
}

// What a receiver answers costs no memory, however long it is: twenty times a GiB,
// in the body, in the header, and packed.
func TestLongAnswersCostNothing(t *testing.T) {
	block := make([]byte, 1<<20)
	for name, answer := range map[string]func(w http.ResponseWriter){
		"a body": func(w http.ResponseWriter) {
			w.WriteHeader(http.StatusBadRequest)
			for range 1024 {
				if _, err := w.Write(block); err != nil {
					return
				}
			}
		},
		"a header": func(w http.ResponseWriter) {
			c, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			_, _ = io.WriteString(c, "HTTP/1.1 400 no\r\nX-A: ")
			for range 1024 {
				if _, err := c.Write(block); err != nil {
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer(w) }))
			defer srv.Close()
			frugal(t, opened(t, srv.URL))
		})
	}
	t.Run("packed", func(t *testing.T) {
		r, w := io.Pipe()
		go func() {
			z := gzip.NewWriter(w)
			for range 64 {
				_, _ = z.Write(block)
			}
			_ = w.CloseWithError(z.Close())
		}()
		packed, err := io.ReadAll(r) // some 64 KiB
		if err != nil {
			t.Fatal(err)
		}
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write(packed)
		}))
		defer srv.Close()
		frugal(t, opened(t, srv.URL))
	})
}

// frugal sends twenty times. Eight tries are under way at once, so that what eight
// allocate in all bounds what is in use.
func frugal(t *testing.T, s *sender) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 20 {
		err := s.Send(t.Context(), notice())
		if err == nil || len(err.Error()) > 400 {
			t.Errorf("%v", err)
		}
	}
	runtime.ReadMemStats(&after)
	made := (after.TotalAlloc - before.TotalAlloc) * 8 / 20
	t.Logf("eight tries allocate %.1f MiB", float64(made)/(1<<20))
	if made > 20<<20 {
		t.Errorf("%d bytes were allocated", made)
	}
}
