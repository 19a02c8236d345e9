package stream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream/internal/text"
)

// Ailments says why frames are not judged as they should be, one sentence a
// reason: of the detectors that are named, or else of all that have a release, of
// which there must be one. None means that all is well. workers are those that
// answered.
func Ailments(st Status, workers []WorkerStatus, detectors ...string) []string {
	var bad []string
	if st.Full != "" {
		bad = append(bad, "no frames are taken: "+st.Full)
	}
	if len(workers) == 0 {
		return append(bad, "no worker answers")
	}
	asked := len(detectors) > 0
	served := func(d DetectorStatus) bool {
		return slices.ContainsFunc(workers, func(w WorkerStatus) bool { return w.Serving[d.Detector] != "" })
	}
	// Detectors that are not ready yet are no fault while others serve.
	ready := !asked && slices.ContainsFunc(st.Detectors, served)
	for _, d := range st.Detectors {
		if asked && !slices.Contains(detectors, d.Detector) || served(d) {
			continue
		}
		switch {
		case d.Release != "" && slices.ContainsFunc(workers, func(w WorkerStatus) bool { return w.Refused[d.Detector] != "" }):
			bad = append(bad, fmt.Sprintf("detector %s: its release is refused, and none before it serves", d.Detector))
		case d.Release != "":
			bad = append(bad, fmt.Sprintf("detector %s: no worker serves it", d.Detector))
		case ready:
		case d.Learning != nil:
			bad = append(bad, fmt.Sprintf("detector %s: it is learning, %d of %d frames", d.Detector, d.Learning.Normals, d.Learning.Frames))
		default:
			bad = append(bad, fmt.Sprintf("detector %s: it has no release", d.Detector))
		}
	}
	if !asked && len(st.Detectors) == 0 {
		bad = append(bad, "there is no detector")
	}
	for _, name := range detectors {
		if !slices.ContainsFunc(st.Detectors, func(d DetectorStatus) bool { return d.Detector == name }) {
			bad = append(bad, fmt.Sprintf("detector %s: there is none", name))
		}
	}
	return bad
}

// Reservations are what is not as it should be although frames are judged: workers
// that refuse the active release, which may be of a later version than they are, and
// serve the one before.
func Reservations(workers []WorkerStatus) []string {
	var all []string
	for _, w := range workers {
		for d, refused := range w.Refused {
			if serving := w.Serving[d]; serving != "" {
				all = append(all, fmt.Sprintf("detector %s: %s refuses the active release %s and serves %s; why is in its log and in the event (nearmiss watch %s --kind release --since 24h)",
					d, w.Name, text.Short(refused), text.Short(serving), d))
			}
		}
	}
	slices.Sort(all)
	return all
}

// IsAwaited says whether a detector has a configuration or a release, so that
// somebody takes its frames.
func (in *Installation) IsAwaited(ctx context.Context, detector string) (bool, error) {
	for _, name := range []string{in.names.DetectorsBucket(), in.names.ActiveBucket()} {
		bucket, err := in.bucket(ctx, name)
		if err != nil {
			return false, err
		}
		switch _, err := bucket.Get(ctx, detector); {
		case err == nil:
			return true, nil
		case !errors.Is(err, jetstream.ErrKeyNotFound):
			return false, fmt.Errorf("find detector %s: %w", detector, err)
		}
	}
	return false, nil
}

// Check is one thing that must be so for a service to be of use.
type Check struct {
	Name   string    `json:"name"`
	OK     bool      `json:"ok"`
	Since  time.Time `json:"since,omitzero"` // as it is now
	Detail string    `json:"detail,omitempty"`
}
