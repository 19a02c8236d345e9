package camera_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"io"
	"slices"
	"testing"
	"testing/iotest"

	"github.com/nearmiss/nearmiss/stream/camera"
)

// noisy is a picture whose JPEG data have all kinds of bytes in them.
func noisy(side int, seed uint32) image.Image {
	m := image.NewRGBA(image.Rect(0, 0, side, side))
	for i := range m.Pix {
		seed = seed*1664525 + 1013904223
		m.Pix[i] = byte(seed >> 24)
	}
	for x := range side {
		m.SetRGBA(x, x, color.RGBA{A: 255})
	}
	return m
}

func encoded(t testing.TB) (all [][]byte) {
	t.Helper()
	for i, side := range []int{8, 90, 300, 33} {
		var b bytes.Buffer
		var err error
		if i%2 == 0 {
			err = jpeg.Encode(&b, noisy(side, uint32(i)), &jpeg.Options{Quality: 95})
		} else {
			err = png.Encode(&b, noisy(side, uint32(i)))
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b.Bytes())
	}
	// A JPEG with a thumbnail in its application segment, fill bytes and restart
	// markers.
	thumb := all[0]
	with := []byte{0xff, 0xd8, 0xff, 0xe1, byte((len(thumb) + 2) >> 8), byte(len(thumb) + 2)}
	with = append(with, thumb...)
	with = append(with, 0xff)
	rest := bytes.Clone(thumb[2 : len(thumb)-2])
	rest = append(rest, 0xff, 0xd0, 1, 0xff, 0, 2, 0xff, 0xd9)
	return append(all, append(with, rest...))
}

func split(r io.Reader) (all [][]byte, err error) {
	s := camera.NewSplitter(r)
	for {
		b, err := s.Next()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, b)
	}
}

func TestImagesOfAStreamComeOutAsTheyWentIn(t *testing.T) {
	want := encoded(t)
	header := []byte("\r\n--frame\r\nContent-Type: image/jpeg\r\n\r\n")
	for name, between := range map[string][]byte{"nothing": nil, "headers": header, "zeros": make([]byte, 1000), "odd bytes": {0xff, 0xd8, 0, 0x89, 'P', 'N', 0xff}} {
		var all []byte
		for _, b := range want {
			all = append(append(all, between...), b...)
		}
		all = append(all, between...)
		for _, r := range []io.Reader{bytes.NewReader(all), iotest.OneByteReader(bytes.NewReader(all)), iotest.HalfReader(bytes.NewReader(all))} {
			got, err := split(r)
			if err != nil || !slices.EqualFunc(got, want, bytes.Equal) {
				t.Errorf("%s between: %d images of %d, %v", name, len(got), len(want), err)
			}
		}
	}
}

// TestADamagedImageTakesNoOtherWithIt: what is cut off or has nonsense in it
// comes out as it is, to be rejected, and the others stay whole. Only a segment
// that is cut off takes the length that it promises from the next image.
func TestADamagedImageTakesNoOtherWithIt(t *testing.T) {
	all := encoded(t)
	whole := [][]byte{all[2], all[0]}
	for name, bad := range map[string][]byte{
		"a JPEG cut off in its data":    all[2][:len(all[2])/2],
		"a JPEG without its end":        all[2][:len(all[2])-2],
		"a JPEG with a length of zero":  {0xff, 0xd8, 0xff, 0xe0, 0, 0, 1, 2, 3},
		"a JPEG with no marker":         {0xff, 0xd8, 0xff, 0x01, 7, 7, 7},
		"a PNG with a chunk of no name": append(bytes.Clone(all[1][:40]), 0, 0, 0, 1, 1, 2, 3, 4, 5),
	} {
		got, err := split(bytes.NewReader(slices.Concat(whole[0], bad, whole[1], whole[0])))
		if err != nil || len(got) != 4 || !bytes.Equal(got[0], whole[0]) || !bytes.Equal(got[1], bad) || !bytes.Equal(got[2], whole[1]) || !bytes.Equal(got[3], whole[0]) {
			t.Errorf("%s: %d images, %v", name, len(got), err)
		}
	}
	head := all[2][:bytes.Index(all[2], []byte{0xff, 0xda})-1]
	got, err := split(bytes.NewReader(slices.Concat(whole[0], head, whole[1], whole[0])))
	if err != nil || len(got) != 3 || !bytes.Equal(got[1], slices.Concat(head, whole[1])) || !bytes.Equal(got[2], whole[0]) {
		t.Errorf("a JPEG cut off in its head: %d images, %v", len(got), err)
	}
	got, err = split(bytes.NewReader(slices.Concat(whole[0], whole[1][:100])))
	if err != nil || len(got) != 2 || len(got[1]) != 100 {
		t.Errorf("the last one cut off: %d images, %v", len(got), err)
	}
}

