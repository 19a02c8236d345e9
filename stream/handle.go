package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/internal/redact"
)

// item is one frame on its way through a lane.
type item struct {
	msg        jetstream.Msg
	meta       *jetstream.MsgMetadata
	frame      Frame
	bytes      int   // of the encoded image
	failure    error // why it cannot be scored; a *PermanentError rejects it
	event      *Event
	announce   bool // the event is to be stored, not only the score sent
	deliveries int
	place      Place // nil: the release cannot tell where
	apart      bool  // it is in the exhibitor's hands
}

// handle scores one batch with one release and sees every frame of it to its
// end: acknowledged, rejected, or given back for another try.
//
// A frame that was delivered before may be the one that killed the process the
// last time: such frames are scored alone, so that they take nobody with them.
func (l *line) handle(ctx context.Context, rel, shadow *loaded, msgs []jetstream.Msg) {
	beat := newHeartbeat(l.w.cfg.AckWait/3, msgs)
	defer beat.stop()
	var fresh, again []*item
	for _, m := range msgs {
		it := l.read(ctx, m)
		if it == nil {
			continue
		}
		if it.deliveries > 1 {
			again = append(again, it)
		} else {
			fresh = append(fresh, it)
		}
	}
	l.settle(ctx, rel, fresh, beat)
	for _, it := range again {
		l.settle(ctx, rel, []*item{it}, beat)
	}
	if shadow != nil {
		l.compare(ctx, rel, shadow, append(fresh, again...))
	}
}

// read understands a message and fetches the object it names.
func (l *line) read(ctx context.Context, m jetstream.Msg) *item {
	meta, err := m.Metadata()
	if err != nil {
		l.log.Error().Err(err).Str("subject", m.Subject()).Msg("message without metadata")
		return nil
	}
	it := &item{msg: m, meta: meta, deliveries: int(meta.NumDelivered)}
	it.frame, err = ParseFrame(l.w.cfg.Names, m.Subject(), m.Headers(), m.Data(), meta, time.Unix(0, l.w.created.Load()))
	it.bytes = len(it.frame.Image)
	if err != nil {
		it.failure = Permanent(CodeBadHeader, err)
		return it
	}
	if it.frame.Object != "" {
		it.frame.Image, it.failure = l.object(ctx, it.frame.Object)
		it.bytes = len(it.frame.Image)
	}
	return it
}

// object reads the image of a frame that was too large for a message.
func (l *line) object(ctx context.Context, name string) ([]byte, error) {
	ctx, cancel := l.w.epoch.Within(ctx)
	defer cancel()
	return fetchObject(ctx, l.w.js, l.w.cfg.ArtifactsBucket(), name, l.w.cfg.MaxImage)
}

// settle scores items and brings each to its end.
func (l *line) settle(ctx context.Context, rel *loaded, items []*item, beat *heartbeat) {
	if len(items) == 0 {
		return
	}
	l.score(ctx, rel, items)
	var out, lost []*item
	for _, it := range items {
		var perm *PermanentError
		switch {
		case it.failure == nil:
			out = append(out, it)
		case errors.As(it.failure, &perm):
			it.event = rejectedEvent(it.frame, perm.Code, perm.Error())
			it.announce = true
			out = append(out, it)
		case it.deliveries >= l.w.cfg.MaxDeliver && ctx.Err() == nil:
			it.event = rejectedEvent(it.frame, CodeScoring, fmt.Sprintf("failed %d times, at last: %v", it.deliveries, it.failure))
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
	out, later := l.setAside(rel, out)
	for _, it := range later {
		beat.done(it.msg)
	}
	out, failed := l.publish(ctx, rel, out)
	lost = append(lost, failed...)
	for _, it := range out {
		l.finish(ctx, it)
		beat.done(it.msg)
	}
	for _, it := range lost {
		l.giveBack(it)
		beat.done(it.msg)
	}
}

// score fills in the event or the failure of every item. When a batch fails,
// its frames are tried one by one: one bad frame must not hold up the others.
func (l *line) score(ctx context.Context, rel *loaded, items []*item) {
	var todo []*item
	for _, it := range items {
		if it.failure == nil {
			todo = append(todo, it)
		}
	}
	if len(todo) == 0 {
		return
	}
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
		if err := l.scoreBatch(ctx, rel, []*item{it}); err != nil {
			it.failure = err
		}
	}
}

func (l *line) scoreBatch(ctx context.Context, rel *loaded, items []*item) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("score %d frames with release %s: panic: %v", len(items), short(rel.pointer.Release), p)
		}
	}()
	images := make([][]byte, len(items))
	for i, it := range items {
		images[i] = it.frame.Image
	}
	verdicts, err := rel.scorer.Score(ctx, images)
	if err != nil {
		return fmt.Errorf("score %d frames with release %s: %w", len(items), short(rel.pointer.Release), err)
	}
	if len(verdicts) != len(items) {
		return fmt.Errorf("score %d frames with release %s: %d verdicts came back", len(items), short(rel.pointer.Release), len(verdicts))
	}
	for i, it := range items {
		it.event, it.failure = judged(it.frame, verdicts[i], rel.pointer.Release)
		it.place = verdicts[i].Place
	}
	return nil
}

