package optim

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"slices"

	"github.com/google/renameio/v2"

	"github.com/nearmiss/nearmiss/inference/ort"
)

// A checkpoint file is, in this order:
//
//	8 bytes   "NMTRAIN" and the version, 1
//	8 bytes   length of the header, little-endian
//	header    JSON: see checkpointHeader
//	tensors   float32, little-endian, one after another as the header lists them
//	32 bytes  SHA-256 of everything before
const (
	checkpointMagic   = "NMTRAIN"
	checkpointVersion = 1
	// maxHeader bounds what is read as a header.
	maxHeader = 64 << 20
)

// ErrCheckpoint: a file is no checkpoint, is damaged, or belongs to another
// training.
var ErrCheckpoint = errors.New("checkpoint cannot be used")

type checkpointHeader struct {
	Name       string             `json:"name"`
	Step       int                `json:"step"`
	Optimizer  Optimizer          `json:"optimizer"`
	Accumulate int                `json:"accumulate"`
	Tensors    []checkpointTensor `json:"tensors"`
	Extra      json.RawMessage    `json:"extra,omitempty"`
}

type checkpointTensor struct {
	Name  string `json:"name"` // of the weight; behind a slot's name and a slash: of its state
	Shape []int  `json:"shape"`
}

// header describes the trainer's present state.
func (t *Trainer) header() checkpointHeader {
	h := checkpointHeader{Name: t.spec.Name, Step: t.step, Optimizer: t.spec.Optimizer, Accumulate: t.spec.Accumulate}
	for _, slot := range append([]string{""}, t.spec.Optimizer.slots()...) {
		if slot != "" {
			slot += "/"
		}
		for _, w := range t.trained {
			h.Tensors = append(h.Tensors, checkpointTensor{slot + w.name, w.shape})
		}
	}
	return h
}

// Save writes everything that Load needs to go on bit for bit: the trained
// weights, the optimiser's state and the number of steps. extra, which may be
// nil, is kept as JSON for the caller. The file appears whole or not at all.
func (t *Trainer) Save(path string, extra any) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("save checkpoint %s: %w", path, err)
		}
	}()
	if t.session == nil {
		return ort.ErrClosed
	}
	h := t.header()
	if extra != nil {
		if h.Extra, err = json.Marshal(extra); err != nil {
			return err
		}
	}
	header, err := json.Marshal(h)
	if err != nil {
		return err
	}
	f, err := renameio.NewPendingFile(path, renameio.WithPermissions(0o644))
	if err != nil {
		return err
	}
	defer f.Cleanup()
	sum := sha256.New()
	buffered := bufio.NewWriterSize(f, 1<<20)
	w := io.MultiWriter(buffered, sum)
	prefix := append([]byte(checkpointMagic), checkpointVersion)
	prefix = binary.LittleEndian.AppendUint64(prefix, uint64(len(header)))
	for _, b := range [][]byte{prefix, header} {
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	for _, x := range t.cur {
		if err := t.fetch(x, func(x *ort.Tensor) error {
			_, err := w.Write(x.Bytes())
			return err
		}); err != nil {
			return err
		}
	}
	if _, err := buffered.Write(sum.Sum(nil)); err != nil {
		return err
	}
	if err := buffered.Flush(); err != nil {
		return err
	}
	return f.CloseAtomicallyReplace()
}

func stateBytes(state []*ort.Tensor) [][]byte {
	var out [][]byte
	for _, x := range state {
		out = append(out, x.Bytes())
	}
	return out
}

// Load takes up a saved training, which must have the same name, optimiser and
// trained weights; its schedule and clipping may be others. It returns what was
// given to Save as extra, nil if nothing. On an error nothing has changed.
func (t *Trainer) Load(path string) (extra json.RawMessage, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("load checkpoint %s: %w", path, err)
		}
	}()
	if t.session == nil {
		return nil, ort.ErrClosed
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	state, err := t.spare()
	if err != nil {
		return nil, err
	}
	if t.resident {
		defer ort.CloseAll(state...)
	}
	h, err := readCheckpoint(f, t.header(), stateBytes(state))
	if err != nil {
		return nil, err
	}
	for i, x := range state {
		if t.resident {
			if err := t.device.Copy(t.next[i], x); err != nil {
				return nil, err
			}
		}
	}
	t.cur, t.next = t.next, t.cur
	t.step = h.Step
	return h.Extra, nil
}

