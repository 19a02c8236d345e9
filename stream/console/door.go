package console

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream/internal/kv"
)

// door is who may come in, and as whom.
type door struct {
	cfg      Config
	backend  *backend
	people   *people // set by open
	setup    *setup  // nil: there is none
	loopback bool    // only this machine reaches the page
	secure   bool    // browsers reach it by TLS
}

func (d *door) open(ctx context.Context) (err error) {
	d.people, err = openPeople(ctx, d.backend.js, d.cfg, d.backend.log)
	return err
}

// ErrNoUsers is returned by Run for an address that others reach, while nobody has
// to say who they are.
var ErrNoUsers = errors.New("the console listens where others reach it, and there are no users: start it once with --setup, or listen on 127.0.0.1")

// admit decides who may come in when nobody is known yet.
func (d *door) admit() error {
	if d.cfg.Setup != nil {
		d.setup = newSetup()
		d.cfg.Setup("#/setup?" + d.setup.token)
		return nil
	}
	if !d.loopback && d.people.empty() && d.cfg.ProxySecret == "" {
		return ErrNoUsers
	}
	return nil
}

// openToAll says whether everybody who reaches the page is an administrator.
func (d *door) openToAll() bool { return d.loopback && d.people.empty() && d.cfg.Setup == nil }

// followUsers reads the users again when other consoles change them.
func (d *door) followUsers(ctx context.Context) {
	d.backend.repeat(ctx, "users", func(ctx context.Context) error {
		return kv.Changes(ctx, d.people.users.Bucket, func() {
			if err := d.people.refresh(ctx); err != nil && ctx.Err() == nil {
				d.backend.log.Warn().Err(err).Msg("the users are as they were")
			}
		})
	})
}

// identify finds out who asks. Nobody is no error: some routes are for all.
func (d *door) identify(r *http.Request) (who, error) {
	if d.openToAll() {
		return who{Name: "local", Role: Admin}, nil
	}
	if name := r.Header.Get("X-Forwarded-User"); name != "" { // only a trusted proxy's is left
		w := who{Name: clean(name), Role: Viewer}
		if role := r.Header.Get("X-Forwarded-Role"); role != "" {
			if err := w.Role.UnmarshalText([]byte(role)); err != nil {
				return who{}, problem{http.StatusForbidden, "forbidden", err.Error()}
			}
		}
		return w, nil
	}
	if t, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
		u, ok := d.people.get(tokenKeys + digest(t))
		if !ok || u.Disabled || !u.ExpiresAt.IsZero() && time.Now().After(u.ExpiresAt) {
			return who{}, problem{http.StatusUnauthorized, "unauthorised", "the token is not known, or its time is over"}
		}
		return who{Name: u.Name, Role: u.Role}, nil
	}
	cookie, err := r.Cookie(d.cookieName(r))
	if err != nil {
		return who{}, nil
	}
	return d.resume(r.Context(), cookie.Value)
}

// resume finds the session of a cookie.
func (d *door) resume(ctx context.Context, cookie string) (who, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	key := digest(cookie)
	e, err := d.people.sessions.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) || errors.Is(err, kv.ErrUnreadable) {
		return who{}, nil
	}
	if err != nil {
		return who{}, fmt.Errorf("read the session: %w", err)
	}
	s, now := e.Value, time.Now()
	u, ok := d.people.get(userKeys + s.User)
	if !ok || u.Disabled || !same(u.Hash, s.Hash) || now.Sub(s.LastSeenAt) > d.cfg.Idle || now.Sub(s.CreatedAt) > d.cfg.Max {
		return who{}, nil
	}
	if now.Sub(s.LastSeenAt) > min(time.Minute, d.cfg.Idle/10) {
		s.LastSeenAt = now.UTC()
		// By its revision: who signed out meanwhile must not come in again.
		_, _ = d.people.sessions.Put(ctx, key, s, e.Head)
	}
	return who{Name: u.Name, Role: u.Role, session: key}, nil
}

func (d *door) cookieName(r *http.Request) string {
	if d.encrypted(r) {
		return "__Host-nm"
	}
	return "nm"
}

func (d *door) cookie(r *http.Request, value string, age time.Duration) *http.Cookie {
	return &http.Cookie{
		Name: d.cookieName(r), Value: value, Path: "/", MaxAge: int(age / time.Second), HttpOnly: true, Secure: d.encrypted(r), SameSite: http.SameSiteLaxMode,
	}
}

func (d *door) getSession(q *request) (any, error) {
	if !d.backend.isReady() {
		return struct {
			Ready bool `json:"ready"`
		}{}, nil
	}
	return struct {
		hello
		Ready bool `json:"ready"`
	}{d.hello(q), true}, nil
}

