package console

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/time/rate"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/kv"
	"github.com/nearmiss/nearmiss/stream/internal/lease"
)

// Role is what somebody may do; each may what the ones before it may.
type Role int

// Roles.
const (
	nobody   Role = iota
	Viewer        // sees
	Operator      // answers alarms, changes data, tunes, trains, promotes
	Admin         // users, tokens, deletes
)

var roleNames = []string{"nobody", "viewer", "operator", "admin"}

func (r Role) String() string { return roleNames[r] }

// MarshalText implements [encoding.TextMarshaler].
func (r Role) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (r *Role) UnmarshalText(b []byte) error {
	i := slices.Index(roleNames, string(b))
	if i < int(Viewer) {
		return fmt.Errorf("role %q: use viewer, operator or admin", clean(string(b)))
	}
	*r = Role(i)
	return nil
}

// who asks.
type who struct {
	Name string `json:"user"`
	Role Role   `json:"role"`

	session string // key of the session; empty: there is none
}

// user is a person, or a token for scripts, as the bucket has it.
type user struct {
	Name      string    `json:"name"`
	Role      Role      `json:"role"`
	Hash      string    `json:"hash,omitempty"` // bcrypt of the password; a token has none
	Disabled  bool      `json:"disabled,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	CreatedBy string    `json:"created_by,omitempty"`
	ExpiresAt time.Time `json:"expires_at,omitzero"` // of tokens
}

// session is what the bucket of sessions has under the SHA-256 of the cookie.
type session struct {
	User       string    `json:"user"`
	Hash       string    `json:"hash"` // of the password that it was begun with: another one ends it
	CreatedAt  time.Time `json:"created_at"`
	LastSeenAt time.Time `json:"seen_at"`
}

// Keys of the users' bucket.
const (
	userKeys  = "user."
	tokenKeys = "token."
)

const (
	leastPassword = 12
	mostPassword  = 72 // bcrypt reads no more
	cost          = 12 // of bcrypt: a third of a second
	tokenPrefix   = "nmt_"
	setupFor      = 30 * time.Minute
)

// people are those who may come in.
type people struct {
	log      zerolog.Logger
	users    kv.Store[user]
	sessions kv.Store[session]
	cost     int
	nothing  func() []byte // compared with where there is no such user, so that the answer takes as long
	tries    tries

	reading sync.Mutex // held while users are read
	mu      sync.Mutex
	byKey   map[string]user // by key; as last read
}

func openPeople(ctx context.Context, js jetstream.JetStream, cfg Config, log zerolog.Logger) (*people, error) {
	p := &people{log: log, cost: cmp.Or(cfg.cost, cost)}
	p.nothing = sync.OnceValue(func() []byte {
		h, _ := bcrypt.GenerateFromPassword([]byte("nobody has this"), p.cost) // fails for no such cost and length
		return h
	})
	users, err := js.KeyValue(ctx, cfg.UsersBucket())
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", cfg.UsersBucket(), err)
	}
	sessions, err := js.KeyValue(ctx, cfg.SessionsBucket())
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", cfg.SessionsBucket(), err)
	}
	p.users = kv.Store[user]{Bucket: users, Decode: func(_ string, b []byte) (u user, err error) { return u, kv.Object(b, &u, true) }}
	p.sessions = kv.Store[session]{Bucket: sessions, Decode: func(_ string, b []byte) (s session, err error) { return s, kv.Object(b, &s, true) }}
	return p, p.refresh(ctx)
}

// refresh reads all users. Of two readings at once the older one could end last, so one
// waits for the other.
func (p *people) refresh(ctx context.Context) error {
	p.reading.Lock()
	defer p.reading.Unlock()
	all, unreadable, err := p.users.List(ctx)
	if err != nil {
		return fmt.Errorf("list the console's users: %w", err)
	}
	byKey := map[string]user{}
	for _, e := range all {
		byKey[e.Key] = e.Value
	}
	for _, b := range unreadable { // nobody, and not nothing: the page must not open to all
		byKey[b.Key] = user{Name: b.Key, Disabled: true}
		p.log.Warn().Str("key", b.Key).Str("reason", b.Reason).Msg("a user cannot be read")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.byKey = byKey
	return nil
}

// empty says that there are no people yet. Tokens alone do not close the page.
func (p *people) empty() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k := range p.byKey {
		if strings.HasPrefix(k, userKeys) {
			return false
		}
	}
	return true
}

func (p *people) get(key string) (user, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	u, ok := p.byKey[key]
	return u, ok
}

func (p *people) list() map[string]user {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.byKey)
}

// adminsBut counts the administrators who can sign in, without one.
func (p *people) adminsBut(key string) int {
	n := 0
	for k, u := range p.list() {
		if k != key && strings.HasPrefix(k, userKeys) && u.Role == Admin && !u.Disabled {
			n++
		}
	}
	return n
}

// valid says whether somebody who came in may still be there.
func (p *people) valid(w who) bool {
	if w.session == "" {
		return true
	}
	u, ok := p.get(userKeys + w.Name)
	return ok && !u.Disabled && u.Role >= w.Role
}

// usersLease is in the bucket of sessions while a console changes users.
const usersLease = "turn"

// change changes users by what they are now, while no other request and no other console
// does: of two at once one would undo what the other says, and two administrators could
// remove each other.
func (p *people) change(ctx context.Context, do func(context.Context) error) error {
	return lease.Of(p.sessions.Bucket, usersLease).Hold(ctx, func(ctx context.Context) error {
		if err := p.refresh(ctx); err != nil {
			return err
		}
		return do(ctx)
	})
}

// put stores a user. create: only where there is none.
func (p *people) put(ctx context.Context, key string, u user, create bool) error {
	b, err := json.Marshal(u)
	if err != nil {
		return err
	}
	if create {
		if _, err := p.users.Bucket.Create(ctx, key, b); kv.Conflict(err) {
			return problem{http.StatusConflict, stream.CodeConflict, "there is a user " + u.Name + " already"}
		} else if err != nil {
			return fmt.Errorf("store user %s: %w", u.Name, err)
		}
	} else if _, err := p.users.Bucket.Put(ctx, key, b); err != nil {
		return fmt.Errorf("store user %s: %w", u.Name, err)
	}
	return p.refresh(ctx)
}

func (p *people) hash(password string) (string, error) {
	if n := utf8.RuneCountInString(password); n < leastPassword || len(password) > mostPassword {
		return "", bad("a password has %d characters or more, and %d bytes at most", leastPassword, mostPassword)
	}
	h, err := bcrypt.GenerateFromPassword([]byte(password), p.cost)
	return string(h), err
}

// check finds the user of a name and a password.
func (p *people) check(name, password string) (user, bool) {
	u, ok := p.get(userKeys + name)
	hash := []byte(u.Hash)
	if !ok || u.Hash == "" {
		hash = p.nothing()
	}
	right := bcrypt.CompareHashAndPassword(hash, []byte(password)) == nil
	return u, right && ok && !u.Disabled
}

// digest is what is stored of a secret.
func digest(secret string) string {
	s := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(s[:])
}

func secret() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	return base64.RawURLEncoding.EncodeToString(b)
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// tries limits attempts to sign in, by user and by address.
type tries struct {
	mu  sync.Mutex
	all map[string]*rate.Limiter
}

// spend takes one try of each key; false: one of them has none left.
func (t *tries) spend(now time.Time, keys ...string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all == nil || len(t.all) > 10_000 {
		t.all = map[string]*rate.Limiter{}
	}
	ok := true
	for _, k := range keys {
		for _, x := range []struct {
			key   string
			every time.Duration
			burst int
		}{{"minute " + k, 12 * time.Second, 5}, {"hour " + k, 3 * time.Minute, 20}} {
			l := t.all[x.key]
			if l == nil {
				l = rate.NewLimiter(rate.Every(x.every), x.burst)
				t.all[x.key] = l
			}
			ok = l.AllowN(now, 1) && ok
		}
	}
	return ok
}
