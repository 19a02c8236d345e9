package imaging

import (
	"bytes"
	"fmt"
	"image"
	"image/jpeg"
	"image/png"
)

// Image is an 8-bit RGB picture. Pixel (x, y) is at Pix[3*(y*Width+x):], in the
// order red, green, blue; rows are not padded.
type Image struct {
	Width, Height int
	Pix           []uint8
}

// New returns a black image of w × h pixels.
func New(w, h int) *Image {
	return &Image{Width: w, Height: h, Pix: make([]uint8, 3*w*h)}
}

// Valid reports whether the sizes are positive and Pix has exactly
// 3 × Width × Height bytes.
func (m *Image) Valid() bool {
	return m != nil && m.Width > 0 && m.Height > 0 && len(m.Pix) == 3*m.Width*m.Height
}

// Clone returns a copy that shares nothing with m.
func (m *Image) Clone() *Image {
	return &Image{Width: m.Width, Height: m.Height, Pix: bytes.Clone(m.Pix)}
}

// RGB returns the pixel at (x, y), which must lie inside the image.
func (m *Image) RGB(x, y int) (r, g, b uint8) {
	i := 3 * (y*m.Width + x)
	return m.Pix[i], m.Pix[i+1], m.Pix[i+2]
}

// SetRGB sets the pixel at (x, y), which must lie inside the image.
func (m *Image) SetRGB(x, y int, r, g, b uint8) {
	i := 3 * (y*m.Width + x)
	m.Pix[i], m.Pix[i+1], m.Pix[i+2] = r, g, b
}

// Crop copies the w × h rectangle whose upper left pixel is (x, y). The part of
// the rectangle that lies outside m is black.
func (m *Image) Crop(x, y, w, h int) *Image {
	out := New(w, h)
	x0, x1 := max(x, 0), min(x+w, m.Width)
	if x0 >= x1 {
		return out
	}
	for row := max(y, 0); row < min(y+h, m.Height); row++ {
		src := m.Pix[3*(row*m.Width+x0) : 3*(row*m.Width+x1)]
		copy(out.Pix[3*((row-y)*w+x0-x):], src)
	}
	return out
}

// CenterCrop copies the w × h rectangle in the middle, half a pixel going to
// the upper left. What would lie outside m is black.
func (m *Image) CenterCrop(w, h int) *Image {
	return m.Crop(centerOffset(m.Width, w, false), centerOffset(m.Height, h, false), w, h)
}

// FlipHorizontal returns m mirrored left to right.
func (m *Image) FlipHorizontal() *Image { return m.orient(2) }

// FlipVertical returns m mirrored top to bottom.
func (m *Image) FlipVertical() *Image { return m.orient(4) }

// Rotate90 returns m turned clockwise by quarter × 90 degrees.
func (m *Image) Rotate90(quarter int) *Image {
	return m.orient([4]int{1, 6, 3, 8}[((quarter%4)+4)%4])
}

// orient turns upright an image that was stored with the given EXIF
// orientation (1 to 8; TIFF 6.0 tag 274). Anything else leaves it as it is.
func (m *Image) orient(o int) *Image {
	if o < 2 || o > 8 {
		return m
	}
	w, h := m.Width, m.Height
	out := &Image{Width: w, Height: h, Pix: make([]uint8, len(m.Pix))}
	if o >= 5 {
		out.Width, out.Height = h, w
	}
	// Stored pixel (x, y) goes to start + x*stepX + y*stepY of the result.
	var start, stepX, stepY int
	switch o {
	case 2:
		start, stepX, stepY = w-1, -1, w
	case 3:
		start, stepX, stepY = w*h-1, -1, -w
	case 4:
		start, stepX, stepY = w*(h-1), 1, -w
	case 5:
		start, stepX, stepY = 0, h, 1
	case 6:
		start, stepX, stepY = h-1, h, -1
	case 7:
		start, stepX, stepY = w*h-1, -h, -1
	case 8:
		start, stepX, stepY = h*(w-1), -h, 1
	}
	src := m.Pix
	for y := range h {
		at := start + y*stepY
		for range w {
			copy(out.Pix[3*at:3*at+3], src[:3])
			src = src[3:]
			at += stepX
		}
	}
	return out
}

// FromImage converts any image of the standard library, with the rules of
// [Decode]: alpha is dropped, 16-bit samples are scaled.
func FromImage(m image.Image) *Image { return convert(m) }

// RGBA converts to the standard library's form, for its encoders and drawing.
func (m *Image) RGBA() *image.RGBA {
	out := image.NewRGBA(image.Rect(0, 0, m.Width, m.Height))
	for i, j := 0, 0; i < len(m.Pix); i, j = i+3, j+4 {
		d := out.Pix[j : j+4 : j+4]
		s := m.Pix[i : i+3 : i+3]
		d[0], d[1], d[2], d[3] = s[0], s[1], s[2], 0xff
	}
	return out
}

// PNG encodes the image without loss.
func (m *Image) PNG() ([]byte, error) {
	if !m.Valid() {
		return nil, fmt.Errorf("encode png: image of %d×%d pixels with %d bytes", m.Width, m.Height, len(m.Pix))
	}
	var buf bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.BestSpeed}).Encode(&buf, m.RGBA()); err != nil {
		return nil, fmt.Errorf("encode png: %w", err)
	}
	return buf.Bytes(), nil
}

// JPEG encodes the image with the given quality, 1 to 100.
func (m *Image) JPEG(quality int) ([]byte, error) {
	if !m.Valid() {
		return nil, fmt.Errorf("encode jpeg: image of %d×%d pixels with %d bytes", m.Width, m.Height, len(m.Pix))
	}
	var buf bytes.Buffer
	if err := jpeg.Encode(&buf, m.RGBA(), &jpeg.Options{Quality: quality}); err != nil {
		return nil, fmt.Errorf("encode jpeg: %w", err)
	}
	return buf.Bytes(), nil
}
