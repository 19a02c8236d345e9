// Package archive keeps what happened in a folder or an S3 bucket: for each
// event a folder of its own, with the event, the frame and the pictures.
//
//	<detector>/2026/11/28/<camera>/20261128T120000Z_<event>/event.json
//	                                                        frame.jpg
//	                                                        overlay.jpg, …
//
// event.json is written last: where it is, everything is. Names follow from the
// event, so that another try writes the same files.
package archive

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/sink"
)

// Kind is the name of this kind of sink.
const Kind = "archive"

// Events are the kinds of events that such a sink gets unless it names some.
var Events = []string{stream.KindAnomaly}

// Config is the kind's configuration.
type Config struct {
	// URL is a folder (/mnt/archive or file:///mnt/archive), or s3://BUCKET[/PREFIX].
	URL string `json:"url"`
	// MinFree is how many bytes a folder's file system must have left. Default
	// 1 GiB.
	MinFree uint64 `json:"min_free,omitempty"`
	// NoFrame leaves the frame's image out.
	NoFrame bool `json:"no_frame,omitempty"`

	// Of a bucket: the server, HOST[:PORT], default s3.amazonaws.com; its region;
	// the access key, whose secret key is the sink's secret; HTTP instead of
	// HTTPS; who may have signed the server's certificate; and whether the server
	// encrypts what it keeps (SSE-S3).
	Endpoint  string `json:"endpoint,omitempty"`
	Region    string `json:"region,omitempty"`
	AccessKey string `json:"access_key,omitempty"`
	Plain     bool   `json:"plain,omitempty"`
	CAFile    string `json:"ca_file,omitempty"`
	Encrypt   bool   `json:"encrypt,omitempty"`
}

// place is where files are kept.
type place interface {
	// put keeps data under a key; when it returns, the data are safe.
	put(ctx context.Context, key, contentType string, data []byte) error
	// note adds a line to the index of a day, where the place has one.
	note(day time.Time, line []byte) error
	close()
}

// Source reads what belongs to an event.
type Source struct {
	Pictures sink.Pictures
	// Image is the frame's image as it came.
	Image func(ctx context.Context, e stream.Event) ([]byte, error)
}

// Opener makes the opener of archives; from may be empty.
func Opener(names stream.Names, from Source) func(sink.Sink, string) (sink.Sender, error) {
	return func(s sink.Sink, secret string) (sink.Sender, error) {
		var c Config
		if err := s.Decode(&c); err != nil {
			return nil, fmt.Errorf("archive: %w", err)
		}
		u, err := url.Parse(c.URL)
		if err != nil || u.User != nil {
			return nil, errors.New("archive: the address is not a folder, and not s3://BUCKET")
		}
		out := &sender{names: names, cfg: c, from: from}
		switch {
		case u.Scheme == "s3":
			out.place, err = newBucket(c, u.Host, strings.Trim(u.Path, "/"), secret)
		case (u.Scheme == "" || u.Scheme == "file") && u.Host == "" && path.IsAbs(u.Path):
			out.place = &folder{root: filepath.Clean(u.Path), minFree: cmp.Or(c.MinFree, 1<<30)}
		default:
			return nil, fmt.Errorf("archive: address %q: use an absolute path or s3://BUCKET", c.URL)
		}
		if err != nil {
			return nil, fmt.Errorf("archive: %w", err)
		}
		return out, nil
	}
}

type sender struct {
	names stream.Names
	cfg   Config
	from  Source
	place place
}

// key is where an event's files are kept. The names in it are tokens, the id is
// made one.
func key(n sink.Notice) string {
	e := n.Event
	at := e.CapturedAt
	if at.IsZero() {
		at = e.ScoredAt
	}
	at = at.UTC()
	id := strings.Map(func(r rune) rune {
		if strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", r) {
			return r
		}
		return '-'
	}, n.ID)
	return path.Join(e.Detector, at.Format("2006/01/02"), e.Camera, at.Format("20060102T150405Z")+"_"+id[:min(len(id), 128)])
}

// maxPictures bounds how many pictures of an event are kept.
const maxPictures = 100

// Send keeps one notice.
func (s *sender) Send(ctx context.Context, n sink.Notice) error {
	if !stream.ValidToken(n.Event.Detector) || !stream.ValidToken(n.Event.Camera) {
		return &sink.Permanent{Err: errors.New("archive: the event has no detector or camera")}
	}
	at := key(n)
	if n.Test {
		return s.place.put(ctx, "test/event.json", "application/json", []byte("{}\n"))
	}
	event, err := json.MarshalIndent(n.Cloud(s.names), "", "  ")
	if err != nil {
		return &sink.Permanent{Err: fmt.Errorf("archive: %w", err)}
	}
	files, err := s.files(ctx, n.Event)
	if err != nil {
		return err
	}
	for _, f := range append(files, stream.Picture{Name: "event.json", Data: append(event, '\n')}) {
		if err := s.place.put(ctx, path.Join(at, f.Name), contentType(f.Name), f.Data); err != nil {
			return fmt.Errorf("archive: %w", err)
		}
	}
	line, err := json.Marshal(map[string]any{"id": n.ID, "path": at, "kind": n.Event.Kind, "detector": n.Event.Detector, "camera": n.Event.Camera, "at": n.Event.ScoredAt})
	if err == nil {
		err = s.place.note(n.Event.ScoredAt.UTC(), append(line, '\n'))
	}
	if err != nil {
		return fmt.Errorf("archive: %w", err)
	}
	return nil
}

// files are the frame and the pictures. What is not kept any more is left out;
// what cannot be read now is tried again.
func (s *sender) files(ctx context.Context, e stream.Event) ([]stream.Picture, error) {
	var all []stream.Picture
	if s.from.Image != nil && e.Evidence != "" && !s.cfg.NoFrame {
		b, err := s.from.Image(ctx, e)
		if err != nil && !gone(err) {
			return nil, fmt.Errorf("archive: the frame of event %s: %w", e.ID, err)
		}
		if err == nil {
			all = append(all, stream.Picture{Name: "frame." + extension(b), Data: b})
		}
	}
	if s.from.Pictures != nil && e.Pictures != "" {
		pictures, err := s.from.Pictures(ctx, e)
		if err != nil && !gone(err) {
			return nil, fmt.Errorf("archive: the pictures of event %s: %w", e.ID, err)
		}
		for _, p := range pictures[:min(len(pictures), maxPictures)] {
			if p.Name != "event.json" && !strings.HasPrefix(p.Name, "frame.") {
				all = append(all, p)
			}
		}
	}
	return all, nil
}

// gone says whether another try will not find it either.
func gone(err error) bool {
	_, permanent := errors.AsType[*stream.PermanentError](err)
	return permanent || errors.Is(err, stream.ErrNotFound)
}

func (s *sender) Close() error {
	s.place.close()
	return nil
}

// extension is that of an image file, by its first bytes.
func extension(b []byte) string {
	for ext, magic := range map[string]string{"jpg": "\xff\xd8\xff", "png": "\x89PNG", "bmp": "BM", "tif": "II*\x00", "tiff": "MM\x00*"} {
		if bytes.HasPrefix(b, []byte(magic)) {
			return ext
		}
	}
	if len(b) > 12 && string(b[:4]) == "RIFF" && string(b[8:12]) == "WEBP" {
		return "webp"
	}
	return "bin"
}

func contentType(name string) string {
	switch path.Ext(name) {
	case ".json":
		return "application/json"
	case ".jpg":
		return "image/jpeg"
	case ".png":
		return "image/png"
	}
	return "application/octet-stream"
}
