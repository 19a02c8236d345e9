package stream

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/internal/redact"
	"github.com/nearmiss/nearmiss/stream/internal/object"
	"github.com/nearmiss/nearmiss/stream/internal/scan"
	"github.com/nearmiss/nearmiss/stream/internal/text"
	"github.com/nearmiss/nearmiss/stream/internal/wait"
)

// Headers of a normal, besides those of a frame.
const (
	// HeaderOrigin says how the image came to be a normal.
	HeaderOrigin = "Nearmiss-Origin"
	// HeaderCamera names the camera that took it, where it was a frame. With
	// HeaderCapturedAt it tells trainers which normals are neighbours in time.
	HeaderCamera = "Nearmiss-Camera"
)

// Normal is one image of a training set.
type Normal struct {
	Detector   string    `json:"detector"`
	ID         string    `json:"id"`     // adding an id again within an hour adds nothing
	Origin     string    `json:"origin"` // how it came to be one: a folder, a frame, an operator
	Source     string    `json:"source,omitempty"`
	Camera     string    `json:"camera,omitempty"` // that took it, where it was a frame
	CapturedAt time.Time `json:"captured_at,omitzero"`
	Anomaly    bool      `json:"anomaly,omitempty"` // a labelled anomaly: kept apart, never trained on, used by the gate
	Sequence   uint64    `json:"sequence"`          // its place in the stream; names it for removal
	StoredAt   time.Time `json:"stored_at"`
	Bytes      int       `json:"bytes"`
	// Problem says why there is no image: it names an object that is not there, for
	// instance. Such a normal is left out of everything, and can be removed.
	Problem string `json:"problem,omitempty"`
	Image   []byte `json:"-"`

	Once string `json:"-"` // what is added once within an hour, instead of the id
}

// Replayed says what [Normals.Replay] saw.
type Replayed struct {
	// Digest is the SHA-256 over the sequence numbers and the images' digests;
	// empty when no images were asked for.
	Digest string
	// Skipped have no image, each with its Problem.
	Skipped []Normal
}

// Normals are the training sets of all detectors.
type Normals struct {
	names Names
	js    jetstream.JetStream
}

func (s *Normals) subject(detector string, anomaly bool) string {
	if anomaly {
		return s.names.Anomalies(detector)
	}
	return s.names.Normals(detector)
}

