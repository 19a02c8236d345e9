//go:build ffmpeg

package camera_test

import (
	"bytes"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

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