// judged turns a verdict into an event, or into the reason why the frame is
// rejected.
func judged(f Frame, v Verdict, release string) (*Event, error) {
	if v.Reject != "" {
		reason := v.Reason
		if reason == "" {
			reason = "the image cannot be read"
		}
		return nil, Permanent(codeOf(v.Reject), errors.New(reason))
	}
	for _, x := range []float64{v.Score, v.Threshold, v.PValue} {
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return nil, Permanent(CodeNotFinite, fmt.Errorf("score %v, threshold %v, p-value %v: not finite, the release is unfit for this image", v.Score, v.Threshold, v.PValue))
		}
	}
	if v.Release == "" {
		v.Release = release
	}
	if v.Nearest == nil {
		v.Nearest = []Near{}
	}
	return &Event{
		ID: eventID(f.Detector, f.Camera, f.ID, v.Release), Kind: KindAnomaly,
		FrameID: f.ID, Detector: f.Detector, Camera: f.Camera,
		CapturedAt: f.CapturedAt, ScoredAt: time.Now().UTC(), Source: f.Source,
		Score: &v.Score, Threshold: &v.Threshold, PValue: &v.PValue, Anomalous: &v.Anomalous, K: v.K, Nearest: v.Nearest,
		Release: v.Release, Model: v.Model, Bank: v.Bank, Width: v.Width, Height: v.Height,
		Truth: f.Truth, Trace: f.Trace,
	}, nil
}

