package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/pull"
	"github.com/nearmiss/nearmiss/stream/internal/text"
)

// frameTask is one frame on its way through a lane.
type frameTask struct {
	msg      jetstream.Msg
	meta     *jetstream.MsgMetadata
	frame    stream.Frame
	bytes    int       // of the encoded image
	taken    time.Time // when this worker got it
	free     func()    // gives back the memory of its image
	failure  error     // why it is not handled; a *PermanentError rejects it, a *scoringError counts
	event    *stream.Event
	announce bool  // the event is to be stored, not only the score sent
	place    Place // nil: the release cannot tell where
	drawing  bool  // its pictures are being drawn
	scoring  *scoring
	spans    *frameSpans // nil: nobody follows it
	frameHistory
}

// frameHistory is what became of a frame before this delivery.
type frameHistory struct {
	deliveries int
	tried      try  // as recorded
	recorded   bool // there is a record of its tries
	suspect    bool // it is scored alone in this process
	again      bool // it has come to its end: nothing is to be done
}

// scoringError is a failure of the scorer, which counts as a try of the frame. All
// other failures are ours.
type scoringError struct{ err error }

func (e *scoringError) Error() string { return e.err.Error() }
func (e *scoringError) Unwrap() error { return e.err }

// handle scores one batch with one release and sees every frame of it to its
// end: acknowledged, rejected, or given back for another try.
//
// A frame that was delivered before may be the one that killed the process the
// last time: such frames are scored alone, so that they take nobody with them.
// So are those whose image is an object: they are large.
func (l *detectorRunner) handle(ctx context.Context, rel, shadow *loaded, msgs []jetstream.Msg) {
	l.hold(msgs)
	beat := l.beat(msgs)
	defer beat.Stop()
	var together, alone []*frameTask
	var sizes []int64
	for _, m := range msgs {
		switch it := l.read(m); {
		case it == nil:
			beat.Done(m)
		case it.deliveries > 1 || it.frame.Object != "":
			alone = append(alone, it)
		default:
			together, sizes = append(together, it), append(sizes, int64(it.bytes))
		}
	}
	frees, err := l.w.cfg.Memory.AcquireEach(ctx, sizes)
	for i, it := range together {
		if err != nil {
			it.failure = err
			continue
		}
		it.free = frees[i]
	}
	l.settle(ctx, rel, shadow, together, beat)
	for _, it := range alone {
		l.prepare(ctx, it)
		l.settle(ctx, rel, shadow, []*frameTask{it}, beat)
	}
}

// read understands a message.
func (l *detectorRunner) read(m jetstream.Msg) *frameTask {
	meta, err := m.Metadata()
	if err != nil {
		l.log.Error().Err(err).Str("subject", m.Subject()).Msg("message without metadata")
		return nil
	}
	it := &frameTask{msg: m, meta: meta, taken: time.Now(), free: func() {}}
	it.deliveries = int(meta.NumDelivered)
	it.frame, err = stream.ParseFrame(l.w.cfg.Names, m.Subject(), m.Headers(), m.Data(), meta, time.Unix(0, l.w.created.Load()))
	it.bytes = len(it.frame.Image)
	l.w.cameras.count(it.frame.Detector, it.frame.Camera, meta.Timestamp, it.frame.UnchangedSince)
	if err != nil {
		it.failure = stream.Permanent(stream.CodeBadHeader, err)
	}
	if it.frame.Camera != "" {
		l.w.cfg.Meter.CameraFrame(l.name, it.frame.Camera, meta.Timestamp)
	}
	return it
}

// prepare looks up what is known of a frame that was delivered before, and
// fetches the object that a frame names.
func (l *detectorRunner) prepare(ctx context.Context, it *frameTask) {
	if it.failure != nil {
		return
	}
	if it.deliveries > 1 {
		if it.failure = l.recall(ctx, it); it.failure != nil {
			return
		}
		if it.failure = it.tried.verdict(l.w.cfg.MaxDeliver); it.failure != nil {
			return
		}
		it.suspect = it.deliveries > 2 || it.recorded
	}
	l.loadImage(ctx, it)
}

// loadImage has a frame's image in memory, within what all frames under way may take.
func (l *detectorRunner) loadImage(ctx context.Context, it *frameTask) {
	size := int64(it.bytes)
	if it.frame.Object != "" {
		size, it.failure = l.objectSize(ctx, it.frame.Object)
	}
	if it.failure == nil {
		it.free, it.failure = l.w.cfg.Memory.Acquire(ctx, size)
	}
	if it.failure != nil {
		it.free = func() {}
		return
	}
	if it.frame.Object == "" {
		return
	}
	if it.frame.Image, it.failure = l.object(ctx, it.frame.Object); it.failure == nil {
		it.bytes = len(it.frame.Image)
		it.frame.Digest = stream.DigestOf(it.frame.Image)
		if want := it.frame.ObjectDigest; want != "" && want != it.frame.Digest {
			it.failure = stream.Permanent(stream.CodeObjectBad, fmt.Errorf("object %s is not the image that the frame names: its SHA-256 begins with %.12s, not with %.12s", text.Clip(it.frame.Object), it.frame.Digest, want))
		}
	}
}

