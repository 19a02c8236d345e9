package console

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/time/rate"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/sink"
)

const (
	tileSide      = 320              // pixels of a camera's picture
	passThrough   = 256 << 10        // bytes of a picture that browsers get as it is
	frameWait     = 3 * time.Second  // for a camera's next frame
	frameAge      = time.Second      // a camera's picture is fetched once a second, however many people look
	shrinksPerSec = 10               // a picture of two megapixels costs 40 ms
	maxImage      = 64 << 20         // bytes of an image that is read
	evidenceKept  = 32               // archives in memory
	evidenceBytes = 64 << 20         // of them together
	pictureAge    = 30 * time.Second // of a small picture in memory
)

// gallery shows pictures, and keeps what pages ask for again and again.
type gallery struct {
	backend  *backend
	tasks    *tasks
	shrink   func(image []byte, side int) ([]byte, error)
	links    *sink.Links
	shrinks  *rate.Limiter
	frames   flight[[]byte] // by camera and width
	small    flight[[]byte] // by image and width
	evidence evidenceCache
}

// picture is an answer with an image that anybody may have sent. Its type is what
// its first bytes say, and nothing in it may act.
func picture(b []byte, cache string) (any, error) {
	kind := pictureType(b)
	if kind == "" {
		return nil, problem{http.StatusUnsupportedMediaType, "unsupported", "no browser shows this image"}
	}
	return respond(func(w http.ResponseWriter, r *http.Request) error {
		h := w.Header()
		h.Set("Content-Type", kind)
		h.Set("Content-Security-Policy", "sandbox; default-src 'none'")
		h.Set("Cache-Control", cache)
		h.Set("Content-Length", strconv.Itoa(len(b)))
		_, _ = w.Write(b)
		return nil
	}), nil
}

// Of pictures: events and normals do not change, cameras do.
const (
	forGood = "private, max-age=86400, immutable"
	forNow  = "no-store"
)

// pictureType is the media type of images that browsers show; empty for all others.
func pictureType(b []byte) string {
	switch {
	case bytes.HasPrefix(b, []byte("\xff\xd8\xff")):
		return "image/jpeg"
	case bytes.HasPrefix(b, []byte("\x89PNG\r\n\x1a\n")):
		return "image/png"
	case len(b) > 12 && string(b[:4]) == "RIFF" && string(b[8:12]) == "WEBP":
		return "image/webp"
	}
	return ""
}

// fit makes an image such as a page takes: of at most side pixels, unless it is
// small as it is. side 0: as it is, where browsers can show it.
func (g *gallery) fit(ctx context.Context, image []byte, side int) ([]byte, error) {
	shown := pictureType(image) != ""
	if shown && (side == 0 || side >= tileSide && len(image) <= passThrough) {
		return image, nil
	}
	side = cmp.Or(side, 4096)
	if err := g.shrinks.Wait(ctx); err != nil {
		return nil, problem{http.StatusServiceUnavailable, "busy", "too many pictures are asked for at once"}
	}
	b, err := g.shrink(image, side)
	if err != nil {
		return nil, problem{http.StatusUnprocessableEntity, "unsupported", "the image cannot be shown: " + err.Error()}
	}
	return b, nil
}

// frame shows what a camera sees: the next frame that it sends. A publish to a
// stream reaches plain subscribers, too.
func (g *gallery) frame(q *request) (any, error) {
	v := q.params("w", "t")
	side := v.number("w", 32, 1920, tileSide)
	if v.err != nil {
		return nil, v.err
	}
	d, cam := q.PathValue("detector"), q.PathValue("camera")
	b, err := g.frames.get(g.tasks.base, fmt.Sprint(d, "/", cam, "/", side), frameAge, func(ctx context.Context) ([]byte, error) {
		image, err := g.nextFrame(ctx, d, cam)
		if err != nil {
			return nil, err
		}
		return g.fit(ctx, image, side)
	})
	if err != nil {
		return nil, err
	}
	return picture(b, forNow)
}

func (g *gallery) nextFrame(ctx context.Context, detector, camera string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, frameWait)
	defer cancel()
	sub, err := g.backend.nc.SubscribeSync(g.backend.Frames(detector, camera))
	if err != nil {
		return nil, err
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := sub.AutoUnsubscribe(1); err != nil {
		return nil, err
	}
	m, err := sub.NextMsgWithContext(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, missing("camera %s of %s has sent no frame within %v", camera, detector, frameWait)
	}
	if err != nil {
		return nil, err
	}
	f, err := stream.ParseFrame(g.backend.Names, m.Subject, m.Header, m.Data, &jetstream.MsgMetadata{Timestamp: time.Now()}, time.Now())
	if err != nil {
		return nil, err
	}
	return g.backend.in.FrameImage(ctx, f)
}

