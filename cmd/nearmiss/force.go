package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nearmiss/nearmiss/inference/release"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/registry"
)

// force is what decides on a detector's frames: what was asked for, what the
// active release promises of it, and what that means.
type force struct {
	stream.Detector // with its defaults; false_alarm_rate is the one asked for

	Release      string   `json:"release,omitempty"`            // active
	Promised     *float64 `json:"promised_rate,omitempty"`      // share of normal images above the release's threshold, at most; absent where the threshold is set by hand
	InForce      *float64 `json:"threshold_in_force,omitempty"` // score above which a frame is anomalous; absent where none is, or there is no release
	ThresholdBy  string   `json:"threshold_by,omitempty"`       // hand or margin; absent: the release
	HeldOut      int      `json:"held_out,omitempty"`           // normals that the promise comes from
	SmallestRate float64  `json:"smallest_rate,omitempty"`      // that so many can promise
	Cameras      []expect `json:"cameras,omitempty"`            // that sent frames in the last minute
	understood   bool     // the release's manifest says all that
}

// expect is what a promise means at one camera.
type expect struct {
	Camera    string   `json:"camera"`
	PerSecond float64  `json:"frames_per_second"`
	PerHour   *float64 `json:"false_alarms_per_hour,omitempty"` // at most, when all that it sees is normal
}

// workersTimeout is how long to wait for the workers, which know the cameras'
// rates.
const workersTimeout = 200 * time.Millisecond

// inForce finds out what decides on a detector's frames. wait 0 does without the
// cameras.
func inForce(ctx context.Context, installation *stream.Installation, client *stream.Client, d stream.Detector, wait time.Duration) (force, error) {
	in := force{Detector: d.WithDefaults()}
	reg, err := installation.Registry(ctx)
	if err != nil {
		return in, err
	}
	p, err := reg.Active(ctx, d.Name)
	if errors.Is(err, registry.ErrNoRelease) || errors.Is(err, registry.ErrCorrupt) {
		return in, nil
	}
	if err != nil {
		return in, err
	}
	in.Release = p.Release
	rel, err := reg.Show(ctx, p.Release)
	if err != nil {
		return in, nil // it cannot be read, as the worker says
	}
	m, err := release.ParseManifest(rel.Manifest)
	if err != nil {
		return in, nil
	}
	c := m.Calibration
	in.understood, in.HeldOut, in.SmallestRate = true, c.HeldOut, c.SmallestAlpha
	if in.InForce, in.ThresholdBy = d.InForce(c.Threshold); in.ThresholdBy == "" {
		in.Promised = new(c.Rate())
	}
	if wait > 0 {
		workers, err := client.Workers(ctx, wait)
		if err != nil {
			return in, nil // they may be away
		}
		in.expect(workers)
	}
	return in, nil
}

// expect adds up what the workers see of the cameras.
func (in *force) expect(workers []stream.WorkerStatus) {
	at := map[string]int{}
	for _, w := range workers {
		for _, r := range w.Cameras {
			if r.Detector != in.Name {
				continue
			}
			i, ok := at[r.Camera]
			if !ok {
				i = len(in.Cameras)
				at[r.Camera] = i
				in.Cameras = append(in.Cameras, expect{Camera: r.Camera})
			}
			in.Cameras[i].PerSecond += r.PerSecond
		}
	}
	for i := range in.Cameras {
		if in.Promised != nil {
			in.Cameras[i].PerHour = new(*in.Promised * in.Cameras[i].PerSecond * 3600)
		}
	}
}

// text is for people: a line or two, each with its line end.
func (in force) text(indent string) string {
	if !in.understood {
		return ""
	}
	var b strings.Builder
	threshold := "no threshold: so small a rate calls nothing anomalous"
	if in.InForce != nil {
		threshold = fmt.Sprintf("threshold %.4g", *in.InForce)
	}
	switch in.ThresholdBy {
	case stream.ThresholdByHand:
		threshold += ", set by hand: nothing is promised"
	case stream.ThresholdByMargin:
		threshold += fmt.Sprintf(", the release's times %.4g, set by hand: nothing is promised", in.Margin)
	default:
		threshold = fmt.Sprintf("release %.12s promises %.3g %% false alarms with %d held-out normals, %s", in.Release, 100**in.Promised, in.HeldOut, threshold)
	}
	fmt.Fprintf(&b, "%sin force   asked for %.3g %%; %s\n", indent, 100*in.FalseAlarmRate, threshold)
	for _, c := range in.Cameras {
		fmt.Fprintf(&b, "%scamera     %s: %.3g frames a second", indent, c.Camera, c.PerSecond)
		if c.PerHour != nil {
			fmt.Fprintf(&b, ", up to %.3g false alarms an hour when all is normal", *c.PerHour)
		}
		b.WriteString("\n")
	}
	return b.String()
}
