package stream

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream/internal/text"
)

// Headers of a frame. All are optional: any client that publishes an image
// file's bytes is a camera.
const (
	// HeaderFrameID names the frame, up to 256 printable bytes without spaces,
	// unique within its camera. Without it the Nats-Msg-Id is used, and without
	// that the frame's place in the stream.
	HeaderFrameID = "Nearmiss-Frame-Id"
	// HeaderCapturedAt is when the image was taken, RFC 3339. Without it the
	// time at which the broker stored the frame is used.
	HeaderCapturedAt = "Nearmiss-Captured-At"
	// HeaderObject names the object that holds the image, for images above the
	// broker's payload limit; the payload is then empty. The name begins with
	// "frames/".
	HeaderObject = "Nearmiss-Object"
	// HeaderObjectDigest is the SHA-256 of that object's bytes, 64 hexadecimal
	// digits. With it nobody else's image can take the place of the frame's.
	HeaderObjectDigest = "Nearmiss-Object-Digest"
	// HeaderSource says where the camera had the image from (a file's path, a
	// URL); it is copied into the event.
	HeaderSource = "Nearmiss-Source"
	// HeaderUnchanged is since when the camera has sent the same picture, RFC
	// 3339, where that is too long for a camera that works.
	HeaderUnchanged = "Nearmiss-Unchanged-Since"
	// HeaderTruth is the ground truth of a synthetic frame, JSON; it is copied
	// into the headers of the frame's score and event, and never read.
	HeaderTruth = "Nearmiss-Truth"
	// HeaderTrace is the W3C trace context, copied like the ground truth.
	HeaderTrace = "traceparent"
)

// FrameObjects is what the names of frames' objects begin with.
const FrameObjects = "frames/"

const (
	MaxFrameID = 256
	maxHeader  = 4096 // bytes of a header that is copied into events
)

// Frame is one encoded image and where and when it was taken.
type Frame struct {
	Detector, Camera string
	ID               string    // unique within detector and camera, together with the image
	CapturedAt       time.Time // UTC
	Image            []byte    // the image file's bytes; empty when Object is set
	Object           string    // name of the object that holds the image, or empty
	ObjectDigest     string    // SHA-256 of that object's bytes, hexadecimal, where the camera has said it
	Source           string    // where the camera had it from, or empty
	UnchangedSince   time.Time // when the camera's picture froze; zero: it has not
	Truth            string    // ground truth of a synthetic frame, JSON, or empty
	Trace            string    // W3C traceparent, or empty
	Digest           string    // SHA-256 of the image, hexadecimal; set by ParseFrame
}

// Key is what makes a frame this frame: who took it, its id and its image. An id
// that comes again with another image is another frame, and nobody can make
// another camera's frames out.
func (f Frame) Key() string { return EventID(f, "") }

// Validate says whether the frame can be published.
func (f Frame) Validate() error {
	if err := CheckToken("detector", f.Detector); err != nil {
		return err
	}
	if err := CheckToken("camera", f.Camera); err != nil {
		return err
	}
	if f.ID != "" && !validFrameID(f.ID) {
		return fmt.Errorf("frame id %q: use up to %d printable characters without spaces: %w", text.Clip(f.ID), MaxFrameID, ErrBadMessage)
	}
	if f.Object != "" && (!validObject(f.Object) || len(f.Image) > 0) {
		return fmt.Errorf("frame object %q: the name begins with %s and the payload is empty: %w", text.Clip(f.Object), FrameObjects, ErrBadMessage)
	}
	return nil
}

// Message is the frame as it is published. Publishing it twice has it scored, and
// its alarm raised, once.
func (f Frame) Message(n Names) (*nats.Msg, error) {
	if err := f.Validate(); err != nil {
		return nil, err
	}
	m := nats.NewMsg(n.Frames(f.Detector, f.Camera))
	m.Data = f.Image
	if f.ID != "" {
		m.Header.Set(HeaderFrameID, f.ID)
		f.Digest = DigestOf(append([]byte(f.Object), f.Image...))
		m.Header.Set(nats.MsgIdHdr, f.Key())
	}
	if !f.CapturedAt.IsZero() {
		m.Header.Set(HeaderCapturedAt, f.CapturedAt.UTC().Format(time.RFC3339Nano))
	}
	setHeader(m, HeaderObject, f.Object)
	setHeader(m, HeaderObjectDigest, f.ObjectDigest)
	setHeader(m, HeaderSource, text.Line(f.Source))
	if !f.UnchangedSince.IsZero() {
		m.Header.Set(HeaderUnchanged, f.UnchangedSince.UTC().Format(time.RFC3339))
	}
	setHeader(m, HeaderTruth, text.Line(f.Truth))
	setHeader(m, HeaderTrace, text.Line(f.Trace))
	return m, nil
}

// setHeader sets a header that has a value.
func setHeader(m *nats.Msg, k, v string) {
	if v != "" {
		m.Header.Set(k, v)
	}
}

