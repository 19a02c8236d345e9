package console

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/service"
)

const (
	maxBody   = 1 << 20  // of a JSON request
	maxUpload = 64 << 20 // of one image
)

// route is one thing that can be asked for.
type route struct {
	method, path string
	needs        Role
	do           func(*request) (any, error)
}

// routes is the API: everything below api/v1, and who may ask for it. openapi.yaml
// is its contract.
func (c *Console) routes() []route {
	return []route{
		{"GET", "session", nobody, c.door.getSession},
		{"POST", "session", nobody, c.door.signIn},
		{"DELETE", "session", nobody, c.door.signOut},
		{"POST", "setup", nobody, c.door.firstUser},
		{"GET", "openapi.yaml", nobody, c.page.contract},
		{"GET", "pictures/{detector}/{event}/{name}", nobody, c.gallery.linkedPicture}, // the link's signature may

		{"GET", "live", Viewer, c.live.serve},
		{"GET", "status", Viewer, c.wall.status},
		{"GET", "cameras", Viewer, c.wall.listCameras},
		{"GET", "cameras/{detector}/{camera}/frame", Viewer, c.gallery.frame},
		{"GET", "cameras/{detector}/{camera}/scores", Viewer, c.wall.cameraScores},
		{"GET", "events", Viewer, c.alarms.listEvents},
		{"GET", "events/{sequence}", Viewer, c.alarms.getEvent},
		{"POST", "events/{sequence}/score", Operator, c.alarms.scoreAgain},
		{"GET", "events/{sequence}/image", Viewer, c.gallery.eventImage},
		{"GET", "events/{sequence}/pictures/{name}", Viewer, c.gallery.eventPicture},
		{"GET", "incidents", Viewer, c.alarms.listIncidents},
		{"GET", "incidents/{sequence}", Viewer, c.alarms.getIncident},
		{"POST", "verdicts", Operator, c.alarms.judge},
		{"DELETE", "verdicts/{token}", Operator, c.alarms.unjudge},

		{"GET", "detectors", Viewer, c.tuning.listDetectors},
		{"POST", "detectors", Operator, c.tuning.createDetector},
		{"GET", "detectors/{detector}", Viewer, c.tuning.getDetector},
		{"PATCH", "detectors/{detector}", Operator, c.tuning.changeDetector},
		{"DELETE", "detectors/{detector}", Admin, c.tuning.deleteDetector},
		{"GET", "detectors/{detector}/calibration", Viewer, c.tuning.calibration},
		{"GET", "detectors/{detector}/outliers", Viewer, c.tuning.outliers},
		{"GET", "choices", Viewer, c.tuning.choices},
		{"GET", "detectors/{detector}/normals", Viewer, c.tuning.listNormals},
		{"POST", "detectors/{detector}/normals", Operator, c.tuning.addNormals},
		{"POST", "detectors/{detector}/normals/take", Operator, c.tuning.takeFrames},
		{"GET", "detectors/{detector}/normals.zip", Operator, c.tuning.exportNormals},
		{"GET", "detectors/{detector}/normals/{sequence}", Viewer, c.gallery.getNormal},
		{"DELETE", "detectors/{detector}/normals/{sequence}", Operator, c.tuning.removeNormal},
		{"POST", "detectors/{detector}/score", Operator, c.tuning.scoreImage},
		{"POST", "detectors/{detector}/train", Operator, c.tuning.train},
		{"GET", "detectors/{detector}/releases", Viewer, c.tuning.listReleases},
		{"POST", "detectors/{detector}/promote", Operator, c.tuning.promote},
		{"POST", "detectors/{detector}/rollback", Operator, c.tuning.rollback},
		{"POST", "detectors/{detector}/shadow", Operator, c.tuning.shadow},
		{"POST", "detectors/{detector}/pin", Operator, c.tuning.pin},

		{"GET", "jobs", Viewer, c.jobs.list},
		{"GET", "jobs/{job}/history", Viewer, c.jobs.history},
		{"GET", "jobs/{job}/sheet.jpg", Viewer, c.jobs.sheet},
		{"DELETE", "jobs/{job}", Operator, c.jobs.cancel},
		{"GET", "dead", Viewer, c.dead.list},
		{"POST", "dead/{sequence}/again", Operator, c.dead.again},
		{"DELETE", "dead/{sequence}", Admin, c.dead.remove},

		{"GET", "sinks", Viewer, c.sinks.list},
		{"POST", "sinks", Admin, c.sinks.add},
		{"GET", "sinks/{sink}", Admin, c.sinks.get},
		{"PATCH", "sinks/{sink}", Admin, c.sinks.change},
		{"DELETE", "sinks/{sink}", Admin, c.sinks.remove},
		{"POST", "sinks/{sink}/test", Admin, c.sinks.test},
		{"POST", "sinks/{sink}/replay", Admin, c.sinks.replay},
		{"GET", "audit", Admin, c.door.listAudit},

		{"GET", "users", Admin, c.door.listUsers},
		{"POST", "users", Admin, c.door.addUser},
		{"PATCH", "users/{user}", Admin, c.door.changeUser},
		{"DELETE", "users/{user}", Admin, c.door.removeUser},
		{"POST", "tokens", Admin, c.door.addToken},
		{"DELETE", "tokens/{token}", Admin, c.door.removeToken},
	}
}