// spare is memory for a state: that which the next step overwrites where Go sees it.
func (t *Trainer) spare() ([]*ort.Tensor, error) {
	if !t.resident {
		return t.next, nil
	}
	var out []*ort.Tensor
	for _, x := range t.next {
		here, err := ort.Zeros(x.Type(), x.Shape()...)
		if err != nil {
			return nil, err
		}
		out = append(out, here)
	}
	return out, nil
}

// readCheckpoint reads a checkpoint of the state that want describes into the
// given memory.
func readCheckpoint(r io.Reader, want checkpointHeader, state [][]byte) (checkpointHeader, error) {
	var h checkpointHeader
	sum := sha256.New()
	in := &hashing{bufio.NewReaderSize(r, 1<<20), sum}
	prefix := make([]byte, 16)
	if err := in.full(prefix); err != nil {
		return h, err
	}
	if string(prefix[:7]) != checkpointMagic {
		return h, fmt.Errorf("%w: it is not a checkpoint of training", ErrCheckpoint)
	}
	if prefix[7] != checkpointVersion {
		return h, fmt.Errorf("%w: it has version %d, this program reads %d", ErrCheckpoint, prefix[7], checkpointVersion)
	}
	n := binary.LittleEndian.Uint64(prefix[8:])
	if n > maxHeader {
		return h, fmt.Errorf("%w: a header of %d bytes", ErrCheckpoint, n)
	}
	var text bytes.Buffer // grows with what is there, not with what is claimed
	if _, err := io.CopyN(&text, in, int64(n)); err != nil {
		return h, fmt.Errorf("%w: it ends in its header", ErrCheckpoint)
	}
	if err := json.Unmarshal(text.Bytes(), &h); err != nil {
		return h, fmt.Errorf("%w: its header: %w", ErrCheckpoint, err)
	}
	if err := want.accepts(h); err != nil {
		return h, fmt.Errorf("%w: %w", ErrCheckpoint, err)
	}
	for _, b := range state {
		if err := in.full(b); err != nil {
			return h, err
		}
	}
	wantSum := sum.Sum(nil)
	gotSum := make([]byte, len(wantSum))
	if err := in.full(gotSum); err != nil {
		return h, err
	}
	if !bytes.Equal(gotSum, wantSum) {
		return h, fmt.Errorf("%w: its checksum is wrong", ErrCheckpoint)
	}
	if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
		return h, fmt.Errorf("%w: there is something behind its end", ErrCheckpoint)
	}
	return h, nil
}

// accepts says why a checkpoint does not fit the training that h describes.
func (h checkpointHeader) accepts(c checkpointHeader) error {
	a, b := h.Optimizer, c.Optimizer
	switch {
	case c.Name != h.Name:
		return fmt.Errorf("it is of %q, not of %q", c.Name, h.Name)
	case a.Kind != b.Kind || a.Momentum != b.Momentum || a.Beta1 != b.Beta1 || a.Beta2 != b.Beta2 || (a.EMA > 0) != (b.EMA > 0):
		return fmt.Errorf("its optimiser is %+v, not %+v", b, a)
	case c.Step < 0:
		return fmt.Errorf("it says step %d", c.Step)
	case len(c.Tensors) != len(h.Tensors):
		return fmt.Errorf("it has %d tensors, not %d", len(c.Tensors), len(h.Tensors))
	}
	for i, x := range h.Tensors {
		if y := c.Tensors[i]; x.Name != y.Name || !slices.Equal(x.Shape, y.Shape) {
			return fmt.Errorf("its tensor %d is %s%v, not %s%v", i, y.Name, y.Shape, x.Name, x.Shape)
		}
	}
	return nil
}

// hashing reads and hashes.
type hashing struct {
	*bufio.Reader
	sum hash.Hash
}

func (h *hashing) Read(b []byte) (int, error) {
	n, err := h.Reader.Read(b)
	h.sum.Write(b[:n])
	return n, err
}

func (h *hashing) full(b []byte) error {
	if _, err := io.ReadFull(h, b); err != nil {
		return fmt.Errorf("%w: it ends too early", ErrCheckpoint)
	}
	return nil
}
