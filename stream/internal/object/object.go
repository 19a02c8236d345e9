// Package object reads objects of a store that anybody may have written: what
// their metadata says is bounded and checked before it is believed.
package object

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream/internal/scan"
	"github.com/nearmiss/nearmiss/stream/internal/text"
)

var (
	// ErrMissing is returned for an object that is not there, or not whole.
	ErrMissing = errors.New("object is missing")
	// ErrTooLarge is returned for an object with more bytes than are wanted.
	ErrTooLarge = errors.New("object is too large")
	// ErrBad is returned for an object that is not what its metadata says.
	ErrBad = errors.New("object is damaged")
)

// Chunked is what an object store is to be given: it makes one chunk of every Read,
// however little that returns, so a Chunked fills the buffer it is given.
type Chunked struct{ io.Reader }

func (c Chunked) Read(p []byte) (int, error) {
	n, err := io.ReadFull(c.Reader, p)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = io.EOF
	}
	return n, err
}

// The stream of a bucket, and the subjects in it of an object's chunks and of its
// metadata, as every client's object store names them (NATS ADR-20).

func StreamOf(bucket string) string       { return "OBJ_" + bucket }
func ChunksOf(bucket, nuid string) string { return "$O." + bucket + ".C." + nuid }
func MetaOf(bucket, name string) string {
	return "$O." + bucket + ".M." + base64.URLEncoding.EncodeToString([]byte(name))
}

// Stored counts the chunks of an object that the bucket's stream s has.
func Stored(ctx context.Context, s jetstream.Stream, bucket string, info *jetstream.ObjectInfo) (uint64, error) {
	subject := ChunksOf(bucket, info.NUID)
	si, err := s.Info(ctx, jetstream.WithSubjectFilter(subject))
	if err != nil {
		return 0, err
	}
	return si.State.Subjects[subject], nil
}

// tries bounds how often an object that is replaced while it is read is read again.
const tries = 3

// inFlight is how many chunks of an object, of 128 to 256 KiB each, are on their
// way at a time.
const inFlight = 64

// Read reads a whole object of at most most bytes into memory. No more is
// allocated than there are bytes, whatever the metadata says, and links are not
// followed. Errors other than those of this package are worth another try.
func Read(ctx context.Context, js jetstream.JetStream, bucket, name string, most int64) ([]byte, error) {
	store, err := open(ctx, js, bucket)
	if err != nil {
		return nil, err
	}
	seen := ""
	for range tries {
		info, err := checked(ctx, js, store, bucket, name, most)
		if err != nil {
			return nil, err
		}
		if info.NUID == seen {
			break // the same object is as damaged as it was
		}
		seen = info.NUID
		b, err := read(ctx, js, bucket, info)
		if err == nil {
			return b, nil
		}
		if !errors.Is(err, ErrBad) {
			return nil, fmt.Errorf("read object %s: %w", text.Clip(name), err)
		}
	}
	return nil, fmt.Errorf("object %s does not have the size and digest that its metadata say: %w", text.Clip(name), ErrBad)
}

// Permanent says whether err is the object's own fault: another try would not
// help.
func Permanent(err error) bool {
	return errors.Is(err, ErrMissing) || errors.Is(err, ErrTooLarge) || errors.Is(err, ErrBad)
}

// Stat returns an object's metadata when it could be read by [Read], without
// reading it.
func Stat(ctx context.Context, js jetstream.JetStream, bucket, name string, most int64) (*jetstream.ObjectInfo, error) {
	store, err := open(ctx, js, bucket)
	if err != nil {
		return nil, err
	}
	return checked(ctx, js, store, bucket, name, most)
}

func open(ctx context.Context, js jetstream.JetStream, bucket string) (jetstream.ObjectStore, error) {
	store, err := js.ObjectStore(ctx, bucket)
	if err != nil {
		return nil, fmt.Errorf("open object store %s: %w", bucket, err)
	}
	return store, nil
}

