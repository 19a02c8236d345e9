//go:build !(linux || darwin)

package broker

import "math"

// freeBytes is not known here.
func freeBytes(string) (int64, error) { return math.MaxInt64 / 4, nil }
