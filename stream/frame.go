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
	// HeaderSource says where the camera had the image from (a file's path, a
	// URL); it is copied into the event.
	HeaderSource = "Nearmiss-Source"
	// HeaderUnchanged is since when the camera has sent the same picture, RFC
	// 3339, where that is too long for a camera that works.
	HeaderUnchanged = "Nearmiss-Unchanged-Since"
	// HeaderTruth is the ground truth of a synthetic frame, JSON; it is copied
	// into the headers of the frame's score and event, and never looked at.
	HeaderTruth = "Nearmiss-Truth"
	// HeaderTrace is the W3C trace context, copied like the ground truth.
	HeaderTrace = "traceparent"
)

// FrameObjects is what the names of frames' objects begin with.
const FrameObjects = "frames/"

const maxFrameID = 256

// Frame is one encoded image and where and when it was taken.
type Frame struct {
	Detector, Camera string
	ID               string    // unique within detector and camera
	CapturedAt       time.Time // UTC
	Image            []byte    // the image file's bytes; empty when Object is set
	Object           string    // name of the object that holds the image, or empty
	Source           string    // where the camera had it from, or empty
	UnchangedSince   time.Time // when the camera's picture froze; zero: it has not
	Truth            string    // ground truth of a synthetic frame, JSON, or empty
	Trace            string    // W3C traceparent, or empty
}

// Validate says whether the frame can be published.
func (f Frame) Validate() error {
	if err := CheckToken("detector", f.Detector); err != nil {
		return err
	}
	if err := CheckToken("camera", f.Camera); err != nil {
		return err
	}
	if f.ID != "" && !validFrameID(f.ID) {
		return fmt.Errorf("frame id %q: use up to %d printable characters without spaces: %w", clip(f.ID), maxFrameID, ErrBadMessage)
	}
	if f.Object != "" && (!validObject(f.Object) || len(f.Image) > 0) {
		return fmt.Errorf("frame object %q: the name begins with %s and the payload is empty: %w", clip(f.Object), FrameObjects, ErrBadMessage)
	}
	return nil
}

// Message is the frame as it is published. The id is also the Nats-Msg-Id,
// made unique over cameras, so that publishing twice stores it once.
func (f Frame) Message(n Names) (*nats.Msg, error) {
	if err := f.Validate(); err != nil {
		return nil, err
	}
	m := nats.NewMsg(n.Frames(f.Detector, f.Camera))
	m.Data = f.Image
	set := func(k, v string) {
		if v != "" {
			m.Header.Set(k, v)
		}
	}
	if f.ID != "" {
		m.Header.Set(HeaderFrameID, f.ID)
		m.Header.Set(nats.MsgIdHdr, f.Detector+"/"+f.Camera+"/"+f.ID)
	}
	if !f.CapturedAt.IsZero() {
		m.Header.Set(HeaderCapturedAt, f.CapturedAt.UTC().Format(time.RFC3339Nano))
	}
	set(HeaderObject, f.Object)
	set(HeaderSource, headerSafe(f.Source))
	if !f.UnchangedSince.IsZero() {
		m.Header.Set(HeaderUnchanged, f.UnchangedSince.UTC().Format(time.RFC3339))
	}
	set(HeaderTruth, headerSafe(f.Truth))
	set(HeaderTrace, headerSafe(f.Trace))
	return m, nil
}

// ParseFrame reads a frame message. created is when its stream was created and
// meta the message's place in it: they make the id of a frame that has none,
// the same at every delivery. Errors are [ErrBadMessage]; the frame returned
// with them has an id and a time, for the report.
func ParseFrame(n Names, subject string, h nats.Header, payload []byte, meta *jetstream.MsgMetadata, created time.Time) (Frame, error) {
	f := Frame{CapturedAt: meta.Timestamp.UTC(), Image: payload}
	f.ID = "s" + strconv.FormatInt(created.UnixNano(), 36) + "-" + strconv.FormatUint(meta.Sequence.Stream, 10)

	var ok bool
	if f.Detector, f.Camera, ok = n.ParseFrames(subject); !ok {
		return f, fmt.Errorf("subject %q is not %s: %w", clip(subject), n.Frames("<detector>", "<camera>"), ErrBadMessage)
	}
	f.Source, f.Truth, f.Trace = h.Get(HeaderSource), h.Get(HeaderTruth), h.Get(HeaderTrace)

	if id := h.Get(HeaderFrameID); id != "" {
		if !validFrameID(id) {
			return f, fmt.Errorf("header %s %q: use up to %d printable characters without spaces: %w", HeaderFrameID, clip(id), maxFrameID, ErrBadMessage)
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
			return f, fmt.Errorf("header %s %q is not an RFC 3339 time: %w", HeaderCapturedAt, clip(s), ErrBadMessage)
		}
		f.CapturedAt = at.UTC()
	}
	if o := h.Get(HeaderObject); o != "" {
		if !validObject(o) {
			return f, fmt.Errorf("header %s %q: the name begins with %s: %w", HeaderObject, clip(o), FrameObjects, ErrBadMessage)
		}
		if len(payload) > 0 {
			return f, fmt.Errorf("header %s together with a payload of %d bytes: %w", HeaderObject, len(payload), ErrBadMessage)
		}
		f.Object = o
	}
	return f, nil
}

func validFrameID(id string) bool {
	if id == "" || len(id) > maxFrameID {
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

// headerSafe makes s one line, as NATS headers must be.
func headerSafe(s string) string {
	return strings.NewReplacer("\r", " ", "\n", " ").Replace(strings.TrimSpace(s))
}

// clip shortens what came from outside before it goes into an error.
func clip(s string) string {
	if len(s) > 80 {
		s = s[:80] + "…"
	}
	return s
}

// digestOf is the lower-case hexadecimal SHA-256 of b.
func digestOf(b []byte) string {
	d := sha256.Sum256(b)
	return hex.EncodeToString(d[:])
}
