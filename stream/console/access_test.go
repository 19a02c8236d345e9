package console

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/access"
	"github.com/nearmiss/nearmiss/stream/broker"
	"github.com/nearmiss/nearmiss/stream/control"
)

// TestTheContractIsWhatIsServed walks openapi.yaml and the routes both ways.
func TestTheContractIsWhatIsServed(t *testing.T) {
	doc, err := openapi3.NewLoader().LoadFromData(openapi)
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	served := map[string]string{}
	for _, r := range new(Console).routes() {
		served[r.method+" /"+r.path] = r.needs.String()
	}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			name := method + " " + path
			role, ok := served[name]
			if !ok {
				t.Errorf("openapi.yaml has %s, which is not served", name)
			} else if got := fmt.Sprint(op.Extensions["x-role"]); got != role {
				t.Errorf("%s: openapi.yaml says that it needs %s, and it needs %s", name, got, role)
			}
			delete(served, name)
		}
	}
	for name := range served {
		t.Errorf("openapi.yaml does not have %s", name)
	}
}

// member makes a token of a role.
func (h *hall) member(role Role) asker {
	h.t.Helper()
	value := tokenPrefix + secret()
	if err := h.c.door.people.put(h.t.Context(), tokenKeys+digest(value), user{Name: role.String() + "-script", Role: role}, true); err != nil {
		h.t.Fatal(err)
	}
	return asker{h: h, token: value}
}

// person makes a user.
func (h *hall) person(name string, role Role) {
	h.t.Helper()
	hash, err := h.c.door.people.hash(password)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := h.c.door.people.put(h.t.Context(), userKeys+name, user{Name: name, Role: role, Hash: hash}, true); err != nil {
		h.t.Fatal(err)
	}
}

const password = "correct horse battery"

// stored counts what every stream has, but for who is signed in.
func (h *hall) stored() string {
	var b strings.Builder
	for info := range h.js.ListStreams(h.t.Context()).Info() {
		if info.Config.Name != "KV_"+h.names.SessionsBucket() {
			fmt.Fprintln(&b, info.Config.Name, info.State.LastSeq, info.State.Msgs)
		}
	}
	return b.String()
}

// TestEachRoleMayWhatTheTableSays asks for every route as every role, and prints
// what each may. What a viewer asks for changes nothing.
func TestEachRoleMayWhatTheTableSays(t *testing.T) {
	h := newHall(t, config())
	h.person("root", Admin)
	h.detector("parts")
	h.alarm("a")
	who := []asker{{h: h}, h.member(Viewer), h.member(Operator), h.member(Admin)}
	fill := strings.NewReplacer("{detector}", "parts", "{camera}", "no.camera", "{sequence}", "1", "{name}", "x.jpg", "{token}", "none", "{job}", "none", "{user}", "nobody", "{sink}", "none")
	t.Logf("%-52s %-6s %-8s %-10s %s", "route", "needs", "viewer", "operator", "admin")
	for role := Viewer; role <= Admin; role++ {
		before := h.stored()
		for _, r := range new(Console).routes() {
			if r.needs > role || r.path == "live" { // which is tested by itself
				continue
			}
			if status, body := who[role].do(r.method, fill.Replace(r.path), nil); r.needs > nobody && (status == http.StatusUnauthorized || status == http.StatusForbidden) {
				t.Errorf("%s is refused %s %s: %d %s", role, r.method, r.path, status, body)
			}
		}
		if after := h.stored(); role == Viewer && after != before {
			t.Errorf("a viewer has changed what is stored:\n%s\n%s", before, after)
		}
	}
	before := h.stored()
	for _, r := range new(Console).routes() {
		var row []string
		for role := nobody; role <= Admin; role++ {
			if role >= r.needs {
				row = append(row, "yes")
				continue
			}
			row = append(row, "–")
			want := http.StatusForbidden
			if role == nobody {
				want = http.StatusUnauthorized
			}
			if status, _ := who[role].do(r.method, fill.Replace(r.path), map[string]any{}); status != want {
				t.Errorf("%s %s as %s: %d", r.method, r.path, role, status)
			}
		}
		t.Logf("%-52s %-9s %s", r.method+" "+r.path, r.needs, strings.Join(row[1:], " "))
	}
	if after := h.stored(); after != before {
		t.Errorf("who may not has changed what is stored:\n%s\n%s", before, after)
	}
}

