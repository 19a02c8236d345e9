package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream/internal/object"
	"github.com/nearmiss/nearmiss/stream/registry"
)

// Collected is what a collection removed.
type Collected struct {
	registry.Collected
	Evidence    int `json:"evidence"`    // images of anomalies that are past their retention
	Pictures    int `json:"pictures"`    // of anomalies, past the retention of their detector or beyond what they may take
	Frames      int `json:"frames"`      // large frames that were left behind
	Checkpoints int `json:"checkpoints"` // of jobs that have ended, and what else was kept of jobs without a record
	Jobs        int `json:"jobs"`        // records of jobs that ended long ago, beyond the newest
}

// Collect removes from the object stores what nobody can need any more: releases
// (see [registry.Registry.Collect]), evidence past the retention of its
// detector, and what cameras and trainers that died left behind.
func (in *Installation) Collect(ctx context.Context, o registry.CollectOptions) (Collected, error) {
	var out Collected
	reg, err := in.Registry(ctx)
	if err != nil {
		return out, err
	}
	if out.Collected, err = reg.Collect(ctx, o); err != nil {
		return out, err
	}
	retention, err := in.evidenceRetention(ctx)
	if err != nil {
		return out, err
	}
	if out.Pictures, err = in.purgeAllEvidence(ctx, o.DryRun); err != nil {
		return out, fmt.Errorf("collect: %w", err)
	}
	jobs, err := in.Jobs(ctx)
	if err != nil {
		return out, err
	}
	grace := cmp.Or(o.Grace, time.Hour)
	if out.Jobs, err = jobs.prune(ctx, time.Now().Add(-max(grace, 0)), o.DryRun); err != nil {
		return out, fmt.Errorf("collect: %w", err)
	}
	// Earlier versions kept everything among the artifacts.
	for _, bucket := range []string{in.names.ArtifactsBucket(), in.names.ImagesBucket()} {
		if err := out.collect(ctx, in.js, bucket, jobs, retention, grace, o.DryRun); err != nil {
			return out, err
		}
	}
	chunks, err := object.Orphans(ctx, in.js, in.names.ImagesBucket(), time.Now().Add(-max(grace, 0)), o.DryRun)
	out.Chunks += chunks
	if err != nil {
		return out, fmt.Errorf("collect: %w", err)
	}
	return out, nil
}

// collect removes what nobody can need any more from one bucket, but releases.
func (c *Collected) collect(ctx context.Context, js jetstream.JetStream, bucket string, jobs *Jobs, retention, grace time.Duration, dry bool) error {
	store, err := js.ObjectStore(ctx, bucket)
	if err != nil {
		return fmt.Errorf("collect: %w", err)
	}
	infos, _, err := object.List(ctx, js, bucket)
	if err != nil {
		return fmt.Errorf("collect: %w", err)
	}
	for _, i := range infos {
		age := time.Since(i.ModTime)
		var count *int
		switch {
		case strings.HasPrefix(i.Name, EvidenceObjects) && age > retention:
			count = &c.Evidence
		case strings.HasPrefix(i.Name, FrameObjects) && age > 7*24*time.Hour:
			count = &c.Frames
		case strings.HasPrefix(i.Name, CheckpointObjects) && age > grace:
			job, _, _ := strings.Cut(strings.TrimPrefix(i.Name, CheckpointObjects), "/")
			j, err := jobs.Get(ctx, job)
			if err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrBadMessage) {
				return err
			}
			if err == nil && !j.Finished() && j.Checkpoint == i.Name {
				continue
			}
			count = &c.Checkpoints
		case strings.HasPrefix(i.Name, JobObjects) && age > grace:
			job, _, _ := strings.Cut(strings.TrimPrefix(i.Name, JobObjects), "/")
			if _, err := jobs.Get(ctx, job); !errors.Is(err, ErrNotFound) {
				continue
			}
			count = &c.Checkpoints
		default:
			continue
		}
		*count++
		if !dry {
			if err := store.Delete(ctx, i.Name); err != nil && !errors.Is(err, jetstream.ErrObjectNotFound) {
				return fmt.Errorf("collect %s: %w", i.Name, err)
			}
		}
	}
	return nil
}

