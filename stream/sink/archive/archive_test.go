package archive_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/sink"
	"github.com/nearmiss/nearmiss/stream/sink/archive"
)

func TestMain(m *testing.M) { eventually.Main(m) }

const frame = "\xff\xd8\xff the frame"

func open(t *testing.T, cfg archive.Config, from archive.Source) sink.Sender {
	t.Helper()
	raw, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s, err := archive.Opener(stream.Names{}, from)(sink.Sink{Name: "a", Config: raw}, "secret-key")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func source() archive.Source {
	return archive.Source{
		Pictures: func(_ context.Context, e stream.Event) ([]stream.Picture, error) {
			return []stream.Picture{{Name: sink.Overlay, Data: []byte("overlay of " + e.ID)}, {Name: "event.json", Data: []byte("not this")}}, nil
		},
		Image: func(context.Context, stream.Event) ([]byte, error) { return []byte(frame), nil },
	}
}

func anomaly(id string) sink.Notice {
	at := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	return sink.Notice{ID: id, At: at, Event: stream.Event{
		ID: id, Kind: stream.KindAnomaly, Detector: "bolts", Camera: "line1", CapturedAt: at, ScoredAt: at, Pictures: "NM_EVIDENCE/x", Evidence: "NM_IMAGES/x",
	}}
}

const at = "bolts/2026/11/28/line1/20261128T120000Z_e1/"

// An event has a folder with everything in it, and the same at another try; a
// folder that is not marked is not written to.
func TestAFolderKeepsEvents(t *testing.T) {
	root := t.TempDir()
	s := open(t, archive.Config{URL: root, MinFree: 1}, source())
	if err := s.Send(t.Context(), anomaly("e1")); err == nil || !strings.Contains(err.Error(), "touch") {
		t.Fatalf("a folder without the mark: %v", err)
	}
	if all, _ := os.ReadDir(root); len(all) > 0 {
		t.Fatalf("something was written: %v", all)
	}
	if err := os.WriteFile(filepath.Join(root, archive.Marker), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Send(t.Context(), anomaly("e1")); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Send(t.Context(), anomaly("../../x/1")); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		at + "frame.jpg": frame, at + "overlay.jpg": "overlay of e1", at + "event.json": `"id": "e1"`,
		"bolts/2026/11/28/line1/20261128T120000Z_------x-1/event.json": `"specversion"`,
		"index-20261128.jsonl": `"path":"` + strings.TrimSuffix(at, "/") + `"`,
	} {
		if b, err := os.ReadFile(filepath.Join(root, name)); err != nil || !strings.Contains(string(b), want) {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	full := open(t, archive.Config{URL: root, MinFree: 1 << 62}, source())
	if err := full.Send(t.Context(), anomaly("e2")); err == nil || !strings.Contains(err.Error(), "left") {
		t.Errorf("a full disk: %v", err)
	}
}

// Pictures that are no more are left out; those that cannot be read now are
// waited for.
func TestWhatIsGoneIsLeftOut(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, archive.Marker), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	from := source()
	from.Image = func(context.Context, stream.Event) ([]byte, error) { return nil, errors.New("the broker is away") }
	if err := open(t, archive.Config{URL: root, MinFree: 1}, from).Send(t.Context(), anomaly("e1")); err == nil {
		t.Error("kept without its frame")
	}
	from.Image = func(context.Context, stream.Event) ([]byte, error) {
		return nil, fmt.Errorf("x: %w", stream.ErrNotFound)
	}
	if err := open(t, archive.Config{URL: root, MinFree: 1}, from).Send(t.Context(), anomaly("e1")); err != nil {
		t.Error(err)
	}
	all, err := os.ReadDir(filepath.Join(root, at))
	if err != nil || len(all) != 2 {
		t.Errorf("%v, %v", all, err)
	}
}

// bucket is an S3 server that knows PUT.
type bucket struct {
	t      *testing.T
	mu     sync.Mutex
	files  map[string][]byte
	head   map[string]http.Header
	answer string // an error code for what comes next
	status int
}

func (b *bucket) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err == nil && r.Header.Get("X-Amz-Decoded-Content-Length") != "" {
		body, err = unchunk(body)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.answer != "" {
		w.WriteHeader(b.status)
		fmt.Fprintf(w, "<Error><Code>%s</Code><Message>no</Message></Error>", b.answer)
		return
	}
	if err != nil || r.Method != http.MethodPut || !strings.Contains(r.Header.Get("Authorization"), "Credential=key-id/") {
		b.t.Errorf("%s %s: %v, %v", r.Method, r.URL, r.Header, err)
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	b.files[r.URL.Path], b.head[r.URL.Path] = body, r.Header
	w.Header().Set("ETag", `"1"`)
}

// unchunk reads aws-chunked: sizes in hexadecimal, each with its data.
func unchunk(b []byte) ([]byte, error) {
	var out []byte
	for r := bufio.NewReader(bytes.NewReader(b)); ; {
		line, err := r.ReadString('\n')
		if err != nil {
			return nil, err
		}
		size, _, _ := strings.Cut(strings.TrimSpace(line), ";")
		n, err := strconv.ParseInt(size, 16, 64)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return out, nil
		}
		data := make([]byte, n+2)
		if _, err := io.ReadFull(r, data); err != nil {
			return nil, err
		}
		out = append(out, data[:n]...)
	}
}

// A bucket has the same files, each with its check sum; what the server says
// decides whether there is another try.
func TestABucketKeepsEvents(t *testing.T) {
	b := &bucket{t: t, files: map[string][]byte{}, head: map[string]http.Header{}}
	srv := httptest.NewServer(b)
	defer srv.Close()
	s := open(t, archive.Config{
		URL: "s3://keep/nearmiss", Endpoint: strings.TrimPrefix(srv.URL, "http://"), Plain: true, AccessKey: "key-id", Encrypt: true,
	}, source())
	for range 2 {
		if err := s.Send(t.Context(), anomaly("e1")); err != nil {
			t.Fatal(err)
		}
	}
	var names []string
	for name, data := range b.files {
		names = append(names, strings.TrimPrefix(name, "/keep/nearmiss/"+at))
		sum := sha256.Sum256(data)
		h := b.head[name]
		if h.Get("X-Amz-Checksum-Sha256") != base64.StdEncoding.EncodeToString(sum[:]) {
			t.Errorf("%s has no check sum: %v", name, h)
		}
		if h.Get("X-Amz-Server-Side-Encryption") != "AES256" {
			t.Errorf("%s is not encrypted", name)
		}
	}
	slices.Sort(names)
	if !slices.Equal(names, []string{"event.json", "frame.jpg", "overlay.jpg"}) || string(b.files["/keep/nearmiss/"+at+"frame.jpg"]) != frame {
		t.Errorf("%q", names)
	}
	var permanent *sink.Permanent
	for code, is := range map[string]bool{"AccessDenied": false, "NoSuchBucket": false, "KeyTooLongError": true} {
		b.mu.Lock()
		b.answer, b.status = code, http.StatusForbidden
		b.mu.Unlock()
		err := s.Send(t.Context(), anomaly("e2"))
		if err == nil || errors.As(err, &permanent) != is || strings.Contains(err.Error(), "secret-key") {
			t.Errorf("%s: %v", code, err)
		}
	}
}

func TestConfigurationsThatCannotWorkAreRefused(t *testing.T) {
	for _, cfg := range []string{`{}`, `{"url":"relative"}`, `{"url":"s3://"}`, `{"url":"http://h/x"}`, `{"url":"s3://b","endpoint":"http://x/y"}`, `{"url":"/x","more":1}`} {
		if _, err := archive.Opener(stream.Names{}, archive.Source{})(sink.Sink{Name: "s", Config: []byte(cfg)}, ""); err == nil {
			t.Errorf("taken: %s", cfg)
		}
	}
}
