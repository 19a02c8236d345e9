package plc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/simonvetter/modbus"

	"github.com/nearmiss/nearmiss/stream/sink"
)

// ModbusKind is the name of this kind of sink.
const ModbusKind = "modbus"

// Modbus is the configuration of a sink that writes Modbus TCP. Addresses count
// from 0. Of coil and registers one can be left out.
type Modbus struct {
	// URL is tcp://HOST:PORT; the port is 502 unless given.
	URL string `json:"url"`
	// Unit is the address behind a gateway. Default 1.
	Unit uint8 `json:"unit,omitempty"`
	// Coil is the address of the coil.
	Coil *uint16 `json:"coil,omitempty"`
	// Registers is the address of the first of eight holding registers:
	//
	//	+0     result: 0 none, 1 good, 2 anomalous, 3 unreadable
	//	+1     sequence, one up with each verdict, wraps
	//	+2     score as a percentage of the threshold, at most 65535
	//	+3..+6 the part, from the frame's id, as Part says
	//	+7     heartbeat, wraps
	//
	// +2 to +6 are written first, then +0 and +1 together.
	Registers *uint16 `json:"registers,omitempty"`
	// Part says how the frame's id is written: ascii (default; its last eight
	// characters, two in a register, the rest zero) or number (the digits at its
	// end modulo 2³², high word first, in +3 and +4).
	Part string `json:"part,omitempty"`
	Timing
}

// OpenModbus opens a sink of that kind.
func OpenModbus(s sink.Sink, _ string) (sink.Sender, error) {
	var c Modbus
	if err := s.Decode(&c); err != nil {
		return nil, fmt.Errorf("modbus: %w", err)
	}
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "tcp" || u.Hostname() == "" || u.User != nil || u.Path != "" {
		return nil, fmt.Errorf("modbus: address %q: write it as tcp://10.0.0.5:502", c.URL)
	}
	if u.Port() == "" {
		c.URL = "tcp://" + net.JoinHostPort(u.Hostname(), "502")
	}
	c.Unit = cmp.Or(c.Unit, 1)
	switch {
	case c.Coil == nil && c.Registers == nil:
		return nil, errors.New("modbus: name a coil, registers, or both")
	case c.Registers != nil && *c.Registers > math.MaxUint16-7:
		return nil, fmt.Errorf("modbus: eight registers from %d on end above 65535", *c.Registers)
	case c.Part != "" && c.Part != "ascii" && c.Part != "number":
		return nil, fmt.Errorf("modbus: part %q: use ascii or number", c.Part)
	}
	if err := c.validate(); err != nil {
		return nil, err
	}
	c.Timing = c.withDefaults()
	return newSender(c.Timing, func() panel { return &modbusPanel{cfg: c} }), nil
}

type modbusPanel struct {
	cfg    Modbus
	client *modbus.ModbusClient
}

func (p *modbusPanel) open(context.Context) error {
	c, err := modbus.NewClient(&modbus.ClientConfiguration{
		URL: p.cfg.URL, Timeout: time.Duration(p.cfg.TimeOut), Logger: log.New(io.Discard, "", 0),
	})
	if err == nil {
		err = c.SetUnitId(p.cfg.Unit)
	}
	if err == nil {
		err = c.Open()
	}
	if err != nil {
		return fmt.Errorf("connect with %s: %w", p.cfg.URL, err)
	}
	p.client = c
	return nil
}

func (p *modbusPanel) close() {
	if p.client != nil {
		_ = p.client.Close()
		p.client = nil
	}
}

func (p *modbusPanel) write(at uint16, values ...uint16) error {
	if p.cfg.Registers == nil {
		return nil
	}
	if err := p.client.WriteRegisters(*p.cfg.Registers+at, values); err != nil {
		return fmt.Errorf("write holding register %d: %w", *p.cfg.Registers+at, err)
	}
	return nil
}

func (p *modbusPanel) data(_ context.Context, v verdict) error {
	part := partASCII(v.part)
	if p.cfg.Part == "number" {
		n := partNumber(v.part)
		part = [4]uint16{uint16(n >> 16), uint16(n)}
	}
	percent := uint16(math.Round(min(max(v.ratio, 0)*100, math.MaxUint16)))
	return p.write(2, percent, part[0], part[1], part[2], part[3])
}

func (p *modbusPanel) result(_ context.Context, r Result, seq uint32) error {
	return p.write(0, uint16(r), uint16(seq))
}

func (p *modbusPanel) beat(_ context.Context, n uint32) error { return p.write(7, uint16(n)) }

func (p *modbusPanel) coil(_ context.Context, on bool) error {
	if p.cfg.Coil == nil {
		return nil
	}
	if err := p.client.WriteCoil(*p.cfg.Coil, on); err != nil {
		return fmt.Errorf("write coil %d: %w", *p.cfg.Coil, err)
	}
	return nil
}

func (p *modbusPanel) probe(context.Context) error {
	if p.cfg.Registers != nil {
		at := *p.cfg.Registers + 7
		v, err := p.client.ReadRegister(at, modbus.HOLDING_REGISTER)
		if err == nil {
			err = p.client.WriteRegister(at, v)
		}
		if err != nil {
			return fmt.Errorf("heartbeat, holding register %d: %w", at, err)
		}
	}
	if p.cfg.Coil != nil {
		if _, err := p.client.ReadCoil(*p.cfg.Coil); err != nil {
			return fmt.Errorf("read coil %d: %w", *p.cfg.Coil, err)
		}
	}
	return nil
}

// partASCII is the end of an id in four registers.
func partASCII(id string) (r [4]uint16) {
	id = id[max(0, len(id)-8):]
	for i := range len(id) {
		b := id[i]
		if b < ' ' || b > '~' {
			b = '?'
		}
		r[i/2] |= uint16(b) << (8 * (1 - i%2))
	}
	return r
}

// partNumber is the number that an id ends with; 0 where it ends with none.
func partNumber(id string) uint32 {
	digits := id[len(strings.TrimRight(id, "0123456789")):]
	n, err := strconv.ParseUint(digits[max(0, len(digits)-18):], 10, 64)
	if err != nil {
		return 0
	}
	return uint32(n)
}
