//go:build !(linux || darwin)

package broker

import "math"

// FreeBytes is not known here.
func FreeBytes(string) (int64, error) { return math.MaxInt64 / 4, nil }
