package camera

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/imagefolder"
	"github.com/nearmiss/nearmiss/stream/internal/wait"
)

// Orders of a folder's images.
const (
	OrderName   = "name"   // by path
	OrderTime   = "time"   // by modification time, then path
	OrderRandom = "random" // shuffled with the seed, anew in every round
)

// Folder is a source that reads an image folder, its sub-folders included, or
// one file. Files that do not look like images by name, and hidden ones, are
// skipped; whether the others are images is the worker's to say. Links are
// followed. A file that is gone when its turn comes is passed over.
type Folder struct {
	Dir   string
	Loop  bool    // begin again after the last image
	FPS   float64 // images a second; 0: as fast as they are taken
	Order string  // one of the orders; default by name
	Seed  uint64  // of the random order
	Log   zerolog.Logger

	files []string
	next  int
	round uint64
	pace  pace
}

// Next implements [Source].
func (s *Folder) Next(ctx context.Context) (Image, error) {
	if s.files == nil {
		if err := s.list(); err != nil {
			return Image{}, err
		}
	}
	for missing := 0; ; {
		if s.next == len(s.files) {
			if !s.Loop {
				return Image{}, io.EOF
			}
			s.next = 0
			s.round++
			s.arrange()
		}
		if err := s.pace.wait(ctx, s.FPS); err != nil {
			return Image{}, err
		}
		path := s.files[s.next]
		s.next++
		data, err := os.ReadFile(path)
		if err != nil {
			if missing++; missing >= len(s.files) {
				return Image{}, fmt.Errorf("read images: none of %d is there any more: %w", len(s.files), err)
			}
			s.Log.Warn().Err(err).Msg("an image cannot be read: passed over")
			continue
		}
		name, err := filepath.Rel(s.Dir, path)
		if err != nil || name == "." {
			name = path
		}
		return Image{Data: data, CapturedAt: time.Now(), Name: filepath.ToSlash(name)}, nil
	}
}

func (s *Folder) list() error {
	switch s.Order {
	case "", OrderName, OrderTime, OrderRandom:
	default:
		return fmt.Errorf("order %q of the images in %s: use %s, %s or %s", s.Order, s.Dir, OrderName, OrderTime, OrderRandom)
	}
	if s.FPS < 0 {
		return fmt.Errorf("%g frames a second from %s: use 0 or more", s.FPS, s.Dir)
	}
	l, err := imagefolder.List(s.Dir)
	if err != nil {
		return fmt.Errorf("list the images in %s: %w", s.Dir, err)
	}
	for _, note := range l.Notes() {
		s.Log.Warn().Str("folder", s.Dir).Msg(note)
	}
	if s.files = l.Files; len(s.files) == 0 {
		return fmt.Errorf("list the images in %s: there are none (%s): %w", s.Dir, imagefolder.Extensions(), errNoImages)
	}
	s.arrange()
	return nil
}

var errNoImages = errors.New("no images")

func (s *Folder) arrange() {
	switch s.Order {
	case OrderRandom:
		slices.Sort(s.files)
		r := rand.New(rand.NewPCG(s.Seed, s.round))
		r.Shuffle(len(s.files), func(i, j int) { s.files[i], s.files[j] = s.files[j], s.files[i] })
	case OrderTime:
		at := map[string]time.Time{}
		for _, f := range s.files {
			if fi, err := os.Stat(f); err == nil {
				at[f] = fi.ModTime()
			}
		}
		slices.SortFunc(s.files, func(a, b string) int {
			if c := at[a].Compare(at[b]); c != 0 {
				return c
			}
			return strings.Compare(a, b)
		})
	default:
		slices.Sort(s.files)
	}
}

// pace lets something happen so many times a second, on average: what was late
// is made up for, up to a second of it.
type pace struct{ due time.Time }

func (p *pace) wait(ctx context.Context, fps float64) error {
	if fps <= 0 {
		return ctx.Err()
	}
	now := time.Now()
	if p.due.IsZero() || now.Sub(p.due) > time.Second {
		p.due = now
	}
	late := p.due.Sub(now)
	p.due = p.due.Add(time.Duration(float64(time.Second) / fps))
	wait.Pause(ctx, late)
	return ctx.Err()
}