// rejectedEvent says that a frame was not judged. Its id does not depend on a
// release: what cannot be read cannot be read by any.
func rejectedEvent(f Frame, code, reason string) *Event {
	return &Event{
		ID: eventID(f.Detector, f.Camera, f.ID, ""), Kind: KindRejected,
		FrameID: f.ID, Detector: f.Detector, Camera: f.Camera,
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

// publish stores events and dead letters and sends scores. It returns the items
// whose publication is certain, and those to be tried again.
func (l *line) publish(ctx context.Context, rel *loaded, items []*item) (ok, failed []*item) {
	type pending struct {
		it  *item
		msg *nats.Msg
		ack jetstream.PubAckFuture
	}
	conf, _, _, _ := l.state()
	cool := time.Duration(conf.CoolDown)
	if cool == 0 {
		l.keepAll(ctx, items)
	}
	var wait []*pending
	for _, it := range items {
		if !it.announce {
			ok = append(ok, it)
			continue
		}
		if it.event.Kind == KindAnomaly {
			if seen, err := l.announced(ctx, rel, it); err != nil {
				it.failure = err
				failed = append(failed, it)
				continue
			} else if seen {
				ok = append(ok, it)
				continue
			}
			if cool > 0 {
				if stored, err := l.coolDown(ctx, it, cool); err != nil {
					it.failure = fmt.Errorf("store event of frame %s: %w", it.frame.ID, err)
					failed = append(failed, it)
				} else {
					it.announce = stored
					ok = append(ok, it)
				}
				continue
			}
			if it.failure != nil { // its evidence could not be kept
				failed = append(failed, it)
				continue
			}
		}
		m, err := it.event.Message(l.w.cfg.Names)
		if err != nil { // values that JSON cannot hold were refused before
			it.failure = err
			failed = append(failed, it)
			continue
		}
		p := &pending{it: it, msg: m}
		if it.event.Kind == KindRejected {
			dead := deadMessage(l.w.cfg.Names, it.msg.Subject(), l.w.cfg.FramesStream(), it.meta.Sequence.Stream, it.deliveries,
				it.msg.Headers(), it.msg.Data(), it.event.Code, it.event.Reason)
			if err := retry(ctx, brief(), func() error {
				within, cancel := l.w.epoch.Within(ctx)
				defer cancel()
				return publishDead(within, l.w.js, l.w.cfg.Names, dead)
			}); err != nil {
				it.failure = err
				failed = append(failed, it)
				continue
			}
		}
		if p.ack, err = l.w.js.PublishMsgAsync(m); err != nil {
			p.ack = nil // tried again below
		}
		wait = append(wait, p)
	}
	for _, p := range wait {
		if err := l.acked(ctx, p.ack, p.msg); err != nil {
			p.it.failure = fmt.Errorf("store event of frame %s: %w", p.it.frame.ID, err)
			failed = append(failed, p.it)
			continue
		}
		ok = append(ok, p.it)
	}
	return ok, failed
}

// acked waits until an asynchronous publish is stored, or publishes again: the
// broker knows a message that it has by its id.
func (l *line) acked(ctx context.Context, ack jetstream.PubAckFuture, m *nats.Msg) error {
	if ack != nil {
		within, cancel := l.w.epoch.Within(ctx)
		defer cancel()
		select {
		case <-ack.Ok():
			return nil
		case <-ack.Err():
		case <-within.Done():
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return retry(ctx, brief(), func() error {
		within, cancel := l.w.epoch.Within(ctx)
		defer cancel()
		step, cancel := context.WithTimeout(within, publishWait)
		defer cancel()
		again := nats.NewMsg(m.Subject)
		again.Header, again.Data = m.Header, m.Data
		_, err := l.w.js.PublishMsg(step, again)
		return err
	})
}

// announced says whether a frame that is here again has raised its event
// already, where the broker would not notice: the event ids it remembers have
// run out, or the release is another one now and the id with it.
func (l *line) announced(ctx context.Context, rel *loaded, it *item) (bool, error) {
	if it.deliveries <= 1 {
		return false, nil
	}
	if rel.pointer.PromotedAt.Before(it.meta.Timestamp) && time.Since(it.meta.Timestamp) < l.w.dupWindow()/2 {
		return false, nil
	}
	ctx, cancel := l.w.epoch.Within(ctx)
	defer cancel()
	seen := false
	start := it.meta.Timestamp
	err := scan(ctx, l.w.js, l.w.cfg.EventsStream(), jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{l.w.cfg.Events(it.frame.Detector, it.frame.Camera, KindAnomaly)},
		DeliverPolicy:  jetstream.DeliverByStartTimePolicy, OptStartTime: &start, HeadersOnly: true,
	}, func(m jetstream.Msg, _ *jetstream.MsgMetadata) error {
		if m.Headers().Get(ceSubject) == it.frame.Camera+"/"+it.frame.ID {
			seen = true
			return errStop
		}
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("look for an earlier event of frame %s: %w", it.frame.ID, err)
	}
	return seen, nil
}

// keepAll keeps the evidence of a batch, several pieces at a time: each takes
// the broker several writes to the disk.
func (l *line) keepAll(ctx context.Context, items []*item) {
	var all sync.WaitGroup
	slots := make(chan struct{}, 8)
	for _, it := range items {
		if !it.announce || it.event.Kind != KindAnomaly {
			continue
		}
		slots <- struct{}{}
		all.Go(func() {
			it.failure = l.keep(ctx, it)
			<-slots
		})
	}
	all.Wait()
}

// keep stores an anomaly's image as evidence, named by its content.
func (l *line) keep(ctx context.Context, it *item) error {
	l.locate(it)
	if conf, _, _, _ := l.state(); conf.NoEvidence {
		if it.place != nil {
			it.event.NoPictures = NoPicturesPrivacy
		}
		return nil
	}
	name := EvidenceObjects + digestOf(it.frame.Image)
	bucket := l.w.cfg.ArtifactsBucket()
	err := retry(ctx, brief(), func() error {
		within, cancel := l.w.epoch.Within(ctx)
		defer cancel()
		step, cancel := context.WithTimeout(within, 30*time.Second)
		defer cancel()
		if info, err := l.w.artifacts.GetInfo(step, name); err == nil && info.Size == uint64(len(it.frame.Image)) {
			return nil
		}
		_, err := l.w.artifacts.PutBytes(step, name, it.frame.Image)
		return err
	})
	if err != nil {
		return fmt.Errorf("keep the image of frame %s as evidence: %w", it.frame.ID, err)
	}
	it.event.Evidence = bucket + "/" + name
	return l.show(ctx, it)
}

// EvidenceObjects is what the names of evidence objects begin with; the rest is
// the image's SHA-256.
const EvidenceObjects = "evidence/"

// finish sends a scored frame's score and acknowledges it. The score goes out
// first on the same connection: a frame that the broker counts as done has its
// score sent.
func (l *line) finish(ctx context.Context, it *item) {
	if it.event.Kind == KindRejected {
		l.w.count.rejected.Add(1)
		l.log.Warn().Str("camera", it.frame.Camera).Str("frame", it.frame.ID).Str("code", it.event.Code).Str("reason", it.event.Reason).Msg("frame rejected")
	} else {
		l.w.count.scored.Add(1)
		if *it.event.Anomalous {
			l.w.count.anomalies.Add(1)
		}
		l.sendScore(it.event)
	}
	if it.frame.Object != "" && it.event.Kind != KindRejected {
		// The object may go only when the frame cannot come again.
		step, cancel := context.WithTimeout(ctx, publishWait)
		defer cancel()
		if err := it.msg.DoubleAck(step); err != nil {
			l.log.Debug().Err(err).Str("frame", it.frame.ID).Msg("acknowledgement not confirmed")
			return
		}
		if err := l.w.artifacts.Delete(step, it.frame.Object); err != nil {
			l.log.Warn().Err(err).Str("object", it.frame.Object).Msg("the frame's object stays until it is collected")
		}
		return
	}
	if err := it.msg.Ack(); err != nil {
		l.log.Debug().Err(err).Str("frame", it.frame.ID).Msg("acknowledgement failed: the frame comes again")
	}
}

// sendScore publishes on core NATS: whoever listens gets it.
func (l *line) sendScore(e *Event) {
	s := *e
	s.Evidence, s.Pictures, s.NoPictures, s.Source = "", "", "", redact.Text(s.Source)
	data, err := json.Marshal(s)
	if err != nil {
		return
	}
	m := nats.NewMsg(l.w.cfg.Scores(e.Detector, e.Camera))
	m.Data = data
	if e.Truth != "" {
		m.Header.Set(HeaderTruth, e.Truth)
	}
	if e.Trace != "" {
		m.Header.Set(HeaderTrace, e.Trace)
	}
	if err := l.w.nc.PublishMsg(m); err != nil {
		l.log.Debug().Err(err).Msg("score not sent")
	}
}

// giveBack has a frame delivered again later. A bare Nak would spend all its
// deliveries at once.
func (l *line) giveBack(it *item) {
	l.w.count.retried.Add(1)
	delay := l.w.cfg.RetryDelay << min(it.deliveries-1, 6)
	l.log.Warn().Err(it.failure).Str("camera", it.frame.Camera).Str("frame", it.frame.ID).Int("delivery", it.deliveries).
		Dur("again_in", min(delay, time.Minute)).Msg("frame not handled")
	if err := it.msg.NakWithDelay(min(delay, time.Minute)); err != nil {
		l.log.Debug().Err(err).Str("frame", it.frame.ID).Msg("the frame comes again when its time is up")
	}
}

// heartbeat tells the broker that messages are being worked on.
type heartbeat struct {
	mu   sync.Mutex
	open map[jetstream.Msg]struct{}
	end  chan struct{}
	wg   sync.WaitGroup
}

func newHeartbeat(every time.Duration, msgs []jetstream.Msg) *heartbeat {
	h := &heartbeat{open: make(map[jetstream.Msg]struct{}, len(msgs)), end: make(chan struct{})}
	for _, m := range msgs {
		h.open[m] = struct{}{}
	}
	h.wg.Go(func() {
		t := time.NewTicker(every)
		defer t.Stop()
		for {
			select {
			case <-h.end:
				return
			case <-t.C:
				h.mu.Lock()
				for m := range h.open {
					_ = m.InProgress()
				}
				h.mu.Unlock()
			}
		}
	})
	return h
}

// done says that a message has been answered.
func (h *heartbeat) done(m jetstream.Msg) {
	h.mu.Lock()
	delete(h.open, m)
	h.mu.Unlock()
}

func (h *heartbeat) stop() {
	close(h.end)
	h.wg.Wait()
}
