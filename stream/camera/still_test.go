package camera

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

func TestAFrozenCameraIsTold(t *testing.T) {
	picture := func(time string, pixels byte) []byte {
		b := append([]byte{0xff, 0xd8, 0xff, 0xe1, 0, byte(2 + len(time))}, time...)
		return append(b, 0xff, 0xda, 0, 2, pixels, pixels, 0xff, 0xd9)
	}
	var said bytes.Buffer
	log := zerolog.New(&said)
	var s still
	start := time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC)
	at := func(minutes int, pixels byte) time.Time {
		now := start.Add(time.Duration(minutes) * time.Minute)
		return s.watch(picture(now.Format(time.RFC3339), pixels), now, 10*time.Minute, log)
	}
	for m := range 10 {
		if since := at(m, 1); !since.IsZero() {
			t.Errorf("after %d minutes: unchanged since %v", m, since)
		}
	}
	for m := 10; m < 150; m++ {
		if since := at(m, 1); !since.Equal(start) {
			t.Errorf("after %d minutes: unchanged since %v", m, since)
		}
	}
	if n := strings.Count(said.String(), "frozen"); n != 3 {
		t.Errorf("told %d times in 140 minutes, want 3: %s", n, said.String())
	}
	if since := at(150, 2); !since.IsZero() || !strings.Contains(said.String(), "changes again") {
		t.Errorf("the picture has changed: %v, %s", since, said.String())
	}
	// A camera that is asked twice a picture is not frozen.
	for m := 151; m < 200; m++ {
		if since := at(m, byte(m/2)); !since.IsZero() {
			t.Errorf("after %d minutes: unchanged since %v", m, since)
		}
	}
}
