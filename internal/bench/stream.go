package bench

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/inference/release/envelope"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/registry"
	"github.com/nearmiss/nearmiss/stream/worker"
)

// StreamConfig configures [Stream]. The zero value of a field means its default.
type StreamConfig struct {
	stream.Names

	Frames     int // default 2000
	FrameBytes int // default 150 KiB
	Workers    int // in this process, each with a connection of its own; default 1
	Cameras    int // that the frames are of, in turn; default 1
	// Dir is a scratch folder. Required.
	Dir string
	// Connect opens a connection for the camera and for each worker. Required.
	Connect func(name string) (*nats.Conn, error)
}

// StreamResult is what the broker and the workers did with a scorer that does
// nothing.
type StreamResult struct {
	Frames     int     `json:"frames"`
	FrameBytes int     `json:"frame_bytes"`
	Workers    int     `json:"workers"`
	Batch      int     `json:"batch"`
	PublishFPS float64 `json:"publish_frames_per_second"` // stored and acknowledged, nobody reading
	ScoreFPS   float64 `json:"score_frames_per_second"`   // taken from the full queue, scored and acknowledged
	BothFPS    float64 `json:"both_frames_per_second"`    // publishing and scoring at the same time
	Share      []int   `json:"share"`                     // frames of each worker while scoring the full queue
}

const (
	benchDetector  = "bench"
	benchBatch     = 16 // frames that are scored at once
	benchLanes     = 2
	benchPublishes = 64 // under way at once
)

// Stream measures frames a second through the broker: publishing alone, scoring
// a full queue, and both at once. It needs a broker whose streams exist, and
// leaves a detector named bench without frames.
func Stream(ctx context.Context, cfg StreamConfig, log zerolog.Logger) (StreamResult, error) {
	cfg.Frames = cmp.Or(cfg.Frames, 2000)
	cfg.FrameBytes = cmp.Or(cfg.FrameBytes, 150<<10)
	cfg.Workers = cmp.Or(cfg.Workers, 1)
	cfg.Cameras = cmp.Or(cfg.Cameras, 1)
	if cfg.Dir == "" || cfg.Connect == nil {
		return StreamResult{}, errors.New("bench: a scratch folder and connections are needed")
	}
	res := StreamResult{Frames: cfg.Frames, FrameBytes: cfg.FrameBytes, Workers: cfg.Workers, Batch: benchBatch}
	nc, err := cfg.Connect("bench-camera")
	if err != nil {
		return res, err
	}
	defer nc.Close()
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(benchPublishes))
	if err != nil {
		return res, err
	}
	if err := benchRelease(ctx, cfg, js); err != nil {
		return res, err
	}

	begin := time.Now()
	if err := benchPublish(ctx, cfg, js); err != nil {
		return res, err
	}
	res.PublishFPS = float64(cfg.Frames) / time.Since(begin).Seconds()

	run, err := startBench(ctx, cfg, log)
	if err != nil {
		return res, err
	}
	begin = time.Now()
	err = run.wait(ctx, cfg.Frames)
	res.ScoreFPS = float64(cfg.Frames) / time.Since(begin).Seconds()
	res.Share = run.stop()
	if err != nil {
		return res, err
	}

	if run, err = startBench(ctx, cfg, log); err != nil {
		return res, err
	}
	begin = time.Now()
	if err = benchPublish(ctx, cfg, js); err == nil {
		err = run.wait(ctx, cfg.Frames)
	}
	res.BothFPS = float64(cfg.Frames) / time.Since(begin).Seconds()
	run.stop()
	return res, err
}

