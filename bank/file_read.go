package bank

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"time"
	"unsafe"

	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/mapped"
)

// ReadOptions are the parts of Options that a file does not hold.
type ReadOptions struct {
	// Verified says that these are bytes which a bank wrote, because they were
	// compared with their digest. Entries and links are then not looked through, nor
	// their checksums where there are many, and an approximate index serves as the
	// recall gate judged it when it was written: reading takes no longer for a large
	// bank. Even so, no bytes make a search fail worse than with an error or a wrong
	// answer.
	Verified bool
	// Batch answers large batches of exact search; nil for loops on the CPU.
	Batch BatchEngine
	// Log gets the warnings of the recall gate. The zero value is silent.
	Log zerolog.Logger
}

// ReadFile reads a bank: ErrVersion, ErrCorrupt, or what the file system says. An
// approximate index is put to the recall gate again, with the queries that the file
// keeps, unless o says otherwise; coder's is built anew.
//
// Where the machine can, the bank searches in the file, which may be removed or
// replaced meanwhile but not written to, until it is closed or changed: Close ends
// its use, and the first Add or Remove takes everything into memory, as coder's
// index does from the start.
func ReadFile(path string, o ReadOptions) (*Bank, error) {
	f, err := mapped.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read bank: %w", err)
	}
	b, err := decode(f.Data, o)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read bank %s: %w", path, err), f.Close())
	}
	if !b.rows.inFile {
		if err := f.Close(); err != nil {
			return nil, fmt.Errorf("read bank %s: %w", path, err)
		}
		return b, nil
	}
	b.file = f
	return b, nil
}

// decode reads a bank that stays in the bytes of p. It allocates no more than a
// small multiple of them, whatever they claim.
func decode(p []byte, o ReadOptions) (_ *Bank, err error) {
	table, err := readTable(p, o.Verified)
	if err != nil {
		return nil, err
	}
	var m meta
	if err := table.json("meta", &m); err != nil {
		return nil, err
	}
	if m.Count < 0 || m.Count > 1<<31-1 || m.Dim < 1 || m.Dim > maxDim {
		return nil, corrupt("meta says %d entries of dimension %d", m.Count, m.Dim)
	}
	ids, err := inPlace[uint64](table, "ids ", m.Count)
	if err != nil {
		return nil, err
	}
	data, err := inPlace[float32](table, "rows", m.Count*m.Dim)
	if err != nil {
		return nil, err
	}
	opts := Options{
		Dim: m.In, K: m.K, Kind: m.Wanted, Cutoff: m.Cutoff, Graph: m.Graph, Gate: m.Gate,
		Batch: o.Batch, Log: o.Log,
	}
	if table.has("xfrm") {
		if m.In < 1 || m.In > maxDim {
			return nil, corrupt("meta says embeddings of dimension %d", m.In)
		}
		x, err := readNumbers[float32](table, "xfrm", m.In*(m.Dim+1))
		if err != nil {
			return nil, err
		}
		opts.Transform = &Transform{Mean: x[:m.In:m.In], Matrix: x[m.In:]}
	} else if m.In != m.Dim {
		return nil, corrupt("embeddings of dimension %d, entries of dimension %d, and no transform", m.In, m.Dim)
	}
	b, err := New(opts)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	defer func() {
		if err != nil {
			_ = b.Close() // the first error says more
		}
	}()
	b.rows.ids, b.rows.data, b.rows.row, b.rows.inFile = ids, data, nil, true
	if !o.Verified {
		if err := b.rows.check(); err != nil {
			return nil, err
		}
	}
	if m.Alpha != nil {
		if err := b.restoreCalibration(table, m); err != nil {
			return nil, err
		}
	}
	if err := b.restore(table, m); err != nil {
		return nil, err
	}
	return b, nil
}

func (b *Bank) restoreCalibration(table *fileTable, m meta) error {
	scores, err := readNumbers[float64](table, "held", -1)
	if err != nil {
		return err
	}
	if b.calibration, err = NewCalibration(scores, *m.Alpha); err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if m.Worth != 0 || m.Alike != 0 {
		if m.Worth == 0 {
			m.Worth = float64(len(scores))
		}
		if !(m.Worth >= 1 && m.Worth <= float64(len(scores)) && m.Alike >= 0) {
			return corrupt("%d held-out scores are worth %g, of frames of which %g are alike", len(scores), m.Worth, m.Alike)
		}
		b.calibration = b.calibration.Resting(m.Worth, m.Alike)
	}
	if table.has("hvec") {
		b.heldOut, err = readVectors(table, "hvec", m.Dim, len(scores))
	}
	return err
}

