package camera

import (
	"encoding/json"

	"github.com/nearmiss/nearmiss/internal/synthetic"
)

// Drawn makes a source of drawn images the Make of a [Generated]: PNG files with
// their ground truth, the first of them image from of the source.
func Drawn(s *synthetic.Source, from uint64) func(n int) (file []byte, truth string, err error) {
	return func(n int) ([]byte, string, error) {
		img, truth := s.At(from + uint64(n))
		file, err := img.PNG()
		if err != nil {
			return nil, "", err
		}
		text, err := json.Marshal(truth)
		return file, string(text), err
	}
}
