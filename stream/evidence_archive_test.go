package stream_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/stream"
)

func TestEvidenceArchives(t *testing.T) {
	score := 1.5
	e := stream.Evidence{
		Event:    stream.Event{ID: "abc", Kind: stream.KindAnomaly, Detector: "bolts", Camera: "left", Score: &score},
		Pictures: []stream.Picture{{Name: "overlay.jpg", About: "the frame", Data: []byte("picture")}},
	}
	b, err := e.Archive()
	if err != nil {
		t.Fatal(err)
	}
	back, err := stream.ParseEvidence(b)
	if err != nil || back.Event.ID != "abc" || *back.Event.Score != score || len(back.Pictures) != 1 || !bytes.Equal(back.Pictures[0].Data, []byte("picture")) {
		t.Errorf("%+v, %v", back, err)
	}
	for _, name := range []string{"", "../x", "a/b", ".hidden", stream.EvidenceIndex, "a\x00b"} {
		e.Pictures[0].Name = name
		if _, err := e.Archive(); err == nil {
			t.Errorf("file name %q is accepted", name)
		}
	}
	if _, err := stream.ParseEvidence(b[:len(b)-5]); !errors.Is(err, stream.ErrBadMessage) {
		t.Error(err)
	}
}

func FuzzParseEvidence(f *testing.F) {
	b, err := stream.Evidence{Event: stream.Event{ID: "abc"}, Pictures: []stream.Picture{{Name: "a.jpg", Data: []byte("x")}}}.Archive()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:30])
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := stream.ParseEvidence(b)
		if err != nil {
			if !errors.Is(err, stream.ErrBadMessage) {
				t.Errorf("%v", err)
			}
			return
		}
		for _, p := range e.Pictures {
			if strings.ContainsAny(p.Name, "/\\") || p.Name == "" {
				t.Errorf("file name %q", p.Name)
			}
		}
	})
}
