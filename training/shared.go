package training

import (
	"cmp"
	"errors"
	"slices"

	"github.com/nearmiss/nearmiss/training/evaluate"
)

const (
	// mostShared bounds what Shared keeps of images, in bytes: the full score of a ViT-Ti
	// takes 600 kB of each, nearly all of it patches. The garbage collector lets a process
	// grow to about twice of what is kept.
	mostShared = 512 << 20
	// mostViews bounds the models that it keeps although nobody uses them.
	mostViews = 8
)

// Shared keeps what a frozen backbone says of images, for several evaluations of
// it that differ in how they score: each image is embedded once, as far as half a GiB of
// memory goes. What was used longest ago makes room for what is new, and what finds
// none is embedded again. It must be closed after them. The zero value is ready. It
// is for one goroutine.
type Shared struct {
	models []*cachedModel // used longest ago first
	most   int            // bytes of images; 0: mostShared
}

// cachedModel is a model and what it gave of images.
type cachedModel struct {
	b        *scoreBuilder
	data     Data // how images are read
	features *evaluate.Features
	users    int
	shared   bool   // a Shared closes it
	key      string // there
}

// Close unloads the models.
func (s *Shared) Close() error {
	var errs []error
	for _, k := range s.models {
		errs = append(errs, k.b.Close())
	}
	s.models = nil
	return errors.Join(errs...)
}

// get is what is kept by a key; open makes it where nothing is.
func (s *Shared) get(key string, open func() (*cachedModel, error)) (*cachedModel, error) {
	if i := slices.IndexFunc(s.models, func(k *cachedModel) bool { return k.key == key }); i >= 0 {
		k := s.models[i]
		k.users++
		s.models = append(slices.Delete(s.models, i, i+1), k)
		return k, nil
	}
	for len(s.models) >= mostViews {
		dropped, err := s.drop()
		if err != nil {
			return nil, err
		}
		if !dropped {
			break
		}
	}
	k, err := open()
	if err != nil {
		return nil, err
	}
	k.key, k.shared = key, true
	k.features.Room = s.room
	s.models = append(s.models, k)
	return k, nil
}

// room says whether so many bytes more may be kept, and drops others for it.
func (s *Shared) room(more int) (bool, error) {
	most := cmp.Or(s.most, mostShared)
	for {
		all := more
		for _, k := range s.models {
			all += k.features.Size()
		}
		if all <= most {
			return true, nil
		}
		if dropped, err := s.drop(); !dropped || err != nil {
			return false, err
		}
	}
}

// drop gives up what was used longest ago and is not in use; false: all is.
func (s *Shared) drop() (bool, error) {
	i := slices.IndexFunc(s.models, func(k *cachedModel) bool { return k.users == 0 })
	if i < 0 {
		return false, nil
	}
	k := s.models[i]
	s.models = slices.Delete(s.models, i, i+1)
	return true, k.b.Close()
}

// Close says that a user is done with it. The last one unloads the model, where it is
// not shared.
func (k *cachedModel) Close() error {
	if k.users--; k.users > 0 || k.shared {
		return nil
	}
	return k.b.Close()
}
