package worker

import (
	"slices"
	"strings"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/text"
)

// Ready says whether this worker can do its work: connected, its streams and
// buckets there, and each detector that has a release served by it. One whose
// release was refused, while no other serves, is not; one without a release waits
// for its training and is.
func (w *Worker) Ready() []stream.Check {
	checks := []stream.Check{
		{Name: "broker", OK: w.nc.IsConnected(), Detail: w.nc.Status().String()},
		{Name: "setup", OK: w.opened.Load()},
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, l := range w.runners {
		l.mu.Lock()
		c := stream.Check{Name: "detector " + name, OK: true}
		_, refused := l.refused[l.want.active.Release]
		switch want := l.want.active.Release; {
		case l.cur != nil:
			c.Detail = "release " + text.Short(l.cur.pointer.Release) + " serves"
		case want == "":
			c.Detail = "no release yet"
		case refused:
			c.OK, c.Detail = false, "release "+text.Short(want)+" was refused"
		default:
			c.OK, c.Detail = false, "release "+text.Short(want)+" is being loaded"
		}
		l.mu.Unlock()
		checks = append(checks, c)
	}
	slices.SortFunc(checks[2:], func(a, b stream.Check) int { return strings.Compare(a.Name, b.Name) })
	return checks
}