// own takes into memory what is in a file, so that it can be changed. The caller
// holds b.change.
func (b *Bank) own() error {
	r := b.rows
	if r.closed {
		return ErrClosed
	}
	if !r.inFile {
		return nil
	}
	h, _ := b.Index().(*hnsw)
	if h != nil {
		h.writer.Lock()
		defer h.writer.Unlock()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.check(); err != nil {
		return err
	}
	if h != nil {
		if err := h.graph.checkLinks(); err != nil {
			return err
		}
		h.graph.own()
		if h.codes != nil {
			h.codes.data = slices.Clone(h.codes.data)
		}
	}
	r.dropPrepared()
	r.ids, r.data, r.inFile = slices.Clone(r.ids), slices.Clone(r.data), false
	if b.file == nil {
		return nil
	}
	f := b.file
	b.file = nil
	return f.Close()
}

// restore puts back the index that served when the file was written.
func (b *Bank) restore(table *fileTable, m meta) error {
	start := time.Now()
	var queries []float32
	var err error
	if table.has("gate") {
		if queries, err = readVectors(table, "gate", b.rows.dim, b.gate.Queries); err != nil {
			return err
		}
	}
	var index Index = &exact{rows: b.rows}
	judged := table.verified && m.Report.Kind == m.Kind // it need not be judged again
	switch m.Kind {
	case Exact:
		judged = true
	case Sketch:
		x := newSketched(b.rows)
		if want := 1 + axesOf(b.rows.dim); table.has("axes") { // banks of version 1 find them anew
			axes, err := readVectors(table, "axes", b.rows.dim, want)
			if err != nil {
				return err
			}
			if len(axes) != want*b.rows.dim {
				return corrupt("section %q has %d numbers, want %d×%d", "axes", len(axes), want, b.rows.dim)
			}
			x.axes = newAxes(axes, b.rows.dim)
		}
		if judged = judged && m.Report.Blocks >= fewestBlocks && m.Report.Blocks <= mostBlocks; judged {
			x.blocks = m.Report.Blocks
		}
		index = x
	case HNSW:
		lists, err := inPlace[uint32](table, "hnsw", -1)
		if err != nil {
			return err
		}
		h, err := decodeHNSW(b.rows, lists)
		if err == nil && !table.verified {
			err = h.graph.checkLinks()
		}
		if err != nil {
			return err
		}
		if h.codes, err = readCodes(table, b.rows.dim, m.Count); err != nil {
			return err
		}
		index = h
	case Coder:
		judged = false
		if err := b.own(); err != nil { // its graph keeps the rows
			return err
		}
		x, err := buildCoder(context.Background(), b.rows, b.graph)
		if err != nil {
			b.log.Warn().Err(err).Msg("the coder index could not be built")
		} else {
			index = x
		}
	default:
		return corrupt("unknown kind of index %q", m.Kind)
	}
	if judged {
		b.index, b.report, b.queries = index, m.Report, queries
		if h, ok := index.(*hnsw); ok && h.codes == nil && b.report.Coded { // this machine has no use for them
			b.report.Coded = false
			b.report.GraphBytes -= int64(m.Count * codeWidth(m.Dim))
		}
		b.report.BuildSeconds = time.Since(start).Seconds()
		return nil
	}
	report, err := b.judgeIndex(context.Background(), m.Kind, index, queries, time.Since(start))
	if err != nil {
		return err
	}
	b.install(index, report, queries)
	return nil
}

// readCodes gives the codes of n rows, or nil where there are none, or where the
// rows are as fast without.
func readCodes(table *fileTable, dim, n int) (*codes, error) {
	if !table.has("code") {
		return nil, nil
	}
	c := &codes{width: codeWidth(dim)}
	scale, err := readNumbers[float32](table, "scal", 1+dim)
	if err != nil {
		return nil, err
	}
	if c.scale, c.mean = scale[0], scale[1:]; !(c.scale > 0) || isBad(norm2(scale)) {
		return nil, corrupt("the scale of the codes is %v", c.scale)
	}
	if c.data, err = inPlace[uint8](table, "code", n*c.width); err != nil || !accelerated {
		return nil, err
	}
	return c, nil
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

// fileTable is a checked section table of a file's bytes: its sections lie in them.
type fileTable struct {
	bytes    []byte
	verified bool // by whoever brought them
	entries  map[string]fileEntry
}

type fileEntry struct {
	crc            uint32
	offset, length uint64
}

func readTable(p []byte, verified bool) (*fileTable, error) {
	le := binary.LittleEndian
	size := int64(len(p))
	if size < headerSize {
		return nil, corrupt("%d bytes are too few for a header", size)
	}
	head := p[:headerSize]
	if string(head[:8]) != fileMagic {
		return nil, corrupt("it does not start like a bank file")
	}
	if v := le.Uint32(head[8:]); v < 1 || v > fileVersion {
		return nil, fmt.Errorf("%w: %d, this program reads 1 to %d", ErrVersion, v, fileVersion)
	}
	n := le.Uint32(head[12:])
	if n > maxSections {
		return nil, corrupt("%d sections", n)
	}
	if stated := le.Uint64(head[16:]); stated != uint64(size) {
		return nil, corrupt("it has %d bytes, its header says %d", size, stated)
	}
	end := headerSize + entrySize*int64(n)
	if end > size {
		return nil, corrupt("the section table is cut off")
	}
	head = p[:end]
	if headerCRC(head) != le.Uint32(head[24:]) {
		return nil, corrupt("the header's checksum is wrong")
	}
	t := &fileTable{bytes: p, verified: verified, entries: map[string]fileEntry{}}
	at := uint64(end)
	for i := range int(n) {
		b := head[headerSize+entrySize*i:]
		tag := string(b[:4])
		e := fileEntry{le.Uint32(b[4:]), le.Uint64(b[8:]), le.Uint64(b[16:])}
		if e.offset != align(at) || e.length > uint64(size) || e.offset+e.length > uint64(size) {
			return nil, corrupt("section %q lies at %d+%d of %d bytes", tag, e.offset, e.length, size)
		}
		if t.has(tag) {
			return nil, corrupt("section %q appears twice", tag)
		}
		switch tag {
		case "meta", "ids ", "rows", "held", "hvec", "xfrm", "gate", "hnsw", "axes", "code", "scal":
		default:
			return nil, corrupt("unknown section %q", tag)
		}
		t.entries[tag] = e
		at = e.offset + e.length
	}
	if align(at) != uint64(size) {
		return nil, corrupt("%d bytes after the last section", uint64(size)-at)
	}
	return t, nil
}

func (t *fileTable) has(tag string) bool { _, ok := t.entries[tag]; return ok }

// quick is how large a section may be for its checksum to be compared although its
// bytes are verified: that takes a millisecond or two.
const quick = 8 << 20

// section is the bytes of a section; their checksum is right, unless trust says
// that many verified bytes need none.
func (t *fileTable) section(tag string, trust bool) ([]byte, error) {
	e := t.entries[tag]
	p := t.bytes[e.offset : e.offset+e.length : e.offset+e.length]
	if !(trust && t.verified && e.length > quick) && crc32.Checksum(p, castagnoli) != e.crc {
		return nil, corrupt("the checksum of section %q is wrong", tag)
	}
	return p, nil
}

func (t *fileTable) json(tag string, v any) error {
	e, ok := t.entries[tag]
	if !ok || e.length > maxMeta {
		return corrupt("section %q is missing or too long", tag)
	}
	p, err := t.section(tag, false)
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(p))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return corrupt("section %q: %v", tag, err)
	}
	return nil
}