func TestAStreamWithoutImagesSaysSo(t *testing.T) {
	for name, b := range map[string][]byte{"empty": nil, "text": []byte("no such camera\n"), "endless": make([]byte, 2<<20)} {
		if got, err := split(bytes.NewReader(b)); !errors.Is(err, camera.ErrNoImages) || len(got) != 0 {
			t.Errorf("%s: %d images, %v", name, len(got), err)
		}
	}
	// An end that never comes.
	endless := io.MultiReader(bytes.NewReader(encoded(t)[2][:4000]), zeros{})
	if _, err := split(endless); !errors.Is(err, camera.ErrTooLarge) {
		t.Error(err)
	}
	broken := errors.New("the cable")
	if _, err := split(io.MultiReader(bytes.NewReader(encoded(t)[0]), iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Error(err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func FuzzSplitter(f *testing.F) {
	for _, b := range encoded(f) {
		f.Add(b[:min(len(b), 2000)], b[:min(len(b), 300)])
	}
	var last bytes.Buffer
	if err := jpeg.Encode(&last, noisy(8, 1), nil); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		got, err := split(bytes.NewReader(slices.Concat(a, b)))
		if err != nil {
			if !errors.Is(err, camera.ErrNoImages) {
				t.Fatal(err)
			}
			return
		}
		total := 0
		for _, g := range got {
			total += len(g)
		}
		if total > len(a)+len(b) {
			t.Fatalf("%d bytes of images out of %d", total, len(a)+len(b))
		}
		again, err := split(iotest.OneByteReader(bytes.NewReader(slices.Concat(a, b))))
		if err != nil || !slices.EqualFunc(got, again, bytes.Equal) {
			t.Fatalf("read byte by byte it is %d images and not %d, %v", len(again), len(got), err)
		}
	})
}

// severalImages makes one file of JPEG images, as stereo cameras and telephones
// do (CIPA DC-007): the first has an index of where the others are. Between them
// lie gap bytes.
func severalImages(gap int, order binary.AppendByteOrder, images ...[]byte) []byte {
	const header = 2 + 4 + 4 // start of image, marker and length, MPF\0
	dir := []byte("II*\x00")
	if order == binary.AppendByteOrder(binary.BigEndian) {
		dir = []byte("MM\x00*")
	}
	dir = order.AppendUint32(dir, 8)
	dir = order.AppendUint16(dir, 2)
	for _, tag := range []struct{ id, kind, n, value int }{{0xb001, 4, 1, len(images)}, {0xb002, 7, 16 * len(images), 8 + 2 + 2*12 + 4}} {
		dir = order.AppendUint16(dir, uint16(tag.id))
		dir = order.AppendUint16(dir, uint16(tag.kind))
		dir = order.AppendUint32(dir, uint32(tag.n))
		dir = order.AppendUint32(dir, uint32(tag.value))
	}
	dir = order.AppendUint32(dir, 0)
	segment := len(dir) + 16*len(images) + 4 + 2
	at := segment + 2 + len(images[0])
	for i, img := range images {
		size, place := len(img), 0
		if i == 0 {
			size = at
		} else {
			place = at + gap - header
			at += gap + size
		}
		dir = order.AppendUint32(dir, 0)
		dir = order.AppendUint32(dir, uint32(size))
		dir = order.AppendUint32(dir, uint32(place))
		dir = order.AppendUint32(dir, 0)
	}
	out := append([]byte{0xff, 0xd8, 0xff, 0xe2}, binary.BigEndian.AppendUint16(nil, uint16(segment))...)
	out = append(append(out, "MPF\x00"...), dir...)
	out = append(out, images[0][2:]...)
	for _, img := range images[1:] {
		out = append(append(out, make([]byte, gap)...), img...)
	}
	return out
}

func TestFilesOfSeveralImagesAreOneFrame(t *testing.T) {
	all := encoded(t)
	left, right, next := all[2], all[0], all[4]
	for _, order := range []binary.AppendByteOrder{binary.LittleEndian, binary.BigEndian} {
		for _, gap := range []int{0, 1, 500, 20_000} {
			file := severalImages(gap, order, left, right, left)
			first := file[:bytes.Index(file, left[len(left)-50:])+50]
			got, err := split(bytes.NewReader(slices.Concat(file, []byte("\r\n--frame\r\n"), file, next, file)))
			if err != nil || len(got) != 4 {
				t.Errorf("gap %d: %d images, %v", gap, len(got), err)
				continue
			}
			for i, want := range [][]byte{first, first, next, first} {
				if !bytes.Equal(got[i], want) {
					t.Errorf("gap %d: image %d has %d bytes, want %d", gap, i, len(got[i]), len(want))
				}
			}
			// A camera that cut the others off and left the index.
			got, err = split(bytes.NewReader(slices.Concat(first, []byte("--frame"), next, first, []byte("--frame"), next)))
			if err != nil || len(got) != 4 {
				t.Errorf("gap %d, cut off: %d images, %v", gap, len(got), err)
			}
		}
	}
}

func TestWebPFilesInAStream(t *testing.T) {
	all := encoded(t)
	webp := func(n int) []byte {
		out := binary.LittleEndian.AppendUint32([]byte("RIFF"), uint32(4+n))
		return append(append(out, "WEBP"...), bytes.Repeat([]byte{0xff, 0xd8, 0xff}, n)[:n]...)
	}
	even, odd := webp(100), webp(77)
	got, err := split(bytes.NewReader(slices.Concat(even, []byte("--x\r\n"), odd, all[1], odd, []byte{0}, even, even[:50])))
	if err != nil || len(got) != 6 {
		t.Fatalf("%d images, %v", len(got), err)
	}
	for i, want := range [][]byte{even, odd, all[1], append(bytes.Clone(odd), 0), even, even[:50]} {
		if !bytes.Equal(got[i], want) {
			t.Errorf("image %d has %d bytes, want %d", i, len(got[i]), len(want))
		}
	}
}
