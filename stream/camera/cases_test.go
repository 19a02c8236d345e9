package camera_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/evaldata"
	"github.com/nearmiss/nearmiss/stream/camera"
)

// The images of the case come out of a stream one frame each.
func TestCasesOfCamerasOnTheWeb(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(evaldata.Cases(t, "web-camera"), "img", "*"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		img, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		const parts = 4
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "multipart/mixed; boundary=frame")
			for range parts {
				fmt.Fprintf(w, "--frame\r\nContent-Type: image/jpeg\r\n\r\n%s\r\n", img)
			}
		}))
		s := &camera.Web{URL: srv.URL, FPS: 1000, Log: zerolog.Nop()}
		got := take(t, s, parts)
		srv.Close()
		for i, g := range got {
			if !bytes.HasPrefix(g.Data, img[:min(len(img), 100)]) {
				t.Errorf("%s: frame %d begins otherwise", filepath.Base(f), i)
			}
		}
		pipe := &camera.Pipe{R: bytes.NewReader(bytes.Repeat(img, 3))}
		n := 0
		for {
			if _, err := pipe.Next(t.Context()); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			n++
		}
		if n != 3 {
			t.Errorf("%s: three files in a pipe are %d frames", filepath.Base(f), n)
		}
	}
}
