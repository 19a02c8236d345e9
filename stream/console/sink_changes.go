package console

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"path"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/kv"
	"github.com/nearmiss/nearmiss/stream/sink"
)

// shownSink is where a sink sends, and which revision says so.
type shownSink struct {
	sink.Sink
	Revision uint64 `json:"revision"`
}

// sinkOf is the sink that the path names.
func (c *Console) sinkOf(q *request) (kv.Entry[sink.Sink], error) {
	b, err := c.js.KeyValue(q.ctx, c.cfg.SinksBucket())
	if err != nil {
		return kv.Entry[sink.Sink]{}, err
	}
	e, err := kv.Store[sink.Sink]{Bucket: b, Decode: sink.Parse}.Get(q.ctx, q.PathValue("sink"))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		err = missing("there is no sink %q", clean(q.PathValue("sink")))
	}
	return e, err
}

func (c *Console) getSink(q *request) (any, error) {
	e, err := c.sinkOf(q)
	return shownSink{e.Value, e.Head}, err
}

func (c *Console) addSink(q *request) (any, error) {
	b, err := q.body()
	if err != nil {
		return nil, err
	}
	var name struct {
		Name string `json:"name"`
	}
	if err := json.Unmarshal(b, &name); err != nil {
		return nil, bad("the request's JSON: %v", err)
	}
	n, err := c.newSink(sink.Sink{}, name.Name, b)
	if err != nil {
		return nil, err
	}
	value, err := json.Marshal(n)
	if err != nil {
		return nil, err
	}
	a, err := c.control(q).CreateSink(q.ctx, n.Name, value)
	if err != nil {
		return nil, err
	}
	return created{http.StatusCreated, shownSink{n, a.Revision}}, nil
}

// changeSink takes a JSON merge patch (RFC 7396).
func (c *Console) changeSink(q *request) (any, error) {
	b, err := q.body()
	if err != nil {
		return nil, err
	}
	want, err := q.ifMatch()
	if err != nil {
		return nil, err
	}
	e, err := c.sinkOf(q)
	if err != nil {
		return nil, err
	}
	stale := problem{http.StatusPreconditionFailed, codeStale, "somebody else has changed the sink meanwhile: read it again"}
	if want > 0 && want != e.Head {
		return nil, stale
	}
	was, err := json.Marshal(e.Value)
	if err != nil {
		return nil, err
	}
	merged, err := merge(was, b)
	if err != nil {
		return nil, bad("the change: %v", err)
	}
	n, err := c.newSink(e.Value, e.Key, merged)
	if err != nil {
		return nil, err
	}
	value, err := json.Marshal(n)
	if err != nil {
		return nil, err
	}
	a, err := c.control(q).SetSink(q.ctx, e.Key, value, e.Head)
	if errors.Is(err, stream.ErrConflict) {
		return nil, stale
	}
	if err != nil {
		return nil, err
	}
	return shownSink{n, a.Revision}, nil
}

func (c *Console) removeSink(q *request) (any, error) {
	return nil, c.control(q).RemoveSink(q.ctx, q.PathValue("sink"))
}

// newSink reads what a sink shall be instead of old. What could bring files of the
// machine that runs the sinks to a receiver, or reach what listens there for that
// machine alone, is for who may work on it.
func (c *Console) newSink(old sink.Sink, name string, value []byte) (sink.Sink, error) {
	n, err := sink.Parse(name, value)
	if err == nil {
		n, err = c.cfg.CheckSink(n)
	}
	switch {
	case err != nil:
		return n, problem{http.StatusUnprocessableEntity, stream.CodeBadRequest, err.Error()}
	case n.Secret != old.Secret && !pageSecret(n.Secret):
		return n, problem{http.StatusUnprocessableEntity, stream.CodeBadRequest, "from the page a secret is a file below /run/secrets, one whose name ends in .secret, or a variable whose name begins with NEARMISS_SINK_: name others with nearmiss sinks add"}
	}
	for k, v := range machinesOwn(n.Config) {
		if !bytes.Equal(v, machinesOwn(old.Config)[k]) {
			return n, problem{http.StatusUnprocessableEntity, stream.CodeBadRequest, k + " is about the machine that runs the sinks: set it with nearmiss sinks add"}
		}
	}
	return n, nil
}

// machinesOwn are the settings of a kind that are about the machine that runs it:
// files, and what may be reached there. Case does not matter: JSON is read so.
func machinesOwn(config json.RawMessage) map[string]json.RawMessage {
	var all map[string]json.RawMessage
	_ = json.Unmarshal(config, &all) // what is no object has none
	own := map[string]json.RawMessage{}
	for k, v := range all {
		if strings.EqualFold(k, "allow_loopback") || strings.EqualFold(k[max(0, len(k)-len("_file")):], "_file") {
			own[k] = v
		}
	}
	return own
}

// pageSecret says whether a reference is to what is kept to be a secret of a sink.
func pageSecret(ref string) bool {
	kind, where, _ := strings.Cut(ref, ":")
	switch kind {
	case "env":
		return strings.HasPrefix(where, "NEARMISS_SINK_")
	case "file":
		where = strings.ReplaceAll(where, `\`, "/")
		return where == path.Clean(where) && (strings.HasPrefix(where, "/run/secrets/") || strings.HasSuffix(where, ".secret"))
	}
	return ref == ""
}

// merge is a JSON merge patch (RFC 7396) of an object.
func merge(target, patch []byte) ([]byte, error) {
	var t, p map[string]any
	if err := json.Unmarshal(target, &t); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(patch, &p); err != nil {
		return nil, err
	}
	return json.Marshal(merged(t, p))
}

func merged(target, patch map[string]any) map[string]any {
	if target == nil {
		target = map[string]any{}
	}
	for k, v := range patch {
		switch v := v.(type) {
		case nil:
			delete(target, k)
		case map[string]any:
			below, _ := target[k].(map[string]any)
			target[k] = merged(below, v)
		default:
			target[k] = v
		}
	}
	return target
}

// record writes down a change that the console makes itself, in the log and the audit;
// of others control does.
func (c *Console) record(q *request, action, object string, after any) {
	c.logAction(q, action, object)
	e := stream.AuditEntry{By: q.who.Name, Action: action, Object: clean(object), After: stream.Audited(after)}
	if err := c.in.WriteAudit(context.WithoutCancel(q.ctx), e); err != nil {
		c.log.Error().Err(err).Str("by", q.who.Name).Str("object", object).Msg("a change is missing in the audit")
	}
}
