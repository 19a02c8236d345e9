package dataset

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/nearmiss/nearmiss/inference/imaging"
)

// Fake is the defect's name in a set that [WriteFakes] writes.
const Fake = "fake"

// WriteFakes writes a data set in the layout of MVTec AD, in which the anomalies
// are fakes (the paper's CIFAR-10-FSDE): train/good, test/good and test/fake
// below dir, which must not exist. The test images must be strangers to whatever
// made the fakes. Where fakes are smaller than half of the normals, the middle
// square of every normal is brought to their size, so that size and blur tell
// nothing.
func WriteFakes(dir string, train, test, fakes []Item) (err error) {
	if len(train)*len(test)*len(fakes) == 0 {
		return fmt.Errorf("write data set %s: %d normals to learn from, %d to test and %d fakes: each needs one at least", dir, len(train), len(test), len(fakes))
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("write data set: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("write data set %s: %w", dir, err), os.RemoveAll(dir))
		}
	}()
	small, err := decode(fakes[0])
	if err != nil {
		return err
	}
	side := min(small.Width, small.Height)
	for _, part := range []struct {
		below  string
		items  []Item
		normal bool
	}{{"train/good", train, true}, {"test/good", test, true}, {"test/" + Fake, fakes, false}} {
		to := filepath.Join(dir, filepath.FromSlash(part.below))
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
		for i, it := range part.items {
			b, err := it.Read()
			if err != nil {
				return fmt.Errorf("read image %s: %w", it.Name, err)
			}
			// Names may be paths, or occur twice below different folders.
			name := fmt.Sprintf("%06d%s", i, filepath.Ext(it.Name))
			if part.normal {
				m, err := decode(it)
				if err != nil {
					return err
				}
				if s := min(m.Width, m.Height); 2*side <= s {
					m = imaging.Resize(m.CenterCrop(s, s), side, side, imaging.Bicubic)
					if b, err = m.PNG(); err != nil {
						return err
					}
					name = fmt.Sprintf("%06d.png", i)
				}
			}
			if err := os.WriteFile(filepath.Join(to, name), b, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

func decode(it Item) (*imaging.Image, error) {
	b, err := it.Read()
	if err != nil {
		return nil, fmt.Errorf("read image %s: %w", it.Name, err)
	}
	m, err := imaging.Decode(b, imaging.DefaultLimits())
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", it.Name, err)
	}
	return m, nil
}
