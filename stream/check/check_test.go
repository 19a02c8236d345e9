package check

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/access"
	"github.com/nearmiss/nearmiss/stream/control"
)

func TestMain(m *testing.M) { brokertest.Main(m) }

// own is a nats-server of somebody's own, as cfg sets it up.
func own(t *testing.T, o *server.Options) *nats.Conn {
	t.Helper()
	o.JetStream, o.StoreDir = true, t.TempDir()
	return brokertest.Client(t, brokertest.Server(t, o))
}

// found are the findings by check.
func found(t *testing.T, nc *nats.Conn, cfg Config) map[string]Finding {
	t.Helper()
	all := map[string]Finding{}
	cfg.Setup = "nearmiss broker --setup URL"
	if err := Broker(t.Context(), nc, cfg, func(f Finding) {
		if _, ok := all[f.Check]; ok {
			t.Errorf("check %s tells two things", f.Check)
		}
		all[f.Check] = f
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

func levels(all map[string]Finding) map[string]string {
	out := map[string]string{}
	for k, f := range all {
		out[k] = f.Level
	}
	return out
}

var small = stream.Topology{FramesMaxBytes: 1 << 20, EventsMaxBytes: 1 << 20, DeadMaxBytes: 1 << 20, LargeMaxBytes: 1 << 20}

func ensured(t *testing.T, nc *nats.Conn) jetstream.JetStream {
	t.Helper()
	js := brokertest.StreamsOn(t, nc)
	if err := stream.Ensure(t.Context(), js, small); err != nil {
		t.Fatal(err)
	}
	return js
}

// TestAnInstallationAsItShouldBe: nothing is found where all is well, and every stream
// and bucket is looked at.
func TestAnInstallationAsItShouldBe(t *testing.T) {
	nc := own(t, &server.Options{MaxPayload: 8 << 20})
	js := ensured(t, nc)
	asked, err := control.New(nc, stream.Names{}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	stop, err := asked.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	var all map[string]Finding
	eventually.True(t, "control answers in time", func() bool {
		all = found(t, nc, Config{Topology: small, Wait: time.Minute / 30})
		return !strings.HasPrefix(all["services"].Detail, "no control")
	})
	want := map[string]string{
		"server": OK, "rights": OK, "payload": OK, "jetstream": OK, "streams": OK, "space": OK, "clock": OK, "services": Warning,
	}
	if diff := cmp.Diff(want, levels(all)); diff != "" {
		t.Errorf("%s\n%+v", diff, all)
	}
	if s := all["services"]; s.Detail != "1 control, no worker, no trainer" || !strings.Contains(s.Advice, "nearmiss worker scores") {
		t.Errorf("%+v", s)
	}
	looked := stream.Names{}.BucketStreams()
	for _, c := range small.Streams() {
		looked = append(looked, c.Name)
	}
	var there []string
	names := js.StreamNames(t.Context())
	for n := range names.Name() {
		there = append(there, n)
	}
	slices.Sort(looked)
	slices.Sort(there)
	if diff := cmp.Diff(there, looked); diff != "" {
		t.Errorf("what there is, and what is looked at:\n%s", diff)
	}
}

func TestWhatIsWrongIsFoundAndSaysWhatToDo(t *testing.T) {
	update := func(name string, change func(*jetstream.StreamConfig)) func(*testing.T, jetstream.JetStream) {
		return func(t *testing.T, js jetstream.JetStream) {
			s, err := js.Stream(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			cfg := s.CachedInfo().Config
			change(&cfg)
			if _, err := js.UpdateStream(t.Context(), cfg); err != nil {
				t.Fatal(err)
			}
		}
	}
	remove := func(name string) func(*testing.T, jetstream.JetStream) {
		return func(t *testing.T, js jetstream.JetStream) {
			if err := js.DeleteStream(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, c := range map[string]struct {
		spoil                        func(*testing.T, jetstream.JetStream)
		cfg                          Config
		check, level, detail, advice string
	}{
		"a stream is missing": {remove("NM_FEEDBACK"), Config{}, "streams", Failed, "missing: NM_FEEDBACK", "nearmiss broker --setup URL"},
		"a bucket is missing": {remove("KV_NM_JOBS"), Config{}, "streams", Failed, "missing: KV_NM_JOBS", "--setup"},
		"another prefix":      {nil, Config{Topology: stream.Topology{Names: stream.Names{Prefix: "plant2"}}}, "streams", Failed, "none of the streams", "--prefix"},
		"events that are refused when there are many": {
			update("NM_EVENTS", func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardNew }), Config{}, "streams", Failed, "NM_EVENTS when full DiscardNew, not DiscardOld", "--setup",
		},
		"subjects of another": {
			update("NM_FEEDBACK", func(c *jetstream.StreamConfig) { c.Subjects = []string{"notes.*"} }), Config{}, "streams", Failed, "NM_FEEDBACK stores notes.*", "--setup",
		},
		"a queue that takes the frames of some": {
			update("NM_FRAMES", func(c *jetstream.StreamConfig) { c.Subjects = []string{"nearmiss.frames.nuts.*"} }), Config{}, "streams", Warning, "some detectors only", "keep.*",
		},
		"another size":                {update("NM_DEAD", func(c *jetstream.StreamConfig) { c.MaxBytes = 2 << 20 }), Config{}, "streams", Warning, "NM_DEAD holds 2.0 MiB, not 1.0 MiB", "--config"},
		"another age":                 {update("NM_FRAMES", func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour }), Config{}, "streams", Warning, "NM_FRAMES keeps messages for 1h0m0s", "keep.*"},
		"fewer copies":                {nil, Config{Topology: stream.Topology{Replicas: 3}}, "streams", Warning, "has one copy, not 3", "--setup"},
		"a queue that is nearly full": {fill(940 << 10), Config{}, "space", Warning, "nearly full: NM_FRAMES 9", "start workers"},
		"a queue that is full":        {fill(2 << 20), Config{}, "space", Failed, "full: NM_FRAMES", "start workers"},
		"messages are small":          {nil, Config{}, "payload", Warning, "messages of up to 1.0 MiB", "max_payload: 8MB"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nc := own(t, &server.Options{})
			js := ensured(t, nc)
			if c.spoil != nil {
				c.spoil(t, js)
			}
			if c.cfg.Topology.FramesMaxBytes == 0 {
				names, replicas := c.cfg.Topology.Names, c.cfg.Topology.Replicas
				c.cfg.Topology = small
				c.cfg.Topology.Names, c.cfg.Topology.Replicas = names, replicas
			}
			c.cfg.Wait = time.Millisecond
			f := found(t, nc, c.cfg)[c.check]
			if f.Level != c.level || !strings.Contains(f.Detail, c.detail) || !strings.Contains(f.Advice, c.advice) {
				t.Errorf("%+v", f)
			}
		})
	}
}

// TestWhatAServerMakesHardToSpoil: what compare finds of a stream, where a server would
// not change it to that, or sets it up otherwise only in an earlier version.
func TestWhatAServerMakesHardToSpoil(t *testing.T) {
	for name, c := range map[string]struct {
		spoil  func(*jetstream.StreamConfig)
		detail string
	}{
		"nothing":        {func(*jetstream.StreamConfig) {}, ""},
		"retention":      {func(c *jetstream.StreamConfig) { c.Retention = jetstream.InterestPolicy }, "has retention Interest, not Limits"},
		"storage":        {func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage }, "is kept in Memory: it is lost with the server's process"},
		"direct reads":   {func(c *jetstream.StreamConfig) { c.AllowDirect = !c.AllowDirect }, "is of an earlier version"},
		"deletes":        {func(c *jetstream.StreamConfig) { c.DenyDelete = !c.DenyDelete }, "is of an earlier version"},
		"purges":         {func(c *jetstream.StreamConfig) { c.DenyPurge = !c.DenyPurge }, "is of an earlier version"},
		"republishing":   {func(c *jetstream.StreamConfig) { c.RePublish = &jetstream.RePublish{} }, "is of an earlier version"},
		"another stream": {func(c *jetstream.StreamConfig) { c.Subjects = nil }, "stores , not nearmiss.feedback.*"},
	} {
		var want jetstream.StreamConfig
		for _, s := range small.Streams() {
			if s.Name == "NM_FEEDBACK" {
				want = s
			}
		}
		have := want
		c.spoil(&have)
		wrong, differs := compare(have, want)
		expected := []string{"NM_FEEDBACK " + c.detail}
		if c.detail == "" {
			expected = nil
		}
		if diff := cmp.Diff(expected, wrong); diff != "" || len(differs) > 0 {
			t.Errorf("%s: %s%v", name, diff, differs)
		}
	}
}

// TestCopiesOfACluster: what is said of the copies of streams, by what the server tells.
func TestCopiesOfACluster(t *testing.T) {
	info := func(replicas int, leader string, others ...*jetstream.PeerInfo) *jetstream.StreamInfo {
		return &jetstream.StreamInfo{
			Config:  jetstream.StreamConfig{Name: "NM_FRAMES", Replicas: replicas},
			Cluster: &jetstream.ClusterInfo{Name: "c", Leader: leader, Replicas: others},
		}
	}
	well := []*jetstream.PeerInfo{{Name: "n1", Current: true}, {Name: "n2", Current: true}}
	alone := info(1, "n0")
	alone.Cluster = nil
	for name, c := range map[string]struct {
		all           []*jetstream.StreamInfo
		level, detail string
	}{
		"one server":        {[]*jetstream.StreamInfo{alone}, "", ""},
		"all are there":     {[]*jetstream.StreamInfo{info(3, "n0", well...)}, OK, "3 copies of everything, all up to date"},
		"no leader":         {[]*jetstream.StreamInfo{info(3, "n0", well...), info(3, "", well...)}, Failed, "no leader: NM_FRAMES"},
		"one is away":       {[]*jetstream.StreamInfo{info(3, "n0", well[0], &jetstream.PeerInfo{Name: "n2", Current: true, Offline: true})}, Warning, "copies that are away or behind: NM_FRAMES on n2"},
		"one is behind":     {[]*jetstream.StreamInfo{info(3, "n0", well[0], &jetstream.PeerInfo{Name: "n2"})}, Warning, "copies that are away or behind: NM_FRAMES on n2"},
		"one has no copies": {[]*jetstream.StreamInfo{info(3, "n0", well...), info(1, "n1")}, Warning, "there are streams with one copy in a cluster"},
	} {
		var got Finding
		l := &checker{cfg: Config{Setup: "SETUP"}, report: func(f Finding) { got = f }}
		l.replicas(c.all)
		if got.Level != c.level || got.Detail != c.detail || (got.Advice == "") != (c.level == OK || c.level == "") {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// TestWhatAnAccountMayStore: a limit that is nearly reached is a warning.
func TestWhatAnAccountMayStore(t *testing.T) {
	info := func(stored, most int64, tiers map[string]jetstream.Tier) *jetstream.AccountInfo {
		return &jetstream.AccountInfo{Tier: jetstream.Tier{Store: uint64(stored), Streams: 3, Limits: jetstream.AccountLimits{MaxStore: most}}, Tiers: tiers}
	}
	tier := func(most int64) jetstream.Tier {
		return jetstream.Tier{Limits: jetstream.AccountLimits{MaxStore: most}}
	}
	for name, c := range map[string]struct {
		a             *jetstream.AccountInfo
		level, detail string
		advice        string
	}{
		"no limit":             {info(5<<20, -1, nil), OK, "5.0 MiB stored by 3 streams", ""},
		"room":                 {info(85<<20, 100<<20, nil), OK, "85 MiB stored by 3 streams of 100 MiB that the account may", ""},
		"nearly full":          {info(86<<20, 100<<20, nil), Warning, "86 MiB stored by 3 streams of 100 MiB that the account may", "86 % of it is taken"},
		"limits by copies":     {info(10<<20, 0, map[string]jetstream.Tier{"R1": tier(1 << 20), "R3": tier(100 << 20)}), OK, "10 MiB stored by 3 streams of 100 MiB that the account may", ""},
		"and one that is full": {info(99<<20, 0, map[string]jetstream.Tier{"R3": tier(100 << 20)}), Warning, "99 MiB stored by 3 streams of 100 MiB that the account may", "99 % of it is taken"},
	} {
		f := Finding{Level: OK}
		f.stored(c.a)
		if f.Level != c.level || f.Detail != c.detail || !strings.HasPrefix(f.Advice, c.advice) || (f.Advice == "") != (c.advice == "") {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

// fill has frames of so many bytes wait, in pieces of 10 KiB, or as many as there is
// room for.
func fill(n int) func(*testing.T, jetstream.JetStream) {
	return func(t *testing.T, js jetstream.JetStream) {
		for ; n > 0; n -= 10 << 10 {
			_, err := js.Publish(t.Context(), "nearmiss.frames.bolts.left", make([]byte, 10<<10-100))
			if stream.IsQueueFull(err) {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestAServerWithoutStreams(t *testing.T) {
	nc := brokertest.Client(t, brokertest.Server(t, &server.Options{}))
	all := found(t, nc, Config{Topology: small, Wait: time.Millisecond})
	if f := all["jetstream"]; f.Level != Failed || !strings.Contains(f.Advice, "store_dir") {
		t.Errorf("%+v", f)
	}
	if f := all["streams"]; f.Level != Failed {
		t.Errorf("%+v", f)
	}
	if f := all["clock"]; f.Level != Skipped {
		t.Errorf("%+v", f)
	}
}

// locked is a nats-server with the accounts that nearmiss users renders for one user.
func locked(t *testing.T, u access.User, edit func(string) string) *nats.Conn {
	t.Helper()
	setup := access.User{Name: "setup", Role: access.Setup}
	seeds := map[string][]byte{}
	var file access.File
	for _, u := range []*access.User{&u, &setup} {
		var err error
		if u.Key, seeds[u.Name], err = access.NewNKey(); err == nil {
			err = file.Add(*u)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	auth, err := access.Render(stream.Names{}, file, "", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(t.TempDir(), "auth.conf")
	if err := os.WriteFile(conf, []byte(edit(string(auth))), 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := server.ProcessConfigFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	o.JetStream, o.StoreDir = true, t.TempDir()
	url := brokertest.Server(t, o)
	as := func(u access.User) *nats.Conn {
		return brokertest.Client(t, url, nats.CustomInboxPrefix(access.Inbox(u.Key.Public)), nats.Nkey(u.Key.Public, func(nonce []byte) ([]byte, error) {
			pair, err := nkeys.FromSeed(seeds[u.Name])
			if err != nil {
				return nil, err
			}
			return pair.Sign(nonce)
		}))
	}
	ensured(t, as(setup))
	return as(u)
}

// TestRightsAreThoseOfTheRole: whether a client may do what its role does is known
// without trying it, and what it may not ask for is skipped at once.
func TestRightsAreThoseOfTheRole(t *testing.T) {
	same := func(s string) string { return s }
	for name, c := range map[string]struct {
		user          access.User
		edit          func(string) string
		as            access.Role
		level, detail string
	}{
		"a worker":                 {access.User{Name: "w", Role: access.Worker}, same, access.Worker, OK, "may do what a worker does"},
		"a worker of one detector": {access.User{Name: "w", Role: access.Worker, Detector: "nuts"}, same, access.Worker, Failed, "publish $JS.ACK.NM_FRAMES.*.>"},
		"a worker as a trainer":    {access.User{Name: "w", Role: access.Worker}, same, access.Trainer, Failed, "may not do all that a trainer does: "},
		"a trainer, unnamed":       {access.User{Name: "t", Role: access.Trainer}, same, "", OK, "may do what trainer do"},
		"an operator, unnamed":     {access.User{Name: "o", Role: access.Operator}, same, "", OK, "may do what operator do"},
		"a control of an earlier version": {access.User{Name: "c", Role: access.Control}, func(s string) string {
			return strings.ReplaceAll(s, "\"$JS.API.CONSUMER.CREATE.NM_TRAINING.trainers\",", "")
		}, access.Control, Failed, "publish $JS.API.CONSUMER.CREATE.NM_TRAINING.trainers"},
		"one that may not ask": {access.User{Name: "c", Role: access.Console}, func(s string) string {
			return strings.ReplaceAll(s, "\"$SYS.REQ.USER.INFO\",", "")
		}, access.Console, Skipped, "may not ask"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nc := locked(t, c.user, c.edit)
			all := found(t, nc, Config{Topology: small, Role: c.as, Wait: time.Millisecond})
			if f := all["rights"]; f.Level != c.level || !strings.Contains(f.Detail, c.detail) {
				t.Errorf("%+v", f)
			}
			if f := all["streams"]; f.Level != OK {
				t.Errorf("%+v", f)
			}
			if f := all["jetstream"]; (f.Level == Skipped) != (c.user.Role == access.Worker || c.user.Role == access.Trainer || c.user.Role == access.Control) {
				t.Errorf("%+v", f)
			}
		})
	}
}

func TestCovers(t *testing.T) {
	for _, c := range []struct {
		pattern, subject string
		want             bool
	}{
		{"a.b", "a.b", true},
		{"a.b", "a.c", false},
		{"a.*", "a.b", true},
		{"a.*", "a.*", true},
		{"a.b", "a.*", false},
		{"a.*", "a", false},
		{"a", "a.b", false},
		{"a.>", "a.b.c", true},
		{"a.>", "a.>", true},
		{"a.>", "a.*", true},
		{"a.>", "a", false},
		{"a.*", "a.>", false},
		{">", "a", true},
		{"*.b", "a.b", true},
		{"a.*.c", "a.b.c", true},
	} {
		if got := covers(c.pattern, c.subject); got != c.want {
			t.Errorf("%s, %s: %v", c.pattern, c.subject, got)
		}
	}
}

// TestCoversAsTheServerDoes compares covers with nats-server's own answer.
func TestCoversAsTheServerDoes(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	random := func() string {
		var tokens []string
		for range 1 + rng.IntN(4) {
			tokens = append(tokens, []string{"a", "b", "*"}[rng.IntN(3)])
		}
		if rng.IntN(3) == 0 {
			tokens = append(tokens, ">")
		}
		return strings.Join(tokens, ".")
	}
	yes := 0
	for range 20_000 {
		p, s := random(), random()
		want := server.SubjectMatchesFilter(s, p)
		if got := covers(p, s); got != want {
			t.Fatalf("%s, %s: %v, the server says %v", p, s, got, want)
		}
		if want {
			yes++
		}
	}
	if yes < 1000 {
		t.Errorf("%d of 20000 are covered: the test tries nothing", yes)
	}
}

func TestClocks(t *testing.T) {
	begin := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		took, off time.Duration // the answer took, and this clock is ahead by
		level     string
		detail    string
	}{
		{2 * time.Millisecond, 0, OK, "0s behind the server's, to within 1ms"},
		{2 * time.Millisecond, time.Second, OK, "1s ahead of the server's"},
		{2 * time.Millisecond, -time.Hour, Failed, "1h0m0s behind the server's"},
		{2 * time.Millisecond, 3 * time.Second, Failed, "3s ahead of the server's"},
		{4 * time.Second, 3 * time.Second, OK, "to within 2s"}, // nobody knows
	} {
		f := clocks(begin, c.took, begin.Add(c.took/2-c.off))
		if f.Level != c.level || !strings.Contains(f.Detail, c.detail) {
			t.Errorf("%v: %+v", c, f)
		}
	}
}

func TestVersions(t *testing.T) {
	for _, c := range []struct {
		version, than string
		want          bool
	}{
		{"2.9.25", "2.10", true},
		{"2.10.0", "2.10", false},
		{"2.15.2", "2.15", false},
		{"3.0.0-beta", "2.15", false},
		{"", "2.15", false},
	} {
		if got := older(c.version, c.than); got != c.want {
			t.Errorf("%s before %s: %v", c.version, c.than, got)
		}
	}
	if older(server.VERSION, Tested) || older(Tested, server.VERSION[:strings.LastIndexByte(server.VERSION, '.')]) {
		t.Errorf("the tests run with nats-server %s, not %s", server.VERSION, Tested)
	}
}

// TestAnEndOfTheContextEndsIt: an interrupted check says so.
func TestAnEndOfTheContextEndsIt(t *testing.T) {
	nc := own(t, &server.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Broker(ctx, nc, Config{Topology: small}, func(Finding) {}); err == nil {
		t.Error("no error")
	}
}