// TestTheRoleOfTheConsoleIsEnough: on a broker with users, the console has the
// rights of its role only, and the broker refuses it nothing that people do on it.
func TestTheRoleOfTheConsoleIsEnough(t *testing.T) {
	file, users := access.File{}, filepath.Join(t.TempDir(), "users.yaml")
	options := map[access.Role][]nats.Option{}
	for _, role := range []access.Role{access.Console, access.Control, access.Worker, access.Setup} {
		key, seed, err := access.NewNKey()
		if err != nil {
			t.Fatal(err)
		}
		if err := file.Add(access.User{Name: string(role), Role: role, Key: key}); err != nil {
			t.Fatal(err)
		}
		options[role] = []nats.Option{nats.CustomInboxPrefix(access.Inbox(key.Public)), nats.Nkey(key.Public, func(nonce []byte) ([]byte, error) {
			pair, err := nkeys.FromSeed(seed)
			if err != nil {
				return nil, err
			}
			return pair.Sign(nonce)
		})}
	}
	if err := file.Save(users); err != nil {
		t.Fatal(err)
	}
	b, _ := brokertest.Start(t, broker.Config{Port: -1, Users: users})
	var mu sync.Mutex
	var refused []error
	as := func(role access.Role) (*nats.Conn, jetstream.JetStream) {
		nc := brokertest.Connect(t, b, append(options[role], nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			mu.Lock()
			defer mu.Unlock()
			if errors.Is(err, nats.ErrPermissionViolation) {
				refused = append(refused, fmt.Errorf("%s: %w", role, err))
			}
		}))...)
		js := brokertest.StreamsOn(t, nc)
		return nc, js
	}
	_, js := as(access.Setup)
	if err := stream.Ensure(t.Context(), js, stream.Topology{}); err != nil {
		t.Fatal(err)
	}
	nc, _ := as(access.Control)
	asked, err := control.New(nc, stream.Names{}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	stop, err := asked.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	h := &hall{t: t}
	_, h.js = as(access.Worker) // who stores alarms
	h.nc, js = as(access.Console)
	token := make(chan string, 1)
	cfg := config()
	cfg.Setup = func(path string) { token <- strings.TrimPrefix(path, "#/setup?") }
	h.start(cfg)

	// The first user comes by the link, then with a password, and goes.
	ok[any](asker{h: h}, "POST", "setup", map[string]any{"token": <-token, "user": "ann", "password": password})
	ann, status := h.signIn("ann", password)
	if status != http.StatusOK {
		t.Fatalf("ann cannot sign in: %d", status)
	}
	other, _ := h.signIn("ann", password)
	ok[any](other, "DELETE", "session", nil)
	if status, _ := other.do("GET", "status", nil); status != http.StatusUnauthorized {
		t.Errorf("a session that has ended gets %d", status)
	}
	ok[any](ann, "POST", "users", map[string]any{"name": "bob", "password": password, "role": "viewer"})
	ok[any](ann, "PATCH", "users/bob", map[string]any{"role": "operator"})
	ok[any](ann, "POST", "tokens", map[string]any{"name": "script", "role": "viewer", "days": 1})
	ok[any](ann, "DELETE", "users/bob", nil)

	ok[any](ann, "POST", "detectors", map[string]any{"name": "parts"})
	ok[any](ann, "PATCH", "detectors/parts", map[string]any{"k": 3})
	if d := ok[detector](ann, "GET", "detectors/parts", nil); d.K != 3 {
		t.Errorf("the change is not there: %+v", d)
	}
	ok[any](ann, "POST", "sinks", map[string]any{"name": "desk", "kind": "webhook", "enabled": true})
	ok[any](ann, "PATCH", "sinks/desk", map[string]any{"enabled": false})
	ok[any](ann, "DELETE", "sinks/desk", nil)
	ann.do("GET", "detectors/parts/normals.zip", nil)
	for objects, want := range map[string]string{
		"sink": "delete sink/desk, set sink/desk, create sink/desk", "user": "delete user/bob, set user/bob, create user/bob, create user/ann", "token": "create token/script",
	} {
		if got := ann.audited(objects); got != want {
			t.Errorf("the audit says %s, want %s", got, want)
		}
	}
	sequence := h.alarm("a")
	for _, path := range []string{
		"session", "status", "users", "detectors", "detectors/parts/releases", "detectors/parts/normals", "jobs", "dead", "audit",
		"events", fmt.Sprint("events/", sequence),
	} {
		ok[any](ann, "GET", path, nil)
	}
	ok[any](ann, "POST", "verdicts", map[string]any{"events": []uint64{sequence}, "verdict": "anomalous", "hold": 0})
	eventually.True(t, "the verdict in the stream", func() bool {
		s, err := js.Stream(t.Context(), h.names.FeedbackStream())
		return err == nil && s.CachedInfo().State.Msgs == 1
	})
	h.stop()
	h.start(config()) // another one has read all of it
	eventually.True(t, "the verdict, read from the stream", func() bool { return h.c.alarms.index.of("a").State == stateConfirmed })
	if s := ok[hello](asker{h: h, jar: ann.jar}, "GET", "session", nil); s.User != "ann" {
		t.Errorf("the session is not kept: %+v", s)
	}
	h.stop()
	if err := h.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	for _, err := range refused {
		t.Errorf("a right is missing: %v", err)
	}
}