// readVectors reads a section of at most most vectors and checks them.
func readVectors(t *fileTable, tag string, dim, most int) ([]float32, error) {
	v, err := readNumbers[float32](t, tag, -1)
	if err != nil {
		return nil, err
	}
	if len(v)%dim != 0 || len(v)/dim > most {
		return nil, corrupt("section %q: %d numbers are not at most %d vectors of dimension %d", tag, len(v), most, dim)
	}
	for i := 0; i < len(v); i += dim {
		if err := checkVector(v[i:i+dim], dim); err != nil {
			return nil, fmt.Errorf("%w: section %q, vector %d: %w", ErrCorrupt, tag, i/dim, err)
		}
	}
	return v, nil
}

// inPlace gives a section of want numbers, or of any number of them where want is
// negative, where it lies in the file: it must not be written to.
func inPlace[T mapped.Number](t *fileTable, tag string, want int) ([]T, error) {
	return numbers[T](t, tag, want, true)
}

// readNumbers is inPlace into memory of its own, and always checked.
func readNumbers[T mapped.Number](t *fileTable, tag string, want int) ([]T, error) {
	v, err := numbers[T](t, tag, want, false)
	return slices.Clone(v), err
}

func numbers[T mapped.Number](t *fileTable, tag string, want int, trust bool) ([]T, error) {
	e, ok := t.entries[tag]
	if !ok {
		return nil, corrupt("section %q is missing", tag)
	}
	width := uint64(unsafe.Sizeof(*new(T)))
	if e.length%width != 0 || (want >= 0 && e.length != uint64(want)*width) {
		return nil, corrupt("section %q has %d bytes, want %d×%d", tag, e.length, want, width)
	}
	p, err := t.section(tag, trust)
	if err != nil || len(p) == 0 {
		return nil, err
	}
	return mapped.Numbers[T](p), nil
}
