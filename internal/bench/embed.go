package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/ort"
)

// EmbedOptions say what Embed measures.
type EmbedOptions struct {
	Model string                 // backbone's ONNX file
	Embed inference.EmbedOptions // as in service
	Files [][]byte               // image files, used again and again
	// Time is how long each of the parts is measured, in all. Default 5 s.
	Time time.Duration
	// Rounds is how often the parts take turns, so that a disturbance meets
	// them all. Default 5.
	Rounds int
	// Alone measures ONNX Runtime alone; what needs the other parts stays 0.
	Alone bool
	// Progress, if set, is called with the name of the part that begins.
	Progress func(part string)
}

// EmbedResult has images per second of each part of the way of an image, with
// all the threads of the options.
type EmbedResult struct {
	Device   string `json:"device"`
	Threads  int    `json:"threads"`
	Workers  int    `json:"workers"`
	Batch    int    `json:"batch"` // largest batch in service
	Files    int    `json:"files"`
	Decoder  string `json:"decoder"`
	Captured []int  `json:"captured,omitempty"` // sizes of batches in service whose runs are captured
	// CapturedWhy says why there are none, although the device asks.
	CapturedWhy string `json:"captured_why,omitempty"`
	Decode      Rate   `json:"decode"`     // file → pixels
	Preprocess  Rate   `json:"preprocess"` // pixels → the model's input
	Inference   Rate   `json:"inference"`  // ONNX Runtime alone, the best of Raw
	Whole       Rate   `json:"whole"`      // file → embedding, through the Embedder
	Prepared    Rate   `json:"prepared"`   // the model's input → embedding, through the Embedder
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

// BestCPU is the most images per second of processor time of Raw; 0 where it is unknown.
func (r EmbedResult) BestCPU() (best float64) {
	for _, raw := range r.Raw {
		best = max(best, raw.PerCPU)
	}
	return best
}

// RawRate is the speed of ONNX Runtime alone in one arrangement.
type RawRate struct {
	Sessions int `json:"concurrent_runs"`
	Threads  int `json:"threads_per_run"`
	Batch    int `json:"batch"`
	Rate
}

// Embed measures the way of an image from its file to its embedding.
func Embed(ctx context.Context, o EmbedOptions) (_ EmbedResult, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("bench embed: %w", err)
		}
	}()
	if len(o.Files) == 0 {
		return EmbedResult{}, errors.New("no images are given")
	}
	o.Time = cmp.Or(max(o.Time, 0), 5*time.Second)
	o.Rounds = cmp.Or(max(o.Rounds, 0), 5)
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	e, err := inference.NewEmbedder(o.Model, o.Embed)
	if err != nil {
		return EmbedResult{}, err
	}
	defer e.Close()
	used, prepare, limit := e.Options(), e.Preprocess(), e.BatchSize()
	out := EmbedResult{
		Device: used.Device.String(), Threads: used.Threads, Workers: used.Workers, Batch: limit,
		Files: len(o.Files), Decoder: imaging.DecoderName(),
	}
	var why error
	if out.Captured, why = e.Captured(); why != nil {
		out.CapturedWhy = why.Error()
	}
	images := make([]*imaging.Image, len(o.Files))
	pixels := make([][]uint8, len(o.Files))
	for i, f := range o.Files {
		if images[i], err = imaging.Decode(f, used.Limits); err != nil {
			return EmbedResult{}, fmt.Errorf("image %d: %w", i, err)
		}
		pixels[i] = make([]uint8, prepare.Bytes())
		if err := prepare.ApplyImage(images[i], pixels[i]); err != nil {
			return EmbedResult{}, fmt.Errorf("image %d: %w", i, err)
		}
	}

	buffers := sync.Pool{New: func() any { b := make([]uint8, prepare.Bytes()); return &b }}
	at := func(i int64) int { return int(i) % len(o.Files) }
	parts := []*part{
		{name: "decode", run: func(ctx context.Context, end <-chan struct{}) (int, error) {
			return parallel(used.Workers, end, func(i int64) (int, error) {
				_, err := imaging.Decode(o.Files[at(i)], used.Limits)
				return 1, err
			})
		}},
		{name: "preprocess", run: func(ctx context.Context, end <-chan struct{}) (int, error) {
			return parallel(used.Workers, end, func(i int64) (int, error) {
				b := buffers.Get().(*[]uint8)
				defer buffers.Put(b)
				return 1, prepare.ApplyImage(images[at(i)], *b)
			})
		}},
		{name: "whole", run: func(ctx context.Context, end <-chan struct{}) (int, error) {
			return parallel(2, end, func(i int64) (int, error) { // two callers, so that one's end is the other's middle
				n := 4 * limit
				files := make([][]byte, n)
				for j := range files {
					files[j] = o.Files[at(i*int64(n)+int64(j))]
				}
				return n, firstError(e.Embed(ctx, files))
			})
		}},
		{name: "prepared", run: func(ctx context.Context, end <-chan struct{}) (int, error) {
			return parallel(2, end, func(i int64) (int, error) {
				n := 4 * limit
				files := make([][]uint8, n)
				for j := range files {
					files[j] = pixels[at(i*int64(n)+int64(j))]
				}
				return n, firstError(e.EmbedPixels(ctx, files))
			})
		}},
	}
	if o.Alone {
		parts = nil
	}
	fixed := len(parts)
	raws, closeRaws, err := rawArrangements(ctx, e, o.Model)
	defer closeRaws()
	if err != nil {
		return EmbedResult{}, err
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
	if err := interleave(ctx, parts, o.Time, o.Rounds, o.Progress); err != nil {
		return EmbedResult{}, err
	}
	if !o.Alone {
		out.Decode, out.Preprocess = parts[0].rate(), parts[1].rate()
		out.Whole, out.Prepared = parts[2].rate(), parts[3].rate()
	}
	for i, p := range parts[fixed:] {
		raw := raws[i].RawRate
		raw.Rate = p.rate()
		out.Raw = append(out.Raw, raw)
		if raw.Median > out.Inference.Median {
			out.Inference = raw.Rate
		}
	}
	out.Share = out.Whole.Median / out.Inference.Median
	if best := out.BestCPU(); best > 0 {
		out.ShareCPU = out.Whole.PerCPU / best
	}
	out.SharePrepared = out.Prepared.Median / out.Inference.Median
	out.Limit = 1 / (1/out.Decode.Median + 1/out.Preprocess.Median + 1/out.Inference.Median)
	return out, nil
}

