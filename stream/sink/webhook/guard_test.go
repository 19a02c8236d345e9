package webhook

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/sink"
)

// allowed says where a webhook may lead, in other words than [guard.check]: the
// networks that are not, written out.
func allowed(a netip.Addr, loopback bool) bool {
	networks := []string{
		"0.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32", "100.100.100.200/32",
		"::/128", "fe80::/10", "ff00::/8", "fd00:ec2::254/128",
	}
	if !loopback {
		networks = append(networks, "127.0.0.0/8", "::1/128")
	}
	for _, n := range networks {
		p := netip.MustParsePrefix(n)
		if p.Contains(a.WithZone("")) {
			return false
		}
		// The same as an address of IPv6: mapped, NAT64, 6to4, and as it was once.
		if b := a.As16(); p.Addr().Is4() && a.Is6() {
			in := false
			for _, m := range []struct {
				prefix string
				at     int
			}{{"::ffff:0:0/96", 12}, {"64:ff9b::/96", 12}, {"2002::/16", 2}, {"::/96", 12}} {
				v6 := netip.AddrFrom16(b)
				in = in || netip.MustParsePrefix(m.prefix).Contains(v6) && v6 != netip.IPv6Loopback() && p.Contains(netip.AddrFrom4([4]byte(b[m.at:m.at+4])))
			}
			if in {
				return false
			}
		}
	}
	return true
}

// probe is a webhook whose names lead to addresses that somebody else has chosen,
// and whose connections lead to a receiver that answers with a redirect; nothing
// is really dialled.
func probe(t testing.TB, address string, answers []netip.Addr, loopback bool, location string) (dialled []netip.Addr) {
	t.Helper()
	raw, err := json.Marshal(Config{URL: address, AllowLoopback: loopback})
	if err != nil {
		return nil
	}
	s, err := open(sink.Sink{Name: "w", Config: raw}, "", stream.Names{}, "test", nil, nil)
	if err != nil {
		return nil
	}
	g := guard{
		loopback: loopback,
		lookup: func(_ context.Context, host string) ([]netip.Addr, error) {
			if a, err := netip.ParseAddr(host); err == nil { // as the resolver does
				return []netip.Addr{a}, nil
			}
			return answers, nil
		},
		connect: func(_ context.Context, _, at string) (net.Conn, error) {
			host, _, err := net.SplitHostPort(at)
			to, err2 := netip.ParseAddr(host)
			if err := errors.Join(err, err2); err != nil {
				t.Errorf("%q is dialled, which is no address: %v", at, err)
			}
			dialled = append(dialled, to)
			if location == "" || len(dialled) > 10 {
				return nil, errors.New("refused")
			}
			here, there := net.Pipe()
			go func() {
				defer there.Close()
				if r, err := http.ReadRequest(bufio.NewReader(there)); err == nil {
					_, _ = io.Copy(io.Discard, r.Body)
					_, _ = io.WriteString(there, "HTTP/1.1 307 Temporary Redirect\r\nLocation: "+location+"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
				}
			}()
			return here, nil
		},
	}
	if s.client, err = s.cfg.clientOf(g); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	at := stream.Event{ID: "e", Kind: stream.KindAnomaly, Detector: "bolts", Camera: "line1"}
	_ = s.Send(context.Background(), sink.Notice{ID: "e", Event: at})
	return dialled
}

// A name that leads to a forbidden address is not followed there, whichever place
// that has in the answer; one that may be reached is.
func TestNamesDoNotLeadAroundTheGuard(t *testing.T) {
	good, bad := netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("169.254.169.254")
	for _, answers := range [][]netip.Addr{{bad}, {netip.MustParseAddr("127.0.0.1")}, {netip.MustParseAddr("::ffff:127.0.0.1")}, {netip.MustParseAddr("64:ff9b::a9fe:a9fe")}, nil} {
		if got := probe(t, "http://innocent.example/", answers, false, ""); got != nil {
			t.Errorf("%v: %v is dialled", answers, got)
		}
	}
	if got := probe(t, "http://innocent.example/", []netip.Addr{bad, good}, false, ""); len(got) != 1 || got[0] != good {
		t.Errorf("%v is dialled", got)
	}
	// Nor does a redirect lead anywhere: there is no second dial.
	for _, location := range []string{"http://169.254.169.254/latest", "http://192.0.2.8/", "//192.0.2.8/", "/again"} {
		if got := probe(t, "http://innocent.example/", []netip.Addr{good}, false, location); len(got) != 1 {
			t.Errorf("%s: %v is dialled", location, got)
		}
	}
	if got := probe(t, "http://127.0.0.1/", nil, true, ""); len(got) != 1 {
		t.Errorf("what was allowed is not dialled: %v", got)
	}
}

func FuzzURL(f *testing.F) {
	for _, u := range []string{
		"http://127.0.0.1:80/", "https://[::1%25lo]/", "http://0x7f.1/", "http://2130706433/", "http://[::ffff:7f00:1]/", "http://name.example:99999/", "http://a@b/", "http:///x",
	} {
		f.Add(u, []byte{169, 254, 169, 254}, false, "http://169.254.169.254/")
		f.Add(u, netip.MustParseAddr("64:ff9b::7f00:1").AsSlice(), true, "")
	}
	f.Fuzz(func(t *testing.T, address string, answer []byte, loopback bool, location string) {
		if strings.ContainsAny(location, "\r\n") {
			return
		}
		var answers []netip.Addr
		for len(answer) >= 4 && len(answers) < 4 {
			n := 4
			if len(answer) >= 16 {
				n = 16
			}
			a, _ := netip.AddrFromSlice(answer[:n])
			answers, answer = append(answers, a), answer[n:]
		}
		got := probe(t, address, answers, loopback, location)
		for _, a := range got {
			if !allowed(a, loopback) {
				t.Errorf("%s with %v leads to %v", address, answers, a)
			}
		}
		if len(got) > 4 {
			t.Errorf("%s with %v is dialled %d times", address, answers, len(got))
		}
	})
}
