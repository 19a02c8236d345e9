package inference

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/ort"
	"github.com/nearmiss/nearmiss/inference/release"
	"github.com/nearmiss/nearmiss/internal/memory"
)

// The surface of a backbone's ONNX file, as package inference/backbone writes it.
const (
	inputImage         = "image"     // uint8 [N, S, S, 3]
	outputEmbedding    = "embedding" // float [N, D]
	metadataPreprocess = "nearmiss.preprocess"
	metadataBackbone   = "nearmiss.backbone"
)

var (
	// ErrNotFinite: the model gave an embedding with a NaN or an infinity. Such
	// an image has no score, least of all a normal one.
	ErrNotFinite = errors.New("the embedding is not finite")
	// ErrClosed: the Embedder or Detector was closed.
	ErrClosed = errors.New("it is closed")
)

// EmbedOptions adjust an Embedder. The zero value is a sensible choice for the
// CPU.
type EmbedOptions struct {
	// Device runs the model. Default cpu. With Graph, runs on one image and on a whole
	// batch are captured, where that gives what the model gives: see Embedder.Captured.
	Device ort.Device
	// Threads is the number of CPU threads that the model computes on. On the
	// CPU as many batches are computed at the same time, each by one thread,
	// over one copy of the weights. Default: all cores.
	Threads int
	// Workers is the number of goroutines that decode and resize. Default: all
	// cores.
	Workers int
	// Batch is the most images in one run of the model; fewer where no more are ready:
	// the model never idles while an image is, and batches grow by themselves while it
	// is busy. Default 4 on the CPU, 32 elsewhere.
	Batch int
	// Queue bounds the images that wait, decoded, for the model. Default: two
	// batches for each thread.
	Queue int
	// Limits bound the image files that are decoded.
	Limits imaging.Limits
	// Memory bounds what all decoders that share it take together, by what the
	// headers of the files say. Default: no bound but Limits for each file.
	Memory *memory.Budget
	// Preprocess replaces what the model's metadata says.
	Preprocess *imaging.Preprocess
	// View is the part of each image file that counts, in place of what
	// Preprocess says. Images that are decoded already are taken as they are.
	View *imaging.View
	// Whole squeezes all of the view into the model's square, where Preprocess says
	// that its middle is cut out.
	Whole bool
	// Tone is how bright pictures are made, in place of what Preprocess says.
	Tone *imaging.Tone
	// Symmetry is what embeddings are averaged over, in place of what Preprocess
	// says. Patches are those of the image as it is.
	Symmetry imaging.Symmetry
	// Tiles, where there are any, are what patches are taken from, in place of what
	// Preprocess says. The Embedder finds the overlap that suits the model.
	Tiles imaging.Tiles
	// Patches are the outputs of patch vectors, float [N, P, E], that are asked for,
	// too.
	Patches []string
	// Precision is that of the model's products: release.Float32, the default,
	// release.Half, which is faster on accelerators, or release.Int8, on the CPU only,
	// where images are then computed one at a time.
	Precision string
	// FloatProducts are those, by the names of their results, that are computed in 32
	// bits all the same with release.Int8; SpoiltByInt8 finds them.
	FloatProducts []string
	// Session has further options of ONNX Runtime; its Device, IntraOpThreads, Half
	// and KeepEngines are overwritten.
	Session ort.Options
}

// Embedding is what the model says of one image.
type Embedding struct {
	// Vector is the embedding, D numbers; nil where Err is set.
	Vector []float32
	// Patches are the P×E patch vectors, row-major and rows of the image first, of
	// each output that was asked for: one grid over all tiles, where there are any.
	Patches [][]float32
	// Width and Height are those of the upright image, in pixels.
	Width, Height int
	// Err says why there is no Vector: an *imaging.RejectError for an image
	// that cannot be used, or ErrNotFinite.
	Err error
}

