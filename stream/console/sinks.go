package console

import (
	"bytes"
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

// sinks are where events go besides this page.
type sinks struct {
	backend *backend
	check   func(sink.Sink) (sink.Sink, error)
}

// list says where events go, and what became of them.
func (s *sinks) list(q *request) (any, error) {
	var all []sink.Status
	if err := sink.Ask(q.ctx, s.backend.nc, s.backend.Names, "status", nil, &all); err != nil {
		return nil, err
	}
	return listing[sink.Status]{Items: append([]sink.Status{}, all...)}, nil
}

// test has an event sent now, past all filters.
func (s *sinks) test(q *request) (any, error) {
	return ask[sink.TestAnswer](s.backend, q, "test", sink.TestRequest{Sink: q.PathValue("sink")})
}

// replay has the sink's dead letters sent again.
func (s *sinks) replay(q *request) (any, error) {
	return ask[sink.ReplayAnswer](s.backend, q, "replay", sink.ReplayRequest{Sink: q.PathValue("sink"), Dead: true})
}

func ask[A any](b *backend, q *request, what string, question any) (any, error) {
	var in struct{}
	if err := q.read(&in); err != nil {
		return nil, err
	}
	var a A
	if err := sink.Ask(q.ctx, b.nc, b.Names, what, question, &a); err != nil {
		return nil, err
	}
	b.record(q, what, "sink/"+q.PathValue("sink"), a)
	return a, nil
}

// shownSink is where a sink sends, and which revision says so.
type shownSink struct {
	sink.Sink
	Revision uint64 `json:"revision"`
}

// of is the sink that the path names.
func (s *sinks) of(q *request) (kv.Entry[sink.Sink], error) {
	b, err := s.backend.js.KeyValue(q.ctx, s.backend.SinksBucket())
	if err != nil {
		return kv.Entry[sink.Sink]{}, err
	}
	e, err := kv.Store[sink.Sink]{Bucket: b, Decode: sink.Parse}.Get(q.ctx, q.PathValue("sink"))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		err = missing("there is no sink %q", clean(q.PathValue("sink")))
	}
	return e, err
}

func (s *sinks) get(q *request) (any, error) {
	e, err := s.of(q)
	return shownSink{e.Value, e.Head}, err
}

func (s *sinks) add(q *request) (any, error) {
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
	n, value, err := s.read(sink.Sink{}, name.Name, b)
	if err != nil {
		return nil, err
	}
	a, err := s.backend.control(q).CreateSink(q.ctx, n.Name, value)
	if err != nil {
		return nil, err
	}
	return created{http.StatusCreated, shownSink{n, a.Revision}}, nil
}

// change takes a JSON merge patch (RFC 7396).
func (s *sinks) change(q *request) (any, error) {
	b, err := q.body()
	if err != nil {
		return nil, err
	}
	want, err := q.ifMatch()
	if err != nil {
		return nil, err
	}
	e, err := s.of(q)
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
	n, value, err := s.read(e.Value, e.Key, merged)
	if err != nil {
		return nil, err
	}
	a, err := s.backend.control(q).SetSink(q.ctx, e.Key, value, e.Head)
	if errors.Is(err, stream.ErrConflict) {
		return nil, stale
	}
	if err != nil {
		return nil, err
	}
	return shownSink{n, a.Revision}, nil
}

func (s *sinks) remove(q *request) (any, error) {
	return nil, s.backend.control(q).RemoveSink(q.ctx, q.PathValue("sink"))
}

// read reads what a sink shall be instead of old, and how it is stored. What could
// bring files of the machine that runs the sinks to a receiver, or reach what listens
// there for that machine alone, is for who may work on it.
func (s *sinks) read(old sink.Sink, name string, b []byte) (n sink.Sink, value []byte, err error) {
	refuse := func(why string) (sink.Sink, []byte, error) {
		return n, nil, problem{http.StatusUnprocessableEntity, stream.CodeBadRequest, why}
	}
	if n, err = sink.Parse(name, b); err == nil {
		n, err = s.check(n)
	}
	switch {
	case err != nil:
		return refuse(err.Error())
	case n.Secret != old.Secret && !pageSecret(n.Secret):
		return refuse("from the page a secret is a file below /run/secrets, one whose name ends in .secret, or a variable whose name begins with NEARMISS_SINK_: name others with nearmiss sinks add")
	}
	for k, v := range machinesOwn(n.Config) {
		if !bytes.Equal(v, machinesOwn(old.Config)[k]) {
			return refuse(k + " is about the machine that runs the sinks: set it with nearmiss sinks add")
		}
	}
	value, err = json.Marshal(n)
	return n, value, err
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
