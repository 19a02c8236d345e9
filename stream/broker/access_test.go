package broker_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/access"
	"github.com/nearmiss/nearmiss/stream/broker"
)

var update = flag.Bool("update", false, "write the golden files anew")

// hall is a broker with users, and how each of them connects.
type hall struct {
	t     testing.TB
	url   string
	users string            // the file
	seeds map[string][]byte // by user
	keys  map[string]access.Key
}

// roles are the columns of the matrix.
var roles = []string{"line1", "big", "lamp", "view", "worker", "trainer", "sinks", "control", "op", "console", "setup"}

// newHall makes the users, not the broker.
func newHall(t testing.TB) *hall {
	t.Helper()
	h := &hall{t: t, users: filepath.Join(t.TempDir(), "users.yaml"), seeds: map[string][]byte{}, keys: map[string]access.Key{}}
	for _, u := range []access.User{
		{Name: "line1", Role: access.Camera, Detector: "parts"},
		{Name: "line2", Role: access.Camera, Detector: "parts"},
		{Name: "big", Role: access.Camera, Detector: "parts", Large: true},
		{Name: "lamp", Role: access.Subscriber, Detector: "parts"},
		{Name: "view", Role: access.Subscriber, Detector: "parts", Live: true},
		{Name: "worker", Role: access.Worker},
		{Name: "trainer", Role: access.Trainer},
		{Name: "sinks", Role: access.Sinks},
		{Name: "control", Role: access.Control},
		{Name: "op", Role: access.Operator},
		{Name: "console", Role: access.Console},
		{Name: "setup", Role: access.Setup},
	} {
		h.add(u)
	}
	return h
}

func (h *hall) add(u access.User) {
	h.t.Helper()
	var err error
	if u.Key, h.seeds[u.Name], err = access.NewNKey(); err != nil {
		h.t.Fatal(err)
	}
	h.keys[u.Name] = u.Key
	h.change(func(f *access.File) error { return f.Add(u) })
}

func (h *hall) change(f func(*access.File) error) {
	h.t.Helper()
	file, err := access.Load(h.users)
	if err == nil {
		err = errors.Join(f(&file), file.Save(h.users))
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *hall) embedded() *broker.Broker { return h.start(broker.Config{}) }

// start runs the embedded broker.
func (h *hall) start(cfg broker.Config) *broker.Broker {
	h.t.Helper()
	cfg.Port, cfg.Users = -1, h.users
	b, _ := brokertest.Start(h.t, cfg)
	h.url = b.ClientURL()
	h.setup()
	return b
}

// external runs a real nats-server with what `users render` writes.
func (h *hall) external() {
	h.t.Helper()
	dir := h.t.TempDir()
	bin := filepath.Join(dir, "nats-server")
	if out, err := exec.Command("go", "build", "-o", bin, "github.com/nats-io/nats-server/v2").CombinedOutput(); err != nil {
		h.t.Fatalf("build nats-server: %v\n%s", err, out)
	}
	file, err := access.Load(h.users)
	if err != nil {
		h.t.Fatal(err)
	}
	auth, err := access.Render(stream.Names{}, file, "", time.Now())
	if err != nil {
		h.t.Fatal(err)
	}
	for range 20 { // ports, since it does not say at once which one it has found itself
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			h.t.Fatal(err)
		}
		addr := l.Addr().String()
		l.Close()
		for name, text := range map[string][]byte{
			"auth.conf": auth,
			"nats.conf": fmt.Appendf(nil, "server_name: real\nlisten: %q\njetstream { store_dir: %q, max_file_store: %d }\ninclude auth.conf\n", addr, filepath.Join(dir, "js"), int64(brokertest.Room)),
		} {
			if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
				h.t.Fatal(err)
			}
		}
		h.url = "nats://" + addr
		if h.run(exec.Command(bin, "-c", filepath.Join(dir, "nats.conf"))) {
			h.setup()
			return
		}
	}
	h.t.Fatal("nats-server does not start")
}

