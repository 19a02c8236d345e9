package camera_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/stream/camera"
)

// take returns the next images of a source.
func take(t *testing.T, s camera.Source, n int) (all []camera.Image) {
	t.Helper()
	for range n {
		img, err := s.Next(t.Context())
		if err != nil {
			t.Fatalf("after %d images: %v", len(all), err)
		}
		if img.CapturedAt.IsZero() {
			t.Error("an image has no time")
		}
		all = append(all, img)
	}
	return all
}

func TestImagesCanBePiped(t *testing.T) {
	want := encoded(t)[:3]
	s := &camera.Pipe{R: bytes.NewReader(bytes.Join(want, nil)), Name: "pipe"}
	for i, img := range take(t, s, 3) {
		if !bytes.Equal(img.Data, want[i]) || img.Name != "pipe" {
			t.Errorf("image %d is another one", i)
		}
	}
	if _, err := s.Next(t.Context()); !errors.Is(err, io.EOF) {
		t.Error(err)
	}

	r, w := io.Pipe() // from which nothing comes
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (&camera.Pipe{R: r}).Next(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	w.Close()
}

func TestACameraOnTheWebIsAskedForImages(t *testing.T) {
	want := encoded(t)
	asked := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "eye" || password != "secret" {
			http.Error(w, "who?", http.StatusUnauthorized)
			return
		}
		asked++
		switch {
		case asked == 2: // it restarts
			http.Error(w, "wait", http.StatusServiceUnavailable)
		default:
			w.Header().Set("Content-Type", "image/jpeg")
			_, _ = w.Write(want[asked%2*2])
		}
	}))
	defer srv.Close()
	with := strings.Replace(srv.URL, "http://", "http://eye:secret@", 1)
	s := &camera.Web{URL: with, FPS: 1000, Log: zerolog.Nop()}
	for i, img := range take(t, s, 3) {
		if !bytes.Equal(img.Data, want[[]int{2, 2, 0}[i]]) {
			t.Errorf("image %d is another one", i)
		}
		if strings.Contains(img.Name, "secret") || !strings.Contains(img.Name, "eye") {
			t.Errorf("its name is %s", img.Name)
		}
	}
	s = &camera.Web{URL: strings.Replace(with, "secret", "wrong", 1), Log: zerolog.Nop()}
	if _, err := s.Next(t.Context()); err == nil || !strings.Contains(err.Error(), "401") || strings.Contains(err.Error(), "wrong") {
		t.Error(err)
	}
}

// TestMotionJPEG reads streams as different cameras send them, also one that
// takes the dashes for a part of the boundary, and opens a stream again that
// has ended.
func TestMotionJPEG(t *testing.T) {
	want := encoded(t)[2]
	for _, boundary := range []string{"frame", "--frame"} {
		opened := 0
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			opened++
			w.Header().Set("Content-Type", "multipart/x-mixed-replace; boundary="+boundary)
			for range 2 {
				fmt.Fprintf(w, "--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n", len(want))
				_, _ = w.Write(want)
				_, _ = io.WriteString(w, "\r\n")
			}
		}))
		for i, img := range take(t, &camera.Web{URL: srv.URL, Log: zerolog.Nop()}, 3) {
			if !bytes.Equal(img.Data, want) {
				t.Errorf("boundary %s: image %d is another one", boundary, i)
			}
		}
		srv.Close()
		if opened != 2 {
			t.Errorf("boundary %s: opened %d times", boundary, opened)
		}
	}
}

func TestWhatIsNoCameraIsRefusedAtOnce(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = io.WriteString(w, "<html>")
	}))
	if _, err := (&camera.Web{URL: srv.URL, Log: zerolog.Nop()}).Next(t.Context()); !errors.Is(err, camera.ErrNotImages) {
		t.Error(err)
	}
	srv.Close()
	if _, err := (&camera.Web{URL: srv.URL, Log: zerolog.Nop()}).Next(t.Context()); err == nil {
		t.Error("nobody is there, and that is no error")
	}
	if _, err := (&camera.Video{Source: "clip.mp4", Program: "no-such-program"}).Next(t.Context()); !errors.Is(err, camera.ErrNoProgram) {
		t.Error(err)
	}
}

