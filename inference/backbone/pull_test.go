package backbone

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

func TestPull(t *testing.T) {
	content := bytes.Repeat([]byte("near miss "), 100_000)
	sum := sha256.Sum256(content)
	digest := hex.EncodeToString(sum[:])
	ctx := context.Background()

	// serve answers with ranges, and cuts the first cuts bodies short.
	serve := func(t *testing.T, body []byte, cuts int32, ranges *atomic.Int32) string {
		var n atomic.Int32
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				ranges.Add(1)
			}
			w.Header().Set("ETag", `"one"`)
			if n.Add(1) <= cuts {
				w = &cutWriter{w, len(body) / 3}
			}
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	check := func(t *testing.T, dst string) {
		t.Helper()
		got, err := os.ReadFile(dst)
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("%d bytes arrived, want %d (%v)", len(got), len(content), err)
		}
		if _, err := os.Stat(dst + ".part"); err == nil {
			t.Error("the partial file is still there")
		}
	}

	t.Run("a whole file, with progress and digest", func(t *testing.T) {
		dst := filepath.Join(t.TempDir(), "deep", "f")
		var ranges atomic.Int32
		var last, size int64
		got, err := Pull(ctx, serve(t, content, 0, &ranges), dst, PullOptions{SHA256: digest, Progress: func(d, n int64) { last, size = d, n }})
		if err != nil || got != digest {
			t.Fatalf("digest %s, error %v", got, err)
		}
		if last != int64(len(content)) || size != last {
			t.Errorf("progress ended at %d of %d", last, size)
		}
		check(t, dst)
	})
	t.Run("a cut transfer goes on where it stopped", func(t *testing.T) {
		dst := filepath.Join(t.TempDir(), "f")
		var ranges atomic.Int32
		if _, err := Pull(ctx, serve(t, content, 2, &ranges), dst, PullOptions{SHA256: digest}); err != nil {
			t.Fatal(err)
		}
		if ranges.Load() != 2 {
			t.Errorf("%d range requests, want 2", ranges.Load())
		}
		check(t, dst)
	})
	t.Run("what an earlier process left is used", func(t *testing.T) {
		dst := filepath.Join(t.TempDir(), "f")
		writeFile(t, dst+".part", content[:12345])
		var ranges atomic.Int32
		if _, err := Pull(ctx, serve(t, content, 0, &ranges), dst, PullOptions{SHA256: digest}); err != nil {
			t.Fatal(err)
		}
		if ranges.Load() != 1 {
			t.Errorf("%d range requests, want 1", ranges.Load())
		}
		check(t, dst)
	})
	t.Run("a complete partial file needs no bytes", func(t *testing.T) {
		dst := filepath.Join(t.TempDir(), "f")
		writeFile(t, dst+".part", content)
		var ranges atomic.Int32
		if _, err := Pull(ctx, serve(t, content, 0, &ranges), dst, PullOptions{SHA256: digest}); err != nil {
			t.Fatal(err)
		}
		check(t, dst)
	})
	t.Run("a wrong digest leaves nothing behind", func(t *testing.T) {
		dst := filepath.Join(t.TempDir(), "f")
		var ranges atomic.Int32
		_, err := Pull(ctx, serve(t, content[1:], 0, &ranges), dst, PullOptions{SHA256: digest})
		if !errors.Is(err, ErrDigest) {
			t.Errorf("got %v, want ErrDigest", err)
		}
		for _, f := range []string{dst, dst + ".part"} {
			if _, err := os.Stat(f); err == nil {
				t.Errorf("%s exists", f)
			}
		}
	})
	t.Run("a missing file is not asked for twice", func(t *testing.T) {
		var n atomic.Int32
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			n.Add(1)
			http.Error(w, "no", http.StatusNotFound)
		}))
		defer s.Close()
		if _, err := Pull(ctx, s.URL, filepath.Join(t.TempDir(), "f"), PullOptions{}); err == nil || n.Load() != 1 {
			t.Errorf("%d requests, error %v", n.Load(), err)
		}
	})
	t.Run("a body without an end is cut at the limit", func(t *testing.T) {
		var ranges atomic.Int32
		_, err := Pull(ctx, serve(t, content, 0, &ranges), filepath.Join(t.TempDir(), "f"), PullOptions{MaxBytes: 1000})
		if err == nil {
			t.Error("accepted")
		}
	})
	t.Run("cancelling ends it and keeps what arrived", func(t *testing.T) {
		dst := filepath.Join(t.TempDir(), "f")
		cctx, cancel := context.WithCancel(ctx)
		var ranges atomic.Int32
		_, err := Pull(cctx, serve(t, content, 0, &ranges), dst, PullOptions{Progress: func(int64, int64) { cancel() }})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		if st, err := os.Stat(dst + ".part"); err != nil || st.Size() == 0 {
			t.Errorf("nothing was kept: %v", err)
		}
	})
}

// cutWriter breaks the connection after n bytes.
type cutWriter struct {
	http.ResponseWriter
	n int
}

func (w *cutWriter) Write(b []byte) (int, error) {
	if w.n -= len(b); w.n < 0 {
		panic(http.ErrAbortHandler)
	}
	return w.ResponseWriter.Write(b)
}