// run runs a server until the test ends, and says whether it lets clients in.
func (h *hall) run(cmd *exec.Cmd) bool {
	h.t.Helper()
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	h.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		if h.t.Failed() {
			h.t.Log(log.String())
		}
	})
	for {
		if nc, err := nats.Connect(h.url, append(h.options("setup"), nats.Timeout(2*time.Second))...); err == nil {
			nc.Close()
			return true
		}
		select {
		case <-ended: // somebody else has the port
			return false
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// setup makes the streams as user setup, with no right but its own.
func (h *hall) setup() {
	h.t.Helper()
	js := brokertest.StreamsOn(h.t, h.connect("setup"))
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	err := stream.Ensure(ctx, js, stream.Topology{})
	for errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, nats.ErrNoResponders) {
		err = stream.Ensure(ctx, js, stream.Topology{})
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *hall) connect(user string, extra ...nats.Option) *nats.Conn {
	h.t.Helper()
	nc, err := nats.Connect(h.url, append(h.options(user), extra...)...)
	if err != nil {
		h.t.Fatalf("%s: %v", user, err)
	}
	h.t.Cleanup(nc.Close)
	return nc
}

func (h *hall) options(user string) []nats.Option {
	seed := h.seeds[user]
	return []nats.Option{
		nats.Nkey(h.keys[user].Public, func(nonce []byte) ([]byte, error) {
			pair, err := nkeys.FromSeed(seed)
			if err != nil {
				return nil, err
			}
			return pair.Sign(nonce)
		}),
		nats.CustomInboxPrefix(access.Inbox(h.keys[user].Public)),
		nats.Timeout(time.Minute), // not two seconds, in which a loaded machine may not let anybody in
	}
}

// may says whether the user's server lets it do what is probed: the server
// answers a publish or subscription that it forbids with an error, which comes
// before the answer to a ping that was sent afterwards.
func (h *hall) may(user string, probe func(*nats.Conn) error) bool {
	h.t.Helper()
	refused := make(chan error, 16)
	nc := h.connect(user, nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refused <- err }))
	defer nc.Close()
	if err := probe(nc); err != nil {
		h.t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		h.t.Fatal(err)
	}
	// The error is handed over on the connection's own callback queue, in order:
	// what is called from there afterwards comes after it.
	if err := nc.LastError(); err != nil && errors.Is(err, nats.ErrPermissionViolation) {
		return false
	} else if err != nil {
		h.t.Fatal(err)
	}
	return true
}