// benchRelease makes an empty release active.
func benchRelease(ctx context.Context, cfg StreamConfig, js jetstream.JetStream) error {
	dir := filepath.Join(cfg.Dir, "null-release")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	sum := sha256.Sum256(nil)
	manifest := fmt.Sprintf(`{"schema_version":1,"method":"null","files":{"nothing":{"sha256":%q,"size":0}}}`, hex.EncodeToString(sum[:]))
	for name, data := range map[string]string{"nothing": "", envelope.ManifestName: manifest} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			return fmt.Errorf("bench: %w", err)
		}
	}
	reg, err := registry.Open(ctx, js, registry.Config{
		ActiveBucket: cfg.ActiveBucket(), ArtifactsBucket: cfg.ArtifactsBucket(), CacheDir: filepath.Join(cfg.Dir, "cache"),
	})
	if err != nil {
		return err
	}
	digest, err := reg.Put(ctx, benchDetector, dir)
	if err != nil {
		return err
	}
	_, err = reg.Promote(ctx, benchDetector, digest, registry.Change{By: "bench"})
	return err
}

// benchPublish publishes all frames, some at a time, and waits until they are
// stored.
func benchPublish(ctx context.Context, cfg StreamConfig, js jetstream.JetStream) error {
	image := make([]byte, cfg.FrameBytes)
	if _, err := rand.Read(image); err != nil {
		return err
	}
	run := fmt.Sprint(time.Now().UnixNano())
	var acks []jetstream.PubAckFuture
	for i := range cfg.Frames {
		m, err := stream.Frame{Detector: benchDetector, Camera: fmt.Sprint("camera-", i%cfg.Cameras), ID: fmt.Sprintf("%s-%d", run, i), Image: image}.Message(cfg.Names)
		if err != nil {
			return err
		}
		ack, err := js.PublishMsgAsync(m, jetstream.WithStallWait(time.Minute))
		if err != nil {
			return fmt.Errorf("bench: publish frame %d: %w", i, err)
		}
		acks = append(acks, ack)
	}
	for i, ack := range acks {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ack.Ok():
		case err := <-ack.Err():
			return fmt.Errorf("bench: publish frame %d: %w", i, err)
		}
	}
	return nil
}

type benchRun struct {
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	workers []*worker.Worker
	conns   []*nats.Conn
	total   atomic.Int64
	more    chan struct{}
}

// startBench starts the workers.
func startBench(ctx context.Context, cfg StreamConfig, log zerolog.Logger) (*benchRun, error) {
	r := &benchRun{more: make(chan struct{}, 1)}
	ctx, r.cancel = context.WithCancel(ctx)
	for i := range cfg.Workers {
		nc, err := cfg.Connect(fmt.Sprint("bench-worker-", i))
		if err != nil {
			r.stop()
			return nil, err
		}
		r.conns = append(r.conns, nc)
		w, err := worker.New(worker.Config{
			Names: cfg.Names, Detectors: []string{benchDetector}, CacheDir: filepath.Join(cfg.Dir, "cache"),
			BatchSize: benchBatch, Lanes: benchLanes,
		}, nc, func(context.Context, string) (worker.Scorer, error) { return nullScorer{r}, nil }, log)
		if err != nil {
			r.stop()
			return nil, err
		}
		r.workers = append(r.workers, w)
		r.wg.Go(func() { _ = w.Run(ctx) })
	}
	return r, nil
}

// wait returns when so many frames have been scored.
func (r *benchRun) wait(ctx context.Context, frames int) error {
	for r.total.Load() < int64(frames) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.more:
		}
	}
	return nil
}

// stop ends the workers and returns how many frames each scored.
func (r *benchRun) stop() []int {
	r.cancel()
	r.wg.Wait()
	var share []int
	for _, w := range r.workers {
		share = append(share, int(w.Stats().Scored))
	}
	for _, nc := range r.conns {
		nc.Close()
	}
	return share
}

// nullScorer finds everything normal and takes no time.
type nullScorer struct{ r *benchRun }

func (s nullScorer) Score(_ context.Context, images [][]byte) ([]worker.Verdict, error) {
	out := slices.Repeat([]worker.Verdict{{Threshold: 1, PValue: 1, K: 1, Width: 1, Height: 1}}, len(images))
	s.r.total.Add(int64(len(images)))
	select {
	case s.r.more <- struct{}{}:
	default:
	}
	return out, nil
}

func (nullScorer) Close() error { return nil }