// evidenceRetention is the longest retention of any detector: evidence is named
// by its content, and two detectors may share a piece.
func (in *Installation) evidenceRetention(ctx context.Context) (time.Duration, error) {
	s, err := in.Detectors(ctx)
	if err != nil {
		return 0, err
	}
	all, unread, err := s.Check(ctx)
	if err != nil {
		return 0, err
	}
	longest := time.Duration(0)
	if slices.ContainsFunc(unread, func(u Unreadable) bool { return u.Using == 0 }) {
		longest = math.MaxInt64 // nobody knows how long that detector's evidence is wanted
	}
	for _, d := range all {
		longest = max(longest, time.Duration(d.WithDefaults().Retention))
	}
	if len(all) == 0 {
		longest = time.Duration(Detector{}.WithDefaults().Retention)
	}
	return longest, nil
}

// dropKey removes an entry of the bucket whose key cannot be a detector's name:
// nothing else belongs to it.
func (in *Installation) dropKey(ctx context.Context, key string) error {
	s, err := in.Detectors(ctx)
	if err != nil {
		return err
	}
	_, unread, err := s.Check(ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(unread, func(u Unreadable) bool { return u.Key == key }) || strings.ContainsAny(key, "*> \t\r\n") {
		return CheckToken("detector", key)
	}
	str, err := in.js.Stream(ctx, "KV_"+in.names.DetectorsBucket())
	if err == nil {
		err = str.Purge(ctx, jetstream.WithPurgeSubject("$KV."+in.names.DetectorsBucket()+"."+key))
	}
	if err != nil {
		return fmt.Errorf("delete entry %q of bucket %s: %w", key, in.names.DetectorsBucket(), err)
	}
	return nil
}

// DeleteDetector removes a detector: its configuration, its pointers and its
// waiting frames, and cancels its jobs. With everything set, its training set and
// labelled anomalies go too. Its releases go with the next collection, its events with their age.
func (in *Installation) DeleteDetector(ctx context.Context, name string, everything bool) error {
	if !ValidToken(name) {
		return in.dropKey(ctx, name)
	}
	s, err := in.Stores(ctx)
	if err != nil {
		return err
	}
	if err := s.Detectors.Delete(ctx, name); err != nil {
		return err
	}
	if err := s.Jobs.abandonAll(ctx, name); err != nil {
		return fmt.Errorf("delete detector %s: %w", name, err)
	}
	if err := s.Registry.Forget(ctx, name); err != nil {
		return err
	}
	if err := in.js.DeleteConsumer(ctx, in.names.FramesStream(), FramesConsumer(name)); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return fmt.Errorf("delete detector %s: %w", name, err)
	}
	if err := in.forgetCameras(ctx, name); err != nil {
		return fmt.Errorf("delete detector %s: %w", name, err)
	}
	purge := map[string]string{in.names.Frames(name, "*"): in.names.FramesStream(), in.names.Train(name): in.names.TrainingStream()}
	if everything {
		purge[in.names.Normals(name)], purge[in.names.Anomalies(name)] = in.names.NormalsStream(), in.names.NormalsStream()
	}
	for subject, stream := range purge {
		str, err := in.js.Stream(ctx, stream)
		if err != nil {
			return fmt.Errorf("delete detector %s: %w", name, err)
		}
		if err := str.Purge(ctx, jetstream.WithPurgeSubject(subject)); err != nil {
			return fmt.Errorf("delete detector %s: drop %s: %w", name, subject, err)
		}
	}
	if !everything {
		return nil
	}
	if _, _, err := in.PurgeEvidence(ctx, name, 0, 0); err != nil {
		return fmt.Errorf("delete detector %s: %w", name, err)
	}
	for _, bucket := range []string{in.names.ImagesBucket(), in.names.ArtifactsBucket()} {
		if err := in.dropNormals(ctx, bucket, name); err != nil {
			return fmt.Errorf("delete detector %s: %w", name, err)
		}
	}
	return nil
}

// dropNormals removes the objects of a detector's large normals from a bucket.
func (in *Installation) dropNormals(ctx context.Context, bucket, detector string) error {
	store, err := in.js.ObjectStore(ctx, bucket)
	if err != nil {
		return err
	}
	infos, _, err := object.List(ctx, in.js, bucket)
	if err != nil {
		return err
	}
	for _, i := range infos {
		if normalObject(detector, i.Name) {
			if err := store.Delete(ctx, i.Name); err != nil && !errors.Is(err, jetstream.ErrObjectNotFound) {
				return err
			}
		}
	}
	return nil
}