// probes are the rows of the matrix.
func (h *hall) probes() []string {
	op := access.Inbox(h.keys["op"].Public)
	return []string{
		"pub nearmiss.frames.parts.line1",
		"pub nearmiss.frames.parts.line2",
		"pub nearmiss.frames.other.line1",
		"pub nearmiss.events.parts.line1.anomaly",
		"pub nearmiss.scores.parts.line1",
		"pub nearmiss.normals.parts",
		"pub nearmiss.anomalies.parts",
		"pub nearmiss.feedback.parts",
		"pub nearmiss.train.parts",
		"pub nearmiss.dead.NM_FRAMES",
		"pub nearmiss.progress.parts.j",
		"pub nearmiss.api.control.promote",
		"pub nearmiss.api.trainer.promote",
		"pub nearmiss.api.worker.score-now",
		"pub nearmiss.api.worker.shed.parts.line1",
		"pub nearmiss.api.worker.shed.parts.line2",
		"pub $KV.NM_ACTIVE.parts",
		"pub $KV.NM_DETECTORS.parts",
		"pub $KV.NM_JOBS.x",
		"pub $KV.NM_SINKS.x",
		"pub $KV.NM_USERS.user.x",
		"pub $KV.NM_SESSIONS.x",
		"pub $JS.API.DIRECT.GET.KV_NM_USERS.$KV.NM_USERS.user.x",
		"pub $JS.API.STREAM.PURGE.KV_NM_USERS",
		"pub $JS.API.CONSUMER.CREATE.NM_FEEDBACK.evil.nearmiss.feedback.*",
		"pub $O.NM_ARTIFACTS.M.eA==",
		"pub $O.NM_ARTIFACTS.C.x",
		"pub $O.NM_EVIDENCE.M.eA==",
		"pub $O.NM_IMAGES.M.eA==",
		"pub $O.NM_LARGE.M.eA==",
		"pub $O.NM_LARGE.C.x",
		"pub $JS.API.STREAM.PURGE.OBJ_NM_ARTIFACTS",
		"pub $JS.API.STREAM.PURGE.OBJ_NM_LARGE",
		"pub $JS.API.STREAM.INFO.OBJ_NM_LARGE",
		"pub nearmiss.audit.detector.parts",
		"pub $JS.API.STREAM.PURGE.NM_AUDIT",
		"pub $JS.API.STREAM.MSG.DELETE.NM_AUDIT",
		"pub $JS.API.INFO",
		"pub $JS.API.STREAM.NAMES",
		"pub $JS.API.STREAM.CREATE.X",
		"pub $JS.API.STREAM.UPDATE.NM_FRAMES",
		"pub $JS.API.STREAM.DELETE.NM_FRAMES",
		"pub $JS.API.STREAM.PURGE.NM_FRAMES",
		"pub $JS.API.STREAM.PURGE.NM_NORMALS",
		"pub $JS.API.STREAM.PURGE.NM_EVENTS",
		"pub $JS.API.STREAM.MSG.GET.NM_FRAMES",
		"pub $JS.API.STREAM.MSG.GET.NM_NORMALS",
		"pub $JS.API.STREAM.MSG.DELETE.NM_EVENTS",
		"pub $JS.API.STREAM.MSG.DELETE.NM_NORMALS",
		"pub $JS.API.STREAM.SNAPSHOT.NM_FRAMES",
		"pub $JS.API.DIRECT.GET.NM_EVENTS",
		"pub $JS.API.DIRECT.GET.NM_NORMALS",
		"pub $JS.API.DIRECT.GET.KV_NM_DETECTORS.$KV.NM_DETECTORS.parts",
		"pub $JS.API.CONSUMER.CREATE.NM_EVENTS.evil.nearmiss.events.parts.*.anomaly",
		"pub $JS.API.CONSUMER.CREATE.NM_EVENTS",
		"pub $JS.API.CONSUMER.CREATE.NM_NORMALS.evil.nearmiss.normals.parts",
		"pub $JS.API.CONSUMER.CREATE.NM_FRAMES.evil.nearmiss.frames.parts.*",
		"pub $JS.API.CONSUMER.MSG.NEXT.NM_FRAMES.frames-parts",
		"pub $JS.API.CONSUMER.MSG.NEXT.NM_EVENTS.watch-lamp",
		"pub NM.API.CONSUMER.MSG.NEXT.NM_EVENTS.watch-lamp",
		"pub NM.API.CONSUMER.MSG.NEXT.NM_EVENTS.watch-other",
		"pub $JS.API.CONSUMER.DELETE.NM_EVENTS.watch-lamp",
		"pub $JS.API.CONSUMER.DELETE.NM_FRAMES.frames-parts",
		"pub $JS.ACK.NM_FRAMES.frames-parts.1.1.1.1.1",
		"pub $SYS.REQ.SERVER.PING",
		"pub " + op + ".x.y",
		"pub _INBOX.x",
		"sub >",
		"sub nearmiss.>",
		"sub nearmiss.frames.>",
		"sub nearmiss.frames.parts.*",
		"sub nearmiss.events.parts.*.*",
		"sub nearmiss.events.other.*.*",
		"sub nearmiss.scores.parts.*",
		"sub nearmiss.normals.parts",
		"sub _INBOX.>",
		"sub " + op + ".>",
		"sub $JS.>",
		"sub $JS.EVENT.>",
		"sub $KV.>",
		"sub $O.>",
		"sub nearmiss.api.control.promote",
		"sub nearmiss.api.trainer.promote",
		"sub nearmiss.api.worker.score-now",
		"sub nearmiss.progress.parts.*",
	}
}

