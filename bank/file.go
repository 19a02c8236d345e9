package bank

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"time"
	"unsafe"

	"github.com/google/renameio/v2"
	"github.com/rs/zerolog"
)

// A bank file is, all little-endian:
//
//	0   magic "NMBANK\r\n"
//	8   uint32 version (1)
//	12  uint32 number of sections
//	16  uint64 size of the whole file
//	24  uint32 CRC-32C of bytes 0..24 and of the section table
//	28  36 zero bytes
//	64  section table, 32 bytes each: 4-byte tag, uint32 CRC-32C of the
//	    section's bytes, uint64 offset (a multiple of 64), uint64 length, 8 zero bytes
//	    sections in the table's order, gaps filled with zeros
//
// Sections: "meta" JSON; "ids " uint64 each; "rows" float32, row-major n×dim,
// aligned so that a mapped file can be searched in place; "held" float64
// held-out scores, ascending; "hvec" float32 held-out embeddings, row-major
// ?×dim; "xfrm" float32 mean and matrix; "gate" float32
// queries for the recall gate; "hnsw" the graph.
const (
	fileMagic   = "NMBANK\r\n"
	fileVersion = 1
	headerSize  = 64
	entrySize   = 32
	fileAlign   = 64
	maxSections = 16
	maxMeta     = 1 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// meta is the JSON section.
type meta struct {
	Dim   int      `json:"dim"` // of stored vectors
	In    int      `json:"in"`  // of embeddings that come in
	Count int      `json:"count"`
	K     int      `json:"k"`
	Kind  Kind     `json:"kind"` // that serves; a graph is stored only for hnsw
	Alpha *float64 `json:"alpha,omitempty"`
	Worth float64  `json:"worth,omitempty"` // of the held-out scores; 0: each counts
	Alike float64  `json:"alike,omitempty"` // frames in a row; 0: each counts
	// what Options had
	Wanted Kind         `json:"wanted"`
	Cutoff int          `json:"cutoff"`
	Graph  GraphOptions `json:"graph"`
	Gate   Gate         `json:"gate"`
	// Report of the last build, without its time, so that equal banks give
	// equal files.
	Report Report `json:"report"`
}

type section struct {
	tag  string
	data []byte
}

// WriteFile writes the bank, atomically: the file appears whole or not at all.
func (b *Bank) WriteFile(path string) (err error) {
	f, err := renameio.NewPendingFile(path, renameio.WithPermissions(0o644))
	if err != nil {
		return fmt.Errorf("write bank %s: %w", path, err)
	}
	defer func() { _ = f.Cleanup() }()
	if err := b.Encode(f); err != nil {
		return fmt.Errorf("write bank %s: %w", path, err)
	}
	if err := f.CloseAtomicallyReplace(); err != nil {
		return fmt.Errorf("write bank %s: %w", path, err)
	}
	return nil
}

// Encode writes the bank in its file format. Equal banks give equal bytes.
func (b *Bank) Encode(w io.Writer) error {
	b.change.Lock()
	defer b.change.Unlock()
	b.mu.RLock()
	defer b.mu.RUnlock()
	m := meta{
		Dim: b.rows.dim, In: b.dim, Count: b.rows.len(), K: b.k, Kind: b.index.Kind(),
		Wanted: b.kind, Cutoff: b.cutoff, Graph: b.graph, Gate: b.gate, Report: b.report,
	}
	m.Report.BuildSeconds = 0
	sections := []section{
		{"meta", nil},
		{"ids ", bytesOf(b.rows.ids)},
		{"rows", bytesOf(b.rows.data)},
	}
	if c := b.calibration; c != nil {
		m.Alpha, m.Worth, m.Alike = &c.alpha, c.worth, c.alike
		sections = append(sections, section{"held", bytesOf(c.heldOut)})
		if len(b.heldOut) > 0 {
			sections = append(sections, section{"hvec", bytesOf(b.heldOut)})
		}
	}
	if t := b.transform; t != nil {
		sections = append(sections, section{"xfrm", append(bytesOf(t.Mean), bytesOf(t.Matrix)...)})
	}
	if len(b.queries) > 0 {
		sections = append(sections, section{"gate", bytesOf(b.queries)})
	}
	if h, ok := b.index.(*hnsw); ok {
		sections = append(sections, section{"hnsw", bytesOf(h.encode())})
	}
	var err error
	if sections[0].data, err = json.Marshal(m); err != nil {
		return err
	}
	return encodeSections(w, sections)
}

func encodeSections(w io.Writer, sections []section) error {
	le := binary.LittleEndian
	head := make([]byte, headerSize+entrySize*len(sections))
	offset := align(uint64(len(head)))
	offsets := make([]uint64, len(sections))
	for i, s := range sections {
		e := head[headerSize+entrySize*i:]
		copy(e, s.tag)
		le.PutUint32(e[4:], crc32.Checksum(s.data, castagnoli))
		le.PutUint64(e[8:], offset)
		le.PutUint64(e[16:], uint64(len(s.data)))
		offsets[i] = offset
		offset = align(offset + uint64(len(s.data)))
	}
	copy(head, fileMagic)
	le.PutUint32(head[8:], fileVersion)
	le.PutUint32(head[12:], uint32(len(sections)))
	le.PutUint64(head[16:], offset)
	le.PutUint32(head[24:], headerCRC(head))
	at := uint64(0)
	write := func(p []byte) error {
		n, err := w.Write(p)
		at += uint64(n)
		return err
	}
	var zeros [fileAlign]byte
	if err := write(head); err != nil {
		return err
	}
	for _, s := range sections {
		if err := write(zeros[:align(at)-at]); err != nil {
			return err
		}
		if err := write(s.data); err != nil {
			return err
		}
	}
	return write(zeros[:align(at)-at])
}

func align(n uint64) uint64 { return (n + fileAlign - 1) &^ (fileAlign - 1) }

func headerCRC(head []byte) uint32 {
	return crc32.Update(crc32.Checksum(head[:24], castagnoli), castagnoli, head[28:])
}

// ReadOptions are the parts of Options that a file does not hold.
type ReadOptions struct {
	// Batch answers large batches of exact search; nil for loops on the CPU.
	Batch BatchEngine
	// Log gets the warnings of the recall gate. The zero value is silent.
	Log zerolog.Logger
}

// ReadFile reads a bank: ErrVersion, ErrCorrupt, or what the file system says.
// An approximate index is put to the recall gate again, with the queries that
// the file keeps; coder's is built anew.
func ReadFile(path string, o ReadOptions) (*Bank, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read bank: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read bank %s: %w", path, err)
	}
	b, err := Decode(f, info.Size(), o)
	if err != nil {
		return nil, fmt.Errorf("read bank %s: %w", path, err)
	}
	return b, nil
}

