package bank

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	"github.com/google/renameio/v2"
	"github.com/nearmiss/nearmiss/internal/mapped"
)

// A bank file is, all little-endian:
//
//	0   magic "NMBANK\r\n"
//	8   uint32 version (1; 2 where there is a section that version 1 does not have)
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
// queries for the recall gate; "hnsw" the graph; since version 2 "axes" float32,
// the mean of the rows and their main axes, row-major ?×dim, for sketches; "code"
// bytes, the rows' codes, row-major n×dim rounded up to 32, and "scal" float32, their
// scale and the mean of each dimension.
const (
	fileMagic   = "NMBANK\r\n"
	fileVersion = 2
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
	if err == nil {
		defer func() { _ = f.Cleanup() }()
		if err = b.Encode(f); err == nil {
			err = f.CloseAtomicallyReplace()
		}
	}
	if err != nil {
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
	if b.rows.closed {
		return ErrClosed
	}
	m := meta{
		Dim: b.rows.dim, In: b.dim, Count: b.rows.len(), K: b.k, Kind: b.index.Kind(),
		Wanted: b.kind, Cutoff: b.cutoff, Graph: b.graph, Gate: b.gate, Report: b.report,
	}
	m.Report.BuildSeconds = 0
	sections := []section{
		{"meta", nil},
		{"ids ", mapped.Bytes(b.rows.ids)},
		{"rows", mapped.Bytes(b.rows.data)},
	}
	if c := b.calibration; c != nil {
		m.Alpha, m.Worth, m.Alike = &c.alpha, c.worth, c.alike
		sections = append(sections, section{"held", mapped.Bytes(c.heldOut)})
		if len(b.heldOut) > 0 {
			sections = append(sections, section{"hvec", mapped.Bytes(b.heldOut)})
		}
	}
	if t := b.transform; t != nil {
		sections = append(sections, section{"xfrm", append(mapped.Bytes(t.Mean), mapped.Bytes(t.Matrix)...)})
	}
	if len(b.queries) > 0 {
		sections = append(sections, section{"gate", mapped.Bytes(b.queries)})
	}
	switch x := b.index.(type) {
	case *hnsw:
		sections = append(sections, section{"hnsw", mapped.Bytes(x.encode())})
		if c := x.codes; c != nil {
			sections = append(sections, section{"code", c.data}, section{"scal", mapped.Bytes(append([]float32{c.scale}, c.mean...))})
		}
	case *sketched:
		if axes := x.stored(); len(axes) > 0 {
			sections = append(sections, section{"axes", mapped.Bytes(axes)})
		}
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
	version := uint32(1)
	if slices.ContainsFunc(sections, func(s section) bool { return s.tag == "axes" || s.tag == "code" }) {
		version = 2
	}
	copy(head, fileMagic)
	le.PutUint32(head[8:], version)
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
