package imaging

import (
	"io"
	"strings"
	"sync"
)

// faxRows decodes bilevel rows that are coded as fax machines do: ITU-T T.4 in
// one and two dimensions, T.6, and the run lengths of TIFF's compression 2. A
// set bit of a row is what the codes call black.
type faxRows struct {
	b         []byte
	pos       int // in bits
	w         int
	kind      int // a TIFF's compression
	two       bool
	started   bool
	ref, line []int // where the colour changes in the row above and in this one
}

func (f *faxRows) close() {}

// peek returns the next n bits, at most 24. Beyond the end there are zeros.
func (f *faxRows) peek(n int) uint32 {
	var v uint32
	at := f.pos / 8
	for i := range 4 {
		v <<= 8
		if at+i < len(f.b) {
			v |= uint32(f.b[at+i])
		}
	}
	return v << (f.pos % 8) >> (32 - n)
}

func (f *faxRows) left() int { return 8*len(f.b) - f.pos }

// next decodes a row.
func (f *faxRows) next(line []byte) error {
	f.line = f.line[:0]
	var err error
	switch f.kind {
	case tiffGroup4:
		err = f.twoDimensions()
	case tiffGroup3:
		err = f.group3()
	case tiffRLEWords:
		f.pos = (f.pos + 15) / 16 * 16
		err = f.oneDimension()
	default:
		f.pos = (f.pos + 7) / 8 * 8
		err = f.oneDimension()
	}
	if err == nil && f.left() < 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return err
	}
	f.line = append(f.line, f.w, f.w, f.w, f.w)
	clear(line)
	for i := 0; f.line[i] < f.w; i += 2 {
		fillBits(line, f.line[i], f.line[i+1])
	}
	f.ref, f.line = f.line, f.ref
	return nil
}

// fillBits sets the bits from to to-1.
func fillBits(line []byte, from, to int) {
	for ; from < to && from%8 != 0; from++ {
		line[from/8] |= 0x80 >> (from % 8)
	}
	for ; to-from >= 8; from += 8 {
		line[from/8] = 0xff
	}
	for ; from < to; from++ {
		line[from/8] |= 0x80 >> (from % 8)
	}
}

// group3 decodes a row of T.4. Its end-of-line code comes before it, after any
// number of zeros; some writers leave all of them out.
func (f *faxRows) group3() error {
	found := f.endOfLine()
	if !found && f.started && f.two {
		return f.damaged("a row without its end-of-line code")
	}
	f.started = true
	if f.two {
		tag := found && f.peek(1) == 1 || !found
		if found {
			f.pos++
		}
		if f.pos < 8*len(f.b) && f.isEndOfLine() {
			return io.ErrUnexpectedEOF // the end of the page
		}
		if !tag {
			return f.twoDimensions()
		}
		return f.oneDimension()
	}
	if found && f.isEndOfLine() {
		return io.ErrUnexpectedEOF
	}
	return f.oneDimension()
}

// endOfLine passes an end-of-line code, if one comes.
func (f *faxRows) endOfLine() bool {
	at := f.pos
	for zeros := 0; f.left() > 0; zeros++ {
		bit := f.peek(1)
		f.pos++
		if bit == 1 {
			if zeros >= 11 {
				return true
			}
			break
		}
	}
	f.pos = at
	return false
}

func (f *faxRows) isEndOfLine() bool { return f.peek(12) == 1 }

func (f *faxRows) damaged(what string) error {
	if f.left() < 13 {
		return io.ErrUnexpectedEOF
	}
	return reject(CodeCorrupt, "the tiff's fax data has %s", what)
}

// oneDimension decodes a row of runs, white and black in turn.
func (f *faxRows) oneDimension() error {
	for at, black := 0, false; at < f.w; black = !black {
		n, err := f.run(black)
		if err != nil {
			return err
		}
		if at += n; at > f.w {
			return f.damaged("a row that is too long")
		}
		f.line = append(f.line, at)
	}
	return nil
}

// run decodes the length of a run: any number of make-up codes, and one below 64.
func (f *faxRows) run(black bool) (int, error) {
	table := &faxTables().white
	if black {
		table = &faxTables().black
	}
	sum := 0
	for {
		c := table[f.peek(13)]
		if c.bits == 0 {
			return 0, f.damaged("an unknown code")
		}
		f.pos += int(c.bits)
		sum += int(c.run)
		if c.run < 64 {
			return sum, nil
		}
		if sum > f.w+2560 || f.left() < 0 {
			return 0, f.damaged("a row that is too long")
		}
	}
}