func TestOtherSitesAreRefused(t *testing.T) {
	cfg := config()
	cfg.Hosts = []string{"console.example.org"}
	h := newHall(t, cfg)
	own := strings.TrimSuffix(strings.TrimPrefix(h.url, "http://"), "/")
	for _, c := range []struct {
		method, host string
		header       map[string]string
		want         int
	}{
		{"GET", own, nil, 200},
		{"GET", "localhost:4280", nil, 200},
		{"GET", "[::1]:4280", nil, 200},
		{"GET", "console.example.org", nil, 200},
		{"GET", "evil.example.com", nil, 421},
		{"GET", "evil.example.com:4280", nil, 421},
		{"GET", "127.0.0.1.evil.example.com", nil, 421},
		{"GET", "192.0.2.1", nil, 421},
		{"GET", "evil.example.com", map[string]string{"X-Forwarded-Host": own}, 421}, // from no trusted proxy
		{"DELETE", own, nil, 204},
		{"DELETE", own, map[string]string{"Origin": "http://" + own}, 204},
		{"DELETE", own, map[string]string{"Origin": "http://evil.example.com"}, 403},
		{"DELETE", own, map[string]string{"Origin": "null"}, 403},
		{"DELETE", own, map[string]string{"Sec-Fetch-Site": "cross-site"}, 403},
		{"DELETE", own, map[string]string{"Sec-Fetch-Site": "same-site"}, 403},
		{"DELETE", own, map[string]string{"Sec-Fetch-Site": "same-origin"}, 204},
	} {
		r, err := http.NewRequestWithContext(t.Context(), c.method, h.url+"api/v1/session", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = c.host
		for k, v := range c.header {
			r.Header.Set(k, v)
		}
		a, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		a.Body.Close()
		if a.StatusCode != c.want {
			t.Errorf("%s %s %v: %d, want %d", c.method, c.host, c.header, a.StatusCode, c.want)
		}
	}
	if status, _ := (asker{h: h, header: http.Header{"Content-Type": {"text/plain"}}}).do("POST", "verdicts", []byte(`{}`)); status != http.StatusUnsupportedMediaType {
		t.Errorf("a form's content type is answered with %d", status)
	}
}

// signIn returns a client with a session.
func (h *hall) signIn(name, pass string) (asker, int) {
	h.t.Helper()
	b, err := json.Marshal(map[string]string{"user": name, "password": pass})
	if err != nil {
		h.t.Fatal(err)
	}
	a, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Post(h.url+"api/v1/session", "application/json", strings.NewReader(string(b)))
	if err != nil {
		h.t.Fatal(err)
	}
	defer a.Body.Close()
	return asker{h: h, jar: a.Cookies()}, a.StatusCode
}

func TestUsersAndSessions(t *testing.T) {
	h := newHall(t, config())
	local := asker{h: h}
	if s := ok[hello](local, "GET", "session", nil); s.Role != "admin" || !s.Open {
		t.Fatalf("without users this machine has %+v", s)
	}
	if status, _ := local.do("POST", "users", map[string]any{"name": "ann", "password": password, "role": "viewer"}); status != http.StatusUnprocessableEntity {
		t.Errorf("a viewer as the first user: %d", status)
	}
	if status, _ := local.do("POST", "users", map[string]any{"name": "ann", "password": "short", "role": "admin"}); status != http.StatusBadRequest {
		t.Errorf("a short password: %d", status)
	}
	ok[any](local, "POST", "users", map[string]any{"name": "ann", "password": password, "role": "admin"})
	if status, _ := local.do("GET", "status", nil); status != http.StatusUnauthorized {
		t.Errorf("with a user, nobody gets %d", status)
	}
	if _, status := h.signIn("ann", "wrong horse battery"); status != http.StatusUnauthorized {
		t.Errorf("a wrong password: %d", status)
	}
	if _, status := h.signIn("bob", password); status != http.StatusUnauthorized {
		t.Errorf("nobody's name: %d", status)
	}
	ann, status := h.signIn("ann", password)
	if status != http.StatusOK || len(ann.jar) != 1 || !ann.jar[0].HttpOnly || ann.jar[0].SameSite != http.SameSiteLaxMode {
		t.Fatalf("%d %v", status, ann.jar)
	}
	if s := ok[hello](ann, "GET", "session", nil); s.User != "ann" || s.Role != "admin" || s.Open {
		t.Errorf("%+v", s)
	}
	if users, err := h.c.door.people.sessions.Bucket.Keys(t.Context()); err != nil || strings.Contains(strings.Join(users, " "), ann.jar[0].Value) {
		t.Errorf("the bucket has the cookie itself: %v", err)
	}
	ok[any](ann, "POST", "users", map[string]any{"name": "bob", "password": password, "role": "operator"})
	bob, _ := h.signIn("bob", password)
	ok[any](bob, "GET", "status", nil)
	if status, _ := ann.do("PATCH", "users/ann", map[string]any{"role": "viewer"}); status != http.StatusConflict {
		t.Errorf("the last admin gives up his role: %d", status)
	}
	if status, _ := ann.do("DELETE", "users/ann", nil); status != http.StatusConflict {
		t.Errorf("the last admin is removed: %d", status)
	}

	// Another console, or the same after a restart, knows the session.
	h.stop()
	h.start(config())
	ann.h, bob.h = h, h
	ok[any](bob, "GET", "status", nil)

	ok[any](ann, "PATCH", "users/bob", map[string]any{"password": "another good password"})
	if status, _ := bob.do("GET", "status", nil); status != http.StatusUnauthorized {
		t.Errorf("a session with the old password: %d", status)
	}
	bob, _ = h.signIn("bob", "another good password")
	ok[any](ann, "PATCH", "users/bob", map[string]any{"disabled": true})
	if status, _ := bob.do("GET", "status", nil); status != http.StatusUnauthorized {
		t.Errorf("a disabled user's session: %d", status)
	}
	made := ok[struct{ Secret, Token string }](ann, "POST", "tokens", map[string]any{"name": "script", "role": "viewer", "days": 1})
	script := asker{h: h, token: made.Secret}
	ok[any](script, "GET", "status", nil)
	if status, body := ann.do("GET", "users", nil); status != 200 || strings.Contains(string(body), made.Secret) || strings.Contains(string(body), "hash") {
		t.Errorf("the list of users tells secrets: %d %s", status, body)
	}
	ok[any](ann, "DELETE", "tokens/"+made.Token, nil)
	if status, _ := script.do("GET", "status", nil); status != http.StatusUnauthorized {
		t.Errorf("a removed token: %d", status)
	}
	ok[any](ann, "DELETE", "session", nil)
	if status, _ := ann.do("GET", "status", nil); status != http.StatusUnauthorized {
		t.Errorf("signed out: %d", status)
	}
	limited := false
	for range 20 {
		_, status := h.signIn("ann", "wrong horse battery")
		limited = limited || status == http.StatusTooManyRequests
	}
	if !limited {
		t.Error("passwords can be tried for ever")
	}
}

func TestAProxySaysWhoAsksOnlyWithItsSecret(t *testing.T) {
	cfg := config()
	cfg.ProxySecret = "a secret of the proxy's"
	conf := cfg
	conf.Proxies = nil
	h := newHall(t, conf)
	h.person("root", Admin)
	as := func(secret string) asker {
		return asker{h: h, header: http.Header{"X-Forwarded-User": {"carol"}, "X-Forwarded-Role": {"admin"}, "X-Proxy-Secret": {secret}}}
	}
	if status, _ := as(cfg.ProxySecret).do("GET", "status", nil); status != http.StatusUnauthorized {
		t.Errorf("an address that is no proxy's: %d", status)
	}
	h.stop()
	cfg.Proxies = loopback
	h.start(cfg)
	if status, _ := as("another secret, not its").do("GET", "status", nil); status != http.StatusUnauthorized {
		t.Errorf("a wrong secret: %d", status)
	}
	if s := ok[hello](as(cfg.ProxySecret), "GET", "session", nil); s.User != "carol" || s.Role != "admin" {
		t.Errorf("%+v", s)
	}
}

func TestOtherMachinesNeedUsers(t *testing.T) {
	h := newHall(t, config())
	cfg := config()
	cfg.Listen = "0.0.0.0:0"
	c, err := New(cfg, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Listen(); err != nil {
		t.Fatal(err)
	}
	if err := c.Run(t.Context(), h.nc); !errors.Is(err, ErrNoUsers) {
		t.Fatalf("it runs without users: %v", err)
	}

	// With --setup a link makes the first administrator, once.
	var link string
	cfg.Setup = func(path string) { link = path }
	c, err = New(cfg, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	url, err := c.Listen()
	if err != nil {
		t.Fatal(err)
	}
	brokertest.Run(t, "console", func(ctx context.Context) error { return c.Run(ctx, h.nc) })
	eventually.True(t, "the console", c.backend.isReady)
	h.c, h.url = c, strings.Replace(url, "[::]", "127.0.0.1", 1)
	_, token, found := strings.Cut(link, "?")
	if !found {
		t.Fatalf("the link is %q", link)
	}
	me := asker{h: h}
	if status, _ := me.do("GET", "status", nil); status != http.StatusUnauthorized {
		t.Errorf("nobody: %d", status)
	}
	if status, _ := me.do("POST", "setup", map[string]any{"token": "wrong", "user": "eve", "password": password}); status != http.StatusForbidden {
		t.Errorf("a wrong link: %d", status)
	}
	ok[any](me, "POST", "setup", map[string]any{"token": token, "user": "ann", "password": password})
	if status, _ := me.do("POST", "setup", map[string]any{"token": token, "user": "eve", "password": password}); status != http.StatusForbidden {
		t.Errorf("the link works twice: %d", status)
	}
	if ann, status := h.signIn("ann", password); status != 200 {
		t.Errorf("the administrator cannot sign in: %d", status)
	} else {
		ok[any](ann, "GET", "users", nil)
	}
}

// Whatever anybody writes into the bucket of users, the page does not open to all.
func TestACorruptUserOpensNothing(t *testing.T) {
	h := newHall(t, config())
	if _, err := h.c.door.people.users.Bucket.PutString(t.Context(), userKeys+"x", "{"); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "the users to be read", func() bool { return !h.c.door.people.empty() })
	if status, _ := (asker{h: h}).do("GET", "status", nil); status != http.StatusUnauthorized {
		t.Errorf("nobody gets %d", status)
	}
}

func TestDeadLettersGoWhereTheyCameFrom(t *testing.T) {
	h := newHall(t, config())
	me := asker{h: h}
	bury := func(subject string) uint64 {
		m := natsMsg(h.names.Dead(h.names.FramesStream()), pixels())
		m.Header.Set(stream.HeaderDeadSubject, subject)
		m.Header.Set(stream.HeaderDeadCode, "corrupt")
		ack, err := h.js.PublishMsg(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		return ack.Sequence
	}
	good, evil := bury(h.names.Frames("parts", "line1")), bury("$JS.API.STREAM.DELETE.NM_EVENTS")
	if l := ok[listing[map[string]any]](me, "GET", "dead", nil); len(l.Items) != 2 || l.Items[1]["code"] != "corrupt" || l.Items[1]["picture"] != true {
		t.Errorf("%v", l.Items)
	}
	if status, _ := me.do("POST", fmt.Sprintf("dead/%d/again", evil), map[string]any{}); status != http.StatusUnprocessableEntity {
		t.Errorf("anything is published: %d", status)
	}
	ok[any](me, "POST", fmt.Sprintf("dead/%d/again", good), map[string]any{})
	s, err := h.js.Stream(t.Context(), h.names.FramesStream())
	if err != nil {
		t.Fatal(err)
	}
	if n := s.CachedInfo().State.Msgs; n != 1 {
		t.Errorf("%d frames wait", n)
	}
	ok[any](me, "DELETE", fmt.Sprintf("dead/%d", evil), nil)
	if l := ok[listing[map[string]any]](me, "GET", "dead", nil); len(l.Items) != 0 {
		t.Errorf("%v", l.Items)
	}
	if got, want := me.audited("dead"), fmt.Sprintf("delete dead/%d, again dead/%d", evil, good); got != want {
		t.Errorf("the audit says %s, want %s", got, want)
	}
}

// audited are the changes of objects of a kind that the audit knows, newest first.
func (c asker) audited(objects string) string {
	c.h.t.Helper()
	var all []string
	for _, e := range ok[listing[stream.AuditEntry]](c, "GET", "audit?object="+objects, nil).Items {
		all = append(all, e.Action+" "+e.Object)
	}
	return strings.Join(all, ", ")
}
