// Package eventually waits, in tests, for what comes in its own time.
package eventually

import (
	"testing"
	"time"
)

// Patience is more than the slowest machine under load has needed.
const Patience = 5 * time.Minute

// True waits until ok says so; what says, after "until", what is waited for.
func True(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for begin := time.Now(); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Since(begin) > Patience {
			t.Fatalf("waited for %v, in vain, until %s", Patience, what)
		}
	}
}
