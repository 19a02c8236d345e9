package inference

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/ort"
	"github.com/nearmiss/nearmiss/internal/cputime"
)

// BenchOptions say what BenchEmbed measures.
type BenchOptions struct {
	Model string       // backbone's ONNX file
	Embed EmbedOptions // as in service
	Files [][]byte     // image files, used again and again
	// Time is how long each of the parts is measured, in all. Default 5 s.
	Time time.Duration
	// Rounds is how often the parts take turns, so that a disturbance meets
	// them all. Default 5.
	Rounds int
	// Progress, if set, is called with the name of the part that begins.
	Progress func(part string)
}

// BenchResult has images per second of each part of the way of an image, with
// all the threads of the options.
type BenchResult struct {
	Device     string `json:"device"`
	Threads    int    `json:"threads"`
	Workers    int    `json:"workers"`
	Batch      int    `json:"batch"` // largest batch in service
	Files      int    `json:"files"`
	Decoder    string `json:"decoder"`
	Decode     Rate   `json:"decode"`     // file → pixels
	Preprocess Rate   `json:"preprocess"` // pixels → the model's input
	Inference  Rate   `json:"inference"`  // ONNX Runtime alone, the best of Raw
	Whole      Rate   `json:"whole"`      // file → embedding, through the Embedder
	Prepared   Rate   `json:"prepared"`   // the model's input → embedding, through the Embedder
	// Share is Whole ÷ Inference, 0..1: how much of ONNX Runtime's own speed
	// is left end to end. SharePrepared is the same without decoding.
	Share float64 `json:"share"`
	// ShareCPU is Whole ÷ the best of Raw in images per second of processor
	// time, which a busy machine disturbs less; 0 where it is unknown.
	ShareCPU      float64 `json:"share_cpu"`
	SharePrepared float64 `json:"share_prepared"`
	// Limit is the Whole that these parts allow if nothing else costs time and
	// all share the same cores: 1 / (1/Decode + 1/Preprocess + 1/Inference).
	Limit float64 `json:"limit"`
	// Raw has ONNX Runtime alone in several arrangements.
	Raw []RawRate `json:"raw"`
}