func firstError(embeddings []inference.Embedding, err error) error {
	for _, x := range embeddings {
		if err == nil {
			err = x.Err
		}
	}
	return err
}

// raw is one arrangement of ONNX Runtime without anything of ours around it.
type raw struct {
	RawRate
	run func(ctx context.Context, image []uint8) error
}

// rawArrangements are the ways to spend the options' threads: many runs of one
// thread, or one run of all threads, each with several batch sizes. Runs are captured
// where they are in service.
func rawArrangements(ctx context.Context, e *inference.Embedder, model string) (raws []raw, closeAll func(), err error) {
	var sessions []interface{ Close() error }
	closeAll = func() {
		for _, s := range sessions {
			_ = s.Close()
		}
	}
	used, prepare, limit := e.Options(), e.Preprocess(), e.BatchSize()
	type arrangement struct{ sessions, threads int }
	ways := []arrangement{{1, used.Threads}}
	if used.Device.IsCPU() && used.Threads > 1 {
		ways = append(ways, arrangement{used.Threads, 1})
	}
	side := prepare.Crop
	for _, w := range ways {
		o := used.Session
		o.IntraOpThreads = w.threads
		s, err := inference.OpenBackbone(model, used.Precision, used.FloatProducts, o)
		if err != nil {
			return nil, closeAll, err
		}
		sessions = append(sessions, s)
		batches := []int{1, limit}
		if n := s.Inputs()[0].Shape[0]; n > 0 { // the model's own
			batches = []int{n}
		}
		for _, n := range slices.Compact(batches) {
			// The inputs are prepared and the outputs allocated beforehand.
			type slot struct {
				pixels  []uint8
				in, out []*ort.Tensor
			}
			free := make(chan slot, w.sessions)
			for range w.sessions {
				p := make([]uint8, n*prepare.Bytes())
				t, err := ort.NewTensor([]int{n, side, side, 3}, p)
				if err != nil {
					return nil, closeAll, err
				}
				out, err := s.Run(ctx, []*ort.Tensor{t})
				if err != nil {
					return nil, closeAll, err
				}
				free <- slot{p, []*ort.Tensor{t}, out}
			}
			into := s.RunInto
			if used.Device.Graph {
				x := <-free
				c, err := ort.Capture(ctx, o, func(o ort.Options) (ort.Model, error) {
					return inference.OpenBackbone(model, used.Precision, used.FloatProducts, o)
				}, x.in, x.out)
				free <- x
				if err != nil {
					return nil, closeAll, err
				}
				sessions = append(sessions, c)
				into = c.Run
			}
			raws = append(raws, raw{
				RawRate: RawRate{Sessions: w.sessions, Threads: w.threads, Batch: n},
				run: func(ctx context.Context, image []uint8) error {
					x := <-free
					defer func() { free <- x }()
					copy(x.pixels, image)
					err := into(ctx, x.in, x.out)
					runtime.KeepAlive(x.pixels)
					return err
				},
			})
		}
	}
	return raws, closeAll, nil
}