func (d *door) signIn(q *request) (any, error) {
	if !d.backend.isReady() {
		return nil, problem{http.StatusServiceUnavailable, "broker_away", "the console waits for the broker"}
	}
	var in struct {
		User     string `json:"user"`
		Password string `json:"password"`
	}
	if err := q.read(&in); err != nil {
		return nil, err
	}
	if !d.people.tries.spend(time.Now(), "user "+cmp.Or(in.User[:min(len(in.User), 64)], "-"), "address "+remote(q.Request).String()) {
		return nil, problem{http.StatusTooManyRequests, "too_many_tries", "too many tries: wait a minute"}
	}
	u, ok := d.people.check(in.User, in.Password)
	if !ok {
		return nil, problem{http.StatusUnauthorized, "unauthorised", "the name or the password is wrong"}
	}
	return d.begin(q, u)
}

// begin starts a session.
func (d *door) begin(q *request, u user) (any, error) {
	value, now := secret(), time.Now().UTC()
	s := session{User: u.Name, Hash: u.Hash, CreatedAt: now, LastSeenAt: now}
	if _, err := d.people.sessions.Put(q.ctx, digest(value), s, 0); err != nil {
		return nil, fmt.Errorf("store the session: %w", err)
	}
	return respond(func(w http.ResponseWriter, r *http.Request) error {
		http.SetCookie(w, d.cookie(r, value, d.cfg.Max))
		return writeJSON(w, http.StatusOK, who{Name: u.Name, Role: u.Role})
	}), nil
}

func (d *door) signOut(q *request) (any, error) {
	if q.who.session != "" {
		if err := d.people.sessions.Bucket.Purge(q.ctx, q.who.session); err != nil {
			return nil, fmt.Errorf("end the session: %w", err)
		}
	}
	return respond(func(w http.ResponseWriter, r *http.Request) error {
		http.SetCookie(w, d.cookie(r, "", -time.Second))
		w.WriteHeader(http.StatusNoContent)
		return nil
	}), nil
}

type hello struct {
	Version string    `json:"version"`
	User    string    `json:"user"`
	Role    string    `json:"role"`
	Open    bool      `json:"open_to_all"`
	Now     time.Time `json:"now"`
}

func (d *door) hello(q *request) hello {
	return hello{Version: d.cfg.Version, User: q.who.Name, Role: q.who.Role.String(), Open: d.openToAll(), Now: time.Now().UTC()}
}

// setup is the way in for the first administrator.
type setup struct {
	token string
	until time.Time

	mu   sync.Mutex
	used bool
}

func newSetup() *setup { return &setup{token: secret(), until: time.Now().Add(setupFor)} }

// take spends the token.
func (s *setup) take(token string) bool {
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used || time.Now().After(s.until) || !same(token, s.token) {
		return false
	}
	s.used = true
	return true
}

func (s *setup) giveBack() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used = false
}

// policy is what the page may do in a browser: nothing but what this server sends.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; " +
	"frame-ancestors 'none'; base-uri 'none'; form-action 'self'"

// guard refuses what other sites have browsers ask, and says what the page may do.
func (d *door) guard(next http.Handler) http.Handler {
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
		d.unproxy(r)
		if !d.knowsHost(r.Host) {
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
func (d *door) knowsHost(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	if loopbackHost(host) || slices.ContainsFunc(d.cfg.Hosts, func(h string) bool { return strings.EqualFold(h, host) }) {
		return true
	}
	// An address is no name that could be pointed elsewhere; that it is ours we know
	// where we listen on one.
	if listen, _, err := net.SplitHostPort(d.cfg.Listen); err == nil && strings.EqualFold(listen, host) {
		return true
	}
	_, err := netip.ParseAddr(host)
	return err == nil && !d.loopback
}

// unproxy believes a trusted proxy, and nobody else, about who asks and how. What
// only a proxy may say is gone afterwards.
func (d *door) unproxy(r *http.Request) {
	h := r.Header
	from := remote(r)
	trusted := from.IsValid() && d.cfg.trusts(from)
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
	if !trusted || d.cfg.ProxySecret == "" || !same(h.Get("X-Proxy-Secret"), d.cfg.ProxySecret) {
		h.Del("X-Forwarded-User")
		h.Del("X-Forwarded-Role")
	}
	h.Del("X-Proxy-Secret")
}

// overTLS is set by unproxy alone.
const overTLS = "Nearmiss-Over-Tls"

// encrypted says whether the browser's connection is.
func (d *door) encrypted(r *http.Request) bool { return d.secure || r.Header.Get(overTLS) != "" }

func remote(r *http.Request) netip.Addr {
	a, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return a.Addr().Unmap()
}

// loopbackHost says whether a host name or address can only mean this machine.
func loopbackHost(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}

// trusts says whether an address is a trusted proxy's.
func (c Config) trusts(addr netip.Addr) bool {
	return slices.ContainsFunc(c.Proxies, func(p netip.Prefix) bool { return p.Contains(addr.Unmap()) })
}
