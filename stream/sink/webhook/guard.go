package webhook

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// guard dials only where a configuration may lead. It checks the address that
// is dialled, after the name was resolved, so that no name and no answer of a
// DNS server leads around it.
type guard struct {
	loopback bool
	// lookup and connect are replaced in tests.
	lookup  func(ctx context.Context, host string) ([]netip.Addr, error)
	connect func(ctx context.Context, network, address string) (net.Conn, error)
}

func newGuard(loopback bool) guard {
	d := net.Dialer{Timeout: timeOut / 2, KeepAlive: 30 * time.Second}
	return guard{
		loopback: loopback, connect: d.DialContext,
		lookup: func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		},
	}
}

// forbidden is an address that no webhook may reach.
type forbidden struct{ addr netip.Addr }

func (f *forbidden) Error() string {
	return fmt.Sprintf("webhook: the receiver's address %s is not allowed (this machine needs allow_loopback; link-local, multicast and metadata addresses are never reached)", f.addr)
}

// never are addresses besides link-local, multicast and unspecified ones: the
// metadata services of clouds that answer elsewhere.
var never = []netip.Prefix{
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("100.100.100.200/32"),
	netip.MustParsePrefix("fd00:ec2::254/128"),
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("255.255.255.255/32"),
}

func (g guard) check(a netip.Addr) error {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		// Addresses that carry an IPv4 one lead to that one: NAT64 and 6to4.
		b := a.As16()
		switch {
		case netip.MustParsePrefix("64:ff9b::/96").Contains(a), netip.MustParsePrefix("::/96").Contains(a) && !a.IsLoopback() && !a.IsUnspecified():
			return g.check(netip.AddrFrom4([4]byte(b[12:16])))
		case netip.MustParsePrefix("2002::/16").Contains(a):
			return g.check(netip.AddrFrom4([4]byte(b[2:6])))
		}
	}
	bad := a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() || a.IsLoopback() && !g.loopback
	for _, p := range never {
		bad = bad || p.Contains(a)
	}
	if bad {
		return &forbidden{a}
	}
	return nil
}

func (g guard) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	ips, err := g.lookup(ctx, host)
	if err != nil {
		return nil, err
	}
	last := fmt.Errorf("%s has no address", host)
	for _, ip := range ips {
		if err := g.check(ip); err != nil {
			last = err
			continue
		}
		c, err := g.connect(ctx, network, net.JoinHostPort(ip.Unmap().String(), port))
		if err == nil {
			return c, nil
		}
		last = err
	}
	return nil, last
}