// Embedder computes embeddings. All methods may be called from many goroutines.
type Embedder struct {
	o          EmbedOptions
	session    session
	preprocess imaging.Preprocess
	backbone   json.RawMessage
	dim        int
	patches    []patchOutput
	limit      int                   // images in a batch
	inputs     int                   // of the model, of one image
	fixed      int                   // the model's own batch, 0 where it takes any
	embedding  int                   // index of the output
	row        []int                 // dimensions of one embedding; nil where the outputs of a batch are not apart
	captured   map[int]*ort.Captured // by the number of inputs
	uncaptured error                 // why none is, although the device asks

	embedderLife
	buffers sync.Pool // of *[]uint8: one preprocessed image
}

// embedderLife is an embedder's goroutines and how they end.
type embedderLife struct {
	jobs    chan *job     // to be decoded
	ready   chan *job     // to be embedded
	quit    chan struct{} // closed by Close
	ctx     context.Context
	cancel  context.CancelFunc
	workers sync.WaitGroup
	runners sync.WaitGroup
	calls   sync.WaitGroup
	mu      sync.Mutex // guards closed
	closed  bool
}

// job is one image on its way.
type job struct {
	call   *call
	index  int
	file   []byte
	img    *imaging.Image
	pixels *[]uint8 // from the pool, or the caller's own
	own    bool     // whether pixels go back to the pool
	whole  bool     // there are no tiles
}

// call is one Embed.
type call struct {
	ctx  context.Context
	out  []Embedding
	mu   sync.Mutex
	left int
	err  error // of the whole call
	done chan struct{}
}

// finish counts one image; the first error that is no image's own ends the call.
func (c *call) finish(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil && c.err == nil {
		c.err = err
	}
	if c.left--; c.left == 0 {
		close(c.done)
	}
}

// NewEmbedder loads the backbone at path, an ONNX file with an input "image"
// (uint8 [N, S, S, 3]) and an output "embedding" (float [N, D]), runs it once
// on a black image, and starts its workers. Close stops them.
func NewEmbedder(path string, o EmbedOptions) (*Embedder, error) {
	e, err := newEmbedder(path, o, openSession)
	if err != nil {
		return nil, fmt.Errorf("load backbone %s: %w", path, err)
	}
	return e, nil
}

// session is a loaded model.
type session interface {
	Inputs() []ort.Info
	Outputs() []ort.Info
	Metadata() map[string]string
	RunInto(ctx context.Context, in, out []*ort.Tensor) error
	Close() error
}

// opening loads a model as OpenBackbone does it.
type opening func(path, precision string, float []string, o ort.Options) (session, error)

func openSession(path, precision string, float []string, o ort.Options) (session, error) {
	return OpenBackbone(path, precision, float, o)
}

// newEmbedder does it once more without the engines that TensorRT kept, where it could
// not read them: that is found out when the model is probed.
func newEmbedder(path string, o EmbedOptions, open opening) (*Embedder, error) {
	e, err := startEmbedder(path, o, open)
	var stale *ort.EnginesError
	if !errors.As(err, &stale) {
		return e, err
	}
	if err := stale.Drop(); err != nil {
		return nil, err
	}
	return startEmbedder(path, o, open)
}

