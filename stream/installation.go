package stream

import (
	"context"
	"fmt"
	"sync"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream/internal/kv"
	"github.com/nearmiss/nearmiss/stream/registry"
)

// Installation is one Nearmiss in a broker: what [Ensure] made there, by one
// prefix. Its parts are opened when they are asked for, so that a process needs
// rights only for those that it uses.
//
// Everybody may read through it. While the broker takes over users that have changed
// nobody answers for a moment, which all its reads wait for. What people change goes through package control: a
// [Client] asks for it.
type Installation struct {
	names Names
	js    jetstream.JetStream
	cache string // folder of releases

	mu        sync.Mutex
	detectors *Detectors
	jobs      *Jobs
	registry  *registry.Registry
}

// NewInstallation is the handle of what lies in a broker under names.
func NewInstallation(js jetstream.JetStream, n Names) *Installation {
	return &Installation{names: n, js: patient{js}}
}

// NewCachingInstallation is NewInstallation for those that load releases into a folder.
func NewCachingInstallation(js jetstream.JetStream, n Names, folder string) *Installation {
	return &Installation{names: n, js: patient{js}, cache: folder}
}

// opened returns what has been opened already, or opens it.
func opened[T any](in *Installation, at **T, open func() (*T, error)) (*T, error) {
	in.mu.Lock()
	have := *at
	in.mu.Unlock()
	if have != nil {
		return have, nil
	}
	made, err := open()
	if err != nil {
		return nil, err
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	*at = made
	return made, nil
}

func (in *Installation) bucket(ctx context.Context, name string) (jetstream.KeyValue, error) {
	b, err := in.js.KeyValue(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", name, err)
	}
	return b, nil
}

// Names are the names of its subjects, streams and buckets.
func (in *Installation) Names() Names { return in.names }

// Detectors are the configurations.
func (in *Installation) Detectors(ctx context.Context) (*Detectors, error) {
	return opened(in, &in.detectors, func() (*Detectors, error) {
		bucket, err := in.bucket(ctx, in.names.DetectorsBucket())
		if err != nil {
			return nil, err
		}
		return &Detectors{kv: kv.Store[Detector]{Bucket: bucket, Decode: decodeDetector}}, nil
	})
}

// Jobs are the records of training jobs.
func (in *Installation) Jobs(ctx context.Context) (*Jobs, error) {
	return opened(in, &in.jobs, func() (*Jobs, error) {
		bucket, err := in.bucket(ctx, in.names.JobsBucket())
		if err != nil {
			return nil, err
		}
		return &Jobs{names: in.names, js: in.js, kv: kv.Store[Job]{Bucket: bucket, Decode: decodeJob}}, nil
	})
}

// Registry are the releases, and which of them is active.
func (in *Installation) Registry(ctx context.Context) (*registry.Registry, error) {
	return opened(in, &in.registry, func() (*registry.Registry, error) {
		return registry.Open(ctx, in.js, registry.Config{
			ActiveBucket: in.names.ActiveBucket(), ArtifactsBucket: in.names.ArtifactsBucket(), CacheDir: in.cache,
		})
	})
}

// Stores are what most changes need.
type Stores struct {
	Detectors *Detectors
	Jobs      *Jobs
	Registry  *registry.Registry
}

// Stores opens all three, for those that have the rights for each.
func (in *Installation) Stores(ctx context.Context) (s Stores, err error) {
	if s.Detectors, err = in.Detectors(ctx); err != nil {
		return s, err
	}
	if s.Jobs, err = in.Jobs(ctx); err != nil {
		return s, err
	}
	s.Registry, err = in.Registry(ctx)
	return s, err
}

// Fetch brings a release into a folder below dir, and returns that.
func (in *Installation) Fetch(ctx context.Context, digest, dir string) (string, error) {
	r, err := (&Installation{names: in.names, js: in.js, cache: dir}).Registry(ctx)
	if err != nil {
		return "", err
	}
	return r.Get(ctx, digest)
}

// Normals are the training sets.
func (in *Installation) Normals() *Normals { return &Normals{names: in.names, js: in.js} }
