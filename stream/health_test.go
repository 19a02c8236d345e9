package stream_test

import (
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/stream"
)

func TestAilments(t *testing.T) {
	serves := func(names ...string) stream.WorkerStatus {
		w := stream.WorkerStatus{Serving: map[string]string{}, Refused: map[string]string{"bent": "r2"}}
		for _, n := range names {
			w.Serving[n] = "r1"
		}
		return w
	}
	with := func(name string) stream.DetectorStatus { return stream.DetectorStatus{Detector: name, Release: "r1"} }
	learning := stream.DetectorStatus{Detector: "fresh", Learning: &stream.Learning{Normals: 40, Frames: 500}}
	type workers []stream.WorkerStatus
	type detectors []stream.DetectorStatus
	for name, c := range map[string]struct {
		have    detectors
		workers workers
		asked   []string
		want    string // of every sentence, joined
		full    string
	}{
		"nobody answers":                       {detectors{with("bolts")}, nil, nil, "no worker answers", ""},
		"nobody answers, and the disk is full": {detectors{with("bolts")}, nil, nil, "no frames are taken: disk; no worker answers", "disk"},
		"the disk is full":                     {detectors{with("bolts")}, workers{serves("bolts")}, nil, "no frames are taken: disk", "disk"},
		"nothing is there":                     {nil, workers{serves()}, nil, "there is no detector", ""},
		"all is well":                          {detectors{with("bolts"), with("nuts")}, workers{serves("bolts"), serves("nuts")}, nil, "", ""},
		"one is not served":                    {detectors{with("bolts"), with("nuts")}, workers{serves("bolts")}, nil, "detector nuts: no worker serves it", ""},
		"another is not asked for":             {detectors{with("bolts"), with("nuts")}, workers{serves("bolts")}, []string{"bolts"}, "", ""},
		"its release is refused":               {detectors{with("bent")}, workers{serves()}, nil, "detector bent: its release is refused, and none before it serves", ""},
		"the one before a refused one":         {detectors{with("bent")}, workers{serves("bent")}, nil, "", ""},
		"learning beside one that serves":      {detectors{with("bolts"), learning}, workers{serves("bolts")}, nil, "", ""},
		"learning alone":                       {detectors{learning}, workers{serves()}, nil, "detector fresh: it is learning, 40 of 500 frames", ""},
		"learning, asked for":                  {detectors{with("bolts"), learning}, workers{serves("bolts")}, []string{"fresh", "bolts"}, "detector fresh: it is learning, 40 of 500 frames", ""},
		"it has never learnt":                  {detectors{{Detector: "new"}}, workers{serves()}, nil, "detector new: it has no release", ""},
		"one that is not there is asked for":   {detectors{with("bolts")}, workers{serves("bolts")}, []string{"bolt"}, "detector bolt: there is none", ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got := strings.Join(stream.Ailments(stream.Status{Detectors: c.have, Full: c.full}, c.workers, c.asked...), "; "); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}
