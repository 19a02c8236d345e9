package stream

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream/internal/object"
)

// Levels is how full everything is, for metrics: a look that costs a dozen small
// requests, and two for each detector.
type Levels struct {
	Detectors   []DetectorLevels
	Unserved    uint64 // waiting frames of detectors that have neither a configuration nor a release
	Streams     []StreamLevels
	Store       uint64            // bytes that JetStream has stored for this account
	MaxStore    int64             // most that it may; 0 where there is no limit
	Dead        map[string]uint64 // dead letters by the stream that they are from
	Lost        map[string]uint64 // frames that were published and not stored since the broker started, by code
	JobsWaiting int
}

// DetectorLevels is how much of a detector there is.
type DetectorLevels struct {
	Detector   string
	Waiting    uint64    // frames in the queue, those under way included
	Unacked    uint64    // frames that workers have in hand
	Oldest     time.Time // when the oldest of them was stored; zero: none waits
	Normals    int
	Anomalies  int       // labelled
	PromotedAt time.Time // of the active release; zero: none
}

// StreamLevels is the size of a stream.
type StreamLevels struct {
	Stream   string
	Bytes    uint64
	MaxBytes int64 // -1: no limit of its own
	Messages uint64
}

// Levels reads how full everything is.
func (in *Installation) Levels(ctx context.Context) (Levels, error) {
	l := Levels{Lost: map[string]uint64{}}
	fail := func(err error) (Levels, error) { return Levels{}, fmt.Errorf("read the levels: %w", err) }
	account, err := in.js.AccountInfo(ctx)
	if err != nil {
		return fail(err)
	}
	l.Store, l.MaxStore = account.Store, max(account.Limits.MaxStore, 0)
	n := in.names
	var frames jetstream.Stream
	for _, name := range []string{
		n.FramesStream(), n.EventsStream(), n.NormalsStream(), n.FeedbackStream(), n.TrainingStream(), n.IncidentsStream(), n.DeadStream(),
		object.StreamOf(n.ArtifactsBucket()), object.StreamOf(n.EvidenceBucket()), object.StreamOf(n.ImagesBucket()), object.StreamOf(n.LargeBucket()),
	} {
		s, err := in.js.Stream(ctx, name)
		if err != nil {
			return fail(fmt.Errorf("stream %s: %w", name, err))
		}
		if name == n.FramesStream() {
			frames = s
		}
		i := s.CachedInfo()
		l.Streams = append(l.Streams, StreamLevels{Stream: name, Bytes: i.State.Bytes, MaxBytes: i.Config.MaxBytes, Messages: i.State.Msgs})
		if name == n.TrainingStream() {
			l.JobsWaiting = int(i.State.Msgs)
		}
	}
	if l.Dead, err = perDetector(ctx, in.js, n.DeadStream(), n.Dead("*"), func(subject string) (string, bool) {
		return subject[strings.LastIndexByte(subject, '.')+1:], true
	}); err != nil {
		return fail(err)
	}
	lost, err := in.LostFrames(ctx)
	if err != nil {
		return fail(err)
	}
	for _, x := range lost {
		l.Lost[x.Code] += x.Frames
	}
	if err := in.detectorLevels(ctx, frames, &l); err != nil {
		return fail(err)
	}
	return l, nil
}

func (in *Installation) detectorLevels(ctx context.Context, frames jetstream.Stream, l *Levels) error {
	detectors, err := in.Detectors(ctx)
	if err != nil {
		return err
	}
	reg, err := in.Registry(ctx)
	if err != nil {
		return err
	}
	list, _, err := detectors.Check(ctx)
	if err != nil {
		return err
	}
	active, _, _, err := reg.Pointers(ctx)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, d := range list {
		known[d.Name] = true
	}
	for d := range active {
		known[d] = true
	}
	waiting, err := in.waiting(ctx)
	if err != nil {
		return err
	}
	for name, count := range waiting {
		if !known[name] {
			l.Unserved += count
		}
	}
	normals := in.Normals()
	for name := range known {
		d := DetectorLevels{Detector: name, Waiting: waiting[name], PromotedAt: active[name].PromotedAt}
		if d.Normals, err = normals.count(ctx, in.names.Normals(name)); err != nil {
			return err
		}
		if d.Anomalies, err = normals.count(ctx, in.names.Anomalies(name)); err != nil {
			return err
		}
		if d.Waiting > 0 {
			switch c, err := frames.Consumer(ctx, FramesConsumer(name)); {
			case err == nil:
				d.Unacked = uint64(max(c.CachedInfo().NumAckPending, 0))
			case !errors.Is(err, jetstream.ErrConsumerNotFound):
				return fmt.Errorf("frames consumer of detector %s: %w", name, err)
			}
			switch m, err := frames.GetMsg(ctx, 1, jetstream.WithGetMsgSubject(in.names.Frames(name, "*"))); {
			case err == nil:
				d.Oldest = m.Time
			case !errors.Is(err, jetstream.ErrMsgNotFound):
				return fmt.Errorf("oldest frame of detector %s: %w", name, err)
			}
		}
		l.Detectors = append(l.Detectors, d)
	}
	sort.Slice(l.Detectors, func(a, b int) bool { return l.Detectors[a].Detector < l.Detectors[b].Detector })
	return nil
}
