package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/pull"
)

// pictureTask is an anomaly that is drawn beside the lanes: where it is
// strange, and pictures of that. Its event goes out, and its frame is
// acknowledged, once they are kept.
type pictureTask struct {
	it   *frameTask
	rel  *loaded // borrowed
	beat *pull.Heartbeat
}

// setAside hands the anomalies of which pictures can be made to drawPictures
// and returns the others. Nothing waits here: when that has enough to do, the
// event goes out without pictures, and says so.
func (l *detectorRunner) setAside(rel *loaded, items []*frameTask) (now, later []*frameTask) {
	for _, it := range items {
		if it.place == nil || !it.announce || it.event.Kind != stream.KindAnomaly {
			now = append(now, it)
			continue
		}
		rel.users.Add(1) // rel is borrowed here, so that it cannot be about to close
		x := pictureTask{it: it, rel: rel, beat: l.beat([]jetstream.Msg{it.msg})}
		it.drawing = true
		select {
		case l.pictureTasks <- x:
			later = append(later, it)
		default:
			it.drawing = false
			x.beat.Stop()
			rel.users.Done()
			if conf, _, _, _ := l.state(); !conf.NoEvidence {
				it.event.NoPictures = stream.NoPicturesBusy
				l.w.count.unpictured.Add(1)
				l.w.cfg.Meter.Pictures(stream.NoPicturesBusy)
			}
			l.log.Warn().Str("camera", it.frame.Camera).Str("frame", it.frame.ID).Msg("too many anomalies at once: no pictures are made of this one")
			now = append(now, it)
		}
	}
	return now, later
}

// drawPictures sees the anomalies that were set aside to their end, until the lanes
// have ended and their channel is closed.
func (l *detectorRunner) drawPictures(work context.Context) {
	for x := range l.pictureTasks {
		out, failed := l.publish(work, x.rel, []*frameTask{x.it})
		for _, it := range out {
			l.finish(work, it)
		}
		for _, it := range failed {
			l.giveBack(it)
		}
		x.it.free()
		x.beat.Done(x.it.msg)
		x.beat.Stop()
		x.rel.users.Done()
	}
}

// show draws an anomaly's pictures and keeps them. Whatever fails, the event
// goes out; but where ctx has ended, the frame is for another worker.
func (l *detectorRunner) show(ctx context.Context, it *frameTask) error {
	if it.place == nil || !it.drawing {
		return nil
	}
	begin := time.Now()
	size, err := l.keepPictures(ctx, it)
	l.w.cfg.Meter.Stage(StagePictures, time.Since(begin))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		it.event.NoPictures = stream.NoPicturesFailed
		if errors.Is(err, errNotKept) {
			it.event.NoPictures = stream.NoPicturesStorage
		}
		l.w.count.unpictured.Add(1)
		l.w.cfg.Meter.Pictures(it.event.NoPictures)
		l.log.Warn().Err(err).Str("camera", it.frame.Camera).Str("frame", it.frame.ID).Msg("the event goes without pictures")
		return nil
	}
	it.event.Pictures, it.event.NoPictures = l.w.cfg.EvidenceBucket()+"/"+stream.EvidenceMeta(it.event).Name, ""
	l.w.count.pictured.Add(1)
	l.w.cfg.Meter.Pictures(PicturesKept)
	l.bound(ctx, size)
	return nil
}

var errNotKept = errors.New("keep the pictures")

func (l *detectorRunner) keepPictures(ctx context.Context, it *frameTask) (size int, err error) {
	pictures, err := drawn(ctx, it)
	if err != nil {
		return 0, fmt.Errorf("draw the pictures of frame %s: %w", it.frame.ID, err)
	}
	b, err := stream.Evidence{Event: *it.event, Pictures: pictures}.Archive()
	if err != nil {
		return 0, err
	}
	meta := stream.EvidenceMeta(it.event)
	err = l.tryToKeep(ctx, func(step context.Context) error {
		info, err := l.w.evidence.Put(step, meta, bytes.NewReader(b))
		if err == nil {
			err = l.w.whole(step, l.w.cfg.EvidenceBucket(), info)
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("%w of frame %s: %w", errNotKept, it.frame.ID, err)
	}
	return len(b), nil
}

// locate says in an anomaly's event where it is strange. Whatever fails, the
// event goes out.
func (l *detectorRunner) locate(it *frameTask) {
	if it.place == nil || it.event.Regions != nil {
		return
	}
	defer func() {
		if r := recover(); r != nil {
			l.log.Warn().Any("panic", r).Str("camera", it.frame.Camera).Str("frame", it.frame.ID).Msg("the event goes without regions")
		}
	}()
	it.event.Regions = it.place.Regions()
}

// drawn calls Draw, which is another package's.
func drawn(ctx context.Context, it *frameTask) (p []stream.Picture, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return it.place.Draw(ctx, it.frame.Image)
}

// bound keeps the detector's evidence within its limits: it looks after every
// sixteenth part of what may be kept, and every hour, and makes as much room, so
// that the limit holds in between.
func (l *detectorRunner) bound(ctx context.Context, size int) {
	conf, _, _, _ := l.state()
	most := conf.EvidenceBytes()
	l.added += uint64(size)
	if l.added < most/16 && time.Since(l.bounded) < evictAfter {
		return
	}
	step, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	removed, _, err := l.w.in.PurgeEvidence(step, l.name, time.Duration(conf.Retention), most-most/16)
	if err != nil {
		if ctx.Err() == nil {
			l.log.Warn().Err(err).Msg("cannot remove old evidence")
		}
		return
	}
	l.added, l.bounded = 0, time.Now()
	if removed > 0 {
		l.log.Info().Int("events", removed).Msg("removed old evidence")
	}
}
