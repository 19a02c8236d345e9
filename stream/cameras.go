package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream/internal/kv"
)

// Codes of camera events.
const (
	CameraSilent = "silent" // no frame has come for as long as the detector says
	CameraBack   = "back"   // frames come again
)

// CameraStatus is what is known of a camera.
type CameraStatus struct {
	Detector string `json:"detector"`
	Camera   string `json:"camera"`
	// LastFrame is when the broker stored the last frame that a worker has taken,
	// to about ten seconds.
	LastFrame time.Time `json:"last_frame"`
	Silent    bool      `json:"silent,omitempty"` // an event says so
	// UnchangedSince is since when the camera has sent the same picture, where that
	// is too long for a camera that works; see [HeaderUnchanged].
	UnchangedSince time.Time `json:"unchanged_since,omitzero"`
	// Unreported is set while that event may not be stored yet: whoever reads the
	// record stores it first.
	Unreported bool `json:"untold,omitempty"`
}

// cameraKeys is what the keys of cameras in the work bucket begin with.
const cameraKeys = "camera."

func CameraKey(detector, camera string) string { return cameraKeys + detector + "." + camera }

// OpenCameras reads the cameras' records in the work bucket, which has many others: of each
// frame that was tried again there is a mark.
func OpenCameras(js jetstream.JetStream, bucket jetstream.KeyValue) kv.Store[CameraStatus] {
	return kv.Store[CameraStatus]{Bucket: bucket, JS: js, Keys: cameraKeys + ">", Decode: func(key string, value []byte) (CameraStatus, error) {
		var c CameraStatus
		if err := kv.Object(value, &c, false); err != nil {
			return c, err
		}
		if !ValidToken(c.Detector) || !ValidToken(c.Camera) || key != CameraKey(c.Detector, c.Camera) {
			return c, errors.New("it is of another camera")
		}
		return c, nil
	}}
}

// Cameras returns what is known of the cameras that have sent frames within the
// last week, by detector and name.
func (in *Installation) Cameras(ctx context.Context) ([]CameraStatus, error) {
	bucket, err := in.bucket(ctx, in.names.WorkBucket())
	if err != nil {
		return nil, err
	}
	all, _, err := OpenCameras(in.js, bucket).List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list cameras: %w", err)
	}
	var out []CameraStatus
	for _, e := range all {
		out = append(out, e.Value)
	}
	return out, nil
}

// forgetCameras removes the records of a detector's cameras.
func (in *Installation) forgetCameras(ctx context.Context, detector string) error {
	s, err := in.js.Stream(ctx, "KV_"+in.names.WorkBucket())
	if err != nil {
		return err
	}
	return s.Purge(ctx, jetstream.WithPurgeSubject("$KV."+in.names.WorkBucket()+"."+CameraKey(detector, "*")))
}