// without are the routes that work while the broker is away.
var without = []string{"session", "openapi.yaml"}

// request is what a handler gets. Names of detectors and cameras in its path are
// valid.
type request struct {
	*http.Request
	ctx context.Context // ends when the answer is late; that of Request does not
	who who
}

// slowAfter is when an answer is late.
const slowAfter = 20 * time.Second

// respond is an answer that is not JSON.
type respond func(http.ResponseWriter, *http.Request) error

// created is an answer with status 201 or 202.
type created struct {
	status int
	body   any
}

// problem is an error as RFC 9457 has it.
type problem struct {
	status int
	code   string
	detail string
}

func (p problem) Error() string { return p.detail }

func bad(format string, a ...any) error {
	return problem{http.StatusBadRequest, stream.CodeBadRequest, fmt.Sprintf(format, a...)}
}

func missing(format string, a ...any) error {
	return problem{http.StatusNotFound, stream.CodeNotFound, fmt.Sprintf(format, a...)}
}

// codeStale: the entry is not the one that the change was made for.
const codeStale = "stale"

// problemOf finds out what an error means to who asked.
func problemOf(err error) problem {
	if p, ok := errors.AsType[problem](err); ok {
		return p
	}
	if s, ok := errors.AsType[*stream.ServiceError](err); ok {
		return problem{statusOf(s.Code), s.Code, s.Message}
	}
	if code := service.CodeOf(err); code != stream.CodeInternal {
		return problem{statusOf(code), code, err.Error()}
	}
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		return problem{http.StatusNotFound, stream.CodeNotFound, err.Error()}
	case errors.Is(err, nats.ErrMaxPayload):
		return problem{http.StatusRequestEntityTooLarge, stream.CodeTooLarge, "the image is larger than what the broker takes in one message"}
	case errors.Is(err, stream.ErrNobody):
		return problem{http.StatusServiceUnavailable, "broker_away", err.Error()}
	case errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, nats.ErrNoServers), errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout), errors.Is(err, nats.ErrNoResponders), errors.Is(err, nats.ErrDisconnected):
		return problem{http.StatusServiceUnavailable, "broker_away", "the broker does not answer: " + err.Error()}
	}
	return problem{http.StatusInternalServerError, stream.CodeInternal, err.Error()}
}

func statusOf(code string) int {
	switch code {
	case stream.CodeBadRequest:
		return http.StatusBadRequest
	case stream.CodeNotFound, stream.CodeObjectMissing:
		return http.StatusNotFound
	case stream.CodeConflict:
		return http.StatusConflict
	}
	return http.StatusUnprocessableEntity
}

func (p problem) write(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.status)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"type": "about:blank", "title": http.StatusText(p.status), "status": p.status, "detail": p.detail, "code": p.code,
	})
}

// handler is the whole page.
func (c *Console) handler() http.Handler {
	mux := http.NewServeMux()
	for _, r := range c.routes() {
		mux.Handle(r.method+" /api/v1/"+r.path, c.serve(r))
	}
	mux.HandleFunc("/api/", func(w http.ResponseWriter, r *http.Request) {
		problem{http.StatusNotFound, stream.CodeNotFound, "there is no " + r.Method + " " + r.URL.Path}.write(w)
	})
	mux.HandleFunc("GET /assets/{version}/{file...}", c.page.asset)
	mux.HandleFunc("GET /{$}", c.page.index)
	return c.door.guard(mux)
}