// checked returns an object's metadata when they can be true.
func checked(ctx context.Context, js jetstream.JetStream, store jetstream.ObjectStore, bucket, name string, most int64) (*jetstream.ObjectInfo, error) {
	info, err := store.GetInfo(ctx, name)
	switch {
	case errors.Is(err, jetstream.ErrObjectNotFound):
		return nil, fmt.Errorf("object %s is not in %s: %w", text.Clip(name), bucket, ErrMissing)
	case errors.Is(err, jetstream.ErrBadObjectMeta):
		return nil, fmt.Errorf("object %s: its metadata cannot be understood: %w", text.Clip(name), ErrBad)
	case err != nil:
		return nil, fmt.Errorf("find object %s: %w", text.Clip(name), err)
	case info.Opts != nil && info.Opts.Link != nil:
		return nil, fmt.Errorf("object %s is a link, which is not followed: %w", text.Clip(name), ErrBad)
	case info.Name != name || !token(info.NUID):
		return nil, fmt.Errorf("object %s: its metadata are of something else: %w", text.Clip(name), ErrBad)
	case info.Size > uint64(most):
		return nil, fmt.Errorf("object %s has %d bytes, at most %d are read: %w", text.Clip(name), info.Size, most, ErrTooLarge)
	}
	if _, err := jetstream.DecodeObjectDigest(info.Digest); err != nil && info.Size > 0 {
		return nil, fmt.Errorf("object %s: its metadata have no digest: %w", text.Clip(name), ErrBad)
	}
	// Reading chunks that are not there would wait for the deadline.
	s, err := js.Stream(ctx, StreamOf(bucket))
	if err != nil {
		return nil, fmt.Errorf("find object %s: %w", text.Clip(name), err)
	}
	have, err := Stored(ctx, s, bucket, info)
	if err != nil {
		return nil, fmt.Errorf("find object %s: %w", text.Clip(name), err)
	}
	if info.Size > 0 && have != uint64(info.Chunks) {
		return nil, fmt.Errorf("object %s has %d chunks of %d: %w", text.Clip(name), have, info.Chunks, ErrMissing)
	}
	return info, nil
}

func read(ctx context.Context, js jetstream.JetStream, bucket string, info *jetstream.ObjectInfo) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second+time.Duration(info.Size>>21)*time.Second)
	defer cancel()
	var buf bytes.Buffer
	err := Copy(ctx, js, bucket, info, &buf)
	return buf.Bytes(), err
}

// Copy writes the bytes of an object to w. What is not as long as info says, or of
// another digest, is [ErrBad]; then part of it may have been written.
//
// The client library's own Get writes into a pipe, and leaves a goroutine there for
// ever when ctx ends while it subscribes (nats.go 1.55, obs.Get).
func Copy(ctx context.Context, js jetstream.JetStream, bucket string, info *jetstream.ObjectInfo, w io.Writer) error {
	var size uint64
	sum := sha256.New()
	if info.Size > 0 {
		err := scan.Run(ctx, js, StreamOf(bucket), jetstream.OrderedConsumerConfig{
			FilterSubjects: []string{ChunksOf(bucket, info.NUID)},
		}, func(m jetstream.Msg, _ *jetstream.MsgMetadata) error {
			b := m.Data()
			if size += uint64(len(b)); size > info.Size {
				return ErrBad
			}
			sum.Write(b)
			_, err := w.Write(b)
			return err
		}, jetstream.PullMaxMessages(inFlight))
		if err != nil {
			return err
		}
	}
	if size != info.Size || size > 0 && jetstream.GetObjectDigestValue(sum) != info.Digest {
		return ErrBad
	}
	return nil
}

