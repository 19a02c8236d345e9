package check

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/access"
)

// permissions are what the server says that a client may do (nats-server, UserInfo). A
// list that is not there allows everything.
type permissions struct {
	Publish   *subjects `json:"publish"`
	Subscribe *subjects `json:"subscribe"`
	Responses *struct{} `json:"responses"`
}

type subjects struct {
	Allow []string `json:"allow"`
	Deny  []string `json:"deny"`
}

func (s *subjects) may(subject string) bool {
	if s == nil {
		return true
	}
	within := func(pattern string) bool { return covers(pattern, subject) }
	return (len(s.Allow) == 0 || slices.ContainsFunc(s.Allow, within)) && !slices.ContainsFunc(s.Deny, within)
}

func (p *permissions) mayPublish(subject string) bool { return p.Publish.may(subject) }

// covers says whether a pattern matches all that a subject, which may be a pattern
// itself, matches.
func covers(pattern, subject string) bool {
	for {
		p, morePattern, deeper := strings.Cut(pattern, ".")
		s, moreSubject, goesOn := strings.Cut(subject, ".")
		switch {
		case p == ">" && !deeper:
			return s != ""
		case s == ">", p != "*" && p != s, deeper != goesOn:
			return false
		case !deeper:
			return true
		}
		pattern, subject = morePattern, moreSubject
	}
}

// rights asks what this client may do, and compares it with what its role needs.
func (l *checker) rights(ctx context.Context) {
	f := Finding{Check: "rights", Level: OK}
	var who struct {
		User    string       `json:"user"`
		Account string       `json:"account"`
		May     *permissions `json:"permissions"`
	}
	err := l.ask(ctx, access.OwnRights, func(ctx context.Context) error {
		m, err := l.nc.RequestWithContext(ctx, access.OwnRights, nil)
		if err != nil {
			return err
		}
		var answer struct {
			Data  any `json:"data"`
			Error any `json:"error"`
		}
		answer.Data = &who
		if err := json.Unmarshal(m.Data, &answer); err != nil {
			return err
		}
		if answer.Error != nil {
			return fmt.Errorf("the server answers %v", answer.Error)
		}
		return nil
	})
	switch {
	case errors.Is(err, stream.ErrForbidden):
		f.Level, f.Detail = Skipped, "this client may not ask what it may do"
		f.Advice = "its rights are those of an earlier version, or not of nearmiss users: render them anew, or allow publishing on " + access.OwnRights
	case errors.Is(err, nats.ErrNoResponders), errors.Is(err, context.DeadlineExceeded):
		f.Level, f.Detail = Skipped, "the server does not tell what its clients may do"
	case err != nil:
		f.Level, f.Detail = Skipped, "the server does not tell what this client may do: "+err.Error()
	case who.May == nil:
		l.limits = &permissions{}
		f.Detail = "no limits in account " + who.Account
		if !l.isLocal() {
			f.Level, f.Advice = Warning, "a client needs few rights, and this one may remove everything: nearmiss users add gives each machine its own"
		}
	default:
		l.limits = who.May
		f = l.compare(f, who.User, who.Account)
	}
	l.report(f)
}

// compare says which roles the client's rights are enough for, and what is missing for
// the one that it should have.
func (l *checker) compare(f Finding, user, account string) Finding {
	f.Detail = fmt.Sprintf("%s in account %s", short(user), account)
	if l.cfg.Role != "" {
		missing := l.missing(l.cfg.Role)
		if len(missing) == 0 {
			f.Detail += " may do what a " + string(l.cfg.Role) + " does"
			return f
		}
		f.Level = Failed
		f.Detail += fmt.Sprintf(" may not do all that a %s does: %s", l.cfg.Role, shortened(missing))
		f.Advice = "render the rights anew (nearmiss users), or allow these subjects in the server's configuration"
		return f
	}
	var fit []string
	for _, role := range []access.Role{access.Worker, access.Trainer, access.Sinks, access.Control, access.Operator, access.Console, access.Setup} {
		if len(l.missing(role)) == 0 {
			fit = append(fit, string(role))
		}
	}
	if len(fit) == 0 {
		f.Detail += " may do what no role does; name yours with --as to see what is missing"
	} else {
		f.Detail += " may do what " + strings.Join(fit, ", ") + " do"
	}
	return f
}

// missing are the subjects that a role needs and this client may not use.
func (l *checker) missing(role access.Role) []string {
	need := access.User{Role: role, Detector: l.cfg.Detector}.Rights(l.cfg.Topology.Names)
	var all []string
	for _, s := range need.Publish {
		if !l.limits.mayPublish(s) {
			all = append(all, "publish "+s)
		}
	}
	for _, s := range need.Subscribe {
		if !l.limits.Subscribe.may(s) {
			all = append(all, "subscribe "+s)
		}
	}
	if need.Respond && l.limits.Responses == nil && !l.limits.mayPublish(">") {
		all = append(all, "answer requests (allow_responses)")
	}
	slices.Sort(all)
	return all
}

// short is a public key as people can compare it.
func short(key string) string {
	if len(key) > 12 {
		return key[:12] + "…"
	}
	return key
}
