package console

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// policy is what the page may do in a browser: nothing but what this server sends.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; " +
	"frame-ancestors 'none'; base-uri 'none'; form-action 'self'"

// guard refuses what other sites have browsers ask, and says what the page may do.
func (c *Console) guard(next http.Handler) http.Handler {
	foreign := http.NewCrossOriginProtection()
	foreign.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		problem{http.StatusForbidden, "cross_origin", "another site's page asked for this"}.write(w)
	}))
	inner := foreign.Handler(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		c.unproxy(r)
		if !c.knowsHost(r.Host) {
			problem{http.StatusMisdirectedRequest, "bad_host", "this console is not called " + clean(r.Host) + ": add the name to console.hosts"}.write(w)
			return
		}
		inner.ServeHTTP(w, r)
	})
}

// clean leaves printable ASCII.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, s[:min(len(s), 128)])
}

// knowsHost says whether the page may be reached under a name. A name of another
// site that points here (DNS rebinding) must not make its pages ours.
func (c *Console) knowsHost(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	if loopbackHost(host) || slices.ContainsFunc(c.cfg.Hosts, func(h string) bool { return strings.EqualFold(h, host) }) {
		return true
	}
	// An address is no name that could be pointed elsewhere; that it is ours we know
	// where we listen on one.
	if listen, _, err := net.SplitHostPort(c.cfg.Listen); err == nil && strings.EqualFold(listen, host) {
		return true
	}
	_, err := netip.ParseAddr(host)
	return err == nil && !c.loopback
}

// unproxy believes a trusted proxy, and nobody else, about who asks and how. What
// only a proxy may say is gone afterwards.
func (c *Console) unproxy(r *http.Request) {
	h := r.Header
	from := remote(r)
	trusted := from.IsValid() && c.cfg.trusts(from)
	if trusted {
		if f := h.Values("X-Forwarded-For"); len(f) > 0 {
			all := strings.Split(f[len(f)-1], ",") // the last is the one that the proxy saw
			if a, err := netip.ParseAddr(strings.TrimSpace(all[len(all)-1])); err == nil {
				r.RemoteAddr = netip.AddrPortFrom(a, 0).String()
			}
		}
		if host := h.Get("X-Forwarded-Host"); host != "" {
			r.Host = host
		}
		if h.Get("X-Forwarded-Proto") == "https" {
			h.Set(overTLS, "1")
		} else {
			h.Del(overTLS)
		}
	} else {
		h.Del(overTLS)
	}
	if !trusted || c.cfg.ProxySecret == "" || !same(h.Get("X-Proxy-Secret"), c.cfg.ProxySecret) {
		h.Del("X-Forwarded-User")
		h.Del("X-Forwarded-Role")
	}
	h.Del("X-Proxy-Secret")
}

// overTLS is set by unproxy alone.
const overTLS = "Nearmiss-Over-Tls"

// encrypted says whether the browser's connection is.
func (c *Console) encrypted(r *http.Request) bool { return c.secure || r.Header.Get(overTLS) != "" }

func remote(r *http.Request) netip.Addr {
	a, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return a.Addr().Unmap()
}
