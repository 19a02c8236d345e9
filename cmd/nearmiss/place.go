package main

import (
	"context"
	"fmt"
	"sync"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/heatmap"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/release"
	"github.com/nearmiss/nearmiss/stream"
)

// What evidence is made of.
const (
	maxRegions    = 16  // that an event names
	overlaySide   = 768 // longer side of the frame with its heat, pixels
	thumbnailSide = 256 // longer side of the frame alone, pixels
	evidenceJPEG  = 85  // quality
)

// place is where one image is strange, as the worker sees it.
type place struct {
	s     scorer
	score inference.Score

	once    sync.Once
	heat    *heatmap.Map
	regions []heatmap.Region
	err     error
}

// locate computes map and regions when they are first asked for.
func (p *place) locate() error {
	p.once.Do(func() {
		if p.heat, p.err = p.s.d.Heatmap(p.score); p.err == nil {
			p.regions = p.heat.Find(maxRegions)
		}
	})
	return p.err
}

func (p *place) Regions() []stream.Spot {
	if p.locate() != nil {
		return nil
	}
	return spots(p.regions)
}

func spots(regions []heatmap.Region) []stream.Spot {
	out := make([]stream.Spot, len(regions))
	for i, r := range regions {
		out[i] = stream.Spot(r)
	}
	return out
}

// whereText names the first of the places where an image is strange, for people.
func whereText(all []stream.Spot) string {
	if len(all) == 0 {
		return ""
	}
	r := all[0]
	text := fmt.Sprintf("  at %d,%d %d×%d heat %.2f", r.X, r.Y, r.Width, r.Height, r.Peak)
	if r.Faint {
		text += " (faint)"
	}
	if len(all) > 1 {
		text += fmt.Sprintf(" and %d more", len(all)-1)
	}
	return text
}

func (p *place) Draw(ctx context.Context, file []byte) ([]stream.Picture, error) {
	if err := p.locate(); err != nil {
		return nil, err
	}
	h, err := imaging.Inspect(file, p.s.limits)
	if err != nil {
		return nil, err
	}
	release, err := p.s.memory.Acquire(ctx, h.Memory)
	if err != nil {
		return nil, err
	}
	defer release()
	frame, err := imaging.Decode(file, p.s.limits)
	if err != nil {
		return nil, err
	}
	overlay, err := p.heat.Overlay(frame, p.regions, overlaySide)
	if err != nil {
		return nil, err
	}
	var pictures []stream.Picture
	for _, q := range []struct {
		name, about string
		img         *imaging.Image
	}{
		{"overlay.jpg", "the frame, hotter where it is less like the normals, with its regions", overlay},
		{"thumbnail.jpg", "the frame", heatmap.Thumbnail(frame, thumbnailSide)},
	} {
		b, err := q.img.JPEG(evidenceJPEG)
		if err != nil {
			return nil, err
		}
		pictures = append(pictures, stream.Picture{Name: q.name, About: q.about, Data: b})
	}
	heat, err := p.heat.SheetPNG()
	if err != nil {
		return nil, err
	}
	pictures = append(pictures, stream.Picture{Name: "heat.png", About: "the heat alone, to be laid over the frame", Data: heat})
	return append(pictures, nearestPictures(p.score.Nearest, p.s.thumbs)...), nil
}

// nearestPictures are the thumbnails of the nearest normals that have one.
func nearestPictures(nearest []bank.Neighbour, thumbs release.Thumbnails) []stream.Picture {
	var out []stream.Picture
	for i, n := range nearest {
		if b := thumbs[n.ID]; b != nil {
			out = append(out, stream.Picture{
				Name:  fmt.Sprintf("normal-%d.jpg", i+1),
				About: fmt.Sprintf("normal %d of the bank, at the squared distance %.4g", n.ID, n.Distance), Data: b,
			})
		}
	}
	return out
}