// twoDimensions decodes a row by the row above it (T.4 4.2, T.6 2.2). a0 is
// where this row is known to, b1 the first change above that lies beyond it and
// goes to the other colour.
func (f *faxRows) twoDimensions() error {
	a0, black, b := -1, 0, 0
	for a0 < f.w {
		for b > 0 && f.ref[b-1] > a0 {
			b--
		}
		for f.ref[b] <= a0 && f.ref[b] < f.w || b%2 != black && f.ref[b] < f.w {
			b++
		}
		b1, b2 := f.ref[b], f.w
		if b1 < f.w {
			b2 = f.ref[b+1]
		}
		move := 0
		switch v := f.peek(7); {
		case v>>6 == 1: // V0
			f.pos++
		case v>>4 == 0b011:
			f.pos, move = f.pos+3, 1
		case v>>4 == 0b010:
			f.pos, move = f.pos+3, -1
		case v>>4 == 0b001: // horizontal
			f.pos += 3
			first, err := f.run(black == 1)
			if err != nil {
				return err
			}
			second, err := f.run(black == 0)
			if err != nil {
				return err
			}
			a1 := max(a0, 0) + first
			if a0 = a1 + second; a0 > f.w {
				return f.damaged("a row that is too long")
			}
			f.line = append(f.line, a1, a0)
			continue
		case v>>3 == 0b0001: // pass
			f.pos += 4
			a0 = b2
			continue
		case v>>1 == 0b000011:
			f.pos, move = f.pos+6, 2
		case v>>1 == 0b000010:
			f.pos, move = f.pos+6, -2
		case v == 0b0000011:
			f.pos, move = f.pos+7, 3
		case v == 0b0000010:
			f.pos, move = f.pos+7, -3
		case f.isEndOfLine():
			return io.ErrUnexpectedEOF // the end of the page
		default:
			return f.damaged("an unknown code")
		}
		a1 := b1 + move
		if a1 < max(a0, 0) || a1 > f.w {
			return f.damaged("a change outside its row")
		}
		f.line = append(f.line, a1)
		a0, black = a1, 1-black
		if f.left() < 0 {
			return io.ErrUnexpectedEOF
		}
	}
	return nil
}

// faxCode is a run length and how many bits its code has.
type faxCode struct {
	run  int16
	bits uint8
}

// faxTables has the codes by their first 13 bits.
var faxTables = sync.OnceValue(func() *struct{ white, black [1 << 13]faxCode } {
	t := &struct{ white, black [1 << 13]faxCode }{}
	enter := func(table *[1 << 13]faxCode, codes string, first, step int) {
		for i, code := range strings.Fields(codes) {
			v, n := 0, len(code)
			for _, bit := range code {
				v = v<<1 | int(bit-'0')
			}
			for rest := range 1 << (13 - n) {
				table[v<<(13-n)|rest] = faxCode{int16(first + i*step), uint8(n)}
			}
		}
	}
	enter(&t.white, whiteRuns, 0, 1)
	enter(&t.white, whiteMakeUp, 64, 64)
	enter(&t.black, blackRuns, 0, 1)
	enter(&t.black, blackMakeUp, 64, 64)
	enter(&t.white, longMakeUp, 1792, 64)
	enter(&t.black, longMakeUp, 1792, 64)
	return t
})

// The codes of ITU-T T.4, tables 2, 3a and 3b: of runs of 0 to 63, of 64, 128, …
// 1728, and of 1792, 1856, … 2560 for both colours.
const (
	whiteRuns = `00110101 000111 0111 1000 1011 1100 1110 1111 10011 10100 00111 01000 001000 000011 110100 110101
		101010 101011 0100111 0001100 0001000 0010111 0000011 0000100 0101000 0101011 0010011 0100100 0011000 00000010
		00000011 00011010 00011011 00010010 00010011 00010100 00010101 00010110 00010111 00101000 00101001 00101010
		00101011 00101100 00101101 00000100 00000101 00001010 00001011 01010010 01010011 01010100 01010101 00100100
		00100101 01011000 01011001 01011010 01011011 01001010 01001011 00110010 00110011 00110100`
	whiteMakeUp = `11011 10010 010111 0110111 00110110 00110111 01100100 01100101 01101000 01100111 011001100
		011001101 011010010 011010011 011010100 011010101 011010110 011010111 011011000 011011001 011011010 011011011
		010011000 010011001 010011010 011000 010011011`
	blackRuns = `0000110111 010 11 10 011 0011 0010 00011 000101 000100 0000100 0000101 0000111 00000100 00000111
		000011000 0000010111 0000011000 0000001000 00001100111 00001101000 00001101100 00000110111 00000101000
		00000010111 00000011000 000011001010 000011001011 000011001100 000011001101 000001101000 000001101001
		000001101010 000001101011 000011010010 000011010011 000011010100 000011010101 000011010110 000011010111
		000001101100 000001101101 000011011010 000011011011 000001010100 000001010101 000001010110 000001010111
		000001100100 000001100101 000001010010 000001010011 000000100100 000000110111 000000111000 000000100111
		000000101000 000001011000 000001011001 000000101011 000000101100 000001011010 000001100110 000001100111`
	blackMakeUp = `0000001111 000011001000 000011001001 000001011011 000000110011 000000110100 000000110101
		0000001101100 0000001101101 0000001001010 0000001001011 0000001001100 0000001001101 0000001110010 0000001110011
		0000001110100 0000001110101 0000001110110 0000001110111 0000001010010 0000001010011 0000001010100 0000001010101
		0000001011010 0000001011011 0000001100100 0000001100101`
	longMakeUp = `00000001000 00000001100 00000001101 000000010010 000000010011 000000010100 000000010101 000000010110
		000000010111 000000011100 000000011101 000000011110 000000011111`
)