// serve answers one route: who asks, may he, and what becomes of it.
func (c *Console) serve(r route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, h *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		ctx, cancel := context.WithTimeout(h.Context(), slowAfter)
		defer cancel()
		q := &request{Request: h, ctx: ctx}
		err := func() error {
			if !c.backend.isReady() && !slices.Contains(without, r.path) {
				return problem{http.StatusServiceUnavailable, "broker_away", "the console waits for the broker"}
			}
			if c.backend.isReady() {
				var err error
				if q.who, err = c.door.identify(h); err != nil {
					return err
				}
			}
			switch {
			case q.who.Role >= r.needs:
			case q.who.Role == nobody:
				return problem{http.StatusUnauthorized, "unauthorised", "sign in first"}
			default:
				return problem{http.StatusForbidden, "forbidden", fmt.Sprintf("this needs the role %s; %s has the role %s", r.needs, q.who.Name, q.who.Role)}
			}
			for _, part := range []string{"detector", "camera"} {
				if name := h.PathValue(part); name != "" && !stream.ValidToken(name) {
					return missing("%q is no name of a %s", clean(name), part)
				}
			}
			a, err := r.do(q)
			if err != nil {
				return err
			}
			switch a := a.(type) {
			case respond:
				return a(w, h)
			case created:
				return writeJSON(w, a.status, a.body)
			case nil:
				w.WriteHeader(http.StatusNoContent)
				return nil
			default:
				return writeJSON(w, http.StatusOK, a)
			}
		}()
		if err == nil || h.Context().Err() != nil {
			return
		}
		p := problemOf(err)
		if p.status == http.StatusInternalServerError {
			c.backend.log.Warn().Err(err).Str("path", h.URL.Path).Msg("a request failed")
		}
		p.write(w)
	})
}

func writeJSON(w http.ResponseWriter, status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(b) // who asked may have gone
	return nil
}

// read decodes the request's JSON into v. Unknown fields are refused.
func (q *request) read(v any) error {
	b, err := q.body()
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return bad("the request's JSON: %v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return bad("there is something behind the request's JSON")
	}
	return nil
}

func (q *request) body() ([]byte, error) {
	t, _, err := mime.ParseMediaType(q.Header.Get("Content-Type"))
	if err != nil || t != "application/json" && t != "application/merge-patch+json" {
		return nil, problem{http.StatusUnsupportedMediaType, stream.CodeBadRequest, "send application/json"}
	}
	return readAll(q.Body, maxBody, "the request")
}

// readAll reads what is at most most bytes long.
func readAll(r io.Reader, most int, what string) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, int64(most)+1))
	if err != nil {
		return nil, bad("read %s: %v", what, err)
	}
	if len(b) > most {
		return nil, problem{http.StatusRequestEntityTooLarge, stream.CodeTooLarge, fmt.Sprintf("%s is larger than %d MiB", what, most>>20)}
	}
	return b, nil
}

// params are a request's parameters. err is the first that cannot be read.
type params struct {
	url.Values
	err error
}

// params refuses parameters that the route does not have.
func (q *request) params(names ...string) *params {
	v, err := url.ParseQuery(q.URL.RawQuery)
	if err != nil {
		return &params{err: bad("the parameters cannot be read: %v", err)}
	}
	for k := range v {
		if !slices.Contains(names, k) {
			return &params{err: bad("there is no parameter %q", k)}
		}
	}
	return &params{Values: v}
}

func (p *params) fail(format string, a ...any) { p.err = cmp.Or(p.err, bad(format, a...)) }

func (p *params) yes(name string) bool { return p.Get(name) == "true" }

func (p *params) number(name string, least, most, def int) int {
	s := p.Get(name)
	if s == "" {
		return def
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < least || n > most {
		p.fail("%s %q: use %d to %d", name, s, least, most)
	}
	return n
}

// paging is how many rows a page of a list is to have, and which sequence they come
// before; 0: the list's first page.
func (p *params) paging(def int) (limit int, before uint64) {
	limit = p.number("limit", 1, 500, def)
	if s := p.Get("cursor"); s != "" {
		var err error
		if before, err = strconv.ParseUint(s, 10, 64); err != nil || before == 0 {
			p.fail("cursor %q: use the one that the page before gave", s)
		}
	}
	return limit, before
}

// listing answers a list.
type listing[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next,omitempty"` // cursor of the next page; empty: there is none
}

func nextCursor(n uint64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatUint(n, 10)
}

func (q *request) sequence() (uint64, error) {
	n, err := strconv.ParseUint(q.PathValue("sequence"), 10, 64)
	if err != nil || n == 0 {
		return 0, missing("%q is no number of an event or image", q.PathValue("sequence"))
	}
	return n, nil
}

// ifMatch is the revision that a change is made for; 0: any.
func (q *request) ifMatch() (uint64, error) {
	s := strings.Trim(q.Header.Get("If-Match"), `"`)
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, bad("If-Match %q: use the revision that was read", s)
	}
	return n, nil
}