// Decode reads a bank of size bytes. It allocates no more than a small multiple
// of size, whatever the bytes claim.
func Decode(r io.ReaderAt, size int64, o ReadOptions) (*Bank, error) {
	table, err := readTable(r, size)
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
	ids, err := readNumbers[uint64](table, "ids ", m.Count)
	if err != nil {
		return nil, err
	}
	data, err := readNumbers[float32](table, "rows", m.Count*m.Dim)
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
	b.rows.ids, b.rows.data = ids, data
	for i, id := range ids {
		if err := checkVector(b.rows.at(uint32(i)), m.Dim); err != nil {
			return nil, fmt.Errorf("%w: entry %d: %w", ErrCorrupt, id, err)
		}
		if _, ok := b.rows.row[id]; ok {
			return nil, corrupt("id %d appears twice", id)
		}
		b.rows.row[id] = uint32(i)
	}
	if m.Alpha != nil {
		scores, err := readNumbers[float64](table, "held", -1)
		if err != nil {
			return nil, err
		}
		if b.calibration, err = NewCalibration(scores, *m.Alpha); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		if m.Worth != 0 || m.Alike != 0 {
			if m.Worth == 0 {
				m.Worth = float64(len(scores))
			}
			if !(m.Worth >= 1 && m.Worth <= float64(len(scores)) && m.Alike >= 0) {
				return nil, corrupt("%d held-out scores are worth %g, of frames of which %g are alike", len(scores), m.Worth, m.Alike)
			}
			b.calibration = b.calibration.Resting(m.Worth, m.Alike)
		}
		if table.has("hvec") {
			if b.heldOut, err = readVectors(table, "hvec", m.Dim, len(scores)); err != nil {
				return nil, err
			}
		}
	}
	if err := b.restore(table, m); err != nil {
		_ = b.Close() // the first error says more
		return nil, err
	}
	return b, nil
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
	switch m.Kind {
	case Exact:
		b.report, b.queries = m.Report, queries
		b.report.BuildSeconds = time.Since(start).Seconds()
		return nil
	case Sketch:
		index = newSketched(b.rows)
	case HNSW:
		if !table.has("hnsw") {
			return corrupt("the graph is missing")
		}
		lists, err := readNumbers[uint32](table, "hnsw", -1)
		if err != nil {
			return err
		}
		if index, err = decodeHNSW(b.rows, lists); err != nil {
			return err
		}
	case Coder:
		x, err := buildCoder(context.Background(), b.rows, b.graph)
		if err != nil {
			b.log.Warn().Err(err).Msg("the coder index could not be built")
		} else {
			index = x
		}
	default:
		return corrupt("unknown kind of index %q", m.Kind)
	}
	report, err := b.judgeIndex(context.Background(), m.Kind, index, queries, time.Since(start))
	if err != nil {
		return err
	}
	b.install(index, report, queries)
	return nil
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

// fileTable is a checked section table.
type fileTable struct {
	r       io.ReaderAt
	entries map[string]fileEntry
}

type fileEntry struct {
	crc            uint32
	offset, length uint64
}

func readTable(r io.ReaderAt, size int64) (*fileTable, error) {
	le := binary.LittleEndian
	head := make([]byte, headerSize)
	if size < headerSize {
		return nil, corrupt("%d bytes are too few for a header", size)
	}
	if _, err := r.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("read header: %w", err)
	}
	if string(head[:8]) != fileMagic {
		return nil, corrupt("it does not start like a bank file")
	}
	if v := le.Uint32(head[8:]); v != fileVersion {
		return nil, fmt.Errorf("%w: %d, this program reads %d", ErrVersion, v, fileVersion)
	}
	n := le.Uint32(head[12:])
	if n > maxSections {
		return nil, corrupt("%d sections", n)
	}
	if said := le.Uint64(head[16:]); said != uint64(size) {
		return nil, corrupt("it has %d bytes, its header says %d", size, said)
	}
	end := headerSize + entrySize*int64(n)
	if end > size {
		return nil, corrupt("the section table is cut off")
	}
	head = append(head, make([]byte, entrySize*n)...)
	if _, err := r.ReadAt(head[headerSize:], headerSize); err != nil {
		return nil, fmt.Errorf("read section table: %w", err)
	}
	if headerCRC(head) != le.Uint32(head[24:]) {
		return nil, corrupt("the header's checksum is wrong")
	}
	t := &fileTable{r: r, entries: map[string]fileEntry{}}
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
		case "meta", "ids ", "rows", "held", "hvec", "xfrm", "gate", "hnsw":
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

// read fills p, which has the section's length, and checks it.
func (t *fileTable) read(tag string, p []byte) error {
	e := t.entries[tag]
	if len(p) > 0 {
		if _, err := t.r.ReadAt(p, int64(e.offset)); err != nil {
			return fmt.Errorf("read section %q: %w", tag, err)
		}
	}
	if crc32.Checksum(p, castagnoli) != e.crc {
		return corrupt("the checksum of section %q is wrong", tag)
	}
	return nil
}

func (t *fileTable) json(tag string, v any) error {
	e, ok := t.entries[tag]
	if !ok || e.length > maxMeta {
		return corrupt("section %q is missing or too long", tag)
	}
	p := make([]byte, e.length)
	if err := t.read(tag, p); err != nil {
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

type number interface {
	uint32 | uint64 | float32 | float64
}

// readNumbers reads a section of want numbers, or of any number of them where
// want is negative.
func readNumbers[T number](t *fileTable, tag string, want int) ([]T, error) {
	e, ok := t.entries[tag]
	if !ok {
		return nil, corrupt("section %q is missing", tag)
	}
	width := uint64(unsafe.Sizeof(T(0)))
	if e.length%width != 0 || (want >= 0 && e.length != uint64(want)*width) {
		return nil, corrupt("section %q has %d bytes, want %d×%d", tag, e.length, want, width)
	}
	out := make([]T, e.length/width)
	p := viewBytes(out)
	if err := t.read(tag, p); err != nil {
		return nil, err
	}
	toLittleEndian[T](p)
	return out, nil
}

// bytesOf gives the little-endian bytes of s: a view on little-endian
// machines, which must not be changed, else a copy. Appending to it copies.
func bytesOf[T number](s []T) []byte {
	p := viewBytes(s)
	if !hostIsLittleEndian {
		p = bytes.Clone(p)
		toLittleEndian[T](p)
	}
	return p[:len(p):len(p)]
}

func viewBytes[T number](s []T) []byte {
	if len(s) == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(s))), len(s)*int(unsafe.Sizeof(s[0])))
}

var hostIsLittleEndian = binary.NativeEndian.Uint16([]byte{1, 0}) == 1

// toLittleEndian swaps each number's bytes in place, there and back, on
// big-endian machines.
func toLittleEndian[T number](p []byte) {
	if hostIsLittleEndian {
		return
	}
	width := int(unsafe.Sizeof(T(0)))
	for i := 0; i+width <= len(p); i += width {
		for a, b := i, i+width-1; a < b; a, b = a+1, b-1 {
			p[a], p[b] = p[b], p[a]
		}
	}
}