func startEmbedder(path string, o EmbedOptions, open opening) (_ *Embedder, err error) {
	cpu := o.Device.IsCPU()
	if o.Batch < 0 {
		return nil, fmt.Errorf("batches of %d images: give a number above 0, or 0 for the default", o.Batch)
	}
	o.Threads = cmp.Or(max(o.Threads, 0), runtime.GOMAXPROCS(0))
	o.Workers = cmp.Or(max(o.Workers, 0), runtime.GOMAXPROCS(0))
	if o.Batch == 0 {
		o.Batch = 4
		if !cpu {
			o.Batch = 32
		}
	}
	runners := o.Threads
	o.Session.Device, o.Session.KeepEngines = o.Device, true
	o.Session.IntraOpThreads = 1
	if !cpu {
		runners = 2 // one computes while the other gathers
		o.Session.IntraOpThreads = o.Threads
	}
	e := &Embedder{o: o}
	if e.session, err = open(path, o.Precision, o.FloatProducts, o.Session); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = e.session.Close()
		}
	}()
	if err := e.inspect(); err != nil {
		return nil, err
	}
	// A batch has as many inputs as ever, which makes fewer images of them.
	e.inputs = e.preprocess.Symmetry.Count() + e.preprocess.Tiles.Count()
	e.limit = max(1, o.Batch/e.inputs)
	if e.fixed > 0 {
		e.limit = min(e.limit, max(1, e.fixed/e.inputs))
	}
	if o.Precision == release.Int8 {
		e.limit = 1 // the range of 8 bits is that of a batch: company must not change a score
	}
	o.Queue = cmp.Or(max(o.Queue, 0), 2*e.limit*runners)
	e.buffers.New = func() any {
		b := make([]uint8, e.preprocess.Bytes())
		return &b
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	if err := e.probe(); err != nil {
		e.cancel()
		return nil, err
	}
	if o.Device.Graph {
		if err := e.capture(path, open); err != nil {
			e.uncaptured = e.uncapture(err)
			e.o.Device.Graph, e.o.Session.Device.Graph = false, false
		}
	}
	e.jobs = make(chan *job, o.Workers)
	e.ready = make(chan *job, o.Queue)
	e.quit = make(chan struct{})
	for range o.Workers {
		e.workers.Go(e.decode)
	}
	for range runners {
		e.runners.Go(func() { e.work(runners) })
	}
	return e, nil
}

// mostInput is how many bytes of images are made up because a model says that it takes them.
const mostInput = 1 << 30

// inspect reads the model's surface.
func (e *Embedder) inspect() error {
	in, out := e.session.Inputs(), e.session.Outputs()
	if len(in) != 1 || in[0].Type != ort.Uint8 || len(in[0].Shape) != 4 || in[0].Shape[3] != 3 {
		return fmt.Errorf(`its input must be one uint8 image [N, S, S, 3], it has %v: run "nearmiss backbone import"`, in)
	}
	e.embedding = slices.IndexFunc(out, func(o ort.Info) bool { return o.Name == outputEmbedding })
	if e.embedding < 0 && len(out) == 1 {
		e.embedding = 0
	}
	if e.embedding < 0 || out[e.embedding].Type != ort.Float {
		return fmt.Errorf(`it has no float output %q: run "nearmiss backbone import"`, outputEmbedding)
	}
	for _, name := range e.o.Patches {
		at := slices.IndexFunc(out, func(o ort.Info) bool { return o.Name == name })
		if at < 0 {
			return fmt.Errorf("it has no output %q: fit a release of the backbone", name)
		}
		e.patches = append(e.patches, patchOutput{at: at})
	}
	meta := e.session.Metadata()
	switch text, ok := meta[metadataPreprocess]; {
	case e.o.Preprocess != nil:
		e.preprocess = *e.o.Preprocess
	case !ok:
		return fmt.Errorf(`it does not say how images are prepared for it (metadata %q): run "nearmiss backbone import"`, metadataPreprocess)
	default:
		if err := json.Unmarshal([]byte(text), &e.preprocess); err != nil {
			return fmt.Errorf("its metadata %q: %w", metadataPreprocess, err)
		}
	}
	if e.o.View != nil {
		e.preprocess.View = e.o.View
	}
	if e.o.Tone != nil {
		e.preprocess.Tone = e.o.Tone
	}
	if e.o.Whole {
		e.preprocess.Squash = true
	}
	if e.o.Symmetry != "" {
		e.preprocess.Symmetry = e.o.Symmetry
	}
	if t := e.o.Tiles; t.Count() > 0 {
		t.Overlap = 0 // until the probe
		e.preprocess.Tiles = &t
	}
	if err := e.preprocess.Validate(); err != nil {
		return fmt.Errorf("its metadata %q: %w", metadataPreprocess, err)
	}
	if text := meta[metadataBackbone]; json.Valid([]byte(text)) {
		e.backbone = json.RawMessage(text)
	}
	for _, side := range in[0].Shape[1:3] {
		if side != -1 && side != e.preprocess.Crop {
			return fmt.Errorf("its input is %v, but images are prepared as %d×%d", in[0].Shape, e.preprocess.Crop, e.preprocess.Crop)
		}
	}
	if n := in[0].Shape[0]; n > 0 {
		e.fixed = n
		if n > mostInput/e.preprocess.InputBytes() {
			return fmt.Errorf("it takes %d images at a time, more than %d MiB: export it with a free first dimension", n, mostInput>>20)
		}
		if n > 1 && e.o.Precision == release.Int8 {
			return fmt.Errorf("it takes %d images at a time, and 8 bits take one: export it with a free first dimension", n)
		}
		if e.preprocess.Symmetry.Count() > 1 {
			return fmt.Errorf("it takes %d images at a time, and averaging over symmetry %q needs any number: export it with a free first dimension", n, e.preprocess.Symmetry)
		}
	}
	return nil
}