// List returns the metadata of a bucket's objects, in the order in which they
// were stored, and how many there are that cannot be understood. (The client
// library's own List waits in vain where the last one cannot.)
func List(ctx context.Context, js jetstream.JetStream, bucket string) (all []*jetstream.ObjectInfo, bad int, err error) {
	metas, listed := MetaOf(bucket, "")+">", map[string]bool{}
	add := func(subject string, data []byte, at time.Time) {
		listed[subject] = true
		var info jetstream.ObjectInfo
		switch err := json.Unmarshal(data, &info); {
		case err != nil || info.Name == "":
			bad++
		case !info.Deleted:
			info.ModTime = at.UTC()
			all = append(all, &info)
		}
	}
	err = scan.Run(ctx, js, StreamOf(bucket), jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{metas}, DeliverPolicy: jetstream.DeliverLastPerSubjectPolicy,
	}, func(m jetstream.Msg, meta *jetstream.MsgMetadata) error {
		add(m.Subject(), m.Data(), meta.Timestamp)
		return nil
	})
	if err == nil {
		err = others(ctx, js, bucket, metas, listed, add)
	}
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		err = fmt.Errorf("object store %s: %w", bucket, jetstream.ErrBucketNotFound)
	}
	if err != nil {
		return nil, bad, fmt.Errorf("list the objects of %s: %w", bucket, err)
	}
	slices.SortStableFunc(all, func(a, b *jetstream.ObjectInfo) int { return a.ModTime.Compare(b.ModTime) })
	return all, bad, nil
}

// others adds those that are not listed: a scan of last messages may end before the last of
// them, with nats-server 2.15 when another one changes meanwhile.
func others(ctx context.Context, js jetstream.JetStream, bucket, metas string, listed map[string]bool, add func(subject string, data []byte, at time.Time)) error {
	s, err := js.Stream(ctx, StreamOf(bucket))
	if err != nil {
		return err
	}
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(metas))
	if err != nil {
		return err
	}
	for subject := range info.State.Subjects {
		if listed[subject] {
			continue
		}
		m, err := s.GetLastMsgForSubject(ctx, subject)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue // removed meanwhile
		}
		if err != nil {
			return err
		}
		add(subject, m.Data, m.Time)
	}
	return nil
}

// Orphans removes the chunks of uploads that never became objects, the youngest
// of them older than young, and returns how many messages they were. dry only counts.
func Orphans(ctx context.Context, js jetstream.JetStream, bucket string, young time.Time, dry bool) (int, error) {
	s, err := js.Stream(ctx, StreamOf(bucket))
	if err != nil {
		return 0, fmt.Errorf("find unfinished uploads in %s: %w", bucket, err)
	}
	prefix := ChunksOf(bucket, "")
	si, err := s.Info(ctx, jetstream.WithSubjectFilter(prefix+">"))
	if err != nil {
		return 0, fmt.Errorf("find unfinished uploads in %s: %w", bucket, err)
	}
	if len(si.State.Subjects) == 0 {
		return 0, nil
	}
	// Objects that became whole after the chunks were counted are in this list.
	infos, _, err := List(ctx, js, bucket)
	if err != nil {
		return 0, err
	}
	whole := map[string]bool{}
	for _, i := range infos {
		whole[i.NUID] = true
	}
	removed := 0
	for subject, n := range si.State.Subjects {
		if whole[strings.TrimPrefix(subject, prefix)] {
			continue
		}
		last, err := s.GetLastMsgForSubject(ctx, subject)
		if err != nil || !last.Time.Before(young) {
			continue // gone meanwhile, or still being uploaded
		}
		removed += int(n)
		if !dry {
			if err := s.Purge(ctx, jetstream.WithPurgeSubject(subject)); err != nil {
				return removed, fmt.Errorf("remove an unfinished upload from %s: %w", bucket, err)
			}
		}
	}
	return removed, nil
}

// token says whether s can be one token of a subject, without wild cards.
func token(s string) bool {
	return s != "" && len(s) <= 64 && !strings.ContainsAny(s, " .*>\t\r\n\x00")
}
