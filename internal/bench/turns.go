package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearmiss/nearmiss/internal/cputime"
)

// Rate is a speed over several rounds.
type Rate struct {
	Median float64 `json:"images_per_second"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	// PerCPU is images per second of processor time; 0 where it is unknown.
	PerCPU float64 `json:"images_per_cpu_second"`
}

// part is one thing that is measured.
type part struct {
	name   string
	speed  []float64
	images int
	cpu    float64
	// run does work until end is closed and returns the images done.
	run func(ctx context.Context, end <-chan struct{}) (int, error)
}

func (p *part) rate() Rate {
	v := slices.Clone(p.speed)
	slices.Sort(v)
	r := Rate{Median: v[len(v)/2], Min: v[0], Max: v[len(v)-1]}
	if p.cpu > 0 {
		r.PerCPU = float64(p.images) / p.cpu
	}
	return r
}

// interleave measures the parts for total in all, in rounds, so that a
// disturbance of the machine meets them all. progress is called with what begins.
func interleave(ctx context.Context, parts []*part, total time.Duration, rounds int, progress func(string)) error {
	for round := range rounds {
		for _, p := range parts {
			if err := ctx.Err(); err != nil {
				return err
			}
			progress(fmt.Sprintf("%s (%d of %d)", p.name, round+1, rounds))
			end := make(chan struct{})
			start, cpu := time.Now(), cputime.Seconds()
			timer := time.AfterFunc(total/time.Duration(rounds), func() { close(end) })
			n, err := p.run(ctx, end)
			timer.Stop()
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			p.speed = append(p.speed, float64(n)/time.Since(start).Seconds())
			p.images += n
			p.cpu += cputime.Seconds() - cpu
		}
	}
	return nil
}

// parallel calls f with 0, 1, 2, … from n goroutines until end is closed and
// returns the sum of its results. Every goroutine calls f at least once.
func parallel(n int, end <-chan struct{}, f func(i int64) (int, error)) (int, error) {
	var next, sum atomic.Int64
	var mu sync.Mutex
	var failed error
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			for {
				k, err := f(next.Add(1) - 1)
				sum.Add(int64(k))
				if err != nil {
					mu.Lock()
					failed = errors.Join(failed, err)
					mu.Unlock()
					return
				}
				select {
				case <-end:
					return
				default:
				}
			}
		})
	}
	wg.Wait()
	return int(sum.Load()), failed
}