// evidenceOf returns an event's archive.
func (g *gallery) evidenceOf(ctx context.Context, e stream.Event) (stream.Evidence, error) {
	key := e.Detector + "/" + e.ID
	if v, ok := g.evidence.get(key); ok {
		return v, nil
	}
	v, err := g.backend.in.GetEvidence(ctx, e.Detector, e.ID)
	if err == nil {
		g.evidence.put(key, v)
	}
	return v, err
}

// evidenceCache keeps the archives that were read last.
type evidenceCache struct {
	mu    sync.Mutex
	all   map[string]stream.Evidence
	order []string
	bytes int
}

func (c *evidenceCache) get(key string) (stream.Evidence, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.all[key]
	return v, ok
}

func (c *evidenceCache) put(key string, v stream.Evidence) {
	size := sizeOf(v)
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.all[key]; ok || size > evidenceBytes/4 {
		return
	}
	if c.all == nil {
		c.all = map[string]stream.Evidence{}
	}
	c.all[key], c.order, c.bytes = v, append(c.order, key), c.bytes+size
	for len(c.order) > evidenceKept || c.bytes > evidenceBytes {
		c.bytes -= sizeOf(c.all[c.order[0]])
		delete(c.all, c.order[0])
		c.order = c.order[1:]
	}
}

func sizeOf(e stream.Evidence) int {
	n := 0
	for _, p := range e.Pictures {
		n += len(p.Data)
	}
	return n
}

func (g *gallery) eventPicture(q *request) (any, error) {
	e, err := g.backend.stored(q.ctx, q)
	if err != nil {
		return nil, err
	}
	return g.pictureOf(q, e)
}

// pictureOf is the picture of an event that the path names.
func (g *gallery) pictureOf(q *request, e stream.Event) (any, error) {
	v, err := g.evidenceOf(q.ctx, e)
	if err != nil {
		return nil, err
	}
	for _, p := range v.Pictures {
		if p.Name == q.PathValue("name") {
			return picture(p.Data, forGood)
		}
	}
	return nil, missing("event %s has no picture %s", clean(e.ID), clean(q.PathValue("name")))
}

// linkedPicture is a picture for who has a link to it ([sink.Links]) and need not
// sign in. Nothing is looked for before the signature is seen to be good, so that
// nobody finds out what there is.
func (g *gallery) linkedPicture(q *request) (any, error) {
	v := q.params("e", "s")
	if v.err != nil {
		return nil, v.err
	}
	d, event, name := q.PathValue("detector"), q.PathValue("event"), q.PathValue("name")
	switch err := g.links.Verify(d, event, name, v.Values); {
	case errors.Is(err, sink.ErrLinkExpired):
		return nil, problem{http.StatusGone, "expired", err.Error()}
	case errors.Is(err, sink.ErrBadLink), errors.Is(err, sink.ErrNoLinks):
		return nil, problem{http.StatusForbidden, "forbidden", sink.ErrBadLink.Error()}
	case err != nil:
		return nil, err
	}
	a, err := g.pictureOf(q, stream.Event{Detector: d, ID: event})
	if show, ok := a.(respond); ok {
		// Chats and mail programs show it in pages of their own.
		return respond(func(w http.ResponseWriter, r *http.Request) error {
			w.Header().Set("Cross-Origin-Resource-Policy", "cross-origin")
			return show(w, r)
		}), nil
	}
	return a, err
}

// sized answers with an image that does not change, with as many pixels as the
// request wants, and without that as it is, where browsers can show it. Small ones,
// of which a page shows hundreds, are kept for a while under key.
func (g *gallery) sized(q *request, key string, find func(context.Context) ([]byte, error)) (any, error) {
	v := q.params("w")
	side := v.number("w", 32, 4096, 0)
	if v.err != nil {
		return nil, v.err
	}
	made := func(ctx context.Context) ([]byte, error) {
		b, err := find(ctx)
		if err != nil {
			return nil, err
		}
		return g.fit(ctx, b, side)
	}
	var b []byte
	var err error
	if side > 0 && side <= tileSide {
		b, err = g.small.get(g.tasks.base, fmt.Sprint(key, "/", side), pictureAge, made)
	} else {
		b, err = made(q.ctx)
	}
	if err != nil {
		return nil, err
	}
	return picture(b, forGood)
}

// eventImage is the frame that raised the event.
func (g *gallery) eventImage(q *request) (any, error) {
	return g.sized(q, "event/"+q.PathValue("sequence"), func(ctx context.Context) ([]byte, error) {
		e, err := g.backend.stored(ctx, q)
		if err != nil {
			return nil, err
		}
		return g.backend.in.EventImage(ctx, e)
	})
}

// getNormal shows a normal or labelled anomaly.
func (g *gallery) getNormal(q *request) (any, error) {
	d := q.PathValue("detector")
	n, err := q.sequence()
	if err != nil {
		return nil, err
	}
	return g.sized(q, fmt.Sprint("normal/", d, "/", n), func(ctx context.Context) ([]byte, error) {
		x, err := g.backend.normals.Get(ctx, d, n)
		return x.Image, err
	})
}