func TestVideosAreKnownByTheirNames(t *testing.T) {
	for source, want := range map[string]bool{
		"clip.MP4": true, "/dev/video0": true, "rtsp://eye/1": true, "udp://0.0.0.0:5000": true, "http://eye/live.m3u8?x=1": true, "https://eye/clip.webm": true,
		"folder": false, "a.png": false, "http://eye/snapshot.jpg": false, "http://eye/video.mjpg": false, "http://eye/": false,
	} {
		if got := camera.IsVideo(source); got != want {
			t.Errorf("%s: %v", source, got)
		}
	}
}

// player is a program in ffmpeg's place, which writes what it is called with to
// a file and images to its output, or fails.
func player(t *testing.T, script string) (program, called string) {
	t.Helper()
	dir := t.TempDir()
	for i, b := range encoded(t) {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%d.img", i)), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	program, called = filepath.Join(dir, "player"), filepath.Join(dir, "called")
	if err := os.WriteFile(program, fmt.Appendf(nil, "#!/bin/sh\ncd '%s'\necho \"$@\" >>called\n%s\n", dir, script), 0o755); err != nil {
		t.Fatal(err)
	}
	return program, called
}

func TestVideosAreReadThroughAProgram(t *testing.T) {
	program, called := player(t, "cat 1.img 3.img")
	s := &camera.Video{Source: "clip.mp4", FPS: 2.5, Program: program, Log: zerolog.Nop()}
	take(t, s, 2)
	if _, err := s.Next(t.Context()); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	said, err := os.ReadFile(called)
	if err != nil || !strings.Contains(string(said), "-re -i file:clip.mp4 -an -vf select=") || strings.Count(string(said), "\n") != 1 {
		t.Errorf("called with %q, %v", said, err)
	}

	// A stream that ends is opened again; its password is not shown.
	program, called = player(t, "cat 1.img")
	live := &camera.Video{Source: "rtsp://eye:secret@host/1", Program: program, Log: zerolog.Nop()}
	ctx, cancel := context.WithCancel(t.Context())
	for range 2 {
		img, err := live.Next(ctx)
		if err != nil || strings.Contains(img.Name, "secret") {
			t.Fatalf("%s, %v", img.Name, err)
		}
	}
	cancel()
	if said, err := os.ReadFile(called); err != nil || strings.Count(string(said), "-rtsp_transport tcp -i rtsp://eye:secret@host/1") != 2 {
		t.Errorf("called with %q, %v", said, err)
	}

	for _, code := range []string{"1", "0"} { // what gave no picture has not ended
		program, _ = player(t, "echo rtsp://eye:secret@host/1: no route >&2; exit "+code)
		live = &camera.Video{Source: "rtsp://eye:secret@host/1", Program: program, Log: zerolog.Nop()}
		if _, err := live.Next(t.Context()); err == nil || errors.Is(err, io.EOF) || !strings.Contains(err.Error(), "no route") || strings.Contains(err.Error(), "secret") {
			t.Errorf("exit code %s: %v", code, err)
		}
	}
}

// TestAVideoEndsWithItsContext although its program would never end.
func TestAVideoEndsWithItsContext(t *testing.T) {
	program, _ := player(t, "cat 1.img; exec sleep 1000")
	s := &camera.Video{Source: "/dev/video0", Program: program, Log: zerolog.Nop()}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if _, err := s.Next(ctx); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := s.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestASilentStreamIsOpenedAgain: a network that is cut says nothing.
func TestASilentStreamIsOpenedAgain(t *testing.T) {
	program, called := player(t, "cat 1.img; exec sleep 1000")
	s := &camera.Video{Source: "rtsp://eye/1", Program: program, Log: zerolog.Nop()}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 2 {
		if _, err := s.Next(ctx); err != nil {
			t.Fatal(err)
		}
		s.Patience = 300 * time.Millisecond // from its first picture on
	}
	// More than twice where the program took longer than that to begin.
	if said, err := os.ReadFile(called); err != nil || strings.Count(string(said), "\n") < 2 {
		t.Errorf("called with %q, %v", said, err)
	}
	cancel()
	if _, err := s.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
