package stream

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/nearmiss/nearmiss/stream/internal/object"
)

// Large makes of a frame whose image is too large for one message an object of
// the bucket of large frames: the messages to publish, in this order and each
// stored before the next is sent, and then the frame that names it. chunk bounds
// the bytes of a message's payload.
//
// They are what the client library's object store would publish (NATS ADR-20).
// It would ask for more before and after: rights that a camera does not have, and
// that do not reach across accounts.
func (f Frame) Large(n Names, chunk int) (parts []*nats.Msg, small Frame, err error) {
	id := f.ID
	if id == "" {
		id = nuid.Next()
	}
	small = f
	small.Object, small.ObjectDigest, small.Image = FrameObjects+f.Detector+"/"+f.Camera+"/"+id, DigestOf(f.Image), nil
	if err := small.Validate(); err != nil {
		return nil, f, err
	}
	if chunk < 1 {
		return nil, f, fmt.Errorf("frame %s: chunks of %d bytes", f.ID, chunk)
	}
	bucket, upload := n.LargeBucket(), nuid.Next()
	part := func(subject string, data []byte) *nats.Msg {
		m := nats.NewMsg(subject)
		m.Data = data
		m.Header.Set(nats.MsgIdHdr, upload+"-"+strconv.Itoa(len(parts)))
		parts = append(parts, m)
		return m
	}
	for rest := f.Image; len(rest) > 0; {
		size := min(chunk, len(rest))
		part(object.ChunksOf(bucket, upload), rest[:size])
		rest = rest[size:]
	}
	info := jetstream.ObjectInfo{
		ObjectMeta: jetstream.ObjectMeta{Name: small.Object, Opts: &jetstream.ObjectMetaOptions{ChunkSize: uint32(chunk)}},
		Bucket:     bucket, NUID: upload, Size: uint64(len(f.Image)), Chunks: uint32(len(parts)),
	}
	sum := sha256.New()
	sum.Write(f.Image)
	info.Digest = jetstream.GetObjectDigestValue(sum)
	data, err := json.Marshal(info)
	if err != nil {
		return nil, f, fmt.Errorf("frame %s: %w", f.ID, err)
	}
	m := part(object.MetaOf(bucket, small.Object), data)
	m.Header.Set(jetstream.MsgRollup, jetstream.MsgRollupSubject)
	return parts, small, nil
}