// objectSize asks for the size of an object that a frame names, in bytes. What it
// says is believed up to the limit only; see object.
func (l *detectorRunner) objectSize(ctx context.Context, name string) (int64, error) {
	ctx, cancel := l.w.epoch.Within(ctx)
	defer cancel()
	info, err := l.w.large.GetInfo(ctx, name)
	if errors.Is(err, jetstream.ErrObjectNotFound) { // of a camera or a queue before there was this bucket
		var before jetstream.ObjectStore
		if before, err = l.w.js.ObjectStore(ctx, l.w.cfg.ArtifactsBucket()); err == nil {
			info, err = before.GetInfo(ctx, name)
		}
	}
	switch {
	case errors.Is(err, jetstream.ErrObjectNotFound):
		return 0, stream.Permanent(stream.CodeObjectMissing, fmt.Errorf("object %s is not in %s", text.Clip(name), l.w.cfg.LargeBucket()))
	case errors.Is(err, jetstream.ErrBadObjectMeta):
		return 0, stream.Permanent(stream.CodeObjectMissing, fmt.Errorf("object %s: its metadata cannot be understood", text.Clip(name)))
	case err != nil:
		return 0, fmt.Errorf("find object %s: %w", text.Clip(name), err)
	case info.Size > uint64(l.w.cfg.MaxImage):
		return 0, stream.Permanent(stream.CodeTooLarge, fmt.Errorf("object %s has %d bytes, at most %d are read", text.Clip(name), info.Size, l.w.cfg.MaxImage))
	}
	return int64(info.Size), nil
}

// object reads the image of a frame that was too large for a message.
func (l *detectorRunner) object(ctx context.Context, name string) ([]byte, error) {
	ctx, cancel := l.w.epoch.Within(ctx)
	defer cancel()
	return l.w.in.LargeImage(ctx, name, l.w.cfg.MaxImage)
}

// settle scores frames and brings each to its end; the candidate, if there is one,
// judges them after that.
func (l *detectorRunner) settle(ctx context.Context, rel, shadow *loaded, items []*frameTask, beat *pull.Heartbeat) {
	if len(items) == 0 {
		return
	}
	l.score(ctx, rel, items)
	var out, lost []*frameTask
	for _, it := range items {
		if it.again {
			l.finish(ctx, it)
			beat.Done(it.msg)
			continue
		}
		var perm *stream.PermanentError
		if counts, ok := errors.AsType[*scoringError](it.failure); ok && ctx.Err() == nil {
			it.tried.Failed++
			if it.tried.Failed >= l.w.cfg.MaxDeliver {
				it.failure = stream.Permanent(stream.CodeScoring, fmt.Errorf("failed %d times, at last: %w", it.tried.Failed, counts.err))
			} else if err := l.record(ctx, it, it.tried); err != nil {
				l.log.Warn().Err(err).Msg("this failure does not count")
			}
		}
		switch {
		case it.failure == nil:
			out = append(out, it)
		case errors.As(it.failure, &perm):
			it.event = rejectedEvent(it.frame, perm.Code, perm.Error())
			it.announce = true
			out = append(out, it)
		default:
			lost = append(lost, it)
		}
	}
	for _, it := range out {
		it.event.Bytes = it.bytes
	}
	l.judge(ctx, rel, out)
	l.trace(rel, out)
	out, later := l.setAside(rel, out)
	for _, it := range later {
		beat.Pass(it.msg)
	}
	begin := time.Now()
	out, failed := l.publish(ctx, rel, out)
	l.w.cfg.Meter.Stage(StagePublish, time.Since(begin))
	for _, it := range out {
		l.finish(ctx, it)
		beat.Done(it.msg)
	}
	for _, it := range append(lost, failed...) {
		l.giveBack(it)
		beat.Done(it.msg)
	}
	if shadow != nil {
		l.compare(ctx, rel, shadow, items)
	}
	for _, it := range items {
		if !it.drawing {
			it.free()
		}
	}
}

// score fills in the event or the failure of every frame. When a batch fails,
// its frames are tried one by one: one bad frame must not hold up the others.
func (l *detectorRunner) score(ctx context.Context, rel *loaded, items []*frameTask) {
	var todo []*frameTask
	for _, it := range items {
		switch {
		case it.failure != nil:
		case l.w.recent.has(it.frame):
			it.again = true
		default:
			todo = append(todo, it)
		}
	}
	if len(todo) == 0 {
		return
	}
	if todo[0].suspect {
		l.scoreSuspect(ctx, rel, todo[0])
		return
	}
	l.w.scoring.RLock()
	defer l.w.scoring.RUnlock()
	err := l.scoreBatch(ctx, rel, todo)
	if err == nil {
		return
	}
	if ctx.Err() != nil || len(todo) == 1 {
		for _, it := range todo {
			it.failure = err
		}
		return
	}
	l.log.Warn().Err(err).Int("frames", len(todo)).Msg("scoring a batch failed: trying its frames one by one")
	for _, it := range todo {
		if err := l.scoreBatch(ctx, rel, []*frameTask{it}); err != nil {
			it.failure = err
		}
	}
}