// probe embeds a black image, to learn the dimensions and to fail early.
func (e *Embedder) probe() error {
	n := max(e.fixed, 1)
	r := &runner{Embedder: e, input: make([]uint8, n*e.preprocess.InputBytes())}
	out, err := r.once(r.input)
	if err != nil {
		return err
	}
	e.dim = len(out.vectors) / n
	if e.dim == 0 || len(out.vectors)%n != 0 {
		return fmt.Errorf("it gave %d numbers for %d images", len(out.vectors), n)
	}
	if len(out.shape) > 0 && out.shape[0] == n {
		e.row = out.shape[1:]
	}
	for i, shape := range out.shapes {
		if len(shape) != 3 || shape[0] != n || shape[1] < 1 || shape[2] < 1 {
			return fmt.Errorf("its output %q is %v for %d images, want [%d, P, E]", e.o.Patches[i], shape, n, n)
		}
		e.patches[i].count, e.patches[i].dim, e.patches[i].all = shape[1], shape[2], shape[1]
	}
	if e.o.Device.Kind == "tensorrt" && e.fixed == 0 {
		// An engine is built, for minutes, for the sizes of batches that were seen: that
		// is over before the first image comes.
		if _, err := r.once(make([]uint8, e.run(0)*e.preprocess.InputBytes())); err != nil {
			return err
		}
	}
	return e.tile()
}

// Dim is the length of an embedding.
func (e *Embedder) Dim() int { return e.dim }

// Preprocess is how images are prepared for the model.
func (e *Embedder) Preprocess() imaging.Preprocess { return e.preprocess }

// Backbone is what the model's metadata says of it (JSON), or nil.
func (e *Embedder) Backbone() json.RawMessage { return slices.Clone(e.backbone) }

// PatchOutputs are those that were asked for, in the order of Embedding.Patches.
func (e *Embedder) PatchOutputs() []string { return slices.Clone(e.o.Patches) }

// Options are those that the Embedder was made with, defaults filled in.
func (e *Embedder) Options() EmbedOptions { return e.o }

// BatchSize is the largest batch that the model is given.
func (e *Embedder) BatchSize() int { return e.limit }

// Embed decodes and embeds image files. The result has one entry for each file,
// in their order; a file that cannot be used has an Err of its own. The call
// fails as a whole only when ctx ends, the model fails, or the Embedder is
// closed. The files must not change while it runs, nor after a failure.
func (e *Embedder) Embed(ctx context.Context, files [][]byte) ([]Embedding, error) {
	return e.embed(ctx, len(files), func(i int) *job { return &job{file: files[i]} })
}

// EmbedImages embeds decoded images, like Embed; a view counts as applied.
func (e *Embedder) EmbedImages(ctx context.Context, images []*imaging.Image) ([]Embedding, error) {
	return e.embed(ctx, len(images), func(i int) *job { return &job{img: images[i]} })
}

// Vectors embeds decoded images that must all be of use: one vector of Dim
// numbers for each, in their order, or the first image's error.
func (e *Embedder) Vectors(ctx context.Context, images []*imaging.Image) ([][]float32, error) {
	all, err := e.EmbedImages(ctx, images)
	if err != nil {
		return nil, err
	}
	out := make([][]float32, len(all))
	for i, v := range all {
		if v.Err != nil {
			return nil, fmt.Errorf("embed image %d: %w", i, v.Err)
		}
		out[i] = v.Vector
	}
	return out, nil
}