func (h *hall) matrix() string {
	var b strings.Builder
	fmt.Fprintf(&b, "| | %s |\n|---%s|\n", strings.Join(roles, " | "), strings.Repeat("|---", len(roles)))
	for _, p := range h.probes() {
		verb, subject, _ := strings.Cut(p, " ")
		fmt.Fprintf(&b, "| %s `%s` |", verb, strings.ReplaceAll(subject, h.keys["op"].Public, "op"))
		for _, r := range roles {
			yes := h.may(r, func(nc *nats.Conn) error {
				if verb == "sub" {
					_, err := nc.SubscribeSync(subject)
					return err
				}
				return nc.Publish(subject, nil)
			})
			b.WriteString(map[bool]string{true: " yes |", false: " – |"}[yes])
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// What each role may and may not do: the same on the embedded broker as on a
// nats-server that runs with the rendered configuration.
func TestDenialMatrix(t *testing.T) {
	golden := filepath.Join("testdata", "matrix.md")
	for name, start := range map[string]func(*hall){
		"embedded broker":  func(h *hall) { h.embedded() },
		"real nats-server": (*hall).external,
	} {
		t.Run(name, func(t *testing.T) {
			h := newHall(t)
			start(h)
			got := h.matrix()
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
				t.Errorf("rights have changed (-golden +now; -update accepts them):\n%s", diff)
			}
			t.Logf("%s: %d subjects and requests, each tried by every role", name, strings.Count(got, "\n| ")-1)
		})
	}
}

// active puts a release pointer where an attack would overwrite it.
func (h *hall) active() jetstream.KeyValue {
	h.t.Helper()
	js := brokertest.StreamsOn(h.t, h.connect("trainer"))
	kv, err := js.KeyValue(context.Background(), "NM_ACTIVE")
	if err == nil {
		_, err = kv.PutString(context.Background(), "parts", "the release")
	}
	if err != nil {
		h.t.Fatal(err)
	}
	return kv
}

// A camera that names the key of the active release as its reply subject, and
// a subscriber that does so with a pull, change nothing: the answer stays in
// their own accounts.
func TestReplySubjectsReachNobody(t *testing.T) {
	h := newHall(t)
	h.embedded()
	kv := h.active()
	js := brokertest.StreamsOn(t, h.connect("op"))
	ctx := context.Background()
	if _, err := js.CreateConsumer(ctx, "NM_EVENTS", jetstream.ConsumerConfig{Durable: "watch-lamp", FilterSubject: "nearmiss.events.>", AckPolicy: jetstream.AckExplicitPolicy}); err != nil {
		t.Fatal(err)
	}
	worker := brokertest.StreamsOn(t, h.connect("worker"))
	if _, err := worker.Publish(ctx, "nearmiss.events.parts.line1.anomaly", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"$KV.NM_ACTIVE.parts", "nearmiss.normals.parts", "$KV.NM_DETECTORS.parts"} {
		camera := h.connect("line1")
		if err := camera.PublishRequest("nearmiss.frames.parts.line1", target, []byte("frame")); err != nil {
			t.Fatal(err)
		}
		lamp := h.connect("lamp")
		for _, s := range []string{"NM.API.CONSUMER.MSG.NEXT.NM_EVENTS.watch-lamp", "NM.API.CONSUMER.INFO.NM_EVENTS.watch-lamp"} {
			if err := lamp.PublishRequest(s, target, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(camera.Flush(), lamp.Flush()); err != nil {
			t.Fatal(err)
		}
	}
	// The frames arrived, and what was asked has been answered by now: the
	// server works through the requests of JetStream in order.
	eventually.True(t, "it is so", func() bool { return h.info("NM_FRAMES") >= 3 })
	e, err := kv.Get(ctx, "parts")
	if err != nil || string(e.Value()) != "the release" || e.Revision() != 1 {
		t.Fatalf("the active release is %v, %v", e, err)
	}
	if n := h.info("NM_NORMALS"); n != 0 {
		t.Fatalf("%d normals", n)
	}
	if n := h.info("KV_NM_DETECTORS"); n != 0 {
		t.Fatalf("%d detectors", n)
	}
}

// info is the number of messages in a stream.
func (h *hall) info(name string) uint64 {
	h.t.Helper()
	js := brokertest.StreamsOn(h.t, h.connect("op"))
	return streamLength(h.t, js, name)
}

// Cameras store frames and are told so; a durable subscriber pulls and
// acknowledges; a live one hears events: each across its account's wall.
func TestRolesDoTheirJobAcrossAccounts(t *testing.T) {
	h := newHall(t)
	h.embedded()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cam := brokertest.StreamsOn(t, h.connect("line1"))
	if ack, err := cam.Publish(ctx, "nearmiss.frames.parts.line1", []byte("frame")); err != nil || ack.Stream != "NM_FRAMES" {
		t.Fatalf("a camera's frame: %v, %v", ack, err)
	}
	op := brokertest.StreamsOn(t, h.connect("op"))
	if _, err := op.CreateConsumer(ctx, "NM_EVENTS", jetstream.ConsumerConfig{Durable: "watch-lamp", FilterSubject: "nearmiss.events.>", AckPolicy: jetstream.AckExplicitPolicy}); err != nil {
		t.Fatal(err)
	}
	view := h.connect("view")
	heard, err := view.SubscribeSync("nearmiss.events.parts.*.*")
	if err == nil {
		err = view.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	worker := brokertest.StreamsOn(t, h.connect("worker"))
	if _, err := worker.Publish(ctx, "nearmiss.events.parts.line1.anomaly", []byte("event")); err != nil {
		t.Fatal(err)
	}
	if m, err := heard.NextMsgWithContext(ctx); err != nil || string(m.Data) != "event" {
		t.Fatalf("live: %v, %v", m, err)
	}
	lamp, err := jetstream.NewWithAPIPrefix(h.connect("lamp"), access.SubscriberAPIPrefix)
	if err != nil {
		t.Fatal(err)
	}
	c, err := lamp.Consumer(ctx, "NM_EVENTS", "watch-lamp")
	if err != nil {
		t.Fatal(err)
	}
	m, err := c.Next()
	if err != nil || string(m.Data()) != "event" {
		t.Fatalf("durable: %v, %v", m, err)
	}
	if err := m.DoubleAck(ctx); err != nil {
		t.Fatal(err)
	}
}

// Users come, go and change their keys while frames flow: those who stay notice
// nothing, and who is out is out within a second.
func TestUsersChangeWhileFramesFlow(t *testing.T) {
	h := newHall(t)
	b := h.embedded()
	// reloaded waits until the server has taken a change. Clients come in afterwards:
	// nats-server's reload reads what a client that is coming in writes (2.15.2).
	reloaded := func(change func()) {
		t.Helper()
		before := b.Reloads()
		change()
		eventually.True(t, "it is so", func() bool { return b.Reloads() > before })
	}
	comesIn := func(opts []nats.Option) bool {
		nc, err := nats.Connect(h.url, opts...)
		if err == nil {
			nc.Close()
		}
		return err == nil
	}
	lost := func(user string) (*nats.Conn, <-chan struct{}) {
		gone := make(chan struct{})
		nc := h.connect(user, nats.NoReconnect(), nats.ClosedHandler(func(*nats.Conn) { close(gone) }))
		return nc, gone
	}
	stays, staysGone := lost("line1")
	_, outGone := lost("line2")
	js := brokertest.StreamsOn(t, stays)
	stop, sent := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		defer func() { sent <- n }()
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := js.Publish(context.Background(), "nearmiss.frames.parts.line1", []byte{byte(n)}); err != nil {
				t.Errorf("frame %d: %v", n, err)
				return
			}
			n++
		}
	}()
	at := time.Now()
	reloaded(func() {
		h.change(func(f *access.File) error {
			u, err := f.Get("line2")
			u.Disabled = true
			return errors.Join(err, f.Change(u))
		})
		<-outGone
		t.Logf("out after %v", time.Since(at).Round(10*time.Millisecond))
	})
	if comesIn(h.options("line2")) {
		t.Error("a disabled user came in")
	}
	reloaded(func() { h.add(access.User{Name: "line3", Role: access.Camera, Detector: "parts"}) })
	if !comesIn(h.options("line3")) {
		t.Error("a new user did not come in")
	}
	// A rotated key: both are good until the old one's time is up.
	old := h.options("line3")
	until, end := time.Now().Add(3*time.Second), b.Reloads()+2 // the change, and the old key's end
	reloaded(func() {
		h.change(func(f *access.File) error {
			u, err := f.Get("line3")
			if err != nil {
				return err
			}
			before := u.Key
			u.Old, u.OldUntil = &before, until
			u.Key, h.seeds["line3"], err = access.NewNKey()
			h.keys["line3"] = u.Key
			return errors.Join(err, f.Change(u))
		})
	})
	if !comesIn(h.options("line3")) {
		t.Error("a new key is not good")
	}
	if !comesIn(old) && time.Now().Before(until) {
		t.Error("an old key is not good until its time is up")
	}
	// One look is enough where the change was taken after that time.
	eventually.True(t, "it is so", func() bool { return b.Reloads() >= end || time.Since(until) > 20*time.Second })
	if comesIn(old) {
		t.Error("an old key is good after its time is up")
	}
	// A file that cannot be used changes nothing.
	reloaded(func() {
		if err := os.WriteFile(h.users, []byte("users: {"), 0o600); err != nil {
			t.Fatal(err)
		}
	})
	if !comesIn(h.options("line3")) {
		t.Error("a broken file of users shut somebody out")
	}
	close(stop)
	n := <-sent
	select {
	case <-staysGone:
		t.Error("a user that stayed lost its connection")
	default:
	}
	if got := h.info("NM_FRAMES"); got != uint64(n) {
		t.Errorf("%d frames acknowledged, %d stored", n, got)
	}
}

// A store that was made before the first user is found again afterwards, and
// when the last user has gone.
func TestStoresMoveIntoTheAccountAndBack(t *testing.T) {
	dir := t.TempDir()
	b, stop := brokertest.Start(t, broker.Config{Port: -1, StoreDir: dir})
	ctx := context.Background()
	nc := brokertest.Connect(t, b)
	js := brokertest.StreamsOn(t, nc)
	if err := stream.Ensure(ctx, js, stream.Topology{}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(ctx, "nearmiss.frames.parts.line1", []byte("frame")); err != nil {
		t.Fatal(err)
	}
	nc.Close()
	stop()
	h := newHall(t)
	b, stop = brokertest.Start(t, broker.Config{Port: -1, StoreDir: dir, Users: h.users})
	h.url = b.ClientURL()
	if n := h.info("NM_FRAMES"); n != 1 {
		t.Fatalf("%d frames with users", n)
	}
	stop()
	b, _ = brokertest.Start(t, broker.Config{Port: -1, StoreDir: dir})
	js = brokertest.StreamsOn(t, brokertest.Connect(t, b))
	s, err := js.Stream(ctx, "NM_FRAMES")
	if err != nil || s.CachedInfo().State.Msgs != 1 {
		t.Fatalf("without users: %v", err)
	}
}

// With certificates, NATS and MQTT clients without one of the CA's are refused;
// a renewed certificate and another CA are in force without a lost frame.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	ca := access.OpenCA(dir)
	in := func(name string) string { return filepath.Join(dir, name) }
	for _, err := range []error{
		ca.Create(t.Context(), "test", false, now),
		ca.Issue(t.Context(), dir, "server", true, []string{"127.0.0.1"}, now),
		ca.Issue(t.Context(), dir, "client", false, nil, now),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	h := newHall(t)
	mq, password, err := access.NewPassword()
	if err != nil {
		t.Fatal(err)
	}
	h.change(func(f *access.File) error {
		return f.Add(access.User{Name: "mq", Role: access.Camera, Detector: "parts", MQTT: true, Key: mq})
	})
	b, _ := brokertest.Start(t, broker.Config{
		Port: -1, MQTTPort: -1, Users: h.users,
		TLS: access.TLSFiles{CA: in("ca.crt"), Cert: in("server.crt"), Key: in("server.key"), Verify: access.ClientCertsRequired},
	})
	js := brokertest.Streams(t, b.LocalURL(), b.Credentials()...) // as the broker's own process
	if err := stream.Ensure(context.Background(), js, stream.Topology{}); err != nil {
		t.Fatal(err)
	}
	h.url = b.ClientURL()
	if _, err := nats.Connect(h.url, h.options("line1")...); err == nil {
		t.Error("a client that does not know the CA came in")
	}
	if nc, err := stream.Connect(h.url, "line1", zerolog.Nop(), h.options("line1")...); err == nil || !strings.Contains(err.Error(), "--tls-ca") {
		if err == nil {
			nc.Close()
		}
		t.Errorf("a service that does not know the CA waits, or is not told what to do: %v", err)
	}
	if _, err := nats.Connect(h.url, append(h.options("line1"), nats.RootCAs(in("ca.crt")))...); err == nil {
		t.Error("a client without a certificate came in")
	}
	with := []nats.Option{nats.RootCAs(in("ca.crt")), nats.ClientCert(in("client.crt"), in("client.key")), nats.MaxReconnects(-1), nats.ReconnectWait(10 * time.Millisecond)}
	cam := brokertest.StreamsOn(t, h.connect("line1", with...))
	sent := uint64(0)
	frame := func() {
		t.Helper()
		if _, err := cam.Publish(context.Background(), "nearmiss.frames.parts.line1", []byte("frame")); err != nil {
			t.Fatal(err)
		}
		sent++
	}
	frame()

	pair, err := tls.LoadX509KeyPair(in("client.crt"), in("client.key"))
	if err != nil {
		t.Fatal(err)
	}
	trust := func() *x509.CertPool {
		pem, err := os.ReadFile(in("ca.crt"))
		if err != nil {
			t.Fatal(err)
		}
		p := x509.NewCertPool()
		p.AppendCertsFromPEM(pem)
		return p
	}
	mqtt := func(certs ...tls.Certificate) error {
		c, err := tls.Dial("tcp", b.MQTTAddr(), &tls.Config{RootCAs: trust(), Certificates: certs})
		if err != nil {
			return err
		}
		defer c.Close()
		return mqttPublish(c, "mq", password, "nearmiss/frames/parts/mq", "frame")
	}
	if mqtt() == nil {
		t.Error("an MQTT client without a certificate came in")
	}
	publishesInTime(t, func() error { return mqtt(pair) })
	for _, step := range []func() error{
		func() error { return ca.Renew(t.Context(), in("server.crt"), now) },
		func() error { return ca.Create(t.Context(), "second", true, now) },
		func() error { return ca.Renew(t.Context(), in("server.crt"), now) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
		frame()
		publishesInTime(t, func() error { return mqtt(pair) })
		h.connect("line1", with...).Close()
	}
	s, err := js.Stream(t.Context(), "NM_FRAMES")
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(t.Context(), jetstream.WithSubjectFilter("nearmiss.frames.parts.*"))
	if err != nil {
		t.Fatal(err)
	}
	for name, stored := range info.State.Subjects {
		if stored != sent && (name != "nearmiss.frames.parts.mq" || stored < sent) {
			t.Errorf("%d frames of %d on %s", stored, sent, name)
		}
	}
	if len(info.State.Subjects) != 2 {
		t.Errorf("frames of %v", info.State.Subjects)
	}
}

func streamLength(t testing.TB, js jetstream.JetStream, name string) uint64 {
	t.Helper()
	s, err := js.Stream(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().State.Msgs
}
