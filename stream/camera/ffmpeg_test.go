//go:build ffmpeg

package camera_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/stream/camera"
)

// Reads a real video; `make ffmpeg` runs it, on machines that have ffmpeg. The
// same paths are tested with a script in its place everywhere.
func TestFFmpeg(t *testing.T) {
	clip := filepath.Join(t.TempDir(), "clip.avi")
	if out, err := exec.CommandContext(t.Context(), "ffmpeg", "-loglevel", "error", "-f", "lavfi", "-i", "testsrc=size=64x48:rate=10:duration=1", "-c:v", "mjpeg", clip).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s := &camera.Video{Source: clip, Log: zerolog.Nop()}
	for i, img := range take(t, s, 10) {
		if !bytes.HasPrefix(img.Data, []byte("\x89PNG")) || !bytes.HasSuffix(img.Data, []byte("IEND\xaeB`\x82")) {
			t.Errorf("picture %d is no PNG", i)
		}
	}
	if _, err := s.Next(t.Context()); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	take(t, &camera.Video{Source: clip, Loop: true, Log: zerolog.Nop()}, 25)
	s = &camera.Video{Source: clip + ".mp4", Log: zerolog.Nop()}
	if _, err := s.Next(t.Context()); err == nil || !strings.Contains(err.Error(), "No such file") {
		t.Error(err)
	}
}

func ffmpeg(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "ffmpeg", append([]string{"-loglevel", "error", "-y"}, args...)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// all reads a source to its end.
func all(t *testing.T, s camera.Source) (images []camera.Image) {
	t.Helper()
	for {
		img, err := s.Next(t.Context())
		if errors.Is(err, io.EOF) {
			return images
		}
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, img)
	}
}

// Pictures at 0, 0.1, 0.2, 1.5, 1.6, 3 seconds: each comes once, with its time.
func TestFFmpegVariableRate(t *testing.T) {
	clip := filepath.Join(t.TempDir(), "2026-11-28T10:00:00.mkv") // a name with colons
	times := []string{"0", "0.1", "0.2", "1.5", "1.6", "3"}
	ffmpeg(t, "-f", "lavfi", "-i", "testsrc=size=64x48:rate=10:duration=3.1",
		"-vf", `select=eq(n\,0)+eq(n\,1)+eq(n\,2)+eq(n\,15)+eq(n\,16)+eq(n\,30)`, "-fps_mode", "passthrough", "-c:v", "mjpeg", clip)
	images := all(t, &camera.Video{Source: clip, Log: zerolog.Nop()})
	if len(images) != len(times) {
		t.Fatalf("%d pictures, want %d", len(images), len(times))
	}
	for i, img := range images {
		if want := clip + "#t=" + times[i]; img.Name != want {
			t.Errorf("picture %d is called %s, want %s", i, img.Name, want)
		}
	}
	// Two a second: the first of each half second, none twice.
	images = all(t, &camera.Video{Source: clip, FPS: 2, Log: zerolog.Nop()})
	var names []string
	for _, img := range images {
		names = append(names, strings.TrimPrefix(img.Name, clip+"#t="))
	}
	if want := []string{"0", "1.5", "3"}; !slices.Equal(names, want) {
		t.Errorf("at two a second the pictures at %v come, want %v", names, want)
	}
	if d := images[2].CapturedAt.Sub(images[0].CapturedAt); d < 2400*time.Millisecond || d > 3001*time.Millisecond {
		t.Errorf("pictures that are 3 s apart in the video were taken %v apart", d)
	}
}

// A playlist from the network cannot open files of this machine.
func TestFFmpegOpensNoFilesForTheNetwork(t *testing.T) {
	dir := t.TempDir()
	clip := filepath.Join(dir, "clip.ts")
	ffmpeg(t, "-f", "lavfi", "-i", "testsrc=size=64x48:rate=10:duration=1", "-c:v", "mpeg2video", "-f", "mpegts", clip)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, ".ts") {
			http.ServeFile(w, r, clip)
			return
		}
		of := "clip.ts"
		if strings.HasPrefix(r.URL.Path, "/bad") {
			of = "file://" + clip
		}
		fmt.Fprintf(w, "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n%s\n#EXT-X-ENDLIST\n", of)
	}))
	defer srv.Close()
	if _, err := (&camera.Video{Source: srv.URL + "/good.m3u8", Log: zerolog.Nop()}).Next(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := (&camera.Video{Source: srv.URL + "/bad.m3u8", Log: zerolog.Nop()}).Next(t.Context()); err == nil {
		t.Error("a playlist opened a file of this machine")
	}
}

func TestFFmpegIsRefused(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	_, err = (&camera.Video{Source: "rtsp://eye:se%23cret@" + address + "/1?pwd=hush", Log: zerolog.Nop()}).Next(t.Context())
	if err == nil || !strings.Contains(err.Error(), "refused") || strings.Contains(err.Error(), "cret") || strings.Contains(err.Error(), "hush") {
		t.Error(err)
	}
}