// Rate is a speed over several rounds.
type Rate struct {
	Median float64 `json:"images_per_second"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	// PerCPU is images per second of processor time; 0 where it is unknown.
	PerCPU float64 `json:"images_per_cpu_second"`
}

// RawRate is the speed of ONNX Runtime alone in one arrangement.
type RawRate struct {
	Sessions int `json:"concurrent_runs"`
	Threads  int `json:"threads_per_run"`
	Batch    int `json:"batch"`
	Rate
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

// BenchEmbed measures the way of an image from its file to its embedding.
func BenchEmbed(ctx context.Context, o BenchOptions) (BenchResult, error) {
	r, err := benchEmbed(ctx, o)
	if err != nil {
		return BenchResult{}, fmt.Errorf("bench embed: %w", err)
	}
	return r, nil
}

func benchEmbed(ctx context.Context, o BenchOptions) (BenchResult, error) {
	if len(o.Files) == 0 {
		return BenchResult{}, errors.New("no images are given")
	}
	if o.Time <= 0 {
		o.Time = 5 * time.Second
	}
	if o.Rounds <= 0 {
		o.Rounds = 5
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	e, err := NewEmbedder(o.Model, o.Embed)
	if err != nil {
		return BenchResult{}, err
	}
	defer e.Close()
	out := BenchResult{
		Device: e.o.Device.String(), Threads: e.o.Threads, Workers: e.o.Workers, Batch: e.limit,
		Files: len(o.Files), Decoder: imaging.DecoderName(),
	}
	images := make([]*imaging.Image, len(o.Files))
	pixels := make([][]uint8, len(o.Files))
	for i, f := range o.Files {
		if images[i], err = imaging.Decode(f, e.o.Limits); err != nil {
			return BenchResult{}, fmt.Errorf("image %d: %w", i, err)
		}
		pixels[i] = make([]uint8, e.preprocess.Bytes())
		if err := e.preprocess.ApplyImage(images[i], pixels[i]); err != nil {
			return BenchResult{}, fmt.Errorf("image %d: %w", i, err)
		}
	}

	at := func(i int64) int { return int(i) % len(o.Files) }
	parts := []*part{
		{name: "decode", run: func(ctx context.Context, end <-chan struct{}) (int, error) {
			return parallel(e.o.Workers, end, func(i int64) (int, error) {
				_, err := imaging.Decode(o.Files[at(i)], e.o.Limits)
				return 1, err
			})
		}},
		{name: "preprocess", run: func(ctx context.Context, end <-chan struct{}) (int, error) {
			return parallel(e.o.Workers, end, func(i int64) (int, error) {
				b := e.buffers.Get().(*[]uint8)
				defer e.buffers.Put(b)
				return 1, e.preprocess.ApplyImage(images[at(i)], *b)
			})
		}},
		{name: "whole", run: func(ctx context.Context, end <-chan struct{}) (int, error) {
			return parallel(2, end, func(i int64) (int, error) { // two callers, so that one's end is the other's middle
				n := 4 * e.limit
				files := make([][]byte, n)
				for j := range files {
					files[j] = o.Files[at(i*int64(n)+int64(j))]
				}
				return n, firstError(e.Embed(ctx, files))
			})
		}},
		{name: "prepared", run: func(ctx context.Context, end <-chan struct{}) (int, error) {
			return parallel(2, end, func(i int64) (int, error) {
				n := 4 * e.limit
				files := make([][]uint8, n)
				for j := range files {
					files[j] = pixels[at(i*int64(n)+int64(j))]
				}
				return n, firstError(e.EmbedPixels(ctx, files))
			})
		}},
	}
	fixed := len(parts)
	raws, closeRaws, err := e.rawArrangements(o.Model)
	defer closeRaws()
	if err != nil {
		return BenchResult{}, err
	}
	for _, raw := range raws {
		parts = append(parts, &part{
			name: fmt.Sprintf("ONNX Runtime alone, %d runs of %d threads, batch %d", raw.Sessions, raw.Threads, raw.Batch),
			run: func(ctx context.Context, end <-chan struct{}) (int, error) {
				return parallel(raw.Sessions, end, func(i int64) (int, error) {
					return raw.Batch, raw.run(ctx, pixels[at(i)])
				})
			},
		})
	}
	for round := range o.Rounds {
		for _, p := range parts {
			if err := ctx.Err(); err != nil {
				return BenchResult{}, err
			}
			o.Progress(fmt.Sprintf("%s (%d of %d)", p.name, round+1, o.Rounds))
			end := make(chan struct{})
			start, cpu := time.Now(), cputime.Seconds()
			timer := time.AfterFunc(o.Time/time.Duration(o.Rounds), func() { close(end) })
			n, err := p.run(ctx, end)
			timer.Stop()
			if err != nil {
				return BenchResult{}, fmt.Errorf("%s: %w", p.name, err)
			}
			p.speed = append(p.speed, float64(n)/time.Since(start).Seconds())
			p.images += n
			p.cpu += cputime.Seconds() - cpu
		}
	}
	out.Decode, out.Preprocess = parts[0].rate(), parts[1].rate()
	out.Whole, out.Prepared = parts[2].rate(), parts[3].rate()
	for i, p := range parts[fixed:] {
		raw := raws[i].RawRate
		raw.Rate = p.rate()
		out.Raw = append(out.Raw, raw)
		if raw.Median > out.Inference.Median {
			out.Inference = raw.Rate
		}
	}
	out.Share = out.Whole.Median / out.Inference.Median
	var best float64
	for _, raw := range out.Raw {
		best = max(best, raw.PerCPU)
	}
	if best > 0 {
		out.ShareCPU = out.Whole.PerCPU / best
	}
	out.SharePrepared = out.Prepared.Median / out.Inference.Median
	out.Limit = 1 / (1/out.Decode.Median + 1/out.Preprocess.Median + 1/out.Inference.Median)
	return out, nil
}

func firstError(embeddings []Embedding, err error) error {
	for _, x := range embeddings {
		if err == nil {
			err = x.Err
		}
	}
	return err
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

// raw is one arrangement of ONNX Runtime without anything of ours around it.
type raw struct {
	RawRate
	run func(ctx context.Context, image []uint8) error
}

// rawArrangements are the ways to spend the options' threads: many runs of one
// thread, or one run of all threads, each with several batch sizes.
func (e *Embedder) rawArrangements(model string) (raws []raw, closeAll func(), err error) {
	var sessions []*ort.Session
	closeAll = func() {
		for _, s := range sessions {
			_ = s.Close()
		}
	}
	type arrangement struct{ sessions, threads int }
	ways := []arrangement{{1, e.o.Threads}}
	if cpu := e.o.Device.Kind == "" || e.o.Device.Kind == "cpu"; cpu && e.o.Threads > 1 {
		ways = append(ways, arrangement{e.o.Threads, 1})
	}
	batches := []int{1, e.limit}
	if e.fixed > 0 {
		batches = []int{e.fixed}
	}
	side := e.preprocess.Crop
	for _, w := range ways {
		o := e.o.Session
		o.IntraOpThreads = w.threads
		s, err := openBackbone(model, o)
		if err != nil {
			return nil, closeAll, err
		}
		sessions = append(sessions, s)
		for _, n := range slices.Compact(batches) {
			// The inputs are prepared and the outputs allocated beforehand.
			type slot struct {
				pixels  []uint8
				in, out []*ort.Tensor
			}
			free := make(chan slot, w.sessions)
			for range w.sessions {
				p := make([]uint8, n*e.preprocess.Bytes())
				t, err := ort.NewTensor([]int{n, side, side, 3}, p)
				if err != nil {
					return nil, closeAll, err
				}
				out, err := s.Run(e.ctx, []*ort.Tensor{t})
				if err != nil {
					return nil, closeAll, err
				}
				free <- slot{p, []*ort.Tensor{t}, out}
			}
			raws = append(raws, raw{
				RawRate: RawRate{Sessions: w.sessions, Threads: w.threads, Batch: n},
				run: func(ctx context.Context, image []uint8) error {
					x := <-free
					defer func() { free <- x }()
					copy(x.pixels, image)
					err := s.RunInto(ctx, x.in, x.out)
					runtime.KeepAlive(x.pixels)
					return err
				},
			})
		}
	}
	return raws, closeAll, nil
}