// EmbedPixels embeds images that are prepared already, as Preprocess.Apply gives
// them: Crop×Crop RGB pixels each, and those of the tiles. Without the latter, where
// there should be some, an image gets no patches.
func (e *Embedder) EmbedPixels(ctx context.Context, pixels [][]uint8) ([]Embedding, error) {
	for i, p := range pixels {
		if len(p) != e.preprocess.Bytes() && len(p) != e.preprocess.InputBytes() {
			return nil, fmt.Errorf("embed image %d: %d bytes of pixels, want %d", i, len(p), e.preprocess.Bytes())
		}
	}
	return e.embed(ctx, len(pixels), func(i int) *job {
		return &job{pixels: &pixels[i], whole: len(pixels[i]) < e.preprocess.Bytes()}
	})
}

func (e *Embedder) embed(ctx context.Context, n int, at func(i int) *job) ([]Embedding, error) {
	if n == 0 {
		return nil, ctx.Err()
	}
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil, fmt.Errorf("embed: %w", ErrClosed)
	}
	e.calls.Add(1)
	e.mu.Unlock()
	defer e.calls.Done()

	c := &call{ctx: ctx, out: make([]Embedding, n), left: n, done: make(chan struct{})}
	for i := range n {
		j := at(i)
		j.call, j.index = c, i
		select {
		case e.jobs <- j:
		case <-ctx.Done():
			return nil, fmt.Errorf("embed %d images: %w", n, ctx.Err())
		case <-e.quit:
			return nil, fmt.Errorf("embed %d images: %w", n, ErrClosed)
		}
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		return nil, fmt.Errorf("embed %d images: %w", n, ctx.Err())
	case <-e.quit: // the batch may be waiting for company
		return nil, fmt.Errorf("embed %d images: %w", n, ErrClosed)
	}
	if c.err != nil {
		return nil, fmt.Errorf("embed %d images: %w", n, c.err)
	}
	return c.out, nil
}

// decode is a worker: files and images in, the model's input out.
func (e *Embedder) decode() {
	for j := range e.jobs {
		if j.call.ctx.Err() != nil {
			j.call.finish(j.call.ctx.Err())
			continue
		}
		if err := e.prepare(j); err != nil {
			ended := j.call.ctx.Err() // while it waited for memory
			if ended == nil {
				j.call.out[j.index].Err = err
			}
			j.call.finish(ended)
			continue
		}
		e.ready <- j
	}
}

func (e *Embedder) prepare(j *job) error {
	out := &j.call.out[j.index]
	if j.pixels != nil { // prepared by the caller
		out.Width, out.Height = e.preprocess.Crop, e.preprocess.Crop
		return nil
	}
	j.pixels, j.own = e.buffers.Get().(*[]uint8), true
	var err error
	if j.img != nil {
		out.Width, out.Height = j.img.Width, j.img.Height
		err = e.preprocess.ApplyImage(j.img, *j.pixels)
	} else {
		err = e.read(j, out)
	}
	j.file, j.img = nil, nil
	if err != nil {
		e.release(j)
	}
	return err
}

// read decodes a file within the memory that all share.
func (e *Embedder) read(j *job, out *Embedding) error {
	h, err := imaging.Inspect(j.file, e.o.Limits)
	out.Width, out.Height = h.Width, h.Height
	if err != nil {
		return err
	}
	release, err := e.o.Memory.Acquire(j.call.ctx, e.preprocess.Memory(h))
	if err != nil {
		return err
	}
	defer release()
	_, err = e.preprocess.Apply(j.file, e.o.Limits, *j.pixels)
	return err
}

func (e *Embedder) release(j *job) {
	if j.own {
		e.buffers.Put(j.pixels)
	}
	j.pixels = nil
}

// Close stops the workers and unloads the model. Calls under way fail with
// ErrClosed or finish.
func (e *Embedder) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	e.mu.Unlock()
	close(e.quit)
	e.calls.Wait()
	close(e.jobs)
	e.workers.Wait()
	close(e.ready)
	e.runners.Wait()
	e.cancel()
	return errors.Join(e.uncapture(nil), e.session.Close())
}