// ParseFrame reads a frame message. created is when its stream was created and
// meta the message's place in it: they make the id of a frame that has none,
// the same at every delivery. Errors are [ErrBadMessage]; the frame returned
// with them has an id and a time, for the report.
func ParseFrame(n Names, subject string, h nats.Header, payload []byte, meta *jetstream.MsgMetadata, created time.Time) (Frame, error) {
	f := Frame{CapturedAt: meta.Timestamp.UTC(), Image: payload}
	f.ID = "s" + strconv.FormatInt(created.UnixNano(), 36) + "-" + strconv.FormatUint(meta.Sequence.Stream, 10)

	f.Digest = DigestOf(payload)

	var ok bool
	if f.Detector, f.Camera, ok = n.ParseFrames(subject); !ok {
		if rest, found := strings.CutPrefix(subject, n.Root()+".frames."); found {
			detector, camera, _ := strings.Cut(rest, ".")
			f.Detector, f.Camera = SafeToken(detector), SafeToken(camera)
		}
		return f, fmt.Errorf("subject %q is not %s, with names of 1 to %d letters, digits, - and _: %w", text.Clip(subject), n.Frames("<detector>", "<camera>"), maxToken, ErrBadMessage)
	}
	for _, c := range []struct {
		name string
		to   *string
	}{{HeaderSource, &f.Source}, {HeaderTruth, &f.Truth}, {HeaderTrace, &f.Trace}} {
		v := h.Get(c.name)
		if len(v) > maxHeader {
			return f, fmt.Errorf("header %s has %d bytes, at most %d are read: %w", c.name, len(v), maxHeader, ErrBadMessage)
		}
		*c.to = text.Line(v)
	}

	if id := h.Get(HeaderFrameID); id != "" {
		if !validFrameID(id) {
			return f, fmt.Errorf("header %s %q: use up to %d printable characters without spaces: %w", HeaderFrameID, text.Clip(id), MaxFrameID, ErrBadMessage)
		}
		f.ID = id
	} else if id := h.Get(nats.MsgIdHdr); validFrameID(id) {
		f.ID = id
	}
	if at, err := time.Parse(time.RFC3339, h.Get(HeaderUnchanged)); err == nil {
		f.UnchangedSince = at.UTC()
	}
	if s := h.Get(HeaderCapturedAt); s != "" {
		at, err := time.Parse(time.RFC3339, s)
		if err != nil || at.Year() < 1900 || at.Year() > 9999 {
			return f, fmt.Errorf("header %s %q is not an RFC 3339 time: %w", HeaderCapturedAt, text.Clip(s), ErrBadMessage)
		}
		f.CapturedAt = at.UTC()
	}
	if o := h.Get(HeaderObject); o != "" {
		if !validObject(o) {
			return f, fmt.Errorf("header %s %q: the name begins with %s: %w", HeaderObject, text.Clip(o), FrameObjects, ErrBadMessage)
		}
		if len(payload) > 0 {
			return f, fmt.Errorf("header %s together with a payload of %d bytes: %w", HeaderObject, len(payload), ErrBadMessage)
		}
		if owner, name := objectOwner(o), f.Detector+"/"+f.Camera; owner != "" && owner != name {
			return f, fmt.Errorf("header %s %q: the object is camera %s's: %w", HeaderObject, text.Clip(o), owner, ErrBadMessage)
		}
		if d := h.Get(HeaderObjectDigest); d != "" {
			if !isDigest(d) {
				return f, fmt.Errorf("header %s %q is not a SHA-256 in hexadecimal: %w", HeaderObjectDigest, text.Clip(d), ErrBadMessage)
			}
			f.ObjectDigest = strings.ToLower(d)
		}
		f.Object = o
		f.Digest = DigestOf([]byte(o)) // until the image is there
	}
	return f, nil
}

// objectOwner is "<detector>/<camera>" of an object named
// frames/<detector>/<camera>/<anything>, which only that camera's frames may
// name; other objects are nobody's.
func objectOwner(object string) string {
	parts := strings.SplitN(strings.TrimPrefix(object, FrameObjects), "/", 3)
	if len(parts) < 3 || !ValidToken(parts[0]) || !ValidToken(parts[1]) {
		return ""
	}
	return parts[0] + "/" + parts[1]
}

func validFrameID(id string) bool {
	if id == "" || len(id) > MaxFrameID {
		return false
	}
	for i := range len(id) {
		if id[i] <= ' ' || id[i] > '~' {
			return false
		}
	}
	return true
}

func validObject(name string) bool {
	return strings.HasPrefix(name, FrameObjects) && len(name) > len(FrameObjects) && validFrameID(name)
}

// isDigest says whether s is a SHA-256 in hexadecimal.
func isDigest(s string) bool {
	_, err := hex.DecodeString(s)
	return err == nil && len(s) == 2*sha256.Size
}

// DigestOf is the lower-case hexadecimal SHA-256 of b.
func DigestOf(b []byte) string {
	d := sha256.Sum256(b)
	return hex.EncodeToString(d[:])
}
