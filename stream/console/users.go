package console

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/nearmiss/nearmiss/stream"
)

// shownUser is a user without what nobody is to see.
type shownUser struct {
	Name      string    `json:"name"`
	Role      Role      `json:"role"`
	Token     string    `json:"token,omitempty"` // of tokens: what names it for its removal
	Disabled  bool      `json:"disabled,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	CreatedBy string    `json:"created_by,omitempty"`
	ExpiresAt time.Time `json:"expires_at,omitzero"`
}

func shown(u user) shownUser {
	return shownUser{Name: u.Name, Role: u.Role, Disabled: u.Disabled, CreatedAt: u.CreatedAt, CreatedBy: u.CreatedBy, ExpiresAt: u.ExpiresAt}
}

func (d *door) listUsers(*request) (any, error) {
	out := listing[shownUser]{Items: []shownUser{}}
	for k, u := range d.people.list() {
		s := shown(u)
		s.Role = max(u.Role, Viewer)
		if t, ok := strings.CutPrefix(k, tokenKeys); ok {
			s.Token = t
		}
		out.Items = append(out.Items, s)
	}
	slices.SortFunc(out.Items, func(a, b shownUser) int {
		return cmp.Or(strings.Compare(a.Token, b.Token), strings.Compare(a.Name, b.Name))
	})
	return out, nil
}

// newUser is what makes one.
type newUser struct {
	Name     string `json:"name"`
	Password string `json:"password"`
	Role     Role   `json:"role"`
}

func (d *door) make(q *request, in newUser, by string) (user, error) {
	if !stream.ValidToken(in.Name) {
		return user{}, bad("user %q: use 1 to 64 letters, digits, - and _", clean(in.Name))
	}
	if in.Role < Viewer {
		return user{}, bad("say which role: viewer, operator or admin")
	}
	h, err := d.people.hash(in.Password)
	if err != nil {
		return user{}, err
	}
	u := user{Name: in.Name, Role: in.Role, Hash: h, CreatedAt: time.Now().UTC(), CreatedBy: by}
	return u, d.people.put(q.ctx, userKeys+u.Name, u, true)
}

func (d *door) addUser(q *request) (any, error) {
	var in newUser
	if err := q.read(&in); err != nil {
		return nil, err
	}
	if d.people.empty() && in.Role != Admin {
		return nil, problem{http.StatusUnprocessableEntity, stream.CodeBadRequest, "the first user is an admin: nobody could make others"}
	}
	u, err := d.make(q, in, q.who.Name)
	if err != nil {
		return nil, err
	}
	d.backend.record(q, "create", "user/"+u.Name, map[string]any{"role": u.Role})
	return created{http.StatusCreated, shown(u)}, nil
}

// firstUser makes an administrator of who has the link of --setup, and signs him in.
func (d *door) firstUser(q *request) (any, error) {
	var in struct {
		Token    string `json:"token"`
		User     string `json:"user"`
		Password string `json:"password"`
	}
	if err := q.read(&in); err != nil {
		return nil, err
	}
	if !d.people.tries.spend(time.Now(), "setup "+remote(q.Request).String()) {
		return nil, problem{http.StatusTooManyRequests, "too_many_tries", "too many tries: wait a minute"}
	}
	if !d.setup.take(in.Token) {
		return nil, problem{http.StatusForbidden, "forbidden", "the link is not valid, or no longer: start the console with --setup again"}
	}
	u, err := d.make(q, newUser{in.User, in.Password, Admin}, "setup")
	if err != nil {
		d.setup.giveBack()
		return nil, err
	}
	d.backend.record(q, "create", "user/"+u.Name, map[string]any{"role": u.Role})
	return d.begin(q, u)
}

func (d *door) changeUser(q *request) (any, error) {
	var in struct {
		Password *string `json:"password,omitempty"`
		Role     *Role   `json:"role,omitempty"`
		Disabled *bool   `json:"disabled,omitempty"`
	}
	if err := q.read(&in); err != nil {
		return nil, err
	}
	hash := ""
	if in.Password != nil {
		var err error
		if hash, err = d.people.hash(*in.Password); err != nil {
			return nil, err
		}
	}
	key := userKeys + q.PathValue("user")
	var u user
	if err := d.people.change(q.ctx, func(ctx context.Context) error {
		var ok bool
		if u, ok = d.people.get(key); !ok {
			return missing("there is no user %q", clean(q.PathValue("user")))
		}
		if in.Role != nil {
			u.Role = *in.Role
		}
		if in.Disabled != nil {
			u.Disabled = *in.Disabled
		}
		if (u.Role != Admin || u.Disabled) && d.people.adminsBut(key) == 0 {
			return problem{http.StatusConflict, stream.CodeConflict, u.Name + " is the last admin"}
		}
		u.Hash = cmp.Or(hash, u.Hash) // another one ends all sessions of before
		return d.people.put(ctx, key, u, false)
	}); err != nil {
		return nil, err
	}
	d.backend.record(q, "set", "user/"+u.Name, map[string]any{"role": u.Role, "disabled": u.Disabled, "password": in.Password != nil})
	return shown(u), nil
}

func (d *door) removeUser(q *request) (any, error) {
	key := userKeys + q.PathValue("user")
	err := d.people.change(q.ctx, func(ctx context.Context) error {
		if _, ok := d.people.get(key); !ok {
			return missing("there is no user %q", clean(q.PathValue("user")))
		}
		if d.people.adminsBut(key) == 0 {
			return problem{http.StatusConflict, stream.CodeConflict, "the last admin stays: without users the page would open to all"}
		}
		return d.forget(ctx, key)
	})
	if err == nil {
		d.backend.record(q, "delete", "user/"+q.PathValue("user"), nil)
	}
	return nil, err
}

func (d *door) forget(ctx context.Context, key string) error {
	if err := d.people.users.Bucket.Purge(ctx, key); err != nil {
		return err
	}
	return d.people.refresh(ctx)
}

func (d *door) addToken(q *request) (any, error) {
	var in struct {
		Name string `json:"name"`
		Role Role   `json:"role"`
		Days int    `json:"days"`
	}
	if err := q.read(&in); err != nil {
		return nil, err
	}
	if !stream.ValidToken(in.Name) || in.Role < Viewer || in.Days < 1 || in.Days > 3650 {
		return nil, bad("a token has a name of letters, digits, - and _, a role, and 1 to 3650 days")
	}
	value := tokenPrefix + secret()
	u := user{Name: in.Name, Role: in.Role, CreatedAt: time.Now().UTC(), CreatedBy: q.who.Name, ExpiresAt: time.Now().UTC().Add(time.Duration(in.Days) * 24 * time.Hour)}
	if err := d.people.put(q.ctx, tokenKeys+digest(value), u, true); err != nil {
		return nil, err
	}
	d.backend.record(q, "create", "token/"+u.Name, map[string]any{"role": u.Role, "expires_at": u.ExpiresAt})
	return created{http.StatusCreated, struct {
		shownUser
		Secret string `json:"secret"` // shown once
	}{shownUser{Name: u.Name, Role: u.Role, Token: digest(value), CreatedAt: u.CreatedAt, CreatedBy: u.CreatedBy, ExpiresAt: u.ExpiresAt}, value}}, nil
}

func (d *door) removeToken(q *request) (any, error) {
	key := tokenKeys + q.PathValue("token")
	u, ok := d.people.get(key)
	if !ok {
		return nil, missing("there is no such token")
	}
	if err := d.forget(q.ctx, key); err != nil {
		return nil, err
	}
	d.backend.record(q, "delete", "token/"+u.Name, nil)
	return nil, nil
}

// listAudit shows who changed what, newest first.
func (d *door) listAudit(q *request) (any, error) {
	v := q.params("by", "action", "object", "failed", "cursor", "limit")
	limit, before := v.paging(100)
	if v.err != nil {
		return nil, v.err
	}
	all, err := d.backend.in.Audit(q.ctx, stream.AuditFilter{
		By: v.Get("by"), Action: v.Get("action"), Object: v.Get("object"), Failed: v.yes("failed"),
	}, before, limit)
	if err != nil {
		return nil, err
	}
	out := listing[stream.AuditEntry]{Items: append([]stream.AuditEntry{}, all...)}
	if len(all) == limit && all[limit-1].Sequence > 1 {
		out.Next = nextCursor(all[limit-1].Sequence)
	}
	return out, nil
}
