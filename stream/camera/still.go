package camera

import (
	"bytes"
	"hash/maphash"
	"time"

	"github.com/rs/zerolog"
)

// still watches for a frozen camera, which sends one picture again and again and
// looks healthy. A picture that works has noise: no two are the same bytes.
type still struct {
	seed     maphash.Seed
	last     uint64
	since    time.Time // of the first of the same pictures
	same     int       // pictures after it
	warnedAt time.Time // zero: not yet
}

// leastSame is how many pictures must be the same: one that is asked for more
// often than it is made comes twice.
const leastSame = 3

// warnInterval is how often the warning of a frozen camera is repeated.
const warnInterval = time.Hour

// watch takes the next picture, and returns since when it has been the same, the
// zero time unless that is longer than after.
func (s *still) watch(data []byte, now time.Time, after time.Duration, log zerolog.Logger) time.Time {
	if s.since.IsZero() {
		s.seed = maphash.MakeSeed()
	}
	h := maphash.Bytes(s.seed, pixels(data))
	if s.since.IsZero() || h != s.last {
		if !s.warnedAt.IsZero() {
			log.Info().Time("since", s.since).Msg("the camera's picture changes again")
		}
		s.last, s.since, s.same, s.warnedAt = h, now, 0, time.Time{}
		return time.Time{}
	}
	s.same++
	if s.same < leastSame || now.Sub(s.since) < after {
		return time.Time{}
	}
	if s.warnedAt.IsZero() || now.Sub(s.warnedAt) >= warnInterval {
		s.warnedAt = now
		log.Warn().Time("since", s.since).Int("pictures", s.same+1).Msg("the camera sends the same picture again and again: it may be frozen")
	}
	return s.since
}

// pixels leaves out what stands before a JPEG's data, where cameras write the
// time.
func pixels(data []byte) []byte {
	if bytes.HasPrefix(data, jpegStart) {
		if i := bytes.LastIndex(data, []byte{0xff, 0xda}); i >= 0 {
			return data[i:]
		}
	}
	return data
}