// scoreSuspect scores a frame while nothing else is scored in this process, and
// has that on record: when the process dies, it was this frame's doing.
func (l *detectorRunner) scoreSuspect(ctx context.Context, rel *loaded, it *frameTask) {
	l.w.scoring.Lock()
	defer l.w.scoring.Unlock()
	if it.failure = l.record(ctx, it, try{Failed: it.tried.Failed, Died: it.tried.Died + 1}); it.failure != nil {
		return
	}
	if err := l.scoreBatch(ctx, rel, []*frameTask{it}); err != nil {
		it.failure = err
	}
	// The process did not die of it.
	if err := l.record(context.WithoutCancel(ctx), it, it.tried); err != nil {
		l.log.Warn().Err(err).Str("frame", it.frame.ID).Msg("a try is on record that was none")
	}
}

func (l *detectorRunner) scoreBatch(ctx context.Context, rel *loaded, items []*frameTask) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &scoringError{fmt.Errorf("score %d frames with release %s: panic: %v", len(items), text.Short(rel.pointer.Release), p)}
		}
	}()
	images := make([][]byte, len(items))
	for i, it := range items {
		images[i] = it.frame.Image
	}
	took := &scoring{begin: time.Now(), frames: len(items)}
	verdicts, err := rel.scorer.Score(ctx, images)
	took.end = time.Now()
	l.w.cfg.Meter.Batch(l.name, len(items))
	l.w.cfg.Meter.Stage(StageScore, took.end.Sub(took.begin))
	if err != nil {
		return &scoringError{fmt.Errorf("score %d frames with release %s: %w", len(items), text.Short(rel.pointer.Release), err)}
	}
	if len(verdicts) != len(items) {
		return &scoringError{fmt.Errorf("score %d frames with release %s: %d verdicts came back", len(items), text.Short(rel.pointer.Release), len(verdicts))}
	}
	for i, it := range items {
		it.event, it.failure = judged(it.frame, verdicts[i], rel.pointer.Release)
		it.place, it.scoring = verdicts[i].Place, took
	}
	return nil
}

// judged turns a verdict into an event, or into the reason why the frame is
// rejected.
func judged(f stream.Frame, v Verdict, release string) (*stream.Event, error) {
	if v.Reject != "" {
		reason := cmp.Or(v.Reason, "the image cannot be read")
		return nil, stream.Permanent(codeOf(v.Reject), errors.New(reason))
	}
	for _, x := range []float64{v.Score, v.Threshold, v.PValue} {
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return nil, stream.Permanent(stream.CodeNotFinite, fmt.Errorf("score %v, threshold %v, p-value %v: not finite, the release is unfit for this image", v.Score, v.Threshold, v.PValue))
		}
	}
	v.Release = cmp.Or(v.Release, release)
	if v.Nearest == nil {
		v.Nearest = []stream.Near{}
	}
	return &stream.Event{
		ID: stream.EventID(f, v.Release), Kind: stream.KindAnomaly,
		FrameID: f.ID, Digest: f.Digest, Detector: f.Detector, Camera: f.Camera,
		CapturedAt: f.CapturedAt, ScoredAt: time.Now().UTC(), Source: f.Source,
		Score: &v.Score, Threshold: &v.Threshold, PValue: &v.PValue, Anomalous: &v.Anomalous, K: v.K, Nearest: v.Nearest,
		Release: v.Release, Model: v.Model, Bank: v.Bank, Width: v.Width, Height: v.Height,
		Truth: f.Truth, Trace: f.Trace,
	}, nil
}

// rejectedEvent says that a frame was not judged. Its id does not depend on a
// release: what cannot be read cannot be read by any.
func rejectedEvent(f stream.Frame, code, reason string) *stream.Event {
	return &stream.Event{
		ID: f.Key(), Kind: stream.KindRejected,
		FrameID: f.ID, Digest: f.Digest, Detector: f.Detector, Camera: f.Camera,
		CapturedAt: f.CapturedAt, ScoredAt: time.Now().UTC(), Source: f.Source,
		Bytes: len(f.Image), Code: codeOf(code), Reason: reason,
		Truth: f.Truth, Trace: f.Trace,
	}
}

// codeOf makes a stable word of what a decoder calls its reason.
func codeOf(s string) string {
	b := make([]byte, 0, len(s))
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9' && len(b) > 0, c == '_' && len(b) > 0:
			b = append(b, c)
		case c >= 'A' && c <= 'Z':
			b = append(b, c+'a'-'A')
		case len(b) > 0:
			b = append(b, '_')
		}
	}
	if len(b) == 0 {
		return "unreadable"
	}
	return string(b)
}