// Add appends an image and returns its sequence when it is stored. Images above
// the broker's payload limit go into an object.
func (s *Normals) Add(ctx context.Context, n Normal) (sequence uint64, err error) {
	if err := CheckToken("detector", n.Detector); err != nil {
		return 0, err
	}
	if len(n.Image) == 0 {
		return 0, fmt.Errorf("add %s to the normals of %s: the image has no bytes: %w", text.Clip(n.ID), n.Detector, ErrBadMessage)
	}
	if n.ID == "" {
		n.ID = "sha256-" + DigestOf(n.Image)
	}
	m := nats.NewMsg(s.subject(n.Detector, n.Anomaly))
	m.Data = n.Image
	m.Header.Set(nats.MsgIdHdr, m.Subject+"/"+text.Line(cmp.Or(n.Once, n.ID)))
	m.Header.Set(HeaderFrameID, text.Line(n.ID))
	m.Header.Set(HeaderOrigin, text.Line(n.Origin))
	setHeader(m, HeaderSource, text.Line(redact.Text(n.Source)))
	setHeader(m, HeaderCamera, text.Line(n.Camera))
	if !n.CapturedAt.IsZero() {
		m.Header.Set(HeaderCapturedAt, n.CapturedAt.UTC().Format(time.RFC3339Nano))
	}
	if int64(m.Size()) > s.js.Conn().MaxPayload() {
		if err := s.putObject(ctx, n, m); err != nil {
			return 0, fmt.Errorf("add %s to the normals of %s: %w", text.Clip(n.ID), n.Detector, err)
		}
	}
	err = Retry(ctx, wait.Brief(), func() error {
		step, cancel := context.WithTimeout(ctx, PublishWait)
		defer cancel()
		ack, err := s.js.PublishMsg(step, m)
		if err == nil {
			sequence = ack.Sequence
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("add %s to the normals of %s: %w", text.Clip(n.ID), n.Detector, err)
	}
	return sequence, nil
}

// NormalObjects is what the names of large normals' objects begin with.
const NormalObjects = "normals/"

// normalObjects is what the names of the objects of one detector's begin with.
func normalObjects(detector string) string { return NormalObjects + detector + "/" }

// normalObject says whether an object can be a normal's of a detector: anybody
// can publish a normal that names any other.
func normalObject(detector, name string) bool {
	return strings.HasPrefix(name, normalObjects(detector))
}

// putObject stores a large normal's image as an object that m names.
func (s *Normals) putObject(ctx context.Context, n Normal, m *nats.Msg) error {
	store, err := s.js.ObjectStore(ctx, s.names.ImagesBucket())
	if err != nil {
		return err
	}
	step, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	// Two normals may share an image: each has an object of its own, so that
	// each can be removed.
	name := normalObjects(n.Detector) + DigestOf([]byte(m.Header.Get(nats.MsgIdHdr)))
	if _, err := store.PutBytes(step, name, n.Image); err != nil {
		return err
	}
	m.Header.Set(HeaderObject, name)
	m.Data = nil
	return nil
}

// Count says how many normals a detector has.
func (s *Normals) Count(ctx context.Context, detector string) (int, error) {
	n, err := s.count(ctx, s.names.Normals(detector))
	if err != nil {
		return 0, fmt.Errorf("count the normals of %s: %w", detector, err)
	}
	return n, nil
}

func (s *Normals) count(ctx context.Context, subject string) (int, error) {
	str, err := s.js.Stream(ctx, s.names.NormalsStream())
	if err != nil {
		return 0, err
	}
	info, err := str.Info(ctx, jetstream.WithSubjectFilter(subject))
	if err != nil {
		return 0, err
	}
	return int(info.State.Subjects[subject]), nil
}

// Replay calls f for every normal (or labelled anomaly) of a detector, oldest
// first, with its image. One whose image is not to be had is skipped: it costs
// itself only. With images false, f gets no images and only the headers travel.
func (s *Normals) Replay(ctx context.Context, detector string, anomalies, images bool, f func(Normal) error) (Replayed, error) {
	var out Replayed
	h := sha256.New()
	err := scan.Run(ctx, s.js, s.names.NormalsStream(), jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{s.subject(detector, anomalies)}, HeadersOnly: !images,
	}, func(m jetstream.Msg, meta *jetstream.MsgMetadata) error {
		n, err := s.parse(ctx, detector, m.Headers(), m.Data(), images)
		n.Detector, n.Anomaly = detector, anomalies
		n.Sequence, n.StoredAt = meta.Sequence.Stream, meta.Timestamp.UTC()
		if perm, ok := errors.AsType[*PermanentError](err); ok {
			n.Problem = perm.Error()
			out.Skipped = append(out.Skipped, n)
			return nil
		}
		if err != nil {
			return err
		}
		if images {
			fmt.Fprintf(h, "%d %s\n", n.Sequence, DigestOf(n.Image))
		}
		return f(n)
	})
	if err != nil {
		return out, fmt.Errorf("replay the normals of %s: %w", detector, err)
	}
	if images {
		out.Digest = hex.EncodeToString(h.Sum(nil))
	}
	return out, nil
}

// parse reads a normal's message. Errors that another try cannot mend are
// [PermanentError]s.
func (s *Normals) parse(ctx context.Context, detector string, h nats.Header, data []byte, images bool) (Normal, error) {
	n := Normal{ID: h.Get(HeaderFrameID), Origin: h.Get(HeaderOrigin), Source: redact.Text(h.Get(HeaderSource)), Camera: h.Get(HeaderCamera), Bytes: len(data), Image: data}
	if at, err := time.Parse(time.RFC3339, h.Get(HeaderCapturedAt)); err == nil {
		n.CapturedAt = at.UTC()
	}
	if size := h.Get("Nats-Msg-Size"); size != "" { // headers only
		n.Bytes, _ = strconv.Atoi(size)
	}
	o := h.Get(HeaderObject)
	switch {
	case !images:
		return n, nil
	case o != "" && !normalObject(detector, o):
		return n, Permanent(CodeBadHeader, fmt.Errorf("it names object %s, which is no normal's of %s: %w", text.Clip(o), detector, ErrBadMessage))
	case o != "":
		var err error
		if n.Image, err = fetchMoved(ctx, s.js, s.names, s.names.ImagesBucket(), o, maxStoredImage); err != nil {
			return n, err
		}
		n.Bytes = len(n.Image)
	}
	if len(n.Image) == 0 {
		return n, Permanent(CodeEmpty, fmt.Errorf("it has no bytes: %w", ErrBadMessage))
	}
	return n, nil
}

// raw is a normal's message, and the stream that it is in.
func (s *Normals) raw(ctx context.Context, detector string, sequence uint64) (jetstream.Stream, *jetstream.RawStreamMsg, error) {
	str, err := s.js.Stream(ctx, s.names.NormalsStream())
	if err != nil {
		return nil, nil, err
	}
	raw, err := str.GetMsg(ctx, sequence)
	if errors.Is(err, jetstream.ErrMsgNotFound) || err == nil && raw.Subject != s.names.Normals(detector) && raw.Subject != s.names.Anomalies(detector) {
		err = ErrNotFound
	}
	return str, raw, err
}

// Get returns one normal with its image, by its sequence.
func (s *Normals) Get(ctx context.Context, detector string, sequence uint64) (Normal, error) {
	_, raw, err := s.raw(ctx, detector, sequence)
	if err != nil {
		return Normal{}, fmt.Errorf("normal %d of %s: %w", sequence, detector, err)
	}
	n, err := s.parse(ctx, detector, raw.Header, raw.Data, true)
	n.Detector, n.Anomaly, n.Sequence, n.StoredAt = detector, raw.Subject == s.names.Anomalies(detector), sequence, raw.Time.UTC()
	return n, err
}

// Remove takes one image out of a detector's training set for good.
func (s *Normals) Remove(ctx context.Context, detector string, sequence uint64) error {
	str, raw, err := s.raw(ctx, detector, sequence)
	if err != nil {
		return fmt.Errorf("remove normal %d of %s: %w", sequence, detector, err)
	}
	if o := raw.Header.Get(HeaderObject); normalObject(detector, o) {
		for _, bucket := range []string{s.names.ImagesBucket(), s.names.ArtifactsBucket()} { // earlier versions had it there
			store, err := s.js.ObjectStore(ctx, bucket)
			if err == nil {
				err = store.Delete(ctx, o)
			}
			if err != nil && !errors.Is(err, jetstream.ErrObjectNotFound) {
				return fmt.Errorf("remove normal %d of %s: %w", sequence, detector, err)
			}
		}
	}
	if err := str.DeleteMsg(ctx, sequence); err != nil {
		return fmt.Errorf("remove normal %d of %s: %w", sequence, detector, err)
	}
	return nil
}

// List returns the normals (or labelled anomalies) of a detector without their
// images, oldest first. Those that have no image say so.
func (s *Normals) List(ctx context.Context, detector string, anomalies bool) ([]Normal, error) {
	var all []Normal
	err := scan.Run(ctx, s.js, s.names.NormalsStream(), jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{s.subject(detector, anomalies)}, HeadersOnly: true,
	}, func(m jetstream.Msg, meta *jetstream.MsgMetadata) error {
		n, err := s.parse(ctx, detector, m.Headers(), nil, false)
		if err != nil {
			return err
		}
		n.Detector, n.Anomaly = detector, anomalies
		n.Sequence, n.StoredAt = meta.Sequence.Stream, meta.Timestamp.UTC()
		if err := s.locate(ctx, m.Headers().Get(HeaderObject), &n); err != nil {
			return err
		}
		all = append(all, n)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the normals of %s: %w", detector, err)
	}
	return all, nil
}

// locate looks for the object of a large normal, without reading it.
func (s *Normals) locate(ctx context.Context, name string, n *Normal) error {
	switch {
	case name == "" && n.Bytes == 0:
		n.Problem = "it has no bytes"
		return nil
	case name == "":
		return nil
	case !normalObject(n.Detector, name):
		n.Problem = "it names object " + text.Clip(name) + ", which is no normal's of " + n.Detector
		return nil
	}
	info, err := object.Stat(ctx, s.js, s.names.ImagesBucket(), name, maxStoredImage)
	if errors.Is(err, object.ErrMissing) {
		if before, err2 := object.Stat(ctx, s.js, s.names.ArtifactsBucket(), name, maxStoredImage); !errors.Is(err2, object.ErrMissing) {
			info, err = before, err2
		}
	}
	switch {
	case err == nil:
		n.Bytes = int(info.Size)
	case object.Permanent(err):
		n.Problem = err.Error()
	default:
		return err
	}
	return nil
}

// FromFrames makes the next n frames of a detector normals, besides their being
// scored as ever. It calls progress with the count after each.
func (s *Normals) FromFrames(ctx context.Context, detector string, n int, progress func(int)) error {
	if err := CheckToken("detector", detector); err != nil {
		return err
	}
	// A publish to a stream is seen by plain subscribers too.
	sub, err := s.js.Conn().SubscribeSync(s.names.Frames(detector, "*"))
	if err != nil {
		return fmt.Errorf("take normals from the frames of %s: %w", detector, err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	for done := 0; done < n; {
		m, err := sub.NextMsgWithContext(ctx)
		if errors.Is(err, nats.ErrSlowConsumer) {
			continue // frames come faster than they are stored; any will do
		}
		if err != nil {
			return fmt.Errorf("take normals from the frames of %s: %w", detector, err)
		}
		meta := &jetstream.MsgMetadata{Timestamp: time.Now()}
		f, err := ParseFrame(s.names, m.Subject, m.Header, m.Data, meta, time.Now())
		if err != nil || len(f.Image) == 0 && f.Object == "" {
			continue // the worker rejects it
		}
		if f.Object != "" {
			f.Image, err = fetchMoved(ctx, s.js, s.names, s.names.LargeBucket(), f.Object, maxStoredImage)
			if _, gone := errors.AsType[*PermanentError](err); gone {
				continue // scored, and gone
			}
			if err != nil {
				return fmt.Errorf("take normals from the frames of %s: %w", detector, err)
			}
		}
		if _, err := s.Add(ctx, Normal{
			Detector: detector, ID: f.Camera + "/" + f.ID, Origin: "taken from the frames", Source: f.Source, Camera: f.Camera, CapturedAt: f.CapturedAt, Image: f.Image,
		}); err != nil {
			return err
		}
		done++
		if progress != nil {
			progress(done)
		}
	}
	return nil
}

// ImageExtension is what an image file of these bytes is called, by their
// beginning: ".jpg", ".png" and so on; empty: it is no image that is known.
func ImageExtension(b []byte) string {
	for _, k := range []struct{ magic, ext string }{
		{"\xff\xd8\xff", ".jpg"}, {"\x89PNG", ".png"}, {"BM", ".bmp"}, {"II*\x00", ".tif"}, {"MM\x00*", ".tif"}, {"RIFF", ".webp"},
	} {
		if bytes.HasPrefix(b, []byte(k.magic)) {
			return k.ext
		}
	}
	return ""
}
