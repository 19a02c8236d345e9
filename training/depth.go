package training

import (
	"context"
	"fmt"

	"github.com/nearmiss/nearmiss/inference/imaging"
)

// depthSample is how many normals are read for samples of 16 bits, and for palettes
// of colours.
const depthSample = 16

// depth settles what white is where the normals have samples of 16 bits or more:
// the least usual depth that holds all of them becomes the view's, unless that
// names one. A camera of 12 bits that stores them in 16 would else give sixteen
// greys. It returns what to tell the user.
func (d *Data) depth(ctx context.Context) (note string, err error) {
	if d.View != nil && d.View.Bits > 0 {
		return "", nil
	}
	needs := func(i int) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		b, err := d.Normals[i].Read()
		if err != nil {
			return 0, nil // whoever learns from it says so
		}
		bits, err := imaging.NeededBits(b, d.Limits)
		if err != nil {
			bits = 0
		}
		return bits, nil
	}
	n := len(d.Normals)
	most := 0
	for k := range min(n, depthSample) {
		bits, err := needs(k * n / min(n, depthSample))
		if err != nil {
			return "", err
		}
		most = max(most, bits)
	}
	if most == 0 {
		return "", nil
	}
	for i := range n {
		if most >= 16 { // more makes no difference
			break
		}
		bits, err := needs(i)
		if err != nil {
			return "", err
		}
		most = max(most, bits)
	}
	var v imaging.View
	if d.View != nil {
		v = *d.View
	}
	v.Bits = most
	d.View = &v
	if most >= 16 {
		return "", nil
	}
	return fmt.Sprintf("the normals have samples of 16 bits, of which %d are used: %d is taken for white; set the bits if the camera has more", most, 1<<most-1), nil
}

// readGrey has pictures read as grey where all normals are, unless the plan is to take
// pictures as they are.
func (p *Plan) readGrey(ctx context.Context) error {
	if p.Model.Light == LightUsual || p.Model.tone != nil {
		return nil
	}
	is, err := p.Data.isGrey(ctx)
	if is && err == nil {
		p.Model.tone = &imaging.Tone{Grey: true}
	}
	return err
}

// isGrey says whether all normals are grey, as the files of a grey camera are: they have one
// sample a pixel, and some of them, evenly, are decoded to see that it stands for no
// colour. Files that cannot be read do not count.
func (d Data) isGrey(ctx context.Context) (bool, error) {
	sampled := false
	every := max(1, len(d.Normals)/depthSample)
	for i, img := range d.Normals {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		b, err := img.Read()
		if err != nil {
			continue // whoever learns from it says so
		}
		h, err := imaging.Inspect(b, d.Limits)
		if err != nil {
			continue
		}
		if h.Channels > 1 {
			return false, nil
		}
		if i%every == 0 {
			m, err := d.View.Decode(b, d.Limits)
			if err != nil {
				continue
			}
			if !m.IsGrey() {
				return false, nil
			}
		}
		sampled = true
	}
	return sampled, nil
}
