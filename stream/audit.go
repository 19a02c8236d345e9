package stream

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/nearmiss/nearmiss/internal/redact"
	"github.com/nearmiss/nearmiss/stream/internal/scan"
	"github.com/nearmiss/nearmiss/stream/internal/text"
	"github.com/nearmiss/nearmiss/stream/internal/wait"
)

// AuditEntry says who asked for a change: when, of what, and what came of it.
type AuditEntry struct {
	Sequence uint64    `json:"sequence"` // in the audit stream
	ID       string    `json:"id"`
	At       time.Time `json:"at"`
	// By is the person, as the client says, which nobody can check; User is the
	// identity whose key was proven, by its name where that is known; Identity is
	// its public key. Both are empty where the broker has no users.
	By       string `json:"by,omitempty"`
	User     string `json:"user,omitempty"`
	Identity string `json:"identity,omitempty"`
	Action   string `json:"action"` // create, set, promote, …
	Object   string `json:"object"` // detector/NAME, job/NAME, user/NAME, installation
	Result   string `json:"result"` // done, or the code of why not
	Error    string `json:"error,omitempty"`
	// Before and After are what the change replaced, and what it led to, JSON,
	// where that is known and not too large.
	Before json.RawMessage `json:"before,omitempty"`
	After  json.RawMessage `json:"after,omitempty"`
}

// AuditDone is the result of a change that was made.
const AuditDone = "done"

const (
	auditType  = "dev.nearmiss.audit.v1"
	auditLate  = 15 * time.Minute // an entry is written when the change has been made
	auditAge   = 365 * 24 * time.Hour
	auditBytes = 64 << 20
)

// maxAudited bounds what an entry says of before and after, bytes of each.
const maxAudited = 16 << 10

// Audited is v as an entry keeps it: nothing where it is too large.
func Audited(v any) json.RawMessage {
	if v == nil {
		return nil
	}
	b, err := json.Marshal(v)
	if err != nil || len(b) > maxAudited || string(b) == "{}" || string(b) == "null" {
		return nil
	}
	return b
}

// subject of the entry: nearmiss.audit.KIND.NAME.
func (e AuditEntry) subject(n Names) string {
	kind, name, ok := strings.Cut(e.Object, "/")
	if !ok {
		name = NoCamera
	}
	return n.Audit(SafeToken(kind), SafeToken(name))
}

// message is the entry as a CloudEvent in binary mode.
func (e AuditEntry) message(n Names) (*nats.Msg, error) {
	subject := e.subject(n)
	e.Object, e.Error = text.Clip(text.Line(e.Object)), redact.Text(e.Error)
	if len(e.Error) > maxHeader {
		e.Error = e.Error[:maxHeader] + "…"
	}
	return CloudEvent(n, subject, e.ID, "audit", auditType, e.At, e)
}

// WriteAudit stores an entry, which gets an id and a time where it has none.
func (in *Installation) WriteAudit(ctx context.Context, e AuditEntry) error {
	if e.ID == "" {
		e.ID = nuid.Next()
	}
	if e.At.IsZero() {
		e.At = time.Now().UTC()
	}
	e.Result = cmp.Or(e.Result, AuditDone)
	m, err := e.message(in.names)
	if err != nil {
		return fmt.Errorf("write the audit of %s: %w", e.Action, err)
	}
	err = Retry(ctx, wait.Brief(), func() error {
		step, cancel := context.WithTimeout(ctx, PublishWait)
		defer cancel()
		_, err := in.js.PublishMsg(step, m)
		return err
	})
	if err != nil {
		return fmt.Errorf("write the audit of %s %s: %w", e.Action, text.Clip(e.Object), err)
	}
	return nil
}

// AuditFilter says which entries are wanted. An empty field means all.
type AuditFilter struct {
	Since  time.Time
	By     string // a person, the name of an identity, or its public key
	Action string
	Object string // an object, or a kind of objects such as detector
	Failed bool   // only what was refused
}

func (f AuditFilter) matches(e AuditEntry) bool {
	return !e.At.Before(f.Since) &&
		(f.By == "" || f.By == e.By || f.By == e.User || f.By == e.Identity) &&
		(f.Action == "" || f.Action == e.Action) &&
		(f.Object == "" || f.Object == e.Object || strings.HasPrefix(e.Object, f.Object+"/")) &&
		(!f.Failed || e.Result != AuditDone)
}

// Audit returns up to limit entries, newest first, of those before the sequence
// before; 0: of all.
func (in *Installation) Audit(ctx context.Context, f AuditFilter, before uint64, limit int) ([]AuditEntry, error) {
	if limit < 1 || limit > maxPage {
		return nil, fmt.Errorf("a page of %d entries: use 1 to %d: %w", limit, maxPage, ErrBadMessage)
	}
	var all []AuditEntry
	err := scan.Back(ctx, in.js, in.names.AuditStream(), in.names.Audit("*", "*"), before, false, func(m jetstream.Msg, seq uint64) bool {
		if len(all) == limit {
			return false
		}
		e, err := parseAudit(m.Headers(), m.Data())
		if err != nil {
			return true
		}
		e.Sequence = seq
		// Entries are written when the change has been made: a little later than At.
		if !f.Since.IsZero() && e.At.Before(f.Since.Add(-auditLate)) {
			return false
		}
		if f.matches(e) {
			all = append(all, e)
		}
		return true
	})
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, fmt.Errorf("read the audit: there is no stream %s (nearmiss up, broker and broker --setup make it): %w", in.names.AuditStream(), ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read the audit: %w", err)
	}
	return all, nil
}

func parseAudit(h nats.Header, data []byte) (e AuditEntry, err error) {
	if h.Get(ceType) != auditType {
		return e, fmt.Errorf("%s %q is no audit entry: %w", ceType, text.Clip(h.Get(ceType)), ErrBadMessage)
	}
	if err := json.Unmarshal(data, &e); err != nil {
		return e, fmt.Errorf("audit entry: %v: %w", err, ErrBadMessage)
	}
	e.Error = redact.Text(e.Error)
	return e, nil
}
