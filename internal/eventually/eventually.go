// Package eventually waits, in tests, for what comes, or ends, in its own time.
package eventually

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
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

// leakTime is how long goroutines may take to end after the last test: goleak alone gives
// them less than half a second.
const leakTime = time.Minute

// Main runs the tests of a package and ends the process. Goroutines that stay when the
// tests have passed fail it, but for those that are ignored.
func Main(m *testing.M, ignored ...goleak.Option) {
	code := m.Run()
	if code == 0 {
		err := goleak.Find(ignored...)
		for begin := time.Now(); err != nil && time.Since(begin) < leakTime; {
			err = goleak.Find(ignored...)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "goroutines are left after the tests: %v\n", err)
			code = 1
		}
	}
	os.Exit(code)
}
